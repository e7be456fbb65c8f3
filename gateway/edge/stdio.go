package edge

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"toolbroker/gateway"
)

// ServeStdio serves one agent, who is cred, over a pair of pipes: one message a
// line, both eras. It returns when in ends and all calls are answered, when out
// can no longer be written, or with ctx, whose calls it cancels. A read that
// blocks on in outlives it until in is closed.
func (e *Edge) ServeStdio(ctx context.Context, in io.Reader, out io.Writer, cred gateway.Credential) error {
	cred.Session = ""
	if _, err := e.Gateway.Identify(ctx, cred); err != nil {
		return err
	}
	if !e.enter() {
		return errShutdown
	}
	defer e.leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.calls, func() { cancel(errShutdown) })()
	p := &pipe{edge: e, cred: cred, out: out, ctx: ctx, cancel: cancel}
	p.streams, p.endStreams = context.WithCancel(ctx)
	defer context.AfterFunc(e.streams, p.endStreams)()

	lines, broken := make(chan []byte), make(chan error, 1)
	go func() { broken <- p.readLines(bufio.NewReaderSize(in, 64<<10), lines) }()
	var err error
loop:
	for {
		select {
		case line := <-lines:
			p.take(line)
		case err = <-broken:
			break loop
		case <-ctx.Done():
			err = context.Cause(ctx)
			break loop
		case <-e.streams.Done():
			break loop // shutting down: take nothing more in
		}
	}
	p.endStreams()
	p.requests.Wait()
	p.close()
	if err == io.EOF {
		err = nil
	}
	return err
}

// A pipe is one agent on stdio.
type pipe struct {
	edge       *Edge
	cred       gateway.Credential
	ctx        context.Context
	cancel     context.CancelCauseFunc
	streams    context.Context // ends with the input
	endStreams context.CancelFunc
	requests   sync.WaitGroup
	local      underway // under the one session "stdio"

	writing sync.Mutex
	out     io.Writer

	mu       sync.Mutex
	open     int    // requests under way
	session  string // the legacy session, once there is one
	task     string // that it was opened for, where the agent named it
	protocol string // what it speaks
	unlisten func()
}

