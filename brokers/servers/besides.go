package servers

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"toolbroker/gateway"
)

const (
	maxBeside  = 256              // log messages and questions beside all calls of one link, in a minute
	maxUnheard = 64               // log messages that an agent has not heard yet
	besideTime = 30 * time.Second // for an agent to be found and to answer
	firstTime  = 2 * time.Second  // that the first call waits for what the server asks first
)

// besides is what a server and the agent of a session say to each other beside all
// calls: log messages, the agent's roots, and nothing else.
type besides struct {
	agent atomic.Pointer[gateway.Stream] // the way to the agent; nil: there is none
	asks  []string                       // what the server was told that it can ask; set before the link is shared

	// These are guarded as the rest of the desk is.
	said    int // in the minute that began at minute
	minute  time.Time
	unheard []message
	telling bool                               // somebody hands them out
	open    map[string]context.CancelCauseFunc // what the agent is asked now beside single calls, by the server's id
	quiet   chan struct{}                      // closed when that is nothing any more; nil while nobody waits
}

// serves says for whom a link is, before it is opened: some servers ask as soon as
// they are told that they may.
func (d *desk) serves(who client) {
	d.besides.asks = mayAsk(who.caps)
	if who.agent != nil {
		d.agent.Store(&who.agent)
	}
}

// speaksBeside reports whether the server may have something to say to the agent
// beside all calls.
func (d *desk) speaksBeside() bool {
	return d.agent.Load() != nil && (d.caps.logs() || slices.Contains(d.besides.asks, gateway.MethodRoots))
}

// forAgent takes what the server says beside all calls and is for the session's
// agent: a question for its roots, whatever call is under way, because over a
// stream that calls share it says of none that it is about it and may outlast them;
// and a log message that is of no call.
func (d *desk) forAgent(m message, respond func(context.Context, []byte) error) bool {
	agent := d.agent.Load()
	switch {
	case agent == nil:
		return false
	case m.method == gateway.MethodRoots && !m.notification():
		d.askAgent(*agent, m, respond)
		return true
	case m.method == "notifications/message":
		if len(hearers(d.about(m))) > 0 {
			return false
		}
		d.tellAgent(*agent, m)
		return true
	}
	return false
}

// counted reports whether there is room for one more thing in this minute. d.mu is
// held.
func (d *desk) counted() bool {
	if now := time.Now(); now.Sub(d.minute) > time.Minute {
		d.said, d.minute = 0, now
	}
	d.said++
	return d.said <= maxBeside
}

// tellAgent has a log message told, after those before it. Of too many some are
// lost.
func (d *desk) tellAgent(agent gateway.Stream, m message) {
	if !object(m.params) || depth(m.params) > maxResultDepth {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.unheard) >= maxUnheard || !d.counted() {
		return
	}
	d.unheard = append(d.unheard, m)
	if d.telling {
		return
	}
	d.telling = true
	d.s.tidy(func() {
		for {
			d.mu.Lock()
			if len(d.unheard) == 0 {
				d.telling = false
				d.mu.Unlock()
				return
			}
			m := d.unheard[0]
			d.unheard = d.unheard[1:]
			d.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), goodbye)
			_ = agent.Notify(ctx, m.method, scrub(m.params, "_meta"))
			cancel()
		}
	})
}

// askAgent puts a question to the agent, beside all that goes on, and sends the
// server the answer.
func (d *desk) askAgent(agent gateway.Stream, m message, respond func(context.Context, []byte) error) {
	if !slices.Contains(d.besides.asks, m.method) {
		d.answer(m, notOurs, respond)
		return
	}
	ctx, over := context.WithTimeout(context.Background(), besideTime)
	d.question(ctx, over, agent.Ask, m, respond)
}

// question has something put to an agent, beside all that goes on, until ctx ends, and
// sends the server the answer. over is called when it is.
func (d *desk) question(ctx context.Context, over func(), ask func(context.Context, string, json.RawMessage) (gateway.Result, error), m message, respond func(context.Context, []byte) error) {
	id := string(m.id)
	r := notOurs
	d.mu.Lock()
	switch {
	case !readable(m) || d.open[id] != nil:
	case len(d.open) >= maxAtOnce || !d.counted():
		r = oneAtATime
	default:
		ctx, cancel := context.WithCancelCause(ctx)
		if d.open == nil {
			d.open = map[string]context.CancelCauseFunc{}
		}
		d.open[id] = cancel
		d.mu.Unlock()
		done := make(chan struct{})
		go func() {
			select {
			case <-d.broken:
				cancel(errWithdrawn)
			case <-done:
			}
		}()
		d.s.tidy(func() {
			defer close(done)
			defer over()
			r := put(ctx, ask, m)
			if !errors.Is(context.Cause(ctx), errWithdrawn) {
				d.answer(m, r, respond)
			}
			cancel(nil)
			d.mu.Lock()
			defer d.mu.Unlock()
			if delete(d.open, id); len(d.open) == 0 && d.quiet != nil {
				close(d.quiet)
				d.quiet = nil
			}
		})
		return
	}
	d.mu.Unlock()
	over()
	d.answer(m, r, respond)
}

// asksFirst returns when the server has the answers to what it asked as soon as it
// heard that it may, or they take too long: some work in the agent's roots, and
// nowhere before they know them. It answers a ping after it asked.
func (d *desk) asksFirst(ctx context.Context, l link) {
	if _, alone := l.(*web); alone || d.agent.Load() == nil || !slices.Contains(d.besides.asks, gateway.MethodRoots) {
		return // over HTTP it asks where nobody listens yet
	}
	ctx, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	ping := func() { _, _ = l.do(ctx, call{method: "ping"}) }
	ping()
	d.mu.Lock()
	if len(d.open) == 0 {
		d.mu.Unlock()
		return
	}
	quiet := make(chan struct{})
	d.quiet = quiet
	d.mu.Unlock()
	select {
	case <-quiet:
		ping() // it has read the answers
	case <-d.broken:
	case <-ctx.Done():
	}
}

func (d *desk) answer(m message, r gateway.Result, respond func(context.Context, []byte) error) {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_ = respond(ctx, reply(m.id, r))
}

// withdraw ends a question that the server takes back.
func (d *desk) withdraw(params json.RawMessage) {
	m, _ := memberOf(params, "requestId")
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.open[string(m.value)]; cancel != nil {
		cancel(errWithdrawn)
	}
}

// hears tells the server what the agent said: which log messages it wants, or that
// its roots are others.
func (d *desk) hears(ctx context.Context, l link, n gateway.News) {
	if l.speaks() != legacyEra {
		return
	}
	if n.Level != "" {
		_ = d.logs(ctx, l, n.Level) // the next call says it again
	}
	if n.Roots && slices.Contains(d.besides.asks, gateway.MethodRoots) {
		_ = l.note(ctx, "notifications/roots/list_changed", nil)
	}
}
