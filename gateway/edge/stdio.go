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

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// ServeStdio serves one agent, who is cred, over a pair of pipes: one message a
// line, both eras. It returns when in ends and all calls are answered, when out
// can no longer be written, or with ctx, whose calls it cancels. A read that
// blocks on in outlives it until in is closed.
func (e *Edge) ServeStdio(ctx context.Context, in io.Reader, out io.Writer, cred gateway.Credential) error {
	cred.Session = ""
	who, err := e.Gateway.Identify(ctx, cred)
	if err != nil {
		return err
	}
	if !e.enter() {
		return errShutdown
	}
	defer e.leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.calls, func() { cancel(errShutdown) })()
	p := &pipe{edge: e, cred: cred, who: who, out: out, ctx: ctx, cancel: cancel}
	p.streams, p.endStreams = context.WithCancelCause(ctx)
	defer context.AfterFunc(e.streams, func() { p.endStreams(errShutdown) })()

	lines, broken := make(chan []byte), make(chan error, 1)
	go func() { broken <- p.readLines(bufio.NewReaderSize(in, 64<<10), lines) }()
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
	p.endStreams(nil)
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
	who        gateway.Principal
	ctx        context.Context
	cancel     context.CancelCauseFunc
	streams    context.Context // ends with the input
	endStreams context.CancelCauseFunc
	requests   sync.WaitGroup
	local      underway // under the one session "stdio"

	writing sync.Mutex
	out     io.Writer

	mu       sync.Mutex
	open     int    // requests under way
	session  string // the legacy session, once there is one
	task     string // that it was opened for, where the agent named it
	protocol string // what it speaks
	stopFeed context.CancelFunc
	feeds    sync.WaitGroup
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
		_ = p.send((&fault{code: mcp.INVALID_REQUEST, message: "the message is too large"}).bytes(nil))
		return
	} else if blank {
		return
	}
	if _, protocol, open := p.inSession(); isBatch(line) && open && protocol == mcp.ProtocolVersion20250326 {
		p.batch(line)
		return
	}
	p.one(line, func(msg []byte) {
		if msg != nil {
			_ = p.send(msg) // it has said so itself
		}
	})
}

// one starts on one message, and calls reply with its answer, or nil for none.
func (p *pipe) one(line []byte, reply func([]byte)) {
	m, err := decode(line)
	if err != nil {
		p.edge.Gateway.Malformed(p.ctx, p.cred)
		reply(faultOf(err).bytes(m.id))
		return
	}
	switch {
	case (m.method == "" || m.id == nil) && p.edge.Gateway.Pace(p.who) != nil:
		reply(nil) // it is lost, and counted: there is no status here that could say so
	case m.method == "":
		cred, _, _ := p.inSession()
		_ = p.edge.answered(p.ctx, cred, m) // what answers nothing is answered by nobody
		reply(nil)
	case m.id == nil:
		switch cred, _, open := p.inSession(); {
		case m.method == "notifications/cancelled" && isRequestID(m.requestID):
			p.local.cancel(stdio, idKey(m.requestID))
		case m.method == rootsChanged && open:
			p.edge.notified(p.ctx, request{message: m, cred: cred})
		}
		reply(nil)
	case !p.begin():
		reply((&fault{code: -32000, message: "too many requests are under way"}).bytes(m.id))
	default:
		ctx, cancel := context.WithCancelCause(p.ctx)
		// In order of arrival, so that a cancellation finds its call.
		done := p.local.call(stdio, idKey(m.id), cancel, nil)
		serve := func() {
			var msg []byte
			defer func() { reply(msg) }()
			defer p.finish()
			defer cancel(nil)
			defer done()
			defer func() {
				if r := recover(); r != nil {
					p.edge.Logger.Error("panic while serving a request", "method", m.method, "panic", fmt.Sprint(r))
					msg = (&fault{code: mcp.INTERNAL_ERROR, message: "internal"}).bytes(m.id)
				}
			}()
			msg = p.answer(ctx, m)
		}
		if m.method == "initialize" {
			serve() // what follows belongs to the session that it opens
		} else {
			p.requests.Go(serve)
		}
	}
}

