package authz_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/casbin/casbin/v2"
	"github.com/casbin/casbin/v2/effector"
	"github.com/casbin/casbin/v2/model"
	"github.com/casbin/casbin/v2/rbac"

	"toolbroker/authz"
)

// plain is Casbin with the model over every row of a policy, or of a scope, each
// time: what the compiled form must agree with. Its functions are written apart
// from the engine's, in the plainest way.
type plain struct {
	casbin *casbin.Enforcer
	seen   *seen
	rows   []refRow // of each of Casbin's, an approve twice
	line   []int
	file   string
}

func newPlain(t testing.TB, file string, ref refPolicy) *plain {
	t.Helper()
	m, err := model.NewModelFromString(authz.Model)
	if err != nil {
		t.Fatal(err)
	}
	p := &plain{seen: &seen{}, file: file}
	add := func(line int, r refRow, tool, eft string) {
		p.rows, p.line = append(p.rows, r), append(p.line, line)
		m["p"]["p"].Policy = append(m["p"]["p"].Policy, []string{r.who, r.tenant, r.task, tool, r.action, r.when, eft})
	}
	for i, r := range ref.rows {
		line := len(ref.links) + len(ref.members) + i + 1
		word, _, _ := strings.Cut(r.verdict, " ")
		restricts := map[string]string{"approve": "require", "require": "require", "deny": "deny"}[word]
		if word == "allow" || word == "approve" {
			add(line, r, r.tool, "allow")
		}
		if restricts != "" {
			add(line, r, r.tool, restricts)
			if slices.Contains(refLabels, r.tool) {
				add(line, r, "unlabelled as "+r.tool, restricts)
			}
		}
	}
	if p.casbin, err = casbin.NewEnforcer(m); err != nil {
		t.Fatal(err)
	}
	m["g"]["g"].RM, m["g"]["g2"].RM = &refHolders{links: ref.links}, &refGroups{members: ref.members}
	p.casbin.SetEffector(p.seen)
	p.casbin.AddFunction("glob", func(a ...any) (any, error) { return covered(a[1].(string), a[0].(string)), nil })
	p.casbin.AddFunction("does", func(a ...any) (any, error) {
		return a[1] == "*" || a[1] == a[0] || a[0] == "list" && a[1] == "call", nil
	})
	p.casbin.AddFunction("when", func(a ...any) (any, error) {
		when, grant, c := a[0].(string), a[1] == "allow", a[2].(*plainCall)
		if when == "" {
			return true, nil
		}
		if c.could {
			return grant, nil
		}
		came := conditions[when](c.args, c.hour)
		return came == "yes" || came == "unknown" && !grant, nil
	})
	return p
}

type plainCall struct {
	args  map[string]any
	hour  int
	could bool
}

// seen is the model's effect, and which rows it saw match.
type seen struct{ matches []float64 }

func (s *seen) MergeEffects(_ string, rows []effector.Effect, matches []float64, at, of int) (effector.Effect, int, error) {
	if at < of-1 {
		return effector.Indeterminate, -1, nil
	}
	s.matches = slices.Clone(matches)
	has := func(e effector.Effect) int {
		for i := range rows {
			if rows[i] == e && matches[i] != 0 {
				return i
			}
		}
		return -1
	}
	deny, require, allow := has(effector.Deny), has(effector.Indeterminate), has(effector.Allow)
	switch {
	case deny >= 0 || allow < 0:
		return effector.Deny, deny, nil
	case require >= 0:
		return effector.Indeterminate, require, nil
	}
	return effector.Allow, allow, nil
}

type refHolders struct {
	rbac.RoleManager
	links [][3]string
}

func (h *refHolders) HasLink(who, cell string, tenant ...string) (bool, error) {
	if !strings.HasPrefix(cell, "role:") {
		return covered(cell, who), nil
	}
	holds := map[string]bool{}
	for before := -1; before < len(holds); {
		before = len(holds)
		for _, l := range h.links {
			if (strings.HasPrefix(l[0], "role:") && holds[l[0]] || !strings.HasPrefix(l[0], "role:") && covered(l[0], who)) && covered(l[2], tenant[0]) {
				holds[l[1]] = true
			}
		}
	}
	return holds[cell], nil
}

type refGroups struct {
	rbac.RoleManager
	members [][2]string
}

