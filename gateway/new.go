package gateway

import (
	"cmp"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"toolbroker/authz"
)

// A Policy answers what a row of the policy file or of a scope allows;
// [*authz.Store] is one.
type Policy interface {
	Decide(authz.Request) authz.Decision
	// Revision names the policy in force; it changes whenever an answer could.
	Revision() string
}

// Config is everything a Gateway is made of. Every seam but Definitions is required.
type Config struct {
	Identity  Identity
	Tasks     Tasks
	Approvals Approvals
	Leases    Leases
	Servers   Servers
	Operators Operators
	Sessions  Sessions
	Handles   Handles
	Recorder  Recorder
	Policy    Policy

	// Definitions holds back what no admin accepted; nil: nothing is held back, and
	// there is nothing to accept. It is the one seam that is not required.
	Definitions Definitions

	Kinds   []TaskKind // what tasks there can be
	Tenants []string   // whose worlds there are

	Hold           time.Duration // how long a call waits for a human before it answers pending; default 25 s, at most 25 s
	ApprovalTTL    time.Duration // how long a request may wait for its votes; default 1 h
	GiveBack       time.Duration // how long giving a lease back may take before its ledger takes over; default 2 s
	CallsPerSecond float64       // per principal, with a burst of twice that; default 200
	Held           int           // calls waiting for a human at once, per principal; default 8
	HeldTenant     int           // the same per tenant; default 64
	UnderWay       int           // calls under way at once, per workload, those that wait for a human among them; default 256
	UnderWayTenant int           // the same per tenant; default 4,096
	TenantDay      int64         // calls and lists of one tenant per UTC day; each writes at most some 10 KiB of log, so this is its share of the disk; default 1,000,000
	SyncOutcomes   bool          // an answer waits until its outcome is durable

	// Used are the approval requests whose grants the log says are used up, with
	// their expiry: a store that forgot cannot bring them back.
	Used map[string]time.Time

	// Search shows agents two tools, to search and to call, instead of a long
	// catalogue. What they find and call is decided as ever.
	Search bool

	// StateKey seals what agents bring back to go on with a call; 32 bytes, the same
	// on every replica. Default: a random one, good for one replica until it ends.
	StateKey []byte

	// ReferenceKey keys the digests that are kept of tasks' references; the same
	// on every replica. Default: a random one, so that none can be compared.
	ReferenceKey []byte

	Logger *slog.Logger     // operational log; default discards
	Now    func() time.Time // default time.Now
}

// A Gateway carries calls. It is safe for concurrent use.
type Gateway struct {
	Config
	kinds map[string]TaskKind

	mu       sync.Mutex
	limiters map[[2]string]*rate.Limiter // by tenant and principal
	held     map[string]int
	seats    map[string]*seats    // of calls under way, by tenant
	counts   map[count]int64      // refusals that are counted, not written one by one
	shapes   sync.Map             // definition hash to *shape
	shaped   atomic.Int64         // what those cost
	flights  map[taskKey]*flights // calls under way here, by task
	closing  sync.WaitGroup       // what belonged to sessions that ended
	stopped  chan struct{}        // closed when nothing of that begins any more
	runs     sync.WaitGroup       // calls that are carried out here for handles
	ending   bool                 // no more of them are begun
	down     chan struct{}        // closed when those that run must end
	cutOff   func()               // closes it

	reachMu sync.RWMutex
	reaches map[taskKey]*reach

	mesh    *mesh                      // of every credential that is live here
	states  cipher.AEAD                // what seals requestState
	guarded map[string]map[string]bool // tasks to what the mesh holds for them
	day     int64                      // the day that calls are counted for
	calls   map[string]int64           // of each tenant, today
	shown   map[[2]string]time.Time    // whose page a legacy session was sent to here, by request and session, until that expires
	used    map[string]time.Time       // grants that are used up, by request, until they would have expired
}

