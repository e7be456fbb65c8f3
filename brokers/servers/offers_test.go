package servers

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"toolbroker/gateway"
)

const everySort = `{"tools":{},"resources":{},"prompts":{}}`

// offered lists a tenant's aliases of one sort.
func offered(s *Servers, tenant string, of gateway.Sort) string {
	var all []string
	for _, t := range s.Offered(tenant, of) {
		all = append(all, t.Alias)
	}
	return strings.Join(all, " ")
}

func TestEverySortIsOffered(t *testing.T) {
	for _, modern := range []bool{true, false} {
		f := &fake{modern: modern, caps: everySort, answers: map[string]string{
			"resources/list":           `{"resources":[{ "uri" : "file:\/\/\/b", "name":"b","x":1e0 },{"uri":"file:///a","name":"a"}]}`,
			"resources/templates/list": `{"resourceTemplates":[{"uriTemplate":"file:///{path}","name":"t"}]}`,
			"prompts/list":             `{"prompts":[{"name":"hello","arguments":[{"name":"who"}]}]}`,
		}}
		s, d := start(t, Config{Servers: []Server{{Name: "files", URL: f.serve(t), Class: "static", Meta: []string{"m"}},
			{Name: "3d", URL: f.serve(t)}, {Name: "bare", URL: f.serve(t), Prefix: new(""), Tenants: []string{"b"}}}})
		for of, want := range map[gateway.Sort]string{
			gateway.SortTool:     "3d__act files__act",
			gateway.SortResource: "files+file:///a files+file:///b x-3d+file:///a x-3d+file:///b",
			gateway.SortTemplate: "files+file:///{path} x-3d+file:///{path}",
			gateway.SortPrompt:   "3d__hello files__hello",
		} {
			if got := offered(s, "a", of); got != want {
				t.Errorf("a is offered %s", got)
			}
		}
		if got := offered(s, "b", gateway.SortResource); !strings.HasPrefix(got, "file:///a file:///b files+") {
			t.Errorf("b is offered %s", got)
		}
		r, ok := s.Resolve("a", gateway.SortResource, "files+file:///b")
		if !ok || r.Server != "files" || r.Name != "file:///b" || r.ID() != "files/file:///b" || r.Sort != gateway.SortResource || r.Class != "static" || len(r.Meta) != 1 ||
			string(r.Definition) != `{ "uri" : "files+file:///b", "name":"b","x":1e0 }` || r.Hash != digest([]byte(`{"name":"b","uri":"file:///b","x":1}`)) {
			t.Errorf("it is %+v %s", r, r.Definition)
		}
		if p, ok := s.Resolve("a", gateway.SortPrompt, "files__hello"); !ok || p.ID() != "files/hello" || !strings.HasPrefix(string(p.Definition), `{"name":"files__hello",`) {
			t.Errorf("it is %+v", p)
		}
		if seen := d.await(t, "tool.definition.seen", "files", 1); seen.Count != 5 || !strings.HasPrefix(seen.Detail, "1 tools, 2 resources, 1 templates, 1 prompts, hash ") {
			t.Errorf("on record is %d, %s", seen.Count, seen.Detail)
		}
	}
}

