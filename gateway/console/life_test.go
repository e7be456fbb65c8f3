package console_test

import (
	"fmt"
	"html"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"toolbroker/authz"
	"toolbroker/gateway"
)

func scope(t testing.TB, rows ...authz.ScopeRow) *authz.Scope {
	t.Helper()
	s, err := authz.NewScope(rows)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// family is a task with one below it that has one below it, as an orchestrator
// and its agents leave them, and a standing task of somebody's editor.
func (h *house) family(t testing.TB) {
	t.Helper()
	now := time.Now()
	wide := scope(t, authz.ScopeRow{Tool: "issues/*", Action: "call", Verdict: "allow"}, authz.ScopeRow{Tool: "wiki/**", Action: "*", When: `args.space == "support"`, Verdict: "approve 1 of group:sre"})
	narrow := scope(t, authz.ScopeRow{Tool: "issues/get", Action: "call", Verdict: "allow"})
	root := gateway.Task{
		ID: "task-root", Tenant: "acme", Kind: "triage", Purpose: "Sort what came in over the weekend", Owner: "oscar", OnBehalfOf: "dana@example.test",
		Principal: "spiffe://corp/agent/planner-1", StartedBy: "agent:orchestrator", Reference: "TICKET-8812", Labels: []string{"support", "weekend"},
		Approvers: []string{"bob", "group:sre"},
		Claims: gateway.Claims{
			Owner: gateway.Proven, OnBehalfOf: gateway.Asserted, Purpose: gateway.Asserted, Reference: gateway.Proven, Labels: gateway.Asserted, Approvers: gateway.Proven,
		},
		Budget: gateway.Budget{Calls: 500, PerDay: 2000}, Limits: gateway.Limits{Depth: 2, FanOut: 8}, Scope: wide,
		Widened: []gateway.Widening{
			{Approval: "apr-90", Rows: []authz.ScopeRow{{Tool: "billing/refund", Action: "call", When: "args.amount < 50", Verdict: "allow"}}, Until: now.Add(25 * time.Minute), By: []string{"bob"}},
			{Approval: "apr-89", Rows: []authz.ScopeRow{{Tool: "billing/export", Action: "call", Verdict: "allow"}}, Until: now.Add(-time.Minute), By: []string{"carol"}},
		},
		State: gateway.TaskRunning, Started: now.Add(-time.Hour), Expires: now.Add(time.Hour),
	}
	above := []gateway.Ancestor{{ID: root.ID, Kind: root.Kind, Principal: root.Principal, Scope: wide}}
	child := gateway.Task{
		ID: "task-child", Tenant: "acme", Kind: "read", Purpose: "Find duplicates", Owner: "oscar", OnBehalfOf: "dana@example.test", Principal: "agent:reader", StartedBy: root.Principal,
		Claims: gateway.Claims{Owner: gateway.Proven, OnBehalfOf: gateway.Asserted, Purpose: gateway.Asserted}, Parent: root.ID, Ancestors: above, Scope: narrow,
		State: gateway.TaskRunning, Started: now.Add(-time.Minute), Expires: now.Add(time.Hour),
	}
	leaf := child
	leaf.ID, leaf.Principal, leaf.Parent, leaf.State, leaf.Outcome = "task-leaf", "agent:helper", child.ID, gateway.TaskEnding, gateway.TaskEnded
	leaf.Ancestors = append(above[:1:1], gateway.Ancestor{ID: child.ID, Kind: child.Kind, Principal: child.Principal, Scope: narrow})
	leaf.Ended, leaf.EndedBy = now.Add(-time.Second), "agent:reader"
	standing := gateway.Task{
		ID: "task-standing", Tenant: "acme", Kind: "interactive", Purpose: "What people ask their editor for", Owner: "oscar", Principal: "agent:editor", StartedBy: "agent:editor",
		Claims: gateway.Claims{Owner: gateway.Proven, Purpose: gateway.Proven}, Implicit: true, Own: true, Scope: narrow,
		State: gateway.TaskRunning, Started: now.Add(-time.Minute), Expires: now.Add(10 * time.Minute),
	}
	over := gateway.Task{
		ID: "task-over", Tenant: "acme", Kind: "refund", Purpose: "Refund order 8812", Owner: "oscar", Principal: "agent:refund", StartedBy: "operator:oscar",
		Claims: gateway.Claims{Owner: gateway.Proven, Purpose: gateway.Proven}, Scope: narrow, State: gateway.TaskRevoked, Started: now.Add(-2 * time.Hour), Expires: now.Add(time.Hour),
		Ended: now.Add(-time.Hour), EndedBy: "stop", Why: "It paid twice", Outcome: gateway.TaskRevoked, Closed: now.Add(-59 * time.Minute), Widened: root.Widened[:1],
	}
	old := over
	old.ID, old.State, old.EndedBy, old.Why = "task-old", gateway.TaskExpired, "expiry", ""
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range []gateway.Task{old, over, standing, root, child, leaf} {
		h.tasks = append(h.tasks, &t)
	}
}

// growth makes a request one for more scope.
func growth(r *gateway.ApprovalRequest) {
	r.Kind, r.Server, r.Tool, r.Alias, r.Class = "escalation", "toolbroker", "request_access", "toolbroker__request_access", ""
	r.Asserted, r.Approvers, r.TaskChain = []string{"on_behalf_of", "approvers"}, []string{"alice", "group:sre"}, []string{"task-root", "task-child"}
	r.TaskFor = "dana@example.test"
	r.Args = []byte(`{"tools":["billing/refund","billing/export"],"minutes":30,"reason":"The customer was charged twice\u202e and security agreed <b>already</b>"}`)
}

func stopped() []gateway.Stop {
	at := time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)
	return []gateway.Stop{
		{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "spiffe://corp/agent/refund-7", By: "operator:alice", Reason: "It paid twice", At: at},
		{Tenant: "acme", Kind: gateway.StopStanding, Name: "agent:editor", By: "operator:bob", Reason: "Ended by hand\u200b", At: at.Add(-time.Hour)},
		{Tenant: "*", Kind: gateway.StopTenant, By: "operator:root", Reason: "Drill", At: at.Add(time.Hour)},
	}
}