// readLines sends each line, and nil for one that is too long.
func (p *pipe) readLines(r *bufio.Reader, lines chan<- []byte) error {
	for {
		line, err := p.readLine(r)
		if err != nil && len(line) == 0 {
			return err
		}
		select {
		case lines <- line:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipe) readLine(r *bufio.Reader) (line []byte, err error) {
	tooLong := false
	for {
		part, err := r.ReadSlice('\n')
		if tooLong = tooLong || int64(len(line)+len(part)) > p.edge.MaxBody+1; !tooLong {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if tooLong {
			return []byte{}, err
		}
		return line, err
	}
}

// take starts on one message. Requests run beside each other; a notification is
// done with when it returns.
func (p *pipe) take(line []byte) {
	blank := true
	for _, c := range line {
		blank = blank && (c == ' ' || c == '\t' || c == '\r' || c == '\n')
	}
	if len(line) == 0 {
		p.edge.Gateway.Malformed(p.ctx, p.cred)
		p.send((&fault{code: mcp.INVALID_REQUEST, message: "the message is too large"}).bytes(nil))
		return
	} else if blank {
		return
	}
	m, err := decode(line)
	if f, bad := errors.AsType[*fault](err); bad {
		p.edge.Gateway.Malformed(p.ctx, p.cred)
		p.send(f.bytes(nil))
		return
	}
	switch {
	case m.method == "": // answers nothing: we ask nothing
	case m.id == nil:
		if m.method == "notifications/cancelled" && isRequestID(m.requestID) {
			p.local.cancel(stdio, idKey(m.requestID))
		}
	case !p.begin():
		p.send((&fault{code: -32000, message: "too many requests are under way"}).bytes(m.id))
	default:
		ctx, cancel := context.WithCancelCause(p.ctx)
		// In order of arrival, so that a cancellation finds its call.
		done := p.local.call(stdio, idKey(m.id), cancel)
		serve := func() {
			defer p.finish()
			defer cancel(nil)
			defer done()
			defer func() {
				if r := recover(); r != nil {
					p.edge.Logger.Error("panic while serving a request", "method", m.method, "panic", fmt.Sprint(r))
					p.send((&fault{code: mcp.INTERNAL_ERROR, message: "internal"}).bytes(m.id))
				}
			}()
			if body := p.answer(ctx, m, line); body != nil {
				p.send(body)
			}
		}
		if m.method == string(mcp.MethodInitialize) {
			serve() // what follows belongs to the session that it opens
		} else {
			p.requests.Go(serve)
		}
	}
}

const (
	stdio   = "stdio"
	maxOpen = 256 // requests at once, so that an agent that does not read costs a bounded buffer
)

func (p *pipe) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open >= maxOpen {
		return false
	}
	p.open++
	return true
}

func (p *pipe) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
}

// answer returns the answer to a request, or nil for none.
func (p *pipe) answer(ctx context.Context, m message, raw []byte) []byte {
	modern, protocol := mcp.IsModernProtocol(m.version), m.version
	cred := p.cred
	if modern {
		if f := checkMeta(m); f != nil {
			return f.bytes(m.id)
		}
	} else {
		p.mu.Lock()
		cred.Session, protocol = p.session, cmp.Or(p.protocol, mcp.ProtocolVersion20250326)
		p.mu.Unlock()
	}
	cred, clash := naming(cred, m)
	if clash != nil {
		p.edge.Gateway.Malformed(ctx, p.cred)
		if m.method == string(mcp.MethodToolsCall) {
			return p.edge.answerCall(m, modern, gateway.Result{}, clash).body
		}
		return refusalFault(refusalOf(clash)).bytes(m.id)
	}
	switch mcp.MCPMethod(m.method) {
	case mcp.MethodToolsList:
		a, err := p.edge.list(ctx, cred, m, modern, protocol)
		if err != nil {
			r := refusalOf(err)
			p.edge.logInternal("list", r)
			return refusalFault(r).bytes(m.id)
		}
		return a.body
	case mcp.MethodToolsCall:
		var back gateway.Stream
		if m.token != nil {
			n := &notices{pipe: p, progress: progress{token: m.token}}
			defer n.close() // nothing about a call follows its answer
			back = n
		}
		a, _ := p.edge.call(ctx, cred, m, modern, protocol, nil, back)
		return a.body
	}
	if !answeredByMCPGo(m.method) {
		return methodNotFound.bytes(m.id)
	}
	if !exact(m.id) {
		return inexact.bytes(m.id)
	}
	return p.lifecycle(ctx, cred, m, modern, raw)
}

// lifecycle lets mcp-go answer. Its own stdio server is one per process, with
// one session for everybody, so its messages come straight from its core.
func (p *pipe) lifecycle(ctx context.Context, cred gateway.Credential, m message, modern bool, raw []byte) []byte {
	l := newListener(m.method == string(mcp.MethodSubscriptionsListen))
	if l.filtered {
		// Until the input ends or the agent cancels.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(p.streams, cancel)()
		defer p.listen(cred, l, m.id)()
		p.edge.mcp.HandleMessage(p.edge.mcp.WithContext(ctx, l), raw)
		return nil
	}
	var body []byte
	var protocol string
	switch msg := p.edge.mcp.HandleMessage(p.edge.mcp.WithContext(ctx, l), raw).(type) {
	case mcp.JSONRPCResponse:
		result, err := json.Marshal(msg.Result)
		if err != nil {
			return (&fault{code: mcp.INTERNAL_ERROR, message: "internal"}).bytes(m.id)
		}
		if began, ok := msg.Result.(mcp.InitializeResult); ok {
			protocol = began.ProtocolVersion
		}
		body = envelope(m.id, "result", result)
	case mcp.JSONRPCError:
		return (&fault{code: msg.Error.Code, message: msg.Error.Message, data: msg.Error.Data}).bytes(m.id)
	default:
		return (&fault{code: mcp.INTERNAL_ERROR, message: "internal"}).bytes(m.id)
	}
	if m.method == string(mcp.MethodInitialize) && !modern {
		if err := p.begun(ctx, cred, l, protocol); err != nil {
			r := refusalOf(err)
			p.edge.logInternal("initialize", r)
			return refusalFault(r).bytes(m.id)
		}
	}
	return body
}

// begun opens the legacy session, once; its notices come from then on.
func (p *pipe) begun(ctx context.Context, cred gateway.Credential, l *listener, protocol string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session != "" {
		return nil
	}
	id := newSession()
	if err := p.edge.Gateway.OpenSession(ctx, cred, id); err != nil {
		return err
	}
	p.session, p.task, p.protocol, p.unlisten = id, cred.Task, protocol, p.listen(cred, l, nil)
	return nil
}

// close ends the legacy session, if there was one.
func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == "" {
		return
	}
	p.unlisten()
	cred := p.cred
	cred.Session, cred.Task = p.session, p.task
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), frameTime)
	defer cancel()
	if err := p.edge.Gateway.CloseSession(ctx, cred); err != nil {
		p.edge.Logger.Warn("session not closed; it will lapse", "err", err)
	}
}

