package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"toolbroker/gateway"
)

// A HandlesRig is handles under test.
type HandlesRig struct {
	Replica func() gateway.Handles   // one more replica of the same handles
	Advance func(time.Duration) bool // moves the outside system's clock, which stands still from the first call on; false where it is not ours to move
	Now     func() time.Time         // that clock
	Stop    func()                   // the outside system stops; nil where there is none
	Start   func()                   // and comes back with what it had
}

// AHandle is a handle with something in every part of it that JSON could change.
func AHandle(tenant, task, id string, now time.Time) gateway.Handle {
	raw := func(s string) json.RawMessage {
		return json.RawMessage("{ \"<" + s + ">\" : 1e2,\n\"<" + s + ">\":\"\u2028&\" }")
	}
	now = now.UTC().Truncate(time.Millisecond)
	return gateway.Handle{
		ID: id, Tenant: tenant, Binding: "agent:a\x00alice\x00" + task, Task: task,
		Call:     gateway.StoredCall{Method: gateway.MethodCall, Name: "tracker__close", Args: raw("args"), Meta: raw("meta"), Caps: raw("caps"), Protocol: "2026-07-28"},
		Approval: "apr-1", Status: gateway.HandleWorking, Message: "waits for a human", Refused: true,
		Wants: raw("wants"), Poll: 5 * time.Second, Created: now, Updated: now, Expires: now.Add(time.Hour), Seq: 1,
	}
}

