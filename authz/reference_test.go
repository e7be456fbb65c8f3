package authz_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"toolbroker/authz"
)

// The reference reads DESIGN section 7 in the plainest way: globs as regular
// expressions, roles as a set grown until it grows no more, conditions as Go,
// every row looked at, no Casbin.

// A test row's condition is one of these, by text; each is yes, no or "cannot be
// evaluated" for the arguments n (a number or not there) and s (a string).
var conditions = map[string]func(args map[string]any, hour int) string{
	"":                func(map[string]any, int) string { return "yes" },
	"args.n > 5":      func(a map[string]any, _ int) string { return number(a, func(n float64) bool { return n > 5 }) },
	"args.n <= 3":     func(a map[string]any, _ int) string { return number(a, func(n float64) bool { return n <= 3 }) },
	"args.s == 'x'":   func(a map[string]any, _ int) string { return text(a, func(s string) bool { return s == "x" }) },
	"args.s =~ '^y'":  func(a map[string]any, _ int) string { return text(a, func(s string) bool { return s[0] == 'y' }) },
	"args.n == null":  func(a map[string]any, _ int) string { return word(a["n"] == nil) },
	"hour < 12":       func(_ map[string]any, hour int) string { return word(hour < 12) },
	"hour in (1, 13)": func(_ map[string]any, hour int) string { return word(hour == 1 || hour == 13) },
	"!(args.s in ('x','z'))": func(a map[string]any, _ int) string {
		return text(a, func(s string) bool { return s != "x" && s != "z" })
	},
}

