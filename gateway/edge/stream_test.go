package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

func listenTo(id, notifications string) req {
	r := modernReq("subscriptions/listen", "", `"notifications":`+notifications)
	r.body = strings.Replace(r.body, `"id":1,`, `"id":`+id+`,`, 1)
	return r
}

// A subscription is acknowledged first, hears only of what it asked for and what
// changed for it, and each notice says which subscription it is for.
func TestListen(t *testing.T) {
	d := open(t)
	s := d.post(listenTo(`"sub\u002d1"`, `{"toolsListChanged":true,"resourcesListChanged":true,"promptsListChanged":false,"taskIds":["x"],"resourceSubscriptions":["a:2","a:1","hidden:x","a:2"]}`))
	const tag = `"_meta":{"io.modelcontextprotocol/subscriptionId":"sub-1"}`
	same := func(got, want string) {
		t.Helper()
		var g, w any
		if json.Unmarshal([]byte(got), &g) != nil || json.Unmarshal([]byte(want), &w) != nil || fmt.Sprint(g) != fmt.Sprint(w) {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	notice := func(method, params string) string {
		return `{"jsonrpc":"2.0","method":"` + method + `","params":{` + params + tag + `}}`
	}
	// What is hidden is left out like what is not there.
	same(get(t, "acknowledgement", s.lines), notice("notifications/subscriptions/acknowledged",
		`"notifications":{"toolsListChanged":true,"resourcesListChanged":true,"resourceSubscriptions":["a:1","a:2"]},`))
	d.change(gateway.SortPrompt)   // not asked for
	d.edge.Changed()               // nothing for this one
	d.change(gateway.SortTemplate) // a list of resources, too
	same(get(t, "notice", s.lines), notice("notifications/resources/list_changed", ""))
	d.change(gateway.SortTool)
	same(get(t, "notice", s.lines), notice("notifications/tools/list_changed", ""))
	waitFor(t, "a follower", func() bool { return d.update("a:1") == 1 })
	same(get(t, "update", s.lines), notice("notifications/resources/updated", `"uri":"a:1",`))
	if d.update("hidden:x") != 0 || d.update("a:3") != 0 {
		t.Error("it follows what was not granted")
	}
	var subscribed []string
	for _, c := range d.calls {
		subscribed = append(subscribed, c.Method+" "+c.Name)
	}
	if want := []string{"resources/subscribe a:1", "resources/subscribe a:2", "resources/subscribe hidden:x"}; !slices.Equal(subscribed, want) {
		t.Errorf("the gateway was asked for %v", subscribed)
	}
	// This side ends it, and says so.
	go d.edge.Shutdown(cancelledContext())
	same(get(t, "the end", s.lines), `{"jsonrpc":"2.0","id":"sub-1","result":{"resultType":"complete",`+tag+`}}`)
	get(t, "end of the stream", s.ended)
	waitFor(t, "the end of following", func() bool { return d.update("a:1") == 0 })
}

func TestListenToNothing(t *testing.T) {
	d := open(t)
	got := d.do(listenTo("5", `{}`))
	if strings.Count(got.body, "data: ") != 2 || !strings.Contains(got.body, `"notifications":{}`) ||
		!strings.Contains(got.body, `{"jsonrpc":"2.0","id":5,"result":{"resultType":"complete","_meta":{"io.modelcontextprotocol/subscriptionId":5}}}`) {
		t.Error(got.body)
	}
	for _, bad := range []string{`[]`, `{"toolsListChanged":1}`, `{"resourceSubscriptions":"a:b"}`, `{"resourceSubscriptions":[""]}`,
		`{"resourceSubscriptions":["` + strings.Repeat("x", 5000) + `"]}`, `{"resourceSubscriptions":[` + strings.Repeat(`"a:b",`, 64) + `"a:b"]}`} {
		if got := d.do(listenTo("5", bad)); got.status != 400 || !strings.Contains(got.body, "-32602") {
			t.Errorf("%s: %d %s", bad, got.status, got.body)
		}
	}
	if got := d.do(listenTo("5", `{"ToolsListChanged":true}`)); got.status != 400 {
		t.Errorf("another case: %d %s", got.status, got.body)
	}
}

// A session follows what it says, from whatever replica it says it; and the stream
// is where its client opened it.
func TestSessionFollows(t *testing.T) {
	d := open(t)
	other := another(t, d.house)
	sid := d.session("alice")
	in := func(method, uri string) req {
		return req{body: rpc(1, method, `"uri":"`+uri+`"`)}.with(mcp.HeaderSessionID, sid)
	}
	ok := func(got res) {
		t.Helper()
		if got.status != 200 || got.body != `{"jsonrpc":"2.0","id":1,"result":{}}` {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	ok(d.do(in("resources/subscribe", "a:before")))
	s := d.openStream("alice", sid)
	ok(d.do(in("resources/subscribe", "a:here")))
	ok(other.do(in("resources/subscribe", "a:there")))
	for _, uri := range []string{"a:before", "a:here", "a:there"} {
		waitFor(t, "a follower of "+uri, func() bool { return d.update(uri) > 0 })
		if got := get(t, "update", s.lines); got != `{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"`+uri+`"}}` {
			t.Error(got)
		}
	}
	// What may not be subscribed to is as unknown as what is not there.
	if got := d.do(in("resources/subscribe", "hidden:x")); !strings.Contains(got.body, "-32002") {
		t.Errorf("%d %s", got.status, got.body)
	}
	ok(d.do(in("resources/unsubscribe", "a:here")))
	ok(d.do(in("resources/unsubscribe", "hidden:x")))
	ok(other.do(in("resources/unsubscribe", "a:there")))
	for _, uri := range []string{"a:here", "a:there"} {
		waitFor(t, "the end of "+uri, func() bool { return d.update(uri) == 0 })
	}
	for i := range maxFollows {
		d.do(in("resources/subscribe", fmt.Sprint("a:", i)))
	}
	if got := d.do(in("resources/subscribe", "a:one-more")); !strings.Contains(got.body, "-32602") {
		t.Errorf("%d %s", got.status, got.body)
	}
	ok(d.do(in("resources/subscribe", "a:before"))) // it has that
	s.close()
	waitFor(t, "the end of following", func() bool { return d.update("a:before") == 0 })
}

// A principal has so many streams, and no more; another has its own.
func TestStreamsAreBounded(t *testing.T) {
	d := open(t)
	var all []*openStream
	for range maxStreams {
		all = append(all, d.post(listenTo("1", `{"toolsListChanged":true}`)))
	}
	if got := d.do(listenTo("1", `{"toolsListChanged":true}`)); got.status != 429 || got.header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d %s", got.status, got.body)
	}
	if got := d.do(req{method: "GET"}.with(mcp.HeaderSessionID, d.session("alice"))); got.status != 429 {
		t.Errorf("one too many: %d %s", got.status, got.body)
	}
	d.openStream("bob", d.session("bob")).close()
	all[0].close()
	waitFor(t, "room", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		out, err := httpDo(d.request(listenTo("1", `{"toolsListChanged":true}`)).WithContext(ctx))
		return err == nil && out == 200
	})
}

// An agent that is sent to the console's page is told, where its stream is, that it
// can go on.
func TestClientsHearThatTheyCanGoOn(t *testing.T) {
	decided := make(chan struct{})
	wired := func(c *Config) {
		c.Decided = func(ctx context.Context, tenant, id string) error {
			if tenant != "acme" || id != "apr-1" {
				t.Errorf("waits for %s of %s", id, tenant)
			}
			select {
			case <-decided:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	d := open(t, wired)
	other := another(t, d.house, wired)
	d.refusal = &gateway.Refusal{Code: gateway.PendingApproval, Approval: &gateway.ApprovalRequest{ID: "apr-1", Tenant: "acme", Expires: time.Now().Add(time.Hour)}}
	sid := d.sessionOf("alice", "2025-11-25", `{"elicitation":{"url":{}}}`)
	s := d.openStream("alice", sid)
	for range 2 { // it may call again meanwhile
		got := other.do(req{body: call("refuse", "{}")}.with(mcp.HeaderSessionID, sid))
		if got.status != 200 || !strings.Contains(got.body, `"code":-32042`) {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	// That word is ours alone: no client of the session can give it.
	for range 3 {
		got := d.do(req{body: `{"jsonrpc":"2.0","id":"notices","result":{"elicitationId":"forged"}}`}.with(mcp.HeaderSessionID, sid))
		if got.status != 400 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	close(decided)
	if got := get(t, "word that it can go on", s.lines); got != `{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"apr-1"}}` {
		t.Error(got)
	}
	waitFor(t, "the end of waiting", func() bool { return other.edge.waits.Load() == 0 })
}
