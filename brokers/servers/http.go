package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	goodbye     = 2 * time.Second        // for a last message to a server
	drain       = 250 * time.Millisecond // for the end of a stream behind its answer
	pause       = time.Second            // before a stream is opened again, where the server does not say
	longest     = 30 * time.Second       // that a server can ask us to pause
	standing    = 2 * time.Second        // for the stream beside all calls to stand
	maxSmall    = 64 << 10               // of a body that nobody needs
	maxSession  = 1024
	contentJSON = "application/json"
	contentSSE  = "text/event-stream"
)

// statusError is an HTTP status that is no answer.
type statusError int

func (s statusError) Error() string        { return "the server answered HTTP " + strconv.Itoa(int(s)) }
func (s statusError) Is(target error) bool { return target == gateway.ErrBadAnswer }

// web is a link over Streamable HTTP. In the modern era it is an address and
// nothing to close; in the legacy era it is one session.
type web struct {
	*desk
	modern   bool
	headers  map[string]gateway.Secret // the lease's, on every request of this link
	address  *url.URL                  // to POST to, where a stream named another than the configured one
	session  string                    // "" where the server keeps none
	revision []string                  // the session's version, as its header has it
	gone     atomic.Bool
	owed     atomic.Bool // a goodbye that the server has not answered

	// In the legacy era: what the server says beside calls comes over one more
	// stream, opened when somebody wants it, for as long as the session lasts.
	life   context.Context
	end    context.CancelFunc
	opens  sync.Once
	stands chan struct{} // closed when that stream stands, or is known not to, or takes long
	stood  func()        // closes it
}

func newWeb(s *server, headers map[string]gateway.Secret, modern bool) *web {
	w := &web{modern: modern, headers: headers}
	if modern {
		w.desk = &desk{s: s}
		return w
	}
	w.desk, w.stands = newDesk(s), make(chan struct{})
	w.stood = sync.OnceFunc(func() { close(w.stands) })
	w.life, w.end = context.WithCancel(context.Background())
	return w
}

func (w *web) dead() bool { return w.gone.Load() }

func (w *web) settle(version string, c capabilities) {
	w.version, w.caps, w.revision = version, c, []string{version}
}

func (w *web) speaks() era {
	if w.modern {
		return modernEra
	}
	return legacyEra
}

// What is the same in every request; net/http only reads it.
var (
	acceptsBoth = []string{contentJSON + ", " + contentSSE}
	acceptsSSE  = []string{contentSSE}
	sendsJSON   = []string{contentJSON}
	isModern    = []string{mcp.ProtocolVersion20260728}
)

// request makes a request with what every request of this link carries.
func (w *web) request(ctx context.Context, verb string, body []byte) (*http.Request, *upload, error) {
	if len(w.headers) > 0 && w.s.plaintext {
		return nil, nil, notSent(errors.New("a credential is not sent over plain http"))
	}
	r := w.s.blank.WithContext(ctx)
	r.Method, r.Header = verb, make(http.Header, 8)
	if w.address != nil {
		r.URL = w.address // of the same host
	}
	if body != nil {
		r.Header["Content-Type"] = sendsJSON
	}
	for name, value := range w.headers {
		r.Header.Set(name, value.Reveal())
	}
	// Ours come last, so that no binding can change what a request means.
	r.Header["Accept"] = acceptsBoth
	r.Header["User-Agent"] = w.s.agent
	if w.version != "" {
		r.Header[mcp.HeaderProtocolVersion] = w.revision
	}
	if w.session != "" {
		r.Header.Set(mcp.HeaderSessionID, w.session)
	}
	return r, &upload{body: body}, nil
}

// upload is a request's body, or none, and knows whether any of the request may have
// been sent.
type upload struct {
	body []byte
	sent atomic.Bool
}

// send does the round trip.
func (w *web) send(ctx context.Context, r *http.Request, u *upload) (*http.Response, error) {
	resp, err := w.s.way.trip(r, u)
	if err == nil {
		return resp, nil
	}
	sent := u.sent.Load()
	switch {
	case errors.Is(err, errHeader), errors.Is(err, errElsewhere): // which says nothing of the server
	case ctx.Err() != nil && sent:
		err = over(ctx)
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", errUnreachable, over(ctx))
	case !sent:
		err = fmt.Errorf("%w: %w", errUnreachable, err)
	default:
		err = broken(err) // what net/http says may quote the server
	}
	if !sent {
		err = notSent(err)
	}
	return nil, err
}

