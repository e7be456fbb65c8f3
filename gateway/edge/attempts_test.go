package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// A slowServer carries calls out when it is let, whether their agents wait or not.
type slowServer struct {
	*house
	began chan string
	end   chan error // what comes of the call; nil: done
	mu    sync.Mutex
	runs  int
	once  []string
}

func (s *slowServer) Handle(ctx context.Context, c gateway.Call, _ gateway.Stream) (gateway.Result, error) {
	if _, _, err := s.Admit(ctx, c.Credential); err != nil {
		return gateway.Result{}, err
	}
	if c.Begin != nil {
		if err := c.Begin()(ctx); err != nil {
			return gateway.Result{}, err
		}
	}
	s.mu.Lock()
	s.runs++
	s.once = append(s.once, c.Once)
	s.mu.Unlock()
	s.began <- c.JSONRPCID
	if err := <-s.end; err != nil {
		return gateway.Result{}, err
	}
	return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"done"}]}`)}, nil
}

func (s *slowServer) ran() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs
}

// A slowDoor is one before a slow server.
type slowDoor struct {
	*door
	kept *gatewaytest.Attempts
}

func openSlow(t *testing.T) (*slowDoor, *slowServer) {
	s := &slowServer{house: newHouse(), began: make(chan string, 8), end: make(chan error, 8)}
	kept := &gatewaytest.Attempts{}
	d := another(t, s.house, func(c *Config) { c.Gateway, c.Attempts = s, kept })
	return &slowDoor{d, kept}, s
}

// leave makes a call and hangs up while it is carried out.
func (d *slowDoor) leave(s *slowServer, r req) {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	hr := d.request(r).WithContext(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if out, err := http.DefaultClient.Do(hr); err == nil {
			_, _ = bufio.NewReader(out.Body).ReadString(0)
			out.Body.Close()
		}
	}()
	get(d.T, "start of the call", s.began)
	cancel()
	<-gone
	waitFor(d.T, "the door's word of it", func() bool {
		n, gone := d.kept.Running()
		return n == gone
	})
}

// over waits until nothing is under way.
func (d *slowDoor) over() {
	d.Helper()
	waitFor(d.T, "the end of the call", func() bool {
		n, _ := d.kept.Running()
		return n == 0
	})
}

// A call whose answer did not arrive is not run twice: its repetition gets the
// first one's answer, or is told that nobody knows.
func TestRepeatedCalls(t *testing.T) {
	modernCall := modernReq("tools/call", "echo", `"name":"echo","arguments":{"a":1}`)
	legacyCall := req{body: call("echo", `{"a":1}`)}
	inDoubt := &gateway.Refusal{Code: gateway.Downstream, InDoubt: true, CallID: "call-7"}
	for _, row := range []struct {
		name        string
		first       req
		became      error // of the first
		second      req
		says        string
		runs        int
		whileItRuns bool // the second comes in before the first is over
	}{
		{"done, modern", modernCall, nil, modernCall, `"resultType":"complete","content":[{"type":"text","text":"done"}]`, 1, false},
		{"done, legacy", legacyCall, nil, legacyCall, `"result":{"content":[{"type":"text","text":"done"}]}`, 1, false},
		{"done, and the repetition came first", legacyCall, nil, legacyCall, `"text":"done"`, 1, true},
		{"in doubt", legacyCall, inDoubt, legacyCall, `{"code":"in_doubt","call":"call-7","next":"check_before_repeating"}`, 1, false},
		{"in doubt, and the repetition came first", legacyCall, inDoubt, legacyCall, `IN_DOUBT: `, 1, true},
		{"refused", legacyCall, &gateway.Refusal{Code: gateway.Denied}, legacyCall, `"text":"done"`, 2, false},
		{"never sent", legacyCall, &gateway.Refusal{Code: gateway.Cancelled}, legacyCall, `"text":"done"`, 2, true},
		{"another id", legacyCall, nil, req{body: strings.Replace(legacyCall.body, `"id":1`, `"id":2`, 1)}, `"text":"done"`, 2, false},
		{"an id that only looks the same", legacyCall, nil, req{body: strings.Replace(legacyCall.body, `"id":1`, `"id":"1"`, 1)}, `"text":"done"`, 2, false},
		{"other bytes", legacyCall, nil, req{body: call("echo", `{"a": 1}`)}, `"text":"done"`, 2, false},
		{"another principal", legacyCall, nil, req{token: "bob", body: legacyCall.body}, `"text":"done"`, 2, false},
		{"a spelling of the same id", req{body: strings.Replace(legacyCall.body, `"id":1`, `"id":"a"`, 1)}, nil,
			req{body: strings.Replace(legacyCall.body, `"id":1`, `"id":"\u0061"`, 1)}, `"id":"\u0061","result":{"content":[{"type":"text","text":"done"}]}`, 1, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, s := openSlow(t)
			d.leave(s, row.first)
			second := make(chan res, 1)
			if row.whileItRuns {
				go func() { second <- d.do(row.second) }()
				waitFor(t, "the repetition", func() bool {
					d.edge.mu.Lock()
					defer d.edge.mu.Unlock()
					return d.edge.inside == 2
				})
			}
			s.end <- row.became
			if !row.whileItRuns {
				d.over()
				go func() { second <- d.do(row.second) }()
			}
			if row.runs == 2 {
				get(t, "start of the second", s.began)
				s.end <- nil
			}
			got := get(t, "answer to the second", second)
			if !strings.Contains(got.body, row.says) || s.ran() != row.runs {
				t.Errorf("%d %s, %d runs", got.status, got.body, s.ran())
			}
		})
	}
}

// Whose task is over reads nothing more of what it did.
func TestRepeatedCallAfterItsTask(t *testing.T) {
	d, s := openSlow(t)
	r := req{body: call("echo", "{}")}
	d.leave(s, r)
	s.end <- nil
	d.over()
	d.set(func() { d.ended["task-a"] = true })
	if got := d.do(r); !strings.Contains(got.body, "NO_TASK") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// What cannot be looked up is not run.
func TestRepeatedCallWhileNobodyCanTell(t *testing.T) {
	s := &slowServer{house: newHouse(), began: make(chan string, 8), end: make(chan error, 8)}
	d := another(t, s.house, func(c *Config) { c.Gateway, c.Attempts = s, forgetful{} })
	if got := d.do(req{body: call("echo", "{}")}); !strings.Contains(got.body, "INTERNAL") || strings.Contains(got.body, "redis") || s.ran() != 0 {
		t.Errorf("%d %s", got.status, got.body)
	}
	// Reading has no attempts.
	if got := d.do(req{body: rpc(1, "tools/list", "")}); !strings.Contains(got.body, `"tools":[`) {
		t.Errorf("%d %s", got.status, got.body)
	}
}

type forgetful struct{ gateway.Try }

func (f forgetful) Begin(gateway.Run) gateway.Try { return f }

func (forgetful) Begun(context.Context) (gateway.Attempt, bool, error) {
	return gateway.Attempt{}, false, errDown
}

func (forgetful) End(gateway.RunEnd, gateway.Attempt) {}

// Two clients that count alike and ask the same do not wait for each other; a
// session that uses an id twice does.
func TestEqualCallsAtOnce(t *testing.T) {
	d, s := openSlow(t)
	r := modernReq("tools/call", "echo", `"name":"echo"`)
	out := make(chan res, 2)
	for range 2 {
		go func() { out <- d.do(r) }()
	}
	for range 2 {
		get(t, "start", s.began)
	}
	for range 2 {
		s.end <- nil
		if got := get(t, "answer", out); !strings.Contains(got.body, "done") {
			t.Error(got.body)
		}
	}
	in := req{body: call("echo", "{}")}.with(mcp.HeaderSessionID, d.session("alice"))
	for range 2 {
		go func() { out <- d.do(in) }()
	}
	get(t, "start", s.began)
	waitFor(t, "both", func() bool {
		d.edge.mu.Lock()
		defer d.edge.mu.Unlock()
		return d.edge.inside == 2
	})
	if s.ran() != 3 {
		t.Error("an id was used twice at once in one session")
	}
	s.end <- nil
	for range 2 {
		if got := get(t, "answer", out); !strings.Contains(got.body, "done") {
			t.Error(got.body)
		}
	}
	// Answered, it is answered from that for as long as it is kept, and nowhere else.
	if got := d.do(in); !strings.Contains(got.body, "done") || s.ran() != 3 {
		t.Errorf("%s, %d runs", got.body, s.ran())
	}
	s.end <- nil
	d.do(in.with(mcp.HeaderSessionID, d.session("alice")))
	if s.ran() != 4 {
		t.Errorf("%d runs", s.ran())
	}
	if o := s.once; o[0] != "" || o[1] != "" || o[2] == "" || o[3] == "" || o[2] == o[3] {
		t.Errorf("what can only be the same call made again: %q", o)
	}
}

// Hanging up is a cancel in the modern era only; before it the call goes on.
func TestHangingUp(t *testing.T) {
	for _, row := range []struct {
		name    string
		r       req
		cancels bool
	}{
		{"2026-07-28", modernReq("tools/call", "hold", `"name":"hold"`), true},
		{"without a session", req{body: call("hold", "{}")}, false},
		{"in a session", req{body: call("hold", "{}")}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHouse()
			s := &patientServer{house: h, began: make(chan context.Context, 8), end: make(chan struct{})}
			kept := &gatewaytest.Attempts{}
			d := &slowDoor{another(t, h, func(c *Config) { c.Gateway, c.Attempts = s, kept }), kept}
			if row.name == "in a session" {
				row.r = row.r.with(mcp.HeaderSessionID, d.session("alice"))
			}
			c := d.dial(row.r)
			ctx := get(t, "start of the call", s.began)
			c.Close()
			waitFor(t, "the door's word of it", func() bool {
				n, gone := kept.Running()
				return n == gone
			})
			if row.cancels {
				<-ctx.Done()
				d.over()
				return
			}
			if ctx.Err() != nil {
				t.Error("hanging up cancelled the call")
			}
			out := make(chan res, 1)
			go func() { out <- d.do(row.r) }()
			waitFor(t, "the repetition", func() bool {
				d.edge.mu.Lock()
				defer d.edge.mu.Unlock()
				return d.edge.inside == 2
			})
			close(s.end)
			if got := get(t, "answer", out); !strings.Contains(got.body, "patience") || len(s.began) != 0 {
				t.Error(got.body)
			}
		})
	}
}

// A patientServer also tells its agent of something before it answers.
type patientServer struct {
	*house
	began chan context.Context
	end   chan struct{}
}

func (s *patientServer) Handle(ctx context.Context, c gateway.Call, back gateway.Stream) (gateway.Result, error) {
	if err := c.Begin()(ctx); err != nil {
		return gateway.Result{}, err
	}
	s.began <- ctx
	select {
	case <-s.end:
	case <-ctx.Done():
		return gateway.Result{}, &gateway.Refusal{Code: gateway.Cancelled, InDoubt: true}
	}
	if back != nil {
		for range 3 {
			if err := back.Notify(ctx, "notifications/message", json.RawMessage(`{"level":"error","data":"hello"}`)); err != nil {
				return gateway.Result{}, err
			}
		}
	}
	return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"patience"}]}`)}, nil
}