func (g *refGroups) HasLink(tool, cell string, _ ...string) (bool, error) {
	in := func(group string) bool {
		return slices.ContainsFunc(g.members, func(m [2]string) bool { return m[1] == group && covered(m[0], tool) })
	}
	switch {
	case strings.HasPrefix(cell, "unlabelled as "):
		return !strings.HasPrefix(tool, "task:") && !slices.ContainsFunc(refLabels, in), nil
	case strings.ContainsAny(cell, "/*:") && !slices.Contains(refLabels, cell):
		return covered(cell, tool), nil
	}
	return in(cell), nil
}

var globs = map[string]*regexp.Regexp{}

// covered is covers, of a pattern that is compiled once.
func covered(pattern, s string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == s
	}
	re, ok := globs[pattern]
	if !ok {
		parts := strings.Split(pattern, "**")
		for i, part := range parts {
			parts[i] = strings.ReplaceAll(regexp.QuoteMeta(part), `\*`, "[^/]*")
		}
		re = regexp.MustCompile("^(?s:" + strings.Join(parts, ".*") + ")$")
		globs[pattern] = re
	}
	return pattern == "*" || re.MatchString(s)
}

// A plainOutcome is a decision as FILE:LINE of what granted, asked and denied.
type plainOutcome struct {
	verdict             authz.Verdict
	grants, asks, denys []string
}

func (p *plain) decide(t testing.TB, who, tenant, task string, q authz.Request, c *plainCall) (o plainOutcome) {
	allowed, decider, err := p.casbin.EnforceEx(who, tenant, task, q.Tool, string(q.Action), c)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case allowed:
		o.verdict = authz.Allow
	case len(decider) > 0 && decider[6] == "require":
		o.verdict = authz.Approve
	}
	for i, m := range p.seen.matches {
		if m == 0 {
			continue
		}
		at := fmt.Sprintf("%s:%d", p.file, p.line[i])
		switch p.casbin.GetModel()["p"]["p"].Policy[i][6] {
		case "allow":
			o.grants = append(o.grants, at)
		case "require":
			o.asks = append(o.asks, at+"\n"+p.rows[i].verdict)
		case "deny":
			o.denys = append(o.denys, at)
		}
	}
	return o
}

// all puts what the policy and the scopes say together, as one line.
func (p *plain) all(t testing.TB, scopes []*plain, q authz.Request) string {
	c := &plainCall{hour: q.Time.UTC().Hour(), could: q.Could || q.Action == authz.List}
	json.Unmarshal(q.Args, &c.args)
	sum := p.decide(t, q.Subject.Principal, q.Subject.Tenant, q.Task, q, c)
	for _, s := range scopes {
		o := s.decide(t, "", "", "", q, c)
		sum.verdict = min(sum.verdict, o.verdict)
		sum.grants, sum.asks, sum.denys = append(sum.grants, o.grants...), append(sum.asks, o.asks...), append(sum.denys, o.denys...)
	}
	if c.could && sum.verdict == authz.Approve {
		sum.verdict = authz.Allow
	}
	var rules, need []string
	switch sum.verdict {
	case authz.Deny:
		rules = sum.denys
	case authz.Allow:
		rules = sum.grants
	case authz.Approve:
		rules = sum.grants
		for _, ask := range sum.asks {
			at, verdict, _ := strings.Cut(ask, "\n")
			rules = append(rules, at)
			_, of, _ := strings.Cut(verdict, " ")
			if of == "" {
				of = "1 of group:"
			}
			need = append(need, of+" "+at)
		}
	}
	return outcomeText(sum.verdict, rules, need)
}

func outcomeText(v authz.Verdict, rules, need []string) string {
	rules, need = slices.Clone(rules), slices.Clone(need)
	slices.Sort(rules)
	slices.Sort(need)
	return fmt.Sprint(v, slices.Compact(rules), slices.Compact(need))
}

func decided(d authz.Decision) string {
	var rules, need []string
	for _, r := range d.Rules {
		rules = append(rules, fmt.Sprintf("%s:%d", r.File, r.Line))
	}
	for _, n := range d.Need {
		need = append(need, fmt.Sprintf("%d of group:%s %s:%d", n.N, n.Group, n.Rule.File, n.Rule.Line))
	}
	return outcomeText(d.Verdict, rules, need)
}

