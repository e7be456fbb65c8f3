package authz

import (
	"strconv"
	"sync"
	"testing"
)

// However many things are asked about, what is remembered stays bounded; and what
// is asked about again outlasts any number of things that are not.
func TestMemoryIsBounded(t *testing.T) {
	const most = 1 << 10
	var c cache[int, string]
	const regular = 200
	for i := range regular {
		c.store(-i-1, "regular", most)
	}
	for i := range 50 * most {
		c.store(i, strconv.Itoa(i), most)
		if v, ok := c.load(i); !ok || v != strconv.Itoa(i) {
			t.Fatal(i, v, ok)
		}
		if i%16 == 0 {
			for j := range regular {
				c.load(-j - 1)
			}
		}
	}
	if n := held(&c); n > most || n < most/2 {
		t.Errorf("%d of %d", n, most)
	}
	kept := 0
	for i := range regular {
		if _, ok := c.load(-i - 1); ok {
			kept++
		}
	}
	if kept < regular*9/10 {
		t.Errorf("of %d that everybody asks for %d are left", regular, kept)
	}
}

func held[K comparable, V any](c *cache[K, V]) (n int) {
	t := c.table.Load()
	if t == nil {
		return 0
	}
	for b := range *t {
		for i := range (*t)[b] {
			if (*t)[b][i].Load() != nil {
				n++
			}
		}
	}
	return n
}

// A caller who is somebody else each time, on another kind of task and about
// another tool, fills no memory and is answered no differently.
func TestStrangersFillNoMemory(t *testing.T) {
	p, findings := Parse("f", []byte("g, bot-*, role:x, acme\np, role:x, acme, *, s/*, call, args.n == 5, allow\np, *, *, *, s/1*, call, , require\n"))
	if p == nil {
		t.Fatal(findings)
	}
	s, err := NewScope([]ScopeRow{{Tool: "s/*", Action: "call", When: "args.n > 4", Verdict: "allow"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 << 15 {
		n := strconv.Itoa(i)
		r := Request{Subject: Subject{"bot-" + n, "acme"}, Task: "k" + n, Tool: "s/" + n, Action: Call, Args: []byte(`{"n":5}`)}
		if i%2 == 0 {
			r.Scopes = []*Scope{s.Named(n)}
		}
		want := Allow
		if n[0] == '1' {
			want = Approve
		}
		if d := p.Decide(r); d.Verdict != want {
			t.Fatalf("%+v: %+v", r, d)
		}
	}
	for _, c := range []struct {
		what      string
		has, most int
	}{
		{"questions", held(&p.asked), maxAsked}, {"decisions", held(&p.decided), maxDecided}, {"roles", held(&p.rules.memo), maxSubjects},
		{"principals", held(&p.rules.subjects), policyKeeps}, {"tools", held(&p.rules.tools), policyKeeps}, {"sets", held(&p.rules.sets), policyKeeps},
		{"answers", held(&p.rules.answers), policyKeeps}, {"a scope's tools", held(&s.rules.tools), scopeKeeps}, {"a scope's sets", held(&s.rules.sets), scopeKeeps},
		{"a scope's answers", held(&s.rules.answers), scopeKeeps}, {"a scope's principals", held(&s.rules.subjects), 1},
	} {
		if c.has > c.most {
			t.Errorf("%d %s are remembered, of at most %d", c.has, c.what, c.most)
		}
	}
}

// Whoever reads while others write and the table grows gets what was stored.
func TestCacheOfMany(t *testing.T) {
	var c cache[int, int]
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 20_000 {
				k := i % 3000
				if v, ok := c.load(k); ok && v != 7*k {
					t.Errorf("%d is %d", k, v)
				}
				c.store(k, 7*k, 1<<11)
			}
		})
	}
	all.Wait()
}
