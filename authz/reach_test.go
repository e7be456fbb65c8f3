package authz_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"toolbroker/authz"
)

// told is a reach in one line: who, tenant, task, tool, and the lines that have a say.
func told(r authz.Reach) string {
	out := fmt.Sprintf("%s %s %s %s %s", r.Who, r.Tenant, r.Task, r.Action, r.Tool)
	if r.Verdict != "" {
		out += " " + r.Verdict
	}
	for _, row := range r.Rows {
		out += fmt.Sprintf(" %d", row.Line)
		if row.Part != "" {
			out += "(" + row.Part + ")"
		}
	}
	return out
}

func TestReach(t *testing.T) {
	p := sample(t)
	agent := "spiffe://corp/agent/"
	for _, c := range []struct {
		name string
		w    authz.Wanted
		want []string
	}{
		{"who can refund", authz.Wanted{Tool: "stripe/refund.create", Action: authz.Call}, []string{agent + "refunds-* acme refund-* call stripe/refund.create 24 25 15"}},
		{"who can refund a little", authz.Wanted{Tool: "stripe/refund.create", Action: authz.Call, Args: json.RawMessage(`{"amount":50,"currency":"USD"}`), Time: noon}, []string{agent + "refunds-* acme refund-* call stripe/refund.create allow 24 25 15"}},
		{"who can refund more", authz.Wanted{Tool: "stripe/refund.create", Action: authz.Call, Args: json.RawMessage(`{"amount":600}`), Time: noon}, []string{agent + "refunds-* acme refund-* call stripe/refund.create approve 24 25 15"}},
		{"who can refund too much", authz.Wanted{Tool: "stripe/refund.create", Action: authz.Call, Args: json.RawMessage(`{"amount":60000}`), Time: noon}, nil},
		{"who can close issues", authz.Wanted{Tool: "github/issues.close", Action: authz.Call}, []string{
			agent + "lead-* acme incident-triage call github/issues.close 17", // by the role of a role
			agent + "triage-* acme incident-triage call github/issues.close 17 28(who " + agent + "triage-intern)"}},
		{"on another task", authz.Wanted{Tool: "github/issues.close", Action: authz.Call, Task: "refund-7"}, nil},
		{"in another tenant", authz.Wanted{Tool: "github/issues.close", Action: authz.Call, Tenant: "globex"}, nil},
		{"who can use a shell", authz.Wanted{Tool: "shell/run", Action: authz.Call}, nil},
		{"who can delete a pod", authz.Wanted{Tool: "k8s/pod.delete", Action: authz.Call}, []string{agent + "lead-* acme incident-* call k8s/pod.delete 21 13"}},
		{"what one can", authz.Wanted{Principal: agent + "analyst-1", Tenant: "globex"}, nil},
		{"what another can", authz.Wanted{Principal: agent + "analyst-1", Tenant: "acme"}, []string{
			agent + "analyst-1 acme report-* call warehouse/export 27",
			agent + "analyst-1 acme report-* call warehouse/query 26"}},
		{"what a role can", authz.Wanted{Principal: "role:refund-agent"}, []string{
			agent + "refunds-* acme refund-* call stripe/charge.get 23",
			agent + "refunds-* acme refund-* call stripe/refund.create 24 25 15"}},
		{"what the intern cannot", authz.Wanted{Principal: agent + "triage-intern", Tool: "github/issues.close"}, nil},
		{"by the tools there are", authz.Wanted{Principal: agent + "lead-1", Task: "incident-9", Tools: []string{"pagerduty/a", "pagerduty/b", "mail/c"}}, []string{
			agent + "lead-1 acme incident-9 call pagerduty/a 22",
			agent + "lead-1 acme incident-9 call pagerduty/b 22"}},
		{"a stranger", authz.Wanted{Principal: "nobody"}, nil},
	} {
		found, more := p.Reach(c.w)
		var got []string
		for _, r := range found {
			got = append(got, told(r))
		}
		if !slices.Equal(got, c.want) || more {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// Whoever may do something is among those who are told to, with the row that
// grants it; asked of exactly one call, what is told is what is decided.
func TestReachIsWhatIsDecided(t *testing.T) {
	met := 0
	rapid.Check(t, func(t *rapid.T) {
		lines := genPolicy.Draw(t, "policy").lines()
		p := compile(t, lines)
		for i := range 20 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			if q.Action == authz.List || strings.HasPrefix(q.Subject.Principal, "role:") {
				continue
			}
			d := p.Decide(q)
			all, _ := p.Reach(authz.Wanted{Tool: q.Tool, Action: q.Action})
			for _, r := range all {
				sure := covers(r.Who, q.Subject.Principal) && covers(r.Tenant, q.Subject.Tenant) && covers(r.Task, q.Task) &&
					slices.ContainsFunc(r.Rows, func(row authz.ReachRow) bool { return row.Verdict == "allow" && row.When == "" && row.Part == "" }) &&
					!slices.ContainsFunc(r.Rows, func(row authz.ReachRow) bool { return row.Verdict == "deny" })
				if sure && d.Verdict == authz.Deny {
					t.Fatalf("%+v is told, and %+v is denied: %s\n%s", r, q, d.Reason, strings.Join(lines, "\n"))
				}
			}
			exact := authz.Wanted{Principal: q.Subject.Principal, Tenant: q.Subject.Tenant, Task: q.Task, Tool: q.Tool, Action: q.Action, Args: q.Args, Time: q.Time}
			found, _ := p.Reach(exact)
			if (len(found) > 0) != (d.Verdict != authz.Deny) || len(found) > 1 {
				t.Fatalf("%+v: %s, and %v\n%s", q, d.Verdict, found, strings.Join(lines, "\n"))
			}
			if len(found) == 0 {
				continue
			}
			met++
			if found[0].Verdict != d.Verdict.String() || !slices.Equal(needs(d), needs(authz.Decision{Need: found[0].Need})) {
				t.Fatalf("%+v: %s, and %+v", q, d.Verdict, found[0])
			}
			for _, w := range []authz.Wanted{{Tool: q.Tool, Action: q.Action}, {Tool: q.Tool, Action: q.Action, Tenant: q.Subject.Tenant}, {Principal: q.Subject.Principal}, {}} {
				found, more := p.Reach(w)
				if !more && !slices.ContainsFunc(found, func(r authz.Reach) bool {
					return covers(r.Who, q.Subject.Principal) && covers(r.Tenant, q.Subject.Tenant) && covers(r.Task, q.Task) && covers(r.Tool, q.Tool) && r.Action == q.Action &&
						slices.ContainsFunc(r.Rows, func(row authz.ReachRow) bool {
							return slices.ContainsFunc(d.Rules, func(rule authz.Rule) bool { return rule == row.Rule })
						})
				}) {
					t.Fatalf("%+v is %s, but of %+v is told\n%+v\nby\n%s", q, d.Verdict, w, found, strings.Join(lines, "\n"))
				}
			}
		}
	})
	if met == 0 {
		t.Error("nothing was ever granted")
	}
}
