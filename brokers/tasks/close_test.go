package tasks_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/tasks"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// A node is one replica that can be made to crash.
type node struct {
	*tasks.Tasks
	store *redis.Store
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// crash cuts a replica off, as if its machine had lost its power: what it does
// from then on reaches nobody.
func (n *node) crash() {
	n.store.Close()
	n.stop()
}

// leave ends a replica in order.
func (n *node) leave() {
	n.stop()
	n.done.Wait()
}

func join(t testing.TB, s *redistest.Server, name string, facts gateway.Recorder, change ...func(*tasks.Config)) *node {
	t.Helper()
	return joinAt(t, s, name, facts, func(*tasks.Tasks) {}, change...)
}

// joinAt joins at another pace.
func joinAt(t testing.TB, s *redistest.Server, name string, facts gateway.Recorder, at func(*tasks.Tasks), change ...func(*tasks.Config)) *node {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{store: s.Open(t, "acme", "globex")}
	c := tasks.Config{Store: n.store, Recorder: facts, SigningKey: key, Issuer: "https://broker.test", Audience: "toolbroker", Replica: name}
	for _, change := range change {
		change(&c)
	}
	if n.Tasks, err = tasks.New(c); err != nil {
		t.Fatal(err)
	}
	n.Hurry()
	at(n.Tasks)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	n.done.Go(func() { n.Run(ctx) })
	t.Cleanup(n.leave)
	return n
}

// runsOn uses a task on a replica.
func runsOn(t testing.TB, r *tasks.Tasks, tenant, id string) {
	t.Helper()
	redistest.Await(t, id+" runs", func() bool { _, err := r.Running(t.Context(), tenant, id); return err == nil })
}

func closed(facts *gatewaytest.Facts) []gateway.Fact {
	return facts.Of(audit.TaskEnded, audit.TaskRevoked, audit.TaskExpired)
}

// Every replica that used a task closes what it has of it, one of them what they
// share, and the closing says what all of them did.
func TestAClosingIsEverybodys(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		var shared atomic.Int64
		here := func(calls int) func(*tasks.Config) {
			return func(c *tasks.Config) {
				c.Here = func(_ context.Context, task gateway.Task) gateway.Closing {
					if task.State != gateway.TaskEnding || task.Outcome != gateway.TaskEnded {
						t.Errorf("Here is told of a task that is %s, %s", task.State, task.Outcome)
					}
					return gateway.Closing{Calls: calls, Links: 1}
				}
				c.Shared = func(context.Context, gateway.Task) gateway.Closing {
					shared.Add(1)
					return gateway.Closing{Approvals: 2, Leases: 3}
				}
			}
		}
		a, b, c := join(t, s, "r1", facts, here(1)), join(t, s, "r2", facts, here(10)), join(t, s, "r3", facts, here(100))
		begin(t, a.Tasks, "acme", "task-1")
		runsOn(t, b.Tasks, "acme", "task-1")
		fresh(t, c.Tasks) // and never uses it
		if _, err := c.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "it is closed", func() bool { return len(closed(facts)) == 1 })
		want := gateway.Closing{Calls: 11, Links: 2, Approvals: 2, Leases: 3}
		if got := *closed(facts)[0].Closing; fmt.Sprint(got) != fmt.Sprint(want) || shared.Load() != 1 {
			t.Errorf("closed %+v, shared %d times; want %+v", got, shared.Load(), want)
		}
		if got, err := b.Get(t.Context(), "acme", "task-1"); err != nil || got.State != gateway.TaskEnded || got.Closed.IsZero() {
			t.Errorf("it is %+v, %v", got, err)
		}
	})
}

// What is not proven in time is an alert, once; it is tried on until it is.
func TestWhatIsNotProvenIsTriedOn(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		var here, shared atomic.Int64
		r := join(t, s, "r1", facts, func(c *tasks.Config) {
			c.Here = func(context.Context, gateway.Task) gateway.Closing {
				if here.Add(1) < 3 {
					return gateway.Closing{Links: 1, Unproven: []string{"a child of the server files"}}
				}
				return gateway.Closing{Links: 1}
			}
			c.Shared = func(context.Context, gateway.Task) gateway.Closing {
				if shared.Add(1) < 3 {
					return gateway.Closing{Leases: 1, Unproven: []string{"a lease of files"}}
				}
				return gateway.Closing{}
			}
		})
		begin(t, r.Tasks, "acme", "task-1")
		if _, err := r.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "it is closed", func() bool { return len(closed(facts)) == 1 })
		if got := *closed(facts)[0].Closing; got.Links != 3 || got.Leases != 2 || len(got.Unproven) > 0 {
			t.Errorf("closed %+v", got)
		}
		alerts := facts.Of(audit.TaskEndUnproven)
		if len(alerts) != 1 || alerts[0].Key != "task-1:unproven:r1" || len(alerts[0].Closing.Unproven) == 0 {
			t.Fatalf("alerts: %+v", alerts)
		}
	})
}

