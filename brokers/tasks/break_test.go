package tasks_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// Somebody with full access to Redis can stop tasks, but make none run.
func TestForgedRedisStateRunsNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, forge := range map[string]func(s *redistest.Server){
			"a flipped byte": func(s *redistest.Server) {
				b := []byte(s.Do(t, "HGET", "tb:{acme}:task:task-1", "task").(string))
				b[len(b)/2] ^= 1
				s.Do(t, "HSET", "tb:{acme}:task:task-1", "task", b)
			},
			"JSON in the clear": func(s *redistest.Server) {
				s.Do(t, "HSET", "tb:{acme}:task:task-1", "task", `{"id":"task-1","tenant":"acme","state":"running"}`)
			},
			"another task's record": func(s *redistest.Server) {
				s.Do(t, "HSET", "tb:{acme}:task:task-1", "task", s.Do(t, "HGET", "tb:{acme}:task:task-2", "task"))
			},
			"another tenant's record": func(s *redistest.Server) {
				s.Do(t, "HSET", "tb:{acme}:task:task-1", "task", s.Do(t, "HGET", "tb:{globex}:task:task-1", "task"))
			},
			"its version": func(s *redistest.Server) { s.Do(t, "HSET", "tb:{acme}:task:task-1", "v", "2") },
			"its state":   func(s *redistest.Server) { s.Do(t, "HSET", "tb:{acme}:task:task-1", "state", "over") },
			"no state":    func(s *redistest.Server) { s.Do(t, "HDEL", "tb:{acme}:task:task-1", "state") },
			"no version":  func(s *redistest.Server) { s.Do(t, "HDEL", "tb:{acme}:task:task-1", "v") },
			"another sort of key": func(s *redistest.Server) {
				s.Do(t, "DEL", "tb:{acme}:task:task-1")
				s.Do(t, "SET", "tb:{acme}:task:task-1", "running")
			},
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				a := replica(t, s, &gatewaytest.Facts{})
				begin(t, a, "acme", "task-1")
				begin(t, a, "acme", "task-2")
				begin(t, a, "globex", "task-1")
				b := replica(t, s, &gatewaytest.Facts{})
				fresh(t, b)
				forge(s)
				if _, err := b.Running(t.Context(), "acme", "task-1"); err == nil {
					t.Error("it runs")
				}
				if _, err := b.Get(t.Context(), "acme", "task-1"); err == nil {
					t.Error("it can be read")
				}
				if _, err := b.Running(t.Context(), "acme", "task-2"); err != nil {
					t.Error("another does not run:", err)
				}
				if _, err := b.List(t.Context(), "acme"); err != nil && name != "another sort of key" {
					t.Error("others cannot be listed:", err)
				}
			})
		}
	})
}

func TestAnEndThatIsUndoneInRedisStaysAnEndHere(t *testing.T) {
	s := redistest.Embedded(t)
	a, b := replica(t, s, &gatewaytest.Facts{}), replica(t, s, &gatewaytest.Facts{})
	begin(t, a, "acme", "task-1")
	was := s.Do(t, "HGET", "tb:{acme}:task:task-1", "task")
	if _, err := a.End(t.Context(), "acme", "task-1", by("alice")); err != nil {
		t.Fatal(err)
	}
	<-b.Ended("acme", "task-1")
	for len(s.Keys(t, "tb:{acme}:task-users:task-1")) > 0 { // its closing would only write over what follows
		time.Sleep(time.Millisecond)
	}
	s.Do(t, "HSET", "tb:{acme}:task:task-1", "v", "1", "state", "running", "task", was)
	for _, r := range []*tasks.Tasks{a, b} {
		fresh(t, r)
		if _, err := r.Running(t.Context(), "acme", "task-1"); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("it runs again: %v", err)
		}
	}
}

