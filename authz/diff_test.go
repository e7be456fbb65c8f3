package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"toolbroker/authz"
)

// changes is a difference, a line each: what, who, tenant, task, actions, tool, and
// the lines of both files.
func changes(d authz.Difference) (all []string) {
	for _, c := range d.Changes {
		out := "narrower"
		if c.Wider {
			out = "wider"
		}
		if c.Perhaps != "" {
			out = "perhaps " + out
		}
		tool := c.Tool.String()
		if c.Tools != nil {
			tool = strings.Join(c.Tools, "+")
		}
		var actions []string
		for _, a := range c.Actions {
			actions = append(actions, string(a))
		}
		out += fmt.Sprintf(" %s %s %s %s %s", c.Who, c.Tenant, c.Task, strings.Join(actions, "+"), tool)
		for i, rows := range [][]authz.ReachRow{c.Before, c.After} {
			out += []string{" |", " ->"}[i]
			for _, r := range rows {
				out += fmt.Sprint(" ", r.Line)
			}
		}
		if x := c.Example; x != nil {
			out += fmt.Sprintf(" | %s %s", x.Before, x.After)
			if x.Args != nil {
				out += " " + string(x.Args)
			}
			if x.Time != nil {
				out += x.Time.Format(" Mon 15h")
			}
		}
		all = append(all, out)
	}
	return all
}

