package authz_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"toolbroker/authz"
)

// What a task may do, every task above it may do, and whoever must agree to it
// above must agree to it below: over random trees, however wide a child's scope
// is written.
func TestAttenuation(t *testing.T) {
	trees := 100_000
	if testing.Short() {
		trees = 5_000
	}
	policy, findings := authz.Parse("policy.csv", []byte(`
p, *, *, *, files/*,    call,     ,                   allow
p, *, *, *, mail/*,     call,     args.n <= 5,        approve 1 of group:ops
p, *, *, *, mail/send,  call,     args.n > 3,         require 2 of group:sre
p, *, *, *, files/wipe, call,     ,                   deny
p, *, *, *, task:*,     delegate, ,                   allow
`))
	if policy == nil {
		t.Fatal(findings)
	}
	r := rand.New(rand.NewPCG(7, 7))
	tools := []string{"files/read", "files/write", "files/wipe", "mail/send", "mail/list", "task:work"}
	cells := append([]string{"**", "files/*", "mail/*", "*"}, tools...)
	whens := []string{"", "args.n == 1", "args.n > 2", "args.missing == 'x'"}
	verdicts := []string{"allow", "allow", "approve", "require 3 of group:leads", "deny"}
	var pool []*authz.Scope
	for len(pool) < 400 {
		var rows []authz.ScopeRow
		if r.IntN(3) > 0 {
			rows = append(rows, authz.ScopeRow{Tool: "**", Action: "*", Verdict: "allow"})
		}
		for range r.IntN(3) {
			rows = append(rows, authz.ScopeRow{
				Tool: cells[r.IntN(len(cells))], Action: []string{"call", "*", "delegate"}[r.IntN(3)],
				When: whens[r.IntN(len(whens))], Verdict: verdicts[r.IntN(len(verdicts))],
			})
		}
		s, err := authz.NewScope(rows)
		if err != nil {
			t.Fatal(err)
		}
		pool = append(pool, s)
	}
	granted := 0
	for tree := range trees {
		var chain []*authz.Scope
		for range 1 + r.IntN(4) {
			chain = append(chain, pool[r.IntN(len(pool))])
		}
		q := authz.Request{
			Subject: authz.Subject{Principal: "agent:a", Tenant: "acme"}, Task: "work",
			Tool: tools[r.IntN(len(tools))], Action: []authz.Action{authz.Call, authz.List, authz.Delegate}[r.IntN(3)],
			Args: fmt.Appendf(nil, `{"n":%d}`, r.IntN(7)),
		}
		var above *authz.Decision
		for depth := range len(chain) + 1 {
			q.Scopes = chain[:depth]
			d := policy.Decide(q)
			if above != nil && (d.Verdict > above.Verdict || d.Verdict != authz.Deny && !includes(d.Need, above.Need)) {
				t.Fatalf("tree %d: %s %s: depth %d may %v with %v, above it %v with %v", tree, q.Action, q.Tool, depth, d.Verdict, d.Need, above.Verdict, above.Need)
			}
			if d.Verdict != authz.Deny && depth > 1 {
				granted++
			}
			above = &d
		}
	}
	if granted < trees/50 {
		t.Errorf("only %d of %d were granted below a parent: the trees test nothing", granted, trees)
	}
}

// includes reports whether every requirement of b is one of a's.
func includes(a, b []authz.Requirement) bool {
	have := map[authz.Requirement]int{}
	for _, n := range a {
		have[n]++
	}
	for _, n := range b {
		if have[n]--; have[n] < 0 {
			return false
		}
	}
	return true
}

// Asking what could be granted leaves conditions open, and shares no answer with
// asking what is.
func TestCould(t *testing.T) {
	p, _ := authz.Parse("policy.csv", []byte("p, a, acme, work, task:sub, delegate, args.principal == 'agent:x', allow\np, a, acme, work, s/t, escalate, , approve 2 of group:sre\n"))
	q := authz.Request{Subject: authz.Subject{Principal: "a", Tenant: "acme"}, Task: "work", Tool: "task:sub", Action: authz.Delegate}
	for range 2 {
		if d := p.Decide(q); d.Verdict != authz.Deny {
			t.Error("granted without arguments")
		}
		q.Could = true
		if d := p.Decide(q); d.Verdict != authz.Allow {
			t.Error("could not be")
		}
		q.Could = false
	}
	q.Tool, q.Action = "s/t", authz.Escalate
	if d := p.Decide(q); d.Verdict != authz.Approve || len(d.Need) != 1 || d.Need[0].N != 2 {
		t.Errorf("escalation: %v", d)
	}
}