// HandlesContract holds handles to what [gateway.Handles] promises.
func HandlesContract(t *testing.T, open func(t testing.TB) HandlesRig) {
	keep := func(t *testing.T, h gateway.Handles, one gateway.Handle) {
		t.Helper()
		if err := h.Keep(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	is := func(t *testing.T, h gateway.Handles, want gateway.Handle) {
		t.Helper()
		if got, err := h.Handle(t.Context(), want.Tenant, want.ID); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("it is\n%+v, %v\nwant\n%+v", got, err, want)
		}
		for seq, moved := range map[int64]bool{want.Seq: false, want.Seq - 1: true, want.Seq + 1: true} {
			if got, err := h.Moved(t.Context(), want.Tenant, want.ID, seq); err != nil || got != moved {
				t.Errorf("moved from %d: %v, %v; it is at %d", seq, got, err, want.Seq)
			}
		}
	}
	gone := func(t *testing.T, h gateway.Handles, tenant, id string) {
		t.Helper()
		if got, err := h.Handle(t.Context(), tenant, id); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("%s is there: %+v, %v", id, got, err)
		}
		if got, err := h.Moved(t.Context(), tenant, id, 1); got || !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("%s is there, moved %v, %v", id, got, err)
		}
	}
	refused := func(t *testing.T, what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}

	t.Run("kept, moved, final", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		gone(t, a, "acme", "h1")
		want := AHandle("acme", "task-1", "h1", rig.Now())
		one := want
		one.Seq = 77 // it is ours to count
		keep(t, a, one)
		is(t, a, want)
		is(t, b, want)
		gone(t, b, "globex", "h1")
		refused(t, "kept twice", b.Keep(t.Context(), want), gateway.ErrNotNow)

		one = want
		one.Status, one.Approval, one.Run, one.RunUntil, one.Wants = gateway.HandleInput, "", "call-1", want.Created.Add(time.Minute), nil
		one.Binding, one.Task, one.Call, one.Created = "mallory", "task-2", gateway.StoredCall{Name: "other"}, time.Time{} // do not move
		moved, err := b.Move(t.Context(), one)
		one.Binding, one.Task, one.Call, one.Created, one.Seq = want.Binding, want.Task, want.Call, want.Created, 2
		if err != nil || !reflect.DeepEqual(moved, one) {
			t.Errorf("moved to\n%+v, %v\nwant\n%+v", moved, err, one)
		}
		is(t, a, one)
		_, err = a.Move(t.Context(), want)
		refused(t, "moved from what it was before", err, gateway.ErrNotNow)

		one.Status, one.Result = gateway.HandleCompleted, gateway.Result{Type: gateway.ResultComplete, Raw: json.RawMessage("{\"<x>\": 1e2 }")}
		if one, err = a.Move(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		is(t, b, one)
		_, err = b.Move(t.Context(), one)
		refused(t, "moved from what is final", err, gateway.ErrNotNow)
		is(t, a, one)

		unknown := AHandle("acme", "task-1", "h2", rig.Now())
		_, err = a.Move(t.Context(), unknown)
		refused(t, "moved what is not there", err, gateway.ErrNotFound)
	})

	t.Run("one of many moves counts", func(t *testing.T) {
		rig := open(t)
		replicas := []gateway.Handles{rig.Replica(), rig.Replica()}
		one := AHandle("acme", "task-1", "h1", rig.Now())
		keep(t, replicas[0], one)
		for range 10 {
			var mu sync.Mutex
			var all sync.WaitGroup
			var next []gateway.Handle
			for i := range 8 {
				all.Go(func() {
					try := one
					try.Run = fmt.Sprint("call-", i)
					switch got, err := replicas[i%2].Move(t.Context(), try); {
					case err == nil:
						mu.Lock()
						next = append(next, got)
						mu.Unlock()
					case !errors.Is(err, gateway.ErrNotNow):
						t.Error(err)
					}
				})
			}
			all.Wait()
			if len(next) != 1 {
				t.Fatalf("%d moves from one state", len(next))
			}
			one = next[0]
			is(t, replicas[0], one)
			is(t, replicas[1], one)
		}
	})

	t.Run("expiry", func(t *testing.T) {
		rig := open(t)
		if !rig.Advance(0) {
			t.Skip("no clock to move")
		}
		a, b := rig.Replica(), rig.Replica()
		one := AHandle("acme", "task-1", "h1", rig.Now())
		keep(t, a, one)
		rig.Advance(30 * time.Minute)
		one.Expires = one.Expires.Add(time.Hour) // it may move
		one, err := b.Move(t.Context(), one)
		if err != nil {
			t.Fatal(err)
		}
		rig.Advance(time.Hour)
		is(t, a, one)
		rig.Advance(30 * time.Minute)
		gone(t, a, "acme", "h1")
		gone(t, b, "acme", "h1")
		_, err = a.Move(t.Context(), one)
		refused(t, "moved after its time", err, gateway.ErrNotFound)
		if n, err := a.EndTask(t.Context(), "acme", "task-1"); n != 0 || err != nil {
			t.Errorf("ended %d, %v", n, err)
		}
		late := AHandle("acme", "task-2", "h2", rig.Now().Add(-2*time.Hour))
		refused(t, "kept after its time", a.Keep(t.Context(), late), gateway.ErrNotNow)
	})

	t.Run("the end of a task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		kept := map[string]gateway.Handle{}
		for id, task := range map[string]string{"working": "task-1", "input": "task-1", "done": "task-1", "other": "task-2"} {
			one := AHandle("acme", task, id, rig.Now())
			keep(t, a, one)
			one.Status = map[string]string{"working": gateway.HandleWorking, "input": gateway.HandleInput, "done": gateway.HandleFailed, "other": gateway.HandleWorking}[id]
			one, err := b.Move(t.Context(), one)
			if err != nil {
				t.Fatal(err)
			}
			kept[id] = one
		}
		theirs := AHandle("globex", "task-1", "theirs", rig.Now())
		keep(t, a, theirs)
		for _, want := range []int{2, 0} {
			if n, err := b.EndTask(t.Context(), "acme", "task-1"); err != nil || n != want {
				t.Errorf("ended %d, %v; want %d", n, err, want)
			}
		}
		for id, one := range kept {
			if id == "working" || id == "input" {
				_, err := a.Move(t.Context(), one)
				refused(t, "moved after the end", err, gateway.ErrNotNow)
				one.Status, one.Seq = gateway.HandleCancelled, one.Seq+1
			}
			is(t, a, one)
		}
		is(t, a, theirs)
		refused(t, "kept after the end", a.Keep(t.Context(), AHandle("acme", "task-1", "late", rig.Now())), gateway.ErrNotNow)
		gone(t, b, "acme", "late")
		if err := b.Keep(t.Context(), AHandle("globex", "task-1", "late", rig.Now())); err != nil {
			t.Errorf("another tenant's task of that name is over: %v", err)
		}
	})

	t.Run("nothing slips past the end of a task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for round := range 10 {
			task := fmt.Sprint("task-", round)
			moving := AHandle("acme", task, fmt.Sprint("m", round), rig.Now())
			keep(t, a, moving)
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					_ = a.Keep(t.Context(), AHandle("acme", task, fmt.Sprint("k", round, "x", i), rig.Now()))
				})
			}
			all.Go(func() {
				for one, err := moving, error(nil); err == nil && one.Seq < 20; one, err = a.Move(t.Context(), one) {
				}
			})
			if _, err := b.EndTask(t.Context(), "acme", task); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			for _, id := range []string{fmt.Sprint("m", round), fmt.Sprint("k", round, "x0"), fmt.Sprint("k", round, "x3")} {
				if got, err := a.Handle(t.Context(), "acme", id); err == nil && !got.Final() {
					t.Fatalf("%s of an ended task is %s", id, got.Status)
				}
			}
		}
	})

	t.Run("a restart loses nothing", func(t *testing.T) {
		rig := open(t)
		if rig.Stop == nil {
			t.Skip("nothing to restart")
		}
		a := rig.Replica()
		one := AHandle("acme", "task-1", "h1", rig.Now())
		keep(t, a, one)
		if _, err := a.EndTask(t.Context(), "acme", "task-2"); err != nil {
			t.Fatal(err)
		}
		rig.Stop()
		if _, err := a.Handle(t.Context(), "acme", "h1"); err == nil || errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("found, or not, while nobody knows: %v", err)
		}
		if _, err := a.Move(t.Context(), one); err == nil || errors.Is(err, gateway.ErrNotNow) {
			t.Errorf("moved, or not, while nobody knows: %v", err)
		}
		if moved, err := a.Moved(t.Context(), "acme", "h1", 1); err == nil || moved || errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("has moved, or not, while nobody knows: %v, %v", moved, err)
		}
		rig.Start()
		b := rig.Replica()
		await(t, "it is there again", func() bool {
			_, err := b.Handle(t.Context(), "acme", "h1")
			return err == nil
		})
		is(t, b, one)
		refused(t, "kept after the end", b.Keep(t.Context(), AHandle("acme", "task-2", "late", rig.Now())), gateway.ErrNotNow)
	})

	// Whatever is done in whatever order, on whichever replica, is what a map and a
	// clock would say.
	t.Run("model", func(t *testing.T) {
		rig, n := open(t), 0
		replicas := []gateway.Handles{rig.Replica(), rig.Replica()}
		rapid.Check(t, func(t *rapid.T) { n++; handlesModel(t, rig, replicas, fmt.Sprint("-", n)) })
	})
}

