package servers

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"context"

	"toolbroker/gateway"
)

func TestADefinitionKeepsItsBytesButTheName(t *testing.T) {
	raw := `{ "title":"\u0041ct", "name" : "\u0061ct","inputSchema":{"type":"object","x-vendor":[1.0, 9007199254740993],
 "properties":{"n":{"maximum":1e2}}}, "_meta":{"io.toolbroker/label":"safe","vendor":1e0},"unknown":{"name":"act"}}`
	f := &fake{modern: true, tools: "[" + raw + "]"}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t) + "/mcp?key=k", Meta: []string{"m"}, Class: "static", TargetArg: "n"}}})
	tool, ok := s.Resolve("a", gateway.SortTool, "x__act")
	if !ok {
		t.Fatal("no tool")
	}
	if got, want := string(tool.Definition), strings.NewReplacer(`"\u0061ct"`, `"x__act"`, `"io.toolbroker/label":"safe",`, ``).Replace(raw); got != want {
		t.Errorf("its definition is\n%s\nnot\n%s", got, want)
	}
	if got := string(tool.Schema); !strings.HasPrefix(got, `{"type":"object","x-vendor":[1.0, 9007199254740993],`) {
		t.Errorf("its schema is %s", got)
	}
	// The digest is of the RFC 8785 form, under its own name, and of the digits of the
	// one number that this form changes, computed by hand.
	sum := sha256.Sum256([]byte(`{"_meta":{"vendor":1},"inputSchema":{"properties":{"n":{"maximum":100}},"type":"object","x-vendor":[1,9007199254740992]},"name":"act","title":"Act","unknown":{"name":"act"}}` + "\n" + `"/inputSchema/x-vendor/1" 9007199254740993`))
	if want := "sha256:" + hex.EncodeToString(sum[:]); tool.Hash != want {
		t.Errorf("its hash is %s, not %s", tool.Hash, want)
	}
	if tool.Server != "x" || tool.Name != "act" || tool.Kind != "http" || strings.Contains(tool.Addr, "key") || !strings.HasSuffix(tool.Addr, "/mcp") ||
		len(tool.Meta) != 1 || tool.Class != "static" || tool.Target != "n" || tool.ID() != "x/act" {
		t.Errorf("it is %+v", tool)
	}
	if err := tool.Check(json.RawMessage(`{"n":101}`)); err == nil {
		t.Error("its arguments are not checked")
	}
}

