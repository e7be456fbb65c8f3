package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A TaskSpec is what somebody wants a task to be.
type TaskSpec struct {
	Tenant     string // an operator's; a caller's own tenant otherwise
	Kind       string
	Purpose    string   // untrusted text, at most 500 characters
	Reference  string   // the ticket or prompt behind it, at most 8,000 characters; kept as a keyed hash unless the kind says otherwise
	Labels     []string // at most 16, "[a-z0-9][a-z0-9:._-]*"
	Approvers  []string // who alone may approve its calls: operators, or "group:NAME"; empty for whomever policy asks
	Principal  string   // the workload that will act on it; empty for the caller itself
	Principals []string // further ones, at most 16, each by a credential of its own
	OnBehalfOf string   // the human it is for, if any
	TTL        time.Duration
	Calls      int64            // its budget of calls; 0 for the kind's
	Scope      []authz.ScopeRow // narrows what its kind gives; empty for all of that
}

// An Exchange is a token request of RFC 8693, read.
type Exchange struct {
	Subject Secret // a workload's own token, a task token, or with Actor a human's
	Actor   Secret // the workload's, whom the subject's may_act names; or zero
	Spec    TaskSpec
}

// A starter is who starts a task, and what its word is worth.
type starter struct {
	id     string // as policy names it: a workload, or "operator:NAME"
	owner  string
	human  string   // whom its credential acts for
	proves []string // claims, as Principal.Vouches names them
	bound  string   // the key that the task's token will be bound to
	chain  []string // who delegated to its credential
	own    bool     // it is a workload that starts a task for itself
	whole  bool     // it may ask for all of a kind's scope; others for what a task has at first, and the rest is for humans to grant
	parent *Task    // of a delegation
	who    Fact     // for the record
	quiet  bool     // a refusal is counted, not written: it comes with every request
}

var allClaims = []string{"on_behalf_of", "purpose", "labels", "reference", "approvers"}

// StartTask starts a root task for a caller with a credential of its own, and
// returns the token that is the task. A task token starts children only.
func (g *Gateway) StartTask(ctx context.Context, cred Credential, spec TaskSpec) (Task, Secret, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return Task{}, Secret{}, err
	}
	if err := g.limit(p); err != nil {
		return Task{}, Secret{}, err
	}
	return g.startFor(ctx, p, p.Bound, spec)
}

// startFor starts a root task as p asks for it, for a token bound to a key.
func (g *Gateway) startFor(ctx context.Context, p Principal, bound string, spec TaskSpec) (Task, Secret, error) {
	who := Fact{Principal: &p}
	spec.Tenant = p.Tenant
	if spec.Principal == "" {
		spec.Principal = p.ID
	}
	if p.Task != "" {
		return g.notStarted(ctx, who, spec, refuse(Denied, errors.New("a task token starts no root task")).
			say("a task token can only delegate a part of its own task"))
	}
	kind, own := g.kinds[spec.Kind], spec.Principal == p.ID
	switch {
	case !own && !slices.ContainsFunc(p.StartsFor, func(whom string) bool { return authz.Match(spec.Principal, whom) }):
		// Or a workload could be many by making names up.
		return g.notStarted(ctx, who, spec, refuse(Denied, errors.New("a start for another workload")).
			say("this credential starts tasks for itself only"))
	case !own:
		bound = "" // it is another's key that would have to be proven
	case kind.Name != "" && !kind.Own:
		return g.notStarted(ctx, who, spec, refuse(Denied, errors.New("a kind that no workload may start for itself")).
			say("a workload cannot start a task of this kind for itself; ask whoever runs you"))
	case kind.Bound && p.Bound == "":
		return g.notStarted(ctx, who, spec, refuse(Denied, errUnbound).
			say("a task of this kind takes only a credential that is bound to a key of its holder (DPoP or mutual TLS)"))
	}
	return g.start(ctx, starter{
		id: p.ID, owner: p.Owner, human: p.OnBehalfOf, proves: p.Vouches, bound: bound, own: own, chain: p.Chain, who: who,
	}, spec)
}

