// Package tasks knows what each workload is doing: it keeps tasks in Redis,
// makes the tokens that are tasks, refuses ended and stopped ones on every
// replica within 100 ms, and sees an ended one closed on all of them.
//
// What a task may reach is the policy's business, and whether one may start the
// gateway's; what hangs on a task is closed by [Config.Here] and
// [Config.Shared]. It emits task.ending where nobody else does, the fact that
// says how a task ended once it is closed, and task.end_unproven.
package tasks

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what the task registry is made of.
type Config struct {
	Store      *redis.Store
	Recorder   gateway.Recorder
	SigningKey ed25519.PrivateKey // this replica's; see [LoadKey]
	Issuer     string             // "iss" of the tokens: the deployment, the same on every replica
	Audience   string             // "aud" of the tokens: likewise
	Replica    string             // this process, among the others; "[a-z0-9-]{1,64}", empty for a name made up

	// Here closes what a task has on this replica and says what that was. It is
	// called on every replica that used the task, once its end is known there,
	// again while it leaves something unproven. Nil where there is nothing.
	Here func(ctx context.Context, t gateway.Task) gateway.Closing
	// Shared closes what a task has in what replicas share. It is called on one
	// replica at a time, again while it leaves something unproven. Nil where
	// there is nothing.
	Shared func(ctx context.Context, t gateway.Task) gateway.Closing
	// Over lists, by tenant, the tasks of which this replica's own log says that
	// their end has begun: a record that was put back brings none of them back.
	Over map[string][]string
	// DisabledOwners are owners that the config has disabled: their tasks do not run.
	DisabledOwners []string

	Log *slog.Logger     // nil for slog's default
	Now func() time.Time // nil for time.Now
}

const (
	remembered = 24 * time.Hour      // how long a closed task can be read
	unswept    = 7 * 24 * time.Hour  // how long a task waits for its end to be written down
	unclosed   = 31 * 24 * time.Hour // how long an ending one waits to be closed
	lately     = time.Hour           // how long one is listed after its end began
	listed     = 500                 // how many are listed
	maxText    = 8 << 10             // of a task; the gateway's own limits are tighter
	maxRecord  = 512 << 10           // bytes
	maxDepth   = 16                  // generations that a task may have above it
	timeout    = 2 * time.Second     // of a round trip that no caller's context bounds
)

// Tasks implements [gateway.Tasks]. It is safe for concurrent use. [Tasks.Run]
// must be running, or every task is stale.
type Tasks struct {
	Config
	self     string // replica/boot
	signer   signer
	outbox   *redis.Outbox
	lookup   *rate.Limiter // of unknown signing keys
	pace     pace
	slots    chan struct{} // round trips that nobody waits for
	here     chan struct{} // calls of Here
	shared   chan struct{} // calls of Shared
	disabled map[string]bool
	past     map[ref]bool                        // over before this process began; never changes
	stops    map[string]*atomic.Pointer[stopSet] // by tenant; the map never changes
	world    interner
	reading  sync.Mutex // of stops

	confirmed atomic.Pointer[time.Time] // when the last confirmed read of what ended began

	mu        sync.RWMutex
	anchors   map[string]string            // by tenant: the last entry seen, which must still be there
	news      map[string]*news             // by tenant: what made cached tasks wrong
	cache     map[ref]*entry               // as last seen; ended ones too
	below     map[ref]map[ref]struct{}     // who of the cached and the watched is below a task
	watches   map[ref]*watch               // whoever waits for an end
	used      map[ref]*use                 // tasks whose closing waits for this replica
	floors    map[string]int64             // by counter: how far we saw it go
	bound     map[place]string             // the task that a workload is on
	standing  map[names]string             // by workload, human and kind: its task
	closers   map[ref]*closer              // tasks that are being closed here
	proofs    map[ref]*proof               // ends known here that are not known to be proven
	seen      chan struct{}                // closed at the next confirmed read
	blind     chan struct{}                // see Blind
	isBlind   bool                         // it is closed
	ending    map[ref]bool                 // tasks that we are ending because something above them says so
	keys      map[string]ed25519.PublicKey // by kid
	published time.Time                    // when this replica last told the others its key
	life      context.Context              // Run's; nil while it does not run
	work      sync.WaitGroup               // whatever must be done before Run returns
}

// A ref names a task.
type ref struct{ tenant, id string }