// New makes a Gateway, or says what is missing.
func New(c Config) (*Gateway, error) {
	for name, missing := range map[string]bool{
		"Identity": c.Identity == nil, "Tasks": c.Tasks == nil, "Approvals": c.Approvals == nil, "Leases": c.Leases == nil, "Servers": c.Servers == nil,
		"Operators": c.Operators == nil, "Sessions": c.Sessions == nil, "Handles": c.Handles == nil, "Recorder": c.Recorder == nil, "Policy": c.Policy == nil,
	} {
		if missing {
			return nil, fmt.Errorf("gateway: no %s", name)
		}
	}
	const longest = 25 * time.Second // clients give up on a request after 60 s, some sooner
	c.Hold = cmp.Or(c.Hold, longest)
	if c.Hold < 0 || c.Hold > longest {
		return nil, fmt.Errorf("gateway: a call can be held for at most %s", longest)
	}
	c.ApprovalTTL = cmp.Or(c.ApprovalTTL, time.Hour)
	c.GiveBack = cmp.Or(c.GiveBack, 2*time.Second)
	c.CallsPerSecond = cmp.Or(c.CallsPerSecond, 200)
	c.Held = cmp.Or(c.Held, 8)
	c.HeldTenant = cmp.Or(c.HeldTenant, 64)
	c.UnderWay = cmp.Or(c.UnderWay, 256)
	c.UnderWayTenant = cmp.Or(c.UnderWayTenant, 4_096)
	c.TenantDay = cmp.Or(c.TenantDay, 1_000_000)
	if len(c.ReferenceKey) == 0 {
		c.ReferenceKey = []byte(rand.Text())
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	g := &Gateway{
		Config: c, kinds: map[string]TaskKind{},
		limiters: map[[2]string]*rate.Limiter{}, held: map[string]int{}, seats: map[string]*seats{}, flights: map[taskKey]*flights{}, counts: map[count]int64{}, stopped: make(chan struct{}), down: make(chan struct{}),
		reaches: map[taskKey]*reach{}, mesh: newMesh(), guarded: map[string]map[string]bool{}, calls: map[string]int64{}, shown: map[[2]string]time.Time{}, used: maps.Clone(c.Used),
	}
	g.cutOff = sync.OnceFunc(func() { close(g.down) })
	if g.used == nil {
		g.used = map[string]time.Time{}
	}
	if len(c.StateKey) == 0 {
		c.StateKey = make([]byte, 32)
		rand.Read(c.StateKey)
	}
	var err error
	if g.states, err = newStates(c.StateKey); err != nil {
		return nil, err
	}
	for _, k := range c.Kinds {
		if k.Scope == nil {
			return nil, fmt.Errorf("gateway: task kind %s has no scope", k.Name)
		}
		k.Scope = k.Scope.Named("task kind " + k.Name)
		if k.Initial != nil {
			initial, err := k.Initial.Narrow(k.Scope)
			if err != nil {
				return nil, fmt.Errorf("gateway: task kind %s: initial scope: %w", k.Name, err)
			}
			k.Initial = initial
		}
		g.kinds[k.Name] = k
	}
	return g, nil
}

func (g *Gateway) now() time.Time { return g.Now() }

// newID returns a fresh id of 130 random bits, in the closed grammar of ids.
func newID(kind string) string { return kind + "-" + strings.ToLower(rand.Text()) }

// Run writes the counted refusals once a second, and ends at servers what belonged
// to sessions that ended, until ctx ends; then it waits for what was still being
// ended. What still runs for handles is cut off then; [Gateway.Finish] waits for it.
func (g *Gateway) Run(ctx context.Context) error {
	go g.Sessions.Watch(ctx, func(n News) { g.heard(ctx, n) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.flushCounts(ctx)
		case <-ctx.Done():
			g.flushCounts(context.WithoutCancel(ctx))
			g.stop()
			g.closing.Wait()
			g.Finish(ctx)
			return nil
		}
	}
}

// stop has nothing new begin that Run waits for.
func (g *Gateway) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.stopped)
}

// Fault says why nothing can be recorded now, or nil.
func (g *Gateway) Fault() error {
	if f, ok := g.Recorder.(interface{ Fault() error }); ok {
		return f.Fault()
	}
	return nil
}

// limit keeps one principal from starving the others, and its refusals from
// filling the log.
func (g *Gateway) limit(p Principal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.rate(p); err != nil {
		return err
	}
	if day := g.now().Unix() / (24 * 60 * 60); day != g.day {
		g.day = day
		clear(g.calls)
	}
	if g.calls[p.Tenant] >= g.TenantDay {
		g.count(count{kind: overDay, tenant: p.Tenant, who: p.ID})
		return refuse(TooMany, errors.New("over the tenant's day")).say("this tenant has used up its calls for today")
	}
	g.calls[p.Tenant]++
	return nil
}

// Pace refuses what an identified caller sends too fast and what is no call of its
// own: a notification, an answer, a setting. Like calls it costs work on every
// replica, but it writes no log, and the tenant's day has no part in it.
func (g *Gateway) Pace(p Principal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rate(p)
}

// rate counts what a principal sends against what it may send in a second. Under g.mu.
func (g *Gateway) rate(p Principal) error {
	const most = 100_000 // principals remembered; forgetting all only resets their bursts
	if len(g.limiters) > most {
		clear(g.limiters)
	}
	key := [2]string{p.Tenant, p.ID}
	l := g.limiters[key]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(g.CallsPerSecond), max(1, int(2*g.CallsPerSecond)))
		g.limiters[key] = l
	}
	if !l.AllowN(g.now(), 1) {
		g.count(count{kind: overLimit, tenant: p.Tenant, who: p.ID})
		return refuse(TooMany, errors.New("over the principal's rate"))
	}
	return nil
}

// Malformed notes a request of an identified caller that could not be read;
// like other refusals that cost nothing to cause, these are counted.
func (g *Gateway) Malformed(ctx context.Context, cred Credential) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return // counted there
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count(count{kind: malformed, tenant: p.Tenant, who: p.ID})
}

// A count is what refusals are counted by where they are not written one by one.
type count struct {
	kind, tenant, who string
}

const (
	overLimit  = "over the rate limit"
	overDay    = "over the tenant's calls of the day"
	overSeats  = "over the calls under way"
	malformed  = "a request that could not be read"
	noIdent    = "no valid credential"
	hopped     = "on another root task"
	noStanding = "no standing task may start"
	unheard    = "changes of a resource, or a server's messages, not delivered"
	everyone   = "other sources" // once a second has seen too many sources to name
)

// count adds one; g.mu is held. Sources are bounded, so that whoever has many
// addresses cannot fill the log either.
func (g *Gateway) count(c count) {
	const most = 64
	if _, ok := g.counts[c]; !ok && len(g.counts) >= most {
		c.who = everyone
	}
	g.counts[c]++
}

func (g *Gateway) flushCounts(ctx context.Context) {
	g.mu.Lock()
	counts := maps.Clone(g.counts)
	clear(g.counts)
	g.mu.Unlock()
	for c, n := range counts {
		if err := g.Recorder.Record(ctx, countedFact(c, n)); err != nil {
			g.Logger.Error("counted refusals not recorded", "kind", c.kind, "count", n, "err", err)
		}
	}
}
