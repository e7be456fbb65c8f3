package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway"
)

// A legacy server may end the stream of a call and give the rest in another; the
// call is not sent again for that.
func TestAStreamThatIsContinued(t *testing.T) {
	id := make(chan string, 1)
	f := &fake{session: "s"}
	f.before = func(w http.ResponseWriter, r *http.Request, _ fakeMessage) bool {
		last := r.Header.Get("Last-Event-ID")
		if r.Method != http.MethodGet || last == "" {
			return false
		}
		w.Header().Set("Content-Type", contentSSE)
		switch last {
		case "e1":
			fmt.Fprint(w, "id: e2\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":\"call-1\",\"progress\":1}}\n\n")
		case "e2":
			fmt.Fprintf(w, "id: e3\ndata: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"at last\"}]}}\n\n", <-id)
		}
		return true
	}
	f.call = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
		id <- string(m.ID)
		w.Header().Set("Content-Type", contentSSE)
		fmt.Fprint(w, "id: e1\nretry: 1\ndata:\n\n")
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	e := &ear{}
	r, err := forwardTo(t, s, "x__act", `{}`, e, func(f *gateway.Forward) { f.Progress = true })
	if got := said(t, r, err); got != "at last" || len(e.heard) != 1 || f.count("tools/call") != 1 {
		t.Errorf("said %q after %q, sent %d times", got, e.heard, f.count("tools/call"))
	}
}

func TestAStreamThatIsContinuedWithoutEnd(t *testing.T) {
	f := &fake{session: "s"}
	f.before = func(w http.ResponseWriter, r *http.Request, _ fakeMessage) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Type", contentSSE)
		fmt.Fprint(w, "data:\n\n")
		return true
	}
	f.call = func(w http.ResponseWriter, _ *http.Request, _ fakeMessage) {
		w.Header().Set("Content-Type", contentSSE)
		fmt.Fprint(w, "id: e1\nretry: 1\ndata:\n\n")
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Timeout: 300 * time.Millisecond}}})
	if r, err := forward(t, s, "x__act", `{}`); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("%v, %s", err, r.Raw)
	}
}

// Whatever becomes of the request for the rest, the call itself was sent.
func TestAStreamThatCannotBeContinued(t *testing.T) {
	for name, c := range map[string]struct {
		rest func(c net.Conn)
		want error
	}{
		"no HTTP":  {func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-OpenSSH\r\n\r\n") }, gateway.ErrBadAnswer},
		"hangs up": {func(net.Conn) {}, context.DeadlineExceeded},
	} {
		f := &fake{session: "s"}
		f.before = func(w http.ResponseWriter, r *http.Request, _ fakeMessage) bool {
			if r.Method == http.MethodGet {
				conn, _, _ := w.(http.Hijacker).Hijack()
				c.rest(conn)
				conn.Close()
			}
			return r.Method == http.MethodGet
		}
		f.call = func(w http.ResponseWriter, _ *http.Request, _ fakeMessage) {
			w.Header().Set("Content-Type", contentSSE)
			fmt.Fprint(w, "id: e1\nretry: 1\ndata:\n\n")
		}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Timeout: 300 * time.Millisecond}}})
		if r, err := forward(t, s, "x__act", `{}`); !errors.Is(err, c.want) || errors.Is(err, gateway.ErrNotSent) {
			t.Errorf("%s: %v, %s", name, err, r.Raw)
		}
	}
}

// Only 2025-03-26 puts several messages into one.
func TestBatches(t *testing.T) {
	for version, ok := range map[string]bool{"2025-03-26": true, "2025-06-18": false, "2025-11-25": false} {
		for _, kind := range []string{contentJSON, contentSSE} {
			f := &fake{version: version, call: says(kind, `[{"jsonrpc":"2.0","id":ID,"result":{"content":[]}},{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}]`)}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			e := &ear{}
			_, err := forwardTo(t, s, "x__act", `{}`, e)
			if (err == nil) != ok || ok && len(e.heard) != 1 {
				t.Errorf("%s, %s: %v, heard %q", version, kind, err, e.heard)
			}
		}
	}
}

// oldServer speaks 2024-11-05 over HTTP.
type oldServer struct {
	endpoint string
	mu       sync.Mutex
	streams  map[string]func(string)
	n        int
	posts    []string
	call     func(say func(string), m fakeMessage, r *http.Request)
	auth     atomic.Value
}