// New makes a registry. It does not wait for Redis.
func New(c Config) (*Tasks, error) {
	if c.Store == nil || c.Recorder == nil {
		return nil, errors.New("tasks: no store or no recorder")
	}
	if c.Issuer == "" || c.Audience == "" {
		return nil, errors.New("tasks: tokens need an issuer and an audience")
	}
	boot := strings.ToLower(rand.Text())
	c.Replica = cmp.Or(c.Replica, "replica-"+boot[:8])
	if !redis.ValidID(c.Replica) {
		return nil, errors.New("tasks: a replica's name is of [a-z0-9-], at most 64")
	}
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Now == nil {
		c.Now = time.Now
	}
	s, err := newSigner(c.SigningKey)
	if err != nil {
		return nil, err
	}
	r := &Tasks{
		Config: c, self: c.Replica + "/" + boot, signer: s, outbox: c.Store.Outbox("tasks"), lookup: rate.NewLimiter(50, 50), pace: usual,
		slots: make(chan struct{}, 8), here: make(chan struct{}, 64), shared: make(chan struct{}, 64),
		disabled: map[string]bool{}, past: map[ref]bool{}, stops: map[string]*atomic.Pointer[stopSet]{}, world: newInterner(),
		anchors: map[string]string{}, news: map[string]*news{},
		cache: map[ref]*entry{}, below: map[ref]map[ref]struct{}{}, watches: map[ref]*watch{}, used: map[ref]*use{},
		floors: map[string]int64{}, bound: map[place]string{}, standing: map[names]string{}, closers: map[ref]*closer{}, proofs: map[ref]*proof{}, seen: make(chan struct{}), blind: make(chan struct{}), ending: map[ref]bool{},
		keys: map[string]ed25519.PublicKey{s.kid: s.public},
	}
	for tenant, ids := range c.Over {
		for _, id := range ids {
			r.past[ref{tenant, id}] = true
		}
	}
	for _, o := range c.DisabledOwners {
		r.disabled[gateway.HumanName(o)] = true
	}
	for _, t := range c.Store.Tenants() {
		r.stops[t], r.news[t] = new(atomic.Pointer[stopSet]), &news{}
		r.stops[t].Store(newStopSet(t, nil))
	}
	return r, nil
}

// NewID makes a task id.
func NewID() string { return "task-" + strings.ToLower(rand.Text()) }

// Run keeps the registry fresh, ends what is due, closes what ended, and sends
// facts to the record, until ctx ends.
func (r *Tasks) Run(ctx context.Context) error {
	r.mu.Lock()
	r.life = ctx
	r.mu.Unlock()
	var parts sync.WaitGroup
	parts.Go(func() { r.outbox.Run(ctx, r.send) })
	parts.Go(func() { r.tend(ctx) })
	parts.Go(func() { r.beat(ctx) })
	parts.Go(func() { r.guard(ctx) })
	parts.Go(func() { r.prove(ctx) })
	r.follow(ctx)
	parts.Wait()
	r.mu.Lock()
	r.life = nil
	r.mu.Unlock()
	r.work.Wait()
	r.bye()
	return ctx.Err()
}

// spawn runs something until Run ends, if Run runs. Whatever it is, a sweep
// finds it again.
func (r *Tasks) spawn(do func(ctx context.Context)) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ctx := r.life
	if ctx == nil || ctx.Err() != nil {
		return false
	}
	r.work.Go(func() { do(ctx) })
	return true
}

// A task is in Redis as a version, a state and a sealed task. The state is one
// of the three below; the seal covers it and the version, so none can be changed
// there without the others. Scripts go by version and state, and nothing else is
// believed but what opens.
const (
	running = "running"
	ending  = "ending"
	over    = "over"
)

// A record is a task as Redis has it.
type record struct {
	gateway.Task
	v string
}

func sealedAs(v, state string) string { return "task " + v + " " + state }

func stateOf(t gateway.Task) string {
	switch {
	case t.State == gateway.TaskRunning, t.State == gateway.TaskEnding:
		return string(t.State)
	default:
		return over
	}
}

// seal writes a task down for its place, its version and its state.
func (r *Tasks) seal(k redis.Key, t gateway.Task, v string) ([]byte, error) {
	text, err := json.Marshal(t)
	if err == nil && len(text) > maxRecord {
		err = errors.New("the task is too large")
	}
	if err != nil {
		return nil, err
	}
	return r.Store.Seal(k, sealedAs(v, stateOf(t)), text), nil
}

// Get implements [gateway.Tasks]. It always asks Redis.
func (r *Tasks) Get(ctx context.Context, tenant, id string) (gateway.Task, error) {
	rec, now, err := r.read(ctx, ref{tenant, id})
	return due(rec.Task, now), err
}

// due shows a task that has expired as the sweeper is about to write it.
func due(t gateway.Task, now time.Time) gateway.Task {
	if t.State == gateway.TaskRunning && !now.Before(t.Expires) {
		t.State, t.Outcome, t.Ended, t.EndedBy, t.Why = gateway.TaskEnding, gateway.TaskExpired, t.Expires, "expiry", expiry
	}
	return t
}

