package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway"
)

func listenOn(t *testing.T, addr string) net.Listener {
	t.Helper()
	for range 100 {
		if l, err := net.Listen("tcp", addr); err == nil {
			return l
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the address is taken")
	return nil
}

// sessions hands out sessions and remembers what came over each.
type sessions struct {
	fake
	n    atomic.Int32
	mu   sync.Mutex
	over map[string][]string // session: methods
	auth map[string][]string // session: Authorization of each request
	dead map[string]bool
}

func newSessions() *sessions {
	s := &sessions{over: map[string][]string{}, auth: map[string][]string{}, dead: map[string]bool{}}
	s.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		id := r.Header.Get("Mcp-Session-Id")
		if m.Method == "initialize" {
			id = fmt.Sprint("s", s.n.Add(1))
			w.Header().Set("Mcp-Session-Id", id)
			w.Header().Set("Content-Type", contentJSON)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}}}}`, m.ID)
		}
		what := m.Method
		if r.Method != http.MethodPost {
			what = r.Method
		}
		s.over[id] = append(s.over[id], what)
		s.auth[id] = append(s.auth[id], r.Header.Get("Authorization"))
		switch {
		case m.Method == "initialize":
			return true
		case m.Method == "server/discover":
			w.WriteHeader(http.StatusBadRequest)
			return true
		case s.dead[id] || id == "":
			w.WriteHeader(http.StatusNotFound)
			return true
		case r.Header.Get("MCP-Protocol-Version") != "2025-06-18":
			w.WriteHeader(http.StatusBadRequest)
			return true
		case r.Method == http.MethodDelete:
			s.dead[id] = true
			w.WriteHeader(http.StatusOK)
			return true
		}
		return false
	}
	return s
}

// calls lists the sessions over which calls went, in order.
func (s *sessions) calls() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, methods := range s.over {
		for _, m := range methods {
			if m == "tools/call" {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *sessions) history(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.over[id], " ")
}

func TestSessionsAreSharedByOneOwnerOnly(t *testing.T) {
	f := newSessions()
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	someone := func(change func(*gateway.Forward)) {
		t.Helper()
		for range 2 {
			if _, err := forward(t, s, "x__act", `{}`, change); err != nil {
				t.Error(err)
			}
		}
	}
	someone(func(*gateway.Forward) {})
	someone(func(f *gateway.Forward) { f.Principal.ID = "q" })
	someone(func(f *gateway.Forward) { f.Principal.Tenant, f.Task.Tenant = "b", "b" })
	someone(func(f *gateway.Forward) { f.Task.ID = "t2" })
	someone(func(f *gateway.Forward) { f.Session = "m2" })
	someone(func(f *gateway.Forward) { f.Lease.ID = "l1" })
	someone(func(f *gateway.Forward) { f.Lease.ID = "l2" })
	ids := f.calls()
	if len(ids) != 14 || len(slices.Compact(ids)) != 7 {
		t.Errorf("14 calls of 7 owners went over %v", ids)
	}
	if got := f.history(ids[0]); got != "initialize notifications/initialized tools/call tools/call" {
		t.Errorf("one session saw %s", got)
	}
}

func TestSessionsEnd(t *testing.T) {
	f := newSessions()
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	header := gateway.Lease{ID: "l1", PerCall: true, Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer one")}}
	if _, err := forward(t, s, "x__act", `{}`, func(f *gateway.Forward) { f.Lease = header }); err != nil {
		t.Fatal(err)
	}
	ids := f.calls()
	if got := f.history(ids[0]); got != "initialize notifications/initialized tools/call DELETE" {
		t.Errorf("a session for one call saw %s", got)
	}
	f.mu.Lock()
	got := f.auth[ids[0]]
	f.mu.Unlock()
	if !slices.Equal(got, slices.Repeat([]string{"Bearer one"}, 4)) {
		t.Errorf("its requests carried %q", got)
	}
	// A task's end ends its sessions, and no other's.
	for _, id := range []string{"t1", "t2"} {
		if _, err := forward(t, s, "x__act", `{}`, task(id)); err != nil {
			t.Fatal(err)
		}
	}
	if ends := s.EndTask(t.Context(), "a", "t1"); len(ends.Open)+len(ends.Lost) > 0 {
		t.Fatalf("%+v", ends)
	}
	ended := 0
	for _, id := range f.calls() {
		if strings.HasSuffix(f.history(id), "tools/call DELETE") {
			ended++
		}
	}
	if ended != 2 {
		t.Errorf("%d sessions ended, of the call's, t1's and t2's", ended)
	}
}

// A session is gone when its server says so, and not before; one that does not say
// so is named.
func TestSessionsWhoseEndIsNotConfirmed(t *testing.T) {
	for name, row := range map[string]struct {
		answers []int // to DELETE; the last one again
		want    gateway.LinkEnds
	}{
		"it ends it":               {[]int{200}, gateway.LinkEnds{Gone: []string{"x"}}},
		"it knows it no more":      {[]int{404}, gateway.LinkEnds{Gone: []string{"x"}}},
		"it ends it when it can":   {[]int{503, 503, 204}, gateway.LinkEnds{Gone: []string{"x"}}},
		"it never can":             {[]int{503}, gateway.LinkEnds{Lost: []string{"x"}}},
		"it ends none":             {[]int{405}, gateway.LinkEnds{Lost: []string{"x"}}},
		"it takes no credential":   {[]int{401}, gateway.LinkEnds{Lost: []string{"x"}}},
		"it does not answer, then": {[]int{0, 200}, gateway.LinkEnds{Gone: []string{"x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newSessions()
			usual, late := f.before, make(chan struct{})
			var n atomic.Int32
			f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
				if r.Method != http.MethodDelete || !slices.Contains(f.calls(), r.Header.Get("Mcp-Session-Id")) {
					return usual(w, r, m)
				}
				status := row.answers[min(int(n.Add(1)), len(row.answers))-1]
				if status == 0 {
					<-late
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(status)
				return true
			}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			s.pool.asks = 500 * time.Millisecond
			if _, err := forward(t, s, "x__act", `{}`, task("t1")); err != nil {
				t.Fatal(err)
			}
			if row.answers[0] == 0 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				if got := s.EndTask(ctx, "a", "t1"); !slices.Equal(got.Open, []string{"x"}) || len(got.Gone)+len(got.Lost) > 0 {
					t.Errorf("meanwhile %+v", got)
				}
				close(late)
			}
			if got := s.EndTask(t.Context(), "a", "t1"); fmt.Sprint(got) != fmt.Sprint(row.want) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A session that the server forgot, as MCP has it say so, costs no call: that is sent
// once more, in another, and never a third time. Whatever else it says, the call may
// have been done.
func TestForgottenSessions(t *testing.T) {
	f := newSessions()
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	if _, err := forward(t, s, "x__act", `{}`); err != nil {
		t.Fatal(err)
	}
	forget := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for id := range f.over {
			f.dead[id] = true
		}
	}
	forget()
	if _, err := forward(t, s, "x__act", `{}`); err != nil {
		t.Errorf("it was not sent once more: %v", err)
	}
	if ids := f.calls(); len(ids) != 3 || len(slices.Compact(ids)) != 2 {
		t.Errorf("two calls went over %v", ids)
	}
	// After a while of nothing the session is asked first.
	s.pool.mu.Lock()
	s.pool.stale = 0
	s.pool.mu.Unlock()
	forget()
	if _, err := forward(t, s, "x__act", `{}`); err != nil {
		t.Errorf("the session was not asked first: %v", err)
	}
	if n := f.count("tools/call"); n != 4 {
		t.Errorf("the third of three calls was sent %d times", n-3)
	}
}

func TestWhatIsSentOnceMore(t *testing.T) {
	for name, row := range map[string]struct {
		status  int // of tools/call
		session string
		sent    int
		notSent bool
	}{
		"every session is unknown": {404, "s1", 2, true},
		"no session was given":     {404, "", 1, false},
		"a bad request":            {400, "s1", 1, false},
		"gone":                     {410, "s1", 1, false},
		"an error":                 {500, "s1", 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{session: row.session, call: func(w http.ResponseWriter, _ *http.Request, _ fakeMessage) { w.WriteHeader(row.status) }}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			if _, err := forward(t, s, "x__act", `{}`); err == nil || errors.Is(err, gateway.ErrNotSent) != row.notSent {
				t.Errorf("it ended with %v", err)
			}
			if n := f.count("tools/call"); n != row.sent {
				t.Errorf("it was sent %d times", n)
			}
		})
	}
}

// Some servers say that they know a session no more by an error that is an answer.
func TestASessionThatIsUnknownByAnError(t *testing.T) {
	for name, row := range map[string]struct {
		status, code int
		sent         int // of two calls
		sessions     int
		err          bool
	}{
		"as MCP has it":         {404, -32001, 4, 4, true},
		"another error":         {404, -32601, 2, 1, false},
		"by a bad request":      {400, -32000, 2, 2, false},
		"another bad request":   {400, -32602, 2, 1, false},
		"what is no such thing": {500, -32001, 2, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{session: "s1", call: func(w http.ResponseWriter, r *http.Request, m fakeMessage) {
				w.Header().Set("Content-Type", contentJSON)
				w.WriteHeader(row.status)
				says(contentJSON, fmt.Sprintf(`{"jsonrpc":"2.0","id":ID,"error":{"code":%d,"message":"m"}}`, row.code))(w, r, m)
			}}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			before := f.count("initialize")
			for range 2 {
				r, err := forward(t, s, "x__act", `{}`)
				if row.err != errors.Is(err, gateway.ErrNotSent) || !row.err && (err != nil || r.Error == nil) {
					t.Errorf("%s, %v", r.Error, err)
				}
			}
			if n := f.count("tools/call"); n != row.sent {
				t.Errorf("two calls were sent %d times", n)
			}
			if n := f.count("initialize") - before; n < row.sessions { // and more, to list with
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// What carries a key of idempotency net/http would send again where a connection breaks
// that was used before.
func TestACallWithAKeyIsSentOnce(t *testing.T) {
	for _, header := range []string{"Idempotency-Key", "X-Idempotency-Key", "My-Key"} {
		breaks, keys := new(atomic.Bool), make(chan string, 9)
		f := &fake{modern: true, call: func(w http.ResponseWriter, r *http.Request, m fakeMessage) {
			keys <- r.Header.Get(header)
			if breaks.Load() {
				c, _, _ := w.(http.Hijacker).Hijack()
				c.Close()
				return
			}
			says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":{"content":[]}}`)(w, r, m)
		}}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), IdempotencyHeader: header}}})
		if _, err := forward(t, s, "x__act", `{}`); err != nil {
			t.Fatal(err)
		}
		breaks.Store(true)
		if _, err := forward(t, s, "x__act", `{}`); err == nil || errors.Is(err, gateway.ErrNotSent) {
			t.Errorf("the server may have run it, but: %v", err)
		}
		if n := f.count("tools/call"); n != 2 {
			t.Errorf("two calls were sent %d times", n)
		}
		if key := <-keys; len(key) != 32 {
			t.Errorf("the server reads the key %q in %s", key, header)
		}
	}
}