// Exchange trades a workload's own token for a task token (RFC 8693): intent
// declared, decided by policy, the granted scope in the task it returns. A task
// token buys a child of its task. With an actor, the subject is the human on
// whose behalf it will act, and must have said so in may_act.
func (g *Gateway) Exchange(ctx context.Context, cred Credential, x Exchange) (Task, Secret, error) {
	none := Secret{}
	bound, err := g.Identity.Proven(ctx, cred)
	if err != nil {
		return Task{}, none, g.unidentified(cred, err)
	}
	// A proof is good once: from here on it is what it proved.
	holder := Proof{Proven: bound, Peer: cred.Proof.Peer}
	if x.Actor.IsZero() {
		return g.exchange(ctx, Credential{Bearer: x.Subject, Proof: holder, Source: cred.Source}, bound, x.Spec)
	}
	actor, err := g.identifyToken(ctx, Credential{Bearer: x.Actor, Proof: holder, Source: cred.Source})
	if err != nil {
		return Task{}, none, err
	}
	// The human's token is handed on by its client, who cannot prove its key.
	human, err := g.identifyToken(ctx, Credential{Bearer: x.Subject, Source: cred.Source})
	if err != nil {
		return Task{}, none, err
	}
	if err := g.limit(actor); err != nil {
		return Task{}, none, err
	}
	switch {
	case actor.Task != "" || human.Task != "":
		err = errors.New("a task token beside an actor")
	case actor.Tenant != human.Tenant:
		err = errors.New("subject and actor are of two tenants")
	case !human.lets(actor):
		err = errors.New("the subject's may_act does not name the actor")
	}
	if err != nil {
		spec := x.Spec
		spec.Tenant = actor.Tenant
		return g.notStarted(ctx, Fact{Principal: &actor}, spec, refuse(Denied, err).
			say("the subject token does not let this actor act for it (may_act)"))
	}
	if actor.OnBehalfOf = human.OnBehalfOf; actor.OnBehalfOf == "" {
		actor.OnBehalfOf = human.ID
	}
	actor.Chain = slices.Concat(human.Chain, actor.Chain)
	return g.startFor(ctx, actor, bound, x.Spec)
}

// lets reports whether p's token says that actor may act for it.
func (p Principal) lets(actor Principal) bool {
	return actor.Subject != "" && slices.ContainsFunc(p.MayAct, func(m string) bool {
		return m == actor.Issuer+"|"+actor.Subject || m == actor.Subject && actor.Issuer == p.Issuer && p.Issuer != ""
	})
}

func (g *Gateway) exchange(ctx context.Context, subject Credential, bound string, spec TaskSpec) (Task, Secret, error) {
	p, err := g.identifyToken(ctx, subject)
	if err != nil {
		return Task{}, Secret{}, err
	}
	if err := g.limit(p); err != nil {
		return Task{}, Secret{}, err
	}
	if p.Task == "" {
		return g.startFor(ctx, p, bound, spec)
	}
	return g.delegateFor(ctx, p, subject, p.Task, bound, spec)
}

// identifyToken identifies whose a token in the body of a token request is.
func (g *Gateway) identifyToken(ctx context.Context, cred Credential) (Principal, error) {
	p, err := g.identify(ctx, cred)
	return p, g.unidentified(cred, err)
}

// Delegate starts a child of a running task for another workload, or for another
// of the same: a part of its scope, for no longer, ended with it.
func (g *Gateway) Delegate(ctx context.Context, cred Credential, parent string, spec TaskSpec) (Task, Secret, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return Task{}, Secret{}, err
	}
	if err := g.limit(p); err != nil {
		return Task{}, Secret{}, err
	}
	return g.delegateFor(ctx, p, cred, parent, p.Bound, spec)
}