const expiry = "its time was over"

// List implements [gateway.Tasks]: at most 500; those whose end began an hour
// ago are left out, unless they still are not closed.
func (r *Tasks) List(ctx context.Context, tenant string) ([]gateway.Task, error) {
	k, err := r.places(tenant, "-")
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	ids, err := r.Store.Latest(ctx, k.due, listed)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	closing, err := r.Store.Latest(ctx, k.closing, listed)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	ended, err := r.Store.Between(ctx, k.lately, now.Add(-lately), time.Time{}, listed)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	// One may have ended between two reads.
	found, now, err := r.readAll(ctx, tenant, slices.Compact(slices.Sorted(slices.Values(slices.Concat(ids, closing, ended)))))
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	all := []gateway.Task{}
	for _, rec := range found {
		all = append(all, due(rec.Task, now))
	}
	slices.SortFunc(all, func(a, b gateway.Task) int {
		return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID))
	})
	return all[:min(len(all), listed)], nil
}

// places are the keys of one task.
type places struct {
	task, due, lately, stream, outbox, closing, stops redis.Key // of its tenant, but for task
	users, reports, children, spent                   redis.Key // its own; gone when it is closed
}

func (r *Tasks) places(tenant, id string) (p places, err error) {
	one := []string{id}
	for _, k := range []struct {
		to   *redis.Key
		kind redis.Kind
		ids  []string
	}{
		{&p.task, redis.Task, one}, {&p.due, redis.TasksDue, nil}, {&p.lately, redis.TasksLately, nil}, {&p.stream, redis.TasksEnded, nil},
		{&p.closing, redis.TasksClosing, nil}, {&p.stops, redis.TasksStops, nil}, {&p.users, redis.TaskUsers, one},
		{&p.reports, redis.TaskReports, one}, {&p.children, redis.TaskChildren, one}, {&p.spent, redis.TaskSpent, one},
	} {
		if *k.to, err = r.Store.Key(tenant, k.kind, k.ids...); err != nil {
			return places{}, err
		}
	}
	p.outbox, err = r.outbox.Key(tenant)
	return p, err
}

// hashed makes an id of texts that may hold anything.
func hashed(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d:%s", len(t), t)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// workload names who is asked to do something, for whom.
func workload(principal, human string) string {
	return hashed(principal, gateway.HumanName(human))
}

// A place is a workload's, by a credential that acts for a human or for none.
type place struct{ tenant, principal, human string }

// read returns a task as it is in Redis, and Redis's time.
func (r *Tasks) read(ctx context.Context, which ref) (record, time.Time, error) {
	k, err := r.Store.Key(which.tenant, redis.Task, which.id)
	if err != nil {
		return record{}, time.Time{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	found, now, err := r.Store.Fields(ctx, []redis.Key{k}, "v", "state", "task")
	if err != nil {
		return record{}, time.Time{}, fmt.Errorf("read task: %w", err)
	}
	rec, err := r.open(k, which, found[0])
	return rec, now, err
}

// readAll leaves out what is gone, and what does not open.
func (r *Tasks) readAll(ctx context.Context, tenant string, ids []string) ([]record, time.Time, error) {
	var keys []redis.Key
	var known []string
	for _, id := range ids {
		if k, err := r.Store.Key(tenant, redis.Task, id); err == nil {
			keys, known = append(keys, k), append(known, id)
		}
	}
	found, now, err := r.Store.Fields(ctx, keys, "v", "state", "task")
	if err != nil {
		return nil, now, err
	}
	var all []record
	for i, f := range found {
		rec, err := r.open(keys[i], ref{tenant, known[i]}, f)
		if errors.Is(err, redis.ErrSeal) {
			r.Log.ErrorContext(ctx, "a task's stored record was changed by someone else", "tenant", tenant, "task", known[i])
		}
		if err == nil {
			all = append(all, rec)
		}
	}
	return all, now, nil
}

// open checks a record. One that is not ours is no task.
func (r *Tasks) open(k redis.Key, which ref, fields map[string]string) (record, error) {
	if fields["v"] == "" && fields["task"] == "" {
		return record{}, gateway.ErrNoTask
	}
	text, err := r.Store.Unseal(k, sealedAs(fields["v"], fields["state"]), []byte(fields["task"]))
	rec := record{v: fields["v"]}
	if err == nil {
		rec.Task, err = r.world.task(text)
	}
	if err == nil && (rec.ID != which.id || rec.Tenant != which.tenant || stateOf(rec.Task) != fields["state"]) {
		err = redis.ErrSeal
	}
	if err != nil {
		return record{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	return rec, nil
}
