package authz_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casbin/casbin/v2"
	"github.com/casbin/casbin/v2/model"
	"github.com/casbin/casbin/v2/rbac"

	"toolbroker/authz"
)

// What an issue asks for, at 1,000, 10,000 and 100,000 rules. The time of the
// median and of one in a hundred is measured as well, because a mean on a shared
// machine is mostly the neighbours'.

type sized struct {
	*organisation
	policy *authz.Policy
}

var organisations = map[int]func() sized{}

func init() {
	for _, n := range []int{1_000, 10_000, 100_000} {
		organisations[n] = sync.OnceValue(func() sized {
			o := newOrganisation(n)
			p, findings := authz.Parse("policy.csv", []byte(o.text))
			if p == nil {
				panic(fmt.Sprint(findings))
			}
			return sized{o, p}
		})
	}
}

// each runs a benchmark for every size.
func each(b *testing.B, run func(b *testing.B, o sized)) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := organisations[n]()
			runtime.GC() // of what the organisation took to make
			b.ReportAllocs()
			b.ResetTimer()
			run(b, o)
		})
	}
}

// timings keeps how long single operations took.
type timings struct {
	took []time.Duration
	per  int // operations in each
}

func (t *timings) since(start time.Time) { t.took = append(t.took, time.Since(start)) }

func (t *timings) report(b *testing.B) {
	slices.Sort(t.took)
	b.ReportMetric(float64(t.took[0].Nanoseconds())/float64(max(1, t.per)), "min-ns")
	for _, of := range []int{50, 99} {
		at := t.took[min(len(t.took)-1, len(t.took)*of/100)]
		b.ReportMetric(float64(at.Nanoseconds())/float64(max(1, t.per)), fmt.Sprintf("p%d-ns", of))
	}
}

// decideAll asks one question after the other, timing 16 at once where one is
// too short to time.
func decideAll(b *testing.B, p *authz.Policy, all []authz.Request, per int) {
	for range 2 { // as a gateway that has been up for a while
		for i := range all {
			p.Decide(all[i])
		}
	}
	t := timings{make([]time.Duration, 0, 1<<20), per}
	b.ResetTimer()
	for i := 0; b.Loop(); {
		start := time.Now()
		for range per {
			p.Decide(all[i%len(all)])
			i++
		}
		t.since(start)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*per), "each-ns")
	t.report(b)
}

func BenchmarkUnconditional(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		// Now and then another row of the same role has a condition.
		all := slices.DeleteFunc(o.granted(80, false), func(q authz.Request) bool { return o.policy.Decide(q).Conditional })
		decideAll(b, o.policy, all, 16)
	})
}

// The same with the scope of a task's kind and of the task.
func BenchmarkUnconditionalInScopes(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		scopes := taskScopes(b, o, 0)
		all := slices.DeleteFunc(o.granted(200, false), func(q authz.Request) bool {
			q.Scopes = scopes
			return o.policy.Decide(q).Conditional
		})
		for i := range all {
			all[i].Scopes = scopes
		}
		decideAll(b, o.policy, all, 16)
	})
}

func BenchmarkConditional(b *testing.B) {
	each(b, func(b *testing.B, o sized) { decideAll(b, o.policy, o.granted(64, true), 1) })
}

// taskScopes is the scope of a task's kind and its own.
func taskScopes(b *testing.B, o sized, i int) []*authz.Scope {
	kind := scope(b, authz.ScopeRow{Tool: "**", Action: "*", Verdict: "allow"})
	own := scope(b,
		authz.ScopeRow{Tool: fmt.Sprintf("s%d/*", i%40), Action: "call", Verdict: "allow"},
		authz.ScopeRow{Tool: "*/*.get", Action: "call", Verdict: "allow"},
		authz.ScopeRow{Tool: "*/*.delete", Action: "*", Verdict: "approve"},
		authz.ScopeRow{Tool: "*/charge.*", Action: "call", When: fmt.Sprintf("args.amount <= %d", 100+i), Verdict: "allow"},
		authz.ScopeRow{Tool: "*/user.*", Action: "*", Verdict: "deny"})
	return []*authz.Scope{kind.Named("kind"), own.Named(fmt.Sprint("task ", i))}
}

