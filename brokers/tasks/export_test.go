package tasks

import (
	"time"

	"toolbroker/gateway"
)

// Hurry makes what takes seconds take a hundredth of that, for tests.
func (r *Tasks) Hurry() {
	r.pace = pace{beat: 10 * time.Millisecond, silent: 50 * time.Millisecond, giveUp: 600 * time.Millisecond,
		prove: 20 * time.Millisecond, blind: 100 * time.Millisecond, held: 200 * time.Millisecond, attempt: time.Second}
}

// Prove, Held and GiveUpAfter set one of the paces before Run.
func (r *Tasks) Prove(d time.Duration)       { r.pace.prove = d }
func (r *Tasks) Held(d time.Duration)        { r.pace.held = d }
func (r *Tasks) GiveUpAfter(d time.Duration) { r.pace.giveUp = d }

// Paces are what the docs tell.
func Paces() map[string]time.Duration {
	return map[string]time.Duration{"calls are refused": fresh, "and then cancelled": usual.blind, "proven": usual.prove, "silent": usual.silent, "given up": usual.giveUp}
}

// GiveUp is how long a hurried registry waits for a replica that is not heard of.
const GiveUp = 600 * time.Millisecond

// Self is who this replica is to the others.
func (r *Tasks) Self() string { return r.self }

// Cached counts what is in the cache, and scopes those that are compiled.
func (r *Tasks) Cached() (tasks, scopes int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	return len(r.cache), len(r.world.scopes)
}

// Confirmed is when the last confirmed read of what ended began.
func (r *Tasks) Confirmed() time.Time {
	if at := r.confirmed.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Remembers reports whether this replica knows, by itself, of a stop about a task.
func (r *Tasks) Remembers(t gateway.Task) bool { return r.stopped(&t) }
