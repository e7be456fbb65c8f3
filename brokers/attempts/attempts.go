// Package attempts knows the calls that are under way on every replica and, for two
// minutes, what became of those whose answers may not have reached their agents, so
// that a call which is repeated because a connection or a replica broke is not run
// twice, wherever the repetition comes in.
//
// Redis says which replicas have a call, and answers that were lost; what a replica
// has of it is in its memory, and another one asks it (ask.go). Calls that begin at
// once share one round trip, and ends wait for the next (batch.go).
package attempts

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what Attempts is made of.
type Config struct {
	Store     *redis.Store
	Window    time.Duration // how long one is remembered; 0 for 2 min
	MaxAnswer int           // bytes of an answer that is kept; 0 for 256 KiB
	MaxKept   int           // answers that were lost and are kept, of one tenant; 0 for 256
	MaxMemory int           // bytes of answers in memory; 0 for 8 MiB
	Log       *slog.Logger  // nil for slog's default
}

// Attempts implements [gateway.Attempts]. It is safe for concurrent use.
// [Attempts.Run] must be running, or other replicas take what is under way here for
// lost, and so in doubt.
//
// An answer that is too large, or one too many, is not kept: its call is remembered
// as in doubt, so it is not made twice all the same.
type Attempts struct {
	Config
	boot         string // names this process
	topic, alive redis.Key

	mu       sync.Mutex
	tries    map[string][]*try  // that may be in the way of an equal one, by the name of their key
	answered *list.List         // *try whose answers were written, oldest first
	heavy    *list.Element      // the first of them whose answer is in memory
	sessions map[session]*calls // those of them that are kept for a session's repetitions
	losing   int                // tries that are lost and not yet known to be everywhere
	swept    time.Time          // when all tries were looked at last
	memory   int                // bytes of answers
	queue    []*batch           // of which the last still takes steps
	sending  bool
	numbers  int64
	asked    map[string]chan string // by question
}

// Window is how long an attempt is remembered, where the config says nothing.
const Window = 2 * time.Minute

// A session is one of a tenant's.
type session struct{ tenant, id string }

// calls are a session's tries that are kept for their repetitions, oldest first.
type calls struct {
	list.List
	id string // its, once in memory
}

const (
	unread     = 10 * time.Second // after an answer was written, nobody comes to say that it was not read
	brief      = 5 * time.Second  // a run that takes less is kept long enough by its beginning
	perSession = 256              // calls of a session that are kept for their repetitions
	small      = 4 << 10          // bytes of an answer that is kept without what it was part of
	mostKept   = 20_000           // of all sessions
	topic      = "attempts"
)

// A state is where a try is in its life: queued ⇄ waiting, queued → answered, lost or
// over; answered → lost or over.
type state int

const (
	idle     state = iota // of no consequence for others yet
	queued                // to be made known, or it is
	waiting               // for what another replica has; of no consequence for that one
	answered              // its answer is written
	lost                  // and did not arrive
	over
)

// A try implements [gateway.Try]. Its fields belong to Attempts.mu, but for what
// never changes.
type try struct {
	gateway.Run
	all *Attempts
	key redis.Key
	bad error // why there is no key

	state   state
	number  int64     // of its last beginning
	since   time.Time // it was made known, or its state is another one
	became  gateway.Attempt
	settled chan struct{} // closed once it is known what became of it; nil while nobody waits
	place   *list.Element // in answered
	inside  *list.Element // in its session's

	in   *batch // that makes it known, until it ends,
	step int    // as this step of it
	but  string // whose runs are not in its way, as the script reads it
}

// New makes Attempts. It does not wait for Redis.
func New(c Config) (*Attempts, error) {
	if c.Store == nil {
		return nil, errors.New("attempts: no store")
	}
	c.Window = cmp.Or(c.Window, Window)
	c.MaxAnswer = cmp.Or(c.MaxAnswer, 256<<10)
	c.MaxKept = cmp.Or(c.MaxKept, 256)
	c.MaxMemory = cmp.Or(c.MaxMemory, 8<<20)
	c.Log = cmp.Or(c.Log, slog.Default())
	a := &Attempts{
		Config: c, boot: strings.ToLower(rand.Text()), tries: map[string][]*try{}, answered: list.New(),
		sessions: map[session]*calls{}, asked: map[string]chan string{},
	}
	var err, terr error
	a.alive, err = c.Store.Key(redis.Shared, redis.AttemptsAlive, a.boot)
	a.topic, terr = c.Store.Topic(redis.Shared, topic)
	return a, errors.Join(err, terr)
}

