package servers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

var (
	errNotOffered = errors.New("the server offers no notifications")
	errNoMore     = errors.New("the server sends no more notifications")
)

// attend opens the stream beside all calls of a legacy session, once, and keeps it
// open. In the modern era there is none.
func (w *web) attend(ctx context.Context) error {
	if w.modern {
		return nil
	}
	w.opens.Do(func() {
		w.s.tidy(w.keep)
		time.AfterFunc(standing, w.stood) // some servers say nothing before they have something to say
	})
	select {
	case <-w.stands:
	case <-ctx.Done():
		return over(ctx)
	}
	return nil
}

// keep keeps that stream open for as long as the session lasts. A server that has
// none is not asked again.
func (w *web) keep() {
	defer w.stood()
	e := &events{limit: w.s.MaxResponse, every: time.Minute}
	for n := 0; w.life.Err() == nil && !w.gone.Load(); n++ {
		resp, err := w.get(w.life, e.last)
		w.stood()
		if errors.Is(err, errNotOffered) {
			break
		}
		if err == nil {
			if n > 0 && e.last == "" {
				w.missed()
			}
			_ = e.read(resp.Body, func(data []byte) (bool, error) {
				all, err := w.batch(data)
				for _, m := range all {
					if err := w.beside(m); err != nil {
						return false, err
					}
				}
				return false, err
			})
			resp.Body.Close()
		}
		_ = rest(w.life, e, n)
	}
	w.desk.fail(errNoMore)
}

// beside deals with what comes over that stream. It answers no call of ours.
func (w *web) beside(m message) error {
	if m.response() {
		return errUnasked
	}
	if w.forAgent(m, w.post) {
		return nil
	}
	all := w.about(m)
	if m.method == "notifications/progress" || m.method == "notifications/message" {
		for _, one := range hearers(all) {
			if err := one.call.hears.note(m); err != nil {
				return err
			}
		}
		return nil
	}
	return w.besideCalls(m, all, w.post)
}

