package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

const (
	maxAsks   = 64 // requests of a server's during one of ours
	maxAtOnce = 8  // of them, that an agent is asked at the same time
)

// A hearing is what the agent of one call hears and is asked while the call is
// under way. It is over before Forward returns: nothing reaches the stream after.
type hearing struct {
	ctx     context.Context // the call's; what the agent is asked ends with it
	out     gateway.Stream  // nil: nobody listens
	token   string          // of the call's progress, or empty
	asks    []string        // the methods that the server was told it may ask
	era     era             // only in the legacy one a server asks during a call
	session string          // the agent's, or empty
	human   string          // whom the agent acts for, or empty
	clock   *clock          // stands still while the agent is asked; nil: none

	mu      sync.Mutex
	over    bool
	open    map[string]context.CancelCauseFunc // what the agent is asked now, by the server's id
	count   int
	running sync.WaitGroup
	task    atomic.Pointer[coreTask] // where the server runs the call as a task; else nil
}

// enter counts something that uses the stream, unless the call is over.
func (h *hearing) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || h.out == nil {
		return false
	}
	h.running.Add(1)
	return true
}

// end ends what the agent is asked, and returns when nothing uses the stream. What
// the agent is just being told it may still hear, unless it takes long over it.
func (h *hearing) end(stop func()) {
	defer stop()
	h.mu.Lock()
	h.over = true
	for _, cancel := range h.open {
		cancel(nil)
	}
	h.mu.Unlock()
	defer time.AfterFunc(drain, stop).Stop()
	h.running.Wait()
}

// note hands on a notification, if it is one about this call.
func (h *hearing) note(m message) error {
	if m.method == "notifications/progress" && !hasToken(m.params, h.token) || !object(m.params) || depth(m.params) > maxResultDepth || !few(m.params, maxAsked) {
		return nil
	}
	if !h.enter() {
		return nil
	}
	defer h.running.Done()
	return h.out.Notify(h.ctx, m.method, scrub(m.params, "_meta"))
}

// ask answers a request of the server's: a ping by itself, what the agent may be
// asked by the agent, beside the call, and the rest with a no. respond sends the
// answer. An error means that the server asks too much.
func (h *hearing) ask(m message, respond func(context.Context, []byte) error) error {
	h.mu.Lock()
	if h.count++; h.count > maxAsks {
		h.mu.Unlock()
		return unusable("the server asks too much")
	}
	id := string(m.id)
	r := notOurs
	switch {
	case m.method == "ping":
		r = pong
	case h.over || h.out == nil || h.era != legacyEra || !isAsk(m.method) || !readable(m) || h.open[id] != nil: // whether it may, the other side decides
	case len(h.open) >= maxAtOnce:
		r = oneAtATime
	default:
		ctx, cancel := context.WithCancelCause(h.ctx)
		if h.open == nil {
			h.open = map[string]context.CancelCauseFunc{}
		}
		h.open[id] = cancel
		h.clock.hold()
		if h.task.Load() != nil {
			m.params = cut(m.params, "_meta", relatedTask)
		}
		h.running.Go(func() {
			r := put(ctx, h.out.Ask, m)
			why := context.Cause(ctx)
			cancel(nil)
			h.clock.run()
			h.mu.Lock()
			delete(h.open, id)
			h.mu.Unlock()
			switch {
			case why == nil:
				_ = respond(h.ctx, reply(m.id, r)) // what becomes of the call shows whether it came
			case !errors.Is(why, errWithdrawn): // the call is over; its server may wait for the answer all the same
				ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), drain)
				defer cancel()
				_ = respond(ctx, reply(m.id, r))
			}
		})
		h.mu.Unlock()
		return nil
	}
	h.mu.Unlock()
	return respond(h.ctx, reply(m.id, r))
}

// counts counts a question under an id that may be about this call among others, and
// reports whether it can be put to the agent. An error means that the server asks too
// much.
func (h *hearing) counts(id string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count++; h.count > maxAsks {
		return false, unusable("the server asks too much")
	}
	return h.out != nil && h.era == legacyEra && h.open[id] == nil, nil
}

// isAsk reports whether a request of a server's is one that an agent can answer.
func isAsk(method string) bool {
	return method == gateway.MethodElicit || method == gateway.MethodSample || method == gateway.MethodRoots
}

// errWithdrawn is the end of a question for whose answer its server does not wait.
var errWithdrawn = errors.New("the server waits for no answer")

// put puts a server's request to an agent.
func put(ctx context.Context, ask func(context.Context, string, json.RawMessage) (gateway.Result, error), m message) gateway.Result {
	params := m.params
	if params == nil {
		params = json.RawMessage("{}")
	}
	r, err := ask(ctx, m.method, scrub(params, "_meta"))
	switch {
	case errors.Is(err, gateway.ErrCannotAsk):
		return notOurs
	case err != nil:
		return noAnswer
	case r.Error != nil && validFault(r.Error):
		return gateway.Result{Error: scrub(r.Error, "data")}
	case r.Error == nil && object(r.Raw):
		return gateway.Result{Raw: scrub(r.Raw, "_meta")}
	}
	return noAnswer
}

// complete says, beside the call, that the agent's user is done with a page, or calls
// otherwise where that cannot be said there.
func (h *hearing) complete(m message, otherwise func()) {
	if !h.enter() {
		otherwise()
		return
	}
	go func() {
		defer h.running.Done()
		if h.out.Notify(h.ctx, m.method, scrub(m.params, "_meta")) != nil {
			otherwise()
		}
	}()
}

// readable reports whether what a server asks can be put to an agent.
func readable(m message) bool {
	return m.params == nil || object(m.params) && depth(m.params) <= maxResultDepth && few(m.params, maxAsked)
}

// mayAsk lists what a server may ask an agent that declared caps.
func mayAsk(caps json.RawMessage) (methods []string) {
	var body map[string]json.RawMessage
	if len(caps) == 0 || json.Unmarshal(caps, &body) != nil {
		return nil
	}
	for name, method := range map[string]string{"elicitation": gateway.MethodElicit, "sampling": gateway.MethodSample, "roots": gateway.MethodRoots} {
		if jsontext.Value(body[name]).Kind() == '{' {
			methods = append(methods, method)
		}
	}
	return methods
}

// withdraw ends a request that the server takes back, if it is this call's.
func (h *hearing) withdraw(params json.RawMessage) {
	m, _ := memberOf(params, "requestId")
	h.mu.Lock()
	defer h.mu.Unlock()
	if cancel := h.open[string(m.value)]; cancel != nil {
		cancel(errWithdrawn)
	}
}

// A clock ends a call that takes too long. What time an agent takes over a
// question is not the server's.
type clock struct {
	mu    sync.Mutex
	timer *time.Timer
	left  time.Duration
	since time.Time
	held  int
}

// within returns a context that ends after d, and the clock that says so.
func within(ctx context.Context, d time.Duration) (context.Context, *clock, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{left: d, since: time.Now(), timer: time.AfterFunc(d, func() { cancel(context.DeadlineExceeded) })}
	return ctx, c, func() { c.hold(); cancel(nil) } // for good
}

func (c *clock) hold() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held++; c.held == 1 && c.timer.Stop() {
		c.left -= time.Since(c.since)
	}
}

func (c *clock) run() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held--; c.held == 0 {
		c.since = time.Now()
		c.timer.Reset(max(c.left, 0))
	}
}

// over says how a call's context ended.
func over(ctx context.Context) error {
	why := ctx.Err()
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		why = context.DeadlineExceeded
	}
	return fmt.Errorf("%w: %w", errWaited, why)
}

var errWaited = errors.New("waiting for the server")
