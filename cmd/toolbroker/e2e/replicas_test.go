package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway/audit"
)

// at is the same client, at another replica.
func (c *raw) at(h *House) *raw {
	other := *c
	other.url = h.MCP
	return &other
}

// idOf is the id of a JSON-RPC message.
func idOf(t *testing.T, message string) string {
	t.Helper()
	var m struct{ ID json.RawMessage }
	if err := json.Unmarshal([]byte(message), &m); err != nil || m.ID == nil {
		t.Fatalf("%v: %s", err, message)
	}
	return string(m.ID)
}

// reply answers what a server asked.
func (c *raw) reply(t *testing.T, id, result string) int {
	t.Helper()
	r, err := c.request(t.Context(), "POST", strings.NewReader(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, id, result)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// twoReplicas are two processes on one Redis, before a legacy server that has
// everything, and both show it.
func twoReplicas(t *testing.T) (a, b *House, token string, server *eraServer) {
	t.Helper()
	server = newEraServer(t, false)
	a = newHouse(t, Options{Redis: redis(t), Policy: eraRows, Approvals: "{hold: 1s}", Servers: fmt.Sprintf("  - {name: legacy, url: %q, protocol: legacy}\n", server.url)})
	b = a.Replica("r2")
	_, token = a.Task("agent:a")
	a.shows(token, "legacy__echo")
	b.shows(token, "legacy__echo")
	return a, b, token, server
}

// calls waits until a call gets past a busy machine, and returns its answer.
func (c *raw) calls(t *testing.T, method, params string) rpcAnswer {
	t.Helper()
	for {
		a, err := c.do(t.Context(), method, params)
		if err != nil {
			t.Fatal(err)
		}
		if !busy(a.Body) {
			return a
		}
	}
}

// A legacy session belongs to its agent and not to a process: each replica knows it,
// what a server asks over one is answered over another, and so are calls cancelled
// and the session ended.
func TestSessionAcrossReplicas(t *testing.T) {
	for _, era := range clientEras[1:] {
		t.Run(era, func(t *testing.T) {
			a, b, token, server := twoReplicas(t)
			here := newRaw(t, a.MCP, token, era, `{"elicitation":{},"sampling":{},"roots":{}}`)
			there := here.at(b)
			there.id = 1000 // the session's ids are the client's to keep apart

			if got := there.calls(t, "tools/call", `{"name":"legacy__echo","arguments":{"v":2}}`).text(); got != `{"v":2}` {
				t.Fatalf("the session at another replica: %s", got)
			}
			// Not anybody's who knows its id, there or here.
			_, strange := a.Task("agent:a")
			for _, h := range []*House{a, b} {
				thief := here.at(h)
				thief.token = strange
				if resp, err := thief.do(t.Context(), "tools/list", ""); err == nil && resp.Error == nil {
					t.Errorf("another task's token in this session: %s", resp.Body)
				}
			}

			asked := here.stream(t, t.Context(), "tools/call", `{"name":"legacy__ask_form","arguments":{}}`)
			question := asked.next(t, "elicitation/create")
			if code := there.reply(t, `"ask-0000"`, `{"action":"decline"}`); code != http.StatusBadRequest {
				t.Errorf("an answer to nothing: %d", code)
			}
			if code := there.reply(t, idOf(t, question), `{"action":"accept","content":{"name":"Ada"}}`); code != http.StatusAccepted {
				t.Errorf("the answer: %d", code)
			}
			if got := asked.next(t, `"result"`); !strings.Contains(got, "accept Ada") {
				t.Errorf("its call ended with %s", got)
			}
			if code := there.reply(t, idOf(t, question), `{"action":"decline"}`); code != http.StatusBadRequest {
				t.Errorf("a second answer: %d", code)
			}

			// A call that says nothing has no answer that could be read yet.
			here.id++
			hung, number := make(chan error, 1), fmt.Sprint(here.id)
			go func() {
				resp, err := here.post(context.WithoutCancel(t.Context()), number, "tools/call", `{"_meta":{"progressToken":"p"},"name":"legacy__hang","arguments":{"v":3}}`)
				if err == nil {
					for range newStream(resp).messages {
					}
				}
				hung <- err
			}()
			until(t, "the call to hang", func() bool { return a.Count(audit.CallAllowed) >= 2 })
			for n, stopped := 0, false; !stopped; n++ { // it may be on its way still
				if n == 20 {
					t.Fatal("the call at the other replica was not cancelled")
				}
				if err := there.notify(t.Context(), "notifications/cancelled", fmt.Sprintf(`{"requestId":%s}`, number)); err != nil {
					t.Fatal(err)
				}
				select {
				case <-server.stopped:
					stopped = true
				case <-time.After(time.Second):
				}
			}
			if err := <-hung; err != nil {
				t.Error(err)
			}

			notices := here.notices(t, t.Context())
			r, err := there.request(t.Context(), "DELETE", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("DELETE: %s", resp.Status)
			}
			notices.ends(t)
			for _, c := range []*raw{there, here} {
				until(t, "the session to be over at each replica", func() bool {
					resp, err := c.post(t.Context(), "77", "tools/list", "")
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					return resp.StatusCode == http.StatusNotFound
				})
			}
			for _, h := range []*House{a, b} {
				h.Stop()
				h.Verify()
			}
		})
	}
}

// counting is a server of 2026-07-28 that says how often its tools ran. Those whose
// names end in waits wait until release is closed, or nobody listens any more, which
// is told on left.
func counting(t *testing.T) (url string, runs *atomic.Int32, arrived, left, release chan struct{}) {
	t.Helper()
	runs, arrived, left, release = new(atomic.Int32), make(chan struct{}, 64), make(chan struct{}, 64), make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			ID     json.RawMessage
			Method string
			Params struct{ Name string }
		}
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		io.Copy(io.Discard, r.Body) // net/http watches the connection only behind the body
		d := &deed{w: w, r: r, id: in.ID}
		switch in.Method {
		case "server/discover":
			d.says(discovered)
		case "tools/list":
			open := `{"type":"object"}`
			d.lists(tool("guarded", open), tool("guarded-waits", open), tool("waits", open))
		case "tools/call":
			n := runs.Add(1)
			arrived <- struct{}{}
			if strings.HasSuffix(in.Params.Name, "waits") {
				select {
				case <-release:
				case <-r.Context().Done():
					left <- struct{}{}
				}
			}
			d.says(fmt.Sprintf(`{"content":[{"type":"text","text":"run %d"}]}`, n))
		default:
			d.fails(-32601)
		}
	}))
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	return web.URL, runs, arrived, left, release
}