func (o *oldServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Path == "/sse" {
		w.Header().Set("Content-Type", contentSSE)
		o.mu.Lock()
		o.n++
		id := fmt.Sprint(o.n)
		var writing sync.Mutex
		say := func(s string) {
			writing.Lock()
			defer writing.Unlock()
			if r.Context().Err() == nil {
				fmt.Fprintf(w, "event: message\ndata: %s\n\n", s)
				w.(http.Flusher).Flush()
			}
		}
		if o.streams == nil {
			o.streams = map[string]func(string){}
		}
		o.streams[id] = say
		o.mu.Unlock()
		writing.Lock()
		fmt.Fprintf(w, "event: endpoint\ndata: %s%s\n\n", strings.ReplaceAll(o.endpoint, "HOST", r.Host), id)
		w.(http.Flusher).Flush()
		writing.Unlock()
		<-r.Context().Done()
		writing.Lock() // nobody writes any more
		defer writing.Unlock()
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/messages" {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	var m fakeMessage
	_ = json.NewDecoder(r.Body).Decode(&m)
	o.mu.Lock()
	say := o.streams[r.URL.Query().Get("s")]
	o.posts = append(o.posts, m.Method)
	o.mu.Unlock()
	o.auth.Store(r.Header.Get("Authorization"))
	w.WriteHeader(http.StatusAccepted)
	answer := func(result string) { go say(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)) }
	switch m.Method {
	case "initialize":
		answer(`{"protocolVersion":"2024-11-05","capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"old","version":"1"}}`)
	case "tools/list":
		answer(`{"tools":` + actTool + `}`)
	case "tools/call":
		if o.call != nil {
			go o.call(say, m, r)
			return
		}
		answer(`{"content":[]}`)
	}
}

func (o *oldServer) serve(t *testing.T) string {
	if o.endpoint == "" {
		o.endpoint = "/messages?s="
	}
	web := httptest.NewServer(o)
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	return web.URL + "/sse"
}

// A server of the first protocol is found by asking, or by being told.
func TestTheOldTransport(t *testing.T) {
	for _, p := range []Protocol{Auto, SSE} {
		o := &oldServer{}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: o.serve(t), Protocol: p, Refresh: time.Hour}}})
		for range 2 {
			if _, err := forward(t, s, "x__act", `{}`, func(f *gateway.Forward) {
				f.Lease = gateway.Lease{ID: "l", Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer b")}}
			}); err != nil {
				t.Fatal(err)
			}
		}
		if o.n != 3 || o.auth.Load() != "Bearer b" { // two streams are for listing
			t.Errorf("%d streams, with %q", o.n, o.auth.Load())
		}
		if era(s.servers["x"].era.Load()) != sseEra {
			t.Error("it is not known for what it is")
		}
	}
	// Nobody takes to it who is said to be of another time.
	o := &oldServer{}
	_, d := start(t, Config{Servers: []Server{{Name: "x", URL: o.serve(t), Protocol: Legacy}}})
	d.await(t, "server.down", "x", 1)
}

// The address to POST to gets the credential: it must be of the same origin.
func TestAnAddressElsewhereIsNotUsed(t *testing.T) {
	var reached atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer elsewhere.Close()
	for _, endpoint := range []string{elsewhere.URL + "/", "//" + elsewhere.Listener.Addr().String() + "/", "https://127.0.0.1/", "file:///etc/passwd?", "//user:pass@HOST/", "https://HOST/", "ftp://HOST/", "/x#", "\x7f:"} {
		o := &oldServer{endpoint: endpoint}
		s, d := start(t, Config{Servers: []Server{{Name: "x", URL: o.serve(t), Protocol: SSE}}})
		d.await(t, "server.down", "x", 1)
		_, err := s.Forward(t.Context(), gateway.Forward{Tool: gateway.Tool{Server: "x", Name: "act"}, Principal: gateway.Principal{Tenant: "a"}}, nil)
		if !errors.Is(err, gateway.ErrNotSent) || strings.Contains(err.Error(), "pass") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	if reached.Load() > 0 {
		t.Error("an address elsewhere was used")
	}
}

func TestSameOrigin(t *testing.T) {
	for address, want := range map[string]string{
		"/messages?s=1":       "http://h:1/messages?s=1",
		"messages":            "http://h:1/a/messages",
		"http://h:1/x":        "http://h:1/x",
		"?s=1":                "http://h:1/a/sse?s=1",
		"https://h:1/x":       "",
		"http://h/x":          "",
		"http://h:2/x":        "",
		"http://g:1/x":        "",
		"http://h:1@g/x":      "",
		"http://u:p@h:1/x":    "",
		"//g/x":               "",
		"/x#y":                "",
		"javascript:alert(1)": "",
		"http://[::1":         "",
	} {
		got, err := sameOrigin("http://h:1/a/sse", address)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%s is %s, %v", address, got, err)
		}
	}
}

