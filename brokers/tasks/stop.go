package tasks

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A stop is a sealed record in its tenant's hash of stops, under a digest of what
// it is about; scripts look whether the field is there, and replicas keep what
// the hash holds. One that vanished from Redis without having been lifted stands
// on where it is known, and is put back; one that was put there by someone else
// holds until it is lifted.
type storedStop struct {
	gateway.Stop
	Mark  string `json:"mark"`  // this stop's own, for when it is lifted
	Swept bool   `json:"swept"` // every task that it is about was told to end; none can start after it
}

// liftedFor is how long it is known which stop was lifted.
const liftedFor = 31 * 24 * time.Hour

func stopField(kind gateway.StopKind, name string) string { return hashed(string(kind), name) }

// stopName is a stop's name as stops are compared by it.
func stopName(kind gateway.StopKind, name string) string {
	switch kind {
	case gateway.StopTenant:
		return ""
	case gateway.StopOwner, gateway.StopHuman:
		return gateway.HumanName(name)
	case gateway.StopStanding:
		if w, ok := words(name); ok && len(w) == 3 {
			return standingFor(w[0], w[1], w[2])
		}
	}
	return name
}

// standingName is how the stop of a standing task is called: its workload, its
// human ("-" for none) and its kind. One that is not a plain word is quoted.
func standingName(t gateway.Task) string {
	human := "-"
	if t.OnBehalfOf != "" {
		human = word(t.OnBehalfOf)
	}
	return word(t.Principal) + " " + human + " " + word(t.Kind)
}

func word(w string) string {
	if w == "" || w == "-" || strings.ContainsFunc(w, func(c rune) bool { return c <= ' ' || c == '"' || c == '\\' || !unicode.IsPrint(c) }) {
		return strconv.Quote(w)
	}
	return w
}

// words reads a name that is made of words; a bare "-" is an empty one.
func words(name string) (all []string, ok bool) {
	for name != "" {
		var w string
		if name[0] == '"' {
			quoted, err := strconv.QuotedPrefix(name)
			if err != nil {
				return nil, false
			}
			name = strings.TrimPrefix(name[len(quoted):], " ")
			if w, err = strconv.Unquote(quoted); err != nil {
				return nil, false
			}
		} else if w, name, _ = strings.Cut(name, " "); w == "-" {
			w = ""
		}
		all = append(all, w)
	}
	return all, true
}

// stopsAbout are the stops that would be about a task or one above it: what hangs
// on a stopped task stops with it, not a sweep later.
func stopsAbout(t *gateway.Task) []gateway.Stop {
	all := []gateway.Stop{{Kind: gateway.StopTenant}}
	for _, other := range t.Principals {
		all = append(all, gateway.Stop{Kind: gateway.StopPrincipal, Name: other})
	}
	for _, a := range append([]gateway.Ancestor{t.Ancestor()}, t.Ancestors...) {
		all = append(all, gateway.Stop{Kind: gateway.StopPrincipal, Name: a.Principal}, gateway.Stop{Kind: gateway.StopOwner, Name: gateway.HumanName(a.Owner)})
		// Nor does whoever is stopped go on by what it started for others.
		if who := a.StartedBy; who != "" && who != a.Principal && !strings.HasPrefix(who, "operator:") {
			all = append(all, gateway.Stop{Kind: gateway.StopPrincipal, Name: who})
		}
		if human := gateway.HumanName(a.OnBehalfOf); human != "" {
			all = append(all, gateway.Stop{Kind: gateway.StopHuman, Name: human})
		}
		all = append(all, standingStops(a, a.Principal)...)
	}
	for _, other := range t.Principals {
		all = append(all, standingStops(t.Ancestor(), other)...)
	}
	return all
}

// standingStops are the stops of standing tasks that a task of some workload's
// would be: what was stopped as a standing one is not started as a declared one
// instead, whoever starts it. A human whom nobody proved washes nothing off.
func standingStops(a gateway.Ancestor, principal string) (all []gateway.Stop) {
	humans := []string{a.OnBehalfOf, a.Human}
	if a.Own {
		humans = append(humans, a.OwnFor)
	}
	for _, human := range humans {
		all = append(all, gateway.Stop{Kind: gateway.StopStanding, Name: standingFor(principal, human, a.Kind)})
	}
	return all
}

