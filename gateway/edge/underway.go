package edge

import (
	"context"
	"slices"
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
	calls  map[string][]*task // by id; more than one where a call was repeated
	backs  map[*reply]bool    // calls whose streams can take a question
	stream *task
}

type task struct{ cancel context.CancelCauseFunc }

// call remembers how to cancel a call until done is called. Calls with one id are
// one call and its repetitions, and are cancelled together.
func (u *underway) call(sid, id string, cancel context.CancelCauseFunc) (done func()) {
	t := &task{cancel}
	u.change(sid, func(s *session) { s.calls[id] = append(s.calls[id], t) })
	return func() {
		u.change(sid, func(s *session) {
			if s.calls[id] = slices.DeleteFunc(s.calls[id], func(other *task) bool { return other == t }); len(s.calls[id]) == 0 {
				delete(s.calls, id)
			}
		})
	}
}

// stream makes this the session's stream, and ends the one before: a client
// that reconnects is often back before we notice that it was gone.
func (u *underway) stream(sid string, cancel context.CancelCauseFunc) (done func()) {
	t := &task{cancel}
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

// back remembers a call's way back until done is called.
func (u *underway) back(sid string, r *reply) (done func()) {
	u.change(sid, func(s *session) { s.backs[r] = true })
	return func() { u.change(sid, func(s *session) { delete(s.backs, r) }) }
}

// backs returns the session's calls that a question can go out with.
func (u *underway) backs(sid string) (all []*reply) {
	u.change(sid, func(s *session) {
		for r := range s.backs {
			all = append(all, r)
		}
	})
	return all
}

// cancel ends the session's calls with that id, and reports whether it is here.
func (u *underway) cancel(sid, id string) (here bool) {
	u.change(sid, func(s *session) {
		for _, t := range s.calls[id] {
			here = true
			t.cancel(errCancelled)
		}
	})
	return here
}

// end ends all that is under way for the session.
func (u *underway) end(sid string) {
	u.change(sid, func(s *session) {
		for _, all := range s.calls {
			for _, t := range all {
				t.cancel(errSessionEnd)
			}
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
		s = &session{calls: map[string][]*task{}, backs: map[*reply]bool{}}
	}
	f(s)
	if len(s.calls) == 0 && len(s.backs) == 0 && s.stream == nil {
		delete(u.sessions, sid)
		return
	}
	if u.sessions == nil {
		u.sessions = map[string]*session{}
	}
	u.sessions[sid] = s
}