func (g *Gateway) delegateFor(ctx context.Context, p Principal, cred Credential, parent, bound string, spec TaskSpec) (Task, Secret, error) {
	spec.Tenant = p.Tenant
	cred.Task = parent
	t, err := g.running(ctx, &p, cred)
	if err != nil {
		return g.notStarted(ctx, Fact{Task: g.tried(ctx, &p, cred, err), Principal: &p}, spec, err)
	}
	return g.delegate(ctx, p, t, bound, spec)
}

// delegate starts a child of t as p, who acts on it, asks for it.
func (g *Gateway) delegate(ctx context.Context, p Principal, t Task, bound string, spec TaskSpec) (Task, Secret, error) {
	spec.Tenant = p.Tenant
	if spec.Principal == "" {
		spec.Principal = p.ID
	}
	return g.start(ctx, starter{
		id: p.ID, owner: t.Owner, human: t.OnBehalfOf, proves: p.Vouches, bound: bound, parent: &t, who: Fact{Principal: &p},
	}, spec)
}

// TaskStart starts a task for an operator, who becomes its owner.
func (g *Gateway) TaskStart(ctx context.Context, op Operator, spec TaskSpec) (Task, Secret, error) {
	return g.startAs(ctx, op, nil, spec)
}

// TaskDelegate starts a child of a running task for an operator.
func (g *Gateway) TaskDelegate(ctx context.Context, op Operator, tenant, parent string, spec TaskSpec) (Task, Secret, error) {
	if err := g.may(ctx, op, MayStart, tenant); err != nil {
		return Task{}, Secret{}, err
	}
	t, err := g.Tasks.Running(ctx, tenant, parent)
	if errors.Is(err, ErrNoTask) {
		return Task{}, Secret{}, ErrNotFound
	} else if err != nil {
		return Task{}, Secret{}, err
	}
	spec.Tenant = tenant
	return g.startAs(ctx, op, &t, spec)
}

func (g *Gateway) startAs(ctx context.Context, op Operator, parent *Task, spec TaskSpec) (Task, Secret, error) {
	if err := g.may(ctx, op, MayStart, spec.Tenant); err != nil {
		return Task{}, Secret{}, err
	}
	if spec.Principal == "" {
		return Task{}, Secret{}, &Forbidden{Why: "Name the principal that will act on the task."}
	}
	by := starter{id: "operator:" + op.Name, owner: op.Name, proves: allClaims, whole: true, parent: parent, who: Fact{Operator: &op}}
	if parent != nil {
		by.owner, by.human = parent.Owner, parent.OnBehalfOf
	}
	t, token, err := g.start(ctx, by, spec)
	if r, ok := errors.AsType[*Refusal](err); ok && r.Code != Internal {
		err = &Forbidden{Why: r.Say}
	}
	return t, token, err
}

// standing returns the task of a caller that names none: the implicit one of its
// kind, started where it does not run yet.
func (g *Gateway) standing(ctx context.Context, p *Principal, source string) (Task, error) {
	if p.Standing == "" {
		return Task{}, refuse(NoTask, errors.New("no task named")).
			say(sayNameTask(source))
	}
	t, err := g.Tasks.Standing(ctx, p.Tenant, p.ID, p.OnBehalfOf, p.Standing)
	if err != nil {
		return g.startStanding(ctx, *p, err)
	}
	return t, nil
}

