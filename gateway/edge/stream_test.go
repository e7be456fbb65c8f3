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
	s := d.post(listenTo(`"sub\u002d1"`, `{"toolsListChanged":true,"resourcesListChanged":true,"promptsListChanged":false,"taskIds":[],"resourceSubscriptions":["a:2","a:1","hidden:x","a:2"]}`))
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

func listenToTasks(token, caps, ids string) req {
	r := declaring(caps, "subscriptions/listen", "", `"notifications":{"taskIds":[`+ids+`]}`)
	r.token = token
	r.body = strings.Replace(r.body, `"id":1,`, `"id":"s1",`, 1)
	return r
}

// Who listens for a handle hears what tasks/get would say, when that is something
// new, and only of its own handles, while they run and it may ask for them.
func TestListenToHandles(t *testing.T) {
	const tag = `,"_meta":{"io.modelcontextprotocol/subscriptionId":"s1"}}}`
	const begins = `{"jsonrpc":"2.0","method":"notifications/tasks","params":{"taskId":"h1","status":`
	at := time.Date(2026, 11, 25, 7, 0, 0, 0, time.UTC)
	const times = `,"createdAt":"2026-11-25T07:00:00.000Z","lastUpdatedAt":"2026-11-25T07:00:00.000Z","ttlMs":null`
	d := open(t)
	d.handle = gateway.Handle{ID: "h1", Status: gateway.HandleWorking, Message: "waits", Created: at, Updated: at}
	s := d.post(listenToTasks("alice", tasksCap, `"h1","H 2","another","h1"`))
	if got := get(t, "acknowledgement", s.lines); !strings.Contains(got, `"notifications":{"taskIds":["h1"]}`) {
		t.Errorf("%s", got)
	}
	if got := get(t, "how it is", s.lines); got != begins+`"working","statusMessage":"waits"`+times+tag {
		t.Errorf("%s", got)
	}
	looks := func() (n int) { d.set(func() { n = len(d.calls) }); return n }
	waitFor(t, "a watcher", func() bool { return d.move("h1") == 1 })
	before := looks()
	waitFor(t, "a look", func() bool { d.move("h1"); return looks() > before }) // nothing new
	d.set(func() {
		d.handle.Status, d.handle.Message = gateway.HandleInput, ""
		d.handle.Wants = json.RawMessage(`{"k":{"method":"elicitation/create","params":{"message":"?"}}}`)
	})
	d.move("h1")
	// It is on something that this client cannot be asked, as tasks/get would have it.
	if got := get(t, "a question", s.lines); got != begins+`"working"`+times+tag {
		t.Errorf("%s", got)
	}
	d.set(func() { d.handle.ID = "its no more" })
	d.move("h1")
	d.set(func() { d.down = errDown })
	d.set(func() {
		d.handle.ID, d.handle.Status, d.handle.Wants = "h1", gateway.HandleCompleted, nil
		d.handle.Result.Raw = json.RawMessage(`{"content":[ {"type":"text","text":"<&>"} ],"n":12345678901234567890}`)
	})
	d.move("h1")
	d.set(func() { d.down = nil })
	const want = begins + `"completed"` + times + `,"result":{"resultType":"complete","content":[ {"type":"text","text":"<&>"} ],"n":12345678901234567890}` + tag
	if got := get(t, "its end", s.lines); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	// Of what has ended nothing more can come.
	if got := d.do(listenToTasks("alice", tasksCap, `"h1"`)); strings.Count(got.body, "data: ") != 2 || !strings.Contains(got.body, `"notifications":{}`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	// A task's end is the stream's, and of its handles nothing is heard any more.
	d.set(func() { d.ended["task-a"], d.handle.Message = true, "canary" })
	d.move("h1")
	if got := get(t, "the end", s.lines); !strings.Contains(got, `"id":"s1","result":{"resultType":"complete"`) || strings.Contains(got, "canary") {
		t.Errorf("%s", got)
	}
	waitFor(t, "the end of watching", func() bool { return d.move("h1") == 0 })
}

func TestListenToHandlesIsBounded(t *testing.T) {
	d := open(t)
	d.handle = gateway.Handle{ID: "h1", Status: gateway.HandleWorking}
	d.everyHandle = true
	ids := func(from, n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`"h%d"`, from+i))
		}
		return strings.Join(all, ",")
	}
	for name, row := range map[string]struct {
		req  req
		says string
	}{
		"undeclared": {listenToTasks("alice", `{}`, `"h1"`), `"code":-32021,"message":"this method needs the client capability io.modelcontextprotocol/tasks","data":{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}`},
		"too many":   {listenToTasks("alice", tasksCap, ids(0, maxFollows+1)), `"code":-32602`},
		"no name":    {listenToTasks("alice", tasksCap, `""`), `"code":-32602`},
		"too long":   {listenToTasks("alice", tasksCap, `"`+strings.Repeat("x", maxName+1)+`"`), `"code":-32602`},
		"a number":   {listenToTasks("alice", tasksCap, `7`), `"code":-32602`},
	} {
		if got := d.do(row.req); got.status != 400 || !strings.Contains(got.body, row.says) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	var all []*openStream
	for i := range maxWatched / maxFollows {
		s := d.post(listenToTasks("alice", tasksCap, ids(i*maxFollows, maxFollows)))
		get(t, "acknowledgement", s.lines)
		all = append(all, s)
	}
	status := func(token string) int {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		out, _ := httpDo(d.request(listenToTasks(token, tasksCap, `"more"`)).WithContext(ctx))
		return out
	}
	if got := status("alice"); got != 429 {
		t.Errorf("one too many: %d", got)
	}
	if got := status("bob"); got != 200 {
		t.Errorf("another's: %d", got)
	}
	all[0].close()
	waitFor(t, "room", func() bool { return status("alice") == 200 })
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
	other := another(t, d.house, wired) // dies before anybody decides
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
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = other.edge.Shutdown(ended)
	close(decided)
	if got := get(t, "word that it can go on", s.lines); got != `{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"apr-1"}}` {
		t.Error(got)
	}
	waitFor(t, "that it is forgotten", func() bool {
		one, err := d.house.kept.Session(t.Context(), sid)
		return err == nil && len(one.Awaits) == 0
	})
}