// send writes one message; what cannot be written ends the agent's calls.
func (p *pipe) send(msg []byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	line := make([]byte, 0, len(msg)+1)
	_, err := p.out.Write(append(append(line, oneLine(msg)...), '\n'))
	if err != nil {
		p.cancel(fmt.Errorf("write to the agent: %w", err))
	}
	return err
}

// notices are one call's way back over stdio.
type notices struct {
	pipe     *pipe
	mu       sync.Mutex
	done     bool
	progress progress
}

var _ gateway.Stream = (*notices)(nil)

// Notify sends a notice of progress.
func (n *notices) Notify(ctx context.Context, method string, params json.RawMessage) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		return errAnswered
	}
	if msg := n.progress.notice(method, params); msg != nil {
		return n.pipe.send(msg)
	}
	return ctx.Err()
}

func (n *notices) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.done = true
}

// A listener is mcp-go's side of a stream of notices over stdio.
type listener struct {
	id       string
	filtered bool // subscriptions/listen: only what was asked for
	notes    chan mcp.JSONRPCNotification
	mu       sync.Mutex
	filter   mcp.SubscriptionFilter
}

var _ server.SessionWithSubscriptionFilter = (*listener)(nil)

func newListener(filtered bool) *listener {
	return &listener{id: newSession(), filtered: filtered, notes: make(chan mcp.JSONRPCNotification, 16)}
}

func (l *listener) SessionID() string                                   { return l.id }
func (l *listener) Initialize()                                         {}
func (l *listener) Initialized() bool                                   { return true }
func (l *listener) NotificationChannel() chan<- mcp.JSONRPCNotification { return l.notes }

// SetSubscriptionFilter is called by mcp-go with what the agent asked for.
func (l *listener) SetSubscriptionFilter(f mcp.SubscriptionFilter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.filter = f
}

// SubscriptionFilter says whether this listener has asked, and for what.
func (l *listener) SubscriptionFilter() (mcp.SubscriptionFilter, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.filter, l.filtered
}

// listen writes what mcp-go sends to l, marked with the id of the subscription
// if it is one, until stop is called: while the task that cred names is running.
func (p *pipe) listen(cred gateway.Credential, l *listener, subscription jsontext.Value) (stop func()) {
	cred.Session = "" // it is this pipe's, and asking costs a round trip
	ctx, cancel := context.WithCancel(p.streams)
	if err := p.edge.mcp.RegisterSession(ctx, l); err != nil {
		cancel() // its id is random: it cannot be there already
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case note := <-l.notes:
				if _, _, err := p.edge.Gateway.Admit(ctx, cred); err != nil {
					continue // not while its task is not running
				}
				if subscription != nil {
					meta := map[string]any{}
					for k, v := range note.Params.Meta {
						meta[k] = v
					}
					meta[mcp.MetaKeySubscriptionID] = json.RawMessage(subscription)
					note.Params.Meta = meta
				}
				if msg, err := json.Marshal(note); err == nil {
					_ = p.send(msg) // it has said so itself
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		p.edge.mcp.UnregisterSession(context.WithoutCancel(ctx), l.id)
		cancel()
		<-done
	}
}