// lost says how a connection was lost.
type lost string

func (l lost) Error() string        { return string(l) }
func (l lost) Is(target error) bool { return target == errUnreachable }

// broken says how a connection broke, in our words.
func broken(err error) error {
	switch {
	case errors.Is(err, errTooBig), errors.Is(err, errStreamEnded):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return lost("the server closed the connection before its answer was whole")
	case errors.Is(err, net.ErrClosed):
		return lost("the connection was closed")
	}
	return unusable("the server's reply is not valid HTTP")
}

func (w *web) do(ctx context.Context, c call) (message, error) {
	var id int64
	if w.modern {
		id = w.s.ids.Add(1)
	} else {
		id, _ = w.join(c, false)
		defer w.leave(id)
	}
	r, u, err := w.request(ctx, http.MethodPost, frame(id, c.method, c.params))
	if err != nil {
		return message{}, err
	}
	if w.modern {
		r.Header[mcp.HeaderProtocolVersion] = isModern
		r.Header.Set(mcp.HeaderMethod, c.method)
	}
	for name, value := range c.header {
		r.Header.Set(name, value)
	}
	resp, err := w.send(ctx, r, u)
	if err == nil {
		var m message
		var whole bool
		if m, whole, err = w.receive(ctx, resp, id, c); err == nil {
			w.finish(resp, whole)
			return m, nil
		}
		if resp.StatusCode == http.StatusOK { // what any other says, it says of the request itself
			err = sent(err)
		}
		if ctx.Err() != nil {
			err = over(ctx)
		}
		resp.Body.Close()
	}
	// In the modern era the closed stream says it.
	if ctx.Err() != nil && !w.modern && c.method != "initialize" && u.sent.Load() {
		w.s.tidy(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
			defer cancel()
			_ = w.note(ctx, "notifications/cancelled", cancelled(id))
		})
	}
	return message{}, err
}

// finish reads what stands behind an answer, so that its connection can be used again.
func (w *web) finish(resp *http.Response, whole bool) {
	if whole {
		resp.Body.Close()
		return
	}
	if l, ok := resp.Body.(lasting); ok {
		l.outlast(drain)
	}
	end := func() {
		_, _ = io.CopyN(io.Discard, resp.Body, maxSmall)
		resp.Body.Close()
	}
	if resp.ContentLength >= 0 {
		end()
	} else {
		w.s.tidy(end)
	}
}

func cancelled(id int64) json.RawMessage {
	return json.RawMessage(`{"requestId":` + strconv.FormatInt(id, 10) + `,"reason":"cancelled"}`)
}

// receive reads the answer to request id out of a response, and reports whether
// that was all of it.
func (w *web) receive(ctx context.Context, resp *http.Response, id int64, c call) (_ message, whole bool, err error) {
	kind := kindOf(resp)
	encoded := resp.Header.Get("Content-Encoding") != ""
	if resp.StatusCode != http.StatusOK {
		return w.refused(resp, id, kind == contentJSON && !encoded)
	}
	if encoded {
		return message{}, false, errRubbish // nobody asked for that
	}
	if c.method == "initialize" {
		if w.session = resp.Header.Get(mcp.HeaderSessionID); len(w.session) > maxSession {
			w.session = ""
			return message{}, false, errRubbish
		}
	}
	switch kind {
	case contentJSON:
		body, err := readBody(resp.Body, resp.ContentLength, w.s.MaxResponse)
		if err != nil {
			return message{}, false, broken(err)
		}
		var m message
		if jsontext.Value(body).Kind() == '[' {
			m, err = w.follow(ctx, strings.NewReader("data:"+string(oneLine(body))+"\n\n"), id, c)
		} else {
			m, err = answerTo(id, body)
		}
		return m, true, err
	case contentSSE:
		m, err := w.follow(ctx, resp.Body, id, c)
		return m, false, err
	}
	return message{}, false, unusable("the server answered with something that is neither JSON nor an event stream")
}

// kindOf is the media type of a response.
func kindOf(resp *http.Response) string {
	switch kind := resp.Header.Get("Content-Type"); kind {
	case contentJSON, contentSSE:
		return kind
	default:
		kind, _, _ = mime.ParseMediaType(kind)
		return kind
	}
}

