package edge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// serveMCP is the one endpoint of every era. Who asks is known before a body is
// read; a session is checked on every verb, before anything is done.
func (e *Edge) serveMCP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost, http.MethodGet, http.MethodDelete:
	default:
		w.Header().Set("Allow", "POST, GET, DELETE")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	cred, ok := e.credential(r)
	if !mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)) { // that era has no sessions
		cred.Session = r.Header.Get(mcp.HeaderSessionID)
	}
	if !ok || cred.Session != "" && !isID(cred.Session) {
		http.Error(w, "a header does not hold an id", http.StatusBadRequest)
		return
	}
	session := cred.Session
	if r.Method == http.MethodPost {
		cred.Session = "" // is bound to a task, which the body may name
	}
	who, err := e.identify(r.Context(), &cred)
	if err != nil {
		e.refuse(w, r, cred, nil, err)
		return
	}
	cred.Session = session
	in := request{cred: cred, who: who, protocol: cmp.Or(r.Header.Get(mcp.HeaderProtocolVersion), mcp.ProtocolVersion20250326)}
	switch {
	case r.Method == http.MethodPost:
		e.post(w, r, in)
	case mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion)): // that era has POST only
		w.Header().Set("Allow", "POST")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	case r.Method == http.MethodGet:
		e.getStream(w, r, in)
	default:
		e.deleteSession(w, r, cred)
	}
}