// A server is asked only for what it says that it has, and one that has none of it
// after all, or gives nonsense, keeps its tools.
func TestOnlyWhatAServerHasIsAskedFor(t *testing.T) {
	for name, c := range map[string]struct {
		caps, resources string
		asked           string
		withheld        bool
	}{
		"tools":              {`{"tools":{}}`, ``, "tools/list", false},
		"nothing said":       {`{}`, ``, "tools/list", false},
		"resources":          {`{"resources":{}}`, `{"resources":[]}`, "resources/list resources/templates/list", false},
		"prompts":            {`{"prompts":{}}`, ``, "prompts/list", false},
		"none after all":     {`{"tools":{},"resources":{}}`, ``, "tools/list resources/list resources/templates/list", false},
		"no list":            {`{"tools":{},"resources":{}}`, `{"resources":{}}`, "tools/list resources/list resources/templates/list", true},
		"the same over":      {`{"tools":{},"resources":{}}`, `{"resources":[],"nextCursor":"x"}`, "tools/list resources/list resources/templates/list", true},
		"too many":           {`{"tools":{},"resources":{}}`, `{"resources":[` + strings.Repeat(`{"uri":"a:b","name":"n"},`, maxTools) + `{"uri":"a:b","name":"n"}]}`, "tools/list resources/list resources/templates/list", true},
		"a cursor of no use": {`{"tools":{},"resources":{}}`, `{"resources":[],"nextCursor":7}`, "tools/list resources/list resources/templates/list", true},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{modern: true, caps: c.caps, answers: map[string]string{"resources/list": c.resources}}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Refresh: time.Hour}}})
			seen := d.await(t, "tool.definition.seen", "x", 1)
			if strings.Contains(seen.Detail, "withheld") != c.withheld {
				t.Errorf("on record is %s", seen.Detail)
			}
			f.mu.Lock()
			var asked []string
			for _, what := range f.seen {
				if strings.HasSuffix(what, "/list") && (len(asked) == 0 || asked[len(asked)-1] != what) {
					asked = append(asked, what)
				}
			}
			f.mu.Unlock()
			if got := strings.Join(asked, " "); got != c.asked {
				t.Errorf("asked for %s", got)
			}
			if strings.Contains(c.caps, "tools") && aliases(s, "a") != "x__act" {
				t.Error("its tools are gone")
			}
		})
	}
}

// One definition that is no good is withheld with its reason; the rest stays.
func TestResourcesAndPromptsThatAreWithheld(t *testing.T) {
	for _, c := range []struct{ list, member, bad, good string }{
		{"resources/list", "resources", `7`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"name":"none"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":7}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"no scheme","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"/etc/passwd","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"file:///a\u202eb","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"file:///a\u0000","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"file:///a\nb","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"file:///` + strings.Repeat("a", maxURI) + `","name":"n"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"other+file:///a","name":"n"}`, `{"uri":"good:x","name":"n"}`}, // of another server's name space
		{"resources/list", "resources", `{"uri":"twice:x","name":"n"},{"uri":"twice:x","name":"2"}`, `{"uri":"good:x","name":"n"}`},
		{"resources/list", "resources", `{"uri":"a:b","name":"n","x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`, `{"uri":"good:x","name":"n"}`},
		{"resources/templates/list", "resourceTemplates", `{"uriTemplate":"file:///{","name":"n"}`, `{"uriTemplate":"good:{x}","name":"n"}`},
		{"resources/templates/list", "resourceTemplates", `{"uriTemplate":"file:///{a b}","name":"n"}`, `{"uriTemplate":"good:{x}","name":"n"}`},
		{"resources/templates/list", "resourceTemplates", `{"uriTemplate":"{+all}","name":"n"}`, `{"uriTemplate":"good:{x}","name":"n"}`},
		{"resources/templates/list", "resourceTemplates", `{"uriTemplate":"other+{+all}","name":"n"}`, `{"uriTemplate":"good:{x}","name":"n"}`},
		{"resources/templates/list", "resourceTemplates", `{"uriTemplate":"file:///{a:10000}","name":"n"}`, `{"uriTemplate":"good:{x}","name":"n"}`},
		{"prompts/list", "prompts", `{"name":"a b"}`, `{"name":"good"}`},
		{"prompts/list", "prompts", `{"name":"a/b"}`, `{"name":"good"}`},
		{"prompts/list", "prompts", `{"name":""}`, `{"name":"good"}`},
		{"prompts/list", "prompts", `{"title":"none"}`, `{"name":"good"}`},
		{"prompts/list", "prompts", `{"name":"twice"},{"name":"twice","title":"x"}`, `{"name":"good"}`},
	} {
		t.Run(c.bad[:min(len(c.bad), 60)], func(t *testing.T) {
			f := &fake{modern: true, caps: everySort, answers: map[string]string{c.list: `{"` + c.member + `":[` + c.bad + `,` + c.good + `]}`}}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Prefix: new("")}, {Name: "other", URL: (&fake{}).serve(t)}}})
			seen := d.await(t, "tool.definition.seen", "x", 1)
			if !strings.Contains(c.bad, "twice") && !strings.Contains(seen.Detail, "1 withheld: ") {
				t.Errorf("on record is %s", seen.Detail)
			}
			got := offered(s, "a", gateway.SortResource) + offered(s, "a", gateway.SortTemplate) + offered(s, "a", gateway.SortPrompt)
			if !strings.HasPrefix(got, "good") || strings.Contains(got, " ") {
				t.Errorf("offered are %s", got)
			}
		})
	}
}

