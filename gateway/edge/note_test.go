package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// told waits until the door hears what sessions do elsewhere.
func (d *door) told(n gateway.News) {
	d.Helper()
	if err := d.kept.Tell(d.Context(), n); err != nil {
		d.Fatal(err)
	}
}

// hears is what is told of a session.
func (d *door) hears() <-chan gateway.News {
	heard := make(chan gateway.News, 64)
	awake := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	d.Cleanup(cancel)
	go d.kept.Watch(ctx, func(n gateway.News) {
		switch {
		case n.Session != "awake":
			heard <- n
		case awake != nil:
			close(awake)
			awake = nil
		}
	})
	waiting := awake
	waitFor(d.T, "a watcher", func() bool {
		d.told(gateway.News{Session: "awake"})
		select {
		case <-waiting:
			return true
		default:
			return false
		}
	})
	return heard
}

func logged(level string) *gateway.Note {
	return &gateway.Note{Server: "s", Method: "notifications/message", Params: json.RawMessage(`{ "level":"` + level + `","data":"\u0041","_meta":{"io.toolbroker/x":1}}`)}
}

// What servers log beside calls reaches the session's stream and no other, from the
// level on that the session wants, and all of it before it said one.
func TestLogsBesideCalls(t *testing.T) {
	d := open(t)
	other := another(t, d.house)
	sid := d.session("alice")
	s, theirs := d.openStream("alice", sid), d.openStream("bob", d.session("bob"))
	heard := d.hears()
	is := func(level string) {
		t.Helper()
		if got, want := get(t, "log message", s.lines), `{"jsonrpc":"2.0","method":"notifications/message","params":{ "level":"`+level+`","data":"\u0041"`; !strings.HasPrefix(got, want) || strings.Contains(got, "io.toolbroker") {
			t.Errorf("%s, not %s", got, want)
		}
	}
	d.told(gateway.News{Session: sid, Note: logged("debug")})
	is("debug")
	if got := other.do(req{body: rpc(1, "logging/setLevel", `"level":"error"`)}.with(mcp.HeaderSessionID, sid)); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	get(t, "news", heard) // the log message above
	if n := get(t, "news", heard); n.Session != sid || n.Level != "error" {
		t.Errorf("of the level was told %+v", n)
	}
	for _, level := range []string{"info", "warning", "nonsense", "error"} {
		d.told(gateway.News{Session: sid, Note: logged(level)})
	}
	is("error")
	d.set(func() { d.unheard = "s" }) // policy may let go of a server that has much to say
	d.told(gateway.News{Session: sid, Note: logged("critical")})
	theirNote := logged("emergency")
	theirNote.Server = "t"
	d.told(gateway.News{Session: sid, Note: theirNote})
	is("emergency")
	d.set(func() { d.unheard = "" })
	d.told(gateway.News{Session: sid, Note: &gateway.Note{Server: "s", Method: "notifications/tools/list_changed"}}) // is not a server's to say here
	d.told(gateway.News{Session: sid, Note: logged("alert")})
	is("alert")
	if len(s.lines)+len(theirs.lines) > 0 {
		t.Errorf("%d and %d more lines", len(s.lines), len(theirs.lines))
	}
}

