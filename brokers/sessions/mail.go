package sessions

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A letter tells every replica what an agent did in its session, or that one was
// closed. It lies sealed in a short stream: what a replica misses while it cannot
// reach Redis, it reads afterwards, as far as the stream goes. One with a note is
// not kept: it is published, for whoever listens now.
type letter struct {
	Session  string    `json:"session"`
	Request  string    `json:"request,omitempty"`
	Roots    bool      `json:"roots,omitempty"`
	Level    string    `json:"level,omitempty"`
	Closed   bool      `json:"closed,omitempty"`
	WithTask bool      `json:"with_task,omitempty"`
	Note     *note     `json:"note,omitempty"`
	Nonce    string    `json:"nonce"` // each is delivered once, however often it lies there
	At       time.Time `json:"at"`
}

// A note is one with its bytes as they came.
type note struct {
	Ask    string `json:"ask,omitempty"`
	Method string `json:"method"`
	Params []byte `json:"params,omitempty"`
	Server string `json:"server,omitempty"`
	Used   string `json:"used,omitempty"`
}

func (l letter) news() gateway.News {
	n := gateway.News{Session: l.Session, Cancelled: l.Request, Roots: l.Roots, Level: l.Level, Closed: l.Closed, WithTask: l.WithTask}
	if l.Note != nil {
		n.Note = &gateway.Note{Ask: l.Note.Ask, Method: l.Note.Method, Params: l.Note.Params, Server: l.Note.Server, Used: l.Note.Used}
	}
	return n
}

const (
	mostMail   = 10_000          // letters that are kept, about
	mailLife   = time.Minute     // how long they are, after the newest
	mailAge    = 5 * time.Minute // an older one is nobody's; more than clocks differ
	maxRequest = 4 << 10         // bytes of a request's id
	maxNote    = 16 << 10        // bytes of what a server says beside all calls
	batch      = 500
)

// post sends a letter. KEYS: mail, topic. ARGV: how many are kept, how long,
// sealed letter.
var post = redis.NewScript(`
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'what', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', KEYS[2], 'mail')
return {'ok'}`)

// publish tells whoever listens now. KEYS: topic. ARGV: sealed letter.
var publish = redis.NewScript(`
redis.call('PUBLISH', KEYS[1], ARGV[1])
return {'ok'}`)

// write seals a letter, for the stream that is kept or the topic that is not.
func (s *Sessions) write(k redis.Key, l letter) ([]byte, error) {
	l.Nonce, l.At = rand.Text(), s.Now()
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return s.Store.Seal(k, "letter", text), nil
}

// Tell implements [gateway.Sessions]. A note that is larger than 16 KiB is
// ErrTooMany.
func (s *Sessions) Tell(ctx context.Context, n gateway.News) error {
	l := letter{Session: n.Session, Request: n.Cancelled, Roots: n.Roots, Level: n.Level, Closed: n.Closed, WithTask: n.WithTask}
	if n.Note != nil {
		l.Note = &note{n.Note.Ask, n.Note.Method, n.Note.Params, n.Note.Server, n.Note.Used}
	}
	if err := s.tellAll(ctx, l); err != nil {
		return fmt.Errorf("tell of a session: %w", err)
	}
	return nil
}

func (s *Sessions) tellAll(ctx context.Context, l letter) error {
	to := s.mail
	switch {
	case len(l.Request)+len(l.Level) > maxRequest:
		return errors.New("too long a request id")
	case l.Note != nil && len(l.Note.Params)+len(l.Note.Method) > maxNote:
		return fmt.Errorf("a note of %d bytes: %w", len(l.Note.Params), gateway.ErrTooMany)
	case l.Note != nil:
		to = s.notes
	}
	sealed, err := s.write(to, l)
	if err != nil {
		return err
	}
	if l.Note != nil {
		_, err = s.Store.Run(ctx, publish, []redis.Key{s.notes}, sealed)
	} else {
		_, err = s.Store.Run(ctx, post, []redis.Key{s.mail, s.topic}, mostMail, mailLife.Milliseconds(), sealed)
	}
	return err
}

// Watch implements [gateway.Sessions]. f is called for one after the other, so it
// must not take long.
func (s *Sessions) Watch(ctx context.Context, f func(gateway.News)) {
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
	notes, err := s.Store.Listen(ctx, noteTopic)
	if err != nil {
		return fmt.Errorf("sessions: %w", err)
	}
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() {
		for n := range notes { // until ctx ends
			s.tell(ctx, s.notes, n.ID)
		}
	})
	last := ""
	for {
		if last, err = s.deliver(ctx, last); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "what sessions did on other replicas is not heard, will be tried again", "error", err)
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
				s.tell(ctx, s.mail, t.What)
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
func (s *Sessions) tell(ctx context.Context, k redis.Key, sealed string) {
	var l letter
	text, err := s.Store.Unseal(k, "letter", []byte(sealed))
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
		f(l.news())
	}
}

func (s *Sessions) toTell(l letter, now time.Time) (all []func(gateway.News)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.heard[l.Nonce]; again {
		return nil
	}
	if l.Note == nil { // one that comes twice is a log message twice, or asks what was asked
		s.heard[l.Nonce] = now
	}
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
