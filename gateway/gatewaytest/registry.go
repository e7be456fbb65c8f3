package gatewaytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// Tasks is an in-memory gateway.Tasks. While Stale is set it cannot confirm
// anything. A task that ends is closed at once, by the gateway of its house.
type Tasks struct {
	mu       sync.Mutex
	m        map[string]*task
	bound    map[string]string // workload and human to the root it is on
	spent    map[string]int64
	stops    map[string]gateway.Stop
	house    *gateway.Gateway
	recorder gateway.Recorder
	closing  sync.WaitGroup
	Stale    bool
	blind    chan struct{}
}

type task struct {
	gateway.Task
	ended chan struct{}
}

func newTasks() *Tasks {
	return &Tasks{m: map[string]*task{}, bound: map[string]string{}, spent: map[string]int64{}, stops: map[string]gateway.Stop{}}
}

func stopKey(tenant string, kind gateway.StopKind, name string) string {
	if kind == gateway.StopOwner || kind == gateway.StopHuman {
		name = gateway.HumanName(name)
	}
	return tenant + "/" + string(kind) + "/" + name
}

func standingName(principal, human, kind string) string {
	return principal + " for " + gateway.HumanName(human) + " (" + kind + ")"
}

func (s *Tasks) find(id string) (gateway.Task, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.m {
		if t.ID == id {
			return t.Task, true
		}
	}
	return gateway.Task{}, false
}

// runs is under s.mu.
func (s *Tasks) runs(tenant, id string) (*task, error) {
	t := s.m[tenant+"/"+id]
	if t == nil || t.State != gateway.TaskRunning || !time.Now().Before(t.Expires) {
		return nil, gateway.ErrNoTask
	}
	for _, a := range t.Ancestors {
		if up := s.m[tenant+"/"+a.ID]; up == nil || up.State != gateway.TaskRunning || s.stopped(up.Task) {
			return nil, gateway.ErrNoTask
		}
	}
	if s.stopped(t.Task) {
		return nil, fmt.Errorf("%w: %w", gateway.ErrNoTask, gateway.ErrStopped)
	}
	return t, nil
}

// stopped is under s.mu.
func (s *Tasks) stopped(t gateway.Task) bool {
	for _, other := range t.Principals {
		if _, is := s.stops[stopKey(t.Tenant, gateway.StopPrincipal, other)]; is {
			return true
		}
	}
	humans := []string{t.OnBehalfOf, t.Human()}
	if t.Own {
		humans = append(humans, t.OwnFor)
	}
	for _, who := range append([]string{t.Principal}, t.Principals...) {
		for _, human := range humans {
			if _, is := s.stops[stopKey(t.Tenant, gateway.StopStanding, standingName(who, human, t.Kind))]; is {
				return true
			}
		}
	}
	for kind, name := range map[gateway.StopKind]string{
		gateway.StopTenant: "", gateway.StopPrincipal: t.Principal, gateway.StopOwner: t.Owner, gateway.StopHuman: t.OnBehalfOf,
	} {
		if _, is := s.stops[stopKey(t.Tenant, kind, name)]; is && (name != "" || kind == gateway.StopTenant) {
			return true
		}
	}
	return false
}

// Running implements gateway.Tasks.
func (s *Tasks) Running(_ context.Context, tenant, id string) (gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Stale {
		if t := s.m[tenant+"/"+id]; t != nil && t.State == gateway.TaskRunning {
			return t.Task, gateway.ErrStale
		}
		return gateway.Task{}, gateway.ErrStale
	}
	t, err := s.runs(tenant, id)
	if err != nil {
		return gateway.Task{}, err
	}
	return t.Task, nil
}

// Ended implements gateway.Tasks.
func (s *Tasks) Ended(tenant, id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.m[tenant+"/"+id]; t != nil {
		return t.ended
	}
	c := make(chan struct{})
	close(c)
	return c
}

// Blind implements gateway.Tasks. It is closed by GoBlind.
func (s *Tasks) Blind() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blind == nil {
		s.blind = make(chan struct{})
	}
	return s.blind
}

