package tasks_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/tasks"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// These are promised in docs/tasks.md.
func TestTimesThatArePromised(t *testing.T) {
	want := map[string]time.Duration{
		"calls are refused": 100 * time.Millisecond, "and then cancelled": time.Second,
		"proven": 2 * time.Second, "silent": 5 * time.Second, "given up": time.Minute,
	}
	if got := tasks.Paces(); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// Where nobody can say for long what has ended, what runs must stop; not before,
// and not what begins afterwards.
func TestBlind(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		r := join(t, s, "r1", &gatewaytest.Facts{})
		begin(t, r.Tasks, "acme", "task-1")
		blind := r.Blind()
		s.Stop(t)
		<-blind
		if age := time.Since(r.Confirmed()); age < 200*time.Millisecond {
			t.Errorf("after %v", age)
		}
		s.Start(t)
		runsOn(t, r.Tasks, "acme", "task-1")
		if r.Blind() == blind {
			t.Error("what is let run now is cancelled")
		}
	})
}

// unproven are the alerts of a replica.
func unproven(facts *gatewaytest.Facts, key string) []gateway.Fact {
	return slices.DeleteFunc(facts.Of(audit.TaskEndUnproven), func(f gateway.Fact) bool { return f.Key != key })
}

// A replica that knows of an end alerts to it in time, though Redis is away, and
// closes what it has.
func TestAnAlertWithoutRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		here := make(chan struct{}, 1000)
		left := func(c *tasks.Config) {
			c.Here = func(context.Context, gateway.Task) gateway.Closing {
				here <- struct{}{}
				return gateway.Closing{Unproven: []string{"2 calls under way"}}
			}
		}
		r := joinAt(t, s, "r1", facts, func(r *tasks.Tasks) { r.Prove(time.Second) }, left)
		begin(t, r.Tasks, "acme", "task-1")
		if _, err := r.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		s.Stop(t)
		<-here
		redistest.Await(t, "the alert", func() bool { return len(unproven(facts, "task-1:unproven:r1")) == 1 })
		f := unproven(facts, "task-1:unproven:r1")[0]
		said := fmt.Sprint(f.Closing.Unproven)
		if f.Task.Principal == "" || !strings.Contains(said, "on replica r1: 2 calls under way") || !strings.Contains(said, "Redis does not answer") {
			t.Errorf("%+v: %s", f.Task, said)
		}
	})
}

// The replica that ended a task dies at once: another that knows alerts in time,
// not when the closing is anybody's again.
func TestAnAlertOfWhoeverKnows(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		slow := func(r *tasks.Tasks) { r.Prove(100 * time.Millisecond); r.Held(time.Hour) }
		hang := make(chan struct{})
		defer close(hang)
		a := joinAt(t, s, "r1", &gatewaytest.Facts{}, slow, func(c *tasks.Config) {
			c.Here = func(context.Context, gateway.Task) gateway.Closing { <-hang; return gateway.Closing{} }
		})
		b := joinAt(t, s, "r2", facts, slow)
		begin(t, a.Tasks, "acme", "task-1")
		known := b.Ended("acme", "task-1")
		runsOn(t, b.Tasks, "acme", "task-1")
		if _, err := a.End(t.Context(), "acme", "task-1", by("x")); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "r1 holds its closing", func() bool { return s.Do(t, "HGET", "tb:{acme}:task:task-1", "holder") != nil })
		a.crash()
		<-known
		redistest.Await(t, "the alert", func() bool { return len(unproven(facts, "task-1:unproven:r2")) == 1 })
		if said := fmt.Sprint(unproven(facts, "task-1:unproven:r2")[0].Closing.Unproven); !strings.Contains(said, "replica r1") {
			t.Error(said)
		}
	})
}

// A replica that was started again is not waited for as the process that died,
// whether or not that had reported something; what it had is said not to be known.
func TestAReplicaThatIsStartedAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, reported := range map[string]bool{"it died before it reported": false, "it had reported something open": true} {
			t.Run(name, func(t *testing.T) {
				s, facts := start(t), &gatewaytest.Facts{}
				patient := func(r *tasks.Tasks) { r.GiveUpAfter(time.Hour) }
				a := joinAt(t, s, "r1", facts, patient)
				was := joinAt(t, s, "r2", &gatewaytest.Facts{}, patient, func(c *tasks.Config) {
					c.Here = func(context.Context, gateway.Task) gateway.Closing {
						return gateway.Closing{Unproven: []string{"1 calls under way"}}
					}
				})
				begin(t, a.Tasks, "acme", "task-1")
				runsOn(t, was.Tasks, "acme", "task-1")
				if !reported {
					was.crash()
				}
				if _, err := a.End(t.Context(), "acme", "task-1", by("x")); err != nil {
					t.Fatal(err)
				}
				if reported {
					redistest.Await(t, "it reported", func() bool { return s.Do(t, "HGET", "tb:{acme}:task-reports:task-1", was.Self()) != nil })
					was.crash()
				}
				joinAt(t, s, "r2", facts, patient)
				redistest.Await(t, "it is closed", func() bool { return len(closed(facts)) == 1 })
				said := closed(facts)[0].Closing.Unproven
				if !slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "not known: what replica r2 had") }) {
					t.Errorf("%q", said)
				}
			})
		}
	})
}