// A replica that died is named; after a while the task is closed all the same,
// and that still says so. One that ended in order is not waited for.
func TestClosingWithoutAReplica(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		a, dead, gone := join(t, s, "r1", facts), join(t, s, "r2", facts), join(t, s, "r3", facts)
		begin(t, a.Tasks, "acme", "task-1")
		begin(t, a.Tasks, "acme", "task-2")
		runsOn(t, dead.Tasks, "acme", "task-1")
		runsOn(t, gone.Tasks, "acme", "task-2")
		dead.crash()
		gone.leave()
		began := time.Now()
		for _, id := range []string{"task-1", "task-2"} {
			if _, err := a.End(t.Context(), "acme", id, by("x")); err != nil {
				t.Fatal(err)
			}
		}
		redistest.Await(t, "both are closed", func() bool { return len(closed(facts)) == 2 })
		first, second := closed(facts)[0], closed(facts)[1]
		if first.Task.ID != "task-2" || len(first.Closing.Unproven) > 0 {
			t.Errorf("%s: %+v", first.Task.ID, first.Closing)
		}
		lacks := []string{"replica r2 has not been heard of"}
		if second.Task.ID != "task-1" || !slices.Equal(second.Closing.Unproven, lacks) {
			t.Errorf("%s: %+v", second.Task.ID, second.Closing)
		}
		if took := time.Since(began); took < tasks.GiveUp {
			t.Errorf("given up after %v", took)
		}
		if alerts := unproven(facts, "task-1:unproven:r1"); len(alerts) != 1 || !strings.Contains(fmt.Sprint(alerts[0].Closing.Unproven), "replica r2") {
			t.Errorf("alerts: %+v", alerts)
		}
	})
}

// Whoever holds a closing may die at any step of it: another takes it up, and it
// is on record once.
func TestACrashWhileClosing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for _, step := range []string{"before shared", "after shared", "before here", "after here"} {
			t.Run(step, func(t *testing.T) {
				s, facts := start(t), &gatewaytest.Facts{}
				var a *node
				reached := make(chan struct{})
				at := func(this string) {
					if this == step {
						a.crash()
						close(reached)
					}
				}
				closing := func(what string, c gateway.Closing) func(context.Context, gateway.Task) gateway.Closing {
					var once sync.Once
					return func(context.Context, gateway.Task) gateway.Closing {
						once.Do(func() { at("before " + what) })
						defer once.Do(func() {})
						return c
					}
				}
				a = join(t, s, "r1", facts, func(c *tasks.Config) {
					c.Here, c.Shared = closing("here", gateway.Closing{}), closing("shared", gateway.Closing{})
					c.Recorder = &gatewaytest.Facts{} // nobody reads the disk of a dead machine
				})
				b := join(t, s, "r2", facts)
				begin(t, a.Tasks, "acme", "task-0") // so that a's key is known
				root := task("acme", "task-1")
				root.Limits = gateway.Limits{Depth: 1, FanOut: 4}
				if _, err := a.Start(t.Context(), root); err != nil {
					t.Fatal(err)
				}
				if _, err := a.Start(t.Context(), below(root, "task-2")); err != nil {
					t.Fatal(err)
				}
				runsOn(t, a.Tasks, "acme", "task-1")
				runsOn(t, b.Tasks, "acme", "task-2")
				_, err := a.End(t.Context(), "acme", "task-1", by("x"))
				if strings.HasPrefix(step, "before") { // perhaps before it could say that it ended
					<-reached
				} else if err != nil {
					t.Fatal(err)
				} else {
					a.crash()
				}
				redistest.Await(t, "it is over", func() bool {
					got, err := b.Get(t.Context(), "acme", "task-1")
					return err == nil && got.State == gateway.TaskEnded
				})
				redistest.Await(t, "its child too", func() bool {
					got, err := b.Get(t.Context(), "acme", "task-2")
					return err == nil && got.State == gateway.TaskRevoked
				})
				leftovers(t, s, "acme", "task-1", "task-2")
			})
		}
	})
}