// One tool that is no good is withheld; the rest of its server stays.
func TestToolsThatAreWithheld(t *testing.T) {
	schema := func(s string) string { // but for one thing it is as MCP wants it
		if rest, is := strings.CutPrefix(s, "{"); is && !strings.HasPrefix(rest, `"type"`) {
			s = `{"type":"object",` + rest
		}
		return `{"name":"bad","inputSchema":` + s + `}`
	}
	for name, bad := range map[string]string{
		"no object":             `7`,
		"null":                  `null`,
		"no name":               `{"inputSchema":{"type":"object"}}`,
		"a name that is none":   `{"name":7,"inputSchema":{"type":"object"}}`,
		"a name twice":          `{"name":"bad","\u006eame":"good","inputSchema":{"type":"object"}}`,
		"an empty name":         `{"name":"","inputSchema":{"type":"object"}}`,
		"a name with a space":   `{"name":"b ad","inputSchema":{"type":"object"}}`,
		"a name with a slash":   `{"name":"b/ad","inputSchema":{"type":"object"}}`,
		"a name with a newline": `{"name":"bad\n","inputSchema":{"type":"object"}}`,
		"a name from elsewhere": `{"name":"b\u0430d","inputSchema":{"type":"object"}}`,
		"a name too long":       `{"name":"` + strings.Repeat("b", 129) + `","inputSchema":{"type":"object"}}`,
		"too long with prefix":  `{"name":"` + strings.Repeat("b", 127) + `","inputSchema":{"type":"object"}}`,
		"no schema":             `{"name":"bad"}`,
		"nots nested too deep":  schema(strings.Repeat(`{"not":`, 300) + `{}` + strings.Repeat(`}`, 300)),
		"schema null":           schema(`null`),
		"schema true":           schema(`true`),
		"schema a string":       schema(`"object"`),
		"unknown type":          schema(`{"type":"objct"}`),
		"pattern no regexp":     schema(`{"properties":{"a":{"pattern":"("}}}`),
		"remote reference":      schema(`{"$ref":"http://127.0.0.1:1/x"}`),
		"file reference":        schema(`{"$ref":"file:///etc/passwd"}`),
		"relative reference":    schema(`{"$ref":"other.json"}`),
		"dangling reference":    schema(`{"$ref":"#/$defs/none"}`),
		"unknown dialect":       schema(`{"$schema":"http://127.0.0.1:1/dialect"}`),
		"a number of digits":    schema(`{"properties":{"a":{"maximum":1e999999999}}}`),
		"a number of fractions": schema(`{"properties":{"a":{"multipleOf":1e-999999999}}}`),
		"a bomb":                schema(bomb(30)),
		"megabytes of patterns": schema(patterns(1500, `^\\pL{900}$`)),
		"a pattern too long":    schema(patterns(1, strings.Repeat("a", 5000))),
		"many patterns":         schema(patterns(1500, `^[a-z]{1,20}#$`)),
		"too many parts":        schema(patterns(3000, `^a$`)),
		"places written twice":  schema(aliases600()),
		"names that add up":     schema(strings.Repeat(`{"properties":{"`+strings.Repeat("n", 10_000)+`":`, 16) + `{}` + strings.Repeat(`}}`, 16)),
		"a long address":        schema(`{"allOf":[{}],"$ref":"#/allOf/` + strings.Repeat("0", 2000) + `"}`),
		"itself, at once":       schema(`{"allOf":[{"$ref":"#"}]}`),
		"itself, by a property": schema(`{"dependentSchemas":{"a":{"$ref":"#"}}}`),
		"one in the other":      schema(strings.Repeat(`{"allOf":[`, 80) + `{}` + strings.Repeat(`]}`, 80)),
		"nested too deep":       schema(strings.Repeat(`{"items":`, 300) + `{}` + strings.Repeat(`}`, 300)),
		"an anchor unseen":      schema(`{"$id":"https://a.example/x","$dynamicAnchor":"n","properties":{"a":{"$dynamicRef":"#n"}},"$defs":{"o":{"$id":"o","$dynamicAnchor":"n"}}}`),
		"too long":              `{"name":"bad","description":"` + strings.Repeat("x", maxDefinition) + `","inputSchema":{}}`,
		"header on an object":   schema(`{"properties":{"a":{"type":"object","x-mcp-header":"A"}}}`),
		"header with a space":   schema(`{"properties":{"a":{"type":"string","x-mcp-header":"A B"}}}`),
		"header with a newline": schema(`{"properties":{"a":{"type":"string","x-mcp-header":"A\nB"}}}`),
		"header twice":          schema(`{"properties":{"a":{"type":"string","x-mcp-header":"A"},"b":{"type":"string","x-mcp-header":"a"}}}`),
		"header empty":          schema(`{"properties":{"a":{"type":"string","x-mcp-header":""}}}`),
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{modern: true, tools: `[` + bad + `,{"name":"good","inputSchema":{"type":"object"}}]`}
			if name == "a name twice" || name == "null" { // the list itself is no good, or the entry is no object
				f.tools = strings.Replace(f.tools, bad, `{"name":"b ad","inputSchema":{"type":"object"}}`, 1)
			}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			if got := s.Offered("a", gateway.SortTool); len(got) != 1 || got[0].Name != "good" {
				t.Fatalf("offered are %v", got)
			}
			seen := d.await(t, "tool.definition.seen", "x", 1)
			if seen.Count != 1 || !strings.Contains(seen.Detail, "1 withheld: ") {
				t.Errorf("on record is %d, %.500s", seen.Count, seen.Detail)
			}
			// What is checked further on would withhold some of them as well.
			if _, is := strings.CutPrefix(name, "header "); is != strings.Contains(seen.Detail, "x-mcp-header") {
				t.Errorf("it is withheld because of %.500s", seen.Detail)
			}
		})
	}
}

