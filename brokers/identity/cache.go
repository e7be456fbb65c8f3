package identity

import (
	"crypto/sha256"
	"sync"
	"time"
)

// A cache remembers verified tokens by their digest. Nothing else gets in, so
// that only holders of good tokens can push one another out, one at a time.
type cache struct{ shards [shards]shard }

type shard struct {
	mu sync.RWMutex
	m  map[[sha256.Size]byte]remembered
}

type remembered struct {
	*subject // never changes
	until    time.Time
}

const (
	shards       = 64
	mostVerified = 2048 // in a shard
)

func newCache() *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].m = map[[sha256.Size]byte]remembered{}
	}
	return c
}

// get returns what is remembered and still counts: not expired, and verified
// with a key that its issuer still has.
func (c *cache) get(digest [sha256.Size]byte, now time.Time) (*subject, bool) {
	s := &c.shards[digest[0]%shards]
	s.mu.RLock()
	r, ok := s.m[digest]
	s.mu.RUnlock()
	if !ok {
		return nil, false
	}
	if now.Before(r.until) && (r.keys == nil || r.keys.live(now)) {
		return r.subject, true
	}
	s.mu.Lock()
	delete(s.m, digest)
	s.mu.Unlock()
	return nil, false
}

func (c *cache) put(digest [sha256.Size]byte, v *subject, now time.Time) {
	until := now.Add(remember)
	if v.expires.Before(until) {
		until = v.expires
	}
	s := &c.shards[digest[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) >= mostVerified {
		s.makeRoom(now)
	}
	s.m[digest] = remembered{v, until}
}

// makeRoom drops what is over among some, or else one at random, which costs
// its holder one verification.
func (s *shard) makeRoom(now time.Time) {
	var last [sha256.Size]byte
	looked := 0
	for d, r := range s.m {
		if !now.Before(r.until) {
			delete(s.m, d)
			last = d
		}
		if looked++; looked == 16 {
			break
		}
		if len(s.m) >= mostVerified {
			last = d
		}
	}
	delete(s.m, last)
}

// digestOf is a token's digest. The copy is on the stack: a string's bytes would
// not be.
func digestOf(raw string) [sha256.Size]byte {
	var space [2 << 10]byte
	return sha256.Sum256(append(space[:0], raw...))
}
