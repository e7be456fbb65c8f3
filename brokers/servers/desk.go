package servers

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"toolbroker/gateway"
)

// A desk is where what a server sends over one link is given to whom it is for:
// answers to calls by their ids, and the rest to the call that it is about.
type desk struct {
	s       *server
	version string       // negotiated, in the legacy era
	caps    capabilities // what the server said that it can do; in the legacy era

	mu      sync.Mutex
	waiting map[int64]*waiter
	first   int64 // the lowest id that was given out, and the highest
	last    int64
	noise   int64 // bytes that answered none, since the last request and in the last minute
	since   time.Time
	waste   int64 // likewise bytes of messages that were too long to be kept
	strays  int   // requests of the server's that belong to no call
	topics  map[string]map[int64]func()
	orders  chan struct{}             // holds one: subscribing and logging levels change one at a time
	level   string                    // of log messages, as the server was last told
	visits  map[string]string         // elicitations by URL that the server may say are complete, and the sessions that they were put to
	changes atomic.Int64              // how often it said that its lists changed
	tools   atomic.Pointer[toolsSaid] // that its process defines
	besides                           // all calls

	once   sync.Once
	broken chan struct{} // closed when no call can be answered any more
	why    error         // set before broken is closed
}

type waiter struct {
	call   call
	report chan message // notifications, for an agent that may be slower than the server
	answer chan message
}

func newDesk(s *server) *desk {
	return &desk{s: s, waiting: map[int64]*waiter{}, topics: map[string]map[int64]func(){}, orders: make(chan struct{}, 1), broken: make(chan struct{})}
}

func (d *desk) at() *desk { return d }

func (d *desk) dead() bool {
	select {
	case <-d.broken:
		return true
	default:
		return false
	}
}

// fail notes that nothing more comes, and reports whether that is new.
func (d *desk) fail(why error) (first bool) {
	d.once.Do(func() {
		d.why, first = why, true
		close(d.broken)
	})
	return first
}

// join gives a call its id and place; leave takes it out. With shared, what it is
// told and answered comes over a link that all calls share.
func (d *desk) join(c call, shared bool) (id int64, w *waiter) {
	w = &waiter{call: c}
	if shared {
		w.answer = make(chan message, 1)
	}
	if shared && c.hears != nil {
		w.report = make(chan message, maxReports)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id = d.s.ids.Add(1)
	if d.first == 0 {
		d.first = id
	}
	d.waiting[id], d.last, d.noise = w, id, 0
	return id, w
}

func (d *desk) leave(id int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.waiting, id)
}

// await waits for a call's answer, and hands on what is told meanwhile. failed
// turns the reason of a failure into the call's error; gone tells the server that
// nobody waits any more.
func (d *desk) await(ctx context.Context, id int64, w *waiter, failed func(error) error, gone func(id int64)) (message, error) {
	for {
		select {
		case m := <-w.report:
			if err := w.call.hears.note(m); err != nil {
				gone(id)
				return message{}, err
			}
		case m := <-w.answer:
			return w.answered(m)
		case <-d.broken:
			select {
			case m := <-w.answer: // it was the last thing the server said
				return w.answered(m)
			default:
			}
			return message{}, failed(d.why)
		case <-ctx.Done():
			err := failed(over(ctx))
			if !errors.Is(err, gateway.ErrNotSent) {
				gone(id)
			}
			return message{}, err
		}
	}
}

func (w *waiter) answered(m message) (message, error) {
	err := w.catchUp()
	if err == nil && m.tooLong {
		err = errTooBig
	}
	return m, err
}