// patterns is a schema with n properties of a pattern; a # in it is the property's number.
func patterns(n int, pattern string) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"p%d":{"pattern":"%s"}`, i, strings.ReplaceAll(pattern, "#", fmt.Sprint(i))))
	}
	return `{"properties":{` + strings.Join(all, ",") + `}}`
}

// aliases600 is a schema that names one place, of 600 schemas, in 600 ways.
func aliases600() string {
	var all []string
	for i := range 600 {
		all = append(all, fmt.Sprintf(`"a%d":{"$ref":"#/allOf/%s"}`, i, strings.Repeat("0", i+1)))
	}
	return `{"allOf":[` + patterns(600, "^a$") + `],"properties":{` + strings.Join(all, ",") + `}}`
}

// bomb is a schema that holds one value against 2^n others.
func bomb(n int) string {
	var defs []string
	for i := range n {
		defs = append(defs, fmt.Sprintf(`"d%d":{"anyOf":[{"$ref":"#/$defs/d%d"},{"allOf":[{"$ref":"#/$defs/d%d"}]}]}`, i, i+1, i+1))
	}
	return fmt.Sprintf(`{"$defs":{%s,"d%d":{"type":"string"}},"$ref":"#/$defs/d0"}`, strings.Join(defs, ","), n)
}

func TestListsThatAreRefused(t *testing.T) {
	list := func(result string) func(http.ResponseWriter, *http.Request, fakeMessage) bool {
		return func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
			if m.Method != "tools/list" {
				return false
			}
			says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":`+result+`}`)(w, r, m)
			return true
		}
	}
	cursors := func() func(http.ResponseWriter, *http.Request, fakeMessage) bool {
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
			return m.Method == "tools/list" && list(fmt.Sprintf(`{"tools":[],"nextCursor":"%d%s"}`, n.Add(1), strings.Repeat("y", 900<<10)))(w, r, m)
		}
	}
	for name, before := range map[string]func(http.ResponseWriter, *http.Request, fakeMessage) bool{
		"no tools":        list(`{}`),
		"tools null":      list(`{"tools":null}`),
		"tools an object": list(`{"tools":{}}`),
		"other letters":   list(`{"Tools":[]}`),
		"the same cursor": list(`{"tools":[],"nextCursor":"again"}`),
		"too many bytes":  pagesOf(list, 5, `{"name":"a","inputSchema":{},"description":"`+strings.Repeat("x", 3900<<10)+`"}`),
		"long cursors":    cursors(),
		"too many tools":  list(`{"tools":[` + strings.Repeat(`{"name":"a"},`, maxTools) + `{"name":"a"}]}`),
		"a name twice":    list(`{"tools":[{"name":"a","name":"b","inputSchema":{"type":"object"}}]}`),
		"pages without end": func() func(http.ResponseWriter, *http.Request, fakeMessage) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
				return list(fmt.Sprintf(`{"tools":[],"nextCursor":"%d"}`, n.Add(1)))(w, r, m)
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{modern: true, before: before}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), MaxResponse: 1 << 20}, {Name: "good", URL: (&fake{}).serve(t)}}})
			d.await(t, "server.down", "x", 1)
			if got := s.Offered("a", gateway.SortTool); len(got) != 1 || got[0].Server != "good" {
				t.Errorf("offered are %v", got)
			}
		})
	}
}

// pagesOf answers with n pages of one definition each.
func pagesOf(list func(string) func(http.ResponseWriter, *http.Request, fakeMessage) bool, n int32, definition string) func(http.ResponseWriter, *http.Request, fakeMessage) bool {
	var page atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		next := ""
		if m.Method == "tools/list" {
			if i := page.Add(1); i < n {
				next = fmt.Sprintf(`,"nextCursor":"%d"`, i)
			}
		}
		return list(`{"tools":[`+definition+`]`+next+`}`)(w, r, m)
	}
}