func word(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func number(a map[string]any, f func(float64) bool) string {
	if n, ok := a["n"].(float64); ok {
		return word(f(n))
	}
	return "unknown"
}

func text(a map[string]any, f func(string) bool) string {
	if s, ok := a["s"].(string); ok {
		return word(f(s))
	}
	return "unknown"
}

func covers(pattern, s string) bool {
	if pattern == "*" {
		return true
	}
	re := regexp.QuoteMeta(pattern)
	re = strings.ReplaceAll(re, `\*\*`, "\x00")
	re = strings.ReplaceAll(re, `\*`, "[^/]*")
	re = strings.ReplaceAll(re, "\x00", ".*")
	return regexp.MustCompile("^(?s:" + re + ")$").MatchString(s)
}

type refRow struct{ who, tenant, task, tool, action, when, verdict string }

func (r refRow) String() string {
	return fmt.Sprintf("p, %s, %s, %s, %s, %s, %q, %s", r.who, r.tenant, r.task, r.tool, r.action, r.when, r.verdict)
}

type refPolicy struct {
	links   [][3]string // workload, role, tenant
	members [][2]string // tool, group
	rows    []refRow
}

func (p refPolicy) lines() []string {
	var lines []string
	for _, l := range p.links {
		lines = append(lines, fmt.Sprintf("g, %s, %s, %s", l[0], l[1], l[2]))
	}
	for _, m := range p.members {
		lines = append(lines, fmt.Sprintf("g2, %s, %s", m[0], m[1]))
	}
	for _, r := range p.rows {
		lines = append(lines, r.String())
	}
	return lines
}

var refLabels = []string{"reads:private", "reads:untrusted", "sends:external", "changes:permissions", "destructive"}

// decide returns the verdict and every row that made it, as rows and requirements.
func (p refPolicy) decide(q authz.Request) (verdict string, rules, need []string) {
	holds := map[string]bool{}
	for range p.links {
		for _, l := range p.links {
			member := covers(l[0], q.Subject.Principal)
			if strings.HasPrefix(l[0], "role:") {
				member = holds[l[0]]
			}
			if member && covers(l[2], q.Subject.Tenant) {
				holds[l[1]] = true
			}
		}
	}
	in := func(group string) bool {
		for _, m := range p.members {
			if m[1] == group && covers(m[0], q.Tool) {
				return true
			}
		}
		return false
	}
	labelled := strings.HasPrefix(q.Tool, "task:") || slices.ContainsFunc(refLabels, in)
	var args map[string]any
	json.Unmarshal(q.Args, &args)

	denied, granted := false, false
	var grants, asks, denies []string
	for _, r := range p.rows {
		if strings.HasPrefix(r.who, "role:") && !holds[r.who] || !strings.HasPrefix(r.who, "role:") && !covers(r.who, q.Subject.Principal) {
			continue
		}
		if !covers(r.tenant, q.Subject.Tenant) || !covers(r.task, q.Task) {
			continue
		}
		listing := q.Action == authz.List
		if r.action != "*" && r.action != string(q.Action) && !(listing && r.action == "call") {
			continue
		}
		named, asIfLabelled := false, false
		if strings.ContainsAny(r.tool, "/*") {
			named = covers(r.tool, q.Tool)
		} else {
			named = in(r.tool)
			asIfLabelled = slices.Contains(refLabels, r.tool) && !labelled
		}
		came := conditions[r.when](args, q.Time.UTC().Hour())
		word, _, _ := strings.Cut(r.verdict, " ")
		if listing && r.when != "" {
			came = map[string]string{"allow": "yes", "approve": "yes", "deny": "no", "require": "no"}[word]
		}
		grant := named && came == "yes"
		restrict := (named || asIfLabelled) && came != "no"
		switch word {
		case "allow":
			if grant {
				granted, grants = true, append(grants, r.String())
			}
		case "approve":
			if grant {
				granted, grants = true, append(grants, r.String())
			}
			if restrict {
				asks = append(asks, r.String())
			}
		case "require":
			if restrict {
				asks = append(asks, r.String())
			}
		case "deny":
			if restrict {
				denied, denies = true, append(denies, r.String())
			}
		}
	}
	switch {
	case denied:
		return "deny", denies, nil
	case !granted:
		return "deny", nil, nil
	case len(asks) > 0 && q.Action != authz.List:
		rules = slices.Concat(grants, asks)
		slices.Sort(rules)
		return "approve", slices.Compact(rules), asks
	}
	return "allow", grants, nil
}

var (
	genWho     = rapid.SampledFrom([]string{"*", "a", "b", "b*", "x/*", "x/**", "role:r", "role:s", "role:t"})
	genTenant  = rapid.SampledFrom([]string{"*", "*", "acme", "acme", "glob*"})
	genTask    = rapid.SampledFrom([]string{"*", "*", "k1", "k*"})
	genTool    = rapid.SampledFrom([]string{"*", "s/a", "s/*", "s/**", "**/a", "u/b", "grp", "destructive", "sends:external"})
	genAction  = rapid.SampledFrom([]string{"*", "call", "call", "list", "read"})
	genWhen    = rapid.SampledFrom(slices.Sorted(maps.Keys(conditions)))
	genVerdict = rapid.SampledFrom([]string{"allow", "allow", "allow", "approve", "approve 2 of group:g", "require", "require 3 of group:h", "deny"})
	genRow     = rapid.Custom(func(t *rapid.T) refRow {
		return refRow{genWho.Draw(t, "who"), genTenant.Draw(t, "tenant"), genTask.Draw(t, "task"), genTool.Draw(t, "tool"), genAction.Draw(t, "action"), genWhen.Draw(t, "when"), genVerdict.Draw(t, "verdict")}
	})
	genPolicy = rapid.Custom(func(t *rapid.T) refPolicy {
		// Roles nest downwards only, so there is no circle; grp always has a tool.
		link := rapid.Custom(func(t *rapid.T) [3]string {
			return [3]string{rapid.SampledFrom([]string{"a", "b*", "x/*", "*", "role:t"}).Draw(t, "workload"), rapid.SampledFrom([]string{"role:r", "role:s"}).Draw(t, "role"), genTenant.Draw(t, "in")}
		})
		links := append(rapid.SliceOfNDistinct(link, 0, 4, rapid.ID).Draw(t, "links"), [3]string{"a", "role:t", "acme"})
		member := rapid.Custom(func(t *rapid.T) [2]string {
			return [2]string{rapid.SampledFrom([]string{"s/a", "u/*", "v/c"}).Draw(t, "of"), rapid.SampledFrom([]string{"grp", "destructive", "sends:external"}).Draw(t, "group")}
		})
		members := rapid.SliceOfNDistinct(member, 0, 4, rapid.ID).Draw(t, "members")
		if !slices.Contains(members, [2]string{"u/*", "grp"}) {
			members = append(members, [2]string{"u/*", "grp"})
		}
		return refPolicy{links, members, rapid.SliceOfNDistinct(genRow, 1, 14, refRow.String).Draw(t, "rows")}
	})
	genRequest = rapid.Custom(func(t *rapid.T) authz.Request {
		return authz.Request{
			Subject: authz.Subject{Principal: rapid.SampledFrom([]string{"a", "b", "bb", "x/1", "x/1/2", "role:r", "c"}).Draw(t, "principal"), Tenant: rapid.SampledFrom([]string{"acme", "globex", "other"}).Draw(t, "tenant")},
			Task:    rapid.SampledFrom([]string{"k1", "k2", "other"}).Draw(t, "task"),
			Tool:    rapid.SampledFrom([]string{"s/a", "s/b", "s/b/c", "u/b", "v/c", "w/d", "task:k1"}).Draw(t, "tool"),
			Action:  rapid.SampledFrom([]authz.Action{authz.Call, authz.Call, authz.List, authz.Read}).Draw(t, "action"),
			Args:    json.RawMessage(rapid.SampledFrom([]string{`{"n":2,"s":"x"}`, `{"n":9,"s":"yes"}`, `{"n":5}`, `{"s":"z"}`, `{}`, `{"n":"2","s":7}`}).Draw(t, "args")),
			Time:    time.Date(2026, 1, 1, rapid.SampledFrom([]int{1, 9, 13, 20}).Draw(t, "hour"), 0, 0, 0, time.UTC),
		}
	})
)

func compile(t *rapid.T, lines []string) *authz.Policy {
	p, findings := authz.Parse("f", []byte(strings.Join(lines, "\n")))
	if p == nil {
		t.Fatalf("%v in\n%s", findings, strings.Join(lines, "\n"))
	}
	return p
}

func texts(rules []authz.Rule) []string {
	var all []string
	for _, r := range rules {
		all = append(all, r.Text)
	}
	slices.Sort(all)
	return all
}

func needs(d authz.Decision) []string {
	var all []string
	for _, n := range d.Need {
		all = append(all, fmt.Sprintf("%d of %q by %s", n.N, n.Group, n.Rule.Text))
	}
	slices.Sort(all)
	return all
}

func TestDecideIsTheReference(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		ref := genPolicy.Draw(t, "policy")
		p := compile(t, ref.lines())
		for i := range 40 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			want, rules, need := ref.decide(q)
			slices.Sort(rules)
			d := p.Decide(q)
			seen[want]++
			if d.Verdict.String() != want || !slices.Equal(texts(d.Rules), rules) || len(d.Need) != len(need) {
				t.Fatalf("%+v\n%s\ngot  %s by %q needing %d\nwant %s by %q needing %d", q, strings.Join(ref.lines(), "\n"), d.Verdict, texts(d.Rules), len(d.Need), want, rules, len(need))
			}
		}
	})
	if seen["allow"] == 0 || seen["approve"] == 0 || seen["deny"] == 0 {
		t.Errorf("not every verdict was met: %v", seen)
	}
}