// A tenant is stopped: its hundreds of tasks end together, and one whose closing
// hangs holds up no other.
func TestManyEndAtOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		hang := make(chan struct{})
		slow := func(c *tasks.Config) {
			c.Shared = func(ctx context.Context, task gateway.Task) gateway.Closing {
				if task.ID == "task-000" {
					select {
					case <-hang:
					case <-ctx.Done():
						return gateway.Closing{Unproven: []string{"a lease"}}
					}
				}
				return gateway.Closing{}
			}
		}
		a, b := join(t, s, "r1", facts, slow), join(t, s, "r2", facts, slow)
		n := 500
		if s.Embedded() { // ten times slower, and more under the race detector
			n = 100
		}
		var work sync.WaitGroup
		for i := range 10 {
			work.Go(func() {
				for j := i; j < n; j += 10 {
					if _, err := a.Start(t.Context(), task("acme", fmt.Sprintf("task-%03d", j))); err != nil {
						t.Error(err)
					}
					if j%2 == 0 {
						runsOn(t, b.Tasks, "acme", fmt.Sprintf("task-%03d", j))
					}
				}
			})
		}
		work.Wait()
		began := time.Now()
		if err := b.Stop(t.Context(), gateway.Stop{Tenant: "acme", Kind: gateway.StopTenant, By: "operator:alice", Reason: "fire"}); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d tasks began to end within %v", n, time.Since(began))
		redistest.Await(t, "all but one are closed", func() bool { return len(closed(facts)) == n-1 })
		t.Logf("and were closed within %v", time.Since(began))
		close(hang)
		redistest.Await(t, "all are", func() bool { return len(closed(facts)) == n })
		for _, f := range closed(facts) {
			if f.Type != audit.TaskRevoked || f.Task.EndedBy != "stop" || f.Task.Why != "fire" {
				t.Fatalf("%s: %+v", f.Type, f.Task)
			}
		}
		leftovers(t, s, "acme", "task-007", "task-000", "task-098")
	})
}

// Whoever set a stop died before it had ended what runs: another replica does.
func TestAStopOutlivesWhoSetIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		a, b := join(t, s, "r1", facts), join(t, s, "r2", facts)
		for i := range 5 {
			begin(t, a.Tasks, "acme", fmt.Sprint("task-", i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for ctx.Err() == nil && len(s.Keys(t, "tb:{acme}:tasks-stops")) == 0 {
			}
			a.crash()
		}()
		_ = a.Stop(ctx, gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a", By: "alice"})
		cancel()
		redistest.Await(t, "all are over", func() bool {
			all, err := b.List(t.Context(), "acme")
			return err == nil && len(all) == 5 && !slices.ContainsFunc(all, func(t gateway.Task) bool { return t.State == gateway.TaskRunning })
		})
	})
}

// What hangs on a stopped task is stopped by the stop itself, not once a sweep has
// ended the task above it.
func TestAStopIsAboutWhatHangsOnATask(t *testing.T) {
	top := task("acme", "task-1")
	top.Own, top.OwnFor = true, "bob"
	child := task("acme", "task-2")
	child.Principal, child.Owner, child.OnBehalfOf, child.StartedBy = "agent:b", "dave", "carol", "agent:a"
	child.Parent, child.Ancestors = top.ID, []gateway.Ancestor{top.Ancestor()}
	s := redistest.Embedded(t)
	for _, stop := range []gateway.Stop{
		{Kind: gateway.StopPrincipal, Name: "agent:a"}, {Kind: gateway.StopOwner, Name: "alice"}, {Kind: gateway.StopHuman, Name: "bob"},
		{Kind: gateway.StopStanding, Name: "agent:a bob triage"}, {Kind: gateway.StopTenant},
	} {
		r := replica(t, s, &gatewaytest.Facts{})
		if stop.Tenant = "acme"; r.Remembers(child) {
			t.Fatalf("before %s", stop.Kind)
		}
		if err := r.Stop(t.Context(), stop); err != nil {
			t.Fatal(err)
		}
		if !r.Remembers(child) {
			t.Errorf("the stop %s %s leaves what hangs on such a task", stop.Kind, stop.Name)
		}
		if _, err := r.Lift(t.Context(), "acme", stop.Kind, stop.Name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestADisabledOwnersTasksDoNotRun(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		a := join(t, s, "r1", facts)
		begin(t, a.Tasks, "acme", "task-1")
		other := task("acme", "task-2")
		other.Owner = "dave"
		if _, err := a.Start(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		b := join(t, s, "r2", facts, func(c *tasks.Config) { c.DisabledOwners = []string{"operator:ALICE"} })
		runsOn(t, b.Tasks, "acme", "task-2")
		redistest.Await(t, "it ended", func() bool { return len(facts.Of(audit.TaskRevoked)) == 1 })
		if _, err := b.Start(t.Context(), task("acme", "task-3")); !errors.Is(err, gateway.ErrStopped) {
			t.Errorf("it starts: %v", err)
		}
	})
}

// Three replicas call all the time; a task that ends on one of them is let do
// nothing on any that was asked for 100 ms later, nor is anything below it, and
// nothing of it is left.
func TestAnEndUnderFire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		rs := []*node{join(t, s, "r1", facts), join(t, s, "r2", facts), join(t, s, "r3", facts)}
		for round := range 5 {
			root := task("acme", fmt.Sprint("task-root-", round))
			root.Limits, root.Budget, root.Own = gateway.Limits{Depth: 2, FanOut: 4}, gateway.Budget{Calls: 1 << 40}, true
			if _, err := rs[0].Start(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			mid := below(root, fmt.Sprint("task-mid-", round))
			if _, err := rs[1].Start(t.Context(), mid); err != nil {
				t.Fatal(err)
			}
			leaf := below(mid, fmt.Sprint("task-leaf-", round))
			if _, err := rs[2].Start(t.Context(), leaf); err != nil {
				t.Fatal(err)
			}
			ids := []string{root.ID, mid.ID, leaf.ID}
			for _, r := range rs {
				for _, id := range ids {
					runsOn(t, r.Tasks, "acme", id)
				}
				if err := r.Spend(t.Context(), leaf); err != nil {
					t.Fatal(err)
				}
			}
			var ended atomic.Int64
			var fire sync.WaitGroup
			zero := time.Now()
			for _, r := range rs {
				for _, id := range ids {
					fire.Go(func() {
						for {
							asked := time.Since(zero)
							_, err := r.Running(context.Background(), "acme", id)
							over := time.Duration(ended.Load())
							if err == nil && over > 0 && asked > over+100*time.Millisecond {
								t.Errorf("%s runs %v after the end", id, asked-over)
								return
							}
							if over > 0 && errors.Is(err, gateway.ErrNoTask) && asked > over+100*time.Millisecond {
								return
							}
							if err != nil {
								time.Sleep(time.Millisecond)
							}
						}
					})
				}
			}
			if _, err := rs[round%3].End(t.Context(), "acme", root.ID, by("x")); err != nil {
				t.Fatal(err)
			}
			ended.Store(int64(time.Since(zero)))
			fire.Wait()
			redistest.Await(t, "all are closed", func() bool { return len(closed(facts)) == 3*(round+1) })
			leftovers(t, s, "acme", ids...)
		}
	})
}