// It hears so as well where its stream was away meanwhile; and of the newest only,
// where there are too many.
func TestClientsHearLaterThatTheyCanGoOn(t *testing.T) {
	d := open(t, func(c *Config) {
		c.Decided = func(_ context.Context, _, id string) error {
			if id == "apr-gone" {
				return gateway.ErrNotFound
			}
			return nil
		}
	})
	sid := d.sessionOf("alice", "2025-11-25", `{"elicitation":{"url":{}}}`)
	want := map[string]bool{}
	send := func(id string) {
		d.set(func() {
			d.refusal = &gateway.Refusal{Code: gateway.PendingApproval, Approval: &gateway.ApprovalRequest{ID: id, Tenant: "acme", Expires: time.Now().Add(time.Hour)}}
		})
		if got := d.do(req{body: call("refuse", "{}")}.with(mcp.HeaderSessionID, sid)); !strings.Contains(got.body, `"code":-32042`) {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	for i := range maxAwaits {
		send(fmt.Sprint("apr-", i))
		if i > 0 { // the oldest makes room
			want[`{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"`+fmt.Sprint("apr-", i)+`"}}`] = true
		}
	}
	send("apr-gone")
	want[`{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"apr-gone"}}`] = true
	s := d.openStream("alice", sid)
	for len(want) > 0 {
		got := get(t, "word that it can go on", s.lines)
		if !want[got] {
			t.Fatalf("%s: twice, or not to be told", got)
		}
		delete(want, got)
	}
	waitFor(t, "that they are forgotten", func() bool {
		one, err := d.house.kept.Session(t.Context(), sid)
		return err == nil && len(one.Awaits) == 0
	})
}
