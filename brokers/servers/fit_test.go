package servers

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// What MCP says of each member is what a definition is held to; members that it does
// not know may be anything that JSON readers read alike.
func TestWhatFits(t *testing.T) {
	nest := strings.Repeat("[", 300) + strings.Repeat("]", 300)
	for of, all := range map[gateway.Sort]struct {
		whole string // without its last brace
		good  []string
		bad   map[string]string // and what is said of it
	}{
		gateway.SortTool: {`{"name":"n","inputSchema":{"type":"object"}`,
			[]string{``, `,"title":"t","description":"d","icons":[{"src":"s","sizes":["1x1"],"theme":"dark","mimeType":"m","x":1}],"_meta":{"a":[1e300]}`,
				`,"annotations":{"title":"t","readOnlyHint":true,"x":{}},"execution":{"taskSupport":"optional"}`, `,"outputSchema":{"type":"array"}`,
				`,"outputSchema":{}`, `,"outputSchema":{"anyOf":[{"type":"object"}]}`, `,"unknown":[{"name":5}],"x":null,"defer_loading":true`},
			map[string]string{
				`,"description":5`: `at "description": must be string`, `,"description":null`: `must be string`, `,"title":7`: `at "title"`,
				`,"annotations":"x"`: `at "annotations": must be object`, `,"annotations":null`: `must be object`, `,"annotations":{"readOnlyHint":"yes"}`: `at "annotations.readOnlyHint": must be boolean`,
				`,"annotations":{"title":3}`: `must be string`, `,"icons":"x"`: `must be array`, `,"icons":[{"a":1}]`: `at "icons.0": needs "src"`, `,"icons":[{"src":"x","sizes":"48x48"}]`: `must be array`,
				`,"icons":[{"src":"x","theme":"blue"}]`: `at "icons.0.theme": must be one of the values that MCP lists`, `,"execution":"x"`: `must be object`, `,"execution":{"taskSupport":"sometimes"}`: `at "execution.taskSupport"`,
				`,"_meta":[]`: `at "_meta": must be object`, `,"_meta":null`: `must be object`, `,"outputSchema":null`: `at "outputSchema"`, `,"outputSchema":true`: `at "outputSchema"`, `,"outputSchema":{"$schema":1}`: `at "outputSchema.$schema"`,
				`,"defer_loading":"x"`: `at "defer_loading"`, `,"_meta":{"a":1e999}`: `a number that is too big`, `,"x":[-1e400]`: `too big`, `,"x":` + nest: `nested too deep`,
				`,"Description":5`: `which some clients take for another`, `,"NAME":"pid__other"`: `which some clients take for another`, `,"annotations":{"TITLE":"x"}`: `which some clients take for another`, `,"icons":[{"src":"x","\u017frc":"y"}]`: `which some clients take for another`, `,"outputSchema":{"Type":"object"}`: `which some clients take for another`, `,"outputSchema":{"$schema":"http://json-schema.org/draft-07/schema#","$defs":5}`: `at "outputSchema.$defs"`,
			}},
		gateway.SortResource: {`{"uri":"a:b","name":"n"`,
			[]string{``, `,"size":5,"mimeType":"m","annotations":{"audience":["user","assistant"],"priority":0.5,"lastModified":"2026-01-01T00:00:00Z"}`, `,"size":1.0`, `,"annotations":{"lastModified":"yesterday"}`},
			map[string]string{
				`,"size":"x"`: `at "size": must be integer`, `,"size":-1.5`: `must be integer`, `,"mimeType":5`: `must be string`, `,"description":[]`: `must be string`, `,"_meta":"x"`: `must be object`, `,"icons":{}`: `must be array`,
				`,"annotations":{"priority":5}`: `at "annotations.priority": must be at most 1`, `,"annotations":{"audience":["robot"]}`: `at "annotations.audience.0"`, `,"annotations":{"audience":"user"}`: `must be array`, `,"annotations":{"lastModified":5}`: `must be string`, `,"URI":"c:d"`: `which some clients take for another`, `,"annotations":{"Priority":0}`: `which some clients take for another`,
			}},
		gateway.SortTemplate: {`{"uriTemplate":"a:{b}","name":"n"`, []string{``, `,"title":"t"`}, map[string]string{`,"mimeType":5`: `must be string`, `,"annotations":null`: `must be object`, `,"uritemplate":"x:{y}"`: `which some clients take for another`}},
		gateway.SortPrompt: {`{"name":"n"`, []string{``, `,"arguments":[{"name":"a","required":true,"title":"t","x":1}]`},
			map[string]string{
				`,"arguments":{}`: `must be array`, `,"arguments":null`: `must be array`, `,"arguments":["x"]`: `must be object`, `,"arguments":[{"description":"x"}]`: `needs "name"`, `,"arguments":[{"name":"x","required":"yes"}]`: `must be boolean`, `,"description":4`: `must be string`, `,"arguments":[{"name":"x","Required":true}]`: `which some clients take for another`,
			}},
	} {
		for _, more := range all.good {
			if err := fits(of, json.RawMessage(all.whole+more+"}")); err != nil {
				t.Errorf("%s %s: %v", of, more, err)
			}
		}
		for more, says := range all.bad {
			if err := fits(of, json.RawMessage(all.whole+more+"}")); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s %.60s: %v, not %s", of, more, err, says)
			}
		}
	}
}

