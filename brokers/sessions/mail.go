package sessions

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"toolbroker/brokers/internal/redis"
)

// A letter tells every replica what an agent cancelled, or that a session was
// closed. It lies sealed in a short stream: what a replica misses while it cannot
// reach Redis, it reads afterwards, as far as the stream goes.
type letter struct {
	Session string    `json:"session"`
	Request string    `json:"request,omitempty"`
	Closed  bool      `json:"closed,omitempty"`
	Nonce   string    `json:"nonce"` // each is delivered once, however often it lies there
	At      time.Time `json:"at"`
}

const (
	mostMail   = 10_000          // letters that are kept, about
	mailLife   = time.Minute     // how long they are, after the newest
	mailAge    = 5 * time.Minute // an older one is nobody's; more than clocks differ
	maxRequest = 4 << 10         // bytes of a request's id
	batch      = 500
)

// post sends a letter. KEYS: mail, topic. ARGV: how many are kept, how long,
// sealed letter.
var post = redis.NewScript(`
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'what', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', KEYS[2], 'mail')
return {'ok'}`)

// write seals a letter.
func (s *Sessions) write(l letter) ([]byte, error) {
	l.Nonce, l.At = rand.Text(), s.Now()
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return s.Store.Seal(s.mail, "letter", text), nil
}

// Cancel implements [gateway.Sessions].
func (s *Sessions) Cancel(ctx context.Context, session, request string) error {
	if len(request) > maxRequest {
		return errors.New("cancel: too long a request id")
	}
	sealed, err := s.write(letter{Session: session, Request: request})
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	if _, err := s.Store.Run(ctx, post, []redis.Key{s.mail, s.topic}, mostMail, mailLife.Milliseconds(), sealed); err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	return nil
}

// Watch implements [gateway.Sessions]. f is called for one after the other, so it
// must not take long.
func (s *Sessions) Watch(ctx context.Context, f func(session, request string, closed bool)) {
	s.mu.Lock()
	n := s.watched
	s.watched++
	s.watchers[n] = f
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, n)
}

// Run tells watchers and wakes who waits for an answer, until ctx ends. Hints can
// be lost, so it also looks each second.
func (s *Sessions) Run(ctx context.Context) error {
	hints, err := s.Store.Listen(ctx, topic)
	if err != nil {
		return fmt.Errorf("sessions: %w", err)
	}
	last := ""
	for {
		if last, err = s.deliver(ctx, last); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "cancellations of other replicas not heard, will be tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h, ok := <-hints:
			if !ok {
				hints = nil
			}
			s.ring(h.ID)
		case <-time.After(redis.Jitter(time.Second)):
		}
	}
}

// deliver reads on from the letter last, and returns the last one read. The first
// time there is nobody yet to whom an older one could matter.
func (s *Sessions) deliver(ctx context.Context, last string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if last == "" {
		now, err := s.Store.Now(ctx)
		if err != nil {
			return "", err
		}
		last = redis.Millis(now) + "-0"
	}
	for {
		tails, _, err := s.Store.Tail(ctx, []redis.Key{s.mail}, []string{last}, batch)
		if err != nil {
			return last, err
		}
		for _, t := range tails[0] {
			if t.Entry != last {
				s.tell(ctx, t.What)
			}
			last = t.Entry
		}
		if len(tails[0]) < batch {
			return last, nil
		}
	}
}

// tell hands a letter to every watcher. One that is not ours, or was delivered
// already, is not.
func (s *Sessions) tell(ctx context.Context, sealed string) {
	var l letter
	text, err := s.Store.Unseal(s.mail, "letter", []byte(sealed))
	if err == nil {
		err = json.Unmarshal(text, &l)
	}
	now := s.Now()
	if err == nil && now.Sub(l.At).Abs() > mailAge {
		err = errors.New("too old, or from a clock that is far off")
	}
	if err != nil {
		s.Log.ErrorContext(ctx, "a letter between replicas is not usable, and is dropped", "error", err)
		return
	}
	if l.Closed {
		if k, _, err := s.key(l.Session); err == nil {
			s.shut(k)
		}
	}
	for _, f := range s.toTell(l, now) {
		f(l.Session, l.Request, l.Closed)
	}
}

func (s *Sessions) toTell(l letter, now time.Time) (all []func(string, string, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.heard[l.Nonce]; again {
		return nil
	}
	s.heard[l.Nonce] = now
	if len(s.heard) > 2*mostMail { // what is too old anyway need not be remembered
		for nonce, at := range s.heard {
			if now.Sub(at) > 2*mailAge {
				delete(s.heard, nonce)
			}
		}
	}
	for _, f := range s.watchers {
		all = append(all, f)
	}
	return all
}
