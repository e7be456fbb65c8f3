package authz_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"toolbroker/authz"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) // a Monday

// parse parses a policy that must be good, and fails the test with what it is not.
func parse(t testing.TB, text string) *authz.Policy {
	t.Helper()
	p, findings := authz.Parse("policy.csv", []byte(text))
	if p == nil {
		t.Fatalf("policy refused: %v", findings)
	}
	return p
}

func sample(t testing.TB) *authz.Policy {
	t.Helper()
	text, err := os.ReadFile("testdata/policy.csv")
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

func scope(t testing.TB, rows ...authz.ScopeRow) *authz.Scope {
	t.Helper()
	s, err := authz.NewScope(rows)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask is "principal task tool args" for a call in tenant acme at noon.
func ask(principal, task, tool, args string) authz.Request {
	r := authz.Request{Subject: authz.Subject{Principal: principal, Tenant: "acme"}, Task: task, Tool: tool, Action: authz.Call, Time: noon}
	if args != "" {
		r.Args = json.RawMessage(args)
	}
	return r
}

// say is a decision in one line: the verdict, the lines that made it, who must agree.
func say(d authz.Decision) string {
	out := d.Verdict.String()
	for _, r := range d.Rules {
		out += fmt.Sprintf(" %s", lineOf(r))
	}
	for i, n := range d.Need {
		if i == 0 {
			out += ";"
		}
		group := n.Group
		if group == "" {
			group = "anyone"
		}
		out += fmt.Sprintf(" %d of %s (%s)", n.N, group, lineOf(n.Rule))
	}
	return out
}

func lineOf(r authz.Rule) string {
	if label, ok := strings.CutPrefix(r.File, "scope of "); ok {
		return fmt.Sprintf("%s:%d", label, r.Line)
	}
	return fmt.Sprint(r.Line)
}

func TestDecide(t *testing.T) {
	p := sample(t)
	at := func(hour int) time.Time { return noon.Add(time.Duration(hour-12) * time.Hour) }
	for _, c := range []struct {
		who, task, tool, args string
		hour                  int
		want                  string
	}{
		{"triage-7", "incident-triage", "github/issues.create", `{"repo":"acme/api"}`, 12, "allow 17"},
		{"triage-7", "incident-triage", "github/issues.create", `{"repo":"evil/api"}`, 12, "deny"},
		{"triage-7", "incident-triage", "github/issues.create", `{}`, 12, "deny"}, // repo is missing
		{"triage-7", "incident-triage", "github/issues.create", `{"repo":["acme/api"]}`, 12, "deny"},
		{"triage-7", "incident-triage", "github/search.code", `{}`, 12, "allow 18"},
		{"triage-7", "refund-77", "github/search.code", `{}`, 12, "deny"}, // another kind of task
		{"triage-7", "incident-triage", "github/repo.delete", `{"repo":"acme/api"}`, 12, "deny"},
		{"triage-7", "incident-triage", "slack/message.post", `{"channel":"#ops"}`, 12, "allow 20"},
		{"triage-7", "incident-triage", "slack/message.post", `{"channel":"#general"}`, 12, "deny"},
		{"triage-7", "incident-triage", "shell/run", `{}`, 12, "deny 14"},
		{"triage-intern", "incident-triage", "github/issues.close", `{"repo":"acme/api"}`, 12, "deny 28"},
		{"triage-intern", "incident-triage", "github/issues.create", `{"repo":"acme/api"}`, 12, "allow 17"},
		{"lead-1", "incident-triage", "github/search.code", `{}`, 12, "allow 18"}, // a role within a role
		{"lead-1", "incident-triage", "pagerduty/incident.get", `{}`, 12, "allow 19 22"},
		{"lead-1", "incident-review", "k8s/pod.delete", `{"namespace":"dev"}`, 12, "approve 13 21; 2 of sre (13)"},
		{"lead-1", "incident-review", "k8s/pod.delete", `{"namespace":"prod"}`, 12, "deny"},
		{"refunds-2", "refund-77", "stripe/refund.create", `{"amount":50,"currency":"USD"}`, 12, "allow 24"},
		{"refunds-2", "refund-77", "stripe/refund.create", `{"amount":300,"currency":"USD"}`, 12, "approve 24 25; 1 of anyone (25)"},
		{"refunds-2", "refund-77", "stripe/refund.create", `{"amount":900,"currency":"USD"}`, 12, "approve 25; 1 of anyone (25)"},
		{"refunds-2", "refund-77", "stripe/refund.create", `{"amount":20000,"currency":"USD"}`, 12, "deny 15"},
		{"refunds-2", "refund-77", "stripe/refund.create", `{"amount":"50","currency":"USD"}`, 12, "deny 15"}, // the denial cannot be evaluated, so it counts
		{"analyst-4", "report-weekly", "warehouse/query", `{}`, 12, "allow 26"},
		{"analyst-4", "report-weekly", "warehouse/query", `{}`, 3, "deny"},
		{"analyst-4", "report-weekly", "warehouse/export", `{"rows":10}`, 12, "approve 27; 1 of data-owner (27)"},
		{"analyst-4", "report-weekly", "warehouse/export", `{"rows":10001}`, 12, "deny"},
		{"analyst-4", "report-weekly", "warehouse/table.drop", `{}`, 12, "deny"}, // a guardrail is not a grant
		{"nobody", "incident-triage", "github/search.code", `{}`, 12, "deny"},
	} {
		r := ask("spiffe://corp/agent/"+c.who, c.task, c.tool, c.args)
		r.Time = at(c.hour)
		for range 2 { // the second answer comes from memory
			if got := say(p.Decide(r)); got != c.want {
				t.Errorf("%s on %s: %s %s at %d: %s, want %s", c.who, c.task, c.tool, c.args, c.hour, got, c.want)
			}
		}
	}
}

// One row each, and what it does to a call of s/t by "bot" in acme on task k
// with {"n":5,"s":"x"}, or to what `ask` makes of it.
func TestRows(t *testing.T) {
	bot := func(change ...func(*authz.Request)) authz.Request {
		r := ask("bot", "k", "s/t", `{"n":5,"s":"x"}`)
		for _, f := range change {
			f(&r)
		}
		return r
	}
	named := func(name string) func(*authz.Request) { return func(r *authz.Request) { r.Subject.Principal = name } }
	tenant := func(name string) func(*authz.Request) { return func(r *authz.Request) { r.Subject.Tenant = name } }
	does := func(a authz.Action) func(*authz.Request) { return func(r *authz.Request) { r.Action = a } }
	args := func(s string) func(*authz.Request) { return func(r *authz.Request) { r.Args = json.RawMessage(s) } }
	tool := func(s string) func(*authz.Request) { return func(r *authz.Request) { r.Tool = s } }

	for _, c := range []struct {
		name, policy string
		r            authz.Request
		want         string
	}{
		{"a grant", "p, bot, acme, k, s/t, call, , allow", bot(), "allow 1"},
		{"nothing granted", "p, bot, acme, k, s/u, call, , allow", bot(), "deny"},
		{"deny wins, whatever the order", "p, bot, acme, k, s/t, call, , deny\np, bot, acme, k, s/t, call, args.n == 5, allow", bot(), "deny 1"},
		{"every denial is named", "p, bot, acme, k, s/t, call, args.n == 5, deny\np, bot, acme, k, s/*, call, args.n > 1, deny", bot(), "deny 1 2"},
		{"require never grants", "p, bot, acme, k, s/t, call, , require", bot(), "deny"},
		{"require tightens", "p, bot, acme, k, s/t, call, , allow\np, *, *, *, *, call, , require 3 of group:x", bot(), "approve 1 2; 3 of x (2)"},
		{"approve grants and asks", "p, bot, acme, k, s/t, call, , approve 2 of group:x", bot(), "approve 1; 2 of x (1)"},
		{"a weaker requirement replaces none", "p, bot, acme, k, s/t, call, , approve 2 of group:x\np, bot, acme, k, s/t, call, , approve\np, *, *, *, *, call, , require 1 of group:x", bot(), "approve 1 2 3; 2 of x (1) 1 of anyone (2) 1 of x (3)"},

		{"allow cannot be evaluated", "p, bot, acme, k, s/t, call, args.m == 5, allow", bot(), "deny"},
		{"approve cannot be evaluated: no grant", "p, bot, acme, k, s/t, call, args.m == 5, approve", bot(), "deny"},
		{"approve cannot be evaluated: asks all the same", "p, bot, acme, k, s/t, call, args.m == 5, approve 2 of group:x\np, bot, acme, k, s/t, call, , allow", bot(), "approve 1 2; 2 of x (1)"},
		{"require cannot be evaluated", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.m == 5, require", bot(), "approve 1 2; 1 of anyone (2)"},
		{"require does not hold", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.n == 6, require", bot(), "allow 1"},
		{"deny cannot be evaluated", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.m == 5, deny", bot(), "deny 2"},
		{"an optional argument, absent", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.force != null && args.force == true, deny", bot(), "allow 1"},
		{"an optional argument, there", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.force != null && args.force == true, deny", bot(args(`{"force":true}`)), "deny 2"},
		{"args that are no JSON", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.n > 9, deny", bot(args(`{"n":5`)), "deny 2"},
		{"args that name one thing twice", "p, bot, acme, k, s/t, call, args.n == 5, allow", bot(args(`{"n":9,"n":5}`)), "deny"},
		{"args with a twin further down", "p, bot, acme, k, s/t, call, args.a.n == 5, allow", bot(args(`{"a":{"n":9,"n":5}}`)), "deny"},
		{"args that are no object", "p, bot, acme, k, s/t, call, args.n == 5, allow", bot(args(`[5]`)), "deny"},
		{"another spelling is another argument", "p, bot, acme, k, s/t, call, args.n == 5, allow", bot(args(`{"N":5}`)), "deny"},
		{"no args at all", "p, bot, acme, k, s/t, call, args.n == null, allow", bot(args(``)), "allow 1"},
		{"a number that two readers read differently", "p, bot, acme, k, s/t, call, args.n <= 9007199254740992, allow", bot(args(`{"n":9007199254740993}`)), "deny"},
		{"no time", "p, bot, acme, k, s/t, call, hour >= 0, allow", bot(func(r *authz.Request) { r.Time = time.Time{} }), "deny"},
		{"hour is UTC's", "p, bot, acme, k, s/t, call, hour == 12, allow", bot(func(r *authz.Request) { r.Time = noon.In(time.FixedZone("", 3600)) }), "allow 1"},
		{"weekday by name", "p, bot, acme, k, s/t, call, \"weekday in ('mon', 'tue')\", allow", bot(), "allow 1"},
		{"weekday by number", "p, bot, acme, k, s/t, call, weekday >= 2 && weekday <= 5, allow", bot(), "deny"},

		{"* everywhere", "p, *, *, *, *, *, , allow", bot(), "allow 1"},
		{"* stays within a segment", "p, spiffe://corp/*, acme, k, s/t, call, , allow", bot(named("spiffe://corp/a/b")), "deny"},
		{"** crosses", "p, spiffe://corp/**, acme, k, s/t, call, , allow", bot(named("spiffe://corp/a/b")), "allow 1"},
		{"what follows a star counts", "p, bot, acme, k, s/*.get, call, , allow", bot(tool("s/x.delete")), "deny"},
		{"a tool's name may have a slash", "p, bot, acme, k, s/*, call, , allow", bot(tool("s/a/b")), "deny"},
		{"another tenant", "p, bot, acme, k, s/t, call, , allow", bot(tenant("globex")), "deny"},
		{"a tenant's glob", "p, bot, acme-*, k, s/t, call, , allow", bot(tenant("acme-eu")), "allow 1"},
		{"another action", "p, bot, acme, k, s/t, read, , allow", bot(), "deny"},

		{"a role", "g, b*, role:x, acme\np, role:x, *, k, s/t, call, , allow", bot(), "allow 2"},
		{"a role in another tenant", "g, b*, role:x, acme\np, role:x, *, k, s/t, call, , allow", bot(tenant("globex")), "deny"},
		{"a role within a role within a role", "g, bot, role:z, *\ng, role:z, role:y, acme\ng, role:y, role:x, *\np, role:x, *, k, s/t, call, , allow", bot(), "allow 4"},
		{"a role within a role, in another tenant", "g, bot, role:z, *\ng, role:z, role:x, globex\np, role:x, *, k, s/t, call, , allow", bot(), "deny"},
		{"a principal called like a role", "g, bot, role:x, acme\np, role:x, *, k, s/t, call, , allow", bot(named("role:x")), "deny"},
		{"a principal called like a role that holds another", "g, bot, role:y, acme\ng, role:y, role:x, *\np, role:x, *, k, s/t, call, , allow\np, role:y, *, *, s/u, call, , allow", bot(named("role:y")), "deny"},
		{"a principal called like a glob", "g, triage-1, role:x, acme\np, role:x, *, k, s/t, call, , allow", bot(named("triage-*")), "deny"},
		{"a principal called *", "p, bot, acme, k, s/t, call, , allow", bot(named("*")), "deny"},
		{"a principal that ends in what Casbin joins keys with", "g, bot, role:x, acme\np, role:x, *, k, s/t, call, , allow", bot(named("bot\x00role:x")), "deny"},

		{"a group", "g2, s/*, risky\np, bot, acme, k, risky, call, , allow", bot(), "allow 2"},
		{"a tool called like a group", "g2, s/*, risky\np, bot, acme, k, risky, call, , allow", bot(tool("risky")), "deny"},
		{"a label", "g2, s/t, destructive\np, bot, acme, k, s/*, call, , allow\np, *, *, *, destructive, call, , require", bot(), "approve 2 3; 1 of anyone (3)"},
		{"another label", "g2, s/t, sends:external\np, bot, acme, k, s/*, call, , allow\np, *, *, *, destructive, call, , require", bot(), "allow 2"},
		{"no label counts as every label", "p, bot, acme, k, s/*, call, , allow\np, *, *, *, destructive, call, , deny", bot(), "deny 2"},
		{"no label is no grant", "g2, a/b, destructive\np, bot, acme, k, destructive, call, , allow", bot(), "deny"},
		{"a tool called like a label", "g2, a/b, destructive\np, bot, acme, k, destructive, call, , allow\np, bot, acme, k, sends:external, call, , allow", bot(tool("sends:external")), "deny"},
		{"no label, approve: asks and does not grant", "g2, a/b, destructive\np, bot, acme, k, destructive, call, , approve", bot(), "deny"},
		{"no label, approve beside a grant", "g2, a/b, destructive\np, bot, acme, k, destructive, call, , approve\np, bot, acme, k, s/t, call, , allow", bot(), "approve 2 3; 1 of anyone (2)"},

		{"list, by a call", "p, bot, acme, k, s/t, call, , allow", bot(does(authz.List)), "allow 1"},
		{"list, by a call under a condition", "p, bot, acme, k, s/t, call, args.n == 9, allow", bot(does(authz.List)), "allow 1"},
		{"list, by a call that waits", "p, bot, acme, k, s/t, call, , approve", bot(does(authz.List)), "allow 1"},
		{"list, by itself", "p, bot, acme, k, s/t, list, , allow", bot(does(authz.List)), "allow 1"},
		{"list gives no call", "p, bot, acme, k, s/t, list, , allow", bot(), "deny"},
		{"read gives no list", "p, bot, acme, k, s/t, read, , allow", bot(does(authz.List)), "deny"},
		{"list, denied", "p, bot, acme, k, s/t, *, , allow\np, bot, acme, k, s/t, list, , deny", bot(does(authz.List)), "deny 2"},
		{"list, of what can never be called", "p, bot, acme, k, s/t, *, , allow\np, bot, acme, k, s/t, call, , deny", bot(does(authz.List)), "deny 2"},
		{"list, denied for some arguments", "p, bot, acme, k, s/t, call, , allow\np, bot, acme, k, s/t, call, args.n == 5, deny", bot(does(authz.List)), "allow 1"},
		{"list, only guarded", "p, bot, acme, k, s/t, *, , require", bot(does(authz.List)), "deny"},

		{"start", "p, bot, acme, *, task:triage, start, , allow", bot(does(authz.Start), tool("task:triage")), "allow 1"},
		{"start another kind", "p, bot, acme, *, task:triage, start, , allow", bot(does(authz.Start), tool("task:refund")), "deny"},
		{"a start is no tool without labels", "p, bot, acme, *, task:*, start, , allow\np, *, *, *, destructive, *, , deny", bot(does(authz.Start), tool("task:triage")), "allow 1"},

		{"no principal", "p, *, *, *, *, *, , allow", bot(named("")), "deny"},
		{"no tenant", "p, *, *, *, *, *, , allow", bot(tenant("")), "deny"},
		{"no tool", "p, *, *, *, *, *, , allow", bot(tool("")), "deny"},
		{"no action", "p, *, *, *, *, *, , allow", bot(does("")), "deny"},
		{"an unknown action", "p, *, *, *, *, *, , allow", bot(does("*")), "deny"},
		{"a name that is not text", "p, *, *, *, *, *, , allow", bot(named("a\xff")), "deny"},
		{"a name with a control character", "p, *, *, *, *, *, , allow", bot(named("bot\x00")), "deny"},
		{"a name without end", "p, *, *, *, *, *, , allow", bot(named(strings.Repeat("a", 1<<20))), "deny"},
		{"a request that looks like policy", "p, bot, acme, k, s/t, call, , allow", bot(tool("s/t, call, , allow\np, *")), "deny"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := parse(t, c.policy).Decide(c.r)
			if got := say(d); got != c.want {
				t.Errorf("%s, want %s (%s)", got, c.want, d.Reason)
			}
			if d.Reason == "" || d.Revision == "" {
				t.Errorf("reason %q, revision %q", d.Reason, d.Revision)
			}
		})
	}
}

func TestScopes(t *testing.T) {
	p := parse(t, "p, bot, acme, *, s/*, call, , allow\np, *, *, *, s/t, call, , require 2 of group:sre")
	all := authz.ScopeRow{Tool: "s/*", Action: "call", Verdict: "allow"}
	for _, c := range []struct {
		name   string
		scopes []*authz.Scope
		want   string
	}{
		{"none", nil, "approve 1 2; 2 of sre (2)"},
		{"it grants", []*authz.Scope{scope(t, all).Named("a")}, "approve 1 2 a:1; 2 of sre (2)"},
		{"it grants another tool", []*authz.Scope{scope(t, authz.ScopeRow{Tool: "s/u", Action: "call", Verdict: "allow"})}, "deny"},
		{"the second does not", []*authz.Scope{scope(t, all), scope(t, authz.ScopeRow{Tool: "s/u", Action: "call", Verdict: "allow"})}, "deny"},
		{"nil", []*authz.Scope{scope(t, all), nil}, "deny"},
		{"zero", []*authz.Scope{{}}, "deny"},
		{"empty", []*authz.Scope{scope(t)}, "deny"},
		{"it denies", []*authz.Scope{scope(t, all, authz.ScopeRow{Tool: "s/t", Action: "call", When: "args.n == 5", Verdict: "deny"}).Named("a")}, "deny a:2"},
		{"it cannot tell", []*authz.Scope{scope(t, authz.ScopeRow{Tool: "s/t", Action: "call", When: "args.x == 5", Verdict: "allow"})}, "deny"},
		{"it only guards", []*authz.Scope{scope(t, authz.ScopeRow{Tool: "s/t", Action: "call", Verdict: "require"})}, "deny"},
		{"it asks for more", []*authz.Scope{scope(t, all, authz.ScopeRow{Tool: "**", Action: "*", Verdict: "require 3 of group:sre"}).Named("a")}, "approve 1 2 a:1 a:2; 2 of sre (2) 3 of sre (a:2)"},
		{"it asks for less, which changes nothing", []*authz.Scope{scope(t, authz.ScopeRow{Tool: "s/t", Action: "call", Verdict: "approve"}).Named("a")}, "approve 1 2 a:1; 2 of sre (2) 1 of anyone (a:1)"},
	} {
		r := ask("bot", "k", "s/t", `{"n":5}`)
		r.Scopes = c.scopes
		if got := say(p.Decide(r)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}

	r := ask("bot", "k", "x/y", "")
	r.Scopes = []*authz.Scope{scope(t, authz.ScopeRow{Tool: "*", Action: "*", Verdict: "allow"})}
	if d := p.Decide(r); d.Verdict != authz.Deny {
		t.Errorf("a scope widened the policy: %s", say(d))
	}
	r.Action, r.Tool = authz.List, "s/t"
	r.Scopes = append(r.Scopes, scope(t, authz.ScopeRow{Tool: "s/u", Action: "call", Verdict: "allow"}))
	if d := p.Decide(r); d.Verdict != authz.Deny {
		t.Errorf("a tool outside one scope is listed: %s", say(d))
	}
}

func TestReason(t *testing.T) {
	p := sample(t)
	for _, c := range []struct {
		r    authz.Request
		want string
	}{
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "github/search.code", ""), "granted by policy.csv:18"},
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "shell/run", ""), "denied by policy.csv:14"},
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "aws/run", ""), "no row of policy.csv grants this"},
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "github/issues.get", `{"repo":"canary"}`), "no row of policy.csv grants this call: the condition of policy.csv:17 does not hold"},
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "github/issues.get", `{"repo":["canary"]}`), "no row of policy.csv grants this call: the condition of policy.csv:17 could not be evaluated"},
		{ask("spiffe://corp/agent/refunds-7", "refund-1", "stripe/refund.create", `{"amount":"canary","currency":"USD"}`), "denied by policy.csv:15 (its condition could not be evaluated)"},
		{ask("spiffe://corp/agent/lead-7", "incident-1", "k8s/pod.delete", `{"namespace":"canary"}`), "needs approval: 2 of group:sre by policy.csv:13"},
		{ask("", "incident-1", "k8s/pod.delete", ""), "there is no principal"},
	} {
		if got := p.Decide(c.r).Reason; got != c.want {
			t.Errorf("%s %s: %q, want %q", c.r.Tool, c.r.Args, got, c.want)
		}
	}
	r := ask("spiffe://corp/agent/triage-7", "incident-triage", "github/search.code", "")
	r.Scopes = []*authz.Scope{scope(t, authz.ScopeRow{Tool: "github/*", Action: "call", Verdict: "allow"}).Named("t-1"), nil}
	if got, want := p.Decide(r).Reason, "no row of the scope of a task grants this"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.Scopes = r.Scopes[:1]
	if got, want := p.Decide(r).Reason, "granted by policy.csv:18, scope of t-1:1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestConditional(t *testing.T) {
	p := sample(t)
	for _, c := range []struct {
		r    authz.Request
		want bool
	}{
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "github/search.code", ""), false},
		{ask("spiffe://corp/agent/triage-7", "incident-triage", "github/issues.get", ""), true},
		{ask("spiffe://corp/agent/analyst-7", "report-1", "warehouse/query", ""), false}, // reads the clock only
		{ask("spiffe://corp/agent/nobody", "report-1", "stripe/refund.get", ""), true},   // a guardrail looked
	} {
		if got := p.Decide(c.r).Conditional; got != c.want {
			t.Errorf("%s: conditional %v", c.r.Tool, got)
		}
	}
	r := ask("spiffe://corp/agent/triage-7", "incident-triage", "github/search.code", "{}")
	r.Scopes = []*authz.Scope{scope(t, authz.ScopeRow{Tool: "github/*", Action: "call", When: "args.q == null", Verdict: "allow"})}
	if d := p.Decide(r); !d.Conditional || d.Verdict != authz.Allow {
		t.Errorf("a scope's condition: %+v", d)
	}
	r = ask("spiffe://corp/agent/triage-7", "incident-triage", "github/issues.get", "{}")
	r.Scopes = []*authz.Scope{scope(t, authz.ScopeRow{Tool: "github/*", Action: "call", Verdict: "allow"})}
	if d := p.Decide(r); !d.Conditional {
		t.Errorf("the policy's condition, beside a scope without: %+v", d)
	}
}