// Legal members that would cost an agent its list, or mean nothing to one of an
// earlier revision, are not shown to it; all else stays as it is.
func TestWhatIsShown(t *testing.T) {
	const all = "=" // what the others read
	for _, c := range []struct {
		sort                gateway.Sort
		whole, shown, elder string
	}{
		{"", `{"name":"n","inputSchema":{"type":"object"},"outputSchema":{"type":"object","properties":{"a":{"$ref":"#/$defs/b"}},"$defs":{"b":{"type":["string","null"],"pattern":"^[a-z0-9._%+-]+@(?:[a-z]{2,4}\\.)+$"}},"required":["a"]}}`, all, all},
		{"", `{"name":"n", "outputSchema":{"type":"array"},"inputSchema":{"type":"object"}}`, all, `{"name":"n","inputSchema":{"type":"object"}}`},
		{"", `{"outputSchema":{},"name":"n"}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"anyOf":[{"type":"object"}]}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","inputSchema":{"type":"object","properties":{"a":true,"b":{"x":1.0}, "c" : false}}}`, all, `{"name":"n","inputSchema":{"type":"object","properties":{"a":{},"b":{"x":1.0}, "c" : {"not":{}}}}}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":true}}}`, all, `{"name":"n","outputSchema":{"type":"object","properties":{"a":{}}}}`},
		// No client of before 2026-07-28 can be trusted to compile these.
		{"", `{"name":"n","outputSchema":{"type":"object","enum":[]}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","nullable":true}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","id":"x"}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":{"$id":"https://x.example/"}}}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":{"$ref":"https://json-schema.org/draft/2020-12/schema"}}}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":{"pattern":"(?i)a"}}}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":{"pattern":"a{"}}}}`, all, `{"name":"n"}`},
		{"", `{"name":"n","outputSchema":{"type":"object","properties":{"a":{"pattern":"\\_"}}}}`, all, `{"name":"n"}`},
		// None reads these.
		{"", `{"name":"n","outputSchema":{"type":"objct"}}`, `{"name":"n"}`, all},
		{"", `{"name":"n","outputSchema":{"type":["object"]}}`, `{"name":"n"}`, all},
		{gateway.SortResource, `{"uri":"a:b","size":1e30,"name":"n"}`, `{"uri":"a:b","name":"n"}`, all},
		{gateway.SortResource, `{"uri":"a:b","size":1.0,"name":"n"}`, `{"uri":"a:b","name":"n"}`, all},
		{gateway.SortResource, `{"uri":"a:b","size":12,"annotations":{"lastModified":"2026-01-01T00:00:00+01:00"}}`, all, all},
		{gateway.SortResource, `{"uri":"a:b","annotations":{"lastModified":"2026-01-01","priority":1}}`, `{"uri":"a:b","annotations":{"priority":1}}`, all},
		{gateway.SortTemplate, `{"annotations":{"audience":[],"lastModified":"yesterday"}}`, `{"annotations":{"audience":[]}}`, all},
		{gateway.SortPrompt, `{"name":"n","size":"x"}`, all, all},
	} {
		tool := gateway.Tool{Sort: c.sort, Definition: json.RawMessage(c.whole)}
		show(&tool)
		if c.shown == all {
			c.shown = c.whole
		}
		if c.elder == all {
			c.elder = c.shown
		}
		if got := string(tool.Listed(true)); got != c.shown {
			t.Errorf("of %s is shown\n%s", c.whole, got)
		}
		if got := string(tool.Listed(false)); got != c.elder {
			t.Errorf("of %s is shown to elder agents\n%s", c.whole, got)
		}
	}
}

