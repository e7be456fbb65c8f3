package edge

import (
	"context"
	"encoding/json"

	"toolbroker/gateway"
)

// maxNotes is how many messages of servers a stream that does not keep up holds; of
// more some are lost.
const maxNotes = 64

// pass takes what a server has for a session beside all calls: to the session's
// stream of notices where that is here, and a question else to a call that is under
// way. Another replica may have a stream as well; of a question one of them is the
// first.
func (e *Edge) pass(session string, n gateway.Note) {
	if e.feeds.note(session, n) || n.Ask == "" {
		return
	}
	for _, back := range e.local.backs(session) {
		go back.pass(n)
	}
}

// note hands a server's message to the session's stream, if it is here.
func (f *feeds) note(session string, n gateway.Note) (here bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for one := range f.all {
		if one.cred.Session != session || session == "" {
			continue
		}
		here = true
		one.mark(func() {
			if len(one.notes) < maxNotes || n.Ask != "" && len(one.notes) < 2*maxNotes {
				one.notes = append(one.notes, n)
			}
		})
	}
	return here
}

// pass sends one on the stream; its error is the stream's.
func (f *feed) pass(ctx context.Context, n gateway.Note) error {
	msg, ok := f.edge.asNote(ctx, f.cred, f.can, n)
	if !ok || n.Ask != "" && !f.edge.first(ctx, f.cred.Session, n) {
		return nil
	}
	return f.send(msg)
}

// pass puts a question to the agent on the stream of a call of its session's.
func (r *reply) pass(n gateway.Note) {
	ctx, cancel := context.WithTimeout(r.edge.calls, frameTime)
	defer cancel()
	msg, ok := r.edge.asNote(ctx, r.request.cred, r.request.can, n)
	if !ok {
		return
	}
	r.mu.Lock() // so that the answer waits for whether the question goes before it
	defer r.mu.Unlock()
	if !r.done && r.edge.first(ctx, r.request.cred.Session, n) {
		_ = r.push(msg) // who is gone answers nothing
	}
}

// first reports whether nobody else puts the question to the agent.
func (e *Edge) first(ctx context.Context, session string, n gateway.Note) bool {
	return e.Sessions.Answer(ctx, session, n.Taken(), gateway.Result{Raw: json.RawMessage("{}")}) == nil
}

// asNote is a server's message as the agent gets it, if it gets it. The gateway
// decides each that is no question; those it decided.
func (e *Edge) asNote(ctx context.Context, cred gateway.Credential, can ability, n gateway.Note) ([]byte, bool) {
	switch {
	case n.Ask != "":
		if !isOurAsk(n.Ask) || !can.may(n.Method, n.Params) {
			return nil, false
		}
		msg, err := askMessage(n.Ask, n.Method, n.Params)
		return msg, err == nil
	case n.Method == "notifications/cancelled": // of a question
		var in struct {
			ID string `json:"requestId"`
		}
		if json.Unmarshal(n.Params, &in) != nil || !isOurAsk(in.ID) {
			return nil, false
		}
		return askCancelled(in.ID), true
	case n.Method == "notifications/message":
		s, err := e.Sessions.Session(ctx, cred.Session)
		if err != nil {
			return nil, false
		}
		msg := request{level: s.LogLevel}.notice(&progress{}, n.Method, n.Params)
		return msg, msg != nil && e.Gateway.Hears(ctx, cred, n)
	}
	return nil, false
}
