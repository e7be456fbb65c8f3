package tasks_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/tasks"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// BenchmarkRunning100k is what a call pays to know that its task runs, while
// 100,000 do: children of a hundred roots, with five scopes among them. It says
// how much memory each takes here.
func BenchmarkRunning100k(b *testing.B) {
	const n, roots = 100_000, 100
	s := redistest.Real(b)
	r := join(b, s, "r1", &gatewaytest.Facts{})
	redistest.Await(b, "it is fresh", r.Fresh)
	var scopes []*authz.Scope
	for i := range 5 {
		scope, err := authz.NewScope([]authz.ScopeRow{{Tool: fmt.Sprintf("files%d/*", i), Action: "call", When: `args.path == "/tmp"`, Verdict: "allow"}})
		if err != nil {
			b.Fatal(err)
		}
		scopes = append(scopes, scope)
	}
	id := func(i int) string { return fmt.Sprintf("task-%026d", i) }
	one := func(i int) gateway.Task {
		t := task("acme", id(i))
		t.Principal, t.Scope, t.Limits = fmt.Sprintf("spiffe://corp/agent/%d", i%1000), scopes[i%5], gateway.Limits{Depth: 1, FanOut: n}
		return t
	}
	var tops []gateway.Task
	for i := range roots {
		tops = append(tops, one(i))
		if _, err := r.Start(b.Context(), tops[i]); err != nil {
			b.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var work sync.WaitGroup
	for w := range 64 {
		work.Go(func() {
			for i := roots + w; i < n; i += 64 {
				top := tops[i%roots]
				t := one(i)
				t.Parent, t.Expires = top.ID, top.Expires
				t.Ancestors = []gateway.Ancestor{top.Ancestor()}
				if _, err := r.Start(b.Context(), t); err != nil {
					b.Error(err)
					return
				}
				runsOn(b, r.Tasks, "acme", t.ID)
			}
		})
	}
	work.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	held, compiled := r.Cached()
	b.Logf("%d tasks cached, %d scopes compiled, %d bytes a task", held, compiled, (after.HeapAlloc-before.HeapAlloc)/n)
	if compiled > 10 {
		b.Errorf("%d scopes compiled for 5", compiled)
	}

	ids := make([]string, n)
	for i := range ids {
		ids[i] = id(i)
	}
	ctx := b.Context()
	ask := func(b *testing.B, i int) {
		for {
			_, err := r.Running(ctx, "acme", ids[roots+i%(n-roots)])
			if err == nil {
				return
			}
			time.Sleep(time.Millisecond) // a machine that is busy with something else
		}
	}
	b.Run("the same", func(b *testing.B) {
		for b.Loop() {
			ask(b, 7)
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/task")
	})
	b.Run("another each time", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			ask(b, i*7919)
		}
	})
	b.Run("all at once", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				ask(b, i*7919)
			}
		})
	})
	b.Run("while tasks end", func(b *testing.B) {
		stop := make(chan struct{})
		var ending sync.WaitGroup
		ending.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				t := task("acme", tasks.NewID())
				if _, err := r.Start(b.Context(), t); err == nil {
					_, _ = r.End(b.Context(), "acme", t.ID, by("x"))
				}
			}
		})
		for i := 0; b.Loop(); i++ {
			ask(b, i*7919)
		}
		close(stop)
		ending.Wait()
	})
}

// BenchmarkStanding is what a call of a client that names no task pays to find it, and
// to be told of its end.
func BenchmarkStanding(b *testing.B) {
	r := join(b, redistest.Embedded(b), "r1", &gatewaytest.Facts{})
	redistest.Await(b, "it is fresh", r.Fresh)
	t := task("acme", tasks.NewID())
	t.Implicit = true
	if _, err := r.Start(b.Context(), t); err != nil {
		b.Fatal(err)
	}
	runsOn(b, r.Tasks, "acme", t.ID)
	b.ReportAllocs()
	for b.Loop() {
		one, err := r.Standing(b.Context(), "acme", t.Principal, t.OnBehalfOf, t.Kind)
		if err != nil {
			b.Fatal(err)
		}
		select {
		case <-r.Ended("acme", one.ID):
			b.Fatal("it has ended")
		default:
		}
	}
}
