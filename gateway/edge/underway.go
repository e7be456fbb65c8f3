package edge

import (
	"context"
	"sync"
)

// underway is what this replica is doing for each legacy session: its calls, so
// that the session can cancel them, and its one stream of notices. The zero
// value is ready. A session id is only ever used here after the gateway has
// said that it is the caller's.
type underway struct {
	mu       sync.Mutex
	sessions map[string]*session
}

type session struct {
	calls  map[*task]struct{}
	stream *task
}

type task struct {
	id     string // of a call
	cancel context.CancelCauseFunc
	back   *reply // of a call whose stream can take a question
}

// call remembers how to cancel a call, and its way back if it has one, until done
// is called. Calls with one id are one call and its repetitions, and are cancelled
// together.
func (u *underway) call(sid, id string, cancel context.CancelCauseFunc, back *reply) (done func()) {
	t := &task{id, cancel, back}
	u.change(sid, func(s *session) { s.calls[t] = struct{}{} })
	return func() { u.change(sid, func(s *session) { delete(s.calls, t) }) }
}

// stream makes this the session's stream, and ends the one before: a client
// that reconnects is often back before we notice that it was gone.
func (u *underway) stream(sid string, cancel context.CancelCauseFunc) (done func()) {
	t := &task{cancel: cancel}
	u.change(sid, func(s *session) {
		if s.stream != nil {
			s.stream.cancel(errReplaced)
		}
		s.stream = t
	})
	return func() {
		u.change(sid, func(s *session) {
			if s.stream == t {
				s.stream = nil
			}
		})
	}
}

// backs returns the session's calls that a question can go out with.
func (u *underway) backs(sid string) (all []*reply) {
	u.change(sid, func(s *session) {
		for t := range s.calls {
			if t.back != nil {
				all = append(all, t.back)
			}
		}
	})
	return all
}

// cancel ends the session's calls with that id, and reports whether it is here.
func (u *underway) cancel(sid, id string) (here bool) {
	u.change(sid, func(s *session) {
		for t := range s.calls {
			if t.id == id {
				here = true
				t.cancel(errCancelled)
			}
		}
	})
	return here
}

// end ends all that is under way for the session.
func (u *underway) end(sid string) {
	u.change(sid, func(s *session) {
		for t := range s.calls {
			t.cancel(errSessionEnd)
		}
		if s.stream != nil {
			s.stream.cancel(errSessionEnd)
		}
	})
}

func (u *underway) change(sid string, f func(*session)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.sessions[sid]
	if s == nil {
		s = &session{calls: map[*task]struct{}{}}
	}
	f(s)
	if len(s.calls) == 0 && s.stream == nil {
		delete(u.sessions, sid)
		return
	}
	if u.sessions == nil {
		u.sessions = map[string]*session{}
	}
	u.sessions[sid] = s
}