// A request goes out in one piece: two are two packets, and twice the work for both
// sides.
func TestARequestIsWrittenOnce(t *testing.T) {
	f := &fake{modern: true}
	s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	srv := s.servers["x"]
	writes := new(atomic.Int64)
	l := srv.way.(*lean)
	dial := l.dial
	l.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		return &countedWrites{c, writes}, err
	}
	for n := range int64(3) {
		m, err := newWeb(srv, nil, true).do(t.Context(), call{method: gateway.MethodCall, params: json.RawMessage(`{"name":"act"}`)})
		if err != nil || m.result == nil || writes.Load() != n+1 {
			t.Fatalf("%d requests took %d writes; %v", n+1, writes.Load(), err)
		}
	}
}

type countedWrites struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedWrites) Write(b []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(b)
}

func TestASessionThatCannotBeOpenedMeansNotSent(t *testing.T) {
	broken := new(atomic.Bool)
	f := &fake{before: func(w http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
		if broken.Load() && m.Method == "initialize" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	broken.Store(true)
	if _, err := forward(t, s, "x__act", `{}`); !errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("no session was opened, but: %v", err)
	}
	if n := f.count("tools/call"); n != 0 {
		t.Errorf("the call was sent %d times", n)
	}
}

// The credential of a call is on that call's requests; nothing else is, and
// nothing that the binding says can change what a request means.
func TestCredentialsAndHeaders(t *testing.T) {
	for _, modern := range []bool{true, false} {
		var mu sync.Mutex
		seen := map[string]http.Header{}
		f := &fake{modern: modern, before: func(_ http.ResponseWriter, r *http.Request, m fakeMessage) bool {
			mu.Lock()
			defer mu.Unlock()
			seen[m.Method] = r.Header.Clone()
			return false
		}, tools: `[{"name":"act","inputSchema":{"type":"object","properties":{"repo":{"type":"string","x-mcp-header":"Repo"}}}}]`}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}, Version: "9"})
		mu.Lock()
		if got := seen["tools/list"].Get("Authorization"); got != "" {
			t.Errorf("listing carried %q", got)
		}
		mu.Unlock()
		_, err := forward(t, s, "x__act", `{"repo":"héllo"}`, func(f *gateway.Forward) {
			f.Lease = gateway.Lease{ID: "l", Headers: map[string]gateway.Secret{
				"Authorization": gateway.NewSecret("Bearer of-l"), "mcp-name": gateway.NewSecret("other"), "accept": gateway.NewSecret("x"), "Cookie": gateway.NewSecret("c=1")}}
		})
		if err != nil {
			t.Fatal(err)
		}
		got := seen["tools/call"]
		want := map[string]string{"Authorization": "Bearer of-l", "Accept": "application/json, text/event-stream", "Content-Type": "application/json", "User-Agent": "toolbroker/9"}
		if modern {
			want["Mcp-Method"], want["Mcp-Name"], want["Mcp-Protocol-Version"] = "tools/call", "act", "2026-07-28"
			want["Mcp-Param-Repo"] = "=?base64?aMOpbGxv?="
		} else {
			want["Mcp-Protocol-Version"] = "2025-11-25"
		}
		for name, value := range want {
			if got.Get(name) != value {
				t.Errorf("modern=%v: %s is %q, not %q", modern, name, got.Get(name), value)
			}
		}
	}
}

