package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway/audit"
)

// A counter is a server that counts the runs of its tool by the mark in their
// arguments, and holds those that say so until it lets them go.
type counter struct {
	url     string
	arrived chan string
	mu      sync.Mutex
	keys    map[string][]string // of idempotency, by mark: one a run
	held    map[string]chan struct{}
	gone    map[string]bool // whose connection ended, or that were cancelled, while they were held
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	c := &counter{arrived: make(chan string, 64), keys: map[string][]string{}, held: map[string]chan struct{}{}, gone: map[string]bool{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Arguments struct {
					Mark string
					Hold bool
				}
			}
		}
		if r.Method != "POST" {
			w.WriteHeader(405)
			return
		}
		_ = json.NewDecoder(bufio.NewReader(r.Body)).Decode(&in)
		reply := func(result string) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, in.ID, result)
		}
		switch in.Method {
		case "initialize":
			reply(`{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"counter","version":"1"}}`)
		case "tools/list":
			reply(`{"tools":[{"name":"run","inputSchema":{"type":"object","properties":{"mark":{"type":"string"},"hold":{"type":"boolean"}}}}]}`)
		case "tools/call":
			a := in.Params.Arguments
			n, wait := c.came(a.Mark, r.Header.Get("Idempotency-Key"))
			c.arrived <- a.Mark
			if a.Hold {
				select {
				case <-wait:
				case <-r.Context().Done():
					c.mu.Lock()
					c.gone[a.Mark] = true
					c.mu.Unlock()
					return
				}
			}
			reply(fmt.Sprintf(`{"content":[{"type":"text","text":"run %d of %s"}]}`, n, a.Mark))
		default:
			if in.ID == nil {
				w.WriteHeader(202)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, in.ID)
		}
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	c.url = s.URL
	return c
}

func (c *counter) came(mark, key string) (int, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[mark] = append(c.keys[mark], key)
	if c.held[mark] == nil {
		c.held[mark] = make(chan struct{})
	}
	return len(c.keys[mark]), c.held[mark]
}

// release lets the runs of a mark go, those to come too.
func (c *counter) release(mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[mark] == nil {
		c.held[mark] = make(chan struct{})
	}
	close(c.held[mark])
}

func (c *counter) runs(mark string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.keys[mark])
}

func (c *counter) left(mark string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone[mark]
}

// A repeater makes one call as often as it likes, each on a connection of its own.
type repeater struct {
	t                         *testing.T
	token, era, session, mark string
	hold                      bool
}

// dial sends the call to a replica.
func (r repeater) dial(h *House) net.Conn {
	r.t.Helper()
	meta, extra := "", "MCP-Protocol-Version: "+r.era+"\r\n"
	if r.era >= "2026" {
		meta = `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
		extra += "Mcp-Method: tools/call\r\nMcp-Name: c__run\r\n"
	}
	if r.session != "" {
		extra += "Mcp-Session-Id: " + r.session + "\r\n"
	}
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":77,"method":"tools/call","params":{"name":"c__run","arguments":{"mark":%q,"hold":%v}%s}}`, r.mark, r.hold, meta)
	host := strings.TrimPrefix(h.Agent, "http://")
	c, err := net.Dial("tcp", host)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_, err = fmt.Fprintf(c, "POST /mcp HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n%sContent-Length: %d\r\n\r\n%s",
		host, r.token, extra, len(body), body)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// read reads the answer.
func (r repeater) read(c net.Conn) string {
	r.t.Helper()
	out, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		r.t.Fatalf("%s: %v", r.mark, err)
	}
	text, err := io.ReadAll(out.Body)
	if err != nil {
		r.t.Fatalf("%s: %v", r.mark, err)
	}
	return string(text)
}