// startStanding starts it, where none runs.
func (g *Gateway) startStanding(ctx context.Context, p Principal, err error) (Task, error) {
	for range 3 {
		if !errors.Is(err, ErrNoTask) || errors.Is(err, ErrStopped) {
			return Task{}, g.noTask(p, err)
		}
		spec := TaskSpec{Tenant: p.Tenant, Kind: p.Standing, Principal: p.ID, Purpose: "nobody declared one: the client only knows our address"}
		t, _, serr := g.start(ctx, starter{id: p.ID, owner: p.Owner, human: p.OnBehalfOf, own: true, chain: p.Chain, who: Fact{Principal: &p}, quiet: true}, spec, implicit)
		if serr == nil {
			if t, err = g.Tasks.Running(ctx, p.Tenant, t.ID); err != nil {
				return Task{}, g.noTask(p, err)
			}
			return t, nil
		} else if !errors.Is(serr, ErrNotNow) {
			return Task{}, serr
		}
		// An identical request started it a moment ago.
		if t, err = g.Tasks.Standing(ctx, p.Tenant, p.ID, p.OnBehalfOf, p.Standing); err == nil {
			return t, nil
		}
	}
	return Task{}, refuse(Internal, fmt.Errorf("standing task: %w", err))
}

// sayNameTask tells a caller without a task how one is named where it asks from.
func sayNameTask(source string) string {
	if source == SourceStdio {
		return "no task was named; name a running one when serve --stdio starts (--task or TOOLBROKER_TASK), or in _meta['io.toolbroker/task'] of each request, or use a task token"
	}
	return "no task was named; use a task token, or name a running task in the Toolbroker-Task header or in _meta['io.toolbroker/task']"
}

func implicit(t *Task) { t.Implicit = true }

// start asks policy, records, and registers; in that order, so that no task runs
// that is not on record.
func (g *Gateway) start(ctx context.Context, by starter, spec TaskSpec, change ...func(*Task)) (Task, Secret, error) {
	who := by.who
	t, err := g.newTask(by, &spec)
	if err == nil {
		for _, f := range change {
			f(&t)
		}
		var d authz.Decision
		d, err = g.decideStart(by, t, spec)
		who.Decision = &d
	}
	if err == nil && t.Own && errors.Is(g.Tasks.Bind(ctx, t, t.Principal, t.OwnFor), ErrBusy) {
		who.Type = audit.TaskNotNamed // said before anything is said to start; the registry looks again
		err = g.notRegistered(by, ErrBusy)
	}
	if err != nil && by.quiet {
		g.mu.Lock()
		g.count(count{kind: noStanding, tenant: spec.Tenant, who: by.id})
		g.mu.Unlock()
		return Task{}, Secret{}, err
	} else if err != nil {
		who.Task = by.parent
		return g.notStarted(ctx, who, spec, err)
	}
	f := who
	f.Type, f.Tenant, f.Task = audit.TaskStarted, t.Tenant, &t
	if err := g.Recorder.Durable(ctx, f); err != nil {
		return Task{}, Secret{}, refuse(Internal, fmt.Errorf("record start: %w", err))
	}
	token, err := g.Tasks.Start(ctx, t)
	if err != nil {
		r := g.notRegistered(by, err)
		f.Type, f.Code, f.Detail = audit.TaskStartRefused, r.Code, "after its start was recorded: "+r.detail()
		if errors.Is(err, ErrBusy) {
			f.Type = audit.TaskNotNamed
		}
		g.recordOperator(ctx, f)
		return Task{}, Secret{}, r
	}
	return t, token, nil
}

// notRegistered says why the registry did not take a task.
func (g *Gateway) notRegistered(by starter, err error) *Refusal {
	err = fmt.Errorf("start task: %w", err)
	switch {
	case errors.Is(err, ErrBusy):
		return refuse(Denied, err).say("this workload is on another task already; it can start a second one only after that has ended")
	case errors.Is(err, ErrStopped):
		return refuse(Denied, err).say("an operator stopped this; ask them to lift the stop")
	case errors.Is(err, ErrTooMany):
		return refuse(TooMany, err).say("the task has as many children as it may; end one first")
	case errors.Is(err, ErrNoTask) && by.parent != nil:
		return refuse(NoTask, err)
	}
	return refuse(Internal, err)
}