// GoBlind has the registry unable to confirm anything, for long enough that what
// runs must stop.
func (s *Tasks) GoBlind() {
	blind := s.Blind()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Stale = true
	if blind == s.blind {
		close(s.blind)
	}
}

// Start implements gateway.Tasks.
func (s *Tasks) Start(_ context.Context, t gateway.Task) (gateway.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped(t) {
		return gateway.Secret{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, gateway.ErrStopped)
	}
	if t.Parent != "" {
		up, err := s.runs(t.Tenant, t.Parent)
		if err != nil {
			return gateway.Secret{}, err
		}
		n := 0
		for _, o := range s.m {
			if o.Parent == t.Parent && !o.State.Final() {
				n++
			}
		}
		if n >= up.Limits.FanOut {
			return gateway.Secret{}, gateway.ErrTooMany
		}
	}
	if t.Implicit {
		if _, err := s.standing(t.Tenant, t.Principal, t.OnBehalfOf, t.Kind); err == nil {
			return gateway.Secret{}, gateway.ErrNotNow
		}
	}
	if t.Own {
		if err := s.bind(t, t.Principal, t.OwnFor); err != nil {
			return gateway.Secret{}, err
		}
	}
	s.m[t.Tenant+"/"+t.ID] = &task{t, make(chan struct{})}
	return gateway.NewSecret("token-of-" + t.ID), nil
}

func (s *Tasks) standing(tenant, principal, human, kind string) (gateway.Task, error) {
	if _, is := s.stops[stopKey(tenant, gateway.StopStanding, standingName(principal, human, kind))]; is {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, gateway.ErrStopped)
	}
	for _, t := range s.m {
		if t.Implicit && t.Tenant == tenant && t.Principal == principal && gateway.HumanName(t.OnBehalfOf) == gateway.HumanName(human) && t.Kind == kind {
			if _, err := s.runs(tenant, t.ID); err == nil {
				return t.Task, nil
			}
		}
	}
	return gateway.Task{}, gateway.ErrNoTask
}

// Standing implements gateway.Tasks.
func (s *Tasks) Standing(_ context.Context, tenant, principal, human, kind string) (gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.standing(tenant, principal, human, kind)
	if err == nil && s.Stale {
		return gateway.Task{}, gateway.ErrStale
	}
	return t, err
}

func (s *Tasks) bind(t gateway.Task, principal, human string) error {
	who := t.Tenant + "/" + principal + "/" + gateway.HumanName(human)
	other, err := s.runs(t.Tenant, s.bound[who])
	switch {
	case t.Parallel, err == nil && other.Root() == t.Root():
	case err == nil:
		return gateway.ErrBusy
	default:
		s.bound[who] = t.ID
	}
	return nil
}

// Bind implements gateway.Tasks.
func (s *Tasks) Bind(_ context.Context, t gateway.Task, principal, human string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bind(t, principal, human)
}

// Spend implements gateway.Tasks.
func (s *Tasks) Spend(_ context.Context, t gateway.Task) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	limits := map[string]int64{t.ID: t.Budget.Calls, "day/" + t.Principal + "/" + t.OnBehalfOf + "/" + t.Kind: t.Budget.PerDay}
	for _, a := range t.Ancestors {
		if up := s.m[t.Tenant+"/"+a.ID]; up != nil {
			limits[a.ID] = up.Budget.Calls
		}
	}
	for key, most := range limits {
		if most > 0 && s.spent[key] >= most {
			return gateway.ErrTooMany
		}
	}
	for key := range limits {
		s.spent[key]++
	}
	return nil
}

// Widen implements gateway.Tasks.
func (s *Tasks) Widen(_ context.Context, tenant, id string, w gateway.Widening) (gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.runs(tenant, id)
	if err != nil {
		return gateway.Task{}, err
	}
	if !slices.ContainsFunc(t.Widened, func(o gateway.Widening) bool { return o.Approval == w.Approval }) {
		t.Widened = append(slices.Clone(t.Widened), w)
	}
	return t.Task, nil
}

