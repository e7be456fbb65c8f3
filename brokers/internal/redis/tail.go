package redis

import (
	"context"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// Tail reads a stream from the entry last on, last itself included: as long as
// that comes back first, nothing before it is missing. It returns up to n
// entries' ids and their fields "id" and "what".
func (s *Store) Tail(ctx context.Context, keys []Key, last []string, n int) (tails [][]Tailed, clock time.Time, err error) {
	pipe := s.client.Pipeline()
	at := pipe.Time(ctx)
	reads := make([]*goredis.XMessageSliceCmd, len(keys))
	for i, k := range keys {
		reads[i] = pipe.XRangeN(ctx, k.name, last[i], "+", int64(n))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, time.Time{}, fmt.Errorf("redis: tail: %w", err)
	}
	tails = make([][]Tailed, len(keys))
	for i, r := range reads {
		for _, m := range r.Val() {
			id, _ := m.Values["id"].(string)
			what, _ := m.Values["what"].(string)
			tails[i] = append(tails[i], Tailed{m.ID, id, what})
		}
	}
	return tails, at.Val(), nil
}

// A Tailed is one entry of a stream.
type Tailed struct{ Entry, ID, What string }
