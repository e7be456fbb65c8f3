package gateway

import (
	"cmp"
	"sync"
	"time"

	"toolbroker/authz"
)

// question is what authz is asked about a tool: the policy, the most a task of
// this kind may ever do, this task's own scope, and the scopes of every task above
// it must each grant it. It is asked by ask.
func (g *Gateway) question(p Principal, t Task, tool string, a authz.Action, args []byte) authz.Request {
	return authz.Request{
		Subject: authz.Subject{Principal: p.ID, Tenant: p.Tenant},
		Task:    t.Kind, Tool: tool, Action: a, Args: args, Time: g.now(), Scopes: g.reachOf(t).all,
	}
}

// ask decides. A task does nothing that a task above it might not: policy is asked
// about the workload and kind of each of those too, and whoever must agree there
// must agree here. Else an agent could shed what is asked of it by delegating to
// another name.
func (g *Gateway) ask(t Task, q authz.Request) authz.Decision {
	d := g.Policy.Decide(q)
	for _, a := range t.Ancestors {
		if d.Verdict == authz.Deny {
			break
		}
		q.Subject.Principal, q.Task, q.Scopes = a.Principal, a.Kind, nil
		d = d.And(g.Policy.Decide(q), "the task above, "+a.ID)
	}
	return d
}

// visible reports whether policy and scopes could let this task use a thing in
// the usual way. What is not is not listed, and answers like what is not there.
func (g *Gateway) visible(p Principal, t Task, tool Tool) authz.Decision {
	return g.could(p, t, tool, shows[cmp.Or(tool.Sort, SortTool)])
}

func (g *Gateway) could(p Principal, t Task, tool Tool, a authz.Action) authz.Decision {
	q := g.question(p, t, tool.ID(), a, nil)
	q.Could = true
	return g.ask(t, q)
}

// A reach is what every question about a running task is put to beside policy. It
// is made once and remembered until the task is closed here, its scope changes, or
// the first of its widenings lapses.
type reach struct {
	own     *authz.Scope // as the task has it
	widened int
	until   time.Time      // zero: as long as the task
	all     []*authz.Scope // limits, and what it may do of them now

	mu    sync.Mutex
	lists map[listed]list
	asks  map[askedOf]offeredAsks
}

// A task's lists are remembered by who asks and for what. What could be granted
// depends on no argument and no clock.
type listed struct {
	principal string
	sort      Sort
}

type list struct {
	revision string // of the policy
	of       *Tool  // the first of the catalogue that it was made of; a new one is elsewhere
	tools    []Tool
}

const mostReaches = 1 << 14 // forgetting them all costs microseconds each

type taskKey struct{ tenant, id string }

func (g *Gateway) reachOf(t Task) *reach {
	key := taskKey{t.Tenant, t.ID}
	g.reachMu.RLock()
	r := g.reaches[key]
	g.reachMu.RUnlock()
	if r != nil && r.own == t.Scope && r.widened == len(t.Widened) && (r.until.IsZero() || g.now().Before(r.until)) {
		return r
	}
	r = g.newReach(t)
	g.reachMu.Lock()
	defer g.reachMu.Unlock()
	if len(g.reaches) >= mostReaches {
		clear(g.reaches)
	}
	g.reaches[key] = r
	return r
}

func (g *Gateway) forgetReach(t Task) {
	g.reachMu.Lock()
	defer g.reachMu.Unlock()
	delete(g.reaches, taskKey{t.Tenant, t.ID})
}

// newReach puts together a task's scopes: its own, with what approvals added to it
// and has not lapsed, comes last.
func (g *Gateway) newReach(t Task) *reach {
	r := &reach{own: t.Scope, widened: len(t.Widened), lists: map[listed]list{}}
	var rows []authz.ScopeRow
	for _, w := range t.Widened {
		if g.now().Before(w.Until) {
			rows = append(rows, w.Rows...)
			if r.until.IsZero() || w.Until.Before(r.until) {
				r.until = w.Until
			}
		}
	}
	scope := t.Scope
	if len(rows) > 0 {
		if sum, err := t.Scope.Plus(rows); err == nil { // else too many rows together; what it had, it keeps
			scope = sum
		}
	}
	all := append(g.limits(t), scope.Named("task "+t.ID))
	r.all = all[:len(all):len(all)]
	return r
}

// limits are the scopes that a task can never grow beyond. A kind that is no
// longer configured leaves nothing.
func (g *Gateway) limits(t Task) []*authz.Scope {
	all := make([]*authz.Scope, 0, 2*len(t.Ancestors)+2)
	for _, a := range t.Ancestors {
		all = append(all, g.kinds[a.Kind].Scope, a.Scope.Named("task "+a.ID))
	}
	return append(all, g.kinds[t.Kind].Scope)
}

// seen is what of one sort a task may be granted, and of how many things. It is
// shared.
func (g *Gateway) seen(p Principal, t Task, s Sort) (_ []Tool, of int) {
	revision := g.Policy.Revision() // before it is asked: a newer one asks again
	all := g.Servers.Offered(p.Tenant, s)
	if len(all) == 0 {
		return nil, 0
	}
	r, key := g.reachOf(t), listed{p.ID, s}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l, ok := r.lists[key]; ok && l.revision == revision && l.of == &all[0] {
		return l.tools, len(all)
	}
	var tools []Tool
	for _, tool := range all {
		if g.visible(p, t, tool).Verdict != authz.Deny {
			tools = append(tools, tool)
		}
	}
	r.lists[key] = list{revision, &all[0], tools[:len(tools):len(tools)]}
	return tools, len(all)
}
