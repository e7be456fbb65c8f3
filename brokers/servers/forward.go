package servers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// heard takes a notification that a server sent beside a call.
func (srv *server) heard(method string) {
	if changed(method) {
		for _, f := range srv.feeds {
			f.nudge()
		}
	}
}

// changed reports whether a notification says that a list changed.
func changed(method string) bool {
	switch method {
	case "notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/resources/list_changed":
		return true
	}
	return false
}

// Forward sends a decided call and returns the answer.
//
// The answer's bytes are the server's own, except that keys in our name space
// are gone from _meta and from an error's data, and that URIs are in the server's
// name space. Progress and log messages go to s, the call's id being the token;
// so does what f.Caps lets a legacy server ask, which stops the clock of the call.
// An error that wraps ErrNotSent means that nothing of the call reached the server, or
// that it says to have done nothing; one that wraps context.DeadlineExceeded or
// context.Canceled says which it was. A call is sent at most once, and once more where
// the server says that it speaks another era, or does not know the session, and so did
// nothing.
func (s *Servers) Forward(ctx context.Context, f gateway.Forward, out gateway.Stream) (gateway.Result, error) {
	srv, err := s.of(f)
	if err != nil {
		return gateway.Result{}, err
	}
	done, err := srv.breaker.enter(workload{f.Principal.Tenant, f.Principal.ID})
	if err != nil {
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, notSent(err))
	}
	ctx, clock, stop := within(ctx, srv.Timeout)
	h := &hearing{ctx: ctx, out: out, session: f.Session, human: f.Principal.OnBehalfOf, clock: clock}
	defer h.end(stop)
	if f.Progress && out != nil {
		h.token = cmp.Or(f.CallID, rand.Text())
	}
	r, err := s.forward(ctx, srv, f, h)
	if errors.Is(err, errMoved) || errors.Is(err, errForgotten) { // it did nothing, so that asking again is not asking twice
		r, err = s.forward(ctx, srv, f, h)
	}
	done(err)
	if err != nil {
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, err)
	}
	return r, nil
}

// of finds the server of a call that may go there.
func (s *Servers) of(f gateway.Forward) (*server, error) {
	srv := s.servers[f.Tool.Server]
	if srv == nil || !slices.Contains(srv.Tenants, f.Principal.Tenant) || f.Task.Tenant != "" && f.Task.Tenant != f.Principal.Tenant {
		return nil, notSent(errors.New("no such server for this tenant"))
	}
	if f.Caps != nil && !object(f.Caps) || f.Open != nil && !object(f.Open) {
		return nil, notSent(errors.New("what the agent can be asked is not a JSON object"))
	}
	return srv, nil
}

// errMoved is of a server that speaks another era than it did, and says so.
var errMoved = errors.New("the server speaks another era by now")

func (s *Servers) forward(ctx context.Context, srv *server, f gateway.Forward, h *hearing) (gateway.Result, error) {
	l, give, err := s.link(ctx, srv, f)
	if err != nil {
		srv.look() // perhaps it is another server by now
		return gateway.Result{}, notSent(err)
	}
	defer give()
	if err := s.compare(ctx, srv, l, f); err != nil {
		return gateway.Result{}, notSent(err)
	}
	c, err := s.prepareCall(ctx, srv, l, f, h)
	if err != nil {
		return gateway.Result{}, notSent(err)
	}
	m, err := srv.carry(ctx, l, f, c)
	if err != nil {
		if status, ok := errors.AsType[statusError](err); ok && answered(err) && status < 500 && status != http.StatusTooManyRequests {
			srv.look() // it does not know the session, or the era
		}
		return gateway.Result{}, err
	}
	if m.fault != nil && l.speaks() != modernEra {
		l.at().requires(f.Session, m.fault)
	}
	return srv.answer(f, l.speaks(), m)
}

// answer is what an agent reads of a response.
func (srv *server) answer(f gateway.Forward, e era, m message) (gateway.Result, error) {
	if m.fault != nil {
		if e == modernEra && faultCode(m.fault) == codeVersion && srv.era.CompareAndSwap(int32(modernEra), int32(unknownEra)) {
			srv.look()
			return gateway.Result{}, notSent(errMoved)
		}
		return gateway.Result{Error: srv.renameFault(scrub(m.fault, "data"))}, nil
	}
	is, err := finished(f, e, m)
	if err != nil {
		return gateway.Result{}, err
	}
	return gateway.Result{Type: is, Raw: srv.own(m)}, nil
}

