package console

import (
	"errors"
	"io"
	"net/http"
	"time"

	"toolbroker/gateway"
)

// How often a quiet stream proves that it is alive, and how long one lasts
// before the browser has to ask for a new one.
const (
	streamBeat = 20 * time.Second
	streamLife = 10 * time.Minute
)

// events tells a page that something changed, and nothing else: what changed is
// asked for again, with all its checks. The first message comes at once, for
// what changed between the page and its stream.
func (s *console) events(w http.ResponseWriter, r *http.Request, token gateway.Secret, _ gateway.Operator) {
	if s.streams.Add(1) > maxStreams {
		s.streams.Add(-1)
		http.Error(w, "Too many live pages.", http.StatusServiceUnavailable)
		return
	}
	defer s.streams.Add(-1)
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	send := func(text string) bool {
		// Without a deadline of its own a slow reader would hold us for ever.
		if err := out.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return false
		}
		if _, err := io.WriteString(w, text); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	changes := s.Gateway.Changes(r.Context())
	if !send("retry: 2000\ndata: changed\n\n") {
		return
	}
	beat, end := time.NewTicker(streamBeat), time.NewTimer(streamLife)
	defer beat.Stop()
	defer end.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-end.C:
			return
		case <-beat.C:
			if !send(":\n\n") {
				return
			}
		case _, ok := <-changes:
			if !ok {
				return
			}
			if _, err := s.Gateway.Operator(r.Context(), token); err != nil {
				return // the browser asks again and is sent to log in
			}
			if !send("data: changed\n\n") {
				return
			}
		}
	}
}
