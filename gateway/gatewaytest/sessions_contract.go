package gatewaytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"toolbroker/gateway"
)

// A SessionsRig is sessions under test.
type SessionsRig struct {
	Replica func() gateway.Sessions // one more replica of the same sessions, running until the test ends
	Later   func()                  // a second passes, as long as a replica may take its own word
	Stop    func()                  // the outside system stops; nil where there is none
	Start   func()                  // and comes back with what it had
	Most    int                     // sessions that a workload may have
}

// SessionsContract holds sessions to what [gateway.Sessions] promises.
func SessionsContract(t *testing.T, open func(t *testing.T) SessionsRig) {
	start := func(t *testing.T, s gateway.Sessions, id, task string) gateway.Session {
		t.Helper()
		one := gateway.Session{Binding: "alice", Tenant: "acme", Task: task, Protocol: "2025-11-25", Caps: json.RawMessage(`{"sampling":{}}`)}
		if err := s.Open(t.Context(), id, one); err != nil {
			t.Fatal(err)
		}
		return one
	}
	is := func(t *testing.T, s gateway.Sessions, id string, want gateway.Session) {
		t.Helper()
		if got, err := s.Session(t.Context(), id); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, %v; want %+v", id, got, err, want)
		}
	}
	gone := func(t *testing.T, s gateway.Sessions, id string) {
		t.Helper()
		if got, err := s.Session(t.Context(), id); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("%s is there: %+v, %v", id, got, err)
		}
	}

	t.Run("opened, changed, closed", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		gone(t, a, "s1")
		if _, err := a.Change(t.Context(), "s1", func(*gateway.Session) {}); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("changed what is not there: %v", err)
		}
		want := start(t, a, "s1", "task-1")
		is(t, a, "s1", want)
		is(t, b, "s1", want)
		want.LogLevel, want.Follows, want.Awaits = "debug", []string{"file:///x", "file:///y"}, []string{"apr-1"}
		changed, err := a.Change(t.Context(), "s1", func(one *gateway.Session) {
			one.LogLevel, one.Follows, one.Awaits = want.LogLevel, want.Follows, want.Awaits
			one.Binding, one.Tenant, one.Task, one.Protocol, one.Caps = "mallory", "globex", "task-2", "", nil // is fixed
		})
		if err != nil || !reflect.DeepEqual(changed, want) {
			t.Errorf("changed to %+v, %v", changed, err)
		}
		is(t, a, "s1", want) // at once where it was changed
		rig.Later()
		is(t, b, "s1", want)
		for range 2 { // closing an unknown one is no error
			if err := b.Close(t.Context(), "s1"); err != nil {
				t.Fatal(err)
			}
		}
		gone(t, b, "s1")
		if _, err := b.Change(t.Context(), "s1", func(*gateway.Session) {}); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("changed what was closed: %v", err)
		}
		rig.Later()
		gone(t, a, "s1")
	})

	t.Run("a change is one step", func(t *testing.T) {
		rig := open(t)
		replicas := []gateway.Sessions{rig.Replica(), rig.Replica()}
		start(t, replicas[0], "s1", "task-1")
		const each = 10
		var all sync.WaitGroup
		for i, s := range replicas {
			for j := range each {
				all.Go(func() {
					_, err := s.Change(t.Context(), "s1", func(one *gateway.Session) {
						one.Follows = append(one.Follows, fmt.Sprint("file:///", i, "/", j))
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
		rig.Later()
		for _, s := range replicas {
			if got, err := s.Session(t.Context(), "s1"); err != nil || len(got.Follows) != 2*each {
				t.Errorf("%d of %d changes, %v", len(got.Follows), 2*each, err)
			}
		}
	})

	t.Run("the end of a task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		heard := watch(t, a, b)
		start(t, a, "s1", "task-1")
		start(t, b, "s2", "task-1")
		other := start(t, a, "s3", "task-2")
		for _, want := range []int{2, 0} {
			if n, err := b.EndTask(t.Context(), "acme", "task-1"); err != nil || n != want {
				t.Errorf("ended %d, %v; want %d", n, err, want)
			}
		}
		if n, err := a.EndTask(t.Context(), "globex", "task-2"); err != nil || n != 0 {
			t.Errorf("ended %d of another tenant's, %v", n, err)
		}
		rig.Later()
		for _, s := range []gateway.Sessions{a, b} {
			gone(t, s, "s1")
			gone(t, s, "s2")
			is(t, s, "s3", other)
		}
		heard.are(t, "s1 closed with its task", "s2 closed with its task")
	})

	t.Run("a workload has so many", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		heard := watch(t, a, b)
		other := start(t, a, "s0", "task-1")
		var all, closed, words []string
		for i := range rig.Most + 2 {
			id, s := fmt.Sprint("w", i), []gateway.Sessions{a, b}[i%2]
			if err := s.Open(t.Context(), id, gateway.Session{Tenant: "acme", Task: fmt.Sprint("task-", i%3), Principal: "agent:w"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Session(t.Context(), id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			all = append(all, id)
		}
		rig.Later()
		for _, id := range all {
			if _, err := a.Session(t.Context(), id); errors.Is(err, gateway.ErrNotFound) {
				closed, words = append(closed, id), append(words, id+" closed")
			} else if err != nil {
				t.Error(err)
			}
		}
		if len(closed) != 2 {
			t.Errorf("%v of %v are closed, want 2", closed, all)
		}
		heard.are(t, words...)
		is(t, b, "s0", other)
		// Those that were closed leave room.
		if err := a.Close(t.Context(), all[len(all)-1]); err != nil {
			t.Fatal(err)
		}
		if _, err := b.EndTask(t.Context(), "acme", "task-0"); err != nil {
			t.Fatal(err)
		}
		if err := b.Open(t.Context(), "new", gateway.Session{Tenant: "acme", Task: "task-9", Principal: "agent:w"}); err != nil {
			t.Fatal(err)
		}
		rig.Later()
		for i, id := range all[:len(all)-1] {
			if _, err := a.Session(t.Context(), id); errors.Is(err, gateway.ErrNotFound) != (i%3 == 0 || slices.Contains(closed, id)) {
				t.Errorf("%s: %v", id, err)
			}
		}
	})

	t.Run("every replica hears what is said in a session and for it", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		heard := watch(t, a, b)
		for _, n := range []gateway.News{
			{Session: "s1", Roots: true}, {Session: "s1", Level: "debug"},
			{Session: "s1", Note: &gateway.Note{Ask: "ask-1", Method: "roots/list"}},
			{Session: "s2", Note: &gateway.Note{Method: "notifications/message", Params: json.RawMessage(`{ "data":"\u0041"}`), Server: "files", Used: "files/read"}},
		} {
			if n.Note != nil { // which may be lost before everybody listens
				await(t, "it is heard", func() bool {
					if err := a.Tell(t.Context(), gateway.News{Session: "s3", Note: n.Note}); err != nil {
						t.Fatal(err)
					}
					return heard.have("s3 " + what(n))
				})
				continue
			}
			if err := b.Tell(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			heard.has(t, n.Session+" "+what(n))
		}
	})

	t.Run("every replica hears what was cancelled and closed, once", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		heard := watch(t, a, b)
		start(t, a, "s1", "task-1")
		start(t, a, "s2", "task-1")
		for i, s := range []gateway.Sessions{a, b, a, b} {
			if err := s.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: fmt.Sprint(`"r`, i, `"`)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(t.Context(), "s2"); err != nil {
			t.Fatal(err)
		}
		heard.are(t, `s1 "r0"`, `s1 "r1"`, `s1 "r2"`, `s1 "r3"`, "s2 closed")
		if rig.Stop == nil {
			return
		}
		rig.Stop()
		if err := a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "lost"}); err == nil {
			t.Error("cancelled while nobody could be told")
		}
		rig.Start()
		await(t, "later ones are heard", func() bool { return a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "later"}) == nil })
		heard.has(t, "s1 later")
	})

	t.Run("an answer finds who expects it", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for name, r := range map[string]gateway.Result{
			"a result": {Raw: json.RawMessage("{ \"action\" : \"accept\",\n\"content\":{\"<a>\":1e2, \"<a>\":2} }")},
			"an error": {Error: json.RawMessage(`{"code": -32603,  "message": "no"}`)},
		} {
			for _, to := range []gateway.Sessions{a, b} {
				wait, done := expect(t, a, "s1", "ask-1")
				for what, other := range map[string][2]string{"another ask": {"s1", "ask-2"}, "another session": {"s2", "ask-1"}, "cut elsewhere": {"s1a", "sk-1"}} {
					if err := to.Answer(t.Context(), other[0], other[1], r); !errors.Is(err, gateway.ErrNotFound) {
						t.Errorf("%s: %s was answered: %v", name, what, err)
					}
				}
				if err := to.Answer(t.Context(), "s1", "ask-1", r); err != nil {
					t.Fatal(name, err)
				}
				if err := b.Answer(t.Context(), "s1", "ask-1", r); !errors.Is(err, gateway.ErrNotFound) {
					t.Errorf("%s: answered twice: %v", name, err)
				}
				if got, err := wait(t.Context()); err != nil || !reflect.DeepEqual(got, r) {
					t.Errorf("%s: %+v, %v", name, got, err)
				}
				done()
				if err := to.Answer(t.Context(), "s1", "ask-1", r); !errors.Is(err, gateway.ErrNotFound) {
					t.Errorf("%s: answered afterwards: %v", name, err)
				}
			}
		}
	})

	t.Run("an answer that does not come", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		wait, done := expect(t, a, "s1", "ask-1")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("waited and got %v", err)
		}
		done()
		if err := b.Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: json.RawMessage(`{}`)}); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("answered to nobody: %v", err)
		}
	})

	t.Run("one of many answers counts", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for range 20 {
			wait, done := expect(t, a, "s1", "ask-1")
			var mu sync.Mutex
			var taken []string
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					raw := fmt.Sprintf(`{"from":%d}`, i)
					switch err := []gateway.Sessions{a, b}[i%2].Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: json.RawMessage(raw)}); {
					case err == nil:
						mu.Lock()
						taken = append(taken, raw)
						mu.Unlock()
					case !errors.Is(err, gateway.ErrNotFound):
						t.Error(err)
					}
				})
			}
			got, err := wait(t.Context())
			all.Wait()
			if err != nil || len(taken) != 1 || string(got.Raw) != taken[0] {
				t.Fatalf("got %s, %v; taken %v", got.Raw, err, taken)
			}
			done()
		}
	})

	t.Run("many at once, crosswise", func(t *testing.T) {
		rig := open(t)
		replicas := []gateway.Sessions{rig.Replica(), rig.Replica()}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				session, ask := fmt.Sprint("s", i%10), fmt.Sprint("ask-", i)
				wait, done := expect(t, replicas[i%2], session, ask)
				defer done()
				all.Go(func() {
					if err := replicas[i/2%2].Answer(t.Context(), session, ask, gateway.Result{Raw: json.RawMessage(fmt.Sprint(i))}); err != nil {
						t.Error(err)
					}
				})
				if r, err := wait(t.Context()); err != nil || string(r.Raw) != fmt.Sprint(i) {
					t.Errorf("%d was answered %s, %v", i, r.Raw, err)
				}
			})
		}
		all.Wait()
	})

	t.Run("an ask outlives a restart", func(t *testing.T) {
		rig := open(t)
		if rig.Stop == nil {
			t.Skip("nothing to restart")
		}
		a, b := rig.Replica(), rig.Replica()
		start(t, a, "s1", "task-1")
		wait, done := expect(t, a, "s1", "ask-1")
		defer done()
		type end struct {
			r   gateway.Result
			err error
		}
		ended := make(chan end, 1)
		go func() {
			r, err := wait(t.Context())
			ended <- end{r, err}
		}()
		rig.Stop()
		if err := b.Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: json.RawMessage(`{}`)}); err == nil || errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("answered while nobody could know: %v", err)
		}
		rig.Start()
		await(t, "it can be answered", func() bool {
			return b.Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: json.RawMessage(`{"late":true}`)}) == nil
		})
		if e := <-ended; e.err != nil || string(e.r.Raw) != `{"late":true}` {
			t.Errorf("%s, %v", e.r.Raw, e.err)
		}
		if _, err := b.Session(t.Context(), "s1"); err != nil {
			t.Error(err)
		}
	})
}