// A warm mix: 50 tasks with scopes, half the calls of tools they are for and half
// of any, arguments never the same.
func BenchmarkWarmMix(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		r := rand.New(rand.NewPCG(1, 2))
		var all []authz.Request
		for task := range 50 {
			scopes := taskScopes(b, o, task)
			grants := o.grants[r.IntN(o.tenants)]
			at := r.IntN(orgRoles) * orgGrants
			for range 40 {
				q := grants[at+r.IntN(orgGrants)].ask()
				if r.IntN(2) == 0 {
					q.Tool = o.tools[r.IntN(len(o.tools))]
				}
				q.Args = fmt.Appendf(nil, `{"amount": %d, "repo": "t%d/web"}`, r.IntN(12_000), r.IntN(o.tenants))
				q.Scopes = scopes
				all = append(all, q)
			}
		}
		decideAll(b, o.policy, all, 1)
	})
}

var strangers int

// A principal that was never seen, of which there are many more than are remembered.
func BenchmarkNewPrincipal(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		var t timings
		q := o.granted(1, false)[0]
		name := strings.TrimSuffix(q.Subject.Principal, "7")
		for b.Loop() {
			strangers++
			q.Subject.Principal = fmt.Sprint(name, strangers)
			start := time.Now()
			o.policy.Decide(q)
			t.since(start)
		}
		t.report(b)
	})
}

// A new task: its scope compiled, and its first decision.
func BenchmarkNewTask(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		var t timings
		all := o.granted(64, false)
		kind := scope(b, authz.ScopeRow{Tool: "**", Action: "*", Verdict: "allow"}).Named("kind")
		for i := 0; b.Loop(); i++ {
			q := all[i%len(all)]
			start := time.Now()
			own := scope(b,
				authz.ScopeRow{Tool: q.Tool, Action: "call", Verdict: "allow"},
				authz.ScopeRow{Tool: "*/*.get", Action: "call", Verdict: "allow"},
				authz.ScopeRow{Tool: "*/charge.*", Action: "call", When: "args.amount <= 100 && args.repo =~ '^acme/'", Verdict: "allow"})
			q.Scopes = []*authz.Scope{kind, own.Named(fmt.Sprint("task ", i))}
			o.policy.Decide(q)
			t.since(start)
		}
		t.report(b)
	})
}

// What of 1,000 tools a task could call, as the gateway makes a list: of a policy
// that was just put in force, of a task that is new to a policy that has been asked
// before, and the same again.
func BenchmarkList(b *testing.B) {
	list := func(p *authz.Policy, q authz.Request, tools []string) {
		q.Action, q.Could, q.Args = authz.List, true, nil
		for _, tool := range tools {
			q.Tool = tool
			p.Decide(q)
		}
	}
	for _, kind := range []string{"first", "cold", "warm"} {
		b.Run(kind, func(b *testing.B) {
			each(b, func(b *testing.B, o sized) {
				all := o.granted(64, false)
				var t timings
				scopes := taskScopes(b, o, 0)
				for i := 0; b.Loop(); i++ {
					p, q := o.policy, all[0]
					if kind == "first" {
						p, _ = authz.Parse("policy.csv", []byte(o.text))
					}
					if kind != "warm" {
						q, scopes = all[i%len(all)], taskScopes(b, o, i)
					}
					q.Scopes = scopes
					start := time.Now()
					list(p, q, o.tools)
					t.since(start)
				}
				t.report(b)
			})
		})
	}
}

// Read, check and build; and what a policy that was not asked anything weighs.
func BenchmarkLoad(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		text := []byte(o.text)
		before := heap()
		p, _ := authz.Parse("policy.csv", text)
		weighs := heap() - before
		b.ResetTimer()
		for b.Loop() {
			authz.Parse("policy.csv", text)
		}
		b.ReportMetric(float64(weighs)/float64(p.Rows()), "B/row")
	})
}

