package console

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// tenantTasks is what the page of tasks shows of one tenant.
type tenantTasks struct {
	Name   string
	Many   bool
	Tasks  []branch
	More   int // how many are not shown
	MayEnd bool
}

// A branch is a task at its place in the tree of who delegated to whom.
type branch struct {
	gateway.Task
	Now  time.Time
	Deep int  // how far it is indented
	Lost bool // its parent is not on the page
}

// A task is one task whole.
type task struct {
	branch
	MayEnd   bool
	Children []gateway.Task
}

// An endForm is the button that ends a task.
type endForm struct {
	Op   gateway.Operator
	Task gateway.Task
}

// A page of more tasks than this would not be read.
const maxTasks = 500

// tree puts every task below its parent: families of which something still runs
// first, in the order given otherwise.
func tree(tasks []gateway.Task, now time.Time) []branch {
	known, below := map[string]bool{}, map[string][]gateway.Task{}
	for _, t := range tasks {
		known[t.ID] = true
	}
	var roots []gateway.Task
	for _, t := range tasks {
		if t.Parent != "" && known[t.Parent] {
			below[t.Parent] = append(below[t.Parent], t)
		} else {
			roots = append(roots, t)
		}
	}
	var live, over []branch
	for _, root := range roots {
		var family []branch
		running := false
		var grow func(t gateway.Task, deep int)
		grow = func(t gateway.Task, deep int) {
			running = running || !t.State.Final()
			family = append(family, branch{Task: t, Now: now, Deep: min(deep, maxIndent), Lost: t.Parent != "" && deep == 0})
			for _, child := range below[t.ID] {
				grow(child, deep+1)
			}
		}
		grow(root, 0)
		if running {
			live = append(live, family...)
		} else {
			over = append(over, family...)
		}
	}
	return append(live, over...)
}

func (s *console) tasksPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	f := frame{Title: "Tasks", Here: "tasks", Op: op}
	names := s.tenantsOf(op)
	for _, name := range names {
		tasks, err := s.Gateway.TaskList(r.Context(), op, name)
		if errors.Is(err, gateway.ErrNotFound) {
			continue // the operator's, but no longer one of ours
		}
		if err != nil {
			s.problem(w, r, op, err)
			return
		}
		all := tree(tasks, s.Now())
		shown := all[:min(len(all), maxTasks)]
		f.Tasks = append(f.Tasks, tenantTasks{
			Name: name, Many: len(names) > 1, Tasks: shown, More: len(all) - len(shown), MayEnd: op.Can(gateway.MayEnd),
		})
	}
	s.render(w, http.StatusOK, "tasks", f)
}

func (s *console) taskPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	t, err := s.Gateway.TaskShow(r.Context(), op, tenant, id)
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	all, err := s.Gateway.TaskList(r.Context(), op, tenant)
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	v := &task{branch: branch{Task: t, Now: s.Now()}, MayEnd: op.Can(gateway.MayEnd)}
	for _, c := range all {
		if c.Parent == id {
			v.Children = append(v.Children, c)
		}
	}
	s.render(w, http.StatusOK, "task", frame{Title: Reveal("Task " + t.Kind).String(), Here: "tasks", Op: op, T: v})
}

func (s *console) endTask(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	if !s.ours(w, r, op, "end", tenant, id) {
		return
	}
	if _, err := s.Gateway.TaskEnd(r.Context(), op, tenant, id); err != nil {
		s.problem(w, r, op, err)
		return
	}
	http.Redirect(w, r, "/tasks/"+tenant+"/"+id, http.StatusSeeOther)
}

// A life is a task's state as the page says it.
type life struct{ Word, Tone string }

func lifeOf(s gateway.TaskState) life {
	switch s {
	case gateway.TaskRunning:
		return life{"Running", "good"}
	case gateway.TaskEnding:
		return life{"Ending", "wait"}
	case gateway.TaskRevoked:
		return life{"Revoked", "bad"}
	case gateway.TaskExpired:
		return life{"Expired", "over"}
	}
	return life{"Ended", "over"}
}

// worthOf says of a claim that was made whether it is proven. What nobody
// recorded as proven is not.
func worthOf(c gateway.Claim) string {
	if c == gateway.Proven {
		return "proven"
	}
	return "asserted"
}

// lapsed reports whether what was added to a task counts no more.
func lapsed(now time.Time, t gateway.Task, w gateway.Widening) bool {
	return t.State != gateway.TaskRunning || !w.Until.After(now)
}

// chainOf lists the workloads that delegated, outermost first.
func chainOf(t gateway.Task) []string {
	var names []string
	for _, a := range t.Ancestors {
		names = append(names, a.Principal)
	}
	return names
}

// toolsOf names what a widening is about, in a line.
func toolsOf(rows []authz.ScopeRow) string {
	var names []string
	for _, r := range rows {
		if !slices.Contains(names, r.Tool) {
			names = append(names, r.Tool)
		}
	}
	return strings.Join(names, ", ")
}