func expect(t *testing.T, s gateway.Sessions, session, ask string) (func(context.Context) (gateway.Result, error), func()) {
	t.Helper()
	wait, done, err := s.Expect(t.Context(), session, ask)
	if err != nil {
		t.Fatal(err)
	}
	return wait, done
}

// ears are what several replicas' watchers heard.
type ears struct {
	mu    sync.Mutex
	heard [][]string
}

// watch listens on each of some replicas, and returns once all do.
func watch(t *testing.T, replicas ...gateway.Sessions) *ears {
	t.Helper()
	e := &ears{heard: make([][]string, len(replicas))}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	awake := make([]bool, len(replicas))
	for i, s := range replicas {
		all.Go(func() {
			s.Watch(ctx, func(n gateway.News) {
				e.mu.Lock()
				defer e.mu.Unlock()
				if n.Session == "are you awake" {
					awake[i] = true
					return
				}
				e.heard[i] = append(e.heard[i], n.Session+" "+what(n))
			})
		})
	}
	await(t, "everybody listens", func() bool {
		if err := replicas[0].Tell(t.Context(), gateway.News{Session: "are you awake", Cancelled: "?"}); err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		return !slices.Contains(awake, false)
	})
	return e
}

// what is what a piece of news says, in a word or two.
func what(n gateway.News) string {
	said := n.Cancelled
	if n.Roots {
		said += "roots"
	}
	if n.Level != "" {
		said += "level " + n.Level
	}
	if n.Closed {
		said += "closed"
	}
	if n.WithTask {
		said += " with its task"
	}
	if n.Note != nil {
		said += n.Note.Ask + n.Note.Method + string(n.Note.Params) + n.Note.Server + n.Note.Used
	}
	return said
}

// has waits until everybody heard a thing.
func (e *ears) has(t *testing.T, want string) {
	t.Helper()
	await(t, "everybody hears "+want, func() bool { return e.have(want) })
}

func (e *ears) have(want string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !slices.ContainsFunc(e.heard, func(heard []string) bool { return !slices.Contains(heard, want) })
}

// are waits until everybody heard all of want, and holds that this is all, once each.
func (e *ears) are(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		e.has(t, w)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	slices.Sort(want)
	for i, heard := range e.heard {
		heard = slices.Clone(heard)
		slices.Sort(heard)
		if !slices.Equal(heard, want) {
			t.Errorf("replica %d heard %q, want %q", i, heard, want)
		}
	}
}
