package edge

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"toolbroker/gateway"
)

// newSession returns a session id: 130 random bits in the closed grammar of ids.
func newSession() string { return "mcp-" + strings.ToLower(rand.Text()) }

// lifecycle lets mcp-go answer what has no downstream. It gets the headers that
// say which era it is, and nothing that says who asks.
func (e *Edge) lifecycle(w http.ResponseWriter, r *http.Request, cred gateway.Credential, m message, body []byte, modern bool) {
	if !exact(m.id) {
		writeFault(w, m.id, modern, inexact)
		return
	}
	if m.method == string(mcp.MethodSubscriptionsListen) {
		e.stream(w, r, cred, m.id, "", body)
		return
	}
	initialize := m.method == string(mcp.MethodInitialize) && !modern
	out := &held{header: http.Header{}}
	e.http.Handle(out, &server.HTTPRequest{Method: http.MethodPost, URL: r.URL, Header: forMCPGo(r.Header, ""), Body: body, Context: r.Context()})
	if initialize && isResult(out.body.Bytes()) {
		// No session is given out that is not bound to its owner and task.
		id := newSession()
		if err := e.Gateway.OpenSession(r.Context(), cred, id); err != nil {
			e.refuse(w, r, cred, m.id, err)
			return
		}
		w.Header().Set(mcp.HeaderSessionID, id)
	}
	if out.header.Get("Content-Type") == "application/json" {
		writeJSON(w, out.status, bytes.TrimRight(out.body.Bytes(), "\n"))
		return
	}
	w.Header().Set("Content-Type", out.header.Get("Content-Type"))
	w.WriteHeader(out.status)
	_ = writeWithin(w, out.body.Bytes(), true)
}

func isResult(body []byte) bool {
	var msg struct {
		Result json.RawMessage `json:"result"`
	}
	return json.Unmarshal(body, &msg) == nil && msg.Result != nil
}

// exact reports whether mcp-go, which reads ids as floating point, gives the id
// back as it came.
func exact(id jsontext.Value) bool {
	if id.Kind() == '"' {
		return true
	}
	const safe = 1<<53 - 1
	n, err := strconv.ParseInt(string(id), 10, 64)
	return err == nil && -safe <= n && n <= safe
}

var inexact = &fault{code: mcp.INVALID_REQUEST, message: "this method takes an id that is a string or an integer below 2^53"}

// forMCPGo is what mcp-go needs of a request's headers. A stream's session is a
// name of our own: for mcp-go a session is gone as soon as one of its streams
// is, so each stream is a session to it.
func forMCPGo(h http.Header, stream string) http.Header {
	out := http.Header{}
	for _, name := range []string{"Content-Type", "Accept", mcp.HeaderProtocolVersion, mcp.HeaderMethod, mcp.HeaderName} {
		if v := h.Values(name); len(v) > 0 {
			out[http.CanonicalHeaderKey(name)] = v
		}
	}
	if stream != "" {
		out.Set(mcp.HeaderSessionID, stream)
	}
	return out
}

// getStream is a legacy session's stream of notices.
func (e *Edge) getStream(w http.ResponseWriter, r *http.Request, cred gateway.Credential) {
	modern := mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion))
	if _, events := accepts(r.Header); !events && !modern {
		http.Error(w, "the answer is text/event-stream", http.StatusNotAcceptable)
		return
	}
	if cred.Session == "" && !modern {
		http.Error(w, mcp.HeaderSessionID+" is missing", http.StatusBadRequest)
		return
	}
	e.stream(w, r, cred, nil, newSession(), nil)
}

// deleteSession ends a legacy session here and, through the gateway, everywhere.
func (e *Edge) deleteSession(w http.ResponseWriter, r *http.Request, cred gateway.Credential) {
	if modern := mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)); !modern {
		if cred.Session == "" {
			http.Error(w, mcp.HeaderSessionID+" is missing", http.StatusBadRequest)
			return
		}
		if err := e.Gateway.CloseSession(r.Context(), cred); err != nil {
			e.refuse(w, r, cred, nil, err)
			return
		}
		e.local.end(cred.Session)
	}
	e.http.Handle(&live{w: w}, &server.HTTPRequest{Method: r.Method, URL: r.URL, Header: forMCPGo(r.Header, ""), Context: r.Context()})
}