// What the definitions of one listing take together is bounded, and that it is
// taken from the one before makes it no less.
func TestAListingsDefinitionsHaveOneRoom(t *testing.T) {
	srv := &server{prefix: "x__"}
	list := func(prev *listing) *listing {
		before := earlierThan(prev)
		l := &listing{s: srv, room: *newRoom(), named: map[string]bool{}, covers: map[string]*regexp.Regexp{}}
		for i := range 60 {
			schema := patterns(1500, "")
			if i%3 == 1 {
				schema = patterns(1, `^[\\p{L}\\p{N}]{1,60}#$`)
			}
			schema = strings.Replace(schema, "{", `{"type":"object",`, 1)
			l.add(gateway.SortTool, json.RawMessage(fmt.Sprintf(`{"name":"t%d","inputSchema":%s}`, i, schema)), before)
		}
		for i := range 4000 {
			l.add(gateway.SortTemplate, json.RawMessage(fmt.Sprintf(`{"name":"t","uriTemplate":"file:///{a,b,c,d,e,f,g,h,i,j,k,l,m,n,o}/%d"}`, i)), before)
		}
		return l
	}
	first := list(nil)
	second := list(first)
	for _, l := range []*listing{first, second} {
		n := map[gateway.Sort]int{}
		for _, t := range l.tools {
			n[t.Sort]++
		}
		if n[""] < 50 || n[""] >= 60 || n[gateway.SortTemplate] == 0 || n[gateway.SortTemplate] > 2000 || l.room.parts < 0 || l.room.patterns < 0 {
			t.Errorf("it holds %v, and there is room for %+v", n, l.room)
		}
		if !strings.Contains(strings.Join(l.dropped, "\n"), errTooMuch.Error()) {
			t.Error("nothing says what is wrong")
		}
	}
	if len(second.tools) != len(first.tools) {
		t.Errorf("%d, then %d", len(first.tools), len(second.tools))
	}
	if &second.raw[0] == &first.raw[0] || second.tools[0].Check == nil {
		t.Error("it is the same listing")
	}
}