func stopFields(t *gateway.Task) []string {
	var fields []string
	for _, s := range stopsAbout(t) {
		if f := stopField(s.Kind, s.Name); !slices.Contains(fields, f) {
			fields = append(fields, f)
		}
	}
	return fields
}

// A stopSet is a tenant's stops as a replica knows them. It never changes.
type stopSet struct {
	tenant  string
	byField map[string]storedStop // one that is not ours has no mark
}

func newStopSet(tenant string, m map[string]storedStop) *stopSet { return &stopSet{tenant, m} }

func (s *stopSet) about(t *gateway.Task) (storedStop, bool) {
	if len(s.byField) == 0 {
		return storedStop{}, false
	}
	for _, f := range stopFields(t) {
		if stop, ok := s.byField[f]; ok {
			return stop, true
		}
	}
	return storedStop{}, false
}

// stopped reports whether a stop that this replica knows is about a task, or its
// owner is disabled.
func (r *Tasks) stopped(t *gateway.Task) bool {
	set := r.stops[t.Tenant]
	if set == nil {
		return false
	}
	_, ok := set.Load().about(t)
	return ok || r.disowned(t)
}

// disowned reports whether a task's owner, or that of one above it, is disabled.
func (r *Tasks) disowned(t *gateway.Task) bool {
	return len(r.disabled) > 0 && (r.disabled[gateway.HumanName(t.Owner)] ||
		slices.ContainsFunc(t.Ancestors, func(a gateway.Ancestor) bool { return r.disabled[gateway.HumanName(a.Owner)] }))
}

func (r *Tasks) whyStopped(t *gateway.Task) string {
	if stop, ok := r.stops[t.Tenant].Load().about(t); ok {
		return cmp.Or(stop.Reason, "stopped")
	}
	return ownerDisabled
}

const ownerDisabled = "its owner is disabled"

// readStops makes a replica know what Redis has. One read at a time, so that an
// older one does not come last.
func (r *Tasks) readStops(ctx context.Context, tenant string) error {
	r.reading.Lock()
	defer r.reading.Unlock()
	known := r.stops[tenant].Load()
	k, err := r.Store.Key(tenant, redis.TasksStops)
	if err != nil {
		return err
	}
	found, err := r.Store.All(ctx, k)
	if err != nil {
		return fmt.Errorf("read stops: %w", err)
	}
	m := map[string]storedStop{}
	for field, sealed := range found {
		s, err := r.openStop(k, field, []byte(sealed))
		if err != nil {
			r.Log.ErrorContext(ctx, "a stop in Redis was not set by us; it holds until it is lifted", "tenant", tenant)
			s = storedStop{Stop: gateway.Stop{Tenant: tenant}}
		}
		m[field] = s
	}
	for field, s := range known.byField {
		if _, ok := m[field]; ok || s.Mark == "" {
			continue
		}
		lifted, err := r.lifted(ctx, tenant, field, s.Mark)
		if err != nil {
			return err
		}
		if lifted {
			continue
		}
		r.Log.ErrorContext(ctx, "a stop vanished from Redis without having been lifted, and is put back", "tenant", tenant, "kind", s.Kind)
		m[field] = s
		sealed, err := r.sealStop(k, field, s)
		if err == nil {
			_, err = r.Store.Run(ctx, setStop, []redis.Key{k, k}, field, sealed, "quiet")
		}
		if err != nil {
			return err
		}
	}
	r.stops[tenant].Store(newStopSet(tenant, m))
	return nil
}

func (r *Tasks) lifted(ctx context.Context, tenant, field, mark string) (bool, error) {
	k, err := r.Store.Key(tenant, redis.TasksLifted, field)
	if err != nil {
		return false, err
	}
	sealed, err := r.Store.Get(ctx, k)
	if err != nil || sealed == nil {
		return false, err
	}
	was, err := r.Store.Unseal(k, "lifted", sealed)
	return err == nil && string(was) == mark, nil
}

