package gateway

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// Identify says who presented a credential, and refuses a session that was
// opened by someone else. Refusals are counted per source and second, not
// recorded one by one: they are anybody's to cause.
func (g *Gateway) Identify(ctx context.Context, cred Credential) (Principal, error) {
	p, err := g.identify(ctx, cred)
	if err == nil && cred.Session != "" {
		err = g.sameSession(ctx, p, cred)
	}
	return p, g.unidentified(cred, err)
}

// InSession is the rest of Identify, for who was identified before it was known
// which task a request names.
func (g *Gateway) InSession(ctx context.Context, p Principal, cred Credential) error {
	return g.unidentified(cred, g.sameSession(ctx, p, cred))
}

// identify asks who it is and holds the answer to what a principal must be.
func (g *Gateway) identify(ctx context.Context, cred Credential) (Principal, error) {
	p, err := g.Identity.Identify(ctx, cred)
	if err != nil {
		return Principal{}, err
	}
	if reserved(p.ID) != "" {
		return Principal{}, &NotIdentified{Why: WhyMapping, Err: errors.New("a principal with a reserved prefix")}
	}
	return p, nil
}

// reserved returns the prefix of a name that policy reads as an operator's, a
// role's, a group's or a kind of task's; no workload has one.
func reserved(name string) string {
	for _, taken := range []string{"operator:", "role:", "group:", "task:"} {
		if strings.HasPrefix(name, taken) {
			return taken
		}
	}
	return ""
}

// unidentified counts why a credential was not taken, and makes it a refusal.
func (g *Gateway) unidentified(cred Credential, err error) error {
	why, known := errors.AsType[*NotIdentified](err)
	switch {
	case err == nil:
		return nil
	case !known && !errors.Is(err, ErrUnidentified):
		return refuse(Internal, fmt.Errorf("identify: %w", err))
	case !known:
		why = &NotIdentified{Why: WhyUnknown, Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count(count{kind: noIdent + ": " + why.Why, who: sourceOf(cred.Source)})
	return refuse(Unidentified, err)
}

// sourceOf reduces an address to what is counted: the host, and of an IPv6
// address its /64.
func sourceOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String() + "/64"
	}
	return host
}

// binding is what a session is opened under: any other principal, human or task
// that claims the session is refused.
func binding(p Principal, cred Credential) string {
	task := p.Task
	if task == "" {
		task = cred.Task
	}
	return strings.Join([]string{p.Tenant, p.ID, p.OnBehalfOf, task}, "\n")
}

func (g *Gateway) sameSession(ctx context.Context, p Principal, cred Credential) error {
	s, err := g.Sessions.Session(ctx, cred.Session)
	if err != nil {
		err = fmt.Errorf("session: %w", err)
	} else if subtle.ConstantTimeCompare([]byte(s.Binding), []byte(binding(p, cred))) != 1 {
		err = fmt.Errorf("another's session: %w", ErrNotFound)
	}
	if errors.Is(err, ErrNotFound) {
		return &NotIdentified{Why: WhySession, Err: err}
	}
	return err
}

// OpenSession binds a new legacy session to the credential's principal and task.
func (g *Gateway) OpenSession(ctx context.Context, cred Credential, session, protocol string, caps json.RawMessage) error {
	cred.Session = ""
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return err
	}
	if err := g.limit(p); err != nil {
		return err
	}
	t, err := g.running(ctx, &p, cred)
	if err != nil {
		return err
	}
	if err := g.Sessions.Open(ctx, session, Session{Binding: binding(p, cred), Tenant: t.Tenant, Task: t.ID, Principal: p.ID, Protocol: protocol, Caps: caps}); err != nil {
		return refuse(Internal, fmt.Errorf("open session: %w", err))
	}
	return nil
}

// CloseSession ends cred.Session, for its owner only.
func (g *Gateway) CloseSession(ctx context.Context, cred Credential) error {
	if _, err := g.Identify(ctx, cred); err != nil {
		return err
	}
	if err := g.Sessions.Close(ctx, cred.Session); err != nil {
		return refuse(Internal, fmt.Errorf("close session: %w", err))
	}
	return nil
}

// Admit identifies the caller and finds its running task.
func (g *Gateway) Admit(ctx context.Context, cred Credential) (Principal, Task, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return Principal{}, Task{}, err
	}
	t, err := g.running(ctx, &p, cred)
	return p, t, err
}

// running returns the one task that the credential and the request agree on,
// and completes p's chain by those who delegated it.
func (g *Gateway) running(ctx context.Context, p *Principal, cred Credential) (Task, error) {
	id := p.Task
	switch {
	case id == "":
		id = cred.Task
	case cred.Task != "" && cred.Task != id:
		return Task{}, refuse(NoTask, errors.New("the request names another task than the token"))
	}
	var t Task
	var err error
	if id != "" {
		t, err = g.Tasks.Running(ctx, p.Tenant, id)
	} else if t, err = g.standing(ctx, p, cred.Source); err != nil {
		return Task{}, err
	}
	if err == nil {
		err = g.mayActOn(p, &t)
	}
	if err == nil && p.Task == "" && !t.Implicit {
		err = g.Tasks.Bind(ctx, t, p.ID, p.OnBehalfOf)
	}
	if err != nil {
		return Task{}, g.noTask(*p, g.whyOver(ctx, *p, id, err))
	}
	p.Chain = t.chain(p)
	return t, nil
}

