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
	if _, err := a.End(t.Context(), "acme", "task-1", "alice"); err != nil {
		t.Fatal(err)
	}
	<-b.Ended("acme", "task-1")
	s.Do(t, "HSET", "tb:{acme}:task:task-1", "v", "1", "task", was)
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
				if _, err := replica(t, s, &gatewaytest.Facts{}).End(t.Context(), "acme", "task-0", "x"); err != nil {
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

// Whatever hangs on a task hears of its end at least once, and until it could
// see to it.
func TestOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		var mu sync.Mutex
		told := map[string]int{}
		facts := &gatewaytest.Facts{}
		r := replica(t, s, facts, func(c *tasks.Config) {
			c.Over = func(_ context.Context, task gateway.Task) error {
				mu.Lock()
				defer mu.Unlock()
				if told[task.ID+" "+string(task.State)]++; told[task.ID+" "+string(task.State)] == 1 {
					return errors.New("Vault is away")
				}
				return nil
			}
		})
		begin(t, r, "acme", "task-1")
		if _, err := r.End(t.Context(), "acme", "task-1", "alice"); err != nil {
			t.Fatal(err)
		}
		expire(t, r, "globex", "task-2")
		redistest.Await(t, "both are told twice", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return told["task-1 ended"] == 2 && told["task-2 expired"] == 2
		})
		if got := facts.Of(); len(got) != 1 || got[0].Type != audit.TaskExpired || got[0].Task.ID != "task-2" {
			t.Errorf("recorded %v", got)
		}
	})
}

func TestForgedFactsAreNotRecorded(t *testing.T) {
	s, facts := redistest.Embedded(t), &gatewaytest.Facts{}
	r := replica(t, s, facts)
	s.Do(t, "XADD", "tb:{acme}:outbox:tasks", "*", "state", "expired", "id", "task-9", "task", `{"id":"task-9","tenant":"acme","state":"expired"}`)
	s.Do(t, "XADD", "tb:{acme}:outbox:tasks", "*", "nonsense", "")
	expire(t, r, "acme", "task-1")
	redistest.Await(t, "the real one is", func() bool { return len(facts.Of()) > 0 })
	if got := facts.Of(); len(got) != 1 || got[0].Task.ID != "task-1" {
		t.Errorf("recorded %v", got)
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
		all.Go(func() { a.End(context.Background(), "acme", id, "x") })
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
		if _, err := a.End(t.Context(), "acme", "task-1", "alice"); err != nil {
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
