package attempts

import (
	"context"
	"fmt"
	"time"

	"toolbroker/brokers/internal/redis"
)

// Run keeps up with what broke on every replica, until ctx ends: told by hints,
// which can be lost, and by a look every 100 ms, one read for all tenants.
func (a *Attempts) Run(ctx context.Context) error {
	hints, err := a.Store.Listen(ctx, topic)
	if err != nil {
		return fmt.Errorf("attempts: %w", err)
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	last, failing := all, false
	for swept := time.Now(); ; {
		last, err = a.follow(ctx, last)
		if err != nil && !failing && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "what broke on other replicas is not followed; Redis is asked about each call", "error", err)
		}
		failing = err != nil
		if time.Since(swept) > sweep {
			last, swept = a.forget(last), time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-hints:
			if !ok {
				hints = nil
			}
		case <-tick.C:
		}
	}
}

const (
	all   = "-" // where a stream begins
	sweep = 5 * time.Second
)

// follow reads on from the line last, and returns the last one read. As long as
// that line comes back first, no line after it is missing; where it does not (the
// stream expired, was cut, or is another one), all is read again.
func (a *Attempts) follow(ctx context.Context, last string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	again, n := last == all, 0
	for {
		began := time.Now()
		tails, _, err := a.Store.Tail(ctx, []redis.Key{a.lately}, []string{last}, batch)
		if err != nil && again {
			return all, err
		} else if err != nil {
			return last, err
		}
		lines := tails[0]
		if last != all {
			if len(lines) == 0 || lines[0].Entry != last {
				last, again, n = all, true, 0
				continue
			}
			lines = lines[1:]
		}
		for _, l := range lines {
			a.add(l.ID, began.Add(a.Window))
			last = l.Entry
		}
		if n += len(lines); len(lines) < batch-1 {
			a.confirm(began, again, n)
			return last, nil
		}
	}
}

// confirm says that keys is as new as a read that began then.
func (a *Attempts) confirm(began time.Time, again bool, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.as = began
	if again {
		a.whole = n < mostLines && len(a.keys) < mostKeys
	}
}

// forget drops what is over, and says where to read on from: from the beginning
// where there were more than could be kept.
func (a *Attempts) forget(last string) string {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, until := range a.keys {
		if now.After(until) {
			delete(a.keys, key)
		}
	}
	if !a.whole {
		return all
	}
	return last
}
