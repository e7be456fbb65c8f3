package authz_test

import (
	"encoding/json"
	"strings"
	"testing"

	"toolbroker/authz"
)

func TestExplain(t *testing.T) {
	p := sample(t)
	agent := "spiffe://corp/agent/"
	for _, c := range []struct {
		name string
		r    authz.Request
		want string
	}{
		{"a condition", ask(agent+"triage-7", "incident-triage", "github/issues.get", `{"repo":"evil/x"}`), `deny: no row of policy.csv grants this call: the condition of policy.csv:17 does not hold
near misses:
  policy.csv: line 17 would allow, but args.repo is 'evil/x'
`},
		{"an argument that hides", ask(agent+"triage-7", "incident-triage", "github/issues.get", `{"repo":"\u202eacme/\n`+strings.Repeat("x", 100)+`"}`), `deny: no row of policy.csv grants this call: the condition of policy.csv:17 does not hold
near misses:
  policy.csv: line 17 would allow, but args.repo is '\u202eacme/\n` + strings.Repeat("x", 71) + `...'
`},
		{"two variables", ask(agent+"refunds-7", "refund-1", "stripe/refund.create", `{"amount":50}`), `deny: no row of policy.csv grants this call: the condition of policy.csv:24 could not be evaluated, the condition of policy.csv:25 does not hold
near misses:
  policy.csv: line 24 would allow, but args.currency is missing (args.currency == 'USD')
  policy.csv: line 25 would approve, but args.amount is 50
`},
		{"the task", ask(agent+"triage-7", "refund-1", "github/search.code", ""), `deny: no row of policy.csv grants this
near misses:
  policy.csv: line 18 would allow, but the task is 'refund-1', not incident-triage
`},
		{"the role", ask(agent+"intern-7", "incident-triage", "github/search.code", ""), `deny: no row of policy.csv grants this
near misses:
  policy.csv: line 18 would allow, but 'spiffe://corp/agent/intern-7' does not hold role:triage-bot in acme
`},
		{"the tool", ask(agent+"refunds-7", "refund-1", "stripe/charge.list", ""), `deny: no row of policy.csv grants this
near misses:
  policy.csv: line 23 would allow, but the tool is 'stripe/charge.list', not stripe/charge.get
`},
		{"the hour", func() authz.Request {
			r := ask(agent+"analyst-7", "report-1", "warehouse/query", "")
			r.Time = noon.Add(-9 * 3600e9)
			return r
		}(), `deny: no row of policy.csv grants this call: the condition of policy.csv:26 does not hold
near misses:
  policy.csv: line 26 would allow, but hour is 3 (hour >= 6)
`},
		{"two columns, where none misses by one", ask(agent+"intern-7", "refund-1", "github/search.code", ""), `deny: no row of policy.csv grants this
near misses:
  policy.csv: line 18 would allow, but the task is 'refund-1', not incident-triage, and 'spiffe://corp/agent/intern-7' does not hold role:triage-bot in acme
`},
		{"nothing near", ask("nobody", "none", "none/such", ""), `deny: no row of policy.csv grants this
`},
		{"overruled", ask(agent+"triage-intern", "incident-triage", "github/issues.close", `{"repo":"acme/x"}`), `deny: denied by policy.csv:28
decided by:
  policy.csv:28: p, spiffe://corp/agent/triage-intern, acme, *, github/issues.close,  call, ,                                                   deny
matching too:
  policy.csv:17: p, role:triage-bot,   acme, incident-triage, github/issues.*,        call, args.repo =~ '^acme/',                              allow
`},
		{"approval", ask(agent+"lead-7", "incident-1", "k8s/pod.delete", `{"namespace":"dev"}`), `approve: needs approval: 2 of group:sre by policy.csv:13
decided by:
  policy.csv:13: p, *,                 *,    *,               tools:dangerous,        *,    ,                                                   require 2 of group:sre
  policy.csv:21: p, role:lead-triage,  acme, incident-*,      k8s/pod.delete,         call, args.namespace != 'prod',                           allow
needs:
  2 of group:sre (policy.csv:13)
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := p.Explain(c.r).String()
			var lines []string
			near := 0
			for line := range strings.Lines(got) { // the likeliest near misses are enough here
				if strings.Contains(line, " would ") {
					if near++; near > strings.Count(c.want, " would ") {
						continue
					}
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, ""); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestExplainScope(t *testing.T) {
	r := ask("spiffe://corp/agent/triage-7", "incident-triage", "github/search.code", `{"q":"x"}`)
	r.Scopes = []*authz.Scope{scope(t, authz.ScopeRow{Tool: "github/*", Action: "call", When: "args.q =~ '^y'", Verdict: "allow"}).Named("t-1"), nil}
	x := sample(t).Explain(r)
	if x.Verdict != authz.Deny || len(x.Near) == 0 || x.Near[0].File != "scope of t-1" || x.Near[0].Why != "line 1 would allow, but args.q is 'x'" {
		t.Errorf("%+v", x)
	}
	if len(x.Overruled) != 1 || x.Overruled[0].Line != 18 {
		t.Errorf("the policy's own grant is not shown: %+v", x.Overruled)
	}
}

func TestExplainJSON(t *testing.T) {
	p := parse(t, "p, bot, acme, k, s/t, call, args.n == 5, approve 2 of group:sre")
	text, err := json.Marshal(p.Explain(ask("bot", "k", "s/t", `{"n":5}`)))
	want := `{"verdict":"approve","rules":[{"file":"policy.csv","line":1,"text":"p, bot, acme, k, s/t, call, args.n == 5, approve 2 of group:sre"}],"overruled":[],` +
		`"need":[{"n":2,"group":"sre","rule":{"file":"policy.csv","line":1,"text":"p, bot, acme, k, s/t, call, args.n == 5, approve 2 of group:sre"}}],` +
		`"reason":"needs approval: 2 of group:sre by policy.csv:1","near":[],"revision":"` + p.Revision() + `"}`
	if err != nil || string(text) != want {
		t.Errorf("%s %v\nwant %s", text, err, want)
	}
	text, err = json.Marshal(p.Explain(ask("bot", "k", "s/t", `{"n":6}`)))
	if want := `"near":[{"file":"policy.csv","line":1,"text":"p, bot, acme, k, s/t, call, args.n == 5, approve 2 of group:sre","column":"when","why":"line 1 would approve, but args.n is 6"}]`; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%s %v", text, err)
	}
	text, err = json.Marshal(p.Explain(authz.Request{}))
	if want := `{"verdict":"deny","rules":[],"overruled":[],"need":[],"reason":"the action is unknown","near":[],"revision":"` + p.Revision() + `"}`; err != nil || string(text) != want {
		t.Errorf("%s %v", text, err)
	}
}

// What an explanation shows, a decision never does.
func TestReasonsHoldNoArguments(t *testing.T) {
	p := sample(t)
	for _, r := range []authz.Request{
		ask("spiffe://corp/agent/triage-7", "incident-triage", "github/issues.get", `{"repo":"canary-1234"}`),
		ask("spiffe://corp/agent/refunds-7", "refund-1", "stripe/refund.create", `{"amount":"canary-1234","currency":"canary-1234"}`),
		ask("spiffe://corp/agent/lead-7", "incident-1", "k8s/pod.delete", `{"namespace":"canary-1234"}`),
		ask("spiffe://corp/agent/lead-7", "incident-1", "k8s/pod.delete", `canary-1234`),
	} {
		text, err := json.Marshal(p.Decide(r))
		if err != nil || strings.Contains(string(text), "canary") {
			t.Errorf("%s %v", text, err)
		}
	}
}

// What is told to be near is what misses by least, and never by more than two.
func TestExplainNearest(t *testing.T) {
	const one = "p, bot, acme, other, s/t, call, , allow\n"
	const two = "p, another, acme, other, s/t, call, , allow\n"
	const three = "p, another, globex, other, s/t, call, , allow\n"
	for text, want := range map[string]string{one + two + three: "task", two + three: "task", three: "", "p, another, acme, k, s/u, call, , allow": ""} {
		x := parse(t, text).Explain(ask("bot", "k", "s/t", ""))
		got := ""
		for _, n := range x.Near {
			got += n.Column
		}
		if got != want {
			t.Errorf("near by %q, want %q, in\n%s", got, want, text)
		}
	}
}

// Of a condition only what kept it from holding is told, and no secret.
func TestExplainCondition(t *testing.T) {
	for _, c := range []struct{ when, args, want string }{
		{"args.a == 1 && args.b == 2", `{"a":1,"b":3}`, "args.b is 3 (args.b == 2)"},
		{"args.a == 1 && args.b == 2", `{"a":2,"b":3}`, "args.a is 2 (args.a == 1)"},
		{"args.a == 1 || args.b == 2", `{"a":2,"b":3}`, "args.a is 2 and args.b is 3"},
		{"args.a == 1 || args.b == 2", `{"b":2}`, "args.a is missing (args.a == 1)"},
		{"!(args.a == 1 && args.b == 2) && args.c", `{"a":1,"b":2,"c":true}`, "args.a is 1 and args.b is 2"},
		{"!(args.a == 1 || args.b == 2)", `{"a":0,"b":2}`, "args.b is 2 (args.b == 2)"},
		{"(args.a == 1 || args.b == 2) && args.c", `{"a":0,"b":2,"c":false}`, "args.c is false (args.c)"},
		{"args.a == args.b", `{"a":1,"b":2}`, "args.a is 1 and args.b is 2"},
		{"args.api_key == 'x'", `{"api_key":"canary"}`, "args.api_key is a string, which is not shown"},
		{"args.auth.PassWord =~ '^x'", `{"auth":{"PassWord":"canary"}}`, "args.auth.PassWord is a string, which is not shown"},
		{"args.token == 5", `{"token":7}`, "args.token is a number, which is not shown"},
		{"args.token == 5", `{}`, "args.token is missing"},
		{"weekday == 'sun' && date > '2026-12-01'", `{}`, "weekday is mon (weekday == 'sun')"},
		{"date > '2026-12-01'", `{}`, "date is '2026-11-23'"},
		{"args.a == 1", `[]`, "args cannot be read"},
	} {
		x := parse(t, "p, bot, acme, k, s/t, call, "+c.when+", allow").Explain(ask("bot", "k", "s/t", c.args))
		if len(x.Near) != 1 || x.Near[0].Why != "line 1 would allow, but "+c.want || x.Near[0].Column != "when" {
			t.Errorf("%s of %s: %v, want %s", c.when, c.args, x.Near, c.want)
		}
	}
}
