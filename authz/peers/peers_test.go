// Package peers measures other engines beside ours, on policies that say the same.
// It is a module of its own, so that none of them is ever a dependency.
package peers

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/casbin/casbin/v2"
	"github.com/casbin/casbin/v2/model"
	"github.com/cedar-policy/cedar-go"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"toolbroker/authz"
)

// A rule lets a role call a tool, perhaps up to an amount. Eight make a role; every
// role is one agent's.
type rule struct {
	role, tool string
	most       int // 0: any
}

func rules(n int) (all []rule) {
	for i := range n {
		r := rule{role: fmt.Sprintf("r%d", i/8), tool: fmt.Sprintf("s%d/t%d", i%40, i%1000)}
		if i%4 == 3 {
			r.most = 100 + i%1000
		}
		all = append(all, r)
	}
	return all
}

func agent(r rule) string { return "agent-" + r.role }

// A decider says whether a rule's agent may call its tool with an amount.
type decider func(r rule, amount int) bool

var engines = []struct {
	name string
	most int // rules that it is asked with
	make func(b *testing.B, all []rule) decider
}{
	{"ours", 1_000_000, ours},
	{"casbin", 1_000_000, plainCasbin},
	{"cedar-go", 1_000_000, cedarGo},
	{"opa", 10_000, opaWith(`
		allow if { some r in data.rules; r.role == data.holds[input.who]; r.tool == input.tool; object.get(r, "most", 1000000) >= input.amount }`)},
	{"opa-by-role", 1_000_000, opaWith(`
		allow if { some r in data.byRole[data.holds[input.who]]; r.tool == input.tool; object.get(r, "most", 1000000) >= input.amount }`)},
}

func BenchmarkPeers(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		all := rules(n)
		for _, e := range engines {
			if n > e.most {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", e.name, n), func(b *testing.B) {
				start := time.Now()
				may := e.make(b, all)
				load := time.Since(start)
				// The first eight rules of three roles, asked in turn.
				var some []rule
				for _, at := range []int{0, n / 16 * 8, n - 8} {
					some = append(some, all[at:at+8]...)
				}
				for _, r := range some {
					if !may(r, 50) || r.most > 0 && may(r, r.most+1) || may(rule{role: r.role, tool: "other/tool"}, 50) {
						b.Fatal("it does not say what the others say:", r)
					}
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					may(some[i%len(some)], 50)
				}
				b.ReportMetric(load.Seconds(), "load-s")
			})
		}
	}
}

func ours(b *testing.B, all []rule) decider {
	var text strings.Builder
	last := ""
	for _, r := range all {
		if r.role != last {
			fmt.Fprintf(&text, "g, %s, role:%s, acme\n", agent(r), r.role)
			last = r.role
		}
		when := ""
		if r.most > 0 {
			when = fmt.Sprintf("args.amount <= %d", r.most)
		}
		fmt.Fprintf(&text, "p, role:%s, acme, *, %s, call, %s, allow\n", r.role, r.tool, when)
	}
	p, findings := authz.Parse("policy.csv", []byte(text.String()))
	if p == nil {
		b.Fatal(findings)
	}
	q := authz.Request{Subject: authz.Subject{Tenant: "acme"}, Task: "k", Action: authz.Call}
	return func(r rule, amount int) bool {
		q.Subject.Principal, q.Tool = agent(r), r.tool
		q.Args = append(strconv.AppendInt(append(q.Args[:0], `{"amount":`...), int64(amount), 10), '}')
		return p.Decide(q).Verdict == authz.Allow
	}
}

func plainCasbin(b *testing.B, all []rule) decider {
	m, err := model.NewModelFromString(`
[request_definition]
r = who, tool, amount
[policy_definition]
p = who, tool, most
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.who, p.who) && r.tool == p.tool && atMost(r.amount, p.most)
`)
	if err != nil {
		b.Fatal(err)
	}
	e, err := casbin.NewEnforcer(m)
	if err != nil {
		b.Fatal(err)
	}
	e.AddFunction("atMost", func(a ...any) (any, error) {
		most, err := strconv.Atoi(a[1].(string))
		return most == 0 || a[0].(float64) <= float64(most), err
	})
	var rows, links [][]string
	last := ""
	for _, r := range all {
		rows = append(rows, []string{r.role, r.tool, strconv.Itoa(r.most)})
		if r.role != last {
			links, last = append(links, []string{agent(r), r.role}), r.role
		}
	}
	if _, err := e.AddPolicies(rows); err != nil {
		b.Fatal(err)
	}
	if _, err := e.AddGroupingPolicies(links); err != nil {
		b.Fatal(err)
	}
	return func(r rule, amount int) bool {
		ok, err := e.Enforce(agent(r), r.tool, amount)
		if err != nil {
			b.Fatal(err)
		}
		return ok
	}
}

func cedarGo(b *testing.B, all []rule) decider {
	var text strings.Builder
	entities := cedar.EntityMap{}
	for _, r := range all {
		when := ""
		if r.most > 0 {
			when = fmt.Sprintf(" when { context.amount <= %d }", r.most)
		}
		fmt.Fprintf(&text, "permit(principal in Role::%q, action == Action::\"call\", resource == Tool::%q)%s;\n", r.role, r.tool, when)
		uid := cedar.NewEntityUID("Agent", cedar.String(agent(r)))
		entities[uid] = cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Role", cedar.String(r.role)))}
	}
	policies, err := cedar.NewPolicySetFromBytes("policy.cedar", []byte(text.String()))
	if err != nil {
		b.Fatal(err)
	}
	call := cedar.NewEntityUID("Action", "call")
	return func(r rule, amount int) bool {
		ok, _ := cedar.Authorize(policies, entities, cedar.Request{
			Principal: cedar.NewEntityUID("Agent", cedar.String(agent(r))), Action: call, Resource: cedar.NewEntityUID("Tool", cedar.String(r.tool)),
			Context: cedar.NewRecord(cedar.RecordMap{"amount": cedar.Long(amount)}),
		})
		return ok == cedar.Allow
	}
}

func opaWith(allow string) func(b *testing.B, all []rule) decider {
	return func(b *testing.B, all []rule) decider {
		var flat []any
		byRole, holds := map[string]any{}, map[string]any{}
		for _, r := range all {
			one := map[string]any{"role": r.role, "tool": r.tool}
			if r.most > 0 {
				one["most"] = r.most
			}
			flat = append(flat, one)
			of, _ := byRole[r.role].([]any)
			byRole[r.role] = append(of, one)
			holds[agent(r)] = r.role
		}
		q, err := rego.New(rego.Query("data.p.allow"), rego.Module("p.rego", "package p\n"+allow),
			rego.Store(inmem.NewFromObject(map[string]any{"rules": flat, "byRole": byRole, "holds": holds}))).PrepareForEval(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		return func(r rule, amount int) bool {
			got, err := q.Eval(context.Background(), rego.EvalInput(map[string]any{"who": agent(r), "tool": r.tool, "amount": amount}))
			if err != nil {
				b.Fatal(err)
			}
			return got.Allowed()
		}
	}
}
