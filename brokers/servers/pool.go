package servers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/gateway"
)

const (
	maxLinks   = 1024             // sessions per server, of one tenant three quarters, of one workload a quarter; the idlest makes room
	maxChilds  = 256              // likewise children
	remembered = 10 * time.Minute // how long an ended task or session is refused here
	asks       = time.Minute      // how long a server is asked to end a session of one that ended
)

var (
	errClosed = errors.New("the gateway is shutting down")
	errOver   = errors.New("the task, or the agent's session, has ended")
	errFull   = fmt.Errorf("the server has as many sessions as it, this workload or this tenant may have: %w", gateway.ErrTooMany)
)

// A key is whom a session or a child is for. Nothing is shared across keys, and
// nothing else splits what is one agent's: its calls, subscriptions and log level
// meet one state at the server.
type key struct {
	server, tenant, task, principal, session, lease string
	child                                           bool // as all of its server's are
}

// A life is what links end with: a task, or a session of an agent's.
type life struct{ tenant, task, session string }

func (l life) has(k key) bool {
	if l.session != "" {
		return k.session == l.session
	}
	return k.tenant == l.tenant && k.task == l.task
}

func (k key) lives() [2]life {
	return [2]life{{tenant: k.tenant, task: k.task}, {session: k.session}}
}

// A pool keeps the links that outlive a call: legacy sessions and children.
// All die with the process; a server forgets its sessions by itself.
type pool struct {
	mu     sync.Mutex
	links  map[key]*pooled
	ended  map[life]time.Time
	ending map[life][]*pooled // links of ended ones that are not closed yet
	closed bool
	stale  time.Duration // a session that was idle for longer is asked whether it is still there
	asks   time.Duration

	stopped <-chan struct{} // closed when everything ends
	tidy    func(func())
}

type pooled struct {
	ready chan struct{} // closed when link or err is set
	link  link
	err   error
	users int
	idle  time.Time     // since when nobody uses it
	gone  bool          // out of the pool: close it when it is ready
	shut  chan struct{} // closed when it is closed; nil while nobody closes it for its task or session
	of    key           // once shut is set, as lost is
	lost  bool          // its server did not confirm its end; known when shut is closed
}

// take returns the link for k, and what gives it back. With once the link is
// closed then; else it stays for the next call. Opening is shared, and goes on
// without the caller that asked for it first.
func (p *pool) take(ctx context.Context, k key, once bool, open func(context.Context) (link, error)) (link, func(), error) {
	for range 2 {
		e, err := p.entry(ctx, k, open)
		if err != nil {
			return nil, nil, err
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			p.give(k, e, once)
			return nil, nil, ctx.Err()
		}
		if e.err != nil {
			p.drop(k, e)
			return nil, nil, e.err
		}
		if w, ok := e.link.(*web); ok && p.wasIdle(e) {
			w.check(ctx)
		}
		if !e.link.dead() {
			return e.link, func() { p.give(k, e, once) }, nil
		}
		p.drop(k, e)
	}
	return nil, nil, errors.New("the server ends its sessions as soon as they are open")
}

func (p *pool) entry(ctx context.Context, k key, open func(context.Context) (link, error)) (*pooled, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	for _, l := range k.lives() {
		if _, over := p.ended[l]; over {
			return nil, errOver
		}
	}
	if e := p.links[k]; e != nil {
		e.users++
		return e, nil
	}
	if !p.room(k) {
		return nil, errFull
	}
	e := &pooled{ready: make(chan struct{}), users: 1, idle: time.Now()}
	p.links[k] = e
	p.tidy(func() {
		l, err := open(context.WithoutCancel(ctx))
		p.mu.Lock()
		e.link, e.err = l, err
		gone, shut := e.gone, e.shut
		close(e.ready)
		p.mu.Unlock()
		switch {
		case shut != nil:
			p.seeOff(context.Background(), e)
		case gone && l != nil:
			l.close(context.Background())
		}
	})
	return e, nil
}

// room makes room for one more link to a server. Nobody takes all of it: a workload
// has a share of its tenant's, and a tenant of all, so that whoever parks questions in
// many sessions runs out of its own first.
func (p *pool) room(want key) bool {
	most := maxLinks
	if want.child {
		most = maxChilds
	}
	for _, share := range []struct {
		most int
		of   func(key) bool
	}{
		{most / 4, func(k key) bool { return k.tenant == want.tenant && k.principal == want.principal }},
		{most * 3 / 4, func(k key) bool { return k.tenant == want.tenant }},
		{most, func(key) bool { return true }},
	} {
		if !p.under(share.most, func(k key) bool { return k.server == want.server && share.of(k) }) {
			return false
		}
	}
	return true
}