// decideStart asks whether this task may start. What nobody proved about it is
// no argument of the question: it grants nothing.
func (g *Gateway) decideStart(by starter, t Task, spec TaskSpec) (authz.Decision, error) {
	about := map[string]any{"principal": t.Principal}
	if len(t.Principals) > 0 {
		about["principals"] = t.Principals
	}
	for _, c := range []struct {
		name  string
		claim Claim
		value any
	}{
		{"on_behalf_of", t.Claims.OnBehalfOf, t.OnBehalfOf}, {"purpose", t.Claims.Purpose, t.Purpose},
		{"reference", t.Claims.Reference, spec.Reference}, {"labels", t.Claims.Labels, t.Labels},
	} {
		if c.claim == Proven {
			about[c.name] = c.value
		}
	}
	args, err := json.Marshal(about)
	if err != nil {
		return authz.Decision{}, refuse(Internal, err)
	}
	q := authz.Request{
		Subject: authz.Subject{Principal: by.id, Tenant: t.Tenant},
		Task:    t.Kind, Tool: "task:" + t.Kind, Action: authz.Start, Args: args, Time: g.now(),
	}
	if by.parent != nil {
		q.Action, q.Task = authz.Delegate, by.parent.Kind
		q.Scopes = g.reachOf(*by.parent).all
	}
	d := g.Policy.Decide(q)
	switch d.Verdict {
	case authz.Allow:
		return d, nil
	case authz.Approve:
		return d, refuse(Denied, errors.New("a start that needs approval")).say("a task of this kind needs approval to start, which cannot be given here")
	}
	if by.parent != nil {
		return d, refuse(Denied, nil).say("policy, or the task's scope, does not let this task delegate one of this kind")
	}
	return d, refuse(Denied, nil).say("policy does not let you start a task of this kind")
}

func (g *Gateway) notStarted(ctx context.Context, who Fact, spec TaskSpec, err error) (Task, Secret, error) {
	r := asRefusal(err)
	if who.Type == "" {
		who.Type = audit.TaskStartRefused
	}
	who.Tenant, who.Code, who.Detail = spec.Tenant, r.Code, r.detail()
	who.Unbound = "the task was not started"
	g.recordOperator(ctx, who)
	return Task{}, Secret{}, r
}

func badTask(format string, args ...any) error {
	return refuse(BadArguments, nil).say(fmt.Sprintf(format, args...))
}

// newTask is the task that a spec describes, within what its kind and its parent
// allow, or the sentence why it cannot be.
func (g *Gateway) newTask(by starter, spec *TaskSpec) (Task, error) {
	kind, ok := g.kinds[spec.Kind]
	if !ok || len(kind.Tenants) > 0 && !slices.Contains(kind.Tenants, spec.Tenant) || !slices.Contains(g.Config.Tenants, spec.Tenant) {
		return Task{}, badTask("unknown task kind")
	}
	owner, known := g.Operators.Human(by.owner)
	if by.owner == "" || !known || owner.Disabled {
		return Task{}, badTask("the credential has no accountable owner among the operators, so it cannot start a task")
	}
	if err := g.checkSpec(kind, *spec); err != nil {
		return Task{}, err
	}
	if spec.TTL == 0 {
		spec.TTL = kind.TTL
	}
	// The human behind a credential is behind whatever it starts: a caller that
	// could name another could choose who may approve.
	if by.parent != nil && by.human == "" && spec.OnBehalfOf != "" {
		return Task{}, badTask("the task above is for no human, so one below it is for none")
	}
	if by.human != "" {
		if spec.OnBehalfOf != "" && HumanName(spec.OnBehalfOf) != HumanName(by.human) {
			return Task{}, badTask("on_behalf_of names another human than the one this credential acts for")
		}
		spec.OnBehalfOf = by.human
	}
	now := g.now().UTC().Truncate(time.Millisecond)
	t := Task{
		ID: newID("task"), Tenant: spec.Tenant, Kind: spec.Kind, Purpose: spec.Purpose, Owner: owner.Name, OnBehalfOf: spec.OnBehalfOf,
		Principal: spec.Principal, Principals: sorted(spec.Principals), StartedBy: by.id, Reference: g.reference(kind, spec), Labels: sorted(spec.Labels), Approvers: sorted(spec.Approvers),
		Bound: by.bound, Own: by.own, Parallel: kind.Parallel, Budget: kind.Budget, Limits: kind.Limits,
		State: TaskRunning, Started: now, Expires: now.Add(spec.TTL), Claims: claims(by, *spec),
	}
	if t.Chain = by.chain; t.Own {
		t.OwnFor = by.human
	}
	if spec.Calls > 0 {
		t.Budget.Calls = spec.Calls
	}
	var err error
	if t.Scope, err = startScope(kind, spec.Scope, by.whole); err != nil {
		return Task{}, badTask("scope: %v", err)
	}
	if by.parent != nil {
		err = below(&t, *by.parent, len(spec.Scope) > 0)
	}
	return t, err
}