func TestACredentialIsNotSentInTheClear(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://192.0.2.1/mcp": false, "http://tools.example/mcp": false, "http://localhost.example/mcp": false,
		"http://127.0.0.1/mcp": true, "http://[::1]/mcp": true, "http://localhost/mcp": true, "https://tools.example/mcp": true,
	} {
		s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", URL: url, Class: "static"}}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
		if err == nil {
			s.Close(t.Context())
		}
	}
	// Nor when a lease comes for a server that was said to need none.
	s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", URL: "http://192.0.2.1/mcp"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	for _, e := range []era{modernEra, legacyEra} {
		s.servers["x"].era.Store(int32(e))
		_, err = s.Forward(t.Context(), gateway.Forward{Tool: gateway.Tool{Server: "x", Name: "act"}, Principal: gateway.Principal{Tenant: "a"},
			Lease: gateway.Lease{Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer x")}}}, nil)
		if !errors.Is(err, gateway.ErrNotSent) || !strings.Contains(err.Error(), "plain http") {
			t.Errorf("the call ended with %v", err)
		}
	}
}

func TestAnotherTenantsServerIsNotReached(t *testing.T) {
	f := &fake{modern: true}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", Tenants: []string{"b"}, URL: f.serve(t)}}})
	if len(s.Offered("a", gateway.SortTool)) != 0 || len(s.Offered("b", gateway.SortTool)) != 1 || len(s.Offered("c", gateway.SortTool)) != 0 {
		t.Errorf("a sees %d, b %d, c %d tools", len(s.Offered("a", gateway.SortTool)), len(s.Offered("b", gateway.SortTool)), len(s.Offered("c", gateway.SortTool)))
	}
	tool, _ := s.Resolve("b", gateway.SortTool, "x__act")
	_, err := s.Forward(t.Context(), gateway.Forward{Tool: tool, Principal: gateway.Principal{Tenant: "a"}}, nil)
	if !errors.Is(err, gateway.ErrNotSent) || f.count("tools/call") > 0 {
		t.Errorf("it ended with %v", err)
	}
}

func TestProgress(t *testing.T) {
	for _, modern := range []bool{true, false} {
		f := &fake{modern: modern, call: func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
			w.Header().Set("Content-Type", contentSSE)
			fmt.Fprint(w, "id: 1\ndata:\n\n: hello\n")
			for _, n := range []string{
				`"method":"notifications/progress","params":{"progressToken":"call-1", "progress":1}`,
				`"method":"notifications/progress","params":{"progressToken":"call-2","progress":2}`, // another's
				`"method":"notifications/progress","params":{"progress":3}`,
				`"method":"notifications/message","params":{"level":"info","data":"x"}`,
				`"method":"notifications/progress","params":{"progressToken":"call-1","progress":4,"_meta":{"io.toolbroker/x":1,"k":2}}`,
			} {
				fmt.Fprintf(w, "event: message\ndata: {\"jsonrpc\":\"2.0\",%s}\r\n\r\n", n)
			}
			fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\ndata: \"id\":%s,\"result\":{\"content\":[]}}\n\n", m.ID)
		}}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
		e := &ear{}
		if _, err := forwardTo(t, s, "x__act", `{}`, e, func(f *gateway.Forward) { f.Progress = true }); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(e.heard, "\n"); got != `notifications/progress {"progressToken":"call-1", "progress":1}
notifications/message {"level":"info","data":"x"}
notifications/progress {"progressToken":"call-1","progress":4,"_meta":{"k":2}}` {
			t.Errorf("heard %s", got)
		}
		// Who did not ask hears no progress, and says no token.
		quiet := &ear{}
		if _, err := forwardTo(t, s, "x__act", `{}`, quiet); err != nil || len(quiet.heard) != 1 {
			t.Errorf("%v, heard %q", err, quiet.heard)
		}
	}
}