// catchUp hands on what was told before the answer.
func (w *waiter) catchUp() error {
	for {
		select {
		case m := <-w.report:
			if err := w.call.hears.note(m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// take deals with a message that came over a link that all calls share; size is
// how many bytes it took.
func (d *desk) take(m message, size int, respond func(context.Context, []byte) error) error {
	if m.response() {
		return d.deliver(m, size)
	}
	if d.forAgent(m, respond) {
		return d.ignore(size)
	}
	all := d.about(m)
	if m.method == "notifications/progress" || m.method == "notifications/message" {
		for _, w := range hearers(all) {
			select {
			case w.report <- m:
			default: // its agent does not keep up; what it is told may be lost
			}
		}
		return d.ignore(size)
	}
	if err := d.besideCalls(m, all, respond); err != nil {
		return err
	}
	return d.ignore(size)
}

func (d *desk) deliver(m message, size int) error {
	id := numberOf(m.id)
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.waiting[id]
	if w == nil && (id < d.first || id > d.last || d.first == 0) {
		return errUnasked
	}
	if w == nil {
		return d.ignored(size) // its caller is gone
	}
	delete(d.waiting, id)
	w.answer <- m
	return nil
}

// aside deals with what a server says beside its answers and is not for an agent
// to hear. h is the call that it belongs to, or nil.
func (d *desk) aside(m message, h *hearing, respond func(context.Context, []byte) error) error {
	switch {
	case m.method == "notifications/cancelled":
		if h != nil {
			h.withdraw(m.params)
		}
		d.withdraw(m.params)
	case m.method == "notifications/resources/updated":
		d.updated(m.params)
	case m.method == taskStatus:
		if h != nil {
			h.hear(m)
		}
	case m.method == elicitationComplete:
		d.complete(m, h)
	case m.notification():
		if changed(m.method) {
			d.changes.Add(1)
		}
		d.s.heard(m.method)
	case h != nil:
		if m.method == gateway.MethodElicit {
			d.sends(h.session, m.params)
		}
		return h.ask(m, respond)
	default:
		r := pong
		if m.method != "ping" {
			r = notOurs
			d.mu.Lock()
			d.strays++
			strays := d.strays
			d.mu.Unlock()
			if strays > maxAsks {
				return unusable("the server asks too much")
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		_ = respond(ctx, reply(m.id, r))
	}
	return nil
}

// about finds the calls that a message may be about which came beside all calls: the
// one that it names, else those under way, the newest first.
func (d *desk) about(m message) (all []*waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(d.waiting))) {
		w := d.waiting[id]
		h := w.call.hears
		if h == nil {
			continue
		}
		switch {
		case h.concerns(m):
			return []*waiter{w}
		case m.method == "notifications/progress":
			if hasToken(m.params, h.token) {
				return []*waiter{w}
			}
		case m.method == "notifications/cancelled":
			if h.asked(m.params) {
				return []*waiter{w}
			}
		case !slices.ContainsFunc(all, func(o *waiter) bool { return o.call.hears == h }): // a call that is a task at its server is there twice
			all = append(all, w)
		}
	}
	return all
}

// hearers are those whose agents hear a log message that may be about any of these
// calls. An agent of a session hears it once. Agents without one share a link only
// where they are one workload on one task, which may make each of the calls, so that
// each hears it; but where the calls are for several humans, nobody does.
func hearers(all []*waiter) (some []*waiter) {
	for _, w := range all {
		h := w.call.hears
		switch {
		case h.session != all[0].call.hears.session || h.human != all[0].call.hears.human:
			return nil
		case h.out != nil && (h.session == "" || len(some) == 0):
			some = append(some, w)
		}
	}
	return some
}

// besideCalls deals with what came beside all calls and may be about any of these.
func (d *desk) besideCalls(m message, all []*waiter, respond func(context.Context, []byte) error) error {
	switch {
	case len(all) == 0:
		return d.aside(m, nil, respond)
	case len(all) > 1 && isAsk(m.method) && !m.notification():
		return d.askFor(all, m, respond)
	}
	return d.aside(m, all[0].call.hears, respond)
}

// askFor puts a question of which its server does not say for which of several calls it
// is: it is their session's, until it is answered or all of them are over.
func (d *desk) askFor(all []*waiter, m message, respond func(context.Context, []byte) error) error {
	var calls []*hearing
	var streams []gateway.Stream
	for _, w := range all {
		h := w.call.hears
		calls, streams = append(calls, h), append(streams, h.out)
		if h.task.Load() != nil {
			m.params = cut(m.params, "_meta", relatedTask)
		}
		ok, err := h.counts(string(m.id))
		if err != nil {
			return err
		}
		if !ok {
			d.answer(m, notOurs, respond)
			return nil
		}
	}
	joint, ok := streams[0].(gateway.Joint)
	if !ok {
		d.answer(m, notOurs, respond)
		return nil
	}
	if m.method == gateway.MethodElicit {
		d.sends(calls[0].session, m.params)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var left atomic.Int64
	left.Store(int64(len(calls)))
	for _, h := range calls {
		h.clock.hold()
		context.AfterFunc(h.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	over := func() {
		cancel()
		for _, h := range calls {
			h.clock.run()
		}
	}
	d.question(ctx, over, func(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error) {
		return joint.AskFor(ctx, streams, method, params)
	}, m, respond)
	return nil
}

// asked reports whether the agent is being asked what a cancellation names.
func (h *hearing) asked(params json.RawMessage) bool {
	m, ok := memberOf(params, "requestId")
	h.mu.Lock()
	defer h.mu.Unlock()
	return ok && h.open[string(m.value)] != nil
}

func (d *desk) ignore(size int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ignored(size)
}

// ignored counts what answers nobody, so that a flood has an end. What a server says
// of its own accord over days is none.
func (d *desk) ignored(size int) error {
	if now := time.Now(); now.Sub(d.since) > time.Minute {
		d.noise, d.waste, d.since = 0, 0, now
	}
	if d.noise += int64(size) + 64; d.noise > d.s.MaxResponse {
		return errNoise
	}
	return nil
}

// order runs f while nothing else changes what the server was told.
func (d *desk) order(ctx context.Context, f func() error) error {
	select {
	case d.orders <- struct{}{}:
	case <-ctx.Done():
		return over(ctx)
	}
	defer func() { <-d.orders }()
	return f()
}

// logs tells a legacy server which log messages the agent of this session wants.
func (d *desk) logs(ctx context.Context, l link, level string) error {
	if !validLevel(level) || !d.caps.logs() || l.speaks() != legacyEra {
		return nil
	}
	return d.order(ctx, func() error {
		if d.level == level {
			return nil
		}
		m, err := l.do(ctx, call{method: "logging/setLevel", params: json.RawMessage(`{"level":"` + level + `"}`)})
		if err == nil && m.fault == nil {
			d.level = level
		}
		return err
	})
}

// hear calls f whenever the server says that a resource was updated; it returns
// what ends that, and reports whether somebody else still listens.
func (d *desk) hear(uri string, f func()) (stop func() (others bool)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.s.ids.Add(1)
	if d.topics[uri] == nil {
		d.topics[uri] = map[int64]func(){}
	}
	d.topics[uri][id] = f
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.topics[uri], id); len(d.topics[uri]) > 0 {
			return true
		}
		delete(d.topics, uri)
		return false
	}
}

// updated tells who follows the resource that a notification names, or one that it
// is a part of.
func (d *desk) updated(params json.RawMessage) {
	uri := textOf(params, "uri")
	d.mu.Lock()
	var tell []func()
	for topic, all := range d.topics {
		if uri == "" || topic != uri && !strings.HasPrefix(uri, strings.TrimSuffix(topic, "/")+"/") {
			continue
		}
		for _, f := range all {
			tell = append(tell, f)
		}
	}
	d.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

const (
	elicitationComplete = "notifications/elicitation/complete"
	requiresElicitation = -32042 // of 2025-11-25: the call needs pages to be opened first
	maxVisits           = 64     // of one link, whose ends are waited for
)

// sends remembers that the server sends a session's user to a page; whether that is
// let through others say.
func (d *desk) sends(session string, elicitation json.RawMessage) {
	id := textOf(elicitation, "elicitationId")
	if session == "" || id == "" || textOf(elicitation, "mode") != "url" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.visits == nil {
		d.visits = map[string]string{}
	}
	if len(d.visits) >= maxVisits {
		for other := range d.visits {
			delete(d.visits, other)
			break
		}
	}
	d.visits[id] = session
}

// requires is sends for an error that lists such pages.
func (d *desk) requires(session string, fault json.RawMessage) {
	var body struct {
		Data struct {
			Elicitations []json.RawMessage `json:"elicitations"`
		} `json:"data"`
	}
	if faultCode(fault) != requiresElicitation || json.Unmarshal(fault, &body) != nil {
		return
	}
	for _, e := range body.Data.Elicitations {
		d.sends(session, e)
	}
}

// complete hands on, once, that somebody is done with a page that this server sent
// them to: on the stream of the call under way, h, or beside all. Any other is
// dropped.
func (d *desk) complete(m message, h *hearing) {
	id := textOf(m.params, "elicitationId")
	d.mu.Lock()
	session := d.visits[id]
	delete(d.visits, id)
	d.mu.Unlock()
	if session == "" {
		return
	}
	beside := func() {
		if d.s.completed != nil {
			d.s.completed(session, id)
		}
	}
	if h == nil || h.session != session {
		beside()
		return
	}
	h.complete(m, beside)
}

// missed tells everyone who follows something: what was said meanwhile is lost.
func (d *desk) missed() {
	d.mu.Lock()
	var tell []func()
	for _, all := range d.topics {
		for _, f := range all {
			tell = append(tell, f)
		}
	}
	d.mu.Unlock()
	for _, f := range tell {
		f()
	}
}