func TestPicturesOfLives(t *testing.T) {
	if os.Getenv("CONSOLE_SHOTS") == "" {
		t.Skip("skipped: CONSOLE_SHOTS names no directory for pictures")
	}
	ctx := browse(t)
	h := newHouse(t)
	base := serve(t, h)
	h.family(t)
	h.ask("apr-1")
	h.ask("apr-2", growth)
	h.ask("apr-3", growth, func(r *gateway.ApprovalRequest) { r.State, r.Args = gateway.ApprovalConsumed, nil })
	h.stops = stopped()
	run(t, ctx, logIn(base, "root", "whole world"))
	for size, view := range map[string]chromedp.Action[chromedp.Void]{
		"laptop": chromedp.EmulateViewport(1280, 800), "phone": chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile),
	} {
		run(t, ctx, view)
		for name, path := range map[string]string{
			"list": "/", "tasks": "/tasks", "root": "/tasks/acme/task-root", "leaf": "/tasks/acme/task-leaf", "standing": "/tasks/acme/task-standing", "over": "/tasks/acme/task-over",
			"stops": "/stops", "more": "/approvals/acme/apr-2", "more-used": "/approvals/acme/apr-3",
		} {
			run(t, ctx, chromedp.Navigate(base+path), chromedp.Sleep(1200*time.Millisecond), shot(size+"-"+name))
		}
	}
}

// wordsOf is a page's text as it is read: words apart that stand apart.
func wordsOf(page string) string {
	return strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(page, " "))), " ")
}

