package authz

import (
	"testing"

	"github.com/casbin/casbin/v2/effector"
)

// Where Casbin is given no rows it evaluates the matcher once, over empty
// strings, and takes true for Allow. That answer never counts.
func TestNoRowsIsNoAnswer(t *testing.T) {
	s := newRuleset(nil, nil, nil)
	if v, matched, err := s.enforce(nil, question{}, &call{}); v != Deny || matched != nil || err == nil {
		t.Errorf("%v %v %v", v, matched, err)
	}
}

func TestEffects(t *testing.T) {
	const allow, require, deny = effector.Allow, effector.Indeterminate, effector.Deny
	for _, c := range []struct {
		expr    string
		rows    []effector.Effect
		matches []float64
		want    effector.Effect
		row     int
		wrong   bool
	}{
		{policyEffect, []effector.Effect{allow, require, deny}, []float64{1, 1, 1}, deny, 2, false},
		{policyEffect, []effector.Effect{allow, require, deny}, []float64{1, 1, 0}, require, 1, false},
		{policyEffect, []effector.Effect{require, allow, deny}, []float64{1, 1, 0}, require, 0, false},
		{policyEffect, []effector.Effect{allow, require, deny}, []float64{1, 0, 0}, allow, 0, false},
		{policyEffect, []effector.Effect{allow, require, deny}, []float64{0, 1, 0}, deny, -1, false},
		{policyEffect, []effector.Effect{allow, require, deny}, []float64{0, 0, 0}, deny, -1, false},
		{"some(where (p.eft == allow))", []effector.Effect{allow}, []float64{1}, deny, -1, true},
	} {
		got, row, err := (&effects{}).MergeEffects(c.expr, c.rows, c.matches, len(c.rows)-1, len(c.rows))
		if got != c.want || row != c.row || (err != nil) != c.wrong {
			t.Errorf("%v matching %v: %v by %d, %v", c.rows, c.matches, got, row, err)
		}
	}
	if got, _, _ := (&effects{}).MergeEffects(policyEffect, []effector.Effect{deny, allow}, []float64{1, 0}, 0, 2); got != effector.Indeterminate {
		t.Errorf("it answers before the last row: %v", got)
	}
	parsed, err := parsedModel()
	if err != nil || parsed["e"]["e"].Value != policyEffect {
		t.Error(parsed["e"]["e"].Value, err)
	}
}

// Names give no roles, not even a role's own.
func TestOnlyLinksGiveRoles(t *testing.T) {
	h := newHolders([]link{{1, "bot", "role:x", "acme"}})
	for _, c := range []struct {
		principal, cell string
		want            bool
	}{{"bot", "role:x", true}, {"role:x", "role:x", false}, {"role:x", "*", true}, {"bot", "bot", true}} {
		if got := h.is(c.principal, c.cell, "acme"); got != c.want {
			t.Errorf("%s as %s: %v", c.principal, c.cell, got)
		}
	}
	if h.is("bot", "role:x", "") {
		t.Error("a role without a tenant")
	}
}

// What breaks within Casbin, or around it, denies, says nothing of what was asked
// and is not remembered.
func TestFailureDenies(t *testing.T) {
	text := []byte("p, bot, acme, k, s/t, call, args.n == 5, allow\np, bot, acme, k, s/u, call, , allow\n")
	p, _ := Parse("f", text)
	r := Request{Subject: Subject{"bot", "acme"}, Task: "k", Tool: "s/t", Action: Call, Args: []byte(`{"n":5}`)}
	if d := p.Decide(r); d.Verdict != Allow {
		t.Fatal(d)
	}
	broken, _ := Parse("f", text)
	cond := broken.rules.conditions["args.n == 5"]
	delete(broken.rules.conditions, "args.n == 5")
	if d := broken.Decide(r); d.Verdict != Deny || d.Reason != "the policy engine failed" {
		t.Errorf("a condition nobody compiled: %+v", d)
	}
	broken.rules.conditions["args.n == 5"] = cond
	if d := broken.Decide(r); d.Verdict != Allow {
		t.Errorf("a failure was remembered: %+v", d)
	}
	// Asked what could be, no argument alters the answer; a failure still is none.
	delete(broken.rules.conditions, "args.n == 5")
	r.Could = true
	if d := broken.Decide(r); d.Verdict != Deny || d.Reason != "the policy engine failed" {
		t.Errorf("a condition nobody compiled, in a list: %+v", d)
	}
	broken.rules.conditions["args.n == 5"] = cond
	if d := broken.Decide(r); d.Verdict != Allow {
		t.Errorf("a failure was remembered of a list: %+v", d)
	}
	r.Could = false
	holds := cond.holds
	cond.holds = func(*input) (bool, error) { panic("canary") }
	if d := broken.Decide(r); d.Verdict != Deny || d.Reason != "the decision failed" || len(d.Rules) > 0 {
		t.Errorf("a panic in a condition: %+v", d)
	}
	cond.holds = holds
	// Of nothing that argument and clock could alter, Casbin is asked but once.
	rules := broken.rules
	broken.rules = nil
	r.Tool = "s/u"
	if d := broken.Decide(r); d.Verdict != Deny || d.Reason != "the decision failed" || d.Revision != broken.revision {
		t.Errorf("a panic of our own: %+v", d)
	}
	broken.rules = rules
	if d := broken.Decide(r); d.Verdict != Allow {
		t.Errorf("a panic was remembered: %+v", d)
	}
}
