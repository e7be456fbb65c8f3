package authz_test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"toolbroker/authz"
)

// An organisation is a policy as one would write it for so many rules: tenants of
// 25 roles with 8 grants each, two lines that give a role, a quarter of the grants
// under a condition, and guardrails over everybody. It is the same each time.
type organisation struct {
	tenants int
	text    string
	tools   []string // 1,000 of them
	grants  [][]orgGrant
}

// An orgGrant is one granting row, and a tool and arguments that it is for.
type orgGrant struct {
	tenant, agent, kind, tool string
	args                      string // "" where it has no condition
	verdict                   string
}

const orgPerTenant, orgRoles, orgGrants = 200, 25, 8

func newOrganisation(rules int) *organisation {
	r := rand.New(rand.NewPCG(uint64(rules), 5))
	o := &organisation{tenants: max(1, rules/orgPerTenant)}
	var verbs = []string{"issues.get", "issues.list", "issues.create", "issues.close", "repo.get", "repo.delete", "search.all", "search.code", "file.read", "file.write",
		"table.query", "table.drop", "charge.get", "charge.create", "refund.create", "message.post", "message.read", "user.get", "user.update", "pod.get", "pod.delete", "log.read", "alert.get", "alert.ack", "export"}
	for server := range 40 {
		for _, verb := range verbs {
			o.tools = append(o.tools, fmt.Sprintf("s%d/%s", server, verb))
		}
	}
	var b strings.Builder
	for server := range 40 {
		fmt.Fprintf(&b, "g2, s%d/*.delete, tools:dangerous\ng2, s%d/*.read, reads:private\ng2, s%d/message.*, sends:external\n", server, server, server)
	}
	b.WriteString(`p, *, *, *, tools:dangerous, *, , require 2 of group:sre
p, *, *, *, shell/**, *, , deny
p, *, *, *, */refund.*, call, args.amount > 10000, deny
p, *, *, *, */table.drop, *, , deny
`)
	for tenant := range o.tenants {
		var grants []orgGrant
		name := fmt.Sprintf("t%d", tenant)
		for role := range orgRoles {
			fmt.Fprintf(&b, "g, spiffe://%s/agent/%d-*, role:r%d, %s\ng, spiffe://%s/lead/%d, role:r%d, %s\n", name, role, role, name, name, role, role, name)
			kind := []string{"incident", "review", "report-*", "*"}[r.IntN(4)]
			for range orgGrants {
				g := orgGrant{tenant: name, agent: fmt.Sprintf("spiffe://%s/agent/%d-7", name, role), kind: strings.ReplaceAll(kind, "*", "weekly"), tool: o.tools[r.IntN(len(o.tools))], verdict: "allow"}
				when, cell := "", g.tool
				server, verb, _ := strings.Cut(g.tool, "/")
				family, _, dotted := strings.Cut(verb, ".")
				switch {
				case r.IntN(4) == 0:
					g.args = `{"amount": 12, "repo": "` + name + `/web", "note": "an issue as agents write them, of a line or two of text"}`
					when = []string{"args.repo =~ '^" + name + "/'", fmt.Sprintf("args.amount <= %d", 20+r.IntN(1000)), fmt.Sprintf("args.amount <= %d && hour >= 6 && hour < 22", 20+r.IntN(100))}[r.IntN(3)]
					if r.IntN(6) == 0 {
						g.verdict = "approve 1 of group:ops"
					}
				case r.IntN(3) == 0 && dotted:
					cell = server + "/" + family + ".*"
				}
				fmt.Fprintf(&b, "p, role:r%d, %s, %s, %s, call, %s, %s\n", role, name, kind, cell, when, g.verdict)
				grants = append(grants, g)
			}
		}
		o.grants = append(o.grants, grants)
	}
	o.text = distinct(b.String())
	return o
}

// distinct leaves out a line that is there already, as a file may have none twice.
func distinct(text string) string {
	seen := map[string]bool{}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !seen[line] {
			seen[line] = true
			b.WriteString(line)
		}
	}
	return b.String()
}

func (g orgGrant) ask() authz.Request {
	return authz.Request{Subject: authz.Subject{Principal: g.agent, Tenant: g.tenant}, Task: g.kind, Tool: g.tool, Action: authz.Call, Args: []byte(g.args), Time: noon}
}

// granted returns so many questions that a row is about, one tenant after the
// other; conditional picks those of a row with a condition.
func (o *organisation) granted(n int, conditional bool) (all []authz.Request) {
	for i := 0; len(all) < n; i++ {
		for _, g := range o.grants[i%o.tenants][i/o.tenants:] {
			if (g.args != "") == conditional && !strings.Contains(g.tool, "table.drop") && !strings.Contains(g.tool, "refund") {
				all = append(all, g.ask())
				break
			}
		}
	}
	return all
}