// A Redis that lost its data, or went back to before an end, must not leave a
// replica believing what it has cached.
func TestWhenRedisForgetsNothingCachedCounts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, lose := range map[string]func(s *redistest.Server){
			"everything": func(s *redistest.Server) { s.Do(t, "FLUSHALL") },
			"what ended": func(s *redistest.Server) {
				s.Do(t, "DEL", "tb:{acme}:tasks-ended")
				s.Do(t, "DEL", "tb:{acme}:task:task-1")
			},
			"the last ends": func(s *redistest.Server) {
				last := s.Do(t, "XREVRANGE", "tb:{acme}:tasks-ended", "+", "-", "COUNT", 1).([]any)[0].([]any)[0]
				s.Do(t, "XDEL", "tb:{acme}:tasks-ended", last)
				s.Do(t, "DEL", "tb:{acme}:task:task-1")
			},
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				r := replica(t, s, &gatewaytest.Facts{})
				begin(t, r, "acme", "task-0")
				seen := r.Ended("acme", "task-0")
				if _, err := replica(t, s, &gatewaytest.Facts{}).End(t.Context(), "acme", "task-0", by("x")); err != nil {
					t.Fatal(err)
				}
				<-seen
				begin(t, r, "acme", "task-1")
				ended := r.Ended("acme", "task-1")
				lose(s)
				redistest.Await(t, "task-1 is refused", func() bool {
					_, err := r.Running(t.Context(), "acme", "task-1")
					return errors.Is(err, gateway.ErrNoTask)
				})
				<-ended
				begin(t, r, "acme", "task-2") // and life goes on
			})
		}
	})
}

func TestACachedTaskCostsNoRoundTrip(t *testing.T) {
	s := redistest.Real(t)
	r := replica(t, s, &gatewaytest.Facts{})
	begin(t, r, "acme", "task-1")
	before := hmgets(t, s)
	for range 1000 {
		if _, err := r.Running(t.Context(), "acme", "task-1"); err != nil && !errors.Is(err, gateway.ErrStale) {
			t.Fatal(err)
		}
	}
	if after := hmgets(t, s); before < 0 || after != before {
		t.Errorf("1000 calls took the reads from %d to %d", before, after)
	}
}

func TestForgedFactsAreNotRecorded(t *testing.T) {
	s, facts := redistest.Embedded(t), &gatewaytest.Facts{}
	r := replica(t, s, facts)
	s.Do(t, "XADD", "tb:{acme}:outbox:tasks", "*", "kind", "closed", "id", "task-9", "fact", `{"task":{"id":"task-9","tenant":"acme","state":"expired"}}`)
	s.Do(t, "XADD", "tb:{acme}:outbox:tasks", "*", "nonsense", "")
	expire(t, r, "acme", "task-1")
	redistest.Await(t, "the real one is", func() bool { return len(facts.Of(audit.TaskExpired)) > 0 })
	for _, f := range facts.Of() {
		if f.Task.ID != "task-1" {
			t.Errorf("recorded %v", f)
		}
	}
}

// Loads, ends and reads of the stream race on two replicas; no task may be
// believed to run once a read confirmed its end.
func TestLoadsRaceEnds(t *testing.T) {
	s := redistest.Embedded(t)
	a, b := replica(t, s, &gatewaytest.Facts{}), replica(t, s, &gatewaytest.Facts{})
	var all sync.WaitGroup
	for i := range 100 {
		id := fmt.Sprint("task-", i)
		begin(t, a, "acme", id)
		all.Go(func() { a.End(context.Background(), "acme", id, by("x")) })
		all.Go(func() { b.Running(context.Background(), "acme", id) })
	}
	all.Wait()
	settled := time.Now()
	for i := range 100 {
		for {
			asked := time.Now()
			_, err := b.Running(t.Context(), "acme", fmt.Sprint("task-", i))
			if errors.Is(err, gateway.ErrNoTask) {
				break
			}
			if err == nil && asked.Sub(settled) > 100*time.Millisecond {
				t.Fatalf("task-%d runs %v after its end", i, asked.Sub(settled))
			}
		}
	}
}

