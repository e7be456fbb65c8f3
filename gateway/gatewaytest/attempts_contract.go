package gatewaytest

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway"
)

// An AttemptsRig is attempts under test.
type AttemptsRig struct {
	Replica func() gateway.Attempts  // one more replica of the same attempts, running until the test ends
	Kill    func(gateway.Attempts)   // a replica dies without a word; nil where none can
	Advance func(time.Duration) bool // moves the outside system's clock; false where it is not ours to move
	Window  time.Duration            // how long one is remembered; zero: for ever
	Stop    func()                   // the outside system stops; nil where there is none
	Start   func()                   // and comes back with what it had
}

// client is whoever waits for an answer.
type client struct{ left, lost atomic.Bool }

func (c *client) gone(answered bool) bool { return c.left.Load() && !answered || c.lost.Load() }

// AttemptsContract holds attempts to what [gateway.Attempts] promises.
func AttemptsContract(t *testing.T, open func(t *testing.T) AttemptsRig) {
	run := func(key, session string, c *client) gateway.Run {
		return gateway.Run{Tenant: "acme", Key: key, Session: session, Gone: c.gone}
	}
	begins := func(t *testing.T, a gateway.Attempts, r gateway.Run) gateway.Try {
		t.Helper()
		one := a.Begin(r)
		if first, again, err := one.Begun(t.Context()); again || err != nil {
			t.Errorf("%s: %+v, %v, %v; want a run of its own", r.Key, first, again, err)
		}
		return one
	}
	repeats := func(t *testing.T, a gateway.Attempts, r gateway.Run, want gateway.Attempt) {
		t.Helper()
		if first, again, err := a.Begin(r).Begun(t.Context()); !again || err != nil || !reflect.DeepEqual(first, want) {
			t.Errorf("%s: %+v, %v, %v; want %+v", r.Key, first, again, err, want)
		}
	}
	// waits starts a repetition that must not return yet, and says what it does return.
	type out struct {
		first gateway.Attempt
		again bool
		err   error
	}
	waits := func(t *testing.T, ctx context.Context, a gateway.Attempts, r gateway.Run) <-chan out {
		t.Helper()
		got := make(chan out, 1)
		one := a.Begin(r)
		go func() {
			first, again, err := one.Begun(ctx)
			got <- out{first, again, err}
		}()
		return got
	}
	replicas := func(t *testing.T) (rig AttemptsRig, pairs map[string][2]gateway.Attempts) {
		rig = open(t)
		a, b := rig.Replica(), rig.Replica()
		return rig, map[string][2]gateway.Attempts{"here": {a, a}, "elsewhere": {a, b}}
	}
	answer := gateway.Attempt{Call: "call-1", Answer: []byte("{ \"content\" : [\"<b>\"],\n\"x\":1e2 }\x00\xff")}
	doubt := gateway.Attempt{Call: "call-2", Doubt: true}

	t.Run("lost is known as it was, at once and as often as it is asked for", func(t *testing.T) {
		rig, pairs := replicas(t)
		for where, on := range pairs {
			for name, want := range map[string]gateway.Attempt{
				"answer": answer, "error": {Call: "call-2", Answer: []byte(`{"code":-32603}`), Error: true}, "doubt": doubt,
			} {
				key := where + "-" + name
				begins(t, on[0], run(key, "", new(client))).End(gateway.EndLost, want)
				repeats(t, on[1], run(key, "", new(client)), want)
				repeats(t, on[0], run(key, "", new(client)), want)
				repeats(t, rig.Replica(), run(key, "", new(client)), want)
				other := run(key, "", new(client))
				other.Tenant = "globex"
				begins(t, on[1], other)
				begins(t, on[1], run(key+"-other", "", new(client)))
			}
		}
	})

	t.Run("whoever else counts alike runs", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			var all []gateway.Try
			for i := range 6 {
				all = append(all, begins(t, on[i%2], run(where, "", new(client))))
			}
			for _, one := range all[:3] {
				one.End(gateway.EndWritten, answer)
			}
			begins(t, on[1], run(where, "", new(client))).End(gateway.EndNothing, gateway.Attempt{})
			for _, one := range all {
				one.End(gateway.EndArrived, answer)
			}
			begins(t, on[1], run(where, "", new(client))).End(gateway.EndArrived, answer)
		}
	})

	t.Run("whose client is gone is waited for", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			for how, end := range map[string]gateway.RunEnd{"lost": gateway.EndLost, "nothing": gateway.EndNothing} {
				c := new(client)
				first := begins(t, on[0], run(where+how, "", c))
				c.left.Store(true)
				got := waits(t, t.Context(), on[1], run(where+how, "", new(client)))
				select {
				case o := <-got:
					t.Errorf("%s %s: did not wait: %+v", where, how, o)
				case <-time.After(50 * time.Millisecond):
				}
				first.End(end, answer)
				o := <-got
				if how == "lost" && (!o.again || !reflect.DeepEqual(o.first, answer)) || how == "nothing" && o.again || o.err != nil {
					t.Errorf("%s %s: %+v", where, how, o)
				}
			}
		}
	})

	t.Run("written and not read", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			c := new(client)
			first := begins(t, on[0], run(where+"-told", "", c))
			first.End(gateway.EndWritten, answer)
			first.End(gateway.EndLost, gateway.Attempt{})
			repeats(t, on[1], run(where+"-told", "", new(client)), answer)

			begins(t, on[0], run(where+"-seen", "", c)).End(gateway.EndWritten, answer)
			c.left.Store(true) // which is in order, once it has been answered
			begins(t, on[1], run(where+"-seen", "", new(client))).End(gateway.EndArrived, answer)
			c.lost.Store(true)
			repeats(t, on[1], run(where+"-seen", "", new(client)), answer)
		}
	})

	t.Run("in a session an id is used once", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			first := begins(t, on[0], run(where, "s", new(client)))
			got := waits(t, t.Context(), on[1], run(where, "s", new(client)))
			first.End(gateway.EndWritten, answer)
			first.End(gateway.EndArrived, answer)
			if o := <-got; !o.again || o.err != nil || !reflect.DeepEqual(o.first, answer) {
				t.Errorf("%s: %+v", where, o)
			}
			repeats(t, on[1], run(where, "s", new(client)), answer)
			repeats(t, on[0], run(where, "s", new(client)), answer)
			begins(t, on[0], run(where+"-nothing", "s", new(client))).End(gateway.EndNothing, gateway.Attempt{})
			begins(t, on[1], run(where+"-nothing", "s", new(client)))
		}
	})

	t.Run("of many equal ones in a session one runs", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			var all sync.WaitGroup
			var runs, repeated atomic.Int64
			for i := range 20 {
				all.Go(func() {
					one := on[i%2].Begin(run(where, "s", new(client)))
					first, again, err := one.Begun(t.Context())
					if err != nil || again && !reflect.DeepEqual(first, answer) {
						t.Error(first, again, err)
					}
					if again {
						repeated.Add(1)
						return
					}
					runs.Add(1)
					one.End(gateway.EndWritten, answer)
				})
			}
			all.Wait()
			if runs.Load() != 1 || repeated.Load() != 19 {
				t.Errorf("%s: %d runs, %d repetitions", where, runs.Load(), repeated.Load())
			}
		}
	})

	t.Run("who waits can give up", func(t *testing.T) {
		_, pairs := replicas(t)
		for where, on := range pairs {
			first := begins(t, on[0], run(where, "s", new(client)))
			ctx, cancel := context.WithCancel(t.Context())
			got := waits(t, ctx, on[1], run(where, "s", new(client)))
			cancel()
			if o := <-got; o.err == nil {
				t.Errorf("%s: %+v", where, o)
			}
			first.End(gateway.EndNothing, gateway.Attempt{})
			begins(t, on[1], run(where, "s", new(client)))
		}
	})

	t.Run("many at once", func(t *testing.T) {
		_, pairs := replicas(t)
		on := pairs["elsewhere"]
		var all sync.WaitGroup
		for i := range 400 {
			all.Go(func() {
				one := begins(t, on[i%2], run(fmt.Sprint("k-", i), "", new(client)))
				one.End(gateway.EndLost, gateway.Attempt{Call: fmt.Sprint("call-", i), Doubt: true})
			})
		}
		all.Wait()
		for i := range 400 {
			all.Go(func() {
				repeats(t, on[(i+1)%2], run(fmt.Sprint("k-", i), "", new(client)), gateway.Attempt{Call: fmt.Sprint("call-", i), Doubt: true})
			})
		}
		all.Wait()
	})

	t.Run("what a dead replica had is in doubt", func(t *testing.T) {
		rig := open(t)
		if rig.Kill == nil {
			t.Skip("nothing can die")
		}
		a, b := rig.Replica(), rig.Replica()
		begins(t, a, run("running", "", new(client)))
		begins(t, a, run("in-a-session", "s", new(client)))
		begins(t, a, run("answered", "s", new(client))).End(gateway.EndWritten, answer)
		rig.Kill(a)
		for _, r := range []gateway.Run{run("running", "", new(client)), run("in-a-session", "s", new(client)), run("answered", "s", new(client))} {
			repeats(t, b, r, gateway.Attempt{Doubt: true})
			repeats(t, rig.Replica(), r, gateway.Attempt{Doubt: true})
		}
		begins(t, b, run("other", "", new(client)))
	})

	t.Run("forgotten after the window", func(t *testing.T) {
		rig := open(t)
		if rig.Window == 0 || !rig.Advance(0) {
			t.Skip("no clock to move")
		}
		a, b := rig.Replica(), rig.Replica()
		begins(t, a, run("k", "", new(client))).End(gateway.EndLost, doubt)
		repeats(t, b, run("k", "", new(client)), doubt)
		rig.Advance(rig.Window - time.Second)
		repeats(t, b, run("k", "", new(client)), doubt)
		rig.Advance(2 * time.Second)
		await(t, "it is forgotten", func() bool {
			one := a.Begin(run("k", "", new(client)))
			_, again, err := one.Begun(t.Context())
			return !again && err == nil
		})
	})

	t.Run("a restart loses nothing, and while it lasts nobody knows", func(t *testing.T) {
		rig := open(t)
		if rig.Stop == nil {
			t.Skip("nothing to restart")
		}
		a, b := rig.Replica(), rig.Replica()
		running := begins(t, a, run("running", "s", new(client)))
		begins(t, a, run("before", "", new(client))).End(gateway.EndLost, doubt)
		repeats(t, b, run("before", "", new(client)), doubt)
		meanwhile := begins(t, a, run("meanwhile", "", new(client)))
		rig.Stop()
		meanwhile.End(gateway.EndLost, answer)
		for _, key := range []string{"before", "running", "new"} {
			if first, again, err := b.Begin(run(key, "s", new(client))).Begun(t.Context()); err == nil {
				t.Errorf("%s: %+v, %v while nobody knows", key, first, again)
			}
		}
		rig.Start()
		running.End(gateway.EndWritten, answer)
		await(t, "it can be told again", func() bool {
			_, _, err := b.Begin(run("after", "", new(client))).Begun(t.Context())
			return err == nil
		})
		repeats(t, b, run("before", "", new(client)), doubt)
		repeats(t, b, run("running", "s", new(client)), answer)
		repeats(t, a, run("meanwhile", "", new(client)), answer)
		repeats(t, b, run("meanwhile", "", new(client)), answer)
	})
}
