package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

const (
	takeTime = 2 * time.Second  // for some replica to find a stream of the session's
	endTime  = 70 * time.Second // for servers to end what a session has there; they are asked for a minute
)

// tie adds to a call on its way what holds for its agent's session, and not for it
// alone. An agent without one gets no more at a server than what the call says.
func (g *Gateway) tie(c *life, f *Forward) {
	if c.Credential.Session == "" || c.Protocol >= modern {
		return
	}
	b := &beside{g: g, cred: c.Credential, protocol: c.Protocol, server: c.Tool}
	if b.caps = g.open(c); b.caps != nil {
		f.Open = b.caps
	}
	f.Beside = b
}

// open is what a server could be let ask about anything of its own in this session:
// what the agent says that it can do, without what policy could never grant. Each
// question is decided when it is asked.
func (g *Gateway) open(c *life) json.RawMessage {
	var all map[string]json.RawMessage
	if isEmpty(c.Caps) || json.Unmarshal(c.Caps, &all) != nil {
		return nil
	}
	kept := map[string]json.RawMessage{}
	for _, a := range asks {
		v, ok := all[a.cap]
		if ok && (g.couldAny(c.Principal, c.Task, c.Tool.Server, a.action) || g.could(c.Principal, c.Task, c.Tool, a.action).Verdict != authz.Deny) {
			kept[a.cap] = v
		}
	}
	if more := extensions(all, uiExtension); more != nil {
		kept["extensions"] = more
	}
	if len(kept) == 0 {
		return nil
	}
	out, err := json.Marshal(kept)
	if err != nil {
		return nil
	}
	return out
}

// offeredAsks is which actions a server could be granted on something that it offers.
type offeredAsks struct {
	revision string // of the policy
	of       [4]*Tool
	could    map[authz.Action]bool
}

type askedOf struct{ principal, server string }

var everySort = [4]Sort{SortTool, SortResource, SortTemplate, SortPrompt}

// couldAny reports whether an action could be granted on something that a server
// offers. It is worked out once for a policy and a catalogue.
func (g *Gateway) couldAny(p Principal, t Task, server string, a authz.Action) bool {
	now := offeredAsks{revision: g.Policy.Revision()}
	var offered [4][]Tool
	for i, s := range everySort {
		if offered[i] = g.Servers.Offered(p.Tenant, s); len(offered[i]) > 0 {
			now.of[i] = &offered[i][0]
		}
	}
	r, key := g.reachOf(t), askedOf{p.ID, server}
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.asks[key]
	if !ok || known.revision != now.revision || known.of != now.of {
		known = now
		known.could = map[authz.Action]bool{}
		if r.asks == nil {
			r.asks = map[askedOf]offeredAsks{}
		}
		r.asks[key] = known
	}
	could, asked := known.could[a]
	if asked {
		return could
	}
	for _, some := range offered {
		for _, tool := range some {
			if tool.Server == server && g.could(p, t, tool, a).Verdict != authz.Deny {
				known.could[a] = true
				return true
			}
		}
	}
	known.could[a] = false
	return false
}

// A beside is the way from one server to the agent of a session while it works on
// nothing: log messages, and the question for the agent's roots. Whatever else a
// server asks belongs to a call.
type beside struct {
	g        *Gateway
	cred     Credential
	protocol string
	caps     json.RawMessage // what the server was told that it can ask
	server   Tool            // any of its things
}

// Notify implements [Stream]. Whoever has a stream of the session's sends it, if it
// is of a level that the agent wants and [Gateway.Hears] says so then.
func (b *beside) Notify(ctx context.Context, method string, params json.RawMessage) error {
	params, _, err := b.g.mesh.json(params)
	if err != nil {
		return nil // what cannot be blanked is not sent
	}
	return b.g.Sessions.Tell(ctx, News{Session: b.cred.Session, Note: &Note{Method: method, Params: params, Server: b.server.Server, Used: b.server.ID()}})
}

// Ask implements [Stream]. That the agent shows its roots is granted where it is on
// some tool of the server's: the question says of none that it is for it. The answer
// is on record before it leaves, as in a call.
func (b *beside) Ask(ctx context.Context, method string, params json.RawMessage) (Result, error) {
	if method != MethodRoots {
		return Result{}, ErrCannotAsk
	}
	p, t, err := b.g.Admit(ctx, b.cred)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrCannotAsk, err)
	}
	params, _, bad := b.g.mesh.json(params) // what is decided is what is passed on
	if bad == nil {
		bad = readAsk(method, params)
	}
	ask := Note{Ask: newID("ask"), Method: method, Params: params}
	c := &life{ID: ask.Ask, Call: Call{Credential: b.cred, Method: method, Protocol: b.protocol}, Principal: p, Task: t}
	fact := func(of audit.Type) Fact {
		f := c.fact(of)
		f.Tool = &Tool{Server: b.server.Server, Kind: b.server.Kind, Addr: b.server.Addr}
		f.Decision, f.Args = &c.Decision, &ArgsRef{Bytes: len(params), Canonical: sha(params), Raw: sha(params)}
		return f
	}
	if err := b.decide(ctx, c, params, bad, fact); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrCannotAsk, err)
	}
	r, err := b.put(ctx, ask)
	if err == nil {
		err = c.keeps(r.Raw, r.Error)
	}
	if err == nil {
		err = readAnswer(r)
	}
	f := fact(audit.AskAnswered)
	f.Detail = answered(r, err)
	if rerr := b.g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
		return Result{}, refuse(Internal, fmt.Errorf("record: %w", rerr))
	}
	if err != nil {
		return Result{}, err
	}
	return r, nil
}

