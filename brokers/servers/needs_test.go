package servers

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway"
)

// What a legacy server shows to some clients only is known by what they need; it is
// looked at once, and again when its tools change or could not be seen.
func TestWhatToolsNeed(t *testing.T) {
	var mu sync.Mutex
	caps := map[string]string{} // by session
	var opened atomic.Int32
	var down, more atomic.Bool
	f := &fake{}
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		mu.Lock()
		defer mu.Unlock()
		switch m.Method {
		case "initialize":
			var p struct{ Capabilities json.RawMessage }
			json.Unmarshal(m.Params, &p)
			id := fmt.Sprint("s", opened.Add(1))
			caps[id] = string(p.Capabilities)
			w.Header().Set("Mcp-Session-Id", id)
		case "tools/list":
			has := caps[r.Header.Get("Mcp-Session-Id")]
			var tools []string
			for name, needs := range map[string][]string{"act": nil, "elicit": {"elicitation"}, "page": {"url"}, "model": {"sampling"}, "roots": {"roots"}, "all": {"elicitation", "sampling", "roots"}, "more": {"roots"}} {
				shows := name != "more" || more.Load()
				for _, need := range needs {
					shows = shows && strings.Contains(has, `"`+need+`"`)
				}
				if shows {
					tools = append(tools, `{"name":"`+name+`","inputSchema":{"type":"object"}}`)
				}
			}
			if down.Load() && !strings.Contains(has, "sampling") {
				w.WriteHeader(500)
				return true
			}
			w.Header().Set("Content-Type", contentJSON)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[%s]}}`, m.ID, strings.Join(tools, ","))
			return true
		}
		return false
	}
	down.Store(true)
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Protocol: Legacy, Refresh: 5 * time.Millisecond}}})
	needs := func(name string) string {
		tool, ok := s.Resolve("a", gateway.SortTool, "x__"+name)
		return fmt.Sprint(ok, " ", strings.Join(tool.Needs, " "))
	}
	if got := needs("model"); got != "true " {
		t.Errorf("while nobody can say, a tool needs %s", got)
	}
	down.Store(false)
	await := func(name, want string) {
		t.Helper()
		for start := time.Now(); needs(name) != want; time.Sleep(time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("%s needs %s", name, needs(name))
			}
		}
	}
	await("model", "true sampling")
	for name, want := range map[string]string{"act": "true ", "elicit": "true elicitation.form elicitation.url", "page": "true elicitation.url", "roots": "true roots",
		"all": "true elicitation.form elicitation.url sampling roots"} {
		if got := needs(name); got != want {
			t.Errorf("%s needs %s, want %s", name, got, want)
		}
	}
	if _, err := forward(t, s, "x__act", `{}`); err != nil {
		t.Fatal(err)
	}
	lesserOnes := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, has := range caps {
			if has != string(listingCaps) {
				n++
			}
		}
		return n
	}
	n, listed := lesserOnes(), f.count("tools/list")
	for start := time.Now(); f.count("tools/list") < listed+5 && time.Since(start) < 10*time.Second; {
		time.Sleep(time.Millisecond)
	}
	if again := lesserOnes() - n; again > 0 {
		t.Errorf("%d more sessions looked what tools need", again)
	}
	more.Store(true)
	acceptAllSoon(t, s, "x__more")
	await("more", "true roots")
}

// acceptAllSoon accepts what is offered until a tool is.
func acceptAllSoon(t *testing.T, s *Servers, alias string) {
	t.Helper()
	for start := time.Now(); !offers(s, alias); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("it is never offered")
		}
		acceptAll(t, s, "a")
	}
}
