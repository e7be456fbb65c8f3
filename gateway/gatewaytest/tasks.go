package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A TasksRig is a task registry under test. It has the tenants "acme" and "globex".
type TasksRig struct {
	Replica func() gateway.Tasks // one more replica of the same registry, running until the test ends
	Facts   *Facts               // what its replicas recorded
	Stop    func()               // the outside system stops
	Start   func()               // and comes back with what it had
}

// TasksContract holds a registry to what [gateway.Tasks] promises.
func TasksContract(t *testing.T, open func(t *testing.T) TasksRig) {
	start := func(t *testing.T, r gateway.Tasks, tenant, id string, ttl time.Duration) gateway.Task {
		t.Helper()
		task := aTask(tenant, id, ttl)
		if token, err := r.Start(t.Context(), task); err != nil || token.IsZero() {
			t.Fatal("Start:", err)
		}
		return task
	}

	// expire starts a task that is over soon, as soon as this machine can.
	expire := func(t *testing.T, r gateway.Tasks, tenant, id string, ttl time.Duration) gateway.Task {
		t.Helper()
		for ; ; ttl *= 2 {
			task := aTask(tenant, id, ttl)
			if _, err := r.Start(t.Context(), task); err == nil {
				return task
			} else if !errors.Is(err, gateway.ErrNotNow) || ttl > time.Minute {
				t.Fatal("Start:", err)
			}
		}
	}

	t.Run("a started task runs on every replica", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		want := start(t, a, "acme", "task-1", time.Hour)
		for _, r := range []gateway.Tasks{a, b} {
			got := isRunning(t, r, "acme", "task-1")
			if fmt.Sprint(got) != fmt.Sprint(want) || got.Scope != nil {
				t.Errorf("Running = %+v\nstarted   %+v", got, want)
			}
			if got, err := r.Get(t.Context(), "acme", "task-1"); err != nil || got.State != gateway.TaskRunning {
				t.Errorf("Get = %v, %v", got.State, err)
			}
		}
	})

	t.Run("what cannot start", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		start(t, r, "acme", "task-1", time.Hour)
		for name, change := range map[string]func(*gateway.Task){
			"the same id again":   func(t *gateway.Task) { t.ID = "task-1" },
			"no id":               func(t *gateway.Task) { t.ID = "" },
			"an id with a colon":  func(t *gateway.Task) { t.ID = "task:2" },
			"an unknown tenant":   func(t *gateway.Task) { t.Tenant = "initech" },
			"no owner":            func(t *gateway.Task) { t.Owner = "" },
			"no principal":        func(t *gateway.Task) { t.Principal = "" },
			"over already":        func(t *gateway.Task) { t.Expires = time.Now().Add(-time.Second) },
			"never over":          func(t *gateway.Task) { t.Expires = time.Time{} },
			"a megabyte of words": func(t *gateway.Task) { t.Purpose = strings.Repeat("x", 1<<20) },
		} {
			task := aTask("acme", "task-2", time.Hour)
			change(&task)
			if token, err := r.Start(t.Context(), task); err == nil || !token.IsZero() {
				t.Errorf("%s: it started", name)
			}
		}
		if _, err := r.Get(t.Context(), "acme", "task-2"); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("half started: %v", err)
		}
	})

	t.Run("what is no task", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		start(t, r, "acme", "task-1", time.Hour)
		isRunning(t, r, "acme", "task-1")
		for name, c := range map[string][2]string{
			"unknown":           {"acme", "task-2"},
			"another tenant's":  {"globex", "task-1"},
			"an unknown tenant": {"initech", "task-1"},
			"not an id":         {"acme", "task-1\n"},
			"a pattern":         {"acme", "*"},
			"nothing":           {"", ""},
		} {
			if _, err := running(t.Context(), r, c[0], c[1]); !errors.Is(err, gateway.ErrNoTask) {
				t.Errorf("%s: Running: %v", name, err)
			}
			if _, err := r.Get(t.Context(), c[0], c[1]); !errors.Is(err, gateway.ErrNoTask) {
				t.Errorf("%s: Get: %v", name, err)
			}
			if _, err := r.End(t.Context(), c[0], c[1], by("x")); !errors.Is(err, gateway.ErrNoTask) {
				t.Errorf("%s: End: %v", name, err)
			}
			closes(t, name, r.Ended(c[0], c[1]))
		}
		isRunning(t, r, "acme", "task-1")
	})

	// A success says that the task ran at most 100 ms before; however slow the
	// machine is, one that was asked for later than that is a broken promise.
	t.Run("ended on one replica, refused on all within 100 ms", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for i := range 20 {
			id := fmt.Sprintf("task-%d", i)
			start(t, a, "acme", id, time.Hour)
			isRunning(t, b, "acme", id)
			ended := b.Ended("acme", id)
			got, err := a.End(t.Context(), "acme", id, by("alice"))
			if err != nil || got.State == gateway.TaskRunning || ending(got) != gateway.TaskEnded || got.EndedBy != "alice" || got.Ended.IsZero() {
				t.Fatalf("End = %+v, %v", got, err)
			}
			over := time.Now()
			if _, err := running(t.Context(), a, "acme", id); !errors.Is(err, gateway.ErrNoTask) {
				t.Fatalf("where it was ended: %v", err)
			}
			for {
				asked := time.Now()
				_, err := b.Running(t.Context(), "acme", id)
				if err == nil && asked.Sub(over) > 100*time.Millisecond {
					t.Fatalf("still running %v after its end", asked.Sub(over))
				}
				if errors.Is(err, gateway.ErrNoTask) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			closes(t, "b's channel", ended)
			closes(t, "one asked for afterwards", b.Ended("acme", id))
		}
	})

	t.Run("a channel asked for before anything is known of the task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		start(t, a, "acme", "task-1", time.Hour)
		start(t, a, "globex", "task-1", time.Hour)
		ended, other := b.Ended("acme", "task-1"), b.Ended("globex", "task-1")
		if _, err := a.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		closes(t, "the channel", ended)
		isRunning(t, b, "globex", "task-1")
		select {
		case <-other:
			t.Error("the other tenant's closed too")
		default:
		}
	})

	t.Run("ending twice changes nothing", func(t *testing.T) {
		rig := open(t)
		rs := []gateway.Tasks{rig.Replica(), rig.Replica()}
		start(t, rs[0], "acme", "task-1", time.Hour)
		var mu sync.Mutex
		enders := map[string]int{}
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				got, err := rs[i%2].End(t.Context(), "acme", "task-1", by(fmt.Sprint("op-", i)))
				if err != nil || got.State == gateway.TaskRunning || ending(got) != gateway.TaskEnded {
					t.Errorf("End = %v, %v", got.State, err)
				}
				mu.Lock()
				enders[got.EndedBy+got.Ended.String()]++
				mu.Unlock()
			})
		}
		all.Wait()
		if len(enders) != 1 {
			t.Errorf("it was ended by %v", enders)
		}
	})

	t.Run("expiry", func(t *testing.T) {
		rig := open(t)
		rs := []gateway.Tasks{rig.Replica(), rig.Replica(), rig.Replica()}
		start(t, rs[0], "globex", "task-1", time.Hour)
		early := start(t, rs[0], "acme", "ended-before", 3*time.Second)
		if _, err := rs[0].End(t.Context(), "acme", "ended-before", by("alice")); err != nil {
			t.Fatal(err)
		}
		task := expire(t, rs[0], "acme", "task-1", 400*time.Millisecond)
		ended := rs[1].Ended("acme", "task-1")
		for {
			asked := time.Now()
			_, err := rs[1].Running(t.Context(), "acme", "task-1")
			if err == nil && !asked.Before(task.Expires) {
				t.Fatalf("running %v after its expiry", asked.Sub(task.Expires))
			}
			if errors.Is(err, gateway.ErrNoTask) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		closes(t, "the channel", ended)
		await(t, "the fact", func() bool { return len(rig.Facts.Of(audit.TaskExpired)) > 0 })
		if got, err := rs[2].End(t.Context(), "acme", "task-1", by("alice")); err != nil || got.State == gateway.TaskRunning || ending(got) != gateway.TaskExpired || got.EndedBy != "expiry" {
			t.Errorf("End of an expired one = %+v, %v", got, err)
		}
		if got, err := rs[2].Get(t.Context(), "acme", "task-1"); err != nil || ending(got) != gateway.TaskExpired || !got.Ended.Equal(task.Expires) {
			t.Errorf("Get of an expired one = %+v, %v", got, err)
		}
		// A second one, so that whatever would be sent twice was.
		expire(t, rs[0], "acme", "task-2", max(time.Until(early.Expires), 0)+50*time.Millisecond)
		await(t, "the second fact", func() bool { return len(rig.Facts.Of(audit.TaskExpired)) > 1 })
		facts := rig.Facts.Of(audit.TaskExpired)
		if len(facts) != 2 || facts[0].Task.ID != "task-1" || facts[1].Task.ID != "task-2" || facts[0].Task.State != gateway.TaskExpired || facts[0].Tenant != "acme" {
			t.Errorf("recorded: %v", facts)
		}
		isRunning(t, rs[1], "globex", "task-1")
	})

	t.Run("expiry is on record even if the log was busy", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		rig.Facts.Refuse(errors.New("disk full"))
		expire(t, r, "acme", "task-1", 50*time.Millisecond)
		closes(t, "the channel", r.Ended("acme", "task-1"))
		await(t, "it was tried", func() bool { return rig.Facts.Refused() > 0 })
		rig.Facts.Refuse(nil)
		await(t, "the fact", func() bool { return len(rig.Facts.Of(audit.TaskExpired)) == 1 })
	})

	t.Run("a list", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for i, id := range []string{"task-old", "task-mid", "task-new"} {
			task := aTask("acme", id, time.Hour)
			task.Started = task.Started.Add(time.Duration(i) * time.Second)
			if _, err := a.Start(t.Context(), task); err != nil {
				t.Fatal(err)
			}
		}
		start(t, a, "globex", "task-theirs", time.Hour)
		if _, err := a.End(t.Context(), "acme", "task-mid", by("alice")); err != nil {
			t.Fatal(err)
		}
		all, err := b.List(t.Context(), "acme")
		var got []string
		for _, task := range all {
			got = append(got, task.ID+" "+string(ending(task)))
		}
		if want := []string{"task-new running", "task-mid ended", "task-old running"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("List = %q, %v; want %q", got, err, want)
		}
		if all, err := b.List(t.Context(), "initech"); err == nil && len(all) > 0 {
			t.Errorf("of an unknown tenant: %v", all)
		}
	})

	t.Run("what cannot be confirmed is refused", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		start(t, r, "acme", "task-1", time.Hour)
		isRunning(t, r, "acme", "task-1")
		ended := r.Ended("acme", "task-1")
		rig.Stop()
		down := time.Now()
		for {
			asked := time.Now()
			got, err := r.Running(t.Context(), "acme", "task-1")
			if err == nil && asked.Sub(down) > 100*time.Millisecond {
				t.Fatalf("let through %v after the last anyone could say", asked.Sub(down))
			}
			if errors.Is(err, gateway.ErrStale) {
				if got.ID != "task-1" { // for the record
					t.Errorf("what was known of it: %+v", got)
				}
				break
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := r.Start(t.Context(), aTask("acme", "task-2", time.Hour)); err == nil {
			t.Error("started without a store")
		}
		if _, err := r.End(t.Context(), "acme", "task-1", by("x")); err == nil {
			t.Error("ended without a store")
		}
		if _, err := r.List(t.Context(), "acme"); err == nil {
			t.Error("listed without a store")
		}
		select {
		case <-ended:
			t.Error("nobody said that it ended")
		default:
		}
		rig.Start()
		await(t, "it runs again", func() bool { _, err := r.Running(t.Context(), "acme", "task-1"); return err == nil })
		await(t, "it ends", func() bool { _, err := r.End(t.Context(), "acme", "task-1", by("x")); return err == nil })
		closes(t, "the channel from before", ended)
	})

	t.Run("a child runs while all above it run", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		root := start(t, a, "acme", "task-root", time.Hour)
		mid := startBelow(t, a, root, "task-mid")
		leaf := startBelow(t, a, mid, "task-leaf")
		other := startBelow(t, a, root, "task-other")
		for _, id := range []string{"task-root", "task-mid", "task-leaf", "task-other"} {
			isRunning(t, b, "acme", id)
		}
		ended := b.Ended("acme", leaf.ID)
		if _, err := a.End(t.Context(), "acme", mid.ID, by("alice")); err != nil {
			t.Fatal(err)
		}
		over := time.Now()
		for refused := false; !refused; {
			asked := time.Now()
			_, err := b.Running(t.Context(), "acme", leaf.ID)
			if err == nil && asked.Sub(over) > 100*time.Millisecond {
				t.Fatalf("the leaf runs %v after the end above it", asked.Sub(over))
			}
			refused = errors.Is(err, gateway.ErrNoTask)
		}
		closes(t, "the leaf's channel", ended)
		isRunning(t, b, "acme", other.ID)
		await(t, "both are closed", func() bool { return len(rig.Facts.Of(audit.TaskEnded, audit.TaskRevoked)) == 2 })
		facts := rig.Facts.Of(audit.TaskEnded, audit.TaskRevoked)
		if c := facts[0]; c.Type != audit.TaskRevoked || c.Task.ID != leaf.ID || c.Task.EndedBy != "parent" || c.Closing == nil {
			t.Errorf("first %s of %s by %s", c.Type, c.Task.ID, c.Task.EndedBy)
		}
		if c := facts[1]; c.Type != audit.TaskEnded || c.Task.ID != mid.ID || c.Closing == nil || c.Closing.Children != 1 || len(c.Closing.Unproven) > 0 ||
			c.Task.Closed.IsZero() || c.Task.State != gateway.TaskEnded || c.Task.Why != "done" {
			t.Errorf("then %s of %+v: %+v", c.Type, c.Task, c.Closing)
		}
		late := below(mid, "task-late")
		if _, err := a.Start(t.Context(), late); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("a child of an ended one: %v", err)
		}
	})

	t.Run("what cannot be a child", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		root := start(t, r, "acme", "task-root", time.Hour)
		mid := startBelow(t, r, root, "task-mid")
		start(t, r, "globex", "task-theirs", time.Hour)
		start(t, r, "acme", "task-aunt", time.Hour)
		for name, change := range map[string]func(*gateway.Task){
			"of nobody":               func(t *gateway.Task) { t.Parent = "task-none"; t.Ancestors[1].ID = "task-none" },
			"of another tenant's":     func(t *gateway.Task) { t.Parent = "task-theirs"; t.Ancestors[1].ID = "task-theirs" },
			"without its ancestors":   func(t *gateway.Task) { t.Ancestors = nil },
			"without its grandparent": func(t *gateway.Task) { t.Ancestors = t.Ancestors[1:] },
			"of another family":       func(t *gateway.Task) { t.Ancestors[0].ID = "task-aunt" },
			"of a made-up principal":  func(t *gateway.Task) { t.Ancestors[1].Principal = "agent:root" },
			"with no parent":          func(t *gateway.Task) { t.Parent = "" },
			"outliving its parent":    func(t *gateway.Task) { t.Expires = mid.Expires.Add(time.Second) },
		} {
			task := below(mid, "task-leaf")
			change(&task)
			if token, err := r.Start(t.Context(), task); err == nil || !token.IsZero() {
				t.Errorf("%s: it started", name)
			}
		}
		if _, err := r.Get(t.Context(), "acme", "task-leaf"); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("half started: %v", err)
		}
	})

	t.Run("fan-out", func(t *testing.T) {
		rig := open(t)
		rs := []gateway.Tasks{rig.Replica(), rig.Replica()}
		root := aTask("acme", "task-root", time.Hour)
		root.Limits = gateway.Limits{Depth: 1, FanOut: 3}
		if _, err := rs[0].Start(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var all sync.WaitGroup
		var started []string
		for i := range 12 {
			all.Go(func() {
				id := fmt.Sprint("task-", i)
				_, err := rs[i%2].Start(t.Context(), below(root, id))
				if err != nil && !errors.Is(err, gateway.ErrTooMany) {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					started = append(started, id)
				}
			})
		}
		all.Wait()
		if len(started) != 3 {
			t.Fatalf("%d of 3 children started", len(started))
		}
		if _, err := rs[0].End(t.Context(), "acme", started[0], by("x")); err != nil {
			t.Fatal(err)
		}
		await(t, "there is room again", func() bool { _, err := rs[1].Start(t.Context(), below(root, "task-next")); return err == nil })
		none := start(t, rs[0], "acme", "task-alone", time.Hour)
		none.Limits = gateway.Limits{}
		if _, err := rs[0].Start(t.Context(), below(none, "task-no")); err != nil && !errors.Is(err, gateway.ErrTooMany) {
			t.Error(err)
		}
	})

	t.Run("widened on one replica, seen on all within 100 ms", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		task := start(t, a, "acme", "task-1", time.Hour)
		for _, r := range []gateway.Tasks{a, b} {
			isRunning(t, r, "acme", "task-1")
		}
		w := gateway.Widening{Approval: "apr-1", Rows: []authz.ScopeRow{{Tool: "files/write", Action: "call", Verdict: "allow"}}, Until: task.Started.Add(time.Minute), By: []string{"alice"}}
		for range 2 { // the same approval twice changes nothing
			got, err := a.Widen(t.Context(), "acme", "task-1", w)
			if err != nil || len(got.Widened) != 1 {
				t.Fatalf("Widen = %+v, %v", got.Widened, err)
			}
		}
		widened := time.Now()
		for seen := false; !seen; {
			asked := time.Now()
			got, err := b.Running(t.Context(), "acme", "task-1")
			if seen = err == nil && len(got.Widened) == 1; err == nil && !seen && asked.Sub(widened) > 100*time.Millisecond {
				t.Fatalf("not seen after %v", asked.Sub(widened))
			}
		}
		if got := isRunning(t, a, "acme", "task-1"); len(got.Widened) != 1 || fmt.Sprint(got.Widened[0]) != fmt.Sprint(w) {
			t.Errorf("it is %+v, want %+v", got.Widened, w)
		}
		lapsed := w
		lapsed.Approval, lapsed.Until = "apr-2", time.Now().Add(-time.Minute)
		if _, err := a.Widen(t.Context(), "acme", "task-1", lapsed); !errors.Is(err, gateway.ErrNotNow) {
			t.Errorf("one that has lapsed: %v", err)
		}
		if _, err := a.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		w.Approval = "apr-3"
		if _, err := b.Widen(t.Context(), "acme", "task-1", w); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("an ended one: %v", err)
		}
	})

	t.Run("a workload is on one root task at a time", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		own := func(id string, change ...func(*gateway.Task)) gateway.Task {
			task := aTask("acme", id, time.Hour)
			task.Own = true
			for _, c := range change {
				c(&task)
			}
			task.OwnFor = task.OnBehalfOf
			return task
		}
		parallel := func(t *gateway.Task) { t.Parallel = true }
		begin := func(r gateway.Tasks, task gateway.Task, want error) {
			t.Helper()
			if _, err := r.Start(t.Context(), task); !errors.Is(err, want) {
				t.Errorf("Start(%s) = %v, want %v", task.ID, err, want)
			}
		}
		begin(a, own("task-1"), nil)
		begin(b, own("task-2"), gateway.ErrBusy)
		begin(b, own("task-3", func(t *gateway.Task) { t.OnBehalfOf = "carol" }), nil)
		begin(b, own("task-4", func(t *gateway.Task) { t.Principal = "agent:b" }), nil)
		begin(b, own("task-5", parallel), nil)
		begin(b, own("task-6"), gateway.ErrBusy) // a parallel one opens no way around it
		begin(b, own("task-7", func(t *gateway.Task) { t.Own = false }), nil)
		begin(b, own("task-8", func(t *gateway.Task) { t.OnBehalfOf = " BOB " }), gateway.ErrBusy)

		// A credential that acts for nobody gets no second place by naming another human.
		for i, human := range []string{"dora", "emil"} {
			task := own(fmt.Sprintf("task-1%d", i), func(t *gateway.Task) { t.OnBehalfOf = human })
			task.OwnFor = ""
			begin(a, task, []error{nil, gateway.ErrBusy}[i])
		}

		other := aTask("acme", "task-7", time.Hour)
		if err := b.Bind(t.Context(), other, aTask("acme", "x", time.Hour).Principal, other.OnBehalfOf); !errors.Is(err, gateway.ErrBusy) {
			t.Errorf("Bind while on another: %v", err)
		}
		if err := b.Bind(t.Context(), own("task-1"), aTask("acme", "x", time.Hour).Principal, "bob"); err != nil {
			t.Errorf("Bind to what it is on: %v", err)
		}
		if err := b.Bind(t.Context(), own("task-5", parallel), aTask("acme", "x", time.Hour).Principal, "bob"); err != nil {
			t.Errorf("Bind to a parallel one: %v", err)
		}
		if _, err := a.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		if err := b.Bind(t.Context(), other, aTask("acme", "x", time.Hour).Principal, other.OnBehalfOf); err != nil {
			t.Errorf("Bind after the end of the other: %v", err)
		}
		begin(a, own("task-9"), gateway.ErrBusy)
		up, _ := b.Get(t.Context(), "acme", "task-7")
		child := aTask("acme", "task-12", time.Minute)
		child.Parent, child.Expires = up.ID, up.Expires
		child.Ancestors = []gateway.Ancestor{up.Ancestor()}
		if err := b.Bind(t.Context(), child, aTask("acme", "x", time.Hour).Principal, "bob"); err != nil {
			t.Errorf("Bind to one of the same root: %v", err)
		}
		if err := a.Bind(t.Context(), own("task-1"), aTask("acme", "x", time.Hour).Principal, "bob"); err == nil {
			t.Error("bound to an ended task")
		}
	})

	t.Run("a workload has one standing task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		standing := func(id string) gateway.Task {
			task := aTask("acme", id, time.Hour)
			task.Implicit = true
			return task
		}
		find := func(r gateway.Tasks, human string) (gateway.Task, error) {
			for {
				got, err := r.Standing(t.Context(), "acme", "agent:acme", human, "triage")
				if !errors.Is(err, gateway.ErrStale) {
					return got, err
				}
			}
		}
		if _, err := find(a, "bob"); !errors.Is(err, gateway.ErrNoTask) || errors.Is(err, gateway.ErrStopped) {
			t.Errorf("before there is one: %v", err)
		}
		if _, err := a.Start(t.Context(), standing("task-1")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Start(t.Context(), standing("task-2")); !errors.Is(err, gateway.ErrNotNow) {
			t.Errorf("a second one: %v", err)
		}
		for _, r := range []gateway.Tasks{a, b, b} {
			if got, err := find(r, "bob"); err != nil || got.ID != "task-1" {
				t.Errorf("Standing = %s, %v", got.ID, err)
			}
		}
		if _, err := find(b, "carol"); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("another human's: %v", err)
		}
		// One that was revoked may come back; one that was ended may not, until that is lifted.
		if _, err := a.End(t.Context(), "acme", "task-1", gateway.Ending{As: gateway.TaskRevoked, By: "stop"}); err != nil {
			t.Fatal(err)
		}
		await(t, "another can start", func() bool { _, err := b.Start(t.Context(), standing("task-3")); return err == nil })
		if _, err := a.End(t.Context(), "acme", "task-3", by("operator:alice")); err != nil {
			t.Fatal(err)
		}
		for _, r := range []gateway.Tasks{a, b} {
			await(t, "it is known to be stopped", func() bool {
				_, err := find(r, "bob")
				return errors.Is(err, gateway.ErrStopped) && errors.Is(err, gateway.ErrNoTask)
			})
			if _, err := r.Start(t.Context(), standing("task-4")); !errors.Is(err, gateway.ErrStopped) {
				t.Errorf("started again: %v", err)
			}
			declared := aTask("acme", "task-5", time.Hour)
			declared.Own, declared.OwnFor = true, declared.OnBehalfOf
			if _, err := r.Start(t.Context(), declared); !errors.Is(err, gateway.ErrStopped) {
				t.Errorf("started again by declaring it: %v", err)
			}
			for name, change := range map[string]func(*gateway.Task){
				"by an orchestrator":          func(*gateway.Task) {},
				"by an operator":              func(t *gateway.Task) { t.StartedBy = "operator:carol" },
				"for a human spelled its way": func(t *gateway.Task) { t.OnBehalfOf = " BOB " },
				"beside another workload":     func(t *gateway.Task) { t.Principals, t.Principal = []string{t.Principal}, "agent:other" },
			} {
				task := aTask("acme", "task-6", time.Hour)
				task.StartedBy = "ci"
				change(&task)
				if _, err := r.Start(t.Context(), task); !errors.Is(err, gateway.ErrStopped) {
					t.Errorf("started again %s: %v", name, err)
				}
			}
		}
		stops, err := b.Stops(t.Context(), "acme")
		if err != nil || len(stops) != 1 || stops[0].Kind != gateway.StopStanding || stops[0].By != "operator:alice" || stops[0].Reason != "done" {
			t.Fatalf("Stops = %+v, %v", stops, err)
		}
		if _, err := b.Lift(t.Context(), "acme", stops[0].Kind, stops[0].Name); err != nil {
			t.Fatal(err)
		}
		await(t, "it starts again", func() bool { _, err := a.Start(t.Context(), standing("task-5")); return err == nil })

		// What somebody else started of it ends with it; another kind or human's goes on.
		for id, change := range map[string]func(*gateway.Task){
			"task-its":   func(*gateway.Task) {},
			"task-kind":  func(t *gateway.Task) { t.Kind = "other" },
			"task-human": func(t *gateway.Task) { t.OnBehalfOf, t.Claims.OnBehalfOf = "carol", gateway.Proven },
		} {
			task := aTask("acme", id, time.Hour)
			task.StartedBy = "ci"
			change(&task)
			if _, err := b.Start(t.Context(), task); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.End(t.Context(), "acme", "task-5", by("operator:alice")); err != nil {
			t.Fatal(err)
		}
		await(t, "what it stands for ends too", func() bool {
			got, err := b.Get(t.Context(), "acme", "task-its")
			return err == nil && got.Outcome == gateway.TaskRevoked
		})
		isRunning(t, b, "acme", "task-kind")
		isRunning(t, b, "acme", "task-human")
	})

	// Whom nobody proved is nobody: naming another human is no way around a stop.
	t.Run("a standing task for nobody, ended", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		nobody := aTask("acme", "task-1", time.Hour)
		nobody.Implicit, nobody.OnBehalfOf = true, ""
		if _, err := r.Start(t.Context(), nobody); err != nil {
			t.Fatal(err)
		}
		if _, err := r.End(t.Context(), "acme", "task-1", by("operator:alice")); err != nil {
			t.Fatal(err)
		}
		for claim, want := range map[gateway.Claim]error{gateway.Asserted: gateway.ErrStopped, gateway.Proven: nil} {
			task := aTask("acme", "task-for-"+string(claim), time.Hour)
			task.StartedBy, task.OnBehalfOf, task.Claims.OnBehalfOf = "ci", "dora", claim
			await(t, "it is settled", func() bool { _, err := r.Start(t.Context(), task); return errors.Is(err, want) })
		}
	})

	t.Run("budgets", func(t *testing.T) {
		rig := open(t)
		rs := []gateway.Tasks{rig.Replica(), rig.Replica()}
		root := aTask("acme", "task-root", time.Hour)
		root.Limits, root.Budget = gateway.Limits{Depth: 2, FanOut: 5}, gateway.Budget{Calls: 20}
		if _, err := rs[0].Start(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		child := below(root, "task-child")
		child.Budget = gateway.Budget{Calls: 8}
		if _, err := rs[0].Start(t.Context(), child); err != nil {
			t.Fatal(err)
		}
		free := startBelow(t, rs[0], root, "task-free")
		for _, r := range rs {
			for _, task := range []gateway.Task{root, child, free} {
				isRunning(t, r, "acme", task.ID)
			}
		}
		spend := func(task gateway.Task, n int) (got int) {
			var all sync.WaitGroup
			var mu sync.Mutex
			for i := range n {
				all.Go(func() {
					err := rs[i%2].Spend(t.Context(), task)
					if err != nil && !errors.Is(err, gateway.ErrTooMany) {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						got++
					}
				})
			}
			all.Wait()
			return got
		}
		if got := spend(child, 30); got != 8 { // and the 22 took nothing from the root's
			t.Errorf("the child had %d of 8", got)
		}
		if got := spend(free, 5); got != 5 {
			t.Errorf("the one without a budget had %d of 5", got)
		}
		if got := spend(root, 30); got != 7 {
			t.Errorf("the root had %d of the 7 that were left", got)
		}
		if err := rs[0].Spend(t.Context(), free); !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("below a root that is used up: %v", err)
		}
		// A day's budget is the workload's, whatever tasks it splits its calls over.
		total := 0
		for i := range 4 {
			day := aTask("acme", fmt.Sprint("task-day-", i), time.Hour)
			day.Principal, day.Budget = "agent:daily", gateway.Budget{PerDay: 10}
			if _, err := rs[0].Start(t.Context(), day); err != nil {
				t.Fatal(err)
			}
			for _, r := range rs {
				isRunning(t, r, "acme", day.ID)
			}
			total += spend(day, 4)
		}
		if total != 10 && total != 16 { // 16 at midnight
			t.Errorf("%d calls on a day of 10", total)
		}
	})

	t.Run("stops", func(t *testing.T) {
		for name, c := range map[string]struct {
			stop gateway.Stop
			hits func(*gateway.Task) // makes a task be about it
			free func(*gateway.Task) // and another not
		}{
			"of a tenant":     {gateway.Stop{Kind: gateway.StopTenant}, func(*gateway.Task) {}, func(t *gateway.Task) { t.Tenant = "globex" }},
			"of a principal":  {gateway.Stop{Kind: gateway.StopPrincipal, Name: "agent:x"}, func(t *gateway.Task) { t.Principal = "agent:x" }, func(t *gateway.Task) {}},
			"of its starter":  {gateway.Stop{Kind: gateway.StopPrincipal, Name: "agent:boss"}, func(t *gateway.Task) { t.StartedBy = "agent:boss" }, func(t *gateway.Task) { t.StartedBy = "operator:agent:boss" }},
			"of an owner":     {gateway.Stop{Kind: gateway.StopOwner, Name: "operator:Dave"}, func(t *gateway.Task) { t.Owner = "dave" }, func(t *gateway.Task) {}},
			"of a human":      {gateway.Stop{Kind: gateway.StopHuman, Name: "Erin@acme"}, func(t *gateway.Task) { t.OnBehalfOf = "mailto:erin@acme" }, func(t *gateway.Task) { t.OnBehalfOf = "" }},
			"in every letter": {gateway.Stop{Kind: gateway.StopPrincipal, Name: "agent:X"}, func(t *gateway.Task) { t.Principal = "agent:X" }, func(t *gateway.Task) { t.Principal = "agent:x" }},
		} {
			t.Run(name, func(t *testing.T) {
				rig := open(t)
				a, b := rig.Replica(), rig.Replica()
				hit, free := aTask("acme", "task-hit", time.Hour), aTask("acme", "task-free", time.Hour)
				c.hits(&hit)
				c.free(&free)
				for _, task := range []gateway.Task{hit, free} {
					if _, err := a.Start(t.Context(), task); err != nil {
						t.Fatal(err)
					}
					isRunning(t, b, task.Tenant, task.ID)
				}
				c.stop.Tenant, c.stop.By, c.stop.Reason = "acme", "operator:alice", "because"
				for range 2 {
					if err := a.Stop(t.Context(), c.stop); err != nil {
						t.Fatal(err)
					}
				}
				over := time.Now()
				for {
					asked := time.Now()
					_, err := b.Running(t.Context(), "acme", "task-hit")
					if err == nil && asked.Sub(over) > 100*time.Millisecond {
						t.Fatalf("running %v after the stop", asked.Sub(over))
					}
					if errors.Is(err, gateway.ErrNoTask) {
						break
					}
				}
				isRunning(t, b, free.Tenant, "task-free")
				hit.ID = "task-again"
				for _, r := range []gateway.Tasks{a, b} {
					if _, err := r.Start(t.Context(), hit); !errors.Is(err, gateway.ErrStopped) || !errors.Is(err, gateway.ErrNoTask) {
						t.Errorf("started: %v", err)
					}
				}
				await(t, "it is closed", func() bool { return len(rig.Facts.Of(audit.TaskRevoked)) == 1 })
				if f := rig.Facts.Of(audit.TaskRevoked)[0]; f.Task.ID != "task-hit" || f.Task.EndedBy != "stop" || f.Task.Why != "because" {
					t.Errorf("recorded %+v", f.Task)
				}
				all, err := b.Stops(t.Context(), "acme")
				if err != nil || len(all) != 1 || all[0].Kind != c.stop.Kind || all[0].Name != c.stop.Name || all[0].By != "operator:alice" || all[0].At.IsZero() {
					t.Errorf("Stops = %+v, %v", all, err)
				}
				if all, err := b.Stops(t.Context(), "globex"); err != nil || len(all) > 0 {
					t.Errorf("another tenant's: %+v, %v", all, err)
				}
				if _, err := b.Lift(t.Context(), "globex", c.stop.Kind, c.stop.Name); !errors.Is(err, gateway.ErrNotFound) {
					t.Errorf("lifted for another tenant: %v", err)
				}
				if got, err := b.Lift(t.Context(), "acme", c.stop.Kind, c.stop.Name); err != nil || got.Reason != "because" {
					t.Errorf("Lift = %+v, %v", got, err)
				}
				if _, err := a.Lift(t.Context(), "acme", c.stop.Kind, c.stop.Name); !errors.Is(err, gateway.ErrNotFound) {
					t.Errorf("lifted twice: %v", err)
				}
				await(t, "it starts again", func() bool { _, err := a.Start(t.Context(), hit); return err == nil })
				isRunning(t, b, "acme", "task-again")
				if _, err := running(t.Context(), b, "acme", "task-hit"); !errors.Is(err, gateway.ErrNoTask) {
					t.Errorf("what was revoked runs again: %v", err)
				}
			})
		}
		r := open(t).Replica()
		for name, s := range map[string]gateway.Stop{
			"of nothing":         {Tenant: "acme"},
			"of nobody":          {Tenant: "acme", Kind: gateway.StopPrincipal},
			"of spaces":          {Tenant: "acme", Kind: gateway.StopHuman, Name: "  "},
			"another tenant's":   {Tenant: "initech", Kind: gateway.StopTenant},
			"of something else":  {Tenant: "acme", Kind: "weather", Name: "rain"},
			"a megabyte of text": {Tenant: "acme", Kind: gateway.StopTenant, Reason: strings.Repeat("x", 1<<20)},
		} {
			if err := r.Stop(t.Context(), s); err == nil {
				t.Errorf("a stop %s was set", name)
			}
		}
	})

	t.Run("how an end is on record", func(t *testing.T) {
		rig := open(t)
		r := rig.Replica()
		for id, e := range map[string]gateway.Ending{
			"task-1": by("operator:alice"),
			"task-2": {As: gateway.TaskRevoked, By: "ci", Why: "never mind"},
			"task-3": {As: gateway.TaskEnded, By: "operator:alice", Why: "done", Said: true},
		} {
			start(t, r, "acme", id, time.Hour)
			if _, err := r.End(t.Context(), "acme", id, e); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "all are closed", func() bool { return len(rig.Facts.Of(audit.TaskEnded, audit.TaskRevoked)) == 3 })
		await(t, "their ends are on record", func() bool { return len(rig.Facts.Of(audit.TaskEnding)) == 2 })
		for _, f := range rig.Facts.Of() {
			word := f.Task.ID + " " + string(f.Type)
			switch word {
			case "task-1 task.ending", "task-2 task.ending":
				if f.Task.State != gateway.TaskEnding || f.Key != f.Task.ID+":ending" || !f.At.Equal(f.Task.Ended) {
					t.Errorf("%s: %+v", word, f)
				}
			case "task-1 task.ended", "task-2 task.revoked", "task-3 task.ended":
				if !f.Task.State.Final() || f.Key != f.Task.ID+":closed" || f.Closing == nil || f.Task.Closed.Before(f.Task.Ended) {
					t.Errorf("%s: %+v", word, f)
				}
			default:
				t.Errorf("recorded: %s", word)
			}
		}
		if _, err := r.End(t.Context(), "acme", "task-1", gateway.Ending{As: gateway.TaskExpired}); err == nil {
			t.Error("somebody may say that a task expired")
		}
	})
}

