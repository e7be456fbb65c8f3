package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"toolbroker/authz"
)

func TestCases(t *testing.T) {
	p := sample(t)
	refund := func(amount int) authz.Request {
		return ask("spiffe://corp/agent/refunds-7", "refund-1", "stripe/refund.create", fmt.Sprintf(`{"amount":%d,"currency":"USD"}`, amount))
	}
	lead := ask("spiffe://corp/agent/lead-7", "incident-1", "k8s/pod.delete", `{"namespace":"dev"}`)
	for _, c := range []struct {
		name string
		c    authz.Case
		want string // what is wrong
	}{
		{"as expected", authz.Case{Request: refund(50), Verdict: authz.Allow}, ""},
		{"another verdict", authz.Case{Request: refund(50), Verdict: authz.Deny}, "want deny, got allow: granted by policy.csv:24"},
		{"the zero case wants a denial", authz.Case{Request: refund(50)}, "want deny, got allow: granted by policy.csv:24"},
		{"by its line", authz.Case{Request: refund(50), Verdict: authz.Allow, Rules: []string{"24"}}, ""},
		{"by another line", authz.Case{Request: refund(50), Verdict: authz.Allow, Rules: []string{"25"}}, `want the row "25" to decide, and it does not`},
		{"by its text, spaced otherwise", authz.Case{Request: refund(50), Verdict: authz.Allow, Rules: []string{"refund-*,stripe/refund.create,  call,args.amount <= 500"}}, ""},
		{"by the text of a row that matches and does not decide", authz.Case{Request: refund(50000), Verdict: authz.Deny, Rules: []string{"args.amount > 10000"}}, ""},
		{"both rows", authz.Case{Request: lead, Verdict: authz.Approve, Rules: []string{"13", "21"}, Need: []string{"2 of group:sre"}}, ""},
		{"who must agree", authz.Case{Request: lead, Verdict: authz.Approve, Need: []string{"1 of group:sre"}}, "want 1 of group:sre to agree, got 2 of group:sre"},
		{"nobody must", authz.Case{Request: lead, Verdict: authz.Approve, Need: []string{}}, "want nobody to agree, got 2 of group:sre"},
		{"any operator", authz.Case{Request: refund(600), Verdict: authz.Approve, Need: []string{"an operator"}}, ""},
		{"somebody, where nobody must", authz.Case{Request: refund(50), Verdict: authz.Allow, Need: []string{"an operator"}}, "want an operator to agree, got nobody"},
		{"no row", authz.Case{Request: ask("nobody", "x", "s/t", ""), Rules: []string{}}, ""},
		{"no row, where one denies", authz.Case{Request: ask("nobody", "x", "shell/run", ""), Rules: []string{}}, "want no row to decide"},
	} {
		got := p.Test([]authz.Case{c.c})
		if wrong := strings.Join(got.Cases[0].Wrong, "; "); wrong != c.want || (got.Failed == 1) != (c.want != "") {
			t.Errorf("%s: %q, want %q", c.name, wrong, c.want)
		}
	}

	// A row counts as covered when it matched, also where another decided.
	got := p.Test([]authz.Case{{Request: refund(50000)}, {Request: ask("spiffe://corp/agent/triage-intern", "incident-triage", "github/issues.close", `{"repo":"acme/x"}`)}})
	var lines []string
	for _, r := range got.Uncovered {
		lines = append(lines, fmt.Sprint(r.Line))
	}
	if s := strings.Join(lines, " "); s != "13 14 18 19 20 21 22 23 24 26 27" || got.Rows != 15 {
		t.Errorf("uncovered: %s of %d", s, got.Rows)
	}
}
