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
			if _, err := r.End(t.Context(), c[0], c[1], "x"); !errors.Is(err, gateway.ErrNoTask) {
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
			got, err := a.End(t.Context(), "acme", id, "alice")
			if err != nil || got.State != gateway.TaskEnded || got.EndedBy != "alice" || got.Ended.IsZero() {
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
		if _, err := a.End(t.Context(), "acme", "task-1", "x"); err != nil {
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
		by := map[string]int{}
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				got, err := rs[i%2].End(t.Context(), "acme", "task-1", fmt.Sprint("op-", i))
				if err != nil || got.State != gateway.TaskEnded {
					t.Errorf("End = %v, %v", got.State, err)
				}
				mu.Lock()
				by[got.EndedBy+got.Ended.String()]++
				mu.Unlock()
			})
		}
		all.Wait()
		if len(by) != 1 {
			t.Errorf("it was ended by %v", by)
		}
	})

	t.Run("expiry", func(t *testing.T) {
		rig := open(t)
		rs := []gateway.Tasks{rig.Replica(), rig.Replica(), rig.Replica()}
		start(t, rs[0], "globex", "task-1", time.Hour)
		early := start(t, rs[0], "acme", "ended-before", 3*time.Second)
		if _, err := rs[0].End(t.Context(), "acme", "ended-before", "alice"); err != nil {
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
		if got, err := rs[2].End(t.Context(), "acme", "task-1", "alice"); err != nil || got.State != gateway.TaskExpired || got.EndedBy != "" {
			t.Errorf("End of an expired one = %+v, %v", got, err)
		}
		if got, err := rs[2].Get(t.Context(), "acme", "task-1"); err != nil || got.State != gateway.TaskExpired || !got.Ended.Equal(task.Expires) {
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
		if _, err := a.End(t.Context(), "acme", "task-mid", "alice"); err != nil {
			t.Fatal(err)
		}
		all, err := b.List(t.Context(), "acme")
		var got []string
		for _, task := range all {
			got = append(got, task.ID+" "+string(task.State))
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
			_, err := r.Running(t.Context(), "acme", "task-1")
			if err == nil && asked.Sub(down) > 100*time.Millisecond {
				t.Fatalf("let through %v after the last anyone could say", asked.Sub(down))
			}
			if errors.Is(err, gateway.ErrStale) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := r.Start(t.Context(), aTask("acme", "task-2", time.Hour)); err == nil {
			t.Error("started without a store")
		}
		if _, err := r.End(t.Context(), "acme", "task-1", "x"); err == nil {
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
		if _, err := r.End(t.Context(), "acme", "task-1", "x"); err != nil {
			t.Fatal(err)
		}
		closes(t, "the channel from before", ended)
	})
}

func aTask(tenant, id string, ttl time.Duration) gateway.Task {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return gateway.Task{
		ID: id, Tenant: tenant, Kind: "triage", Purpose: "look at <issue> 7 \u202e", Owner: "alice", OnBehalfOf: "bob",
		Principal: "agent:" + tenant, StartedBy: "ci", State: gateway.TaskRunning, Started: now, Expires: now.Add(ttl),
	}
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