// codeVersion is what a server says that does not speak the version of a request.
const codeVersion = -32022

// look has the server asked again what it is and offers.
func (srv *server) look() {
	for _, f := range srv.feeds {
		f.nudge()
	}
}

// prepareCall makes the request, and makes the link ready for what comes with it.
func (s *Servers) prepareCall(ctx context.Context, srv *server, l link, f gateway.Forward, h *hearing) (call, error) {
	e := envelope{token: h.token, key: srv.IdempotencyMeta}
	once := f.Method == gateway.MethodCall || f.Method == ""
	if !once {
		e.key = ""
	}
	modern := l.speaks() == modernEra
	if modern {
		h.asks = nil // what the server needs it says in its answer
		e.era = modernMeta(srv.version, f.Caps, wantsLog(f, h.out != nil))
	} else {
		h.asks, h.era = mayAsk(opens(f).caps), legacyEra
		switch f.Method {
		case gateway.MethodTaskGet, gateway.MethodTaskUpdate, gateway.MethodTaskCancel:
			return call{}, errors.New("the server that made the task speaks another era by now")
		}
		if h.out != nil && (h.asks != nil || f.LogLevel != "") || l.at().speaksBeside() {
			if err := l.attend(ctx); err != nil {
				return call{}, err
			}
		}
		if err := l.at().logs(ctx, l, f.LogLevel); err != nil {
			return call{}, err
		}
	}
	params, err := callParams(f, e)
	if err != nil {
		return call{}, err
	}
	c := call{method: cmp.Or(f.Method, gateway.MethodCall), params: params, hears: h}
	if srv.kind == overHTTP && modern {
		c.header = headers(f, params)
	}
	if srv.IdempotencyHeader != "" && once {
		if c.header == nil {
			c.header = map[string]string{}
		}
		c.header[srv.IdempotencyHeader] = onceKey(f)
	}
	return c, nil
}

// A client is for whom a legacy session is opened, as far as its server is told.
type client struct {
	caps  json.RawMessage // what it may be asked; nil: nothing
	agent gateway.Stream  // the way to it beside all calls, or nil
}

// opens is the client of a session that is opened for a call. An agent who could
// only be asked by the answer is asked nothing while the server works on it, and one
// that has no session could not be found beside its calls.
func opens(f gateway.Forward) client {
	if f.Session == "" || mcp.IsModernProtocol(f.Protocol) {
		return client{}
	}
	return client{f.Open, f.Beside}
}

// wantsLog is the level of log messages that a modern server is asked for. An agent
// of before that says none leaves it to the server which it gets; a modern server
// sends none where nobody says.
func wantsLog(f gateway.Forward, listens bool) string {
	if f.LogLevel == "" && f.Session != "" && listens && !mcp.IsModernProtocol(f.Protocol) {
		return "debug"
	}
	return f.LogLevel
}

// link returns a way to the server for one call. In the modern era over HTTP
// that is an address; else it is the one session or child that the agent's session
// has there with this credential, whatever it is asked for.
func (s *Servers) link(ctx context.Context, srv *server, f gateway.Forward) (link, func(), error) {
	if s.stopped.Err() != nil {
		return nil, nil, errClosed
	}
	e := era(srv.era.Load())
	if srv.kind == overHTTP && e == modernEra {
		return newWeb(srv, f.Lease.Headers, true), func() {}, nil
	}
	k := key{server: srv.Name, tenant: f.Principal.Tenant, task: f.Task.ID, principal: f.Principal.ID, session: f.Session, lease: f.Lease.ID, child: srv.kind == stdio}
	who, lease := opens(f), f.Lease // not f, which would be kept with each call
	l, give, err := s.pool.take(ctx, k, f.Lease.PerCall, func(ctx context.Context) (link, error) {
		ctx, cancel := context.WithTimeout(ctx, srv.Timeout)
		defer cancel()
		return s.open(ctx, srv, lease, who, e)
	})
	if agent := who.agent; err == nil && agent != nil {
		l.at().agent.Store(&agent) // whose credential is the newest
	}
	return l, give, err
}