// handlesModel is one run; what it names ends with its own end, so that runs can
// share replicas.
func handlesModel(t *rapid.T, rig HandlesRig, replicas []gateway.Handles, end string) {
	moves := rig.Advance(0)
	type key struct{ tenant, id string }
	kept, before, over := map[key]gateway.Handle{}, map[key]gateway.Handle{}, map[key]bool{}
	alive := func(k key) bool {
		one, ok := kept[k]
		return ok && rig.Now().Before(one.Expires)
	}
	some := func(t *rapid.T) (gateway.Handles, key) {
		return rapid.SampledFrom(replicas).Draw(t, "replica"),
			key{rapid.SampledFrom([]string{"acme", "globex"}).Draw(t, "tenant"), rapid.SampledFrom([]string{"h1", "h2", "h3", "h4"}).Draw(t, "id") + end}
	}
	task := func(t *rapid.T) string { return rapid.SampledFrom([]string{"task-1", "task-2"}).Draw(t, "task") + end }
	want := func(t *rapid.T, what string, err, want error) bool {
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
		return err == nil
	}
	t.Repeat(map[string]func(*rapid.T){
		"keep": func(t *rapid.T) {
			h, k := some(t)
			one := AHandle(k.tenant, task(t), k.id, rig.Now())
			var no error
			if over[key{k.tenant, one.Task}] || alive(k) {
				no = gateway.ErrNotNow
			}
			if _, was := kept[k]; was && !alive(k) {
				return // an id is never used twice
			}
			if want(t, "keep", h.Keep(t.Context(), one), no) {
				kept[k] = one
			}
		},
		"move": func(t *rapid.T) {
			h, k := some(t)
			one, old := kept[k], rapid.Bool().Draw(t, "from what it was before")
			if was, ok := before[k]; old && ok {
				one = was
			}
			one.Tenant, one.ID = k.tenant, k.id
			was := one.Seq
			one.Status = rapid.SampledFrom([]string{gateway.HandleWorking, gateway.HandleInput, gateway.HandleCompleted, gateway.HandleFailed, gateway.HandleCancelled}).Draw(t, "status")
			one.Result.Raw = json.RawMessage(rapid.SampledFrom([]string{"{}", "{ \"<a>\" : 1e2 }"}).Draw(t, "result"))
			if moves {
				one.Expires = rig.Now().UTC().Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
			}
			var no error
			switch {
			case !alive(k):
				no = gateway.ErrNotFound
			case kept[k].Seq != was || kept[k].Final():
				no = gateway.ErrNotNow
			}
			got, err := h.Move(t.Context(), one)
			if want(t, "move", err, no) {
				if one.Seq++; !reflect.DeepEqual(got, one) {
					t.Fatalf("moved to\n%+v\nwant\n%+v", got, one)
				}
				before[k], kept[k] = kept[k], one
			}
		},
		"end": func(t *rapid.T) {
			h, k := some(t)
			ends, n := task(t), 0
			for other, one := range kept {
				if other.tenant == k.tenant && one.Task == ends && alive(other) && !one.Final() {
					before[other] = one
					one.Status, one.Seq, n = gateway.HandleCancelled, one.Seq+1, n+1
					kept[other] = one
				}
			}
			over[key{k.tenant, ends}] = true
			if got, err := h.EndTask(t.Context(), k.tenant, ends); err != nil || got != n {
				t.Fatalf("ended %d, %v; want %d", got, err, n)
			}
		},
		"time passes": func(t *rapid.T) {
			if moves {
				rig.Advance(time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes")) * time.Minute)
			}
		},
		"": func(t *rapid.T) {
			for k, one := range kept {
				for _, h := range replicas {
					got, err := h.Handle(t.Context(), k.tenant, k.id)
					switch {
					case alive(k) && (err != nil || !reflect.DeepEqual(got, one)):
						t.Fatalf("%s is\n%+v, %v\nwant\n%+v", k, got, err, one)
					case !alive(k) && !errors.Is(err, gateway.ErrNotFound):
						t.Fatalf("%s is there after its time: %v", k, err)
					}
				}
			}
		},
	})
}