// Which era a server is spoken to in, by what it says and what is pinned.
func TestEras(t *testing.T) {
	type answers map[string]string // method: result, or HTTP status
	legacy := `{"protocolVersion":"2025-03-26","capabilities":{}}`
	for name, c := range map[string]struct {
		says answers
		pin  Protocol
		want era // unknownEra: none
	}{
		"modern":                    {answers{"server/discover": `{"supportedVersions":["2027-01-01","2026-07-28"]}`}, Auto, modernEra},
		"modern, pinned legacy":     {answers{"server/discover": `{"supportedVersions":["2026-07-28"]}`, "initialize": legacy}, Legacy, legacyEra},
		"an empty answer":           {answers{"server/discover": `{}`, "initialize": legacy}, Auto, legacyEra},
		"other versions":            {answers{"server/discover": `{"supportedVersions":["2025-11-25"]}`, "initialize": legacy}, Auto, legacyEra},
		"in other letters":          {answers{"server/discover": `{"SupportedVersions":["2026-07-28"]}`, "initialize": legacy}, Auto, legacyEra},
		"400":                       {answers{"server/discover": "400", "initialize": legacy}, Auto, legacyEra},
		"404":                       {answers{"server/discover": "404", "initialize": legacy}, Auto, legacyEra},
		"500":                       {answers{"server/discover": "500", "initialize": legacy}, Auto, legacyEra},
		"401":                       {answers{"server/discover": "401", "initialize": legacy}, Auto, unknownEra},
		"legacy, pinned modern":     {answers{"server/discover": "400", "initialize": legacy}, Modern, unknownEra},
		"a version of the future":   {answers{"server/discover": "400", "initialize": `{"protocolVersion":"2027-01-01","capabilities":{}}`}, Auto, unknownEra},
		"modern by initialize":      {answers{"server/discover": "400", "initialize": `{"protocolVersion":"2026-07-28","capabilities":{}}`}, Auto, unknownEra},
		"no version":                {answers{"server/discover": "400", "initialize": `{"capabilities":{}}`}, Auto, unknownEra},
		"a session id without end":  {answers{"server/discover": "400", "initialize": legacy, "session": strings.Repeat("s", 2000)}, Auto, unknownEra},
		"a session id that is none": {answers{"server/discover": "400", "initialize": legacy, "session": ""}, Auto, legacyEra},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{before: func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
				a := c.says[m.Method]
				if code, err := strconv.Atoi(a); err == nil {
					w.WriteHeader(code)
				} else if a != "" {
					w.Header().Set("Mcp-Session-Id", c.says["session"])
					says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":`+a+`}`)(w, r, m)
				}
				return a != ""
			}}
			s, d := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Protocol: c.pin}}})
			if c.want == unknownEra {
				d.await(t, "server.down", "x", 1)
				return
			}
			if _, err := forward(t, s, "x__act", `{}`); err != nil {
				t.Error(err)
			}
			if got := era(s.servers["x"].era.Load()); got != c.want {
				t.Errorf("it is spoken to in era %d", got)
			}
		})
	}
}

