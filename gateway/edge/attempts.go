package edge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"toolbroker/gateway"
)

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
	b := make([]byte, 0, 256)
	for _, part := range [...]string{r.who.Tenant, r.who.ID, r.who.OnBehalfOf, r.who.Task, r.cred.Task, r.cred.Session, idKey(r.id), r.method} {
		b = append(append(strconv.AppendInt(b, int64(len(part)), 10), ':'), part...)
	}
	h.Write(b)
	h.Write(r.params)
	return inHex([sha256.Size]byte(h.Sum(b[:0])))
}

func inHex(sum [sha256.Size]byte) string {
	var out [2 * sha256.Size]byte
	hex.Encode(out[:], sum[:])
	return string(out[:])
}

// A try is one tool call over HTTP on its way, for whoever repeats it. A nil one is of
// what nobody has to know.
type try struct {
	edge        *Edge
	run         gateway.Run
	session, id string      // by which its agent cancels it
	one         gateway.Try // once it is about to be sent
	ended       bool
}

// try is what there is to know of a tool call before it is sent, or nil.
func (e *Edge) try(r request, hr *http.Request) *try {
	if e.Attempts == nil || r.method != gateway.MethodCall {
		return nil
	}
	client, on := hr.Context(), connOf(hr)
	return &try{edge: e, session: r.cred.Session, id: idKey(r.id), run: gateway.Run{
		Tenant: r.who.Tenant, Key: attemptKey(r), Session: sessionKey(r.cred.Session),
		Gone: func(answered bool) bool {
			if answered {
				return on.unread()
			}
			return client.Err() != nil || on.left()
		},
	}}
}

// joins has a call be known of before it is sent.
func (t *try) joins(c *gateway.Call) {
	if t == nil {
		return
	}
	c.Begin = t.begin
	if t.run.Session != "" {
		c.Once = t.run.Key
	}
}

// sessionKey names a session without being it.
func sessionKey(id string) string {
	if id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(id))
	return inHex(sum)
}

// repeated says that a call was not carried out, because it was sent before.
type repeated struct{ first gateway.Attempt }

func (r *repeated) Error() string {
	if r.first.Doubt {
		return "a repetition of a call of which nobody knows what became"
	}
	return "a repetition, answered from the first attempt, " + r.first.Call
}

// begin makes the call known, and refuses it where it is a repetition.
func (t *try) begin() func(context.Context) error {
	t.one = t.edge.Attempts.Begin(t.run)
	return func(ctx context.Context) error {
		first, again, err := t.one.Begun(ctx)
		switch {
		case again && first.Doubt:
			return &gateway.Refusal{Code: gateway.InDoubt, InDoubt: true, Err: &repeated{first},
				Say: "this call was sent before, and it is not known whether it was done; look before you repeat it, and then repeat it under a new id"}
		case again:
			return &gateway.Refusal{Code: gateway.Cancelled, Err: &repeated{first}}
		case err != nil && ctx.Err() != nil:
			t.cancelFirst(ctx)
			return &gateway.Refusal{Code: gateway.Cancelled, Say: "the call was cancelled", Err: context.Cause(ctx)}
		case err != nil:
			return &gateway.Refusal{Code: gateway.Internal, Err: fmt.Errorf("look for an earlier attempt: %w", err),
				Say: "it cannot be found out right now whether this call was sent before, so nothing was done; try again in a moment"}
		}
		return nil
	}
}

// cancelFirst passes on that an agent cancelled a repetition: it means the first one,
// which may be on another replica.
func (t *try) cancelFirst(ctx context.Context) {
	if context.Cause(ctx) != errCancelled {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), frameTime)
	defer cancel()
	if err := t.edge.Sessions.Tell(ctx, gateway.News{Session: t.session, Cancelled: t.id}); err != nil {
		t.edge.Logger.Warn("a cancellation was not passed on", "err", err)
	}
}

// again is the answer to a repetition, which is the first one's.
func (e *Edge) again(r request, err error) (answer, bool) {
	again, ok := errors.AsType[*repeated](err)
	switch {
	case !ok:
		return answer{}, false
	case again.first.Doubt:
		refusal := *refusalOf(err)
		if again.first.Call != "" {
			refusal.CallID = again.first.Call
		}
		return e.answerRefusal(r, &refusal), true
	}
	e.Logger.Info("a repeated call was answered from its first attempt", "call", again.first.Call, "session", r.cred.Session != "")
	return answer{body: again.first.Answer, failed: again.first.Error, status: cmpStatus(&fault{}, r.modern)}, true
}

// end says how a call ended that was about to be sent. Of one that came to nothing
// there is nothing to remember: it can be repeated.
func (t *try) end(how gateway.RunEnd, a answer, did outcome) {
	if t == nil || t.one == nil || t.ended {
		return
	}
	t.ended = true
	kept := gateway.Attempt{Call: did.call, Doubt: true}
	switch {
	case did.done && a.body != nil:
		kept = gateway.Attempt{Call: did.call, Answer: a.body[a.room:], Error: a.failed}
	case !did.done && !did.doubt:
		how = gateway.EndNothing
	}
	t.one.End(how, kept)
}

// written says that the answer is on its way. Whether it arrives its connection says,
// where it can.
func (t *try) written(hr *http.Request, a answer, did outcome) {
	if t == nil || t.one == nil {
		return
	}
	t.end(gateway.EndWritten, a, did)
	on := connOf(hr)
	switch {
	case on != nil && hr.ProtoMajor == 1 && on.watch(t.one):
	case hr.Context().Err() != nil:
		t.one.End(gateway.EndLost, gateway.Attempt{})
	default:
		t.one.End(gateway.EndArrived, gateway.Attempt{})
	}
}

// close is for a call that blew up.
func (t *try) close() { t.end(gateway.EndLost, answer{}, outcome{doubt: true}) }
