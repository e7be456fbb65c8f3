package authz

import (
	"strings"
	"testing"

	"github.com/casbin/casbin/v2/effector"
)

// Where Casbin is given no rows it evaluates the matcher once, over empty
// strings, and takes true for Allow. That answer never counts.
func TestNoRowsIsNoAnswer(t *testing.T) {
	s := newRuleset(nil, nil, nil)
	if v, matched, err := s.ask(&engine{}, question{}, &call{}); v != Deny || matched != nil || err == nil {
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
		if got, err := h.HasLink(c.principal, c.cell, "acme"); got != c.want || err != nil {
			t.Errorf("%s as %s: %v, %v", c.principal, c.cell, got, err)
		}
	}
	if got, _ := h.HasLink("bot", "role:x"); got {
		t.Error("a role without a tenant")
	}
}

// What breaks within Casbin, or around it, denies, and says nothing of what was asked.
func TestFailureDenies(t *testing.T) {
	p, _ := Parse("f", []byte("p, bot, acme, k, s/t, call, args.n == 5, allow"))
	r := Request{Subject: Subject{"bot", "acme"}, Task: "k", Tool: "s/t", Action: Call, Args: []byte(`{"n":5}`)}
	if d := p.Decide(r); d.Verdict != Allow {
		t.Fatal(d)
	}
	p.rules.conditions["args.n == 5"].holds = func(*input) (bool, error) { panic("canary") }
	if d := p.Decide(r); d.Verdict != Deny || d.Reason != "the policy engine failed" || len(d.Rules) > 0 {
		t.Errorf("a panic in a condition: %+v", d)
	}
	delete(p.rules.conditions, "args.n == 5")
	if d := p.Decide(r); d.Verdict != Deny || d.Reason != "the policy engine failed" {
		t.Errorf("a condition nobody compiled: %+v", d)
	}
	p.rules = nil
	if d := p.Decide(r); d.Verdict != Deny || d.Reason != "the decision failed" || d.Revision != p.revision {
		t.Errorf("a panic of our own: %+v", d)
	}
}

// However many things are asked about, what is remembered stays bounded.
func TestMemoryIsBounded(t *testing.T) {
	var b bounded[int, string]
	for i := range 3 * maxRemembered {
		b.store(i, strings.Repeat("x", 3))
		if v, ok := b.load(i); !ok || v != "xxx" {
			t.Fatal(i, v, ok)
		}
	}
	if len(b.all) > maxRemembered {
		t.Error(len(b.all))
	}
}
