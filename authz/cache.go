package authz

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// A cache is a map for many goroutines that never outgrows what its stores allow.
// Reading takes no lock.
//
// A full one makes room by what is asked for least, so a caller who names ever new
// things pushes out its own rather than what others use.
type cache[K comparable, V any] struct {
	table atomic.Pointer[[]bucket[K, V]] // a power of two of them
	mu    sync.Mutex                     // one store at a time
	hand  uint64
}

// A bucket holds what its hash leads to; where it is full the table grows, or
// one of them goes.
type bucket[K comparable, V any] [8]atomic.Pointer[entry[K, V]]

type entry[K comparable, V any] struct {
	hash  uint64
	again atomic.Int32 // how often it was asked for, up to often; less each time it is passed over
	key   K
	value V
}

const often = 3

var seed = maphash.MakeSeed()

func (c *cache[K, V]) load(k K) (V, bool) { return c.loadBy(maphash.Comparable(seed, k), &k) }

// store keeps v for k, among at most most others.
func (c *cache[K, V]) store(k K, v V, most int) { c.storeBy(maphash.Comparable(seed, k), &k, v, most) }

// loadBy is load for who knows the hash of k.
func (c *cache[K, V]) loadBy(hash uint64, k *K) (v V, ok bool) {
	t := c.table.Load()
	if t == nil {
		return v, false
	}
	b := &(*t)[hash&uint64(len(*t)-1)]
	for i := range b {
		if e := b[i].Load(); e != nil && e.hash == hash && e.key == *k {
			if n := e.again.Load(); n < often {
				e.again.Store(n + 1)
			}
			return e.value, true
		}
	}
	return v, false
}

func (c *cache[K, V]) storeBy(hash uint64, k *K, v V, most int) {
	e := &entry[K, V]{hash: hash, key: *k, value: v}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table.Load()
	if t == nil {
		t = &[]bucket[K, V]{{}}
		c.table.Store(t)
	}
	for {
		b := &(*t)[hash&uint64(len(*t)-1)]
		for i := range b {
			if was := b[i].Load(); was == nil || was.hash == hash && was.key == *k {
				b[i].Store(e)
				return
			}
		}
		if 2*len(*t)*len(b) > most {
			c.replace(b, e)
			return
		}
		t = grown(*t)
		c.table.Store(t)
	}
}

// replace puts e in place of the first that nobody asked for again lately.
func (c *cache[K, V]) replace(b *bucket[K, V], e *entry[K, V]) {
	for {
		c.hand++
		at := &b[c.hand%uint64(len(b))]
		was := at.Load()
		n := was.again.Load()
		if n == 0 {
			at.Store(e)
			return
		}
		was.again.Store(n - 1)
	}
}

// grown is a table of twice the buckets. What was in one bucket is in two, so it fits.
func grown[K comparable, V any](t []bucket[K, V]) *[]bucket[K, V] {
	wide := make([]bucket[K, V], 2*len(t))
	for i := range t {
		for j := range t[i] {
			e := t[i][j].Load()
			if e == nil {
				continue
			}
			b := &wide[e.hash&uint64(len(wide)-1)]
			for k := range b {
				if b[k].Load() == nil {
					b[k].Store(e)
					break
				}
			}
		}
	}
	return &wide
}
