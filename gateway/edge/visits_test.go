package edge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

func doneWith(id string) string {
	return `{"method":"notifications/elicitation/complete","params":{"elicitationId":"` + id + `","x":1}}`
}

func doneNotice(id string) string {
	return `{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"` + id + `"}}`
}

// visit sends a session to a page, by a call that asks for it, and lets it agree.
func (d *door) visit(sid, id string) {
	d.Helper()
	in := func(body string) req { return req{body: body}.with(mcp.HeaderSessionID, sid) }
	s := d.post(in(asking(7, strings.ReplaceAll(urlAsk, "e1", id))))
	a := readAsk(d.T, s)
	if got := d.do(in(`{"jsonrpc":"2.0","id":"` + a.ID + `","result":{"action":"accept"}}`)); got.status != 202 {
		d.Fatalf("%d %s", got.status, got.body)
	}
	get(d.T, "answer", s.lines)
	get(d.T, "the end of the call", s.ended)
}

// That a user is done with a page which a server sent them to, the session that was
// asked hears once, where its stream is; nobody else hears it, and of nothing else.
func TestVisitsThatAreOver(t *testing.T) {
	d := open(t).canAsk()
	other := another(t, d.house)
	sid, theirs := d.sessionOf("alice", "2025-11-25", everyCap), d.sessionOf("bob", "2025-11-25", everyCap)
	mine, bobs := other.openStream("alice", sid), d.openStream("bob", theirs)
	d.visit(sid, "e1")
	d.visit(sid, "e2")
	d.visit(sid, "e1") // once more, by another server
	for _, one := range []struct{ session, id string }{
		{theirs, "e1"}, {sid, "unknown"}, {"no session", "e1"}, {"", ""}, // nobody is told
		{sid, "e1"}, {sid, "e1"}, {sid, "e1"}, // the third is one too many
	} {
		d.edge.Completed(one.session, one.id)
	}
	other.edge.Completed(sid, "e2") // that is not the replica that asked
	waitFor(t, "everybody is told", func() bool { return d.edge.waits.Load() == 0 })
	d.edge.Completed(sid, "e2")
	for _, want := range []string{"e1", "e1", "e2"} {
		if got := get(t, "word", mine.lines); got != doneNotice(want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	// An error can name pages, too.
	d.result = gateway.Result{Error: json.RawMessage(`{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","elicitationId":"e5","url":"https://x.example","message":"m"},{"mode":"form","elicitationId":"e6"}]}}`)}
	if got := d.do(req{body: call("raw", "{}")}.with(mcp.HeaderSessionID, sid)); !strings.Contains(got.body, "-32042") {
		t.Fatalf("%d %s", got.status, got.body)
	}
	d.edge.Completed(sid, "e6") // that is a form
	waitFor(t, "everybody is told", func() bool { return d.edge.waits.Load() == 0 })
	d.edge.Completed(sid, "e5")
	if got := get(t, "word", mine.lines); got != doneNotice("e5") {
		t.Errorf("%s", got)
	}
	d.visit(sid, "e7")
	if got := d.do(req{method: "DELETE"}.with(mcp.HeaderSessionID, sid)); got.status/100 != 2 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	waitFor(t, "nothing is remembered of a session that ended", func() bool {
		d.edge.visits.mu.Lock()
		defer d.edge.visits.mu.Unlock()
		return len(d.edge.visits.m) == 0
	})
	if len(bobs.lines) > 0 {
		t.Errorf("another session heard %s", <-bobs.lines)
	}
}

// What is over while the call goes on is said on the call's own stream, once.
func TestVisitsThatAreOverDuringTheCall(t *testing.T) {
	d := open(t).canAsk()
	sid := d.sessionOf("alice", "2025-11-25", everyCap)
	in := func(body string) req { return req{body: body}.with(mcp.HeaderSessionID, sid) }
	s := d.post(in(asking(7, doneWith("e1"), urlAsk, doneWith("unknown"), doneWith("e1"), doneWith("e1"))))
	a := readAsk(t, s)
	if got := d.do(in(`{"jsonrpc":"2.0","id":"` + a.ID + `","result":{"action":"accept"}}`)); got.status != 202 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := get(t, "word", s.lines); got != doneNotice("e1") {
		t.Errorf("%s", got)
	}
	if got := get(t, "answer", s.lines); !strings.Contains(got, `"id":7,"result"`) {
		t.Errorf("%s", got)
	}
	// A client that never said that it can open pages hears of none.
	plain := d.sessionOf("alice", "2025-11-25", `{"elicitation":{"form":{}}}`)
	if got := d.do(req{body: asking(7, urlAsk, doneWith("e1"))}.with(mcp.HeaderSessionID, plain)); strings.Contains(got.body, `"method":"notifications/elicitation`) {
		t.Errorf("%s", got.body)
	}
}

func TestVisitsAreBounded(t *testing.T) {
	var v visits
	v.sent("forms", visit{"form", "a form"})
	if v.take("forms", "a form") {
		t.Error("a form is a page")
	}
	for i := range 2 * maxVisits {
		v.sent("s", visit{"url", fmt.Sprint(i)})
	}
	v.sent("", visit{"url", "nobody's"})
	v.sent("long", visit{"url", strings.Repeat("x", maxIDBytes+1)})
	for i := range maxVisitors + 5 {
		v.sent(fmt.Sprint("s", i), visit{"url", "e"})
	}
	if len(v.m["s"]) > maxVisits || len(v.m) > maxVisitors || v.m[""] != nil || v.m["long"] != nil {
		t.Errorf("%d of one session, of %d sessions", len(v.m["s"]), len(v.m))
	}
}