// A read says that a task runs, and on its way here the task ends and is known to
// have ended: the late reply must not bring it back.
func TestALateReadBringsNothingBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s, &gatewaytest.Facts{})
		begin(t, a, "acme", "task-1")
		late := make(chan struct{})
		b := runs(t, s.OpenSlow(t, "hmget", late, "acme", "globex"), &gatewaytest.Facts{})
		fresh(t, b)
		ended := b.Ended("acme", "task-1")
		asked := make(chan error, 1)
		before := hmgets(t, s)
		go func() { _, err := b.Running(context.WithoutCancel(t.Context()), "acme", "task-1"); asked <- err }()
		if before >= 0 {
			redistest.Await(t, "Redis has answered", func() bool { return hmgets(t, s) > before })
		}
		if _, err := a.End(t.Context(), "acme", "task-1", by("alice")); err != nil {
			t.Fatal(err)
		}
		<-ended
		close(late)
		if err := <-asked; err == nil {
			t.Error("it runs")
		}
		for range 3 {
			fresh(t, b)
			if _, err := b.Running(t.Context(), "acme", "task-1"); err == nil {
				t.Error("it runs again")
			}
		}
	})
}

// hmgets counts the reads that Redis has answered, or is -1 where it does not say.
func hmgets(t *testing.T, s *redistest.Server) int {
	t.Helper()
	stats, _ := s.Try("INFO", "commandstats")
	for line := range strings.Lines(fmt.Sprint(stats)) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_hmget:calls="); ok {
			n, _ := strconv.Atoi(strings.Split(rest, ",")[0])
			return n
		}
	}
	return -1
}