// End implements gateway.Tasks.
func (s *Tasks) End(_ context.Context, tenant, id string, e gateway.Ending) (gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.m[tenant+"/"+id]
	if t == nil {
		return gateway.Task{}, gateway.ErrNoTask
	}
	s.end(t, e)
	return t.Task, nil
}

// end is under s.mu.
func (s *Tasks) end(t *task, e gateway.Ending) {
	if t.State != gateway.TaskRunning {
		return
	}
	t.State, t.Outcome, t.EndedBy, t.Why, t.Task.Ended = gateway.TaskEnding, e.As, e.By, e.Why, time.Now()
	close(t.ended)
	if t.Implicit && e.As == gateway.TaskEnded {
		name := standingName(t.Principal, t.OnBehalfOf, t.Kind)
		s.stops[stopKey(t.Tenant, gateway.StopStanding, name)] = gateway.Stop{Tenant: t.Tenant, Kind: gateway.StopStanding, Name: name, By: e.By, Reason: e.Why}
		for _, o := range s.m {
			if s.stopped(o.Task) && o.Tenant == t.Tenant {
				s.end(o, gateway.Ending{As: gateway.TaskRevoked, By: "stop", Why: e.Why})
			}
		}
	}
	for _, o := range s.m {
		if o.Parent == t.ID {
			s.end(o, gateway.Ending{As: gateway.TaskRevoked, By: "parent", Why: "its parent ended"})
		}
	}
	if s.house != nil {
		s.closing.Go(func() { s.close(t) })
	}
}

func (s *Tasks) close(t *task) {
	ctx := context.Background()
	s.mu.Lock()
	now := t.Task
	s.mu.Unlock()
	c := s.house.CloseHere(ctx, now).Add(s.house.CloseShared(ctx, now))
	s.mu.Lock()
	t.State, t.Closed = t.Outcome, time.Now()
	now = t.Task
	s.mu.Unlock()
	kind := audit.TaskEnded
	if now.State == gateway.TaskRevoked {
		kind = audit.TaskRevoked
	}
	if s.recorder != nil {
		_ = s.recorder.Durable(ctx, gateway.Fact{Type: kind, Tenant: now.Tenant, Task: &now, Closing: &c, Key: now.ID + ":closed"})
	}
}

// Settle waits until what has ended is closed.
func (s *Tasks) Settle() { s.closing.Wait() }

// Stop implements gateway.Tasks.
func (s *Tasks) Stop(_ context.Context, stop gateway.Stop) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops[stopKey(stop.Tenant, stop.Kind, stop.Name)] = stop
	for _, t := range s.m {
		if t.Tenant == stop.Tenant && s.stopped(t.Task) {
			s.end(t, gateway.Ending{As: gateway.TaskRevoked, By: "stop", Why: stop.Reason})
		}
	}
	return nil
}

// Lift implements gateway.Tasks.
func (s *Tasks) Lift(_ context.Context, tenant string, kind gateway.StopKind, name string) (gateway.Stop, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop, ok := s.stops[stopKey(tenant, kind, name)]
	if !ok {
		return stop, gateway.ErrNotFound
	}
	delete(s.stops, stopKey(tenant, kind, name))
	return stop, nil
}

// Stops implements gateway.Tasks.
func (s *Tasks) Stops(_ context.Context, tenant string) ([]gateway.Stop, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []gateway.Stop
	for _, stop := range s.stops {
		if stop.Tenant == tenant {
			all = append(all, stop)
		}
	}
	slices.SortFunc(all, func(a, b gateway.Stop) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Get implements gateway.Tasks.
func (s *Tasks) Get(_ context.Context, tenant, id string) (gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.m[tenant+"/"+id]; t != nil {
		return t.Task, nil
	}
	return gateway.Task{}, gateway.ErrNoTask
}

// List implements gateway.Tasks.
func (s *Tasks) List(_ context.Context, tenant string) ([]gateway.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []gateway.Task
	for _, t := range s.m {
		if t.Tenant == tenant {
			out = append(out, t.Task)
		}
	}
	return out, nil
}