// Which resources are found though nobody lists them, and which are not.
func TestUnlistedResources(t *testing.T) {
	files := &fake{modern: true, caps: everySort, answers: map[string]string{
		"resources/list": `{"resources":[{"uri":"file:///listed/../a","name":"n"},{"uri":"file:///bad\u202e","name":"n"}]}`}}
	docs := &fake{modern: true, caps: everySort, answers: map[string]string{
		"resources/templates/list": `{"resourceTemplates":[{"uriTemplate":"doc://{id}/page","name":"n"},{"uriTemplate":"note:{+rest}","name":"n"},{"uriTemplate":"both:{x}","name":"n"}]}`}}
	more := &fake{modern: true, caps: everySort, answers: map[string]string{
		"resources/list":           `{"resources":[{"uri":"doc:/bad\u202e/page","name":"n"}]}`,
		"resources/templates/list": `{"resourceTemplates":[{"uriTemplate":"both:{y}","name":"n"}]}`}}
	s, _ := start(t, Config{Servers: []Server{{Name: "files", URL: files.serve(t)}, {Name: "docs", URL: docs.serve(t), Prefix: new("")},
		{Name: "more", URL: more.serve(t), Prefix: new("")}, {Name: "tools", URL: (&fake{modern: true}).serve(t)}, {Name: "theirs", URL: files.serve(t), Tenants: []string{"b"}}}})
	for uri, want := range map[string]string{
		"files+file:///x/y":                "files/file:///x/y",
		"files+file:///x%20y":              "files/file:///x%20y",
		"files+file:///é":                  "files/file:///é",
		"files+files+file:///x":            "files/files+file:///x",
		"files+file:///listed/../a":        "files/file:///listed/../a", // it is listed so
		"doc://7/page":                     "docs/doc://7/page",
		"note:a/b/c":                       "docs/note:a/b/c",
		"doc://7/other":                    "",
		"doc://7/8/page":                   "", // {id} is one segment
		"both:x":                           "", // two servers would have it
		"file:///x":                        "", // of no name space, and of no template
		"tools+file:///x":                  "", // that server has no resources
		"theirs+file:///x":                 "", // another tenant's
		"nobody+file:///x":                 "",
		"files+":                           "",
		"files+x":                          "",
		"files+file:///bad\u202e":          "", // withheld
		"files+file:///../x":               "",
		"files+file:///a/../x":             "",
		"files+file:///a/%2e%2e/x":         "",
		"files+file:///a%2F..%2Fx":         "",
		"files+file:///a/..\\x":            "",
		"files+file:///a/./x":              "",
		"files+file:///a//x":               "",
		"files+FILE:///x":                  "",
		"files+file:///%73ecret":           "",
		"files+file:///x%e9":               "",
		"files+file:///x%":                 "",
		"files+file:///x%25":               "",
		"files+file:///a b":                "",
		"files+repo://Owner/Name":          "files/repo://Owner/Name",
		"files+note://../x":                "",
		"files+note://..":                  "",
		"files+file:////x":                 "",
		"files+note:/x/":                   "files/note:/x/",
		"files+file://HOST/x":              "",
		"files+file:///x\n":                "",
		"files+file:///x\x00":              "",
		"files+file:///x\u200b":            "",
		"note:../a":                        "",
		"note:a/../../b":                   "",
		"note:" + strings.Repeat("a", 1e5): "",
	} {
		r, ok := s.Resolve("a", gateway.SortResource, uri)
		if got := r.Server + "/" + r.Name; ok != (want != "") || ok && (got != want || r.Alias != uri || r.Hash == "" || r.Sort != gateway.SortResource) {
			t.Errorf("%.80q is %v %s", uri, ok, got)
		}
	}
	template, _ := s.Resolve("a", gateway.SortTemplate, "doc://{id}/page")
	if r, _ := s.Resolve("a", gateway.SortResource, "doc://7/page"); r.Hash != template.Hash {
		t.Error("what a template covers is bound to another definition")
	}
}