// dial sends a request on a connection of its own.
func (d *door) dial(r req) net.Conn {
	d.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { c.Close() })
	if err := d.request(r).Write(c); err != nil {
		d.Fatal(err)
	}
	return c
}

// An answer that was written is not one that was read: one that is left unread is kept
// for the repetition, and one that was read is not.
func TestUnreadAnswers(t *testing.T) {
	modernCall := modernReq("tools/call", "echo", `"name":"echo","arguments":{"a":1}`)
	all := func(c net.Conn) error {
		out, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, out.Body)
		}
		return err
	}
	for _, row := range []struct {
		name   string
		r      req
		client func(net.Conn) error
		runs   int
	}{
		{"unread", modernCall, func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); c.Close(); return err }, 1},
		{"unread, and we close", modernCall.with("Connection", "close"), func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); c.Close(); return err }, 1},
		{"read, and closed", modernCall, func(c net.Conn) error { err := all(c); c.Close(); return err }, 2},
		{"read, and we close", modernCall.with("Connection", "close"), func(c net.Conn) error { return all(c) }, 2},
		{"read, and kept open", modernCall, all, 2},
		{"not read yet", modernCall, func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.runs == 1 && runtime.GOOS != "linux" {
				t.Skip("nobody says so at once")
			}
			d, s := openSlow(t)
			s.end <- nil
			c := d.dial(row.r)
			if err := row.client(c); err != nil {
				t.Fatal(err)
			}
			s.end <- nil
			if got := d.do(modernCall); !strings.Contains(got.body, "done") || s.ran() != row.runs {
				t.Errorf("%s, %d runs", got.body, s.ran())
			}
		})
	}
}

