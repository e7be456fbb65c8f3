package gatewaytest

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"toolbroker/gateway"
)

// Sessions is an in-memory gateway.Sessions.
type Sessions struct {
	Most int // sessions of one workload; 0: no bound

	mu       sync.Mutex
	m        map[string]gateway.Session
	used     map[string]int // when, counted in uses
	uses     int
	asks     map[[2]string]chan gateway.Result
	watchers map[int]func(gateway.News)
	n        int
}

// NewSessions knows no session yet.
func NewSessions() *Sessions {
	return &Sessions{m: map[string]gateway.Session{}, used: map[string]int{}, asks: map[[2]string]chan gateway.Result{}, watchers: map[int]func(gateway.News){}}
}

// Session implements gateway.Sessions.
func (s *Sessions) Session(_ context.Context, id string) (gateway.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one, ok := s.m[id]; ok {
		s.use(id)
		return one, nil
	}
	return gateway.Session{}, gateway.ErrNotFound
}

// Open implements gateway.Sessions.
func (s *Sessions) Open(_ context.Context, id string, one gateway.Session) error {
	s.mu.Lock()
	var mine []string
	for other, of := range s.m {
		if of.Tenant == one.Tenant && of.Principal == one.Principal {
			mine = append(mine, other)
		}
	}
	oldest := ""
	if s.Most > 0 && len(mine) >= s.Most {
		oldest = slices.MinFunc(mine, func(a, b string) int { return s.used[a] - s.used[b] })
		delete(s.m, oldest)
	}
	s.m[id] = one
	s.use(id)
	s.mu.Unlock()
	if oldest != "" {
		s.tell(gateway.News{Session: oldest, Closed: true})
	}
	return nil
}

// use notes that a session is used; s.mu is held.
func (s *Sessions) use(id string) {
	s.uses++
	s.used[id] = s.uses
}

// Change implements gateway.Sessions.
func (s *Sessions) Change(_ context.Context, id string, f func(*gateway.Session)) (gateway.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.m[id]
	if !ok {
		return one, gateway.ErrNotFound
	}
	changed := one
	changed.Follows, changed.Awaits = slices.Clone(one.Follows), slices.Clone(one.Awaits)
	f(&changed)
	one.LogLevel, one.Follows, one.Awaits = changed.LogLevel, changed.Follows, changed.Awaits
	s.m[id] = one
	return one, nil
}

// Close implements gateway.Sessions.
func (s *Sessions) Close(_ context.Context, id string) error {
	s.mu.Lock()
	delete(s.m, id)
	s.mu.Unlock()
	s.tell(gateway.News{Session: id, Closed: true})
	return nil
}

// EndTask implements gateway.Sessions.
func (s *Sessions) EndTask(_ context.Context, tenant, task string) (int, error) {
	s.mu.Lock()
	var gone []string
	for id, one := range s.m {
		if one.Tenant == tenant && one.Task == task {
			delete(s.m, id)
			gone = append(gone, id)
		}
	}
	s.mu.Unlock()
	for _, id := range gone {
		s.tell(gateway.News{Session: id, Closed: true, WithTask: true})
	}
	return len(gone), nil
}

// Expect implements gateway.Sessions.
func (s *Sessions) Expect(_ context.Context, session, ask string) (func(context.Context) (gateway.Result, error), func(), error) {
	k, answer := [2]string{session, ask}, make(chan gateway.Result, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks[k] = answer
	wait := func(ctx context.Context) (gateway.Result, error) {
		select {
		case r := <-answer:
			return r, nil
		case <-ctx.Done():
			return gateway.Result{}, ctx.Err()
		}
	}
	return wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.asks[k] == answer {
			delete(s.asks, k)
		}
	}, nil
}

// Answer implements gateway.Sessions.
func (s *Sessions) Answer(_ context.Context, session, ask string, r gateway.Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := [2]string{session, ask}
	answer, ok := s.asks[k]
	if !ok {
		return gateway.ErrNotFound
	}
	delete(s.asks, k)
	answer <- r
	return nil
}

// Tell implements gateway.Sessions.
func (s *Sessions) Tell(_ context.Context, n gateway.News) error {
	s.tell(n)
	return nil
}

// Watch implements gateway.Sessions.
func (s *Sessions) Watch(ctx context.Context, f func(gateway.News)) {
	s.mu.Lock()
	n := s.n
	s.n++
	s.watchers[n] = f
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, n)
}

func (s *Sessions) tell(n gateway.News) {
	s.mu.Lock()
	var all []func(gateway.News)
	for _, f := range s.watchers {
		all = append(all, f)
	}
	s.mu.Unlock()
	for _, f := range all {
		f(n)
	}
}

// Attempts is an in-memory gateway.Attempts that forgets nothing.
type Attempts struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change; nil while nobody waits
	tries   []*attempt
}

// An attempt implements gateway.Try.
type attempt struct {
	gateway.Run
	all    *Attempts
	began  bool
	how    gateway.RunEnd
	ended  bool
	became gateway.Attempt
}