// stream serves a GET stream or subscriptions/listen for as long as its
// credential, session and task are good. The former has a name, the latter an
// id and a body.
func (e *Edge) stream(w http.ResponseWriter, r *http.Request, cred gateway.Credential, id jsontext.Value, name string, body []byte) {
	if _, _, err := e.Gateway.Admit(r.Context(), cred); err != nil {
		e.refuse(w, r, cred, id, err)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(e.streams, func() { cancel(errShutdown) })()
	if cred.Session != "" {
		defer e.local.stream(cred.Session, cancel)()
	}
	out := &live{w: w, gone: cancel, good: func(session bool) error {
		c := cred
		if !session {
			c.Session = "" // whose check is a round trip
		}
		_, _, err := e.Gateway.Admit(ctx, c)
		return err
	}}
	defer out.close()
	e.http.Handle(out, &server.HTTPRequest{Method: r.Method, URL: r.URL, Header: forMCPGo(r.Header, name), Body: body, Context: ctx})
}

// held is an answer of mcp-go's that is looked at before it leaves. It cannot
// stream, so mcp-go answers at once and whole.
type held struct {
	header http.Header
	status int
	body   bytes.Buffer
}

var _ server.HTTPResponseWriter = (*held)(nil)

func (h *held) Header() http.Header         { return h.header }
func (h *held) Write(p []byte) (int, error) { return h.body.Write(p) }
func (h *held) Flush()                      {}
func (h *held) CanStream() bool             { return false }
func (h *held) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

// recheck is how often a stream asks whether its task still runs.
const recheck = time.Second

// live is a stream of mcp-go's on its way out. It keeps the connection alive,
// cuts a reader that does not read, and asks again at each notice and every
// second whether the stream may go on.
type live struct {
	w    http.ResponseWriter
	gone context.CancelCauseFunc
	good func(session bool) error

	mu    sync.Mutex
	done  bool
	tick  *time.Timer
	ticks int
}

var _ server.HTTPResponseWriter = (*live)(nil)

func (l *live) Header() http.Header { return l.w.Header() }
func (l *live) CanStream() bool     { return true }
func (l *live) Flush()              {} // each write is one event, and is flushed

func (l *live) WriteHeader(status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Header().Set("Cache-Control", "no-store") // mcp-go says no-cache
	l.w.WriteHeader(status)
	if l.w.Header().Get("Content-Type") != "text/event-stream" || l.done {
		return
	}
	_ = l.write([]byte(": open\n\n"))
	l.tick = time.AfterFunc(recheck, l.beat)
}

// Write sends one event, if the stream may still go on.
func (l *live) Write(p []byte) (int, error) {
	if l.good != nil && l.good(true) != nil {
		l.gone(errNotAllowed)
		return 0, errNotAllowed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return 0, errAnswered
	}
	if err := l.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *live) write(p []byte) error {
	err := writeWithin(l.w, p, false)
	if err != nil && l.gone != nil {
		l.gone(errReaderGone)
	}
	return err
}

// beat asks whether the stream may go on. A gateway that cannot tell right now
// ends no stream: nothing is sent on it before it can.
func (l *live) beat() {
	l.mu.Lock()
	l.ticks++
	comment := l.ticks%int(keepAlive/recheck) == 0
	l.mu.Unlock()
	if err := l.good(comment); err != nil && gateway.CodeOf(err) != gateway.Internal {
		l.gone(errNotAllowed)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return
	}
	if comment && l.write([]byte(": still here\n\n")) != nil {
		return
	}
	l.tick.Reset(recheck)
}

// close makes sure that nothing is written after the request was answered.
func (l *live) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
	if l.tick != nil {
		l.tick.Stop()
	}
}