// post takes in one message. What it is, which era it is in and what it is about
// stand in its body; its headers must say the same.
func (e *Edge) post(w http.ResponseWriter, hr *http.Request, r request) {
	plain, events := accepts(hr.Header)
	if !plain && !events {
		http.Error(w, "answers are application/json or text/event-stream", http.StatusNotAcceptable)
		return
	}
	body, ok := readBody(w, hr, e.MaxBody)
	if !ok {
		e.Gateway.Malformed(hr.Context(), r.cred)
		return
	}
	if isBatch(body) {
		e.batch(w, hr, r, body)
		return
	}
	var err error
	if r.message, err = decode(body); err != nil {
		e.Gateway.Malformed(hr.Context(), r.cred)
		f := faultOf(err)
		_ = writeJSON(w, f.http(), f.bytes(r.id))
		return
	}
	var clash error
	r.cred, clash = naming(r.cred, r.message)
	if r.cred.Session != "" {
		if err := e.Gateway.InSession(hr.Context(), r.who, r.cred); err != nil {
			e.refuse(w, hr, r.cred, r.id, err)
			return
		}
	}

	header := hr.Header.Get(mcp.HeaderProtocolVersion)
	r.modern = mcp.IsModernProtocol(header) || mcp.IsModernProtocol(r.version)
	if r.method == "" || r.id == nil { // of requests the gateway knows
		if err := e.Gateway.Pace(r.who); err != nil {
			e.refuse(w, hr, r.cred, nil, err)
			return
		}
	}
	switch {
	case r.method == "":
		if f := e.answered(hr.Context(), r.cred, r.message); f != nil {
			writeFault(w, nil, true, f)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		return
	case r.modern && r.id != nil:
		if f := checkModern(hr.Header, r.message); f != nil {
			e.Gateway.Malformed(hr.Context(), r.cred)
			writeFault(w, r.id, true, f)
			return
		}
		r.protocol = r.version
	case !r.modern && !mcp.IsValidProtocolVersion(r.protocol) && r.method != "initialize":
		writeFault(w, r.id, true, unsupported(r.protocol))
		return
	}
	if clash != nil {
		e.Gateway.Malformed(hr.Context(), r.cred)
		if r.id != nil && r.method == gateway.MethodCall { // where a model reads it
			write(w, r, e.answerRefusal(r, clash))
			return
		}
		e.refuse(w, hr, r.cred, r.id, clash)
		return
	}
	if r.id == nil {
		e.notified(hr.Context(), r)
		w.WriteHeader(http.StatusAccepted)
		return
	}

	what := doing(r.method, r.modern)
	if what.needsClient() {
		if err := e.remember(hr.Context(), &r); err != nil {
			e.refuse(w, hr, r.cred, r.id, err)
			return
		}
	}
	switch what {
	case calls:
		e.callHTTP(w, hr, r, plain, events)
	case listens:
		if !events {
			http.Error(w, "the answer is text/event-stream", http.StatusNotAcceptable)
			return
		}
		e.listenHTTP(w, hr, r)
	case opens:
		a, id, _, err := e.initialize(hr.Context(), r)
		if err != nil {
			e.refuse(w, hr, r.cred, r.id, err)
			return
		}
		if id != "" {
			w.Header().Set(mcp.HeaderSessionID, id)
		}
		write(w, r, a)
	default:
		a, err := e.answer(hr.Context(), r, what)
		if err != nil {
			e.refuse(w, hr, r.cred, r.id, err)
			return
		}
		write(w, r, a)
		if what == lists {
			spentList(a)
		}
	}
}

// answer answers what needs no stream; its error is a [*gateway.Refusal] that is
// not the method's own.
func (e *Edge) answer(ctx context.Context, r request, what does) (answer, error) {
	switch what {
	case answers:
		a, _ := e.say(ctx, r)
		return a, nil
	case lists:
		return e.list(ctx, r)
	case manages:
		return e.manage(ctx, r)
	case follows:
		return e.follow(ctx, r)
	case unfollow:
		return e.unfollow(ctx, r)
	case sets:
		return e.setLevel(ctx, r)
	}
	return r.fault(methodNotFound), nil
}

func write(w http.ResponseWriter, r request, a answer) { _ = a.writeJSON(w, r.id) }

// naming returns cred with the task that the message names, for clients that can
// set _meta and no header. One that names two different ones names neither.
func naming(cred gateway.Credential, m message) (gateway.Credential, error) {
	switch {
	case m.task == "" || m.task == cred.Task:
		return cred, nil
	case cred.Task != "":
		return cred, &gateway.Refusal{Code: gateway.NoTask, Err: errTwoTasks,
			Say: "the " + TaskHeader + " header and _meta name different tasks; name one"}
	}
	cred.Task = m.task
	return cred, nil
}

var errTwoTasks = errors.New("the header and _meta name different tasks")

// notified takes in a notification. Only a cancellation, and that the agent's roots
// changed, mean anything to us, and only within a legacy session: elsewhere an id
// names nobody. In the modern era closing the stream cancels. The call may be on
// another replica.
func (e *Edge) notified(ctx context.Context, r request) {
	if r.modern || r.cred.Session == "" {
		return
	}
	switch {
	case r.method == rootsChanged:
		if err := e.Gateway.RootsChanged(ctx, r.cred); err != nil {
			e.Logger.Warn("that an agent's roots changed was not passed on", "err", err)
		}
	case r.method == "notifications/cancelled" && isRequestID(r.requestID):
		id := idKey(r.requestID)
		if e.local.cancel(r.cred.Session, id) {
			return
		}
		if err := e.Sessions.Tell(ctx, gateway.News{Session: r.cred.Session, Cancelled: id}); err != nil {
			e.Logger.Warn("a cancellation was not passed on", "err", err)
		}
	}
}

const rootsChanged = "notifications/roots/list_changed"

// heard is what a session did on another replica, or what a server there has for it.
func (e *Edge) heard(n gateway.News) {
	switch {
	case n.Closed:
		e.local.end(n.Session)
		e.visits.end(n.Session)
	case n.Cancelled != "":
		e.local.cancel(n.Session, n.Cancelled)
	case n.Note != nil:
		e.pass(n.Session, *n.Note)
	}
}

var methodNotFound = &fault{code: mcp.METHOD_NOT_FOUND, message: "Method not found"}

// checkModern holds a 2026-07-28 request against its headers, which
// intermediaries route and meter by.
func checkModern(h http.Header, m message) *fault {
	header := h.Get(mcp.HeaderProtocolVersion)
	switch {
	case header == "":
		return mismatch(mcp.HeaderProtocolVersion)
	case m.version == "":
		return &fault{code: mcp.INVALID_PARAMS, message: "missing _meta field " + mcp.MetaKeyProtocolVersion}
	case header != m.version:
		return mismatch(mcp.HeaderProtocolVersion)
	case h.Get(mcp.HeaderLastEventID) != "":
		return mismatch(mcp.HeaderLastEventID)
	}
	if f := checkMeta(m); f != nil {
		return f
	}
	// mcp-go gets a name alone: the rest can be large, and does not matter here.
	param, about := m.about()
	params := append(append([]byte(`{"`+cmp.Or(param, "name")+`":`), about...), '}')
	err := mcp.ValidateStandardHeaders(h.Get, m.version, mcp.MCPMethod(m.method), params)
	if bad, ok := errors.AsType[mcp.HeaderMismatchError](err); ok {
		return mismatch(bad.Header)
	} else if err != nil {
		return mismatch(mcp.HeaderMethod)
	}
	if param == "taskId" { // the tasks extension's, of which mcp-go does not know
		name, ok := mcp.DecodeHeaderValue(h.Get(mcp.HeaderName))
		if !ok || name == "" || about.Kind() != '"' || name != unquote(about) {
			return mismatch(mcp.HeaderName)
		}
	}
	return nil
}

// checkMeta checks what every 2026-07-28 request says of itself, on any transport.
func checkMeta(m message) *fault {
	if !mcp.IsValidProtocolVersion(m.version) {
		return unsupported(m.version)
	}
	if m.declares.Kind() != '{' {
		return &fault{code: mcp.INVALID_PARAMS, message: "missing or invalid _meta field " + mcp.MetaKeyClientCapabilities}
	}
	return nil
}

func mismatch(header string) *fault {
	return &fault{code: mcp.HEADER_MISMATCH, message: "header " + header + " is missing or does not match the body"}
}

func unsupported(version string) *fault {
	return &fault{code: mcp.UNSUPPORTED_PROTOCOL_VERSION, message: "unsupported protocol version",
		data: mcp.UnsupportedProtocolVersionData{Supported: mcp.ValidProtocolVersions, Requested: version}}
}

// callHTTP carries out what has a downstream. In the modern era whoever hangs up
// cancels; before it only who says so does, and the call of one that is gone goes on
// for its repetition.
func (e *Edge) callHTTP(w http.ResponseWriter, hr *http.Request, r request, plain, events bool) {
	ctx := e.calls
	if r.modern {
		ctx = hr.Context()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.modern {
		defer context.AfterFunc(e.calls, func() { cancel(errShutdown) })()
	}
	out := &reply{edge: e, request: &r, w: w, plain: plain, events: events, gone: cancel, progress: progress{token: r.token}}
	defer out.close() // whatever happens: the writer is gone when we return
	var back gateway.Stream
	var asks *reply
	if events && r.wantsNotices() {
		back, asks = out, out
	}
	if !r.modern && r.cred.Session != "" {
		defer e.local.call(r.cred.Session, idKey(r.id), cancel, asks)()
	}
	var check func(gateway.Tool) error
	if r.modern && r.method == gateway.MethodCall {
		check = func(t gateway.Tool) error { return checkParams(hr.Header, t, r.args) }
	}
	t := e.try(r, hr)
	defer t.close()
	a, did, err := e.call(ctx, r, check, back, t)
	switch {
	case hr.Context().Err() != nil: // nobody is there
		t.end(gateway.EndLost, a, did)
	case err != nil && !out.began():
		t.end(gateway.EndLost, a, did)
		e.refuse(w, hr, r.cred, r.id, err)
	case out.finish(a) != nil:
		t.end(gateway.EndLost, a, did)
	case a.body == nil: // cancelled
		t.end(gateway.EndNothing, a, did)
	default:
		t.written(hr, a, did)
	}
}

// call carries out what has a downstream. Refusals are answers, but for the two
// that say that the caller or its session is not who it was when it came in: they
// are errors as well. An answer without a body is none: the agent cancelled.
func (e *Edge) call(ctx context.Context, r request, check func(gateway.Tool) error, back gateway.Stream, t *try) (answer, outcome, error) {
	c, bad := r.call()
	if bad != "" {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: bad}), outcome{}, nil
	}
	c.Agrees, c.Page = check, e.canSend(r)
	t.joins(&c)
	result, err := e.Gateway.Handle(ctx, c, back)
	did := outcome{done: err == nil, doubt: err != nil && refusalOf(err).InDoubt, call: callID(err)}
	if err != nil && context.Cause(ctx) == errCancelled {
		return answer{}, did, nil
	}
	if a, again := e.again(r, err); again {
		return a, outcome{}, nil
	}
	if err != nil {
		a, err := e.refused(r, err)
		return a, did, err
	}
	return e.answerCall(r, result, nil), did, nil
}