// What differs in a number that no float64 holds is another definition; how an
// ordinary one is written is not.
func TestNumbersCount(t *testing.T) {
	hash := func(number string) string {
		h, err := digestOf(json.RawMessage(`{"name":"act","annotations":{"b":1,"n":` + number + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	for _, other := range []string{"9007199254740992", "9007199254740993.0", `"9007199254740993"`, "9007199254740994"} {
		if hash("9007199254740993") == hash(other) {
			t.Errorf("%s is the same", other)
		}
	}
	for a, b := range map[string]string{"1.0": "1", "1e2": "100", "0.1": "1e-1", "9007199254740992": "9007199254740992.0"} {
		if hash(a) != hash(b) {
			t.Errorf("%s is not %s", a, b)
		}
	}
	one, _ := digestOf(json.RawMessage(`{"a":9007199254740993,"b":9007199254740995}`))
	two, _ := digestOf(json.RawMessage(`{ "b":9007199254740995, "a":9007199254740993}`))
	swapped, _ := digestOf(json.RawMessage(`{"a":9007199254740995,"b":9007199254740993}`))
	if one != two || one == swapped {
		t.Error("the order of members counts, or where a number stands does not")
	}
	// What was pinned before stays pinned.
	sum := sha256.Sum256([]byte(`{"annotations":{"b":1,"n":1.5},"name":"act"}`))
	if hash("1.50") != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Error("an ordinary definition has another hash than its canonical form")
	}
}

// allocated says how many bytes f takes in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A definition takes no more than a small multiple of its bytes, before anyone has
// decided that it is to be trusted; one that would is withheld.
func TestWhatADefinitionTakes(t *testing.T) {
	long := strings.Repeat("n", 60_000)
	for name, c := range map[string]struct {
		x    string
		good bool
	}{
		"numbers in a place with a long name": {`{"` + long + `":[` + strings.Repeat("-0,", 30_000) + `-0]}`, false},
		"numbers":                             {`[` + strings.Repeat("-0,", 30_000) + `-0]`, true},
		"a long name":                         {`{"` + long + `":[-0,` + strings.Repeat("0,", 30_000) + `0]}`, true},
		"deep":                                {strings.Repeat(`{"`+long[:400]+`":[`, 120) + strings.Repeat("-0,", 30_000) + "0" + strings.Repeat("]}", 120), false},
	} {
		raw := json.RawMessage(`{"name":"act","inputSchema":{"type":"object"},"x":` + c.x + `}`)
		var tool gateway.Tool
		var err error
		took := allocated(func() { tool, err = (&server{}).define(raw, newRoom()) })
		if (err == nil) != c.good || tool.Name != "act" || !c.good && !strings.Contains(err.Error(), "numbers") {
			t.Errorf("%s: %v", name, err)
		}
		if took > 400*uint64(len(raw)) {
			t.Errorf("%s: %d bytes take %d", name, len(raw), took)
		}
	}
	// Where a list can be written in many ways, each makes its parts anew.
	schema := `{"type":"object","x":[{"` + long + `":{}}],"allOf":[` + strings.Repeat(`{"$ref":"#/x/00"},{"$ref":"#/x/+0"},`, 10) + `{}]}`
	if _, err := compile(json.RawMessage(schema), newRoom()); err == nil || !strings.Contains(err.Error(), "too many parts") {
		t.Errorf("%v", err)
	}
}

func TestPages(t *testing.T) {
	f := &fake{before: func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		if m.Method != "tools/list" {
			return false
		}
		var p struct{ Cursor string }
		json.Unmarshal(m.Params, &p)
		page := map[string]string{
			"":      `{"tools":[{"name":"c","inputSchema":{"type":"object"}}],"nextCursor":"\"2\n"}`,
			"\"2\n": `{"tools":[{"name":"a","inputSchema":{"type":"object"}}],"nextCursor":"3"}`,
			"3":     `{"tools":[{"name":"b","inputSchema":{"type":"object"}}]}`,
		}[p.Cursor]
		says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":`+page+`}`)(w, r, m)
		return true
	}}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	if got := aliases(s, "a"); got != "x__a x__b x__c" {
		t.Errorf("offered are %s", got)
	}
}

func aliases(s *Servers, tenant string) string {
	var all []string
	for _, t := range s.Offered(tenant, gateway.SortTool) {
		all = append(all, t.Alias)
	}
	return strings.Join(all, " ")
}

// A name is the server's with the longest prefix of it, and ours where that is ours:
// nobody else can give it, or take it away by giving it too. Where none has more of a
// claim, nobody has the name.
func TestTwoClaimsToOneAlias(t *testing.T) {
	prefix := func(s string) *string { return &s }
	one := &fake{modern: true, tools: `[{"name":"act","inputSchema":{"type":"object"}},{"name":"one","inputSchema":{"type":"object"}},{"name":"twice","inputSchema":{"type":"object"}},{"name":"twice","inputSchema":{"type":"object"}}]`}
	two := &fake{modern: true, tools: `[{"name":"act","inputSchema":{"type":"object"}},{"name":"x__one","inputSchema":{"type":"object"}},{"name":"x__new","inputSchema":{"type":"object"}},{"name":"toolbroker__delegate","inputSchema":{"type":"object"}}]`}
	s, d := start(t, Config{Servers: []Server{
		{Name: "one", URL: one.serve(t), Prefix: prefix("")},
		{Name: "two", URL: two.serve(t), Prefix: prefix(""), Tenants: []string{"b"}},
		{Name: "x", URL: one.serve(t), Tenants: []string{"b"}},
	}})
	if got := aliases(s, "a"); got != "act one" {
		t.Errorf("a is offered %s", got)
	}
	if got := aliases(s, "b"); got != "one x__act x__one" {
		t.Errorf("b is offered %s", got)
	}
	if tool, ok := s.Resolve("b", gateway.SortTool, "x__one"); !ok || tool.Server != "x" {
		t.Errorf("x__one is %s's", tool.Server)
	}
	if _, ok := s.Resolve("b", gateway.SortTool, "act"); ok {
		t.Error("a withheld tool can be called")
	}
	if f := d.await(t, "tool.definition.changed", "two", 1); f.Tenant != "b" || !strings.Contains(f.Detail, "same alias") {
		t.Errorf("on record is %+v", f)
	}
}

// Whichever way a server tells of a change, or none, the catalogue follows.
func TestChangesAreSeen(t *testing.T) {
	for _, how := range []string{"modern", "legacy", "poll", "beside a call", "child"} {
		t.Run(how, func(t *testing.T) {
			tools := new(atomic.Value)
			tools.Store(`[{"name":"act","inputSchema":{"type":"object"}},{"name":"old","inputSchema":{"type":"object"}}]`)
			change := make(chan struct{}, 1)
			f := &fake{modern: how == "modern", changes: how == "modern" || how == "legacy", session: "s1"}
			f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
				tell := func(also string) {
					w.Header().Set("Content-Type", contentSSE)
					fmt.Fprint(w, also)
					w.(http.Flusher).Flush()
					select {
					case <-change:
						fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n")
						w.(http.Flusher).Flush()
					case <-r.Context().Done():
					}
				}
				switch {
				case m.Method == "tools/list":
					says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":{"tools":`+tools.Load().(string)+`}}`)(w, r, m)
				case m.Method == "subscriptions/listen" && strings.Contains(string(m.Params), `{"toolsListChanged":true}`):
					tell("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\"}\n\n")
					<-r.Context().Done()
				case r.Method == http.MethodGet && how == "legacy":
					tell("")
					<-r.Context().Done()
				case m.Method == "tools/call" && how == "beside a call":
					tell("")
					fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[]}}\n\n", m.ID)
				default:
					return false
				}
				return true
			}
			srv := Server{Name: "x", URL: f.serve(t), Refresh: time.Hour}
			if how == "poll" {
				srv.Refresh = 20 * time.Millisecond
			}
			if how == "child" {
				srv = self("x", "good")
				srv.Refresh = 20 * time.Millisecond
			}
			s, d := start(t, Config{Servers: []Server{srv}})
			if seen := d.await(t, "tool.definition.seen", "x", 2); seen.Tenant != "b" {
				t.Errorf("it is on record for tenant %s twice", seen.Tenant)
			}
			if how == "child" { // it cannot change here; that it is asked again without a fact is enough
				time.Sleep(100 * time.Millisecond)
				if got := strings.Count(strings.Join(d.types(), "\n"), "tool.definition."); got != 2 { // seen, for each tenant
					t.Errorf("on record are %q", d.types())
				}
				return
			}
			was, _ := s.Resolve("a", gateway.SortTool, "x__act")
			tools.Store(`[{"name":"act","description":"another","inputSchema":{"type":"object"}},{"name":"new","inputSchema":{"type":"object"}}]`)
			change <- struct{}{}
			if how == "beside a call" {
				if _, err := forward(t, s, "x__act", `{}`); err != nil {
					t.Fatal(err)
				}
			}
			if c := d.await(t, "tool.definition.changed", "x", 1); c.Tool.Name != "act" || c.Detail != "was "+was.Hash || c.Tool.Hash == was.Hash {
				t.Errorf("on record is %+v", c)
			}
			if c := d.await(t, "tool.definition.changed", "x", 2); c.Tool.Name != "new" || c.Detail != "new" {
				t.Errorf("on record is %+v", c)
			}
			if c := d.await(t, "tool.definition.changed", "x", 3); c.Tool.Name != "old" || c.Detail != "gone" {
				t.Errorf("on record is %+v", c)
			}
			if got := aliases(s, "b"); got != "" {
				t.Errorf("before anybody accepted them, offered are %s", got)
			}
			acceptAll(t, s, "a", "b")
			if got := aliases(s, "b"); got != "x__act x__new" {
				t.Errorf("offered are %s", got)
			}
			if now, _ := s.Resolve("a", gateway.SortTool, "x__act"); now.Hash == was.Hash {
				t.Error("the changed definition is not in use")
			}
		})
	}
}