// whyOver says of a task that runs no longer, to those who acted on it, that a
// stop ended it: whoever started them could start no other.
func (g *Gateway) whyOver(ctx context.Context, p Principal, id string, err error) error {
	if !errors.Is(err, ErrNoTask) || errors.Is(err, ErrStopped) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, g.GiveBack)
	defer cancel()
	if t, bad := g.Tasks.Get(ctx, p.Tenant, id); bad == nil && cmp.Or(t.Outcome, t.State) == TaskRevoked && g.mayActOn(&p, &t) == nil {
		return fmt.Errorf("%w: %w", errRevoked, err)
	}
	return err
}

var errRevoked = errors.New("a stop ended it")

// mayActOn reports why a running task is not this caller's to act on.
func (g *Gateway) mayActOn(p *Principal, t *Task) error {
	kind, ok := g.kinds[t.Kind]
	switch {
	case t.Tenant != p.Tenant, !t.Acts(p.ID):
		return fmt.Errorf("another workload's task: %w", ErrNoTask)
	case p.OnBehalfOf != "" && p.OnBehalfOf != t.OnBehalfOf && HumanName(p.OnBehalfOf) != HumanName(t.OnBehalfOf):
		return fmt.Errorf("another human's task: %w", ErrNoTask)
	case !ok:
		return fmt.Errorf("task kind %q is no longer configured: %w", t.Kind, ErrNoTask)
	case kind.Bound && p.Bound == "":
		return errUnbound
	}
	return nil
}

var errUnbound = fmt.Errorf("its kind wants a credential bound to a key: %w", ErrNoTask)

// noTask is a refusal for whatever kept a caller from its task.
func (g *Gateway) noTask(p Principal, err error) error {
	r := refuse(NoTask, err)
	switch {
	case errors.Is(err, ErrBusy):
		g.mu.Lock()
		defer g.mu.Unlock()
		g.count(count{kind: hopped, tenant: p.Tenant, who: p.ID})
		return r.say("this workload is on another task, and cannot turn to a second one by itself; end the first, or use a token for the second")
	case errors.Is(err, ErrStopped):
		return r.say("an operator stopped this; ask them to lift the stop")
	case errors.Is(err, errRevoked):
		return r.say("an operator stopped this task; it stays ended, and another can start only once the stop is lifted")
	case errors.Is(err, errUnbound):
		return r.say("a task of this kind takes only a credential that is bound to a key of its holder (DPoP or mutual TLS)")
	case errors.Is(err, ErrStale):
		return refuse(Internal, err).say(sayStale)
	case errors.Is(err, ErrNoTask):
		return r
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return refuse(Internal, fmt.Errorf("find task: %w", err))
}

const sayStale = "it cannot be confirmed right now that the task is still running, so nothing was done; try again in a moment"

// tried is the task that a caller named, or whose token it has, and was kept from,
// as far as it is known: who goes on trying after the end stands on that task's
// record. Whoever asks has been through limit, so a caller cannot make us read at
// will; nothing is read where the last read could not be confirmed. A task that is
// another workload's is none.
func (g *Gateway) tried(ctx context.Context, p *Principal, cred Credential, why error) *Task {
	id := cmp.Or(p.Task, cred.Task)
	stale := errors.Is(why, ErrStale)
	if id == "" || !stale && CodeOf(why) != NoTask {
		return nil
	}
	var t Task
	if stale {
		t, _ = g.Tasks.Running(ctx, p.Tenant, id)
		t.State = "" // that is what is not known
	} else {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
		defer cancel()
		t, _ = g.Tasks.Get(ctx, p.Tenant, id)
	}
	switch {
	case t.ID != "" && t.Acts(p.ID):
		p.Chain = t.chain(p)
		return &t
	case t.ID == "" && p.Task != "": // it was vouched for when the token was made
		return &Task{ID: p.Task, Tenant: p.Tenant, Principal: p.ID, Owner: p.Owner, OnBehalfOf: p.OnBehalfOf}
	}
	return nil
}

// chain is who delegated to p on this task, outermost first. A task token's own
// chain says what the task does.
func (t *Task) chain(p *Principal) []string {
	all := t.Delegators()
	if p.Task == "" && !slices.Equal(p.Chain, t.Chain) {
		all = append(all, p.Chain...)
	}
	return all
}

var (
	errTaskEnded   = fmt.Errorf("%w: it ended while the call was under way", ErrNoTask)
	errUnconfirmed = fmt.Errorf("%w: not for a second, while the call was under way", ErrStale)
)

// List returns what of one sort the task may be granted, sorted by alias, and what
// tools the gateway itself offers to it. It is to be read, not changed.
func (g *Gateway) List(ctx context.Context, cred Credential, s Sort, ref CallRef) ([]Tool, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return nil, err
	}
	if err := g.limit(p); err != nil {
		return nil, err
	}
	t, err := g.running(ctx, &p, cred)
	if err != nil {
		return nil, err
	}
	seen, of := g.seen(p, t, s)
	if seen, err = g.usable(ctx, &life{Call: Call{Credential: cred, Protocol: ref.Protocol}, Principal: p, Task: t}, seen); err != nil {
		return nil, err
	}
	ref.Source = cred.Source
	if err := g.Recorder.Record(ctx, listFact(p, t, s, ref, len(seen), of)); err != nil {
		return nil, refuse(Internal, fmt.Errorf("record: %w", err))
	}
	if s != SortTool {
		return seen, nil
	}
	if g.Search {
		seen = nil // agents find them by searching
	}
	return append(seen, g.offers(p, t)...), nil
}