func TestTheOldTransportInUse(t *testing.T) {
	o := &oldServer{}
	answers := make(chan string, 1)
	o.call = func(say func(string), m fakeMessage, _ *http.Request) {
		var p struct{ Arguments struct{ Do string } }
		json.Unmarshal(m.Params, &p)
		end := func() {
			say(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":%q}]}}`, m.ID, p.Arguments.Do))
		}
		switch p.Arguments.Do {
		case "progress":
			say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"call-1","progress":1}}`)
			say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}`)
			end()
		case "ask":
			say(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`)
			end()
		case "nobody's":
			say(`{"jsonrpc":"2.0","id":99999999999999999,"result":{}}`)
		case "flood":
			for range 1 << 16 {
				say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"` + strings.Repeat("x", 1000) + `"}}`)
			}
		case "hang":
			answers <- "began"
		}
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: o.serve(t), Protocol: SSE, MaxResponse: 1 << 18, Timeout: 10 * time.Second}}})
	e := &ear{asked: func(context.Context, string, json.RawMessage) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"roots":[]}`)}, nil
	}}
	r, err := forwardTo(t, s, "x__act", `{"do":"progress"}`, e, func(f *gateway.Forward) { f.Progress = true })
	if said(t, r, err); len(e.heard) != 2 {
		t.Errorf("heard %q", e.heard)
	}
	r, err = forwardTo(t, s, "x__act", `{"do":"ask"}`, e, able(allCaps))
	said(t, r, err)
	for _, bad := range []string{"nobody's", "flood"} {
		if _, err := forward(t, s, "x__act", `{"do":"`+bad+`"}`); !errors.Is(err, gateway.ErrBadAnswer) || errors.Is(err, gateway.ErrNotSent) {
			t.Errorf("%s: %v", bad, err)
		}
		r, err = forward(t, s, "x__act", `{"do":"progress"}`)
		said(t, r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-answers; cancel() }()
	tool, _ := s.Resolve("a", gateway.SortTool, "x__act")
	if _, err := s.Forward(ctx, gateway.Forward{Tool: tool, Args: json.RawMessage(`{"do":"hang"}`), Principal: gateway.Principal{Tenant: "a"}}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	for told := false; !told; {
		o.mu.Lock()
		told = o.posts[len(o.posts)-1] == "notifications/cancelled"
		o.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

// A server that speaks another era than it did is asked again. What it refused for
// that reason alone is sent again, as it did nothing.
func TestAServerThatChangesItsEra(t *testing.T) {
	legacy := new(atomic.Bool)
	f := &fake{modern: true, session: "s"}
	old := &fake{session: "s"}
	url := serveReal(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if legacy.Load() && r.Header.Get("MCP-Protocol-Version") == "2026-07-28" {
			w.Header().Set("Content-Type", contentJSON)
			w.WriteHeader(http.StatusBadRequest)
			var m fakeMessage
			json.NewDecoder(r.Body).Decode(&m)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32022,"message":"no","data":{"supported":["2025-11-25"]}}}`, m.ID)
			return
		}
		if legacy.Load() {
			old.ServeHTTP(w, r)
		} else {
			f.ServeHTTP(w, r)
		}
	}))
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, Refresh: time.Hour}}})
	for _, is := range []bool{false, true, false} {
		legacy.Store(is)
		if !is {
			s.pool.closeWhere(t.Context(), func(key) bool { return true }) // as a restart of it ends its sessions
		}
		if _, err := forward(t, s, "x__act", `{}`); err != nil {
			t.Fatalf("legacy=%v: %v", is, err)
		}
	}
	if n := f.count("tools/call") + old.count("tools/call"); n != 3 {
		t.Errorf("three calls were done %d times", n)
	}
	// One that says so for ever has done nothing, and is not asked for ever.
	f = &fake{modern: true, call: says(contentJSON, `{"jsonrpc":"2.0","id":ID,"error":{"code":-32022,"message":"no"}}`)}
	s, _ = start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Refresh: time.Hour}}})
	if _, err := forward(t, s, "x__act", `{}`); !errors.Is(err, gateway.ErrNotSent) || f.count("tools/call") != 2 {
		t.Errorf("%v, sent %d times", err, f.count("tools/call"))
	}
}