// Begin implements [gateway.Attempts].
func (a *Attempts) Begin(r gateway.Run) gateway.Try {
	t := &try{Run: r, all: a, since: time.Now()}
	if t.key, t.bad = a.Store.Key(redis.Shared, redis.Attempt, r.Tenant, r.Key); t.bad != nil {
		return t
	}
	name := t.key.String()
	t.Run.Key = name[len(name)-len(r.Key):] // once in memory
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.before(t) == nil {
		a.begin(t)
	}
	return t
}

// before returns the try on this replica that t would be a repetition of.
func (a *Attempts) before(t *try) *try {
	for _, other := range a.tries[t.key.String()] {
		if other != t && (other.state == lost || other.Session != "" || other.Gone(other.state == answered)) {
			return other
		}
	}
	return nil
}

// begin makes t known, here at once.
func (a *Attempts) begin(t *try) {
	if t.state == idle {
		a.tries[t.key.String()] = append(a.tries[t.key.String()], t)
	}
	a.numbers++
	t.state, t.number = queued, a.numbers
	t.in, t.step = a.push(begins, t.key, t.number, t.but)
	a.flush()
}

// Begun implements [gateway.Try].
func (t *try) Begun(ctx context.Context) (first gateway.Attempt, again bool, err error) {
	if first, again, err = t.begun(ctx); again || err != nil {
		t.End(gateway.EndNothing, gateway.Attempt{})
	}
	return first, again, err
}

func (t *try) begun(ctx context.Context) (gateway.Attempt, bool, error) {
	if t.bad != nil {
		return gateway.Attempt{}, false, fmt.Errorf("begin an attempt: %w", t.bad)
	}
	if first, again, err := t.all.afterThoseHere(ctx, t); again || err != nil {
		return first, again, err
	}
	for {
		t.all.mu.Lock()
		in, step := t.in, t.step
		t.all.mu.Unlock()
		if in == nil {
			return gateway.Attempt{}, false, errors.New("begin an attempt: it has ended")
		}
		select {
		case <-in.ready:
		case <-ctx.Done():
			return gateway.Attempt{}, false, context.Cause(ctx)
		}
		if in.err != nil {
			return gateway.Attempt{}, false, fmt.Errorf("begin an attempt: %w", in.err)
		}
		found := in.found[step]
		if len(found) == 0 {
			return gateway.Attempt{}, false, nil
		}
		if first, again, err := t.all.afterOthers(ctx, t, found, in.now); again || err != nil {
			return first, again, err
		}
	}
}

// afterThoseHere returns once t has begun, or what became of the one before it.
func (a *Attempts) afterThoseHere(ctx context.Context, t *try) (gateway.Attempt, bool, error) {
	for {
		a.mu.Lock()
		if t.state != idle {
			a.mu.Unlock()
			return gateway.Attempt{}, false, nil
		}
		before := a.before(t)
		if before == nil {
			a.begin(t)
			a.mu.Unlock()
			return gateway.Attempt{}, false, nil
		}
		if before.state == answered || before.state == lost {
			if before.Session == "" {
				a.lose(before)
			}
			first := before.became
			a.mu.Unlock()
			return first, true, nil
		}
		if before.settled == nil {
			before.settled = make(chan struct{})
		}
		settled := before.settled
		a.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return gateway.Attempt{}, false, context.Cause(ctx)
		}
	}
}