// FuzzURIs holds the name space to its word: it is reversible, and no two URIs that
// are found mean the same path by escapes or dots.
func FuzzURIs(f *testing.F) {
	for _, s := range []string{"file:///a", "file:///a/../b", "a:%2e", "x-3d+file:///a", "http://h/a?b#c"} {
		f.Add(s)
	}
	files := &server{Server: Server{Name: "files"}, space: "files+"}
	c, _ := merge([]*listing{{s: files, reads: true}})
	f.Fuzz(func(t *testing.T, uri string) {
		r, ok := c.find(gateway.SortResource, "files+"+uri)
		if ok && (r.Name != uri || r.Alias != "files+"+uri) {
			t.Fatalf("%q became %q", uri, r.Name)
		}
		if ok && (strings.Contains(uri, "/../") || strings.Contains(uri, "%2e") || strings.Contains(uri, "\\")) {
			if path, _, query := strings.Cut(uri, "?"); !query || strings.Contains(path, "/../") {
				if before, _, fragment := strings.Cut(uri, "#"); !fragment || strings.Contains(before, "/../") {
					t.Fatalf("%q is found", uri)
				}
			}
		}
		if again, ok := c.find(gateway.SortResource, uri); ok && again.Name == uri {
			t.Fatalf("%q is found outside its name space", uri)
		}
	})
}

