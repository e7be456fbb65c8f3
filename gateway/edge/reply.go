package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

const (
	keepAlive  = 15 * time.Second // between comments on a stream that is otherwise quiet
	frameTime  = 10 * time.Second // to take in one frame of an answer
	frameSpeed = 32 << 10         // bytes a second that a large frame must move at beyond that
)

var errAnswered = errors.New("the call was answered already")

// writeWithin writes and flushes p, and gives up on a reader that is too slow.
// The deadline of the last frame stays, for what the server itself still writes.
func writeWithin(w http.ResponseWriter, p []byte, last bool) error {
	rc := http.NewResponseController(w)
	limit := frameTime + time.Duration(len(p)/frameSpeed)*time.Second
	// A writer without deadlines (a test's recorder) has no slow reader either.
	_ = rc.SetWriteDeadline(time.Now().Add(limit))
	_, err := w.Write(p)
	if last {
		return err // the server flushes
	}
	if ferr := rc.Flush(); err == nil && !errors.Is(ferr, http.ErrNotSupported) {
		err = ferr
	}
	_ = rc.SetWriteDeadline(time.Time{}) // over HTTP/2 it would end the stream while the call goes on
	return err
}

// writeJSON writes a whole answer. Who is gone needs none.
func writeJSON(w http.ResponseWriter, status int, body []byte) error {
	h := w.Header()
	h["Content-Type"], h["Content-Length"] = saysJSON, []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	return writeWithin(w, body, true)
}

// A reply is the answer to one call over HTTP: plain JSON, or an event stream from
// the first notice or question on. It is the call's [gateway.Stream].
type reply struct {
	edge          *Edge
	request       *request
	w             http.ResponseWriter
	plain, events bool // what the agent can read
	gone          context.CancelCauseFunc
	progress      progress

	mu     sync.Mutex
	stream bool // the headers of a stream are out
	done   bool
	deaf   bool // nothing more can be written
	asking int
	quiet  *time.Timer
}

var _ gateway.Stream = (*reply)(nil)

// Notify sends a notice that belongs to the call: others have no place in its
// answer.
func (r *reply) Notify(ctx context.Context, method string, params json.RawMessage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return errAnswered
	}
	notice := r.request.notice(&r.progress, method, params)
	if notice == nil || !r.edge.hears(*r.request, method, params, r.events) {
		return ctx.Err()
	}
	if err := r.push(notice); r.request.modern {
		return err
	}
	return nil // the call goes on without its agent
}

// push sends a message before the answer. The first one starts the stream.
func (r *reply) push(msg []byte) error {
	if !r.stream {
		r.open()
	}
	return r.send(msg, false)
}

// Ask puts a server's request to a legacy session on the call's stream.
func (r *reply) Ask(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error) {
	if !r.events || r.request.cred.Session == "" || r.request.modern || !r.request.can.may(method, params) {
		return gateway.Result{}, gateway.ErrCannotAsk
	}
	if !r.asks(1) {
		return gateway.Result{}, fmt.Errorf("too many questions at once: %w", gateway.ErrCannotAsk)
	}
	defer r.asks(-1)
	return r.edge.ask(ctx, r.request.cred.Session, method, params, func(msg []byte) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.done {
			return errAnswered
		}
		return r.push(msg)
	})
}

// asks counts open questions, and is false where there would be too many.
func (r *reply) asks(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n > 0 && r.asking >= maxAsks {
		return false
	}
	r.asking += n
	return true
}

// open starts the stream. From here on it is kept alive until finish.
func (r *reply) open() {
	r.stream = true
	r.w.Header().Set("Content-Type", "text/event-stream")
	r.w.WriteHeader(http.StatusOK)
	r.quiet = time.AfterFunc(keepAlive, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.done && r.write([]byte(": still here\n\n"), false) == nil {
			r.quiet.Reset(keepAlive)
		}
	})
}

func (r *reply) send(msg []byte, last bool) error {
	if r.quiet != nil {
		r.quiet.Reset(keepAlive)
	}
	return r.write(event(msg), last)
}