func (r *Tasks) sealStop(k redis.Key, field string, s storedStop) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return r.Store.Seal(k, "stop "+field, text), nil
}

func (r *Tasks) openStop(k redis.Key, field string, sealed []byte) (s storedStop, err error) {
	text, err := r.Store.Unseal(k, "stop "+field, sealed)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err == nil && stopField(s.Kind, stopName(s.Kind, s.Name)) != field {
		err = redis.ErrSeal
	}
	return s, err
}

// setStop sets a stop that is not set. KEYS: stops, stream. ARGV: field, sealed
// stop, 'tell' or 'quiet'.
var setStop = redis.NewScript(`
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return {'was'} end
if ARGV[3] == 'tell' then redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'id', '-', 'what', 'stops') end
return {'ok'}`)

// newStop makes the record of a stop.
func (r *Tasks) newStop(s gateway.Stop) (field string, st storedStop) {
	if s.At.IsZero() {
		s.At = r.Now().UTC()
	}
	return stopField(s.Kind, stopName(s.Kind, s.Name)), storedStop{Stop: s, Mark: rand.Text()}
}

// Stop implements [gateway.Tasks]. From the moment it is in Redis nothing it is
// about starts; what runs is ended before it returns, or, should that fail or we
// crash, by a sweep.
func (r *Tasks) Stop(ctx context.Context, s gateway.Stop) error {
	switch s.Kind {
	case gateway.StopTenant, gateway.StopPrincipal, gateway.StopOwner, gateway.StopHuman, gateway.StopStanding:
	default:
		return fmt.Errorf("stop: what is %q?", s.Kind)
	}
	if s.Kind == gateway.StopTenant {
		s.Name = ""
	} else if stopName(s.Kind, s.Name) == "" {
		return errors.New("stop: nobody is named")
	}
	if len(s.Name)+len(s.By)+len(s.Reason) > maxText {
		return errors.New("stop: too much text")
	}
	k, err := r.places(s.Tenant, "-")
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	field, st := r.newStop(s)
	sealed, err := r.sealStop(k.stops, field, st)
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if _, err := r.Store.Run(ctx, setStop, []redis.Key{k.stops, k.stream}, field, sealed, "tell"); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := r.readStops(ctx, s.Tenant); err != nil {
		return fmt.Errorf("stop: it is set, but not all is ended yet: %w", err)
	}
	if err := r.sweepStop(ctx, s.Tenant, field); err != nil {
		return fmt.Errorf("stop: it is set, but not all is ended yet: %w", err)
	}
	return nil
}

// lift takes a stop away that is still the one we read. KEYS: stops, lifted,
// stream. ARGV: field, sealed stop, sealed mark, for how long to know it.
var lift = redis.NewScript(`
local was = redis.call('HGET', KEYS[1], ARGV[1])
if not was then return {'none'} end
if was ~= ARGV[2] then return {'moved'} end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'id', '-', 'what', 'stops')
return {'ok'}`)

// Lift implements [gateway.Tasks].
func (r *Tasks) Lift(ctx context.Context, tenant string, kind gateway.StopKind, name string) (gateway.Stop, error) {
	field := stopField(kind, stopName(kind, name))
	k, err := r.places(tenant, "-")
	if err != nil {
		return gateway.Stop{}, fmt.Errorf("lift stop: %w: %w", gateway.ErrNotFound, err)
	}
	mark, err := r.Store.Key(tenant, redis.TasksLifted, field)
	if err != nil {
		return gateway.Stop{}, fmt.Errorf("lift stop: %w", err)
	}
	for range 8 {
		found, _, err := r.Store.Fields(ctx, []redis.Key{k.stops}, field)
		if err != nil {
			return gateway.Stop{}, fmt.Errorf("lift stop: %w", err)
		}
		sealed := found[0][field]
		if sealed == "" {
			return gateway.Stop{}, fmt.Errorf("lift stop: %w", gateway.ErrNotFound)
		}
		s, err := r.openStop(k.stops, field, []byte(sealed))
		if err != nil { // somebody else's, and in the way
			s = storedStop{Stop: gateway.Stop{Tenant: tenant, Kind: kind, Name: name, Reason: "not set by us"}}
		}
		reply, err := r.Store.Run(ctx, lift, []redis.Key{k.stops, mark, k.stream}, field, sealed,
			r.Store.Seal(mark, "lifted", []byte(s.Mark)), liftedFor.Milliseconds())
		if err != nil {
			return gateway.Stop{}, fmt.Errorf("lift stop: %w", err)
		}
		if reply[0] == "ok" {
			return s.Stop, r.readStops(ctx, tenant)
		}
	}
	return gateway.Stop{}, fmt.Errorf("lift stop: it keeps changing: %w", gateway.ErrNotNow)
}