func TestCancellation(t *testing.T) {
	for _, modern := range []bool{true, false} {
		t.Run(fmt.Sprintf("modern=%v", modern), func(t *testing.T) {
			began, closed, told := make(chan string, 1), make(chan bool, 1), make(chan string, 1)
			f := &fake{modern: modern, session: "s1", call: func(w http.ResponseWriter, r *http.Request, m fakeMessage) {
				w.Header().Set("Content-Type", contentSSE)
				w.(http.Flusher).Flush()
				began <- string(m.ID)
				<-r.Context().Done()
				closed <- true
			}, before: func(_ http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
				if m.Method == "notifications/cancelled" {
					told <- string(m.Params)
				}
				return false
			}}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			ctx, cancel := context.WithCancel(t.Context())
			tool, _ := s.Resolve("a", gateway.SortTool, "x__act")
			ended := make(chan error, 1)
			go func() {
				_, err := s.Forward(ctx, gateway.Forward{Tool: tool, Principal: gateway.Principal{Tenant: "a"}}, nil)
				ended <- err
			}()
			id := <-began
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || errors.Is(err, gateway.ErrNotSent) {
				t.Errorf("it ended with %v", err)
			}
			<-closed
			if !modern {
				if got := <-told; !strings.Contains(got, `"requestId":`+id+`,`) {
					t.Errorf("the server was told %s about %s", got, id)
				}
			} else if f.count("notifications/cancelled") > 0 {
				t.Error("over HTTP the modern era has no such notification")
			}
		})
	}
}

func TestAskingBackIsAnswered(t *testing.T) {
	answers := make(chan string, 2)
	f := &fake{session: "s1", call: func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
		w.Header().Set("Content-Type", contentSSE)
		fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"elicitation/create\",\"params\":{}}\n\n")
		fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}\n\n")
		w.(http.Flusher).Flush()
		fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[{\"type\":\"text\",\"text\":%q}]}}\n\n", m.ID, <-answers+<-answers)
	}, before: func(w http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
		if m.Method == "" && m.raw != nil && len(m.raw) > 0 {
			answers <- string(m.raw)
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	}}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	r, err := forward(t, s, "x__act", `{}`)
	if got := said(t, r, err); got != `{"jsonrpc":"2.0","id":"a","error":{"code":-32601,"message":"not supported by this client"}}{"jsonrpc":"2.0","id":2,"result":{}}` {
		t.Error(got)
	}
}