// under makes room for one more among some links, of which there are so many at most:
// the idlest of them goes.
func (p *pool) under(most int, among func(key) bool) bool {
	n := 0
	var oldest key
	var found *pooled
	for k, e := range p.links {
		if !among(k) {
			continue
		}
		if n++; e.users == 0 && (found == nil || e.idle.Before(found.idle)) {
			oldest, found = k, e
		}
	}
	if n < most {
		return true
	}
	if found != nil {
		p.out(oldest, found)
	}
	return found != nil
}

func (p *pool) wasIdle(e *pooled) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return e.users == 1 && time.Since(e.idle) > p.stale
}

// give notes that a user is done. A link for one call is closed before this
// returns: its credential is given back next.
func (p *pool) give(k key, e *pooled, once bool) {
	p.mu.Lock()
	e.users--
	e.idle = time.Now()
	last := once && e.users == 0 && !e.gone
	if last {
		e.gone = true
		delete(p.links, k)
	}
	p.mu.Unlock()
	if last && isReady(e) && e.link != nil {
		e.link.close(context.Background())
	}
}

// drop forgets a link that is no good.
func (p *pool) drop(k key, e *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.users--
	p.out(k, e)
}

// out takes a link out of the pool and has it closed. p.mu is held.
func (p *pool) out(k key, e *pooled) {
	if e.gone {
		return
	}
	e.gone = true
	if p.links[k] == e {
		delete(p.links, k)
	}
	if isReady(e) && e.link != nil {
		p.tidy(func() { e.link.close(context.Background()) })
	}
}

func isReady(e *pooled) bool { return isClosed(e.ready) }

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// end closes all that a task or a session has here, lets it have nothing more, and
// says what it saw close and what is not closed when ctx ends. That is waited for by
// the next one who asks. Whose it was is the key of one of them, or none.
func (p *pool) end(ctx context.Context, which life) (all gateway.LinkEnds, of key) {
	p.mu.Lock()
	p.ended[which] = time.Now()
	for k, e := range p.links {
		if !which.has(k) {
			continue
		}
		e.gone, e.shut, e.of = true, make(chan struct{}), k
		delete(p.links, k)
		p.ending[which] = append(p.ending[which], e)
		if isReady(e) { // else whoever opens it closes it
			p.tidy(func() { p.seeOff(context.WithoutCancel(ctx), e) })
		}
	}
	wait := p.ending[which]
	for l, others := range p.ending { // a task's end waits for what its sessions left
		for _, e := range others {
			if l != which && which.has(e.of) && !isClosed(e.shut) {
				wait = append(wait, e)
			}
		}
	}
	p.mu.Unlock()
	var open []*pooled
	for _, e := range wait {
		of = e.of
		select {
		case <-e.shut:
		default:
			select {
			case <-e.shut:
			case <-ctx.Done():
				open = append(open, e)
				all.Open = append(all.Open, e.of.server)
				continue
			}
		}
		if e.lost {
			all.Lost = append(all.Lost, e.of.server)
		} else {
			all.Gone = append(all.Gone, e.of.server)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending[which] = open; len(open) == 0 {
		delete(p.ending, which)
	}
	return all, of
}

// of returns the links of a session that are open.
func (p *pool) of(session string) (all []link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.links {
		if k.session == session && isReady(e) && e.link != nil {
			all = append(all, e.link)
		}
	}
	return all
}

// seeOff closes a link of a task or session that ended, again while it is not known to be
// gone, and says how that went.
func (p *pool) seeOff(ctx context.Context, e *pooled) {
	defer close(e.shut)
	if e.link == nil {
		return
	}
	enough := time.After(p.asks)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := e.link.close(ctx)
		if err == nil {
			return
		}
		if e.lost = errors.Is(err, errKept); e.lost {
			return
		}
		select {
		case <-time.After(wait):
			continue
		case <-enough:
		case <-p.stopped:
		}
		e.lost = true
		return
	}
}

func (p *pool) close(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.closeWhere(ctx, func(key) bool { return true })
}

// closeWhere closes links, all at once, and returns when they are closed or
// ctx ends.
func (p *pool) closeWhere(ctx context.Context, which func(key) bool) {
	var wait []*pooled
	p.mu.Lock()
	for k, e := range p.links {
		if which(k) {
			e.gone = true
			delete(p.links, k)
			wait = append(wait, e)
		}
	}
	p.mu.Unlock()
	done := make(chan struct{})
	var all sync.WaitGroup
	for _, e := range wait {
		all.Go(func() {
			if isReady(e) && e.link != nil { // else whoever opens it closes it
				e.link.close(ctx)
			}
		})
	}
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// sweep closes what nobody used for a while.
func (p *pool) sweep(idle time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.links {
		if e.users == 0 && time.Since(e.idle) > idle {
			p.out(k, e)
		}
	}
	for l, at := range p.ended {
		if time.Since(at) > remembered {
			delete(p.ended, l)
		}
	}
}