// open opens a link in the era that the server was last seen to speak, and in
// another where it answers that it does not any more.
func (s *Servers) open(ctx context.Context, srv *server, lease gateway.Lease, who client, e era) (link, error) {
	if e == modernEra {
		return s.dial(ctx, srv, lease, modernEra)
	}
	if e != unknownEra {
		l, _, err := s.session(ctx, srv, lease, who, e)
		if err == nil || srv.Protocol != Auto || srv.kind == stdio || !answered(err) && !errors.Is(err, errRefused) && !errors.Is(err, errEra) {
			return l, err
		}
	}
	l, g, err := s.greet(ctx, srv, lease, who)
	if err == nil {
		srv.era.Store(int32(g.era))
	}
	return l, err
}

// Follow implements [gateway.Servers]. What follows one resource over one session
// shares it; a change that is told of while nobody took the last one counts once.
func (s *Servers) Follow(ctx context.Context, f gateway.Forward, updated func()) error {
	srv, err := s.of(f)
	if err != nil {
		return err
	}
	if err := s.follow(ctx, srv, f, updated); err != nil && ctx.Err() == nil {
		return fmt.Errorf("server %s: %w", srv.Name, err)
	}
	return ctx.Err()
}

func (s *Servers) follow(ctx context.Context, srv *server, f gateway.Forward, updated func()) error {
	l, give, err := s.link(ctx, srv, f)
	if err != nil {
		srv.look()
		return notSent(err)
	}
	defer give()
	told := make(chan struct{}, 1)
	tell := func() {
		select {
		case told <- struct{}{}:
		default:
		}
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- srv.subscribe(ctx, l, f, tell) }()
	for {
		select {
		case <-told:
			updated()
		case err := <-ended:
			return err
		}
	}
}

// subscribe has a server tell when a resource changes, until ctx ends or it does
// not any more.
func (srv *server) subscribe(ctx context.Context, l link, f gateway.Forward, tell func()) error {
	d, uri := l.at(), f.Tool.Name
	if l.speaks() == modernEra {
		if srv.kind == stdio {
			defer d.hear(uri, tell)()
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		err := l.listen(ctx, filter{URIs: []string{uri}}, func() {}, func(m message) {
			switch {
			case m.method == "notifications/resources/updated":
				tell()
			case m.method == acknowledged && !follows(m.params, uri):
				cancel(errNotOffered)
			}
		})
		if why := context.Cause(ctx); errors.Is(why, errNotOffered) {
			return why
		}
		return cmp.Or(err, errNoMore)
	}
	if !d.caps.subscribe() {
		return notSent(errNotOffered)
	}
	if err := l.attend(ctx); err != nil {
		return err
	}
	if err := d.logs(ctx, l, f.LogLevel); err != nil {
		return err
	}
	quoted, err := json.Marshal(uri)
	if err != nil {
		return err
	}
	params := json.RawMessage(`{"uri":` + string(quoted) + `}`)
	stop := d.hear(uri, tell)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		_ = d.order(ctx, func() error {
			if stop() || l.dead() {
				return nil
			}
			_, err := l.do(ctx, call{method: "resources/unsubscribe", params: params})
			return err
		})
		stop()
	}()
	err = d.order(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, srv.Timeout)
		defer cancel()
		m, err := l.do(ctx, call{method: gateway.MethodSubscribe, params: params})
		if err == nil && m.fault != nil {
			err = errNotOffered
		}
		return err
	})
	if err != nil {
		return err
	}
	select {
	case <-d.broken:
		return d.why
	case <-ctx.Done():
		return over(ctx)
	}
}

// follows reports whether a server that acknowledges a subscription took uri into it.
// One that says nothing of it is believed.
func follows(params json.RawMessage, uri string) bool {
	var body struct {
		Notifications *filter `json:"notifications"`
	}
	return json.Unmarshal(params, &body) != nil || body.Notifications == nil || slices.Contains(body.Notifications.URIs, uri)
}