// What a legacy link answers in that code is an error like any other, whatever the
// server speaks by now: the call may have been done, and is not sent again.
func TestALegacyAnswerIsNoChangeOfEra(t *testing.T) {
	for e, moved := range map[era]bool{modernEra: true, legacyEra: false} {
		srv := &server{Server: Server{Name: "x"}}
		srv.era.Store(int32(modernEra))
		r, err := srv.answer(gateway.Forward{}, e, message{fault: json.RawMessage(`{"code":-32022,"message":"no"}`)})
		if errors.Is(err, errMoved) != moved || (r.Error == nil) != moved {
			t.Errorf("era %v: %s, %v", e, r.Error, err)
		}
	}
}

func TestAnIDThatNoHeaderHolds(t *testing.T) {
	for id, last := range map[string]string{"a b\tc é": "a b\tc é", "a\x01b": "e0", "a\x7fb": "e0", "\x00": "e0"} {
		e := &events{limit: 1000}
		_ = e.read(strings.NewReader("id: e0\n\nid: "+id+"\n\n"), nil)
		if e.last != last {
			t.Errorf("after %q the last is %q", id, e.last)
		}
	}
}

// A call that has left is not said to be unsent, whatever becomes of its stream.
func TestAContinuedStreamThatCannotBeHad(t *testing.T) {
	var url string
	for name, c := range map[string]struct {
		id  string
		get func(w http.ResponseWriter, r *http.Request)
	}{
		"an id that no header holds": {"a\x01b", nil},
		"another":                    {"a\x7fb", nil},
		"no HTTP": {"e1", func(w http.ResponseWriter, _ *http.Request) {
			c, b, _ := w.(http.Hijacker).Hijack()
			fmt.Fprint(b, "SSH-2.0-x\r\n\r\n")
			b.Flush()
			c.Close()
		}},
		"a status": {"e1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }},
	} {
		f := &fake{session: "s"}
		f.before = func(w http.ResponseWriter, r *http.Request, _ fakeMessage) bool {
			if r.Method != http.MethodGet || c.get == nil {
				return false
			}
			c.get(w, r)
			return true
		}
		f.call = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
			w.Header().Set("Content-Type", contentSSE)
			fmt.Fprintf(w, "id: %s\nretry: 1\ndata:\n\n", c.id)
		}
		url = f.serve(t)
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, Timeout: 5 * time.Second}}})
		for range 2 * trips {
			_, err := forward(t, s, "x__act", `{}`)
			if err == nil || errors.Is(err, gateway.ErrNotSent) && !errors.Is(err, errShort) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := f.count("GET"); c.get == nil && n > 0 {
			t.Errorf("%s: it was asked for the rest %d times", name, n)
		}
		if err := s.servers["x"].breaker.failing(workload{"b", "q"}); err != nil {
			t.Errorf("%s: another: %v", name, err)
		}
	}
}

// What we answer a server, or do for its sake, can fail before it is sent: the call that
// it was for has left all the same.
func TestAnAnswerToTheServerThatIsNotSent(t *testing.T) {
	if err := sent(notSent(errUnreachable)); errors.Is(err, gateway.ErrNotSent) || !errors.Is(err, errUnreachable) {
		t.Error(err)
	}
	gone := make(chan struct{})
	f := &fake{session: "s"}
	web := httptest.NewServer(f)
	f.call = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
		c, b, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		web.Listener.Close() // nothing more can be sent
		fmt.Fprint(b, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n\n")
		b.Flush()
		<-gone
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: web.URL, Protocol: Legacy, Timeout: 10 * time.Second}}})
	if _, err := forward(t, s, "x__act", `{}`, func(f *gateway.Forward) { f.Session = "other" }); err == nil || errors.Is(err, gateway.ErrNotSent) {
		t.Error(err)
	}
	close(gone)
	web.CloseClientConnections()
}