// checkSpec holds a spec to its kind and to what can be shown.
func (g *Gateway) checkSpec(kind TaskKind, spec TaskSpec) error {
	for _, text := range []struct {
		what, s string
		most    int
	}{
		{"The purpose", spec.Purpose, 500}, {"on_behalf_of", spec.OnBehalfOf, 500}, {"The reference", spec.Reference, 8000},
	} {
		if err := plainText(text.what, text.s, text.most); err != nil {
			return badTask("%v", err)
		}
	}
	for _, name := range append([]string{spec.Principal}, spec.Principals...) {
		if taken := reserved(name); taken != "" {
			return badTask("no workload's name begins with %s", taken)
		} else if err := plainText("A principal", name, 256); err != nil || name == "" || strings.ContainsAny(name, "\n\t") {
			return badTask("a principal is a workload's name, of at most 256 characters")
		}
	}
	switch {
	case len(spec.Principals) > 16:
		return badTask("at most 16 further principals")
	case spec.TTL < 0 || spec.TTL > kind.TTL:
		return badTask("a task of this kind can run for at most %s", kind.TTL)
	case spec.Calls < 0 || kind.Budget.Calls > 0 && spec.Calls > kind.Budget.Calls:
		return badTask("a task of this kind can make at most %d calls", kind.Budget.Calls)
	case len(spec.Labels) > 16 || slices.ContainsFunc(spec.Labels, func(l string) bool { return !label.MatchString(l) }):
		return badTask("at most 16 labels, of small letters, digits and ':._-'")
	case len(spec.Approvers) > 16 || slices.ContainsFunc(spec.Approvers, func(a string) bool { return !approver.MatchString(a) }):
		return badTask("at most 16 approvers, each an operator's name or group:NAME")
	}
	for _, a := range spec.Approvers {
		if !g.Operators.Answers(spec.Tenant, a) {
			return badTask("approvers: %s is no operator who may answer here, nor a group with one", a)
		}
	}
	return nil
}

var (
	label    = regexp.MustCompile(`^[a-z0-9][a-z0-9:._-]{0,63}$`)
	approver = regexp.MustCompile(`^(group:)?[a-z0-9-]{1,64}$`)
)

// claims says what the starter's word is worth.
func claims(by starter, spec TaskSpec) Claims {
	worth := func(name string, made bool) Claim {
		switch {
		case !made:
			return ""
		case slices.Contains(by.proves, name):
			return Proven
		}
		return Asserted
	}
	c := Claims{
		Owner: Proven, OnBehalfOf: worth("on_behalf_of", spec.OnBehalfOf != ""), Purpose: worth("purpose", spec.Purpose != ""),
		Reference: worth("reference", spec.Reference != ""), Labels: worth("labels", len(spec.Labels) > 0),
		Approvers: worth("approvers", len(spec.Approvers) > 0),
	}
	if by.human != "" && by.parent == nil {
		c.OnBehalfOf = Proven // by the credential
	}
	return c
}