// End implements [gateway.Try].
func (t *try) End(how gateway.RunEnd, became gateway.Attempt) {
	a := t.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(became.Answer) > a.MaxAnswer {
		became = doubt(became)
	}
	t.in = nil
	switch {
	case t.state == idle || t.state == over || t.state == lost:
	case how == gateway.EndWritten && t.state != answered:
		if len(became.Answer) <= small {
			became.Answer = bytes.Clone(became.Answer)
		}
		now := time.Now()
		took := now.Sub(t.since)
		t.state, t.became, t.since = answered, became, now
		a.memory += len(became.Answer)
		t.place = a.answered.PushBack(t)
		if a.heavy == nil {
			a.heavy = t.place
		}
		if t.Session != "" {
			t.Gone = nil // a repetition is one whoever is there; let go of its request
			a.keep(t)
			if took > brief {
				a.push(keeps, t.key, t.number, "")
			}
		}
		t.settle()
		a.bound()
	case how == gateway.EndLost:
		if t.state != answered {
			t.became = became
			a.memory += len(became.Answer)
			if a.bound(); a.memory > a.MaxMemory { // with answers that were all lost
				a.memory -= len(became.Answer)
				t.became = doubt(became)
			}
		}
		a.lose(t)
	case how == gateway.EndNothing, how == gateway.EndArrived && t.Session == "":
		a.remove(t)
	}
}

// keep keeps an answered try for its session.
func (a *Attempts) keep(t *try) {
	name := session{t.Tenant, t.Session}
	of := a.sessions[name]
	if of == nil {
		of = &calls{id: t.Session}
		a.sessions[name] = of
	}
	t.Session = of.id
	t.inside = of.PushBack(t)
	if of.Len() > perSession {
		a.remove(of.Front().Value.(*try))
	}
}

// doubt is what became of a call whose answer is not kept.
func doubt(a gateway.Attempt) gateway.Attempt { return gateway.Attempt{Call: a.Call, Doubt: true} }

// bound drops the oldest answers where there is no room for all of them, but none that
// did not arrive.
func (a *Attempts) bound() {
	for a.answered.Len() > mostKept {
		a.remove(a.answered.Front().Value.(*try))
	}
	for ; a.memory > a.MaxMemory && a.heavy != nil; a.heavy = a.heavy.Next() {
		if t := a.heavy.Value.(*try); t.state != lost {
			a.memory -= len(t.became.Answer)
			t.became = doubt(t.became)
		}
	}
}

// lose sees to it that every replica can know what became of t.
func (a *Attempts) lose(t *try) {
	if t.state == lost {
		return
	}
	t.state, t.since = lost, time.Now()
	a.losing++
	t.settle()
	go a.publish(t)
}

// publish puts what became of a lost try where every replica finds it.
func (a *Attempts) publish(t *try) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := a.store(ctx, t); err != nil {
		a.Log.Error("a call whose answer did not arrive is not known to other replicas yet", "call", t.became.Call, "error", err)
		return // the next sweep tries again
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(t)
}

// remove forgets a try.
func (a *Attempts) remove(t *try) {
	switch t.state {
	case over:
		return
	case lost:
		a.losing--
	}
	t.state = over
	t.settle()
	name := t.key.String()
	left := slices.DeleteFunc(a.tries[name], func(other *try) bool { return other == t })
	if len(left) > 0 {
		a.tries[name] = left
	} else {
		delete(a.tries, name)
		a.push(forgets, t.key, 0, "")
	}
	a.memory -= len(t.became.Answer)
	if t.place != nil {
		if a.heavy == t.place {
			a.heavy = t.place.Next()
		}
		a.answered.Remove(t.place)
	}
	if t.inside != nil {
		name := session{t.Tenant, t.Session}
		if of := a.sessions[name]; of != nil {
			if of.Remove(t.inside); of.Len() == 0 {
				delete(a.sessions, name)
			}
		}
	}
}

func (t *try) settle() {
	if t.settled != nil {
		close(t.settled)
		t.settled = nil
	}
}

// A record is an attempt as Redis holds it, sealed under its key. One that is put
// back after its time is no attempt.
type record struct {
	gateway.Attempt
	Until time.Time `json:"until"` // by Redis's clock
}

func (a *Attempts) seal(k redis.Key, one gateway.Attempt, until time.Time) ([]byte, error) {
	text, err := json.Marshal(record{one, until})
	if err != nil {
		return nil, err
	}
	return a.Store.Seal(k, "attempt", text), nil
}

// open returns the attempt that was sealed, and whether it still is one.
func (a *Attempts) open(k redis.Key, sealed string, now time.Time) (gateway.Attempt, bool, error) {
	var r record
	text, err := a.Store.Unseal(k, "attempt", []byte(sealed))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return gateway.Attempt{}, false, fmt.Errorf("attempt: %w", err)
	}
	return r.Attempt, now.Before(r.Until), nil
}