// refused reads an answer that came with a bad status: a JSON-RPC error, if it
// is one.
func (w *web) refused(resp *http.Response, id int64, mayAnswer bool) (_ message, whole bool, err error) {
	status := statusError(resp.StatusCode)
	lost := w.session != "" && (status == http.StatusNotFound || status == http.StatusBadRequest)
	// A 401 or 403 is about our credential, and nothing for the agent.
	if mayAnswer && status >= 400 && status != http.StatusUnauthorized && status != http.StatusForbidden {
		if body, err := readBody(resp.Body, resp.ContentLength, min(maxSmall, w.s.MaxResponse)); err == nil {
			m, err := answerTo(id, body)
			lost = lost && (err != nil || m.fault == nil || ofSession(m.fault))
			if err == nil && m.fault != nil && !(lost && status == http.StatusNotFound) {
				if lost {
					w.gone.Store(true)
				}
				return m, true, nil
			}
		}
	}
	if lost { // a 404 says so in MCP's words, and that nothing was done; a 400 may say something else
		w.gone.Store(true)
		if status == http.StatusNotFound {
			return message{}, false, notSent(forgotten{status})
		}
	}
	return message{}, false, status
}

// ofSession reports whether an error's code is one of those with which servers say that
// they do not know a session. MCP names none.
func ofSession(fault json.RawMessage) bool {
	var body struct {
		Code int64 `json:"code"`
	}
	return json.Unmarshal(fault, &body) == nil && (body.Code == -32000 || body.Code == -32001)
}

// forgotten is what a server answered to a request in a session that it does not know
// any more.
type forgotten struct{ statusError }

func (f forgotten) Unwrap() error        { return f.statusError }
func (f forgotten) Is(target error) bool { return target == errForgotten }

var errForgotten = errors.New("the server does not know the session any more")

// answerTo reads the one message that must be the answer to id.
func answerTo(id int64, data []byte) (message, error) {
	m, err := parse(data)
	if err != nil {
		return message{}, err
	}
	return m, isAnswer(id, m)
}

func isAnswer(id int64, m message) error {
	var room [20]byte
	if !m.response() || string(m.id) != string(strconv.AppendInt(room[:0], id, 10)) {
		return unusable("the server answered something else than it was asked")
	}
	return nil
}

func (w *web) note(ctx context.Context, method string, params json.RawMessage) error {
	return w.post(ctx, frame(0, method, params))
}

// post sends a message to which there is no answer.
func (w *web) post(ctx context.Context, body []byte) error { return w.push(ctx, body, nil) }

func (w *web) push(ctx context.Context, body []byte, header map[string]string) error {
	r, u, err := w.request(ctx, http.MethodPost, body)
	if err != nil {
		return err
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	resp, err := w.send(ctx, r, u)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return statusError(resp.StatusCode)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxSmall)
	return nil
}

// check asks whether a session that was idle is still there, before anything
// that must not be sent twice goes over it.
func (w *web) check(ctx context.Context) {
	if w.session == "" {
		return
	}
	_, err := w.do(ctx, call{method: "ping"})
	if _, ok := errors.AsType[statusError](err); ok {
		w.gone.Store(true)
	}
}

func (w *web) close(ctx context.Context) error {
	if w.modern {
		return nil
	}
	w.end()
	if !w.gone.Swap(true) && w.session != "" {
		w.owed.Store(true)
	}
	if !w.owed.Load() {
		return nil
	}
	err := w.forget(ctx)
	if err == nil {
		w.owed.Store(false)
	}
	return err
}

// forget asks the server to end the session, and believes what it answers.
func (w *web) forget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	r, u, err := w.request(ctx, http.MethodDelete, nil)
	if err != nil {
		return err
	}
	resp, err := w.send(ctx, r, u)
	if err != nil {
		return err
	}
	resp.Body.Close()
	switch status := resp.StatusCode; {
	case status/100 == 2, status == http.StatusNotFound, status == http.StatusGone, status == http.StatusBadRequest: // as where it knows none, see refused
		return nil
	case status/100 == 5 && status != http.StatusNotImplemented, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return statusError(status)
	default: // a server may refuse, or our credential has ended meanwhile; then the session ages
		return errKept
	}
}