// Decisions may share their rows; adding to one changes no other.
func TestDecisionsAreApart(t *testing.T) {
	p := sample(t)
	r := ask("spiffe://corp/agent/lead-7", "incident-triage", "pagerduty/incident.get", "")
	first := p.Decide(r)
	again := p.Decide(r)
	mine, yours := append(first.Rules, authz.Rule{Text: "mine"}), append(again.Rules, authz.Rule{Text: "yours"})
	if n := len(first.Rules); mine[n].Text != "mine" || yours[n].Text != "yours" {
		t.Errorf("%v, %v", mine[n], yours[n])
	}
}

func TestNoPolicyDenies(t *testing.T) {
	var p *authz.Policy
	if d := p.Decide(ask("bot", "k", "s/t", "")); d.Verdict != authz.Deny || d.Reason == "" {
		t.Errorf("%+v", d)
	}
}

func TestModelFile(t *testing.T) {
	text, err := os.ReadFile("../model.conf")
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != authz.Model {
		t.Error("model.conf is not the model that the engine is built for")
	}
}

// What is remembered of a decision is its own question's: not that of another
// scope, another name of it, another action, or another reading of the same file.
func TestRememberedDecisionsAreTheirOwnQuestions(t *testing.T) {
	p := sample(t)
	yes := scope(t, authz.ScopeRow{Tool: "pagerduty/*", Action: "call", Verdict: "allow"})
	no := scope(t, authz.ScopeRow{Tool: "pagerduty/incident.close", Action: "call", Verdict: "allow"})
	base := ask("spiffe://corp/agent/lead-7", "incident-triage", "pagerduty/incident.get", "")
	with := func(s ...*authz.Scope) authz.Request { r := base; r.Scopes = s; return r }
	list := with(yes)
	list.Action = authz.List
	for range 2 { // the second time around all are remembered
		for _, c := range []struct {
			about string
			ask   authz.Request
			want  authz.Verdict
			says  string
		}{
			{"a scope that grants", with(yes), authz.Allow, "granted"},
			{"one that does not", with(no), authz.Deny, "scope of a task"},
			{"both", with(yes, no), authz.Deny, "scope of a task"},
			{"one by its name", with(no.Named("t1")), authz.Deny, "scope of t1"},
			{"the same by another", with(no.Named("t2")), authz.Deny, "scope of t2"},
			{"none at all", with(nil), authz.Deny, "scope of a task"},
			{"five", with(yes, yes, yes, yes, no), authz.Deny, "scope of a task"},
			{"a list", list, authz.Allow, "granted"},
		} {
			if d := p.Decide(c.ask); d.Verdict != c.want || !strings.Contains(d.Reason, c.says) {
				t.Errorf("%s: %v: %s", c.about, d.Verdict, d.Reason)
			}
		}
	}
}

// Where more conditions can decide than outcomes are told apart for, each call is
// asked about anew.
func TestManyConditions(t *testing.T) {
	for _, n := range []int{31, 32, 33, 70} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "p, bot, acme, k, s/t, call, args.n == %d, %s\n", i, []string{"allow", "approve", "deny"}[i%3])
		}
		p := parse(t, text.String())
		for range 2 {
			for i := range n {
				want := []string{"allow %d", "approve %d; 1 of anyone (%[1]d)", "deny %d"}[i%3]
				if d := p.Decide(ask("bot", "k", "s/t", fmt.Sprintf(`{"n":%d}`, i))); say(d) != fmt.Sprintf(want, i+1) {
					t.Errorf("%d of %d: %s", i, n, say(d))
				}
			}
			q := ask("bot", "k", "s/t", "")
			q.Action = authz.List
			if d := p.Decide(q); d.Verdict != authz.Allow {
				t.Errorf("a list: %s", say(d))
			}
		}
	}
}
