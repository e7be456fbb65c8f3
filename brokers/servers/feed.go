package servers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// What a feed waits for. Tests shorten these.
type pace struct {
	gap      time.Duration // between two listings, however often a server says that it changed; while that goes on, twice as long each time
	first    time.Duration // before the second try at a server that is down; each next waits twice as long
	last     time.Duration // but, like the gap, no longer than this
	ack      time.Duration // for a stream of notifications to stand
	discover time.Duration // for a child that may not know the question to answer it
	grace    time.Duration // that start-up waits for servers
}

var usualPace = pace{gap: 2 * time.Second, first: time.Second, last: time.Minute, ack: 2 * time.Second,
	discover: 5 * time.Second, grace: 3 * time.Second}

// A feed keeps one server's listing fresh: for one tenant where listing takes
// that tenant's credential, else for all of them at once. A server that is
// down keeps its last listing, so that a call to it says what is wrong.
type feed struct {
	all     *Servers
	s       *server
	tenants []string
	asks    bool // Discovery, for a credential
	nudged  chan struct{}

	tried   chan struct{} // closed when the server was asked once
	once    sync.Once
	down    bool                            // these seven are the loop's own
	listed  time.Time                       // when it was last asked, and had answered
	spacing time.Duration                   // before it is asked again
	prompts bool                            // it said that it changed since it was last asked
	told    string                          // what it said at its greeting of how to use it
	bare    func() (map[string]bool, error) // what the server lists to a client that can be asked nothing; nil: it was not asked yet
	current *listing                        // also read by publish, under Servers.mu
}

func (f *feed) nudge() {
	select {
	case f.nudged <- struct{}{}:
	default:
	}
}

// calm takes back a nudge.
func (f *feed) calm() {
	select {
	case <-f.nudged:
	default:
	}
}

// run visits the server until ctx ends.
func (f *feed) run(ctx context.Context) {
	pace := f.all.pace
	again := pace.first
	for ctx.Err() == nil {
		next, err := f.visit(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			again = pace.first
			f.wait(ctx, next, true)
			continue
		}
		f.failed(err)
		f.wait(ctx, again/2+rand.N(again/2+1), false)
		again = min(2*again, pace.last)
	}
}

// wait returns after d, or sooner when ctx ends or, with early, on a nudge.
func (f *feed) wait(ctx context.Context, d time.Duration, early bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	nudged := f.nudged
	if !early {
		nudged = nil
	}
	select {
	case <-t.C:
	case <-nudged:
		f.prompts = true
	case <-ctx.Done():
	}
}

// pause waits until the server may be asked again.
func (f *feed) pause(ctx context.Context) {
	f.wait(ctx, time.Until(f.listed.Add(f.spacing)), false)
}

// space notes that the server is asked now, and says when it may be again: a server
// that goes on saying that it changed is asked more and more slowly.
func (f *feed) space(now time.Time) {
	gap := f.all.pace.gap
	if f.prompts && now.Sub(f.listed) <= 2*f.spacing {
		f.spacing = min(2*f.spacing, max(gap, f.all.pace.last))
	} else {
		f.spacing = gap
	}
	f.prompts = false
}

