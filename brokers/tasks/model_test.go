package tasks_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"toolbroker/authz"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// A modelTask is a task as it ought to be.
type modelTask struct {
	gateway.Task
	up      *modelTask
	ended   gateway.TaskState // empty while it runs
	spent   int64
	widened int
}

func (m *modelTask) runs() bool { return m.ended == "" && (m.up == nil || m.up.runs()) }

// A model is the whole registry, for one tenant.
type model struct {
	all   []*modelTask
	bound map[string]*modelTask // by principal
	day   map[string]int64
	stops map[string]gateway.Stop // by kind and name
}

func (m *model) stopped(t gateway.Task) bool {
	for _, s := range m.stops {
		switch s.Kind {
		case gateway.StopTenant:
			return true
		case gateway.StopPrincipal:
			if s.Name == t.Principal || slices.ContainsFunc(t.Ancestors, func(a gateway.Ancestor) bool { return a.Principal == s.Name }) {
				return true
			}
		case gateway.StopOwner:
			if s.Name == t.Owner {
				return true
			}
		case gateway.StopStanding:
			if s.Name == t.Principal+" bob "+t.Kind {
				return true
			}
		}
	}
	return false
}

// end ends a task and all below it.
func (m *model) end(t *modelTask, as gateway.TaskState) {
	for _, c := range m.all {
		if c.up == t && c.ended == "" {
			m.end(c, gateway.TaskRevoked)
		}
	}
	if t.ended == "" {
		t.ended = as
	}
}

func (m *model) sweep() {
	for _, t := range m.all {
		if t.ended == "" && m.stopped(t.Task) {
			m.end(t, gateway.TaskRevoked)
		}
	}
}

// Whatever is done in whatever order on two replicas, both say what a plain model
// says, and in the end every task that ended is on record once, with nothing left
// of it.
func TestModel(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		facts := &gatewaytest.Facts{}
		nodes := []*node{join(t, s, "r1", facts), join(t, s, "r2", facts)}
		for _, n := range nodes {
			fresh(t, n.Tasks)
		}
		round := 0
		runs := 0
		most := 12
		if strings.HasSuffix(t.Name(), "real") {
			most = 4
		}
		rapid.Check(t, func(rt *rapid.T) {
			if runs++; runs > most && !t.Failed() && os.Getenv("TOOLBROKER_LONG") == "" {
				return // each takes long; TOOLBROKER_LONG=1 makes as many as -rapid.checks says
			}
			round++
			modelRun(t, rt, s, facts, nodes, fmt.Sprint("m", round))
		})
	})
}