// refused is the answer to a request that was refused, and an error as well where
// the caller or its session is not who it was when it came in.
func (e *Edge) refused(r request, err error) (answer, error) {
	a := e.answerRefusal(r, err)
	if gateway.CodeOf(err) == gateway.Unidentified || foreign(r.cred, err) {
		return a, err
	}
	return a, nil
}

func (r *reply) began() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stream
}

// errParamHeader says nothing of the values: it goes on record.
var errParamHeader = errors.New("an Mcp-Param header is missing or does not match its argument")

// checkParams holds a call's arguments against the Mcp-Param headers that its
// tool's schema asks for. The gateway calls it once it knows that the caller may
// see the tool.
func checkParams(h http.Header, t gateway.Tool, args jsontext.Value) error {
	if !bytes.Contains(t.Schema, []byte("x-mcp-header")) {
		return nil
	}
	lookup := func(name string) (string, bool) {
		v := h.Values(name)
		if len(v) != 1 {
			return "", false
		}
		return v[0], true
	}
	if args == nil {
		args = jsontext.Value("{}")
	}
	params := append(append([]byte(`{"arguments":`), args...), '}')
	if mcp.ValidateParamHeadersLookup(lookup, &mcp.Tool{RawInputSchema: t.Schema}, params) != nil {
		return &gateway.Refusal{Code: gateway.BadArguments, Say: errParamHeader.Error(), Err: errParamHeader}
	}
	return nil
}