// batch starts on several messages that came at once; their answers go at once.
func (p *pipe) batch(line []byte) {
	all, err := splitBatch(line)
	if err != nil {
		p.edge.Gateway.Malformed(p.ctx, p.cred)
		_ = p.send(faultOf(err).bytes(nil))
		return
	}
	var mu sync.Mutex
	var out []byte
	left := len(all)
	for _, one := range all {
		p.one(one, func(msg []byte) {
			mu.Lock()
			defer mu.Unlock()
			if msg != nil {
				if out == nil {
					out = []byte{'['}
				} else {
					out = append(out, ',')
				}
				out = append(out, msg...)
			}
			if left--; left == 0 && out != nil {
				_ = p.send(append(out, ']'))
			}
		})
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

// inSession returns what holds for a message of the legacy era.
func (p *pipe) inSession() (cred gateway.Credential, protocol string, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cred = p.cred
	cred.Session = p.session
	return cred, cmp.Or(p.protocol, mcp.ProtocolVersion20250326), p.session != ""
}

// answer returns the answer to a request, or nil for none.
func (p *pipe) answer(ctx context.Context, m message) []byte {
	r := request{message: m, cred: p.cred, who: p.who, modern: mcp.IsModernProtocol(m.version), protocol: m.version}
	open := false
	if r.modern {
		if f := checkMeta(m); f != nil {
			return f.bytes(m.id)
		}
	} else {
		r.cred, r.protocol, open = p.inSession()
	}
	var clash error
	if r.cred, clash = naming(r.cred, m); clash != nil {
		p.edge.Gateway.Malformed(ctx, p.cred)
		if m.method == gateway.MethodCall {
			return p.edge.answerRefusal(r, clash).to(m.id)
		}
		return p.refusal(r, clash)
	}
	what := doing(m.method, r.modern)
	if what.needsClient() {
		if err := p.edge.remember(ctx, &r); err != nil {
			return p.refusal(r, err)
		}
	}
	var a answer
	var err error
	switch what {
	case calls:
		var back gateway.Stream
		if r.wantsNotices() {
			n := &notices{pipe: p, request: r, progress: progress{token: m.token}}
			defer n.close() // nothing about a call follows its answer
			back = n
		}
		if a, _, err = p.edge.call(ctx, r, nil, back, nil); err != nil {
			err = nil // a stands for it here, where there is no status
		}
	case opens:
		if open { // the session is open, and there is one
			a, _ = p.edge.say(ctx, r)
			break
		}
		a, err = p.initialize(ctx, r)
	case listens:
		return p.listen(ctx, r)
	default:
		a, err = p.edge.answer(ctx, r, what)
	}
	switch {
	case err != nil:
		return p.refusal(r, err)
	case a.body == nil:
		return nil
	}
	return a.to(m.id)
}

// refusal is a refusal that is no answer of the method's own.
func (p *pipe) refusal(r request, err error) []byte {
	refusal := refusalOf(err)
	p.edge.logInternal(r.method, refusal)
	return refusalFault(refusal).bytes(r.id)
}

// initialize opens the legacy session; its notices come from then on.
func (p *pipe) initialize(ctx context.Context, r request) (answer, error) {
	a, id, protocol, err := p.edge.initialize(ctx, r)
	if err != nil || id == "" {
		return a, err
	}
	r.cred.Session, r.protocol, r.caps = id, protocol, r.offers
	r.can = abilities(r.caps, protocol)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.task, p.protocol = id, r.cred.Task, protocol
	f := p.edge.newFeed(r, p.who, everyList(), nil)
	if !p.edge.feeds.open(f) {
		return a, nil // it has enough streams elsewhere
	}
	f.send, f.stays = p.send, true
	f.look(ctx)
	streams, stop := context.WithCancel(p.streams)
	p.stopFeed = stop
	p.feeds.Go(func() {
		defer p.edge.feeds.close(f)
		p.edge.feed(streams, f, r, nil)
	})
	return a, nil
}

// listen serves subscriptions/listen until the input ends or the agent cancels.
func (p *pipe) listen(ctx context.Context, r request) []byte {
	f, granted, bad, err := p.edge.subscription(ctx, r)
	switch {
	case err != nil:
		return p.refusal(r, err)
	case bad != nil:
		return bad.bytes(r.id)
	case !p.edge.feeds.open(f):
		return p.refusal(r, tooManyStreams)
	}
	defer p.edge.feeds.close(f)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.streams, func() { cancel(context.Cause(p.streams)) })()
	f.send, f.stays = p.send, true
	f.look(ctx)
	p.edge.feed(ctx, f, r, granted)
	return nil
}

// close ends the legacy session, if there was one.
func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == "" {
		return
	}
	if p.stopFeed != nil {
		p.stopFeed()
	}
	p.feeds.Wait()
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
	request  request
	mu       sync.Mutex
	done     bool
	asking   int
	progress progress
}

var _ gateway.Stream = (*notices)(nil)

// Notify sends a notice that belongs to the call.
func (n *notices) Notify(ctx context.Context, method string, params json.RawMessage) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		return errAnswered
	}
	if msg := n.request.notice(&n.progress, method, params); msg != nil && n.pipe.edge.hears(n.request, method, params, true) {
		return n.pipe.send(msg)
	}
	return ctx.Err()
}

// Ask puts a server's request to the agent, in a legacy session.
func (n *notices) Ask(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error) {
	if n.request.cred.Session == "" || n.request.modern || !n.request.can.may(method, params) {
		return gateway.Result{}, gateway.ErrCannotAsk
	}
	if !n.asks(1) {
		return gateway.Result{}, fmt.Errorf("too many questions at once: %w", gateway.ErrCannotAsk)
	}
	defer n.asks(-1)
	return n.pipe.edge.ask(ctx, n.request.cred.Session, method, params, n.pipe.send)
}

// asks counts open questions, and is false where there would be too many.
func (n *notices) asks(more int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done || more > 0 && n.asking >= maxAsks {
		return false
	}
	n.asking += more
	return true
}

func (n *notices) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.done = true
}