func TestDiff(t *testing.T) {
	const g = "g, bot, role:r, acme\n"
	for _, c := range []struct {
		name, old, now string
		tools          []string
		want           []string
	}{
		{"the same in another order, and another space", g + "p, role:r, acme, k, s/t, call, , allow\np, a, acme, k, s/u, call, , deny\n", "p,a,acme,k,s/u,call,,deny\np, role:r, acme, k, s/t, call, , allow\n" + g, nil, nil},
		{"a new grant", "p, a, *, *, s/t, call, , allow\n", "p, a, *, *, s/t, call, , allow\np, b, acme, k, s/*, call, , allow\n", nil,
			[]string{"wider b acme k call s/* | -> 2 | deny allow"}},
		{"by the tools there are", "p, a, *, *, s/t, call, , allow\n", "p, a, *, *, s/t, call, , allow\np, b, acme, k, s/*, call, , allow\n", []string{"s/x", "s/y", "u/z"},
			[]string{"wider b acme k call s/x+s/y | -> 2 | deny allow"}},
		{"of no tool that there is", "p, a, *, *, s/t, call, , allow\n", "p, a, *, *, s/t, call, , allow\np, b, acme, k, s/*, call, , allow\n", []string{"u/z"}, nil},
		{"a grant that was there", "p, b*, *, *, s/**, call, , allow\n", "p, b*, *, *, s/**, call, , allow\np, bob, acme, k, s/*, call, , allow\n", nil, nil},
		{"a grant that is denied", "p, *, *, *, s/*, *, , deny\n", "p, *, *, *, s/*, *, , deny\np, b, acme, k, s/*, call, , allow\n", nil, nil},
		{"a grant that is denied in part", "p, *, *, *, s/x, *, , deny\n", "p, *, *, *, s/x, *, , deny\np, b, acme, k, s/*, call, , allow\n", nil,
			[]string{"wider b acme k call s/* but for s/x | -> 2 | deny allow"}},
		{"fewer humans", "p, a, t, k, s/t, call, , approve 2 of group:g\n", "p, a, t, k, s/t, call, , approve\n", nil, []string{"wider a t k call s/t | 1 -> 1 | approve approve"}},
		{"other humans", "p, a, t, k, s/t, call, , approve 2 of group:g\n", "p, a, t, k, s/t, call, , approve 2 of group:h\n", nil, []string{"wider a t k call s/t | 1 -> 1 | approve approve"}},
		{"more humans", "p, a, t, k, s/t, call, , allow\n", "p, a, t, k, s/t, call, , allow\np, *, *, *, s/*, *, , require\n", nil, []string{"narrower a t k call s/t | 1 -> 1 2 | allow approve"}},
		{"a guardrail less", "p, a, t, k, s/t, call, , allow\np, b, t, k, u/t, call, , allow\np, *, *, *, s/*, *, , require\n", "p, a, t, k, s/t, call, , allow\np, b, t, k, u/t, call, , allow\n", nil,
			[]string{"wider a t k call s/t | 1 3 -> 1 | approve allow"}},
		{"a denial less", "p, a*, t, k, s/t, call, , allow\np, ab, *, *, s/*, *, , deny\n", "p, a*, t, k, s/t, call, , allow\n", nil, []string{"wider ab t k call s/t | 1 2 -> 1 | deny allow"}},
		{"another holder", "g, a, role:r, t\np, role:r, *, k, s/t, call, , allow\n", "g, a, role:r, t\ng, b*, role:r, u\np, role:r, *, k, s/t, call, , allow\n", nil,
			[]string{"wider b* u k call s/t | -> 3 | deny allow"}},
		{"a role that holds a role", "g, a, role:q, t\ng, b, role:r, *\np, role:r, *, k, s/t, call, , allow\n", "g, a, role:q, t\ng, role:q, role:r, *\ng, b, role:r, *\np, role:r, *, k, s/t, call, , allow\n", nil,
			[]string{"wider a t k call s/t | -> 4 | deny allow"}},
		{"another tool of a group", "g2, s/t, grp\np, a, t, k, grp, call, , allow\n", "g2, s/t, grp\ng2, s/u, grp\np, a, t, k, grp, call, , allow\n", nil,
			[]string{"wider a t k call s/u | -> 3 | deny allow"}},
		{"a first label frees of the others", "g2, s/x, destructive\np, a, t, k, s/*, call, , allow\np, *, *, *, destructive, call, , require\n",
			"g2, s/x, destructive\ng2, s/t, reads:private\np, a, t, k, s/*, call, , allow\np, *, *, *, destructive, call, , require\n", nil,
			[]string{"wider a t k call s/t | 2 3 -> 3 | approve allow"}},
		{"conditions", "p, a, t, k, s/t, call, args.n <= 5, allow\n", "p, a, t, k, s/t, call, args.n <= 9, allow\n", nil,
			[]string{`wider a t k call s/t | 1 -> 1 | deny allow {"n":9}`}},
		{"narrower ones", "p, a, t, k, s/t, call, args.s =~ '^acme/', allow\n", "p, a, t, k, s/t, call, args.s =~ '^acme/' && args.n == 1, allow\n", nil,
			[]string{`narrower a t k call s/t | 1 -> 1 | allow deny {"n":0,"s":"acme/x"}`}},
		{"one that says the same", "p, a, t, k, s/t, call, args.n > 5, allow\n", "p, a, t, k, s/t, call, args.n > 5 && args.n > 4, allow\n", nil, nil},
		{"the same on both sides", "p, a, t, k, s/t, call, args.n > 5, allow\np, *, *, *, s/*, *, args.s == 'x', deny\n", "p, a, t, k, s/t, call, args.n > 5, allow\np, *, *, *, s/*, *, args.s == 'x', deny\np, a, t, k, s/t, call, args.n > 5, approve\n", nil,
			[]string{`narrower a t k call s/t | 1 2 -> 1 2 3 | allow approve {"n":10,"s":""}`}},
		{"at night", "p, a, t, k, s/t, call, hour < 12, allow\n", "p, a, t, k, s/t, call, , allow\n", nil, []string{"wider a t k call s/t | 1 -> 1 | deny allow Mon 12h"}},
		{"no example", "p, a, t, k, s/t, call, args.s =~ '^(a|b)c+$', allow\n", "p, a, t, k, s/t, call, args.s =~ '^(a|b)c*$', allow\n", nil,
			[]string{"perhaps wider a t k call s/t | 1 -> 1", "perhaps narrower a t k call s/t | 1 -> 1"}},
		{"other actions", "p, a, t, k, s/t, call, , allow\n", "p, a, t, k, s/t, *, , allow\n", nil,
			[]string{"wider a t k read+get+complete+subscribe+elicit+sample+roots+start+delegate+escalate s/t | -> 1 | deny allow"}},
		{"a list only", "p, a, t, k, s/t, call, , allow\np, *, *, *, s/t, list, , deny\n", "p, a, t, k, s/t, call, , allow\n", nil, []string{"wider a t k list s/t | 1 2 -> 1 | deny allow"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := changes(parse(t, c.old).Diff(parse(t, c.now), c.tools)); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// edited is a policy with a few lines more, fewer or other.
func edited(t *rapid.T, ref refPolicy) refPolicy {
	other := genPolicy.Draw(t, "other")
	some := func(name string) bool { return rapid.IntRange(0, 3).Draw(t, name) == 0 }
	var out refPolicy
	for i, l := range ref.links {
		if i == len(ref.links)-1 || !some("without link") {
			out.links = append(out.links, l)
		}
	}
	for _, l := range other.links {
		if some("with link") && !slices.Contains(out.links, l) {
			out.links = append(out.links, l)
		}
	}
	for _, m := range ref.members {
		if m == [2]string{"u/*", "grp"} || !some("without member") {
			out.members = append(out.members, m)
		}
	}
	for _, m := range other.members {
		if some("with member") && !slices.Contains(out.members, m) {
			out.members = append(out.members, m)
		}
	}
	for i, r := range ref.rows {
		if i == 0 || !some("without row") {
			out.rows = append(out.rows, r)
		}
	}
	for _, r := range other.rows {
		if some("with row") && !slices.ContainsFunc(out.rows, func(o refRow) bool { return o.String() == r.String() }) {
			out.rows = append(out.rows, r)
		}
	}
	return out
}

// asksFewer reports whether somebody whom a asks need not have agreed to b.
func asksFewer(a, b authz.Decision) bool {
	return slices.ContainsFunc(a.Need, func(x authz.Requirement) bool {
		return !slices.ContainsFunc(b.Need, func(y authz.Requirement) bool { return y.N >= x.N && (x.Group == "" || x.Group == y.Group) })
	})
}

// looser reports whether b lets through what a does not, or asks fewer humans.
func looser(a, b authz.Decision) bool {
	if a.Verdict == authz.Deny || b.Verdict == authz.Deny {
		return b.Verdict > a.Verdict
	}
	return asksFewer(a, b)
}

// Whatever the new file allows, or asks fewer humans for, is covered by a change
// that says so; and what such a change gives as an example is one.
func TestDiffMissesNothing(t *testing.T) {
	met := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		ref := genPolicy.Draw(t, "policy")
		old := compile(t, ref.lines())
		next := edited(t, ref)
		now := compile(t, next.lines())
		diff := old.Diff(now, nil)
		for i := range 60 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			a, b := old.Decide(q), now.Decide(q)
			for _, wider := range []bool{true, false} {
				is := looser(a, b)
				if !wider {
					is = !is && looser(b, a)
				}
				if !is {
					continue
				}
				at := slices.IndexFunc(diff.Changes, func(c authz.Change) bool { return c.Wider == wider && c.Covers(q) })
				if at < 0 {
					t.Fatalf("%+v\n%s -> %s, and it is not told of (wider: %v):\n%s\nold\n%s\nnew\n%s", q, a.Reason, b.Reason, wider, strings.Join(changes(diff), "\n"), strings.Join(ref.lines(), "\n"), strings.Join(next.lines(), "\n"))
				}
				met[fmt.Sprint(wider, diff.Changes[at].Perhaps != "")]++
			}
		}
		for _, c := range diff.Changes {
			x := c.Example
			if (x == nil) != (c.Perhaps != "") {
				t.Fatalf("%+v", c)
			}
			if x == nil {
				continue
			}
			q := authz.Request{Subject: authz.Subject{Principal: x.Principal, Tenant: x.Tenant}, Task: x.Task, Tool: x.Tool, Action: x.Action, Args: x.Args}
			if q.Time = noon; x.Time != nil {
				q.Time = *x.Time
			}
			a, b := old.Decide(q), now.Decide(q)
			if !c.Covers(q) || c.Wider && !looser(a, b) || !c.Wider && !looser(b, a) || a.Verdict != x.Before || b.Verdict != x.After {
				t.Fatalf("%+v is no example of %s: %s, %s\nold\n%s\nnew\n%s", q, changes(authz.Difference{Changes: []authz.Change{c}}), a.Reason, b.Reason, strings.Join(ref.lines(), "\n"), strings.Join(next.lines(), "\n"))
			}
		}
	})
	if met["true false"] == 0 || met["false false"] == 0 {
		t.Errorf("not every sort was met: %v", met)
	}
}

// A name that is found is one of the names; of none that there is none is claimed.
func TestNames(t *testing.T) {
	pattern := rapid.StringMatching(`(a|b|/|\*|\*\*){1,4}`)
	rapid.Check(t, func(t *rapid.T) {
		n := authz.Names{In: rapid.SliceOfN(pattern, 1, 3).Draw(t, "in"), But: rapid.SliceOfN(pattern, 0, 3).Draw(t, "but")}
		name, sure := authz.OneOf(n)
		if name != "" && !n.Have(name) {
			t.Fatalf("%q is none of %v", name, n)
		}
		guess := rapid.StringMatching(`[abz/]{1,6}`).Draw(t, "guess")
		if name == "" && sure && n.Have(guess) {
			t.Fatalf("%q is one of %v", guess, n)
		}
	})
}

// What is too much to look at is told as a whole, and never as nothing.
func TestDiffOfTooMuch(t *testing.T) {
	o := organisations[10_000]()
	for _, c := range []struct {
		name, text      string
		wider, narrower bool
		example         bool
	}{
		{"one grant for everybody", o.text + "p, *, *, *, **, *, , allow\n", true, false, true},
		{"one denial for everybody", o.text + "p, *, *, *, **, *, , deny\n", false, true, false},
		{"other roles", strings.ReplaceAll(o.text, "role:r", "role:q"), true, true, false},
	} {
		d := o.policy.Diff(parse(t, c.text), nil)
		whole := func(wider bool) bool {
			return slices.ContainsFunc(d.Changes, func(x authz.Change) bool {
				return x.Wider == wider && x.Perhaps != "" && x.Covers(authz.Request{Subject: authz.Subject{Principal: "spiffe://t3/lead/9", Tenant: "t3"}, Task: "k", Tool: "s/t", Action: authz.Read}) &&
					(!c.example || x.Example != nil && x.Example.After == authz.Allow)
			})
		}
		if whole(true) != c.wider || whole(false) != c.narrower || (d.Wider > 0) != c.wider || (d.Narrower > 0) != c.narrower {
			t.Errorf("%s: %d wider, %d narrower: %.2000s", c.name, d.Wider, d.Narrower, strings.Join(changes(d), "\n"))
		}
	}
}