// A world is what policies and requests are drawn from. Where it is small many
// rows match; where it is large there are many more that do not.
type world struct {
	whos, tenants, tasks, tools, groups    []string // cells
	principals, places, kinds, things      []string // what is asked with
	workloads, roles, members, conditionOf []string
}

func newWorld(large bool) *world {
	w := &world{
		whos:    []string{"*", "a", "b", "b*", "x/*", "x/**", "*/1", "role:r", "role:s", "role:t"},
		tenants: []string{"*", "*", "acme", "acme", "glob*", "*x"}, tasks: []string{"*", "*", "k1", "k*"},
		tools:      []string{"*", "s/a", "s/*", "s/**", "**/a", "*/b", "u/b", "grp", "destructive", "sends:external", "task:*", "task:k1"},
		principals: []string{"a", "b", "bb", "x/1", "x/1/2", "role:r", "c"}, places: []string{"acme", "globex", "other"}, kinds: []string{"k1", "k2", "other"},
		things:    []string{"s/a", "s/b", "s/b/c", "u/b", "v/c", "w/d", "task:k1"},
		workloads: []string{"a", "b*", "x/*", "*", "*/1", "role:t"}, roles: []string{"role:r", "role:s"},
		members: []string{"s/a", "u/*", "v/c", "*/b"}, groups: []string{"grp", "destructive", "sends:external"},
		conditionOf: slices.Sorted(maps.Keys(conditions)),
	}
	if large {
		for i := range 40 {
			w.whos = append(w.whos, fmt.Sprintf("a%d", i), fmt.Sprintf("x/%d*", i), fmt.Sprintf("role:r%d", i))
			w.principals = append(w.principals, fmt.Sprintf("a%d", i), fmt.Sprintf("x/%d", i), fmt.Sprintf("x/%d-7", i))
			w.roles = append(w.roles, fmt.Sprintf("role:r%d", i))
			w.workloads = append(w.workloads, fmt.Sprintf("a%d", i), fmt.Sprintf("x/%d-*", i))
			w.tenants = append(w.tenants, fmt.Sprintf("t%d", i%9))
			w.places = append(w.places, fmt.Sprintf("t%d", i%9))
		}
		for i := range 60 {
			w.tools = append(w.tools, fmt.Sprintf("s%d/t%d", i%9, i), fmt.Sprintf("s%d/t%d*", i%9, i), fmt.Sprintf("s%d/*%d", i, i%9))
			w.things = append(w.things, fmt.Sprintf("s%d/t%d", i%9, i), fmt.Sprintf("s%d/t%d", i, i%9))
		}
	}
	return w
}

func one(r *rand.Rand, of []string) string { return of[r.IntN(len(of))] }

var drawnVerdicts = []string{"allow", "allow", "allow", "allow", "approve", "approve 2 of group:g", "require", "require 3 of group:h", "deny"}

func (w *world) row(r *rand.Rand) refRow {
	row := refRow{one(r, w.whos), one(r, w.tenants), one(r, w.tasks), one(r, w.tools), one(r, []string{"*", "call", "call", "list", "read", "start"}), "", one(r, drawnVerdicts)}
	if r.IntN(3) == 0 {
		row.when = one(r, w.conditionOf)
	}
	return row
}

func (w *world) policy(r *rand.Rand, rows int) (p refPolicy) {
	for range 1 + r.IntN(rows/2) {
		l := [3]string{one(r, w.workloads), one(r, w.roles), one(r, w.tenants)}
		if l[1] != "role:t" && !slices.Contains(p.links, l) {
			p.links = append(p.links, l)
		}
	}
	p.links = append(p.links, [3]string{"a", "role:t", "acme"})
	p.members = append(p.members, [2]string{"u/*", "grp"})
	for range r.IntN(5) {
		if m := [2]string{one(r, w.members), one(r, w.groups)}; !slices.Contains(p.members, m) {
			p.members = append(p.members, m)
		}
	}
	seen := map[refRow]bool{}
	if r.IntN(3) > 0 { // so that most is not denied for want of a grant
		row := refRow{"*", "*", "*", "**", "*", "", one(r, []string{"allow", "approve"})}
		seen[row] = true
		p.rows = append(p.rows, row)
	}
	for range 1 + r.IntN(rows) {
		if row := w.row(r); !seen[row] {
			seen[row] = true
			p.rows = append(p.rows, row)
		}
	}
	return p
}