// Begin implements gateway.Attempts.
func (a *Attempts) Begin(r gateway.Run) gateway.Try { return &attempt{Run: r, all: a} }

// Begun implements gateway.Try.
func (t *attempt) Begun(ctx context.Context) (gateway.Attempt, bool, error) {
	a := t.all
	for {
		a.mu.Lock()
		before := a.before(t)
		switch {
		case before == nil:
			t.began = true
			a.tries = append(a.tries, t)
			a.mu.Unlock()
			return gateway.Attempt{}, false, nil
		case before.ended:
			a.mu.Unlock()
			return before.became, true, nil
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return gateway.Attempt{}, false, context.Cause(ctx)
		}
	}
}

// before returns the run that t is a repetition of.
func (a *Attempts) before(t *attempt) *attempt {
	for _, other := range a.tries {
		if other.Tenant != t.Tenant || other.Key != t.Key {
			continue
		}
		if other.how == gateway.EndLost || other.Session != "" || other.Gone(other.ended) {
			return other
		}
	}
	return nil
}

// End implements gateway.Try.
func (t *attempt) End(how gateway.RunEnd, became gateway.Attempt) {
	a := t.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if !t.began || t.how == gateway.EndLost {
		return
	}
	if !t.ended {
		t.became = became
	}
	t.how, t.ended = how, true
	if how == gateway.EndNothing || how == gateway.EndArrived && t.Session == "" {
		t.began = false
		a.tries = slices.DeleteFunc(a.tries, func(other *attempt) bool { return other == t })
	}
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// Running says how many runs are not over, and how many of those have lost their client.
func (a *Attempts) Running() (n, gone int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.tries {
		if !t.ended {
			n++
			if t.Gone(false) {
				gone++
			}
		}
	}
	return n, gone
}

// Handles is an in-memory gateway.Handles.
type Handles struct {
	Now  func() time.Time // nil for time.Now
	Most int              // bytes of arguments, or of a result; 0 for any

	mu    sync.Mutex
	m     map[string]gateway.Handle
	ended map[string]bool
}

// NewHandles keeps nothing yet.
func NewHandles() *Handles {
	return &Handles{m: map[string]gateway.Handle{}, ended: map[string]bool{}}
}

// Keep implements gateway.Handles.
func (h *Handles) Keep(_ context.Context, one gateway.Handle) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.m[one.Tenant+" "+one.ID]; ok || h.ended[one.Tenant+" "+one.Task] || h.expired(one) {
		return gateway.ErrNotNow
	}
	if h.Most > 0 && len(one.Call.Args) > h.Most {
		return gateway.ErrTooMany
	}
	one.Seq = 1
	h.m[one.Tenant+" "+one.ID] = one
	return nil
}

// Handle implements gateway.Handles.
func (h *Handles) Handle(_ context.Context, tenant, id string) (gateway.Handle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one, ok := h.m[tenant+" "+id]; ok && !h.expired(one) {
		return one, nil
	}
	return gateway.Handle{}, gateway.ErrNotFound
}

// Moved implements gateway.Handles.
func (h *Handles) Moved(ctx context.Context, tenant, id string, seq int64) (bool, error) {
	one, err := h.Handle(ctx, tenant, id)
	return err == nil && one.Seq != seq, err
}

func (h *Handles) expired(one gateway.Handle) bool {
	now := time.Now
	if h.Now != nil {
		now = h.Now
	}
	return !now().Before(one.Expires)
}

// Move implements gateway.Handles.
func (h *Handles) Move(_ context.Context, one gateway.Handle) (gateway.Handle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, ok := h.m[one.Tenant+" "+one.ID]
	switch {
	case !ok || h.expired(was):
		return gateway.Handle{}, gateway.ErrNotFound
	case was.Seq != one.Seq || was.Final():
		return gateway.Handle{}, gateway.ErrNotNow
	case h.Most > 0 && len(one.Result.Raw) > h.Most:
		return gateway.Handle{}, gateway.ErrTooMany
	}
	one.Binding, one.Task, one.Call, one.Created = was.Binding, was.Task, was.Call, was.Created
	one.Seq++
	h.m[one.Tenant+" "+one.ID] = one
	return one, nil
}

// EndTask implements gateway.Handles.
func (h *Handles) EndTask(_ context.Context, tenant, task string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended[tenant+" "+task] = true
	n := 0
	for k, one := range h.m {
		if one.Tenant == tenant && one.Task == task && !one.Final() && !h.expired(one) {
			one.Status, one.Seq = gateway.HandleCancelled, one.Seq+1
			h.m[k] = one
			n++
		}
	}
	return n, nil
}

var (
	_ gateway.Sessions = (*Sessions)(nil)
	_ gateway.Attempts = (*Attempts)(nil)
	_ gateway.Handles  = (*Handles)(nil)
)

// Unasked is the part of a gateway.Stream whose agent cannot be asked.
type Unasked struct{}

// Ask implements gateway.Stream.
func (Unasked) Ask(context.Context, string, json.RawMessage) (gateway.Result, error) {
	return gateway.Result{}, gateway.ErrCannotAsk
}