// visit opens a way to the server, lists its tools, and stays for as long as
// the server tells of changes. It returns when to come again.
func (f *feed) visit(ctx context.Context) (time.Duration, error) {
	f.pause(ctx)
	lease, back, err := f.credential(ctx)
	if err != nil {
		return 0, err
	}
	defer back()
	f.calm() // what was told until now is seen by this
	if f.s.kind == stdio && f.current == nil && era(f.s.era.Load()) != modernEra {
		beside, stop := context.WithCancel(ctx)
		over := f.lookBare(beside, lease) // beside the rest: it may be slow to start
		f.bare = over
		defer func() { stop(); _, _ = over(); f.bare = nil }()
	}
	l, g, err := f.all.greet(ctx, f.s, lease, client{caps: listingCaps})
	if err != nil {
		return 0, err
	}
	defer l.close(ctx)
	f.s.era.Store(int32(g.era))
	f.s.breaker.works()
	f.told = g.told

	// A credential is not kept for the sake of notifications, nor is a child.
	tells := g.can.changes()
	if tells.empty() || lease.ID != "" || f.s.kind == stdio {
		err := f.list(ctx, l, g, lease)
		if f.s.kind == stdio && l.at().changes.Load() > 0 {
			f.calm() // it tells so of its own start, each time
		}
		return f.s.Refresh, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	open, ended := make(chan struct{}), make(chan error, 1)
	var listener sync.WaitGroup
	listener.Go(func() {
		ended <- l.listen(ctx, tells, sync.OnceFunc(func() { close(open) }), func(m message) {
			if changed(m.method) {
				f.nudge()
			}
		})
	})
	defer listener.Wait()
	defer cancel()
	// What changes before the stream stands is seen only by a list after that.
	ack := time.NewTimer(f.all.pace.ack)
	defer ack.Stop()
	select {
	case <-open:
	case err := <-ended:
		ended <- err
	case <-ack.C:
	case <-ctx.Done():
	}
	for first := true; ; first = false {
		if err := f.list(ctx, l, g, lease); err != nil {
			if first {
				return 0, err
			}
			return 0, nil // the session may be over; a new one shows whether the server is
		}
		t := time.NewTimer(f.s.Refresh)
		select {
		case <-t.C:
		case <-f.nudged:
			f.prompts = true
		case <-ended:
			t.Stop()
			if time.Since(began) > f.s.Refresh {
				return f.all.pace.gap, nil // it went away: did it come back another?
			}
			return f.s.Refresh, nil // it does not like to be listened to: ask now and then
		case <-ctx.Done():
			t.Stop()
			return 0, ctx.Err()
		}
		t.Stop()
	}
}

func (f *feed) credential(ctx context.Context) (gateway.Lease, func(), error) {
	if !f.asks {
		return gateway.Lease{}, func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.s.Timeout)
	defer cancel()
	lease, back, err := f.all.config.Discovery(ctx, f.tenants[0], f.s.Name)
	if err != nil {
		return gateway.Lease{}, nil, fmt.Errorf("get a credential for listing: %w", err)
	}
	if back == nil {
		back = func() {}
	}
	return lease, back, nil
}

func (f *feed) list(ctx context.Context, l link, g greeting, lease gateway.Lease) error {
	f.pause(ctx)
	f.space(time.Now())
	defer func() { f.listed = time.Now() }() // a listing that takes long is no quiet
	ctx, cancel := context.WithTimeout(ctx, f.s.Timeout)
	defer cancel()
	found, err := f.s.list(ctx, l, g, f.current)
	if err != nil {
		return err
	}
	if g.era != modernEra {
		f.sort(ctx, found, lease)
	}
	if found.withhold(lease.Secrets()); !gateway.Holds([]byte(f.told), lease.Secrets()) {
		found.instructions = f.s.instructions(f.told)
	}
	f.worked(found)
	return nil
}

// failed notes that the server cannot be asked.
func (f *feed) failed(err error) {
	defer f.once.Do(func() { close(f.tried) })
	f.all.log.Warn("server cannot be listed", "server", f.s.Name, "tenants", f.tenants, "err", err)
	if !f.down {
		f.down = true
		f.record(gateway.Fact{Type: audit.ServerDown, Tool: f.s.asTool(), Detail: err.Error()})
	}
}

// worked takes a new listing into use and on record.
func (f *feed) worked(found *listing) {
	defer f.once.Do(func() { close(f.tried) })
	if f.down {
		f.down = false
		f.record(gateway.Fact{Type: audit.ServerUp, Tool: f.s.asTool()})
	}
	before := f.current
	f.all.publish(f, found)
	if before == nil {
		f.record(gateway.Fact{Type: audit.ToolsSeen, Tool: f.s.asTool(), Count: int64(len(found.tools)),
			Detail: fmt.Sprintf("%s, hash %s%s", found.counts(), found.hash(), withheld(found.dropped))})
	} else {
		f.record(changes(before, found)...)
	}
	if before == nil || !slices.Equal(before.dropped, found.dropped) {
		for _, why := range found.dropped[:min(len(found.dropped), maxTold)] {
			f.all.log.Warn("tool withheld", "server", f.s.Name, "tool", why)
		}
	}
}

// maxTold bounds what one listing can write into the record: a server chooses
// how often and how much it changes.
const maxTold = 16

func withheld(dropped []string) string {
	if len(dropped) == 0 {
		return ""
	}
	return fmt.Sprintf("; %d withheld: %s", len(dropped), strings.Join(dropped[:min(len(dropped), maxTold)], "; "))
}

// changes says what differs between two listings of one server.
func changes(before, after *listing) []gateway.Fact {
	var facts []gateway.Fact
	more := 0
	say := func(t gateway.Tool, detail string) {
		if len(facts) == maxTold {
			more++
			return
		}
		facts = append(facts, gateway.Fact{Type: audit.ToolsChanged, Tool: &t, Detail: detail})
	}
	type thing struct {
		sort gateway.Sort
		name string
	}
	old := map[thing]gateway.Tool{}
	for _, t := range before.tools {
		old[thing{t.Sort, t.Name}] = t
	}
	for _, t := range after.tools {
		was, known := old[thing{t.Sort, t.Name}]
		delete(old, thing{t.Sort, t.Name})
		switch {
		case !known:
			say(t, "new")
		case was.Hash != t.Hash:
			say(t, "was "+was.Hash)
		}
	}
	for _, t := range before.tools {
		if gone, ok := old[thing{t.Sort, t.Name}]; ok {
			delete(old, thing{t.Sort, t.Name})
			say(gone, "gone")
		}
	}
	if !slices.Equal(before.dropped, after.dropped) && len(after.dropped) > 0 {
		facts = append(facts, gateway.Fact{Type: audit.ToolsChanged, Tool: nil, Count: int64(len(after.dropped)), Detail: strings.TrimPrefix(withheld(after.dropped), "; ")})
	}
	if more > 0 {
		facts = append(facts, gateway.Fact{Type: audit.ToolsChanged, Count: int64(more), Detail: fmt.Sprintf("%d more changed", more)})
	}
	return facts
}

// record writes facts for each tenant that sees this feed.
func (f *feed) record(facts ...gateway.Fact) {
	for i := range facts {
		if facts[i].Tool == nil {
			facts[i].Tool = f.s.asTool()
		}
	}
	for _, tenant := range f.tenants {
		f.all.record(tenant, facts...)
	}
}