// A question beside calls goes out once, on whichever stream of the session takes it
// first, and only to a client that said it can answer; its answer is taken anywhere.
func TestQuestionsBesideCalls(t *testing.T) {
	const roots = `{"roots":{}}`
	for name, streams := range map[string]func(t *testing.T, d, other *door, sid string) (lines <-chan string){
		"two streams": func(t *testing.T, d, other *door, sid string) <-chan string {
			a, b := d.openStream("alice", sid), other.openStream("alice", sid)
			both := make(chan string, 64)
			for _, s := range []*openStream{a, b} {
				go func() {
					for {
						select {
						case line := <-s.lines:
							both <- line
						case <-t.Context().Done():
							return
						}
					}
				}()
			}
			return both
		},
		"a call alone": func(t *testing.T, d, other *door, sid string) <-chan string {
			got := make(chan *openStream, 1)
			go func() { got <- other.post(req{body: call("hold", "{}")}.with(mcp.HeaderSessionID, sid)) }()
			get(t, "held call", d.holding)
			lines := make(chan string, 64)
			go func() {
				s := <-got
				for {
					select {
					case line := <-s.lines:
						lines <- line
					case <-t.Context().Done():
						return
					}
				}
			}()
			return lines
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			other := another(t, d.house)
			sid := d.sessionOf("alice", "2025-11-25", roots)
			lines := streams(t, d, other, sid)
			defer other.do(req{body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`}.with(mcp.HeaderSessionID, sid)) // hanging up cancels nothing here
			d.hears()
			for i, n := range []gateway.Note{{Ask: "ask-a", Method: gateway.MethodRoots}, {Ask: "ask-b", Method: gateway.MethodRoots, Params: json.RawMessage(`{}`)}} {
				taken, done, _ := d.kept.Expect(t.Context(), sid, n.Taken())
				defer done()
				answer, done, _ := d.kept.Expect(t.Context(), sid, n.Ask)
				defer done()
				d.told(gateway.News{Session: sid, Note: &n})
				if _, err := taken(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got, want := get(t, "question", lines), []string{`{"jsonrpc":"2.0","id":"ask-a","method":"roots/list"}`, `{"jsonrpc":"2.0","id":"ask-b","method":"roots/list","params":{}}`}[i]; got != want {
					t.Errorf("asked %s", got)
				}
				if got := other.do(req{body: fmt.Sprintf(`{"jsonrpc":"2.0","id":%q,"result":{"roots":[]}}`, n.Ask)}.with(mcp.HeaderSessionID, sid)); got.status != 202 {
					t.Errorf("%d %s", got.status, got.body)
				}
				if r, err := answer(t.Context()); err != nil || string(r.Raw) != `{"roots":[]}` {
					t.Errorf("%s %v", r.Raw, err)
				}
			}
			// What it did not say that it can, and what is no question of ours, is not asked.
			for _, n := range []gateway.Note{{Ask: "ask-c", Method: gateway.MethodSample, Params: json.RawMessage(`{}`)}, {Ask: "mine", Method: gateway.MethodRoots}, {Ask: "ask-d", Method: "ping"}} {
				_, done, _ := d.kept.Expect(t.Context(), sid, n.Taken())
				defer done()
				d.told(gateway.News{Session: sid, Note: &n})
			}
			last := gateway.Note{Ask: "ask-e", Method: gateway.MethodRoots}
			_, done, _ := d.kept.Expect(t.Context(), sid, last.Taken())
			defer done()
			d.told(gateway.News{Session: sid, Note: &last})
			if got := get(t, "question", lines); !strings.Contains(got, "ask-e") {
				t.Errorf("asked %s", got)
			}
			if len(lines) > 0 {
				t.Errorf("asked again: %s", <-lines)
			}
		})
	}
}

// That roots changed is passed on for a session, over every transport, and for
// nobody without one.
func TestRootsChange(t *testing.T) {
	d := open(t)
	sid := d.session("alice")
	heard := d.hears()
	const changed = `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`
	d.do(req{body: changed})
	d.do(req{body: changed, token: "bob"}.with(mcp.HeaderSessionID, sid))
	if got := d.do(req{body: changed}.with(mcp.HeaderSessionID, sid)); got.status != 202 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if n := get(t, "news", heard); n.Session != sid || !n.Roots {
		t.Errorf("%+v", n)
	}
	r, w := pipes(t, d)
	go func() {
		fmt.Fprintln(w, changed) // in no session
		fmt.Fprintln(w, rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":{"roots":{}},"clientInfo":{"name":"t","version":"1"}`))
		fmt.Fprintln(w, changed)
	}()
	go func() {
		b := make([]byte, 1<<16)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
		}
	}()
	if n := get(t, "news", heard); n.Session == sid || n.Session == "" || !n.Roots {
		t.Errorf("%+v", n)
	}
	if len(heard) > 0 {
		t.Errorf("and %+v", <-heard)
	}
}