// A call that is repeated because its connection or its replica broke is run once,
// wherever it is repeated and however soon: the repetition reads what came of the first
// one, or that nobody knows.
func TestRepeatedCallsRunOnce(t *testing.T) {
	c := newCounter(t)
	r1 := newHouse(t, Options{Redis: redis(t), Servers: "  - {name: c, url: \"" + c.url + "\", idempotency: {header: Idempotency-Key}}\n", Policy: `
p, agent:a, acme, work, c/run,     call,  , allow
p, agent:*, *,    *,    task:work, start, , allow
`})
	r2 := r1.Replica("r2")
	_, token := r1.Task("agent:a")
	r1.shows(token, "c__run")
	r2.shows(token, "c__run")
	eras := []string{"2025-11-25", "2026-07-28"}
	caller := func(t *testing.T, era, mark string, hold bool) repeater {
		r := repeater{t: t, token: token, era: era, mark: mark + " " + era, hold: hold}
		if era < "2026" {
			r.session = newRaw(t, r1.MCP, token, era, "{}").session
		}
		return r
	}
	once := func(t *testing.T, r repeater, got string, want ...string) {
		t.Helper()
		if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(got, w) }) || c.runs(r.mark) != 1 {
			t.Errorf("%s: %d runs, the repetition read %.300s", r.mark, c.runs(r.mark), got)
		}
	}
	const unknown = `"code":"in_doubt"`

	for _, era := range eras {
		t.Run("the connection breaks, "+era, func(t *testing.T) {
			for i, on := range []*House{r1, r2, r2, r2, r2, r2} {
				r := caller(t, era, fmt.Sprint("break-", i), true)
				first := r.dial(r1)
				<-c.arrived
				first.Close()
				second := r.dial(on) // at once
				if era >= "2026" {
					once(t, r, r.read(second), unknown) // hanging up was a cancel
					continue
				}
				c.release(r.mark)
				once(t, r, r.read(second), "run 1 of "+r.mark)
				if c.left(r.mark) {
					t.Errorf("%s: hanging up cancelled the call", r.mark)
				}
			}
		})
		t.Run("the answer is not read, "+era, func(t *testing.T) {
			for i, on := range []*House{r1, r2, r1, r2} {
				r := caller(t, era, fmt.Sprint("unread-", i), false)
				first := r.dial(r1)
				<-c.arrived
				if _, err := first.Read(make([]byte, 1)); err != nil { // it is here, but for a byte nobody takes it
					t.Fatal(err)
				}
				first.Close()
				once(t, r, r.read(r.dial(on)), "run 1 of "+r.mark)
			}
		})
		t.Run("the replica is killed, "+era, func(t *testing.T) {
			here, there := caller(t, era, "kill-here", true), caller(t, era, "kill-there", true)
			here.dial(r2)
			there.dial(r2)
			<-c.arrived
			<-c.arrived
			r2.Kill()
			once(t, there, there.read(there.dial(r1)), unknown)
			r2.Start()
			once(t, here, here.read(here.dial(r2)), unknown)
		})
	}
	t.Run("one id twice at once in a session, on two replicas", func(t *testing.T) {
		for i := range 5 {
			r := caller(t, "2025-11-25", fmt.Sprint("twice-", i), true)
			one, other := r.dial(r1), r.dial(r2)
			<-c.arrived
			c.release(r.mark)
			once(t, r, r.read(one), "run 1 of "+r.mark)
			once(t, r, r.read(other), "run 1 of "+r.mark)
			once(t, r, r.read(r.dial(r2)), "run 1 of "+r.mark) // and later
		}
	})
	t.Run("other clients who count alike", func(t *testing.T) {
		r := caller(t, "2026-07-28", "alike", true)
		var all []net.Conn
		for i := range 20 {
			all = append(all, r.dial([]*House{r1, r2}[i%2]))
		}
		for range all {
			select {
			case <-c.arrived:
			case <-time.After(30 * time.Second):
				t.Fatalf("%d of %d run", c.runs(r.mark), len(all))
			}
		}
		c.release(r.mark)
		seen := map[string]bool{}
		for _, one := range all {
			seen[r.read(one)] = true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		keys := slices.Clone(c.keys[r.mark])
		slices.Sort(keys)
		if len(seen) != len(all) || len(slices.Compact(keys)) != len(all) {
			t.Errorf("%d clients got %d answers, by %d keys", len(all), len(seen), len(slices.Compact(keys)))
		}
	})
	t.Run("a cancel reaches the first one", func(t *testing.T) {
		for i, on := range []*House{r1, r2} {
			r := caller(t, "2025-11-25", fmt.Sprint("cancel-", i), true)
			first := r.dial(r1)
			<-c.arrived
			first.Close()
			client := raw{url: on.MCP, token: token, era: r.era, session: r.session}
			if err := client.notify(t.Context(), "notifications/cancelled", `{"requestId":77}`); err != nil {
				t.Fatal(err)
			}
			until(t, "the first one's end", func() bool { return c.left(r.mark) })
		}
	})
	r1.Stop()
	r2.Stop()
	r1.Verify()
	r2.Verify()
	for _, h := range []*House{r1, r2} {
		open := map[string]int{}
		for _, e := range h.Events() {
			switch e.Type {
			case audit.CallAllowed:
				open[e.Call.ID]++
			case audit.CallCompleted, audit.CallFailed, audit.CallCancelled, audit.CallInDoubt, audit.CallDenied:
				open[e.Call.ID] += 100
			}
		}
		for id, n := range open {
			if n%100 > 0 && n/100 != 1 {
				t.Errorf("call %s was allowed and has %d outcomes", id, n/100)
			}
		}
	}
}
