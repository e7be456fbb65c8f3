package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
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
}

func (s *slowServer) Handle(ctx context.Context, c gateway.Call, _ gateway.Stream) (gateway.Result, error) {
	if _, _, err := s.Admit(ctx, c.Credential); err != nil {
		return gateway.Result{}, err
	}
	s.mu.Lock()
	s.runs++
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

func openSlow(t *testing.T) (*door, *slowServer, *gatewaytest.Attempts) {
	s := &slowServer{house: newHouse(), began: make(chan string, 8), end: make(chan error, 8)}
	kept := &gatewaytest.Attempts{}
	d := another(t, s.house, func(c *Config) { c.Gateway, c.Attempts = s, kept })
	return d, s, kept
}

// leave makes a call and hangs up while it is carried out.
func (d *door) leave(s *slowServer, r req) {
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
		d.edge.tries.mu.Lock()
		defer d.edge.tries.mu.Unlock()
		for _, all := range d.edge.tries.m {
			for _, one := range all {
				if one.client.Err() == nil {
					return false
				}
			}
		}
		return true
	})
}

// over waits until nothing is under way.
func (d *door) over() {
	d.Helper()
	waitFor(d.T, "the end of the call", func() bool {
		d.edge.tries.mu.Lock()
		defer d.edge.tries.mu.Unlock()
		return len(d.edge.tries.m) == 0
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
			d, s, _ := openSlow(t)
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
	d, s, _ := openSlow(t)
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

type forgetful struct{ gateway.Attempts }

func (forgetful) Broken(context.Context, string, string) (gateway.Attempt, bool, error) {
	return gateway.Attempt{}, false, errDown
}

// Two clients that count alike and ask the same do not wait for each other; a
// session that uses an id twice does.
func TestEqualCallsAtOnce(t *testing.T) {
	d, s, _ := openSlow(t)
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
	get(t, "first answer", out)
	get(t, "start", s.began)
	s.end <- nil
	get(t, "second answer", out)
}

// An answer that is too large to keep is as good as none.
func TestLargeAnswersAreNotKept(t *testing.T) {
	d, _, kept := openSlow(t)
	one := &try{key: "k", tenant: "acme"}
	for _, row := range []struct {
		size  int
		doubt bool
	}{{maxKept, false}, {maxKept + 1, true}} {
		d.edge.broke(t.Context(), one, result(make([]byte, row.size)), outcome{done: true})
		got, ok, err := kept.Broken(t.Context(), "acme", "k")
		if err != nil || !ok || got.Doubt != row.doubt || (got.Answer == nil) != row.doubt {
			t.Errorf("%d: %v %v %v", row.size, got.Doubt, ok, err)
		}
	}
}

// Cancelled by its own agent, a call is not broken.
func TestCancelledIsNotBroken(t *testing.T) {
	d, s, _ := openSlow(t)
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