func TestTreeOfTasks(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	a := v.get("/tasks")
	order := regexp.MustCompile(`<a href="/tasks/acme/(task-[a-z]+)">`).FindAllStringSubmatch(a.body, -1)
	var ids []string
	for _, m := range order {
		ids = append(ids, m[1])
	}
	if got := strings.Join(ids, " "); got != "task-root task-child task-leaf task-standing task-over task-old" {
		t.Errorf("in the order %s", got)
	}
	for id, want := range map[string]string{"task-root": "live", "task-child": "live below b1", "task-leaf": "over below b2", "task-standing": "live", "task-over": "over"} {
		if !regexp.MustCompile(`<li class="request task ` + want + `">\s*<h3><a href="/tasks/acme/` + id + `">`).MatchString(a.body) {
			t.Errorf("%s does not look %q", id, want)
		}
	}
	text := visible(a.body)
	for _, want := range []string{"Running", "Ending", "Revoked", "Expired", "implicit", "delegated by spiffe://corp/agent/planner-1 → agent:reader", "at most 500 calls, 2000 a day", "TICKET-8812", "weekend", "billing/refund"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(text, "billing/export") {
		t.Error("scope that has lapsed stands as if it counted")
	}
	if n := strings.Count(a.body, "End it now"); n != 3 {
		t.Errorf("%d tasks can be ended, of 3 that run", n)
	}
	if n := strings.Count(text, "it stays stopped"); n != 1 {
		t.Errorf("%d tasks stay stopped, of 1 that is implicit", n)
	}
	h.mu.Lock()
	h.tasks = h.tasks[4:] // the root is forgotten
	h.mu.Unlock()
	if a := v.get("/tasks"); !strings.Contains(visible(a.body), "below task-root") {
		t.Error("a child whose parent is gone does not say so")
	}
}

func TestALongListOfTasksEnds(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	for i := range 600 {
		h.tasks = append(h.tasks, &gateway.Task{ID: fmt.Sprint("task-", i), Tenant: "acme", Kind: "triage", State: gateway.TaskEnded})
	}
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	a := v.get("/tasks")
	if n := strings.Count(a.body, "<h3>"); n != 500 || !strings.Contains(a.body, "106 older tasks are not shown") || !strings.Contains(a.body, "task-leaf") {
		t.Errorf("%d tasks on the page, or those that run are not among them", n)
	}
}

// Each claim carries what its starter's word is worth, and what is not recorded
// as proven is not proven.
func TestClaims(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	text := wordsOf(v.get("/tasks/acme/task-root").body)
	for _, want := range []string{
		"On behalf of dana@example.test says its starter", "Owner oscar proven", "Reference TICKET-8812 proven", "Labels support weekend says its starter",
		"Who may approve only bob , group:sre proven", "Says its starter. Nobody has checked it. Sort what came in",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	h.tasks[3].Claims = gateway.Claims{}
	text = wordsOf(v.get("/tasks/acme/task-root").body)
	if strings.Contains(text, "proven") || !strings.Contains(text, "Owner oscar says its starter") {
		t.Error("claims of which nothing is recorded look proven")
	}
}

func TestTaskPage(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	base := serve(t, h)
	alice, bob, vera := visit(t, base), visit(t, base), visit(t, base)
	alice.logIn("alice", "correct horse")
	bob.logIn("bob", "battery staple")
	vera.logIn("vera", "look only")
	text := visible(alice.get("/tasks/acme/task-leaf").body)
	for _, want := range []string{"issues/get", "wiki/**", `args.space == "support"`, "approve 1 of group:sre", "task-root", "task-child", "agent:helper", "Ending"} {
		if !strings.Contains(text, want) {
			t.Errorf("a task two below lacks %q", want)
		}
	}
	text = visible(alice.get("/tasks/acme/task-root").body)
	for _, want := range []string{"args.amount < 50", "apr-90", "granted by bob", "Was added on request, and has lapsed", "billing/export", "2 deep, 8 at once", "task-child", "works for whoever holds it"} {
		if !strings.Contains(text, want) {
			t.Errorf("the root lacks %q", want)
		}
	}
	for path, c := range map[string]struct {
		v    *visitor
		want int
	}{
		"/tasks/acme/task-root": {bob, 404}, "/tasks/globex/task-root": {bob, 404}, "/tasks/acme/task-nope": {alice, 404}, "/tasks/ACME/task-root": {alice, 404}, "/tasks/acme/task-over": {vera, 200},
	} {
		if a := c.v.get(path); a.StatusCode != c.want {
			t.Errorf("GET %s: %d, want %d", path, a.StatusCode, c.want)
		}
	}
	if a := vera.get("/tasks/acme/task-root"); strings.Contains(a.body, "End it now") {
		t.Error("a viewer sees a button to end a task")
	}
	f := alice.get("/tasks/acme/task-standing").form(t, "/tasks/acme/task-standing/end")
	for name, c := range map[string]struct {
		v      *visitor
		path   string
		form   url.Values
		header []string
		want   int
	}{
		"no token":           {alice, "task-standing", url.Values{}, nil, 403},
		"another task's":     {alice, "task-root", f, nil, 403},
		"another session's":  {vera, "task-standing", f, nil, 403},
		"from another site":  {alice, "task-standing", f, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"a foreign tenant's": {bob, "task-standing", f, nil, 403},
	} {
		if a := c.v.post("/tasks/acme/"+c.path+"/end", c.form, c.header...); a.StatusCode != c.want || h.tasks[2].State != gateway.TaskRunning || h.tasks[3].State != gateway.TaskRunning {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
	}
	if a := alice.post("/tasks/acme/task-standing/end", f); a.StatusCode != 303 || a.Header.Get("Location") != "/tasks/acme/task-standing" || h.tasks[2].State != gateway.TaskEnded {
		t.Errorf("ending: %d to %s", a.StatusCode, a.Header.Get("Location"))
	}
}

// A closed task's page counts nothing down, asks nothing of anybody and does not
// load itself again; one that is ending does, until it is closed.
func TestNothingLivesOnAClosedTasksPage(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	a := v.get("/tasks/acme/task-over")
	_, main, _ := strings.Cut(a.body, "<main")
	for _, live := range []string{"<form", "data-tick", "data-live", "data-pulse", "lapses", "<button"} {
		if strings.Contains(main, live) {
			t.Errorf("it has %s", live)
		}
	}
	if strings.Contains(a.body, `http-equiv="refresh"`) || !strings.Contains(a.body, "Everything of it is gone.") || !strings.Contains(a.body, "It paid twice") {
		t.Error("it loads itself again, or does not say how it ended")
	}
	if a := v.get("/tasks/acme/task-leaf"); !strings.Contains(a.body, `http-equiv="refresh"`) || strings.Contains(a.body, "End it now") || strings.Contains(a.body, "Everything of it is gone") {
		t.Error("a task that is ending does not look so")
	}
}

func TestStops(t *testing.T) {
	reason := func(f url.Values) { f.Set("reason", "drill") }
	for name, c := range map[string]struct {
		who, path string
		edit      func(url.Values)
		header    []string
		status    int
		want      string // the stop, as tenant kind name reason
	}{
		"a workload":               {"alice", "/stops/acme/principal", func(f url.Values) { reason(f); f.Set("name", " spiffe://corp/agent/planner-1 ") }, nil, 303, "acme principal spiffe://corp/agent/planner-1 drill"},
		"an owner":                 {"alice", "/stops/acme/owner", func(f url.Values) { reason(f); f.Set("name", "oscar") }, nil, 303, "acme owner oscar drill"},
		"a human":                  {"alice", "/stops/acme/human", func(f url.Values) { reason(f); f.Set("name", "dana@example.test") }, nil, 303, "acme human dana@example.test drill"},
		"a tenant":                 {"alice", "/stops/acme/tenant", reason, nil, 303, "acme tenant  drill"},
		"a tenant has no name":     {"alice", "/stops/acme/tenant", func(f url.Values) { reason(f); f.Set("name", "x") }, nil, 303, "acme tenant  drill"},
		"everything":               {"root", "/stops/everything", func(f url.Values) { reason(f); f.Set("confirm", "STOP") }, nil, 303, "* tenant  drill"},
		"everything, unconfirmed":  {"root", "/stops/everything", reason, nil, 422, ""},
		"everything, half a word":  {"root", "/stops/everything", func(f url.Values) { reason(f); f.Set("confirm", "stop") }, nil, 422, ""},
		"everything, no reason":    {"root", "/stops/everything", func(f url.Values) { f.Set("confirm", "STOP") }, nil, 422, ""},
		"no reason":                {"alice", "/stops/acme/tenant", func(f url.Values) { f.Set("reason", " \r\n") }, nil, 422, ""},
		"no name":                  {"alice", "/stops/acme/principal", func(f url.Values) { reason(f); f.Set("name", " ") }, nil, 422, ""},
		"no token":                 {"alice", "/stops/acme/tenant", func(f url.Values) { reason(f); f.Del("token") }, nil, 403, ""},
		"from another site":        {"alice", "/stops/acme/tenant", reason, []string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
		"from another origin":      {"alice", "/stops/acme/tenant", reason, []string{"Origin", "https://evil.test"}, 403, ""},
		"another kind's token":     {"alice", "/stops/acme/tenant", func(f url.Values) { reason(f); f.Set("token", "principal's") }, nil, 403, ""},
		"a standing one is not":    {"alice", "/stops/acme/standing", reason, nil, 404, ""},
		"a foreign tenant's":       {"alice", "/stops/globex/tenant", reason, nil, 403, ""},
		"no tenant's name":         {"alice", "/stops/ACME/tenant", reason, nil, 404, ""},
		"without the right":        {"vera", "/stops/acme/tenant", reason, nil, 403, ""},
		"everything, of one's own": {"alice", "/stops/everything", func(f url.Values) { reason(f); f.Set("confirm", "STOP") }, nil, 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			v := visit(t, serve(t, h))
			v.logIn(c.who, h.passwords[c.who])
			page := v.get("/stops")
			f := url.Values{}
			if strings.Contains(page.body, `action="`+c.path+`"`) {
				f = page.form(t, c.path)
			}
			if c.edit(f); f.Get("token") == "principal's" {
				f.Set("token", page.form(t, "/stops/acme/principal").Get("token"))
			}
			a := v.post(c.path, f, c.header...)
			got := ""
			for _, s := range h.stops {
				got += strings.Join([]string{s.Tenant, string(s.Kind), s.Name, s.Reason}, " ")
			}
			if a.StatusCode != c.status || got != c.want {
				t.Errorf("%d and %q, want %d and %q", a.StatusCode, got, c.status, c.want)
			}
			if c.status == 422 && (!strings.Contains(a.body, "Nothing was stopped.") || c.who == "alice" && f.Get("reason") == "drill" && !strings.Contains(a.body, `value="drill"`)) {
				t.Error("the form does not come back as it was, with what was wrong")
			}
		})
	}
}

func TestStopsAreSeenAndLifted(t *testing.T) {
	h := newHouse(t)
	h.stops = stopped()
	base := serve(t, h)
	alice, root, vera, bob := visit(t, base), visit(t, base), visit(t, base), visit(t, base)
	for name, v := range map[string]*visitor{"alice": alice, "root": root, "vera": vera, "bob": bob} {
		v.logIn(name, h.passwords[name])
	}
	page := alice.get("/stops")
	text := visible(page.body)
	for _, want := range []string{
		"Workload spiffe://corp/agent/refund-7", "It paid twice", "by operator:alice", "2026-11-23 04:05:06 UTC", "Implicit task of agent:editor", "⟦U+200B⟧", "Everything, of every tenant",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for name, c := range map[string]struct {
		v           *visitor
		lift, forms int
	}{"alice": {alice, 2, 4}, "root": {root, 3, 9}, "vera": {vera, 0, 0}, "bob": {bob, 0, 0}} {
		a := c.v.get("/stops")
		if lift, forms := strings.Count(a.body, "Lift it now"), strings.Count(a.body, `class="no">Stop`); lift != c.lift || forms != c.forms {
			t.Errorf("%s can lift %d and stop in %d ways, want %d and %d", name, lift, forms, c.lift, c.forms)
		}
	}
	if a := bob.get("/stops"); strings.Contains(a.body, "refund-7") || strings.Contains(a.body, "acme") {
		t.Error("a neighbour's stops are shown")
	}

	var forms []url.Values // of alice, in the page's order
	for _, part := range strings.Split(page.body, `action="/stops/lift"`)[1:] {
		forms = append(forms, answer{body: `action="x"` + part}.form(t, "x"))
	}
	one, two := forms[0], forms[1]
	swapped := url.Values{"token": two["token"], "tenant": one["tenant"], "kind": one["kind"], "name": one["name"]}
	for name, c := range map[string]struct {
		v      *visitor
		form   url.Values
		header []string
		want   int
	}{
		"no token":          {alice, url.Values{"tenant": one["tenant"], "kind": one["kind"], "name": one["name"]}, nil, 403},
		"another stop's":    {alice, swapped, nil, 403},
		"another session's": {root, one, nil, 403},
		"from another site": {alice, one, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"everything's":      {alice, url.Values{"token": one["token"], "tenant": {"*"}, "kind": {"tenant"}, "name": {""}}, nil, 403},
	} {
		if a := c.v.post("/stops/lift", c.form, c.header...); a.StatusCode != c.want || len(h.stops) != 3 {
			t.Errorf("%s: %d, %d stops left", name, a.StatusCode, len(h.stops))
		}
	}
	for _, f := range forms {
		if a := alice.post("/stops/lift", f); a.StatusCode != 303 || a.Header.Get("Location") != "/stops" {
			t.Errorf("lift: %d", a.StatusCode)
		}
	}
	if len(h.stops) != 1 || h.stops[0].Tenant != "*" {
		t.Errorf("left: %v", h.stops)
	}
	if a := alice.post("/stops/lift", one); a.StatusCode != 404 || !strings.Contains(wordsOf(a.body), "There is no stop of "+one.Get("kind")+" ") || !strings.Contains(a.body, " in acme, so nothing was lifted.") {
		t.Errorf("lifted twice: %d %s", a.StatusCode, wordsOf(a.body))
	}
	all := root.get("/stops").form(t, "/stops/lift")
	if a := root.post("/stops/lift", all); a.StatusCode != 303 || len(h.stops) != 0 {
		t.Errorf("lift everything: %d, %v", a.StatusCode, h.stops)
	}
}

func TestEscalationIsNoCall(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1", growth, func(r *gateway.ApprovalRequest) { r.Implicit = true })
	h.ask("apr-2")
	h.ask("apr-3", growth, func(r *gateway.ApprovalRequest) { r.Args = []byte(`{"tool":"billing/refund"}`) })
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	a := v.get("/approvals/acme/apr-1")
	text := wordsOf(a.body)
	for _, want := range []string{
		"An agent asks for more scope on this task", "This is no single call", "Tools billing/refund billing/export", "minutes 30", "The agent’s reason. Nobody has checked it.",
		"charged twice ⟦U+202E⟧ and security agreed <b>already</b>", "Only its starter says, and nobody has proven: on whose behalf it is, who may approve .", "Task is for dana@example.test says its starter",
		"lets only alice , group:sre answer. says its starter", "task-root → task-child", "Nobody declared this task", "as the agent wrote them", `{"tools":["billing/refund","billing/export"],"minutes":30,`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(text, "asks to call") || strings.Contains(text, "will be sent") || strings.Contains(a.body, "<b>already") {
		t.Error("an escalation reads like a call, or its reason is markup")
	}
	if text := visible(v.get("/approvals/acme/apr-2").body); strings.Contains(text, "more scope") || strings.Contains(text, "Only its starter says") || strings.Contains(text, "lets only") {
		t.Error("a call reads like an escalation")
	}
	if a := v.get("/approvals/acme/apr-3"); !strings.Contains(a.body, "It cannot be told which tools are meant") {
		t.Error("an escalation that names no tools does not say so")
	}
	if list := v.get("/"); strings.Count(list.body, "More scope on") != 2 || strings.Contains(list.body, "request_access") {
		t.Error("the list does not tell escalations from calls")
	}
	f := a.form(t, "/approvals/acme/apr-1/vote")
	f.Set("answer", "approve")
	if a := v.post("/approvals/acme/apr-1/vote", f); a.StatusCode != 303 || h.requests[0].State != gateway.ApprovalGranted {
		t.Errorf("granting: %d", a.StatusCode)
	}
	if text := visible(v.get("/approvals/acme/apr-1").body); !strings.Contains(text, "lapses by itself") || strings.Contains(text, "with these bytes") {
		t.Error("a granted escalation reads like a granted call")
	}
}

func TestAPIOfLives(t *testing.T) {
	h := newHouse(t)
	h.family(t)
	v := visit(t, serve(t, h))
	token := map[string]string{}
	for name, password := range h.passwords {
		token[name] = api(t, v, "POST", "/api/v1/login", `{"name":"`+name+`","password":"`+password+`"}`, "").str("token")
	}
	const wish = `"kind":"triage","purpose":"x","principal":"agent:a","ttl_seconds":60,"scope":[{"tool":"issues/*","action":"call","verdict":"allow"}],"reference":"T-1","labels":["a","b"],"approvers":["group:sre"],"calls":7`
	for _, c := range []struct {
		name, who, path, body string
		status                int
		code                  string
	}{
		{"a task with all there is", "alice", "/api/v1/tasks", `{"tenant":"acme","on_behalf_of":"dora",` + wish + `}`, 201, ""},
		{"calls below nothing", "alice", "/api/v1/tasks", `{"tenant":"acme","kind":"triage","calls":-1}`, 400, "bad_request"},
		{"a label that is no text", "alice", "/api/v1/tasks", `{"tenant":"acme","kind":"triage","labels":[1]}`, 400, "bad_request"},
		{"a proven claim cannot be sent", "alice", "/api/v1/tasks", `{"tenant":"acme","kind":"triage","claims":{"owner":"proven"}}`, 400, "bad_request"},
		{"delegate", "alice", "/api/v1/tasks/acme/task-root/delegate", `{` + wish + `}`, 201, ""},
		{"delegate for another human", "alice", "/api/v1/tasks/acme/task-root/delegate", `{"kind":"triage","on_behalf_of":"eve"}`, 400, "bad_request"},
		{"delegate into another tenant", "alice", "/api/v1/tasks/acme/task-root/delegate", `{"kind":"triage","tenant":"globex"}`, 400, "bad_request"},
		{"delegate, members twice", "alice", "/api/v1/tasks/acme/task-root/delegate", `{"kind":"triage","kind":"triage"}`, 400, "bad_request"},
		{"delegate, endless", "alice", "/api/v1/tasks/acme/task-root/delegate", `{"kind":"triage","ttl_seconds":9223372036854775807}`, 400, "bad_request"},
		{"delegate below an ended one", "alice", "/api/v1/tasks/acme/task-over/delegate", `{` + wish + `}`, 404, "not_found"},
		{"delegate where there is no room", "alice", "/api/v1/tasks/acme/task-child/delegate", `{` + wish + `}`, 403, "forbidden"},
		{"delegate without the right", "vera", "/api/v1/tasks/acme/task-root/delegate", `{` + wish + `}`, 403, "forbidden"},
		{"delegate a neighbour's", "bob", "/api/v1/tasks/acme/task-root/delegate", `{` + wish + `}`, 404, "not_found"},
		{"delegate nobody's", "alice", "/api/v1/tasks/acme/task-nope/delegate", `{` + wish + `}`, 404, "not_found"},
		{"delegate without a login", "", "/api/v1/tasks/acme/task-root/delegate", `{` + wish + `}`, 401, "login"},

		{"stop a workload", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"principal","name":"agent:a","reason":"r"}`, 204, ""},
		{"delegate to a stopped one", "alice", "/api/v1/tasks/acme/task-root/delegate", `{` + wish + `}`, 409, "stopped"},
		{"stop a nameless workload", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"principal","reason":"r"}`, 400, "bad_request"},
		{"stop a tenant by another name", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"tenant","name":"x","reason":"r"}`, 400, "bad_request"},
		{"stop what is no kind", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"all","name":"x","reason":"r"}`, 400, "bad_request"},
		{"stop without a reason", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"tenant","reason":" "}`, 400, "bad_request"},
		{"stop with more than there is", "alice", "/api/v1/stops", `{"tenant":"acme","kind":"tenant","reason":"r","by":"bob"}`, 400, "bad_request"},
		{"stop a neighbour", "alice", "/api/v1/stops", `{"tenant":"globex","kind":"tenant","reason":"r"}`, 404, "not_found"},
		{"stop a workload everywhere", "root", "/api/v1/stops", `{"tenant":"*","kind":"principal","name":"x","reason":"r"}`, 404, "not_found"},
		{"stop everything with one tenant", "alice", "/api/v1/stops", `{"tenant":"*","kind":"tenant","reason":"r"}`, 404, "not_found"},
		{"stop without the right", "vera", "/api/v1/stops", `{"tenant":"acme","kind":"tenant","reason":"r"}`, 403, "forbidden"},
		{"stop everything", "root", "/api/v1/stops", `{"tenant":"*","kind":"tenant","reason":"r"}`, 204, ""},
		{"lift without the right", "vera", "/api/v1/stops/lift", `{"tenant":"acme","kind":"principal","name":"agent:a"}`, 403, "forbidden"},
		{"lift a neighbour's", "bob", "/api/v1/stops/lift", `{"tenant":"acme","kind":"principal","name":"agent:a"}`, 404, "not_found"},
		{"lift what is not stopped", "alice", "/api/v1/stops/lift", `{"tenant":"acme","kind":"owner","name":"agent:a"}`, 404, "not_found"},
		{"lift with more than there is", "alice", "/api/v1/stops/lift", `{"tenant":"acme","kind":"principal","name":"agent:a","reason":"r"}`, 400, "bad_request"},
		{"lift", "alice", "/api/v1/stops/lift", `{"tenant":"acme","kind":"principal","name":"agent:a"}`, 204, ""},
		{"lift everything", "root", "/api/v1/stops/lift", `{"tenant":"*","kind":"tenant"}`, 204, ""},
	} {
		if a := api(t, v, "POST", c.path, c.body, token[c.who]); a.StatusCode != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s", c.name, a.StatusCode, a.body)
		}
	}
	if len(h.stops) != 0 || len(h.specs) != 2 {
		t.Fatalf("%d stops, %d starts", len(h.stops), len(h.specs))
	}
	for _, s := range h.specs {
		if s.Tenant != "acme" || s.Reference != "T-1" || len(s.Labels) != 2 || len(s.Approvers) != 1 || s.Calls != 7 || s.TTL != time.Minute || len(s.Scope) != 1 || s.Principal != "agent:a" {
			t.Errorf("started from %+v", s)
		}
	}
	if h.specs[0].OnBehalfOf != "dora" || h.specs[1].OnBehalfOf != "dana@example.test" {
		t.Errorf("for %q and %q", h.specs[0].OnBehalfOf, h.specs[1].OnBehalfOf)
	}
	h.stops = stopped()
	if a := api(t, v, "GET", "/api/v1/stops?tenant=acme", "", token["vera"]); a.StatusCode != 200 || len(a.v["stops"].([]any)) != 3 {
		t.Errorf("stops: %s", a.body)
	}
	for path, want := range map[string]int{"/api/v1/stops": 400, "/api/v1/stops?tenant=ACME": 400, "/api/v1/stops?tenant=acme": 404} {
		if a := api(t, v, "GET", path, "", token["bob"]); a.StatusCode != want {
			t.Errorf("GET %s: %d", path, a.StatusCode)
		}
	}
}

// What was not done is said so that it can be mended, to whom it is theirs to know.
func TestAPISaysWhose(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h))
	token := map[string]string{}
	for name, password := range h.passwords {
		token[name] = api(t, v, "POST", "/api/v1/login", `{"name":"`+name+`","password":"`+password+`"}`, "").str("token")
	}
	for _, c := range []struct{ who, method, path, body, says string }{
		{"root", "GET", "/api/v1/stops?tenant=*", "", "?tenant=NAME, of acme, globex."},
		{"root", "GET", "/api/v1/tasks?tenant=*", "", "?tenant=NAME, of acme, globex."},
		{"alice", "GET", "/api/v1/tasks", "", "?tenant=NAME, of acme."},
		{"alice", "POST", "/api/v1/stops/lift", `{"tenant":"acme","kind":"principal","name":"agent:\u200bx"}`, "There is no stop of principal agent:⟦U+200B⟧x in acme, so nothing was lifted."},
		{"alice", "POST", "/api/v1/stops/lift", `{"tenant":"acme","kind":"tenant"}`, "There is no stop of the tenant acme, so nothing was lifted."},
		{"root", "POST", "/api/v1/stops/lift", `{"tenant":"*","kind":"tenant"}`, "Nothing stops everything, so nothing was lifted."},
		{"alice", "POST", "/api/v1/stops/lift", `{"tenant":"globex","kind":"principal","name":"agent:x"}`, "There is nothing here, or nothing that you may see."},
		{"root", "POST", "/api/v1/stops/lift", `{"tenant":"nowhere","kind":"principal","name":"agent:x"}`, "There is nothing here, or nothing that you may see."},
	} {
		if a := api(t, v, c.method, c.path, c.body, token[c.who]); a.StatusCode/100 != 4 || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s %s: %d %s", c.who, c.path, c.body, a.StatusCode, a.body)
		}
	}
}

func TestStopAndLiftInTheBrowser(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	h.family(t)
	base := serve(t, h)
	state := func(id string) gateway.TaskState {
		task, err := h.TaskShow(t.Context(), h.operators["root"], "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		return task.State
	}
	run(t, ctx,
		chromedp.EmulateViewport(1280, 800),
		logIn(base, "root", "whole world"),
		chromedp.Click(chromedp.CSS(`nav a[href="/stops"]`)),
		chromedp.WaitVisible(chromedp.CSS(`.empty`)),
		chromedp.Click(chromedp.CSS(`details:has(form[action="/stops/acme/principal"]) summary`)),
		chromedp.SendKeys(chromedp.CSS("#acme-principal-name"), "agent:editor"),
		chromedp.Click(chromedp.CSS(`form[action="/stops/acme/principal"] button`)), // without a reason: the browser stays
		chromedp.SendKeys(chromedp.CSS("#acme-principal-reason"), "It writes where it should read"),
		chromedp.Click(chromedp.CSS(`form[action="/stops/acme/principal"] button`)),
		chromedp.WaitVisible(chromedp.CSS(".stopped")),
		shot("stopped"),
	)
	if len(h.stops) != 1 || state("task-standing") != gateway.TaskEnding || state("task-root") != gateway.TaskRunning {
		t.Errorf("after the stop: %v", h.stops)
	}
	run(t, ctx,
		chromedp.Click(chromedp.CSS(".stopped summary")),
		chromedp.Click(chromedp.CSS(`form[action="/stops/lift"] button`)),
		chromedp.WaitNotPresent(chromedp.CSS(".stopped")),
		chromedp.Click(chromedp.CSS(`.global summary`)),
		chromedp.SendKeys(chromedp.CSS("#all-reason"), "drill"),
		chromedp.SendKeys(chromedp.CSS("#all-confirm"), "yes"),
		shot("everything"),
		chromedp.Click(chromedp.CSS(`.global button`)), // the browser stays
	)
	if len(h.stops) != 0 {
		t.Errorf("after lifting, and half a stop of everything: %v", h.stops)
	}
	read(t, ctx, chromedp.Evaluate[string](`document.getElementById("all-confirm").value = ""`))
	run(t, ctx,
		chromedp.SendKeys(chromedp.CSS("#all-confirm"), "STOP"),
		chromedp.Click(chromedp.CSS(`.global button`)),
		chromedp.WaitVisible(chromedp.CSS(".stopped")),
	)
	if len(h.stops) != 1 || state("task-root") != gateway.TaskEnding {
		t.Errorf("after the stop of everything: %v", h.stops)
	}
}

func TestEscalationInTheBrowser(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	h.ask("apr-1", growth)
	base := serve(t, h)
	run(t, ctx,
		chromedp.EmulateViewport(1280, 800),
		logIn(base, "alice", "correct horse"),
		chromedp.Click(chromedp.CSS(`.more a`)),
		chromedp.WaitVisible(chromedp.CSS(".growth")),
		chromedp.Sleep(time.Second), // longer than the pause before Approve
	)
	off := read(t, ctx, chromedp.Evaluate[bool](`document.querySelector("button[value=approve]").disabled`))
	hint := read(t, ctx, chromedp.Text(chromedp.CSS("[data-hint]")))
	if !off || !strings.Contains(hint, "scroll to the end of what is asked") {
		t.Errorf("before it was read: disabled %v, hint %q", off, hint)
	}
	run(t, ctx,
		chromedp.ScrollIntoView(chromedp.CSS("#read")),
		chromedp.WaitEnabled(chromedp.CSS("button[value=approve]")),
		shot("growth"),
		chromedp.Click(chromedp.CSS("button[value=approve]")),
		chromedp.WaitVisible(chromedp.CSS(".outcome")),
	)
	if h.requests[0].State != gateway.ApprovalGranted {
		t.Errorf("after the grant: %v", h.requests[0].State)
	}
}