// A name that a server gives is the one that its agents' name comes to: whatever a
// result says of a resource, and whatever a list calls a tool, a prompt or a resource,
// leads back to that server, which reads it as it wrote it. No two things have one
// name, and no server's name leads to another's.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"file:///a", "file:///a/../b", "a:%2e", "x-3d+file:///a", "files+file:///a", "http://h/a?b#c", "read", "files__read", "_read", "a.b-C", "fi\u017fes+a:b", "a:\u00e9<&>\u2028"} {
		f.Add(s, false)
		f.Add(s, true)
	}
	spaces := map[string]string{"files+": "files", "x-3d+": "3d"}
	all := []*server{
		{Server: Server{Name: "files"}, prefix: "files__", space: "files+", spaces: spaces},
		{Server: Server{Name: "3d"}, prefix: "3d__", space: "x-3d+", spaces: spaces},
		{Server: Server{Name: "bare"}, spaces: spaces},
	}
	f.Fuzz(func(t *testing.T, name string, escaped bool) {
		text, err := json.Marshal(name)
		if err != nil || !utf8.ValidString(name) {
			return
		}
		if escaped { // every character by its number
			var b strings.Builder
			for _, c := range utf16.Encode([]rune(name)) {
				fmt.Fprintf(&b, `\u%04x`, c)
			}
			text = []byte(`"` + b.String() + `"`)
		}
		var from []*listing
		for _, s := range all {
			l := &listing{s: s, reads: true, named: map[string]bool{}, covers: map[string]*regexp.Regexp{}}
			for _, of := range []gateway.Sort{gateway.SortTool, gateway.SortPrompt, gateway.SortResource} {
				key := "name"
				if of == gateway.SortResource {
					key = "uri"
				}
				l.add(of, json.RawMessage(`{"inputSchema":{"type":"object"},"`+key+`":`+string(text)+`,"x":1}`), nil)
			}
			if bare, ok := strings.CutPrefix(name, s.space); ok && s.space != "" { // what another could pass its own off as
				uri, _ := json.Marshal(bare)
				l.add(gateway.SortResource, json.RawMessage(`{"uri":`+string(uri)+`,"x":1}`), nil)
			}
			from = append(from, l)
		}
		c, withheld := merge(from)
		if len(withheld) > 0 {
			t.Fatalf("%q: %+v have one name", name, withheld)
		}
		for _, l := range from {
			for _, thing := range l.tools {
				if thing.Name != name && l.s.space+thing.Name != name {
					t.Fatalf("%q was listed as %q", name, thing.Name)
				}
				of := cmp.Or(thing.Sort, gateway.SortTool)
				back, ok := c.find(of, thing.Alias)
				if !ok || back.Server != l.s.Name || back.Name != thing.Name || thing.Alias != map[bool]string{true: l.s.space, false: l.s.prefix}[of == gateway.SortResource]+thing.Name {
					t.Fatalf("%q of %s is %q, which leads to %q of %s", name, l.s.Name, thing.Alias, back.Name, back.Server)
				}
				var shown map[string]any
				if err := json.Unmarshal(back.Definition, &shown); err != nil || shown["name"] != back.Alias && shown["uri"] != back.Alias || shown["x"] != 1.0 {
					t.Fatalf("%q: agents see %s", name, back.Definition)
				}
				method, key := gateway.MethodCall, "name"
				switch of {
				case gateway.SortPrompt:
					method = gateway.MethodGet
				case gateway.SortResource:
					method, key = gateway.MethodRead, "uri"
				}
				params, err := callParams(gateway.Forward{Method: method, Tool: back}, envelope{})
				var reads map[string]any
				if err != nil || json.Unmarshal(params, &reads) != nil || reads[key] != thing.Name {
					t.Fatalf("%q: the server reads %s, %v", name, params, err)
				}
			}
			// And by a result, listed or not.
			for _, result := range []string{`{"contents":[{"uri":%s}]}`, `{"content":[{"type":"resource_link","uri":%s}]}`, `{"messages":[{"content":{"type":"resource","resource":{"uri":%s}}}]}`} {
				m, err := parse([]byte(`{"jsonrpc":"2.0","id":1,"result":` + fmt.Sprintf(result, text) + `}`))
				if err != nil {
					t.Fatal(err)
				}
				uri := regexp.MustCompile(`"uri":("(?:[^"\\]|\\.)*")`).FindSubmatch(l.s.own(m))
				var alias string
				if uri == nil || json.Unmarshal(uri[1], &alias) != nil || alias != l.s.space+name {
					t.Fatalf("%q of %s: a result says %s", name, l.s.Name, l.s.own(m))
				}
				if l.s.space == "" && l.s.foreign(name) {
					continue // it is another's, who may have it
				}
				if back, ok := c.find(gateway.SortResource, alias); ok && (back.Name != name || back.Server != l.s.Name) {
					t.Fatalf("%q of %s leads to %q of %s", name, l.s.Name, back.Name, back.Server)
				}
			}
		}
	})
}