// refuse writes a refusal that is not a tool's result.
func (e *Edge) refuse(w http.ResponseWriter, hr *http.Request, cred gateway.Credential, id jsontext.Value, err error) {
	r := refusalOf(err)
	e.logInternal("request", r)
	if foreign(cred, err) {
		f := &fault{code: mcp.INVALID_REQUEST, message: "no such session"}
		_ = writeJSON(w, http.StatusNotFound, f.bytes(id))
		return
	}
	_ = writeJSON(w, e.statusOf(w.Header(), hr, r), refusalFault(r).bytes(id))
}

// refusalOf returns err as a refusal; what the gateway did not refuse is internal.
func refusalOf(err error) *gateway.Refusal {
	if r, ok := errors.AsType[*gateway.Refusal](err); ok {
		return r
	}
	return &gateway.Refusal{Code: gateway.Internal, Err: err}
}

// statusOf is the HTTP status of a refusal that is no tool's result; what else
// goes with it is set in h.
func (e *Edge) statusOf(h http.Header, r *http.Request, refusal *gateway.Refusal) int {
	switch refusal.Code {
	case gateway.Unidentified:
		return e.challenge(h, r, refusal)
	case gateway.TooMany:
		h.Set("Retry-After", soon)
	}
	return statusOf(refusal.Code)
}

// refusalFault is a refusal where no tool's result can carry it.
func refusalFault(r *gateway.Refusal) *fault {
	code := -32000
	if r.Code == gateway.Internal {
		code = mcp.INTERNAL_ERROR
	}
	if r.Code == gateway.Unidentified {
		return &fault{code: code, message: string(r.Code)}
	}
	return &fault{code: code, message: sayRefusal(r), data: map[string]any{
		ours + "refusal": map[string]any{"code": r.Code},
	}}
}

func writeFault(w http.ResponseWriter, id jsontext.Value, modern bool, f *fault) {
	_ = writeJSON(w, cmpStatus(f, modern), f.bytes(id))
}