const countingRows = `
p, agent:a, acme, work, c/guarded*, call,  , approve
p, agent:a, acme, work, c/waits,    call,  , allow
p, agent:*, *,    *,    task:work,  start, , allow
`

// handles looks at a task of the extension until it is over, and returns its last state.
func (c *raw) handles(t *testing.T, id string) (last string) {
	t.Helper()
	until(t, "the task to be over", func() bool {
		a, err := c.do(t.Context(), "tasks/get", fmt.Sprintf(`{"taskId":%q}`, id))
		if err != nil {
			t.Fatal(err)
		}
		last = a.Body
		return !busy(last) && !strings.Contains(last, `"status":"working"`)
	})
	return last
}

// A handle is in Redis and not in a process: made at one replica, it is looked at, and
// its approved call carried out, at another, once, however many look; also where the
// first one died meanwhile.
func TestHandleAcrossReplicas(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprint("killed: ", dies), func(t *testing.T) {
			url, runs, _, _, _ := counting(t)
			a := newHouse(t, Options{Redis: redis(t), Policy: countingRows, Servers: fmt.Sprintf("  - {name: c, url: %q}\n", url)})
			b := a.Replica("r2")
			_, token := a.Task("agent:a")
			a.shows(token, "c__guarded")
			b.shows(token, "c__guarded")
			here := newRaw(t, a.MCP, token, "2026-07-28", `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
			there := here.at(b)
			made := here.calls(t, "tools/call", `{"name":"c__guarded","arguments":{}}`)
			id := made.handle()
			if id == "" {
				t.Fatalf("no handle: %s", made.Body)
			}
			if got := there.calls(t, "tasks/get", fmt.Sprintf(`{"taskId":%q}`, id)); !strings.Contains(got.Body, `"status":"working"`) {
				t.Fatalf("looked at elsewhere: %s", got.Body)
			}
			if dies {
				a.Kill()
			}
			bob := b.Login("bob")
			if code := b.Vote(bob, b.Pending(bob), true); code != 200 {
				t.Fatalf("vote: %d", code)
			}
			// All look at once.
			at := []*raw{there, here}
			if dies {
				at = at[:1]
			}
			looks := make(chan string)
			for n := range 8 {
				c := *at[n%len(at)]
				c.id = 100 * n
				go func() {
					a, err := c.do(t.Context(), "tasks/get", fmt.Sprintf(`{"taskId":%q}`, id))
					looks <- fmt.Sprint(a.Body, err)
				}()
			}
			for range 8 {
				<-looks
			}
			for _, c := range at {
				if last := c.handles(t, id); !strings.Contains(last, `"status":"completed"`) || !strings.Contains(last, "run 1") {
					t.Errorf("it came to %s", last)
				}
			}
			if n := runs.Load(); n != 1 {
				t.Errorf("it ran %d times", n)
			}
			if dies {
				a.Verify()
				a.Start()
				if last := here.handles(t, id); !strings.Contains(last, "run 1") {
					t.Errorf("after the restart: %s", last)
				}
			}
			for _, h := range []*House{a, b} {
				h.Stop()
				h.Verify()
			}
			if n := runs.Load(); n != 1 {
				t.Errorf("it ran %d times", n)
			}
		})
	}
}

// A replica that dies while it carries out a handle's call leaves it in doubt: another
// says so, and nobody does it again.
func TestHandleInDoubt(t *testing.T) {
	url, runs, arrived, _, _ := counting(t)
	a := newHouse(t, Options{Redis: redis(t), Policy: countingRows, Servers: fmt.Sprintf("  - {name: c, url: %q}\n", url)})
	b := a.Replica("r2")
	_, token := a.Task("agent:a")
	a.shows(token, "c__guarded-waits")
	b.shows(token, "c__guarded-waits")
	here := newRaw(t, a.MCP, token, "2026-07-28", `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	id := here.calls(t, "tools/call", `{"name":"c__guarded-waits","arguments":{}}`).handle()
	bob := b.Login("bob")
	if code := b.Vote(bob, b.Pending(bob), true); code != 200 {
		t.Fatalf("vote: %d", code)
	}
	here.calls(t, "tasks/get", fmt.Sprintf(`{"taskId":%q}`, id))
	<-arrived
	a.Kill()
	if last := here.at(b).handles(t, id); !strings.Contains(last, `"status":"failed"`) || !strings.Contains(last, "in_doubt") {
		t.Errorf("it came to %s", last)
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	b.Stop()
	b.Verify()
}