// What names a resource in what comes back is in its server's name space, and not a
// byte of the rest is another.
func TestURIsInResults(t *testing.T) {
	for _, c := range []struct{ method, in, out string }{
		{"resources/read", `{"contents":[ {"uri" : "file:\/\/\/a","text":"file:///a"},{"text":"x","uri":"b:c"}],"uri":"file:///a"}`,
			`{"contents":[ {"uri" : "x+file:///a","text":"file:///a"},{"text":"x","uri":"x+b:c"}],"uri":"file:///a"}`},
		{"tools/call", `{"content":[{"type":"text","text":"uri","uri":"file:///a"},{"resource":{"uri":"file:///a","blob":""},"type":"resource"},{"type":"resource_link","uri":"file:///b","name":"b"},{"type":"video","uri":"file:///c"}],"structuredContent":{"uri":"file:///a"}}`,
			`{"content":[{"type":"text","text":"uri","uri":"file:///a"},{"resource":{"uri":"x+file:///a","blob":""},"type":"resource"},{"type":"resource_link","uri":"x+file:///b","name":"b"},{"type":"video","uri":"file:///c"}],"structuredContent":{"uri":"file:///a"}}`},
		{"tools/call", `{"content":[{"t\u0079pe":"resource_lin\u006b","\u0075r\u0069":"file:///b"}]}`, `{"content":[{"t\u0079pe":"resource_lin\u006b","\u0075r\u0069":"x+file:///b"}]}`},
		{"tools/call", `{"content":[{"type":"resource_link","uri":"other+file:///b"},{"type":"resource_link","uri":7},{"type":"resource","resource":[]},{"type":"resource_link"}]}`,
			`{"content":[{"type":"resource_link","uri":"x+other+file:///b"},{"type":"resource_link","uri":7},{"type":"resource","resource":[]},{"type":"resource_link"}]}`},
		{"prompts/get", `{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"a:b"}}},{"role":"user","content":[{"type":"resource_link","uri":"a:c"}]}]}`,
			`{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"x+a:b"}}},{"role":"user","content":[{"type":"resource_link","uri":"x+a:c"}]}]}`},
		{"tasks/get", `{"resultType":"complete","status":"completed","result":{"content":[{"type":"resource_link","uri":"a:b"}]}}`,
			`{"resultType":"complete","status":"completed","result":{"content":[{"type":"resource_link","uri":"x+a:b"}]}}`},
	} {
		f := &fake{modern: true, caps: everySort, answers: map[string]string{c.method: c.in}}
		url := f.serve(t)
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}, {Name: "bare", URL: url, Prefix: new("")}, {Name: "other", URL: url}}})
		for server, want := range map[string]string{"x": c.out, "bare": c.in} {
			r, err := s.Forward(t.Context(), gateway.Forward{Method: c.method, Tool: gateway.Tool{Server: server, Name: "n"}, Remote: "r", Principal: gateway.Principal{Tenant: "a"}}, nil)
			if err != nil || string(r.Raw) != want {
				t.Errorf("%s: %v\n%s\nnot\n%s", server, err, r.Raw, want)
			}
		}
	}
}

func TestURIsInErrors(t *testing.T) {
	const in = `{ "code":-32002,"message":"uri","data":{"x":1, "uri":"file:///a"}}`
	f := &fake{modern: true, caps: everySort, call: says(contentJSON, `{"jsonrpc":"2.0","id":ID,"error":`+in+`}`)}
	url := f.serve(t)
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}, {Name: "bare", URL: url, Prefix: new("")}}})
	for alias, want := range map[string]string{"x__act": strings.Replace(in, "file:", "x+file:", 1), "act": in} {
		if r, err := forward(t, s, alias, `{}`); err != nil || string(r.Error) != want {
			t.Errorf("%v %s", err, r.Error)
		}
	}
}

func TestTheInterfaceOfATool(t *testing.T) {
	in := `{"name":"act","inputSchema":{"type":"object"},"_meta":{ "ui":{"a":1,"resourceUri":"ui:\/\/x"},"ui/resourceUri" : "ui://y","k":{"resourceUri":"ui://z"}},"resourceUri":"ui://w"}`
	f := &fake{modern: true, tools: "[" + in + "]"}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}, {Name: "bare", URL: f.serve(t), Prefix: new("")}}})
	mine, _ := s.Resolve("a", gateway.SortTool, "x__act")
	if got, want := string(mine.Definition), `{"name":"x__act","inputSchema":{"type":"object"},"_meta":{ "ui":{"a":1,"resourceUri":"ui://x+x"},"ui/resourceUri" : "ui://x+y","k":{"resourceUri":"ui://z"}},"resourceUri":"ui://w"}`; got != want {
		t.Errorf("its definition is\n%s\nnot\n%s", got, want)
	}
	bare, _ := s.Resolve("a", gateway.SortTool, "act")
	if string(bare.Definition) != in || bare.Hash != mine.Hash {
		t.Errorf("its definition is %s", bare.Definition)
	}
}