// What does not fit is withheld and admins see why; nothing beside it is harmed.
func TestUnfitIsSeenByAdmins(t *testing.T) {
	const secret = "canary-5f0c9a7e1b2d"
	f := &fake{modern: true, caps: everySort, tools: `[{"name":"good","inputSchema":{"type":"object"}},{"name":"bad","description":5,"inputSchema":{"type":"object"}},
		{"name":"loose","inputSchema":{"type":"object","properties":{"a":{"$ref":"#/none"}}}},{"title":"none"}]`, answers: map[string]string{
		"resources/list": `{"resources":[{"uri":"a:good","name":"n"},{"uri":"a:bad","name":"n","size":"x"}]}`, "prompts/list": `{"prompts":7}`,
		"resources/templates/list": `{"resourceTemplates":[]}`}}
	s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	if got := offered(s, "a", gateway.SortTool) + " " + offered(s, "a", gateway.SortResource); got != "x__good x+a:good" {
		t.Errorf("offered are %s", got)
	}
	all, err := s.Definitions(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]gateway.Definition{}
	for _, d := range all {
		if d.Held != "" {
			held[string(d.Sort)+" "+d.Name] = d
		}
	}
	for name, why := range map[string]string{
		"tool bad": `at "description": must be string`, "tool loose": "does not compile", "tool ": "has no name",
		"resource a:bad": "must be integer", "prompt ": "is not one",
	} {
		if h := held[name]; !h.Unfit || !strings.Contains(h.Held, "cannot be used: ") || !strings.Contains(h.Held, why) || (h.Seen == nil) != (name == "prompt ") {
			t.Errorf("%s: %+v", name, h)
		}
	}
	if len(held) != 5 {
		t.Errorf("%d are withheld", len(held))
	}
	if _, err := s.Accept(t.Context(), "a", "x", gateway.SortTool, "bad", held["tool bad"].Hash, "operator:o"); err == nil {
		t.Error("what cannot be used can be accepted")
	}
	if fact := d.await(t, audit.ToolWithheld, "x", 10); !strings.Contains(fact.Detail, "cannot be used: ") {
		t.Errorf("on record is %+v", fact)
	}
	again := s.feeds[0].current
	s.publish(s.feeds[0], again)
	if n := strings.Count(strings.Join(d.types(), "\n"), "tool.withheld"); n != 10 { // five, for each tenant
		t.Errorf("%d are on record", n)
	}

	// What holds the listing's credential shows neither that nor its digest.
	l := &listing{s: s.servers["x"]}
	for _, raw := range []string{`{"name":"keeps","description":"` + secret + `","inputSchema":{"type":"object"}}`, `{"name":"` + secret + `","inputSchema":5}`, `{"name":"other","inputSchema":5,"description":"` + secret + `"}`} {
		l.add(gateway.SortTool, json.RawMessage(raw), nil)
	}
	l.withhold([]gateway.Secret{gateway.NewSecret(secret)})
	if len(l.tools) != 0 || len(l.unfit) != 3 {
		t.Fatalf("%d tools, %d withheld", len(l.tools), len(l.unfit))
	}
	for _, u := range l.unfit {
		if u.raw != nil || u.hash != "" || strings.Contains(u.name+u.alias+u.why, secret) || !strings.Contains(u.why, "credential") {
			t.Errorf("an admin reads %+v", u)
		}
	}
}

// A pinned definition that becomes unfit is shown beside what was accepted of it.
func TestUnfitAfterAcceptance(t *testing.T) {
	srv, say := mutable(t, `[`+read1+`]`)
	s, _ := start(t, Config{Servers: []Server{srv}})
	say(`[{"name":"read","inputSchema":{}}]`)
	awaitHeld(t, s, "read", heldUnfit)
	all, err := s.Definitions(t.Context(), "a")
	if err != nil || len(all) != 1 || !all[0].Unfit || all[0].By != "first_use" || all[0].Accepted == nil {
		t.Errorf("%v %+v", err, all)
	}
}

// The built-in schemas are all there, and small.
func TestFitSchemas(t *testing.T) {
	if len(fitting()) != 5 {
		t.Errorf("there are %d", len(fitting()))
	}
	if b, err := os.ReadFile("fit.json"); err != nil || !json.Valid(b) || len(b) > 16<<10 {
		t.Errorf("fit.json: %v, %d bytes", err, len(b))
	}
}