// What a policy weighs beside its rows when it remembers all that it will: twice as
// many questions as there is room for, each asked on one of many tasks.
func BenchmarkRemembered(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		for b.Loop() {
			p, _ := authz.Parse("policy.csv", []byte(o.text))
			var scopes [][]*authz.Scope
			for i := range 500 {
				scopes = append(scopes, taskScopes(b, o, i))
			}
			before := heap()
			r := rand.New(rand.NewPCG(3, 4))
			for range 1 << 17 {
				q := o.grants[r.IntN(o.tenants)][r.IntN(100)].ask()
				q.Tool, q.Scopes = o.tools[r.IntN(1000)], scopes[r.IntN(500)]
				q.Args = fmt.Appendf(nil, `{"amount": %d}`, r.IntN(2_000))
				p.Decide(q)
			}
			b.ReportMetric((float64(heap())-float64(before))/1e6, "MB")
			runtime.KeepAlive(p)
			runtime.KeepAlive(scopes)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Decisions while one file after the other is read, checked, built and put in force.
func BenchmarkWhileReloading(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		file := filepath.Join(b.TempDir(), "policy.csv")
		write(b, file, o.text)
		s, err := authz.Open(authz.StoreConfig{File: file, Settle: 1})
		if err != nil {
			b.Fatal(err)
		}
		var reloads sync.WaitGroup
		var stop atomic.Bool
		swapped := 0
		reloads.Go(func() {
			for ; !stop.Load(); swapped++ {
				write(b, file, fmt.Sprintf("%s# %d\n", o.text, swapped))
				if err := s.Reload(); err != nil {
					b.Error(err)
				}
			}
		})
		all := append(o.granted(64, false), o.granted(64, true)...)
		t := timings{took: make([]time.Duration, 0, 1<<20)}
		b.ResetTimer()
		for i := 0; b.Loop(); i++ {
			start := time.Now()
			s.Decide(all[i%len(all)])
			t.since(start)
		}
		stop.Store(true)
		reloads.Wait()
		b.ReportMetric(float64(swapped), "reloads")
		t.report(b)
	})
}

// For comparison: Casbin as it comes, with the same model over every row.
func BenchmarkPlainCasbin(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		m, err := model.NewModelFromString(authz.Model)
		if err != nil {
			b.Fatal(err)
		}
		held := linked{to: map[[3]string]bool{}}
		for line := range strings.Lines(o.text) {
			cells := strings.Split(strings.TrimSpace(line), ", ")
			switch {
			case cells[0] == "g":
				held.to[[3]string{strings.Replace(cells[1], "*", "7", 1), cells[2], cells[3]}] = true
			case cells[0] == "p":
				verdict, _, _ := strings.Cut(cells[7], " ")
				m["p"]["p"].Policy = append(m["p"]["p"].Policy, append(cells[1:7:7], verdict))
			}
		}
		e, err := casbin.NewEnforcer(m)
		if err != nil {
			b.Fatal(err)
		}
		m["g"]["g"].RM, m["g"]["g2"].RM = held, &refGroups{}
		e.SetEffector(&seen{})
		e.AddFunction("glob", func(a ...any) (any, error) { return authz.Match(a[0].(string), a[1].(string)), nil })
		e.AddFunction("does", func(a ...any) (any, error) { return a[1] == "*" || a[1] == a[0], nil })
		e.AddFunction("when", func(a ...any) (any, error) { return a[0] == "" || a[1] == "allow", nil })
		all := o.granted(16, false)
		b.ResetTimer()
		for i := 0; b.Loop(); i++ {
			q := all[i%len(all)]
			if ok, err := e.Enforce(q.Subject.Principal, q.Subject.Tenant, q.Task, q.Tool, string(q.Action), ""); err != nil || !ok {
				b.Fatal(q, ok, err)
			}
		}
	})
}

// linked is a role manager that looks up what the role lines come to.
type linked struct {
	rbac.RoleManager
	to map[[3]string]bool
}

func (l linked) HasLink(who, cell string, tenant ...string) (bool, error) {
	return l.to[[3]string{who, cell, tenant[0]}] || authz.Match(who, cell), nil
}

// A hundredth of all rows asks somebody where it asked nobody.
func BenchmarkDiff(b *testing.B) {
	each(b, func(b *testing.B, o sized) {
		lines := strings.SplitAfter(o.text, "\n")
		for i := 0; i < len(lines); i += 100 {
			lines[i] = strings.Replace(lines[i], ", allow", ", approve", 1)
		}
		next, findings := authz.Parse("policy.csv", []byte(strings.Join(lines, "")))
		if next == nil {
			b.Fatal(findings)
		}
		for b.Loop() {
			if d := o.policy.Diff(next, nil); d.Narrower == 0 || d.Wider != 0 {
				b.Fatal(d.Wider, d.Narrower)
			}
		}
	})
}