// The order of rows never matters.
func TestOrderNeverMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := genPolicy.Draw(t, "policy").lines()
		one := compile(t, lines)
		two := compile(t, rapid.Permutation(lines).Draw(t, "permuted"))
		for i := range 4 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			a, b := one.Decide(q), two.Decide(q)
			if a.Verdict != b.Verdict || !slices.Equal(texts(a.Rules), texts(b.Rules)) || !slices.Equal(needs(a), needs(b)) {
				t.Fatalf("%s by %q, then %s by %q", a.Verdict, texts(a.Rules), b.Verdict, texts(b.Rules))
			}
		}
	})
}

// A row that restricts, added anywhere, in the policy or in a scope, never lets
// more through and never drops a requirement (threat 10).
func TestRestrictingNeverLowers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ref := genPolicy.Draw(t, "policy")
		more := genRow.Draw(t, "more")
		more.verdict = rapid.SampledFrom([]string{"deny", "require", "require 1 of group:g", "require 9 of group:g"}).Draw(t, "restricts")
		if slices.ContainsFunc(ref.rows, func(r refRow) bool { return r == more }) {
			t.Skip("there already")
		}
		before, after := compile(t, ref.lines()), compile(t, append([]string{more.String()}, ref.lines()...))
		inScope := []authz.ScopeRow{{Tool: "*", Action: "*", Verdict: "allow"}, {Tool: "s/*", Action: "*", When: more.when, Verdict: more.verdict}}
		restricted, err := authz.NewScope(inScope)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			a := before.Decide(q)
			scoped := q
			scoped.Scopes = []*authz.Scope{restricted}
			for _, b := range []authz.Decision{after.Decide(q), before.Decide(scoped)} {
				if b.Verdict > a.Verdict {
					t.Fatalf("%s became %s by adding %s", a.Verdict, b.Verdict, more)
				}
				if b.Verdict == authz.Deny {
					continue
				}
				for _, n := range needs(a) {
					if !slices.Contains(needs(b), n) {
						t.Fatalf("%s was dropped by adding %s", n, more)
					}
				}
			}
		}
	})
}

// A scope narrows: with any scopes at all, a request is let through no further,
// and needs nobody less, than without; nor than with any one of them left out.
func TestScopesNeverWiden(t *testing.T) {
	genScope := rapid.Custom(func(t *rapid.T) *authz.Scope {
		var rows []authz.ScopeRow
		for i := range rapid.IntRange(0, 4).Draw(t, "rows") {
			rows = append(rows, authz.ScopeRow{Tool: rapid.SampledFrom([]string{"*", "s/*", "u/b", "**"}).Draw(t, fmt.Sprint("tool", i)), Action: genAction.Draw(t, "action"), When: genWhen.Draw(t, "when"), Verdict: genVerdict.Draw(t, "verdict")})
		}
		s, err := authz.NewScope(rows)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		p := compile(t, append(genPolicy.Draw(t, "policy").lines(), "p, *, *, *, **, call, , allow"))
		scopes := rapid.SliceOfN(genScope, 1, 3).Draw(t, "scopes")
		for i := range 4 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			q.Scopes = scopes
			with := p.Decide(q)
			for i := range scopes {
				q.Scopes = slices.Delete(slices.Clone(scopes), i, i+1)
				without := p.Decide(q)
				if with.Verdict > without.Verdict {
					t.Fatalf("%s without a scope, %s with it", without.Verdict, with.Verdict)
				}
				if with.Verdict == authz.Deny {
					continue
				}
				for _, n := range needs(without) {
					if !slices.Contains(needs(with), n) {
						t.Fatalf("a scope dropped %s", n)
					}
				}
			}
		}
	})
}
