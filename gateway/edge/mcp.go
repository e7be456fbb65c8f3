package edge

import (
	"bytes"
	"context"
	"encoding/json"
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
	if err := e.identify(r.Context(), &cred); err != nil {
		e.refuse(w, r, cred, nil, err)
		return
	}
	cred.Session = session
	switch r.Method {
	case http.MethodGet:
		e.getStream(w, r, cred)
	case http.MethodDelete:
		e.deleteSession(w, r, cred)
	default:
		e.post(w, r, cred)
	}
}

func (e *Edge) post(w http.ResponseWriter, r *http.Request, cred gateway.Credential) {
	plain, events := accepts(r.Header)
	if !plain && !events {
		http.Error(w, "answers are application/json or text/event-stream", http.StatusNotAcceptable)
		return
	}
	body, ok := readBody(w, r, e.MaxBody)
	if !ok {
		e.Gateway.Malformed(r.Context(), cred)
		return
	}
	m, err := decode(body)
	if f, bad := errors.AsType[*fault](err); bad {
		e.Gateway.Malformed(r.Context(), cred)
		writeJSON(w, f.http(), f.bytes(nil))
		return
	}
	cred, clash := naming(cred, m)
	if cred.Session != "" {
		if _, err := e.Gateway.Identify(r.Context(), cred); err != nil {
			e.refuse(w, r, cred, m.id, err)
			return
		}
	}

	header := r.Header.Get(mcp.HeaderProtocolVersion)
	modern := mcp.IsModernProtocol(header) || mcp.IsModernProtocol(m.version)
	protocol := m.version
	switch {
	case m.method == "":
		// We ask nothing of agents, so this answers nothing.
		writeFault(w, nil, true, &fault{code: mcp.INVALID_REQUEST, message: "no request of this server has that id"})
		return
	case modern && m.id != nil:
		if f := checkModern(r.Header, m); f != nil {
			e.Gateway.Malformed(r.Context(), cred)
			writeFault(w, m.id, true, f)
			return
		}
	case !modern:
		if protocol = header; protocol == "" {
			protocol = mcp.ProtocolVersion20250326 // what a client speaks that does not say
		}
		if !mcp.IsValidProtocolVersion(protocol) && m.method != string(mcp.MethodInitialize) {
			writeFault(w, m.id, true, unsupported(protocol))
			return
		}
	}
	if clash != nil {
		e.Gateway.Malformed(r.Context(), cred)
		if m.id != nil && m.method == string(mcp.MethodToolsCall) { // where a model reads it
			a := e.answerCall(m, modern, gateway.Result{}, clash)
			writeJSON(w, a.status, a.body)
			return
		}
		e.refuse(w, r, cred, m.id, clash)
		return
	}
	if m.id == nil {
		e.notified(cred, modern, m)
		w.WriteHeader(http.StatusAccepted)
		return
	}

	switch mcp.MCPMethod(m.method) {
	case mcp.MethodToolsList:
		a, err := e.list(r.Context(), cred, m, modern, protocol)
		if err != nil {
			e.refuse(w, r, cred, m.id, err)
			return
		}
		writeJSON(w, a.status, a.body)
	case mcp.MethodToolsCall:
		e.callHTTP(w, r, cred, m, modern, protocol, plain, events)
	default:
		if !answeredByMCPGo(m.method) {
			writeFault(w, m.id, modern, methodNotFound)
			return
		}
		e.lifecycle(w, r, cred, m, body, modern)
	}
}

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

// notified takes in a notification. Only a cancellation means anything to us,
// and only within a legacy session: elsewhere an id names nobody, and mcp-go
// would cancel another client's request. In the modern era closing the stream
// cancels.
func (e *Edge) notified(cred gateway.Credential, modern bool, m message) {
	if m.method == "notifications/cancelled" && !modern && cred.Session != "" && isRequestID(m.requestID) {
		e.local.cancel(cred.Session, idKey(m.requestID))
	}
}

var methodNotFound = &fault{code: mcp.METHOD_NOT_FOUND, message: "Method not found"}