func (r *reply) write(p []byte, last bool) error {
	if r.deaf {
		return errReaderGone
	}
	err := writeWithin(r.w, p, last)
	if r.deaf = err != nil; r.deaf && r.request.modern {
		r.gone(errReaderGone)
	}
	return err
}

// finish sends the answer, or without a body none.
func (r *reply) finish(a answer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return nil
	}
	r.done = true
	switch {
	case a.body == nil && !r.stream:
		r.w.WriteHeader(http.StatusAccepted)
	case r.stream || !r.plain:
		if !r.stream {
			r.open()
		}
		if a.body != nil {
			return r.send(a.to(r.request.id), true)
		}
	default:
		return a.writeJSON(r.w, r.request.id)
	}
	return nil
}

// close makes sure that nothing is written after the request is over, answered
// or not.
func (r *reply) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = true
	if r.quiet != nil {
		r.quiet.Stop()
	}
}

// event is one message as a server-sent event.
func event(msg []byte) []byte {
	b := make([]byte, 0, len(msg)+32)
	b = append(b, "event: message\ndata: "...)
	return append(append(b, oneLine(msg)...), "\n\n"...)
}

// notice is what an agent gets of a server's notification about its call: progress,
// under its own token; log messages, of the level that it wants; and that somebody
// is done with a page that it was sent to. Nil is nothing.
func (r request) notice(p *progress, method string, params json.RawMessage) []byte {
	switch method {
	case "notifications/message":
		var in struct {
			Level string `json:"level"`
		}
		if strict.Unmarshal(params, &in) != nil || !slices.Contains(levels, in.Level) || !r.wantsLog(in.Level) {
			return nil
		}
		clean, err := tidy(params)
		if err != nil {
			return nil
		}
		b := append([]byte(nil), `{"jsonrpc":"2.0","method":"notifications/message","params":`...)
		return append(append(b, clean...), '}')
	case elicitationComplete:
		var in struct {
			ID string `json:"elicitationId"`
		}
		if r.modern || !r.can.url || strict.Unmarshal(params, &in) != nil || in.ID == "" || len(in.ID) > maxIDBytes {
			return nil
		}
		return []byte(`{"jsonrpc":"2.0","method":"` + elicitationComplete + `","params":{"elicitationId":` + quote(in.ID) + `}}`)
	}
	return p.notice(method, params)
}

// wantsNotices reports whether there is anything that can be sent to the agent
// before its answer.
func (r request) wantsNotices() bool {
	return r.token != nil || !r.modern || r.level != ""
}

// progress rewrites notices of progress to the agent's own token.
type progress struct {
	token jsontext.Value // nil when the agent wants none
	last  float64
	any   bool
}

// notice is the notification for the agent, or nil for none. Progress must
// grow: a value that does not, because it comes from another source than the
// one before, is sent as the next number.
func (p *progress) notice(method string, params json.RawMessage) []byte {
	if method != "notifications/progress" || p.token == nil {
		return nil
	}
	var in struct {
		Progress jsontext.Value `json:"progress"`
		Total    jsontext.Value `json:"total"`
		Message  jsontext.Value `json:"message"`
		Meta     jsontext.Value `json:"_meta"`
	}
	if strict.Unmarshal(params, &in) != nil || in.Progress.Kind() != '0' {
		return nil
	}
	v, err := strconv.ParseFloat(string(in.Progress), 64)
	if err != nil {
		return nil
	}
	value := []byte(in.Progress)
	if p.any && v <= p.last {
		if v = math.Nextafter(p.last, math.Inf(1)); math.IsInf(v, 0) {
			return nil
		}
		value = strconv.AppendFloat(nil, v, 'g', -1, 64)
	}
	p.last, p.any = v, true

	b := append([]byte(nil), `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":`...)
	b = append(append(append(b, p.token...), `,"progress":`...), value...)
	if in.Total.Kind() == '0' {
		b = append(append(b, `,"total":`...), in.Total...)
	}
	if in.Message.Kind() == '"' {
		b = append(append(b, `,"message":`...), in.Message...)
	}
	if in.Meta.Kind() == '{' {
		if meta, err := tidyMeta(in.Meta); err == nil {
			b = append(append(b, `,"_meta":`...), meta...)
		}
	}
	return append(b, "}}"...)
}