func listenParams(s *server, to filter) (json.RawMessage, error) {
	what, err := json.Marshal(to)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"notifications":%s,"_meta":{%s}}`, what, modernMeta(s.version, nil, "")), nil
}

const acknowledged = "notifications/subscriptions/acknowledged"

// listen opens a stream of notifications of its own.
func (w *web) listen(ctx context.Context, to filter, open func(), told func(message)) error {
	var resp *http.Response
	var err error
	if w.modern {
		resp, err = w.subscribe(ctx, to)
	} else if resp, err = w.get(ctx, ""); err == nil {
		open()
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	e := &events{limit: w.s.MaxResponse, every: time.Minute}
	return e.read(resp.Body, func(data []byte) (bool, error) {
		if len(data) == 0 {
			return false, nil
		}
		m, err := parse(data)
		switch {
		case err != nil:
			return false, err
		case m.response():
			return true, nil // the server ends the subscription
		case m.method == acknowledged:
			told(m)
			open()
		case m.notification():
			told(m)
		case w.modern:
			return false, unusable("the server asks in a way that its era does not have")
		default:
			return false, w.aside(m, nil, w.post)
		}
		return false, nil
	})
}

func (w *web) subscribe(ctx context.Context, to filter) (*http.Response, error) {
	params, err := listenParams(w.s, to)
	if err != nil {
		return nil, err
	}
	r, u, err := w.request(ctx, http.MethodPost, frame(w.s.ids.Add(1), "subscriptions/listen", params))
	if err != nil {
		return nil, err
	}
	r.Header[mcp.HeaderProtocolVersion] = isModern
	r.Header.Set(mcp.HeaderMethod, "subscriptions/listen")
	resp, err := w.send(ctx, r, u)
	if err != nil {
		return nil, err
	}
	if kind := kindOf(resp); resp.StatusCode != http.StatusOK || kind != contentSSE {
		resp.Body.Close()
		return nil, errNotOffered
	}
	return resp, nil
}

// follow reads a stream up to the answer to id. A legacy server may end it before
// that and be asked for the rest, where it numbers its events.
func (w *web) follow(ctx context.Context, body io.Reader, id int64, c call) (message, error) {
	var found message
	e := &events{limit: w.s.MaxResponse}
	read := func(data []byte) (bool, error) {
		all, err := w.batch(data)
		for _, m := range all {
			if m.response() {
				found = m
				return true, isAnswer(id, m)
			}
			if err := w.meanwhile(m, c.hears); err != nil {
				return false, err
			}
		}
		return false, err
	}
	err := e.read(body, read)
	for n := 1; err != nil && w.resumes(e, err) && ctx.Err() == nil; n++ {
		err = w.again(ctx, e, n, read)
	}
	if err != nil {
		if _, ours := errors.AsType[net.Error](err); ours || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = broken(err)
		}
		return message{}, err
	}
	return found, nil
}

// meanwhile deals with what the server says in the stream of a call of ours.
func (w *web) meanwhile(m message, h *hearing) error {
	switch {
	case h == nil && !w.modern && w.forAgent(m, w.post): // of a request of our own
		return nil
	case m.method == "notifications/progress" || m.method == "notifications/message":
		if h != nil {
			return h.note(m)
		}
		return nil
	case !m.notification() && w.modern:
		return unusable("the server asks in a way that its era does not have")
	}
	return w.aside(m, h, w.post)
}

// resumes reports whether the rest of a stream can be asked for.
func (w *web) resumes(e *events, err error) bool {
	if w.modern || e.last == "" {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	_, gone := errors.AsType[lost](err)
	return network || gone || errors.Is(err, errStreamEnded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// rest waits before a stream is opened for the nth time: as the server says, but a
// little longer each time, as it may say anything.
func rest(ctx context.Context, e *events, n int) error {
	t := time.NewTimer(max(min(cmp.Or(e.retry, pause), longest), min(time.Duration(n)*10*time.Millisecond, pause)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return over(ctx)
	}
}

// again opens a stream that continues one that ended, for the nth time.
func (w *web) again(ctx context.Context, e *events, n int, read func([]byte) (bool, error)) error {
	if err := rest(ctx, e, n); err != nil {
		return err
	}
	resp, err := w.get(ctx, e.last)
	if errors.Is(err, gateway.ErrNotSent) {
		return lost("the server cannot be reached for the rest of its answer") // the call itself was sent
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return e.read(resp.Body, read)
}

// get opens a legacy session's stream of what is not the answer to a POST, or what
// is missing of another stream behind the event called last.
func (w *web) get(ctx context.Context, last string) (*http.Response, error) {
	r, u, err := w.request(ctx, http.MethodGet, nil)
	if err != nil {
		return nil, err
	}
	r.Header["Accept"] = acceptsSSE
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := w.send(ctx, r, u)
	if err != nil {
		return nil, err
	}
	if kind := kindOf(resp); resp.StatusCode != http.StatusOK || kind != contentSSE {
		resp.Body.Close()
		return nil, errNotOffered
	}
	return resp, nil
}

// batch reads a message, or the several of one that 2025-03-26 may put together.
func (w *web) batch(data []byte) ([]message, error) {
	if len(data) == 0 {
		return nil, nil // legacy servers open a stream with an empty event
	}
	if w.version != mcp.ProtocolVersion20250326 || jsontext.Value(data).Kind() != '[' {
		m, err := parse(data)
		if err != nil {
			return nil, err
		}
		return []message{m}, nil
	}
	parts, err := elements(data)
	if err != nil {
		return nil, err
	}
	var all []message
	for _, part := range parts {
		m, err := parse(part.value)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	// An answer ends the stream: it comes last.
	slices.SortStableFunc(all, func(a, b message) int {
		return cmp.Compare(len(a.result)+len(a.fault), len(b.result)+len(b.fault))
	})
	return all, nil
}