// below is a child of a task.
func below(parent gateway.Task, id string) gateway.Task {
	t := aTask(parent.Tenant, id, time.Hour)
	t.Principal, t.Expires, t.Parent = "agent:sub", parent.Expires, parent.ID
	t.Ancestors = append(slices.Clone(parent.Ancestors), parent.Ancestor())
	return t
}

func startBelow(t *testing.T, r gateway.Tasks, parent gateway.Task, id string) gateway.Task {
	t.Helper()
	task := below(parent, id)
	if token, err := r.Start(t.Context(), task); err != nil || token.IsZero() {
		t.Fatal("Start:", err)
	}
	return task
}

func aTask(tenant, id string, ttl time.Duration) gateway.Task {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return gateway.Task{
		ID: id, Tenant: tenant, Kind: "triage", Purpose: "look at <issue> 7 \u202e", Owner: "alice", OnBehalfOf: "bob",
		Principal: "agent:" + tenant, StartedBy: "ci", State: gateway.TaskRunning, Started: now, Expires: now.Add(ttl), Limits: gateway.Limits{Depth: 4, FanOut: 16},
	}
}

// by is an ordinary end.
func by(who string) gateway.Ending {
	return gateway.Ending{As: gateway.TaskEnded, By: who, Why: "done"}
}