func TestTheScopeSurvives(t *testing.T) {
	s := redistest.Embedded(t)
	r := replica(t, s, &gatewaytest.Facts{})
	want := task("acme", "task-1")
	want.Scope = new(authz.Scope)
	if err := want.Scope.UnmarshalJSON([]byte(`[{"tool":"files/read","action":"call","when":"args.path == \"<a>&b\"","verdict":"allow"}]`)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Start(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, err := r.Get(t.Context(), "acme", "task-1")
	if err != nil || got.Scope == nil || !slices.Equal(got.Scope.Rows(), want.Scope.Rows()) {
		t.Errorf("got %+v, %v", got.Scope, err)
	}
}

func TestNew(t *testing.T) {
	store := redistest.Embedded(t).Open(t, "acme")
	for name, c := range map[string]tasks.Config{
		"nothing":     {},
		"no key":      {Store: store, Recorder: &gatewaytest.Facts{}, Issuer: "i", Audience: "a"},
		"no recorder": {Store: store, SigningKey: make([]byte, 64), Issuer: "i", Audience: "a"},
		"no issuer":   {Store: store, Recorder: &gatewaytest.Facts{}, SigningKey: make([]byte, 64), Audience: "a"},
	} {
		if _, err := tasks.New(c); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if a, b := tasks.NewID(), tasks.NewID(); a == b || len(a) != 31 || !redis.ValidID(a) {
		t.Errorf("ids %s, %s", a, b)
	}
}

func task(tenant, id string) gateway.Task {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return gateway.Task{ID: id, Tenant: tenant, Kind: "triage", Owner: "alice", OnBehalfOf: "bob", Principal: "agent:a", StartedBy: "ci",
		State: gateway.TaskRunning, Started: now, Expires: now.Add(time.Hour)}
}

// begin starts a task and waits until it runs.
func begin(t *testing.T, r *tasks.Tasks, tenant, id string) gateway.Secret {
	t.Helper()
	token, err := r.Start(t.Context(), task(tenant, id))
	if err != nil {
		t.Fatal(err)
	}
	redistest.Await(t, id+" runs", func() bool { _, err := r.Running(t.Context(), tenant, id); return err == nil })
	return token
}

// expire starts a task that is over soon, as soon as this machine can.
func expire(t *testing.T, r *tasks.Tasks, tenant, id string) {
	t.Helper()
	for ttl := 50 * time.Millisecond; ; ttl *= 2 {
		short := task(tenant, id)
		short.Expires = time.Now().Add(ttl)
		if _, err := r.Start(t.Context(), short); err == nil {
			return
		} else if !errors.Is(err, gateway.ErrNotNow) || ttl > time.Minute {
			t.Fatal(err)
		}
	}
}

func fresh(t *testing.T, r *tasks.Tasks) {
	t.Helper()
	redistest.Await(t, "ended tasks are confirmed", r.Fresh)
}

// An expiry can only be trusted while our clock and Redis's agree.
func TestClocksThatDisagreeAreStale(t *testing.T) {
	s := redistest.Embedded(t)
	r := replica(t, s, &gatewaytest.Facts{})
	begin(t, r, "acme", "task-1")
	for _, off := range []time.Duration{5 * time.Second, -10 * time.Second} {
		s.Advance(off)
		redistest.Await(t, "it cannot be confirmed", func() bool { return !r.Fresh() })
		if _, err := r.Running(t.Context(), "acme", "task-1"); !errors.Is(err, gateway.ErrStale) {
			t.Errorf("%v off: %v", off, err)
		}
	}
}

// A call that comes while what has ended is confirmed late, as it is now and then
// on a busy machine, waits for it; it is not refused, and nothing is let through on
// an old word.
func TestACallWaitsForALateConfirmation(t *testing.T) {
	s := redistest.Embedded(t)
	r := replica(t, s, &gatewaytest.Facts{})
	begin(t, r, "acme", "task-1")
	fresh(t, r)
	s.Advance(time.Hour) // clocks that disagree confirm nothing
	redistest.Await(t, "it is late", func() bool { return !r.Fresh() })
	late := time.Now()
	s.Advance(-time.Hour)
	if _, err := r.Running(t.Context(), "acme", "task-1"); err != nil {
		t.Errorf("after %v: %v", time.Since(late), err)
	}
	if !r.Confirmed().After(late) {
		t.Error("let through on an old word")
	}

	s.Advance(time.Hour)
	redistest.Await(t, "it is late again", func() bool { return !r.Fresh() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Running(ctx, "acme", "task-1"); !errors.Is(err, gateway.ErrStale) {
		t.Errorf("whose caller is gone: %v", err)
	}
	<-r.Blind()
	if _, err := r.Running(t.Context(), "acme", "task-1"); !errors.Is(err, gateway.ErrStale) {
		t.Errorf("where calls under way are cancelled: %v", err)
	}
}

// Whoever can write to Redis can take places, counts and members away; what a
// replica saw of them stands, and what only sealed records say is only taken
// from there.
func TestWhatIsTakenAwayInRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		setup := func(t *testing.T) (*redistest.Server, *tasks.Tasks, *gatewaytest.Facts) {
			s, facts := start(t), &gatewaytest.Facts{}
			r := replica(t, s, facts)
			fresh(t, r)
			return s, r, facts
		}
		t.Run("a stop is put back", func(t *testing.T) {
			s, a, _ := setup(t)
			b := replica(t, s, &gatewaytest.Facts{})
			if err := a.Stop(t.Context(), gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a", By: "alice"}); err != nil {
				t.Fatal(err)
			}
			redistest.Await(t, "b knows", func() bool { return b.Remembers(task("acme", "task-1")) })
			s.Do(t, "DEL", "tb:{acme}:tasks-stops")
			for _, r := range []*tasks.Tasks{a, b} {
				if _, err := r.Start(t.Context(), task("acme", "task-1")); !errors.Is(err, gateway.ErrStopped) {
					t.Errorf("it starts: %v", err)
				}
			}
			s.Do(t, "XADD", "tb:{acme}:tasks-ended", "*", "id", "-", "what", "stops")
			redistest.Await(t, "it is back", func() bool {
				all, err := a.Stops(t.Context(), "acme")
				return err == nil && len(all) == 1
			})
			// One that was lifted is not put back, by whoever remembers it, nor can its
			// lifting be used against the next.
			if _, err := a.Lift(t.Context(), "acme", gateway.StopPrincipal, "agent:a"); err != nil {
				t.Fatal(err)
			}
			redistest.Await(t, "it is lifted everywhere", func() bool {
				_, err := b.Start(t.Context(), task("acme", "task-2"))
				return err == nil
			})
			if err := a.Stop(t.Context(), gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a", By: "alice"}); err != nil {
				t.Fatal(err)
			}
			s.Do(t, "DEL", "tb:{acme}:tasks-stops")
			s.Do(t, "XADD", "tb:{acme}:tasks-ended", "*", "id", "-", "what", "stops")
			redistest.Await(t, "the new one is back", func() bool {
				all, err := a.Stops(t.Context(), "acme")
				return err == nil && len(all) == 1
			})
		})
		t.Run("a stop that is not ours holds until it is lifted", func(t *testing.T) {
			s, a, _ := setup(t)
			if err := a.Stop(t.Context(), gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a"}); err != nil {
				t.Fatal(err)
			}
			field := s.Do(t, "HKEYS", "tb:{acme}:tasks-stops").([]any)[0]
			s.Do(t, "HSET", "tb:{acme}:tasks-stops", field, "not ours")
			if _, err := a.Start(t.Context(), task("acme", "task-1")); !errors.Is(err, gateway.ErrStopped) {
				t.Errorf("it starts: %v", err)
			}
			if _, err := a.Lift(t.Context(), "acme", gateway.StopPrincipal, "agent:a"); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("what was spent stays spent", func(t *testing.T) {
			s, r, _ := setup(t)
			one := task("acme", "task-1")
			one.Budget = gateway.Budget{Calls: 5, PerDay: 100}
			if _, err := r.Start(t.Context(), one); err != nil {
				t.Fatal(err)
			}
			runsOn(t, r, "acme", "task-1")
			for i := range 8 {
				if err := r.Spend(t.Context(), one); (err == nil) != (i < 5) {
					t.Errorf("call %d: %v", i, err)
				}
				for _, k := range s.Keys(t, "tb:{acme}:task-*") {
					if strings.Contains(k, "spent") {
						s.Do(t, "DEL", k)
					}
				}
			}
			s.Do(t, "SET", "tb:{acme}:task-spent:task-1", "-1000")
			if err := r.Spend(t.Context(), one); !errors.Is(err, gateway.ErrTooMany) {
				t.Errorf("set back: %v", err)
			}
		})
		t.Run("a workload stays on its task", func(t *testing.T) {
			s, r, _ := setup(t)
			one, two := task("acme", "task-1"), task("acme", "task-2")
			one.Own, two.Own = true, true
			if _, err := r.Start(t.Context(), one); err != nil {
				t.Fatal(err)
			}
			place := s.Keys(t, "tb:{acme}:task-bound:*")[0]
			for _, forged := range []string{"", "task-none", "task-2", "not an id:"} {
				if s.Do(t, "DEL", place); forged != "" {
					s.Do(t, "SET", place, forged)
				}
				if _, err := r.Start(t.Context(), two); !errors.Is(err, gateway.ErrBusy) {
					t.Errorf("with %q in its place: %v", forged, err)
				}
			}
		})
		t.Run("another's task is nobody's standing one", func(t *testing.T) {
			s, r, _ := setup(t)
			mine, theirs := task("acme", "task-1"), task("acme", "task-2")
			mine.Implicit, theirs.Implicit, theirs.Principal = true, true, "agent:b"
			if _, err := r.Start(t.Context(), theirs); err != nil {
				t.Fatal(err)
			}
			place := s.Keys(t, "tb:{acme}:task-standing:*")[0]
			if _, err := r.Start(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
			for _, k := range s.Keys(t, "tb:{acme}:task-standing:*") {
				if k != place {
					s.Do(t, "SET", k, "task-2")
				}
			}
			b := replica(t, s, &gatewaytest.Facts{})
			fresh(t, b)
			var got gateway.Task
			var err error
			redistest.Await(t, "it is asked", func() bool {
				got, err = b.Standing(t.Context(), "acme", "agent:a", "bob", "triage")
				return !errors.Is(err, gateway.ErrStale)
			})
			if !errors.Is(err, gateway.ErrNoTask) {
				t.Errorf("Standing = %s, %v", got.ID, err)
			}
		})
		t.Run("a child without its place in the family ends with it", func(t *testing.T) {
			s, r, facts := setup(t)
			b := replica(t, s, &gatewaytest.Facts{})
			root := task("acme", "task-1")
			root.Limits = gateway.Limits{Depth: 1, FanOut: 2}
			if _, err := r.Start(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Start(t.Context(), below(root, "task-2")); err != nil {
				t.Fatal(err)
			}
			begin(t, r, "acme", "task-3")
			runsOn(t, b, "acme", "task-2")
			s.Do(t, "DEL", "tb:{acme}:task-children:task-1")
			s.Do(t, "SADD", "tb:{acme}:task-children:task-1", "task-3", "task-none", "not an id:") // none of its
			ended := b.Ended("acme", "task-2")
			if _, err := r.End(t.Context(), "acme", "task-1", by("x")); err != nil {
				t.Fatal(err)
			}
			<-ended
			for _, r := range []*tasks.Tasks{r, b, replica(t, s, facts)} {
				fresh(t, r)
				redistest.Await(t, "its child is refused", func() bool {
					_, err := r.Running(t.Context(), "acme", "task-2")
					if err == nil {
						t.Fatal("its child runs")
					}
					return errors.Is(err, gateway.ErrNoTask)
				})
			}
			redistest.Await(t, "it is closed all the same", func() bool { return len(closed(facts)) >= 1 })
			runsOn(t, r, "acme", "task-3")
		})
		t.Run("a child does not run on a forged parent", func(t *testing.T) {
			s, r, _ := setup(t)
			root := task("acme", "task-1")
			root.Limits = gateway.Limits{Depth: 1, FanOut: 2}
			if _, err := r.Start(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Start(t.Context(), below(root, "task-2")); err != nil {
				t.Fatal(err)
			}
			s.Do(t, "HSET", "tb:{acme}:task:task-1", "v", "7")
			if _, err := r.Start(t.Context(), below(root, "task-3")); err == nil {
				t.Error("a child of it starts")
			}
			b := replica(t, s, &gatewaytest.Facts{})
			fresh(t, b)
			if _, err := b.Running(t.Context(), "acme", "task-2"); err == nil {
				t.Error("a child of it runs")
			}
		})
		t.Run("a report that is not ours is none", func(t *testing.T) {
			s, r, facts := setup(t)
			hang := make(chan struct{})
			b := replica(t, s, facts, func(c *tasks.Config) {
				c.Here = func(context.Context, gateway.Task) gateway.Closing { <-hang; return gateway.Closing{Calls: 7} }
			})
			begin(t, r, "acme", "task-1")
			runsOn(t, b, "acme", "task-1")
			if _, err := r.End(t.Context(), "acme", "task-1", by("x")); err != nil {
				t.Fatal(err)
			}
			s.Do(t, "HSET", "tb:{acme}:task-reports:task-1", b.Self(), `{"calls":0}`)
			redistest.Await(t, "r reported", func() bool { return s.Do(t, "HGET", "tb:{acme}:task-reports:task-1", r.Self()) != nil })
			// b's place in the hash holds another's report now.
			s.Do(t, "HSET", "tb:{acme}:task-reports:task-1", b.Self(), s.Do(t, "HGET", "tb:{acme}:task-reports:task-1", r.Self()))
			if len(closed(facts)) > 0 {
				t.Error("closed without b")
			}
			close(hang)
			redistest.Await(t, "it is closed", func() bool { return len(closed(facts)) == 1 })
			if got := closed(facts)[0].Closing; got.Calls != 7 {
				t.Errorf("closed %+v", got)
			}
		})
	})
}

// A forged entry in the stream makes a replica look again, and no more.
func TestForgedAnnouncements(t *testing.T) {
	s := redistest.Embedded(t)
	r := replica(t, s, &gatewaytest.Facts{})
	begin(t, r, "acme", "task-1")
	for _, what := range []string{"changed", "stops"} {
		s.Do(t, "XADD", "tb:{acme}:tasks-ended", "*", "id", "task-1", "what", what)
	}
	runsOn(t, r, "acme", "task-1")
	ended := r.Ended("acme", "task-1")
	s.Do(t, "XADD", "tb:{acme}:tasks-ended", "*", "id", "task-1") // nobody ends a task so, but fewer calls is all it does
	<-ended
}

// A replica that starts later knows from its log what had ended: an old record
// that was put back convinces it of nothing.
func TestARecordThatIsPutBackRunsNothingThatTheLogHasEnded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s, &gatewaytest.Facts{})
		begin(t, a, "acme", "task-1")
		begin(t, a, "acme", "task-2")
		was := map[string]any{}
		for _, field := range []string{"v", "state", "task"} {
			was[field] = s.Do(t, "HGET", "tb:{acme}:task:task-1", field)
		}
		if _, err := a.End(t.Context(), "acme", "task-1", gateway.Ending{As: gateway.TaskEnded, By: "x"}); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "it is closed", func() bool {
			got, err := a.Get(t.Context(), "acme", "task-1")
			return err == nil && got.State == gateway.TaskEnded
		})
		s.Do(t, "HSET", "tb:{acme}:task:task-1", "v", was["v"], "state", was["state"], "task", was["task"])
		b := replica(t, s, &gatewaytest.Facts{}, func(c *tasks.Config) { c.Over = map[string][]string{"acme": {"task-1"}} })
		fresh(t, b)
		if _, err := b.Running(t.Context(), "acme", "task-1"); !errors.Is(err, gateway.ErrNoTask) {
			t.Errorf("it runs: %v", err)
		}
		redistest.Await(t, "another runs", func() bool { _, err := b.Running(t.Context(), "acme", "task-2"); return err == nil })
	})
}

// A standing task that somebody ends a moment after it expired stays ended.
func TestAStandingTaskThatExpiredIsStillEnded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		r := replica(t, s, &gatewaytest.Facts{})
		fresh(t, r)
		for ttl := 50 * time.Millisecond; ; ttl *= 2 {
			one := task("acme", "task-1")
			one.Implicit, one.Expires = true, time.Now().Add(ttl)
			if _, err := r.Start(t.Context(), one); err == nil {
				break
			} else if !errors.Is(err, gateway.ErrNotNow) {
				t.Fatal(err)
			}
		}
		<-r.Ended("acme", "task-1")
		redistest.Await(t, "it expired", func() bool {
			got, err := r.Get(t.Context(), "acme", "task-1")
			return err == nil && got.State != gateway.TaskRunning
		})
		if _, err := r.End(t.Context(), "acme", "task-1", gateway.Ending{As: gateway.TaskEnded, By: "operator:alice", Why: "enough"}); err != nil {
			t.Fatal(err)
		}
		again := task("acme", "task-2")
		again.Implicit = true
		if _, err := r.Start(t.Context(), again); !errors.Is(err, gateway.ErrStopped) {
			t.Errorf("it started again: %v", err)
		}
	})
}