// A server that changes everything all the time writes a bounded record.
func TestAFlappingServerFillsNoRecord(t *testing.T) {
	many := func(describe string) *listing {
		l := &listing{}
		for i := range 1000 {
			l.tools = append(l.tools, gateway.Tool{Name: fmt.Sprint(i), Hash: describe})
		}
		return l
	}
	facts := changes(many("a"), many("b"))
	if len(facts) != maxTold+1 || facts[maxTold].Count != 1000-maxTold {
		t.Errorf("%d facts, the last for %d", len(facts), facts[len(facts)-1].Count)
	}
}

func TestListingWithACredential(t *testing.T) {
	seen := make(chan string, 100)
	f := &fake{before: func(_ http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		seen <- m.Method + " " + r.Header.Get("Authorization")
		return false
	}, changes: true, session: "s1"}
	var out atomic.Int32
	given := make(chan struct{}, 10)
	discovery := func(_ context.Context, tenant, server string) (gateway.Lease, func(), error) {
		if tenant == "b" {
			return gateway.Lease{}, nil, errors.New("none for b")
		}
		out.Add(1)
		return gateway.Lease{ID: "l", Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret(server + " for " + tenant)}},
			func() { given <- struct{}{} }, nil
	}
	s, d := start(t, Config{Discovery: discovery, Servers: []Server{
		{Name: "x", URL: f.serve(t), Class: "static", Protocol: Legacy, Refresh: time.Hour}, {Name: "open", URL: (&fake{}).serve(t)}}})
	for _, want := range []string{"initialize x for a", "notifications/initialized x for a", "tools/list x for a",
		"initialize x for a", "notifications/initialized x for a", "tools/list x for a", " x for a", // as who can be asked nothing
		" x for a"} {
		if got := <-seen; got != want {
			t.Errorf("the server saw %q, not %q", got, want)
		}
	}
	<-given // once the session is closed with it
	if out.Load() != 1 {
		t.Errorf("%d credentials were taken", out.Load())
	}
	d.await(t, "server.down", "x", 1) // for b
	if aliases(s, "a") != "open__act x__act" || aliases(s, "b") != "open__act" {
		t.Errorf("a is offered %s, b %s", aliases(s, "a"), aliases(s, "b"))
	}
}