// ending is the state that a task comes to, if it is not running.
func ending(t gateway.Task) gateway.TaskState {
	if t.State == gateway.TaskEnding {
		return t.Outcome
	}
	return t.State
}

// running asks until the registry can say.
func running(ctx context.Context, r gateway.Tasks, tenant, id string) (gateway.Task, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		t, err := r.Running(ctx, tenant, id)
		if !errors.Is(err, gateway.ErrStale) || time.Now().After(deadline) {
			return t, err
		}
	}
}

func isRunning(t *testing.T, r gateway.Tasks, tenant, id string) gateway.Task {
	t.Helper()
	task, err := running(t.Context(), r, tenant, id)
	if err != nil || task.State != gateway.TaskRunning {
		t.Fatalf("Running(%s, %s) = %v, %v", tenant, id, task.State, err)
	}
	return task
}

func closes(t *testing.T, what string, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("never closed: ", what)
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: ", what)
		}
	}
}

// Facts is a [gateway.Recorder] that remembers. As a log does, it keeps one of
// several facts with the same key.
type Facts struct {
	mu      sync.Mutex
	kept    []gateway.Fact
	keys    map[string]bool
	refuse  error
	refused int
}

// Record implements [gateway.Recorder].
func (f *Facts) Record(_ context.Context, facts ...gateway.Fact) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		f.refused++
		return f.refuse
	}
	for _, fact := range facts {
		if fact.Key != "" && f.keys[fact.Tenant+"/"+fact.Key] {
			continue
		}
		if f.keys == nil {
			f.keys = map[string]bool{}
		}
		f.keys[fact.Tenant+"/"+fact.Key] = true
		f.kept = append(f.kept, fact)
	}
	return nil
}

// Durable implements [gateway.Recorder].
func (f *Facts) Durable(ctx context.Context, facts ...gateway.Fact) error {
	return f.Record(ctx, facts...)
}

// Refuse makes every record fail with err, until it is nil.
func (f *Facts) Refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

// Refused counts the records that failed.
func (f *Facts) Refused() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

// Of returns the facts of a type, in the order they were recorded; of every
// type when none is given.
func (f *Facts) Of(types ...audit.Type) []gateway.Fact {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []gateway.Fact
	for _, fact := range f.kept {
		if len(types) == 0 || slices.Contains(types, fact.Type) {
			out = append(out, fact)
		}
	}
	return out
}