// scopes draws scopes and what they are to plain Casbin. The widest comes now and
// then, so that something is left to decide below it.
func (w *world) scopes(t testing.TB, r *rand.Rand) (all []*authz.Scope, plains []*plain) {
	cells := slices.DeleteFunc(slices.Clone(w.tools), func(cell string) bool { return slices.Contains(w.groups, cell) })
	for i := range 3 {
		var rows []authz.ScopeRow
		var ref refPolicy
		add := func(row refRow) {
			row.who, row.tenant, row.task = "*", "*", "*"
			rows = append(rows, authz.ScopeRow{Tool: row.tool, Action: row.action, When: row.when, Verdict: row.verdict})
			ref.rows = append(ref.rows, row)
		}
		if r.IntN(3) > 0 {
			add(refRow{tool: "**", action: "*", verdict: "allow"})
		}
		for range r.IntN(4) {
			row := w.row(r)
			row.tool = one(r, cells)
			add(row)
		}
		if len(rows) == 0 { // Casbin has no answer for no rows
			add(refRow{tool: "none/*", action: "call", verdict: "allow"})
		}
		name := fmt.Sprint("task ", i)
		all = append(all, scope(t, rows...).Named(name))
		plains = append(plains, newPlain(t, "scope of "+name, ref))
	}
	return all, plains
}

func (w *world) request(r *rand.Rand) authz.Request {
	return authz.Request{
		Subject: authz.Subject{Principal: one(r, w.principals), Tenant: one(r, w.places)}, Task: one(r, w.kinds), Tool: one(r, w.things),
		Action: authz.Action(one(r, []string{"call", "call", "call", "list", "read", "start"})), Could: r.IntN(8) == 0,
		Args: []byte(one(r, []string{`{"n":2,"s":"x"}`, `{"n":9,"s":"yes"}`, `{"n":5}`, `{"s":"z"}`, `{}`, `{"n":"2","s":7}`})),
		Time: time.Date(2026, 1, 1, []int{1, 9, 13, 20}[r.IntN(4)], 0, 0, 0, time.UTC),
	}
}

// The compiled form is plain Casbin over the whole policy, and over every scope: the
// same verdict, by the same rows, asking the same. And no task is ever let do what
// one above it is not.
func TestDecideIsPlainCasbin(t *testing.T) {
	kinds := []struct{ policies, rows, requests int }{{1_000, 14, 99}, {3, 3_000, 400}}
	if testing.Short() {
		kinds[0].policies, kinds[1].policies = 100, 1
	}
	met := map[string]int{}
	for k, kind := range kinds {
		for n := range kind.policies {
			r := rand.New(rand.NewPCG(uint64(k), uint64(n)))
			w := newWorld(k > 0)
			ref := w.policy(r, kind.rows)
			policy, plain := parse(t, strings.Join(ref.lines(), "\n")), newPlain(t, "policy.csv", ref)
			scopes, plains := w.scopes(t, r)
			for range kind.requests {
				q := w.request(r)
				deep := 0
				if r.IntN(2) == 0 {
					deep = r.IntN(len(scopes) + 1)
				}
				q.Scopes = scopes[:deep]
				want := plain.all(t, plains[:deep], q)
				d := policy.Decide(q)
				if got := decided(d); got != want {
					t.Fatalf("policy %d/%d, %+v in %d scopes\ngot  %s\nwant %s\n%s", k, n, q, deep, got, want, strings.Join(ref.lines()[:min(40, len(ref.lines()))], "\n"))
				}
				met[d.Verdict.String()]++
				if deep > 0 {
					met[d.Verdict.String()+" in scopes"]++
					q.Scopes = scopes[:deep-1]
					if above := policy.Decide(q); d.Verdict > above.Verdict || d.Verdict != authz.Deny && !includes(d.Need, above.Need) {
						t.Fatalf("policy %d/%d, %+v: %v with %v, above it %v with %v", k, n, q, d.Verdict, d.Need, above.Verdict, above.Need)
					}
				}
			}
		}
	}
	for _, v := range []string{"deny", "approve", "allow"} {
		if met[v] < 100 || met[v+" in scopes"] < 20 {
			t.Errorf("too few were of each verdict: %v", met)
			break
		}
	}
	t.Log(met)
}