// decide asks policy whether some tool of the server's may have the roots now, and
// puts the answer on record. What cannot be read, for bad, is denied unread.
func (b *beside) decide(ctx context.Context, c *life, params json.RawMessage, bad error, fact func(audit.Type) Fact) error {
	var can map[string]json.RawMessage
	_ = json.Unmarshal(b.caps, &can) // made by open, or nil
	c.Decision = authz.Decision{Revision: b.g.Policy.Revision(), Reason: "nothing that the server offers is granted the agent's roots"}
	for _, s := range everySort {
		for _, tool := range b.g.Servers.Offered(c.Principal.Tenant, s) {
			if bad != nil || tool.Server != b.server.Server || c.Decision.Verdict == authz.Allow || b.g.could(c.Principal, c.Task, tool, authz.Roots).Verdict == authz.Deny {
				continue
			}
			c.Decision = b.g.ask(c.Task, b.g.question(c.Principal, c.Task, tool.ID(), authz.Roots, params))
		}
	}
	var refused *Refusal
	switch {
	case bad != nil:
		refused = refuse(Downstream, fmt.Errorf("%w: what the server asks: %w", ErrBadAnswer, bad))
	case c.Decision.Verdict != authz.Allow:
		refused = refuse(Denied, errors.New("the server asked to "+asks[MethodRoots].say))
	case can[asks[MethodRoots].cap] == nil:
		refused = refuse(Downstream, errors.New("the server asked what the agent cannot answer"))
	}
	if refused == nil {
		if err := b.g.Recorder.Durable(ctx, fact(audit.AskAllowed)); err != nil {
			return refuse(Internal, fmt.Errorf("record: %w", err))
		}
		return nil
	}
	f := fact(audit.AskDenied)
	f.Code, f.Detail = refused.Code, refused.detail()
	if err := b.g.Recorder.Record(context.WithoutCancel(ctx), f); err != nil {
		return refuse(Internal, fmt.Errorf("record: %w", err))
	}
	return refused
}

// put has a question put to the agent by whichever replica has a stream of its
// session's, and waits for the answer. Where none has one, nobody is asked.
func (b *beside) put(ctx context.Context, ask Note) (Result, error) {
	session := b.cred.Session
	taken, forget, err := b.g.Sessions.Expect(ctx, session, ask.Taken())
	if err != nil {
		return Result{}, fmt.Errorf("expect that somebody asks: %w", err)
	}
	defer forget()
	answer, done, err := b.g.Sessions.Expect(ctx, session, ask.Ask)
	if err != nil {
		return Result{}, fmt.Errorf("expect an answer: %w", err)
	}
	defer done()
	if err := b.g.Sessions.Tell(ctx, News{Session: session, Note: &ask}); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrCannotAsk, err)
	}
	soon, cancel := context.WithTimeout(ctx, takeTime)
	defer cancel()
	if _, err := taken(soon); err != nil {
		return Result{}, fmt.Errorf("%w: no stream of its session is open", ErrCannotAsk)
	}
	r, err := answer(ctx)
	if err != nil { // the agent need not go on with it
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeTime)
		defer cancel()
		_ = b.g.Sessions.Tell(late, News{Session: session, Note: &Note{Method: "notifications/cancelled", Params: json.RawMessage(`{"requestId":"` + ask.Ask + `"}`)}})
	}
	return r, err
}

// RootsChanged tells the servers that have a session for the caller's that its roots
// are others now.
func (g *Gateway) RootsChanged(ctx context.Context, cred Credential) error {
	if _, err := g.Identify(ctx, cred); err != nil {
		return err
	}
	if err := g.Sessions.Tell(ctx, News{Session: cred.Session, Roots: true}); err != nil {
		return refuse(Internal, fmt.Errorf("tell of new roots: %w", err))
	}
	return nil
}

// heard is what happened in a session, on whatever replica, and matters to servers
// that this one has sessions at.
func (g *Gateway) heard(ctx context.Context, n News) {
	switch {
	case n.Closed && !n.WithTask: // a task's end closes all that is left of it by itself
		g.mu.Lock()
		defer g.mu.Unlock()
		select {
		case <-g.stopped: // so is all that servers have
		default:
			g.closing.Go(func() { g.endSession(ctx, n.Session) })
		}
	case n.Roots, n.Level != "":
		g.Servers.Hear(ctx, n)
	}
}

// endSession ends what a session has at servers here, and records what ended.
func (g *Gateway) endSession(ctx context.Context, session string) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	owner, links := g.Servers.EndSession(ctx, session)
	if owner == (Owner{}) {
		return
	}
	c := closed(links)
	t := Task{ID: owner.Task, Tenant: owner.Tenant, Principal: owner.Principal}
	if known, err := g.Tasks.Get(context.WithoutCancel(ctx), owner.Tenant, owner.Task); err == nil {
		t = known
	}
	if err := g.Recorder.Record(context.WithoutCancel(ctx), Fact{
		Type: audit.SessionEnded, Tenant: owner.Tenant, Task: &t, Principal: &Principal{ID: owner.Principal, Tenant: owner.Tenant},
		Call: &CallRef{Session: sessionRef(session)}, Closing: &c,
	}); err != nil {
		g.Logger.Error("end of a session's links not recorded", "task", owner.Task, "err", err)
	}
}

// closed says what of links ended.
func closed(links LinkEnds) Closing {
	c := Closing{Links: len(links.Gone), Names: Names{Links: links.Gone}}
	for _, server := range links.Open {
		c.Unproven = append(c.Unproven, "sessions or children of server "+server)
	}
	for _, server := range links.Lost {
		c.Lost = append(c.Lost, "sessions of server "+server+", which did not confirm their end")
	}
	return Closing{}.Add(c) // so that nothing is said twice
}