// leftovers waits until Redis holds of tasks only their records, their places in
// the list of those that ended lately, and the announcements of their ends.
func leftovers(t *testing.T, s *redistest.Server, tenant string, ids ...string) {
	t.Helper()
	allowed := func(key, id string) bool {
		p := "tb:{" + tenant + "}:"
		return key == p+"task:"+id || key == p+"tasks-lately" || key == p+"tasks-ended"
	}
	var found []string
	deadline := time.Now().Add(20 * time.Second)
	for {
		found = nil
		for _, key := range s.Keys(t, "*") {
			text := key
			switch kind := s.Do(t, "TYPE", key); kind {
			case "string":
				text += fmt.Sprint(s.Do(t, "GET", key))
			case "hash":
				text += fmt.Sprint(s.Do(t, "HGETALL", key))
			case "set":
				text += fmt.Sprint(s.Do(t, "SMEMBERS", key))
			case "zset":
				text += fmt.Sprint(s.Do(t, "ZRANGE", key, 0, -1))
			case "stream":
				text += fmt.Sprint(s.Do(t, "XRANGE", key, "-", "+"))
			}
			for _, id := range ids {
				if strings.Contains(text, id) && !allowed(key, id) {
					found = append(found, key)
				}
			}
		}
		if len(found) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left of %v: %v", ids, found)
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, id := range ids {
		key := "tb:{" + tenant + "}:task:" + id
		if fields := s.Do(t, "HKEYS", key); len(fields.([]any)) != 3 {
			t.Errorf("%s has %v", key, fields)
		}
		if ttl, _ := s.Do(t, "PTTL", key).(int64); ttl <= 0 || ttl > 24*time.Hour.Milliseconds() {
			t.Errorf("%s is kept for %d ms", key, ttl)
		}
	}
}

// below is a child of a task.
func below(parent gateway.Task, id string) gateway.Task {
	t := task(parent.Tenant, id)
	t.Principal, t.Expires, t.Parent, t.Limits = "agent:sub", parent.Expires, parent.ID, gateway.Limits{Depth: 2, FanOut: 4}
	t.Ancestors = append(slices.Clone(parent.Ancestors), parent.Ancestor())
	return t
}

var everything = func() *authz.Scope {
	s, err := authz.NewScope([]authz.ScopeRow{{Tool: "**", Action: "*", Verdict: "allow"}})
	if err != nil {
		panic(err)
	}
	return s
}()