func modelRun(t *testing.T, rt *rapid.T, s *redistest.Server, facts *gatewaytest.Facts, nodes []*node, name string) {
	ctx := context.Background()
	m := &model{bound: map[string]*modelTask{}, day: map[string]int64{}, stops: map[string]gateway.Stop{}}
	on := rapid.SampledFrom(nodes)
	some := func(rt *rapid.T) *modelTask {
		if len(m.all) == 0 {
			rt.Skip()
		}
		return rapid.SampledFrom(m.all).Draw(rt, "task")
	}
	// Another replica may have to hear of it first; it has 100 ms.
	settle := func() {
		mark := time.Now()
		for _, n := range nodes {
			redistest.Await(t, "it has heard", func() bool { return n.Confirmed().After(mark) })
		}
	}
	want := func(rt *rapid.T, what string, err error, errs ...error) {
		rt.Helper()
		if len(errs) == 0 && err != nil {
			rt.Fatalf("%s: %v", what, err)
		}
		for _, e := range errs {
			if !errors.Is(err, e) {
				rt.Fatalf("%s: %v, want %v", what, err, e)
			}
		}
	}
	n := 0
	fill := func(rt *rapid.T) gateway.Task {
		n++
		task := task("acme", fmt.Sprintf("%s-%03d", name, n))
		task.Principal = rapid.SampledFrom([]string{"agent:a", "agent:b"}).Draw(rt, "principal") + name
		task.Owner = rapid.SampledFrom([]string{"alice", "dave"}).Draw(rt, "owner") + name
		task.Limits = gateway.Limits{Depth: 3, FanOut: 2}
		task.Budget = gateway.Budget{Calls: rapid.Int64Range(0, 4).Draw(rt, "calls"), PerDay: 20}
		task.Scope = everything
		return task
	}
	add := func(task gateway.Task, up *modelTask) *modelTask {
		one := &modelTask{Task: task, up: up}
		m.all = append(m.all, one)
		return one
	}
	rt.Repeat(map[string]func(*rapid.T){
		"start": func(rt *rapid.T) {
			task := fill(rt)
			task.Own, task.Parallel = rapid.Bool().Draw(rt, "own"), rapid.Bool().Draw(rt, "parallel")
			task.OwnFor = task.OnBehalfOf
			_, err := on.Draw(rt, "on").Start(ctx, task)
			b := m.bound[task.Principal]
			switch {
			case m.stopped(task):
				want(rt, "start under a stop", err, gateway.ErrStopped, gateway.ErrNoTask)
			case task.Own && !task.Parallel && b != nil && b.runs():
				want(rt, "start a second", err, gateway.ErrBusy)
			default:
				want(rt, "start", err)
				one := add(task, nil)
				if task.Own && !task.Parallel {
					m.bound[task.Principal] = one
				}
			}
		},
		"delegate": func(rt *rapid.T) {
			up := some(rt)
			task := fill(rt)
			task.Parent, task.Expires = up.ID, up.Expires
			task.Ancestors = append(slices.Clone(up.Ancestors), up.Ancestor())
			if len(task.Ancestors) > 3 {
				rt.Skip()
			}
			settled(t, facts, m) // children that are ending count until they are closed
			_, err := on.Draw(rt, "on").Start(ctx, task)
			children := 0
			for _, c := range m.all {
				if c.up == up && c.ended == "" {
					children++
				}
			}
			switch {
			case !up.runs() || m.stopped(task):
				want(rt, "delegate below what does not run", err, gateway.ErrNoTask)
			case children >= 2:
				want(rt, "delegate to a third", err, gateway.ErrTooMany)
			default:
				want(rt, "delegate", err)
				add(task, up)
			}
		},
		"standing": func(rt *rapid.T) {
			task := fill(rt)
			task.Implicit = true
			var was *modelTask
			for _, o := range m.all {
				if o.Implicit && o.Principal == task.Principal && o.runs() {
					was = o
				}
			}
			r := on.Draw(rt, "on")
			_, err := r.Start(ctx, task)
			switch {
			case m.stopped(task):
				want(rt, "a standing one under a stop", err, gateway.ErrStopped)
			case was != nil:
				want(rt, "a second standing one", err, gateway.ErrNotNow)
			default:
				want(rt, "a standing one", err)
				was = add(task, nil)
			}
			settle()
			got, err := r.Standing(ctx, "acme", task.Principal, "bob", task.Kind)
			switch {
			case errors.Is(err, gateway.ErrStale):
			case was == nil:
				want(rt, "Standing where there is none", err, gateway.ErrNoTask)
			case err != nil || got.ID != was.ID:
				rt.Fatalf("Standing = %s, %v", got.ID, err)
			}
		},
		"end": func(rt *rapid.T) {
			one := some(rt)
			if one.ended != "" { // what ends with its parent does so a moment later
				settled(t, facts, m)
			}
			as := rapid.SampledFrom([]gateway.TaskState{gateway.TaskEnded, gateway.TaskRevoked}).Draw(rt, "as")
			got, err := on.Draw(rt, "on").End(ctx, "acme", one.ID, gateway.Ending{As: as, By: "x"})
			want(rt, "end", err)
			if one.ended == "" {
				if one.Implicit && as == gateway.TaskEnded && one.up == nil {
					s := gateway.Stop{Kind: gateway.StopStanding, Name: one.Principal + " bob " + one.Kind}
					m.stops[string(s.Kind)+s.Name] = s
				}
				m.end(one, as)
				m.sweep()
			}
			if got.State == gateway.TaskRunning || got.Outcome != one.ended {
				rt.Fatalf("End of %s = %s, %s; want %s", one.ID, got.State, got.Outcome, one.ended)
			}
		},
		"bind": func(rt *rapid.T) {
			one := some(rt)
			if one.up != nil {
				rt.Skip()
			}
			err := on.Draw(rt, "on").Bind(ctx, one.Task, one.Principal, one.OnBehalfOf)
			b := m.bound[one.Principal]
			switch {
			case one.Parallel:
				want(rt, "bind a parallel one", err)
			case b != nil && b != one && b.runs():
				want(rt, "bind while on another", err, gateway.ErrBusy)
			case !one.runs():
				// A replica that has not heard of the end may still say that it is bound; Running refuses it.
			default:
				want(rt, "bind", err)
				m.bound[one.Principal] = one
			}
		},
		"spend": func(rt *rapid.T) {
			one := some(rt)
			settle()
			err := on.Draw(rt, "on").Spend(ctx, one.Task)
			room := m.day[one.Principal] < 20
			for a := one; a != nil; a = a.up {
				room = room && (a.Budget.Calls == 0 || a.spent < a.Budget.Calls)
			}
			switch {
			case !one.runs():
				want(rt, "spend on what does not run", err, gateway.ErrNoTask)
			case !room:
				want(rt, "spend what is used up", err, gateway.ErrTooMany)
			default:
				want(rt, "spend", err)
				m.day[one.Principal]++
				for a := one; a != nil; a = a.up {
					a.spent++
				}
			}
		},
		"widen": func(rt *rapid.T) {
			one := some(rt)
			id := rapid.IntRange(0, 2).Draw(rt, "approval")
			_, err := on.Draw(rt, "on").Widen(ctx, "acme", one.ID, gateway.Widening{Approval: fmt.Sprint("apr-", id), Until: one.Expires,
				Rows: []authz.ScopeRow{{Tool: "files/write", Action: "call", Verdict: "allow"}}})
			if !one.runs() {
				if one.ended != "" {
					want(rt, "widen what does not run", err, gateway.ErrNoTask)
				}
				return
			}
			want(rt, "widen", err)
			one.widened |= 1 << id
		},
		"stop": func(rt *rapid.T) {
			s := rapid.SampledFrom([]gateway.Stop{
				{Kind: gateway.StopPrincipal, Name: "agent:a" + name}, {Kind: gateway.StopOwner, Name: "dave" + name}, {Kind: gateway.StopTenant},
			}).Draw(rt, "stop")
			if s.Kind == gateway.StopTenant && rapid.IntRange(0, 3).Draw(rt, "rarely") > 0 {
				rt.Skip()
			}
			s.Tenant = "acme"
			want(rt, "stop", on.Draw(rt, "on").Stop(ctx, s))
			m.stops[string(s.Kind)+s.Name] = s
			m.sweep()
		},
		"lift": func(rt *rapid.T) {
			if len(m.stops) == 0 {
				rt.Skip()
			}
			var names []string
			for k := range m.stops {
				names = append(names, k)
			}
			slices.Sort(names)
			k := rapid.SampledFrom(names).Draw(rt, "stop")
			_, err := on.Draw(rt, "on").Lift(ctx, "acme", m.stops[k].Kind, m.stops[k].Name)
			want(rt, "lift", err)
			delete(m.stops, k)
			settle()
		},
		"": func(rt *rapid.T) {
			settle()
			for _, one := range m.all {
				for i, r := range nodes {
					got, err := r.Running(ctx, "acme", one.ID)
					switch {
					case errors.Is(err, gateway.ErrStale):
					case one.runs() != (err == nil):
						rt.Fatalf("%s on r%d: %v; in the model it runs: %v", one.ID, i+1, err, one.runs())
					case err == nil:
						widened := 0
						for _, w := range got.Widened {
							widened |= 1 << (w.Approval[len(w.Approval)-1] - '0')
						}
						if widened != one.widened {
							rt.Fatalf("%s on r%d is widened by %v", one.ID, i+1, got.Widened)
						}
					}
				}
			}
		},
	})
	for _, one := range m.all {
		_, err := nodes[0].End(ctx, "acme", one.ID, gateway.Ending{As: gateway.TaskRevoked, By: "x"})
		want(rt, "end", err)
		m.end(one, gateway.TaskRevoked)
	}
	for _, s := range m.stops {
		if _, err := nodes[1].Lift(ctx, "acme", s.Kind, s.Name); err != nil {
			rt.Fatal(err)
		}
	}
	settled(t, facts, m)
	var ids []string
	for _, one := range m.all {
		ids = append(ids, one.ID)
	}
	if len(ids) > 0 {
		leftovers(t, s, "acme", ids...)
	}
	settle()
}

// settled waits until every task that ended in the model is closed, as it should be.
func settled(t *testing.T, facts *gatewaytest.Facts, m *model) {
	t.Helper()
	redistest.Await(t, "what ended is closed as it should be", func() bool {
		got := map[string]audit.Type{}
		for _, f := range closed(facts) {
			got[f.Task.ID] = f.Type
		}
		for _, one := range m.all {
			kind := map[gateway.TaskState]audit.Type{gateway.TaskEnded: audit.TaskEnded, gateway.TaskRevoked: audit.TaskRevoked}[one.ended]
			if got[one.ID] != kind {
				return false
			}
		}
		return true
	})
}
