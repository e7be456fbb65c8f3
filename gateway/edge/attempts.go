package edge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"toolbroker/gateway"
)

// maxKept is how large an answer can be that is kept for a client that went away.
// What came of a larger one is not known to it either.
const maxKept = 256 << 10

// A try is a tool call under way on this replica, by what a repetition of it would
// be known by.
type try struct {
	key     string
	tenant  string
	session string
	client  context.Context // ends when its client is gone
	over    chan struct{}
}

// tries are the tool calls that are under way here. The zero value is ready.
type tries struct {
	mu sync.Mutex
	m  map[string][]*try
}

// An outcome is what came of a call, as far as its agent must know before it
// repeats it.
type outcome struct {
	done  bool // it was carried out, and there is an answer
	doubt bool // it may have been
	call  string
}

// callID is the id of a call that was refused.
func callID(err error) string {
	if r, ok := errors.AsType[*gateway.Refusal](err); ok {
		return r.CallID
	}
	return ""
}

// attemptKey is the same for a tool call and for what its client sends if the
// connection broke before the answer: the same principal on the same task, with the
// same JSON-RPC id and the same bytes.
func attemptKey(r request) string {
	h := sha256.New()
	for _, part := range []string{r.who.Tenant, r.who.ID, r.who.OnBehalfOf, r.who.Task, r.cred.Task, r.cred.Session, idKey(r.id), r.method} {
		h.Write(append(strconv.AppendInt(nil, int64(len(part)), 10), ':'))
		h.Write([]byte(part))
	}
	h.Write(r.params)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// begin lets a tool call start, unless it is a repetition: then it returns what came
// of the first one. Of two equal calls at once, the second waits where it must be a
// repetition: in one session an id is used once, and a client that is gone does
// not answer to its id any more. Anything else is two clients who count alike.
func (e *Edge) begin(ctx context.Context, r request, client context.Context) (*try, answer, error) {
	if e.Attempts == nil || r.method != gateway.MethodCall {
		return nil, answer{}, nil
	}
	t := &try{key: attemptKey(r), tenant: r.who.Tenant, session: r.cred.Session, client: client, over: make(chan struct{})}
	for {
		before := e.tries.begin(t)
		if before == nil {
			break
		}
		select {
		case <-before.over:
		case <-ctx.Done():
			return nil, answer{}, &gateway.Refusal{Code: gateway.Cancelled, Say: "the call was cancelled", Err: context.Cause(ctx)}
		}
	}
	a, again, err := e.Attempts.Broken(ctx, t.tenant, t.key)
	if err == nil && !again {
		return t, answer{}, nil
	}
	e.end(t)
	if err != nil {
		return nil, answer{}, &gateway.Refusal{Code: gateway.Internal, Err: fmt.Errorf("look for an earlier attempt: %w", err)}
	}
	// What it may read, it may read while it may still act.
	if _, _, err := e.Gateway.Admit(ctx, r.cred); err != nil {
		out, err := e.refused(r, err)
		return nil, out, err
	}
	if a.Doubt {
		return nil, e.answerRefusal(r, &gateway.Refusal{Code: gateway.InDoubt, CallID: a.Call, InDoubt: true,
			Say: "this call was sent before, and it is not known whether it was done; look before you repeat it, and then repeat it under a new id"}), nil
	}
	e.Logger.Info("a repeated call was answered from its first attempt", "session", t.session != "")
	return nil, answer{body: a.Answer, failed: a.Error, status: cmpStatus(&fault{}, r.modern)}, nil
}

// begin adds t, or returns the call that t must wait for.
func (t *tries) begin(one *try) (before *try) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, other := range t.m[one.key] {
		if other.client.Err() != nil || other.session == one.session && one.session != "" {
			return other
		}
	}
	if t.m == nil {
		t.m = map[string][]*try{}
	}
	t.m[one.key] = append(t.m[one.key], one)
	return nil
}

// end lets those go on who wait for a call.
func (e *Edge) end(t *try) {
	if t == nil {
		return
	}
	e.tries.mu.Lock()
	defer e.tries.mu.Unlock()
	left := slices.DeleteFunc(e.tries.m[t.key], func(other *try) bool { return other == t })
	if len(left) == 0 {
		delete(e.tries.m, t.key)
	} else {
		e.tries.m[t.key] = left
	}
	close(t.over)
}

// broke remembers what came of a call whose client did not get to know. Of one that
// came to nothing there is nothing to remember: it can be repeated.
func (e *Edge) broke(ctx context.Context, t *try, a answer, did outcome) {
	if t == nil || !did.done && !did.doubt {
		return
	}
	kept := gateway.Attempt{Call: did.call, Doubt: true}
	if did.done && len(a.body) <= maxKept {
		kept = gateway.Attempt{Call: did.call, Answer: a.body, Error: a.failed}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), frameTime)
	defer cancel()
	if err := e.Attempts.Broke(ctx, t.tenant, t.key, kept); err != nil {
		e.Logger.Error("a call whose answer did not arrive was not remembered; its client may run it twice", "call", did.call, "err", err)
	}
}