// A repetition that its agent cancels cancels the first one.
func TestCancelledRepetition(t *testing.T) {
	h := newHouse()
	s := &patientServer{house: h, began: make(chan context.Context, 8), end: make(chan struct{})}
	kept := &gatewaytest.Attempts{}
	d := &slowDoor{another(t, h, func(c *Config) { c.Gateway, c.Attempts = s, kept }), kept}
	far := &slowDoor{another(t, h, func(c *Config) { c.Gateway, c.Attempts = s, kept }), kept}
	for _, where := range []*slowDoor{d, far} {
		sid := d.session("alice")
		r := req{body: call("hold", "{}")}.with(mcp.HeaderSessionID, sid)
		first := d.dial(r)
		ctx := get(t, "start", s.began)
		first.Close()
		out := make(chan res, 1)
		go func() { out <- where.do(r) }()
		waitFor(t, "the repetition", func() bool {
			where.edge.local.mu.Lock()
			defer where.edge.local.mu.Unlock()
			u := where.edge.local.sessions[sid]
			return u != nil && len(u.calls) == map[bool]int{true: 2, false: 1}[where == d]
		})
		where.do(req{body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`}.with(mcp.HeaderSessionID, sid))
		<-ctx.Done()
		get(t, "end of the repetition", out)
		d.over()
	}
}

// Cancelled by its own agent, a call is not broken.
func TestCancelledIsNotBroken(t *testing.T) {
	d, s := openSlow(t)
	sid := d.session("alice")
	in := func(body string) req { return req{body: body}.with(mcp.HeaderSessionID, sid) }
	out := make(chan res, 1)
	go func() { out <- d.do(in(call("echo", "{}"))) }()
	get(t, "start", s.began)
	d.do(in(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`))
	s.end <- &gateway.Refusal{Code: gateway.Downstream, InDoubt: true, Err: errors.New("sent")}
	if got := get(t, "no answer", out); got.status != 202 {
		t.Errorf("%d %s", got.status, got.body)
	}
	go func() { out <- d.do(in(call("echo", "{}"))) }()
	get(t, "start of another", s.began)
	s.end <- nil
	get(t, "answer", out)
}