func TestConfigsThatAreRefused(t *testing.T) {
	file := t.TempDir() + "/plain"
	os.WriteFile(file, nil, 0o600)
	long := strings.Repeat("x", 65)
	for name, s := range map[string][]Server{
		"no name":             {{URL: "http://127.0.0.1"}},
		"capitals":            {{Name: "X", URL: "http://127.0.0.1"}},
		"a name too long":     {{Name: long, URL: "http://127.0.0.1"}},
		"the reserved name":   {{Name: "toolbroker", URL: "http://127.0.0.1"}},
		"the reserved prefix": {{Name: "x", URL: "http://127.0.0.1", Prefix: new("toolbroker__")}},
		"a name twice":        {{Name: "x", URL: "http://127.0.0.1"}, {Name: "x", URL: "http://127.0.0.1"}},
		"neither":             {{Name: "x"}},
		"both":                {{Name: "x", URL: "http://127.0.0.1", Command: []string{"/bin/true"}}},
		"another scheme":      {{Name: "x", URL: "file:///etc/passwd"}},
		"a password":          {{Name: "x", URL: "https://user:canary@tools.example/"}},
		"no host":             {{Name: "x", URL: "https:///mcp"}},
		"an unknown tenant":   {{Name: "x", URL: "http://127.0.0.1", Tenants: []string{"c"}}},
		"a bad prefix":        {{Name: "x", URL: "http://127.0.0.1", Prefix: new("a b")}},
		"an unknown protocol": {{Name: "x", URL: "http://127.0.0.1", Protocol: "1999"}},
		"a negative limit":    {{Name: "x", URL: "http://127.0.0.1", Timeout: -1}},
		"no such program":     {{Name: "x", Command: []string{"/no/such/program"}}},
		"no program":          {{Name: "x", Command: []string{file}}},
		"an odd variable":     {{Name: "x", Command: []string{"/bin/true"}, Env: map[string]string{"A=B": "c"}}},
	} {
		got, err := New(Config{Tenants: []string{"a"}, Servers: s})
		if err == nil {
			got.Close(t.Context())
			t.Errorf("%s was taken", name)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