// answeredByMCPGo lists what has no downstream. Every other method is ours, or
// nobody's.
func answeredByMCPGo(method string) bool {
	switch mcp.MCPMethod(method) {
	case mcp.MethodInitialize, mcp.MethodPing, mcp.MethodServerDiscover, mcp.MethodSubscriptionsListen, mcp.MethodSetLogLevel:
		return true
	}
	return false
}

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
	params := m.params
	if m.method == string(mcp.MethodToolsCall) { // whose arguments can be large, and do not matter here
		params = append(append(jsontext.Value(`{"name":`), m.name...), '}')
	}
	err := mcp.ValidateStandardHeaders(h.Get, m.version, mcp.MCPMethod(m.method), json.RawMessage(params))
	if bad, ok := errors.AsType[mcp.HeaderMismatchError](err); ok {
		return mismatch(bad.Header)
	} else if err != nil {
		return mismatch(mcp.HeaderMethod)
	}
	return nil
}

// checkMeta checks what every 2026-07-28 request says of itself, on any transport.
func checkMeta(m message) *fault {
	if !mcp.IsValidProtocolVersion(m.version) {
		return unsupported(m.version)
	}
	if m.caps.Kind() != '{' {
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

// list answers tools/list; its error is a [*gateway.Refusal].
func (e *Edge) list(ctx context.Context, cred gateway.Credential, m message, modern bool, protocol string) (answer, error) {
	if c := string(m.cursor); c != "" && c != "null" && c != `""` {
		// The list is whole, so no cursor is one of ours.
		return e.answerFault(m.id, modern, &fault{code: mcp.INVALID_PARAMS, message: "unknown cursor"}), nil
	}
	tools, err := e.Gateway.Tools(ctx, cred, gateway.CallRef{
		JSONRPCID: string(m.id), Method: m.method, Protocol: protocol, Session: cred.Session, Source: cred.Source,
	})
	if err != nil {
		return answer{}, err
	}
	return answer{answerList(m.id, tools, modern), http.StatusOK}, nil
}

func (e *Edge) callHTTP(w http.ResponseWriter, r *http.Request, cred gateway.Credential, m message, modern bool, protocol string, plain, events bool) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(e.calls, func() { cancel(errShutdown) })()
	if !modern && cred.Session != "" {
		defer e.local.call(cred.Session, idKey(m.id), cancel)()
	}
	out := &reply{w: w, plain: plain, events: events, gone: cancel, progress: progress{token: m.token}}
	defer out.close() // whatever happens: the writer is gone when we return
	var back gateway.Stream
	if m.token != nil && events {
		back = out
	}
	var check func(gateway.Tool) error
	if modern {
		check = func(t gateway.Tool) error { return checkParams(r.Header, t, m.args) }
	}
	a, err := e.call(ctx, cred, m, modern, protocol, check, back)
	if r.Context().Err() != nil {
		return // nobody is there
	}
	if err != nil && !out.began() {
		e.refuse(w, r, cred, m.id, err)
		return
	}
	out.finish(a)
}

// call carries out tools/call. Refusals are answers, but for the two that say
// that the caller or its session is not who it was when it came in: they are
// errors as well. An answer without a body is none: the agent cancelled.
func (e *Edge) call(ctx context.Context, cred gateway.Credential, m message, modern bool, protocol string, check func(gateway.Tool) error, back gateway.Stream) (answer, error) {
	var bad string
	switch {
	case m.name.Kind() != '"':
		bad = "params.name must be a string"
	case len(m.name) > maxName:
		bad = "params.name is too long"
	case m.args != nil && m.args.Kind() != '{' && m.args.Kind() != 'n':
		bad = "params.arguments must be an object"
	case m.answers:
		bad = "inputResponses and requestState are not supported: this server asks for no input"
	}
	if bad != "" {
		e.Gateway.Malformed(ctx, cred)
		return e.answerFault(m.id, modern, &fault{code: mcp.INVALID_PARAMS, message: bad}), nil
	}
	args := m.args
	if args == nil || args.Kind() == 'n' {
		args = jsontext.Value("{}")
	}
	result, err := e.Gateway.Handle(ctx, gateway.Call{
		Credential: cred, Name: unquote(m.name), Args: json.RawMessage(args), Meta: json.RawMessage(m.meta),
		JSONRPCID: string(m.id), Protocol: protocol, Agrees: check,
	}, back)
	if err != nil && context.Cause(ctx) == errCancelled {
		return answer{}, nil
	}
	a := e.answerCall(m, modern, result, err)
	if err != nil && (gateway.CodeOf(err) == gateway.Unidentified || foreign(cred, err)) {
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
	params := append(append(json.RawMessage(`{"arguments":`), args...), '}')
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
		writeJSON(w, http.StatusNotFound, f.bytes(id))
		return
	}
	writeJSON(w, e.statusOf(w.Header(), hr, r), refusalFault(r).bytes(id))
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
	writeJSON(w, cmpStatus(f, modern), f.bytes(id))
}