// A page of MCP Apps has one name, and clients know it for one; what has no prefix
// cannot take it.
func TestThePagesOfATool(t *testing.T) {
	f := &fake{modern: true, caps: everySort, answers: map[string]string{
		"resources/list": `{"resources":[{"uri":"ui://view","name":"v"},{"uri":"a:b","name":"n"}]}`, "resources/templates/list": `{"resourceTemplates":[{"uriTemplate":"ui://t/{id}","name":"t"}]}`,
		"resources/read": `{"contents":[{"uri":"ui://view","mimeType":"text/html;profile=mcp-app","text":""}]}`,
	}}
	thief := &fake{modern: true, caps: everySort, answers: map[string]string{"resources/list": `{"resources":[{"uri":"ui://x+view","name":"v"}]}`, "resources/templates/list": `{"resourceTemplates":[]}`}}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}, {Name: "bare", URL: thief.serve(t), Prefix: new("")}}})
	for alias, want := range map[string]string{"ui://x+view": "x/ui://view", "ui://x+t/7": "x/ui://t/7", "ui://x+other": "x/ui://other", "x+a:b": "x/a:b", "x+ui://view": "", "x+ui://other": "", "ui://view": ""} {
		got, ok := s.Resolve("a", gateway.SortResource, alias)
		if ok != (want != "") || ok && got.ID() != want {
			t.Errorf("%s is %s, %v", alias, got.ID(), ok)
		}
	}
	if got, ok := s.Resolve("a", gateway.SortTemplate, "ui://x+t/{id}"); !ok || got.Name != "ui://t/{id}" {
		t.Errorf("its template is %+v", got)
	}
	r, err := s.Forward(t.Context(), gateway.Forward{Method: "resources/read", Tool: gateway.Tool{Server: "x", Name: "ui://view"}, Principal: gateway.Principal{Tenant: "a"}}, nil)
	if err != nil || string(r.Raw) != `{"contents":[{"uri":"ui://x+view","mimeType":"text/html;profile=mcp-app","text":""}]}` {
		t.Errorf("read: %s %v", r.Raw, err)
	}
}

// A change of any list is heard of, on whatever a server uses to tell.
func TestChangesOfEverySortAreSeen(t *testing.T) {
	for _, modern := range []bool{true, false} {
		for of, c := range map[gateway.Sort]struct{ caps, filter, note, list, before, after, want string }{
			gateway.SortResource: {`{"tools":{},"resources":{"listChanged":true}}`, `{"resourcesListChanged":true}`, "notifications/resources/list_changed", "resources/list",
				`{"resources":[{"uri":"a:b","name":"n"}]}`, `{"resources":[{"uri":"a:c","name":"n"}]}`, "x+a:c"},
			gateway.SortPrompt: {`{"tools":{},"prompts":{"listChanged":true}}`, `{"promptsListChanged":true}`, "notifications/prompts/list_changed", "prompts/list",
				`{"prompts":[{"name":"b"}]}`, `{"prompts":[{"name":"c"}]}`, "x__c"},
		} {
			change := make(chan struct{})
			f := &fake{modern: modern, caps: c.caps, session: "s"}
			f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
				switch {
				case m.Method == c.list:
					answer := c.before
					select {
					case <-change:
						answer = c.after
					default:
					}
					says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":`+answer+`}`)(w, r, m)
				case modern && m.Method == "subscriptions/listen" && strings.Contains(string(m.Params), `{"notifications":`+c.filter), !modern && r.Method == http.MethodGet:
					w.Header().Set("Content-Type", contentSSE)
					if modern {
						fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"method\":%q,\"params\":{\"notifications\":%s}}\n\n", acknowledged, c.filter)
					}
					w.(http.Flusher).Flush()
					<-change
					fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"method\":%q}\n\n", c.note)
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				default:
					return false
				}
				return true
			}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Refresh: time.Hour}}})
			d.await(t, "tool.definition.seen", "x", 2)
			close(change)
			if f := d.await(t, "tool.definition.changed", "x", 1); f.Tool.Sort != of || f.Detail != "new" {
				t.Errorf("on record is %+v", f)
			}
			if f := d.await(t, "tool.definition.changed", "x", 2); f.Tool.Sort != of || f.Detail != "gone" {
				t.Errorf("on record is %+v", f)
			}
			acceptAll(t, s, "a")
			if got := offered(s, "a", of); got != c.want {
				t.Errorf("offered are %s", got)
			}
		}
	}
}