// Stops implements [gateway.Tasks], oldest first.
func (r *Tasks) Stops(ctx context.Context, tenant string) ([]gateway.Stop, error) {
	k, err := r.Store.Key(tenant, redis.TasksStops)
	if err != nil {
		return nil, fmt.Errorf("list stops: %w", err)
	}
	found, err := r.Store.All(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("list stops: %w", err)
	}
	all := []gateway.Stop{}
	for field, sealed := range found {
		if s, err := r.openStop(k, field, []byte(sealed)); err == nil {
			all = append(all, s.Stop)
		} else {
			r.Log.ErrorContext(ctx, "a stop in Redis was not set by us; it holds until it is lifted", "tenant", tenant)
		}
	}
	slices.SortFunc(all, func(a, b gateway.Stop) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// sweepStop ends what a stop is about, and writes down that it did.
func (r *Tasks) sweepStop(ctx context.Context, tenant, field string) error {
	s, ok := r.stops[tenant].Load().byField[field]
	if !ok || s.Swept {
		return nil
	}
	err := r.endAll(ctx, tenant, func(t *gateway.Task) bool { return slices.Contains(stopFields(t), field) },
		gateway.Ending{As: gateway.TaskRevoked, By: "stop", Why: cmp.Or(s.Reason, "stopped")})
	if err != nil || s.Mark == "" {
		return err
	}
	k, err := r.Store.Key(tenant, redis.TasksStops)
	if err != nil {
		return err
	}
	found, _, err := r.Store.Fields(ctx, []redis.Key{k}, field)
	if err != nil {
		return err
	}
	was, err := r.openStop(k, field, []byte(found[0][field]))
	if err != nil || was.Mark != s.Mark {
		return nil // lifted meanwhile, or another one
	}
	was.Swept = true
	sealed, err := r.sealStop(k, field, was)
	if err != nil {
		return err
	}
	if _, err := r.Store.Run(ctx, swapStop, []redis.Key{k}, field, found[0][field], sealed); err != nil {
		return err
	}
	return r.readStops(ctx, tenant)
}

var swapStop = redis.NewScript(`
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {'moved'} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'ok'}`)

// endAll begins the end of every running task that something is about, in
// batches, until none is left. Nothing of the sort may be able to start.
func (r *Tasks) endAll(ctx context.Context, tenant string, about func(*gateway.Task) bool, e gateway.Ending) error {
	k, err := r.Store.Key(tenant, redis.TasksDue)
	if err != nil {
		return err
	}
	ids, err := r.Store.Latest(ctx, k, 1<<30)
	if err != nil {
		return err
	}
	const batch = 500
	room := make(chan struct{}, 8) // not r.slots: closings must not come before ends
	for len(ids) > 0 {
		found, _, err := r.readAll(ctx, tenant, ids[:min(batch, len(ids))])
		if err != nil {
			return err
		}
		ids = ids[min(batch, len(ids)):]
		var work sync.WaitGroup
		var mu sync.Mutex
		var failed error
		for _, rec := range found {
			if rec.State != gateway.TaskRunning || !about(&rec.Task) {
				continue
			}
			room <- struct{}{}
			work.Go(func() {
				defer func() { <-room }()
				if _, err := r.finish(ctx, ref{tenant, rec.ID}, e); err != nil && !errors.Is(err, gateway.ErrNoTask) {
					mu.Lock()
					defer mu.Unlock()
					failed = err
				}
			})
		}
		work.Wait()
		if failed != nil {
			return failed
		}
	}
	return nil
}