// startScope is the scope of a new task: what it asks for, as far as its kind
// gives it; all that its kind gives at first where it asks for nothing. What its
// kind does not give at first only an operator gives, now or when the task asks:
// else whoever was refused it could name it in the next task.
func startScope(kind TaskKind, rows []authz.ScopeRow, whole bool) (*authz.Scope, error) {
	asked, err := authz.NewScope(rows)
	switch {
	case err != nil:
		return nil, err
	case len(rows) == 0 && kind.Initial != nil:
		return kind.Initial, nil
	case len(rows) == 0:
		return kind.Scope, nil
	case whole || kind.Initial == nil:
		return asked.Narrow(kind.Scope)
	}
	if asked, err = asked.Within(kind.Initial.Named("a new task of kind " + kind.Name)); err != nil && kind.Escalate > 0 {
		return nil, fmt.Errorf("%w; a task can ask for more while it runs", err)
	}
	return asked, err
}

// below puts a task under its parent: never wider, never longer, never for
// another human, never with other approvers. Whatever its scope says, its
// parent's is asked as well; one that was spelled out is held to that at once.
func below(t *Task, parent Task, spelled bool) error {
	if parent.Limits.Depth <= 0 {
		return refuse(Denied, errors.New("delegation beyond its depth")).say("this task may not delegate any further")
	}
	if spelled {
		var err error
		if t.Scope, err = t.Scope.Narrow(parent.Scope.Named("task " + parent.ID)); err != nil {
			return badTask("scope: %v", err)
		}
	}
	t.Parent = parent.ID
	t.Ancestors, t.Chain = append(slices.Clone(parent.Ancestors), parent.Ancestor()), parent.Chain
	if parent.Bound != "" && t.Bound == "" {
		return refuse(Denied, errors.New("an unbound task below a bound one")).say("this task's token is bound to a key, so one below it must be: ask with a proof of the key")
	}
	t.Limits.Depth = min(t.Limits.Depth, parent.Limits.Depth-1)
	t.Limits.FanOut = min(t.Limits.FanOut, parent.Limits.FanOut)
	if t.Expires.After(parent.Expires) {
		t.Expires = parent.Expires
	}
	t.Claims.OnBehalfOf = parent.Claims.OnBehalfOf
	for _, l := range parent.Labels {
		if !slices.Contains(t.Labels, l) {
			t.Labels = append(t.Labels, l)
		}
	}
	if t.Labels = sorted(t.Labels); parent.Claims.Labels == Asserted {
		t.Claims.Labels = Asserted
	}
	if len(parent.Approvers) > 0 {
		if len(t.Approvers) == 0 {
			t.Approvers = parent.Approvers
		}
		t.Approvers = slices.DeleteFunc(slices.Clone(t.Approvers), func(a string) bool { return !slices.Contains(parent.Approvers, a) })
		if t.Claims.Approvers = parent.Claims.Approvers; len(t.Approvers) == 0 {
			return badTask("the approvers are not among those of the task above")
		}
	}
	return nil
}

// reference is what is kept of a reference: a digest that only this deployment
// can make again, unless the kind keeps it as it is.
func (g *Gateway) reference(kind TaskKind, spec *TaskSpec) string {
	if spec.Reference == "" || kind.Plain {
		return spec.Reference
	}
	m := hmac.New(sha256.New, g.ReferenceKey)
	m.Write([]byte("toolbroker-reference-v1\x00" + spec.Tenant + "\x00" + spec.Reference))
	return "hmac-sha256:" + hex.EncodeToString(m.Sum(nil))
}

func sorted(all []string) []string {
	if len(all) == 0 {
		return nil
	}
	return slices.Compact(slices.Sorted(slices.Values(all)))
}
