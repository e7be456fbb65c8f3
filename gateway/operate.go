package gateway

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"toolbroker/gateway/audit"
)

// A Right is what an operator may do.
type Right string

// The rights. Reading the list is not recorded; everything else is.
const (
	MaySee    Right = "see requests and tasks"
	MayVote   Right = "vote on requests"
	MayStart  Right = "start tasks"
	MayEnd    Right = "end tasks"
	MayStop   Right = "set and lift stops"
	MayAccept Right = "accept what servers define"
)

// rights is the whole table: what each role may do. May is the one function
// that reads it. Whoever answers does not also run things: an approver who may
// start, end or stop is an admin as well. An auditor sees what a viewer does;
// the record is read where it lies, which needs no login here.
var rights = map[string][]Right{
	"viewer":   {MaySee},
	"auditor":  {MaySee},
	"approver": {MaySee, MayVote},
	"admin":    {MaySee, MayStart, MayEnd, MayStop, MayAccept},
}

// Roles lists the operators' roles.
func Roles() []string { return []string{"admin", "approver", "auditor", "viewer"} }

// Can reports whether one of the operator's roles has the right. It serves
// pages, which leave out what would be refused; every act is checked again.
func (op Operator) Can(r Right) bool {
	return slices.ContainsFunc(op.Roles, func(role string) bool { return slices.Contains(rights[role], r) })
}

// may returns nil when the operator has the right in the tenant. A tenant that
// is not the operator's does not exist for it. Refusals are recorded.
func (g *Gateway) may(ctx context.Context, op Operator, r Right, tenant string) error {
	if op.Disabled {
		g.recordOperator(ctx, Fact{Type: audit.OperatorRefused, Tenant: orUnknown(oneOf(tenant, g.Config.Tenants)), Operator: &op, Detail: "disabled"})
		return &Forbidden{Why: "This operator is disabled."}
	}
	if !slices.Contains(op.Tenants, "*") && !slices.Contains(op.Tenants, tenant) || !slices.Contains(g.Config.Tenants, tenant) {
		g.recordOperator(ctx, Fact{Type: audit.OperatorRefused, Tenant: orUnknown(oneOf(tenant, g.Config.Tenants)), Operator: &op, Detail: "not this operator's tenant"})
		return ErrNotFound
	}
	for _, role := range op.Roles {
		if slices.Contains(rights[role], r) {
			return nil
		}
	}
	g.recordOperator(ctx, Fact{Type: audit.OperatorRefused, Tenant: tenant, Operator: &op, Detail: "lacks the right to " + string(r)})
	return &Forbidden{Why: "Your roles do not let you " + string(r) + "."}
}

// oneOf returns s if it is one of known: what a caller wrote is not a tenant's
// name on record until we know it.
func oneOf(s string, known []string) string {
	if slices.Contains(known, s) {
		return s
	}
	return ""
}

func (g *Gateway) recordOperator(ctx context.Context, f Fact) {
	if err := g.Recorder.Record(context.WithoutCancel(ctx), f); err != nil {
		g.Logger.Error("operator event not recorded", "type", f.Type, "err", err)
	}
}

// Login opens an operator's session. It fails with ErrLogin or ErrTooMany.
func (g *Gateway) Login(ctx context.Context, name string, password Secret, source string) (Secret, Operator, error) {
	token, op, err := g.Operators.Login(ctx, name, password, source)
	switch {
	case errors.Is(err, ErrTooMany):
		g.mu.Lock()
		g.count(count{kind: loginLimit, who: sourceOf(source)})
		g.mu.Unlock()
		return Secret{}, Operator{}, err
	case err != nil:
		f := Fact{Type: audit.OperatorLoginFailed, Tenant: allTenants, Operator: &Operator{Name: audit.Unknown, Source: source}}
		if known, ok := g.Operators.Human(name); ok && known.Name == name {
			f.Operator.Name = name
		}
		g.recordOperator(ctx, f)
		return Secret{}, Operator{}, err
	}
	if err := g.Recorder.Durable(ctx, Fact{Type: audit.OperatorLogin, Tenant: allTenants, Operator: &op}); err != nil {
		_ = g.Operators.Logout(context.WithoutCancel(ctx), token)
		return Secret{}, Operator{}, fmt.Errorf("record login: %w", err)
	}
	return token, op, nil
}

// allTenants stands on events that are no one tenant's.
const allTenants = "none"

const loginLimit = "too many logins"

// Operator returns who a session token is, or ErrLogin.
func (g *Gateway) Operator(ctx context.Context, token Secret) (Operator, error) {
	return g.Operators.Session(ctx, token)
}

// Logout ends a session.
func (g *Gateway) Logout(ctx context.Context, token Secret) error {
	op, err := g.Operators.Session(ctx, token)
	if err != nil {
		return err
	}
	g.recordOperator(ctx, Fact{Type: audit.OperatorLogout, Tenant: allTenants, Operator: &op})
	return g.Operators.Logout(ctx, token)
}

// ApprovalList returns the open requests and those that ended lately, of all the
// operator's tenants, oldest first, without arguments and the tasks as they were.
func (g *Gateway) ApprovalList(ctx context.Context, op Operator) ([]ApprovalRequest, error) {
	var all []ApprovalRequest
	for _, tenant := range g.tenantsOf(op) {
		if err := g.may(ctx, op, MaySee, tenant); err != nil {
			return nil, err
		}
		rs, err := g.Approvals.List(ctx, tenant)
		if err != nil {
			return nil, fmt.Errorf("list approvals: %w", err)
		}
		all = append(all, rs...)
	}
	for i := range all {
		all[i].Was = nil // long, and one at a time
	}
	slices.SortFunc(all, func(a, b ApprovalRequest) int { return a.Created.Compare(b.Created) })
	return all, nil
}

func (g *Gateway) tenantsOf(op Operator) []string {
	if slices.Contains(op.Tenants, "*") {
		return g.Config.Tenants
	}
	return op.Tenants
}

// ApprovalShow returns one request with the bytes that would be sent, and
// records that this operator saw them.
func (g *Gateway) ApprovalShow(ctx context.Context, op Operator, tenant, id string) (ApprovalRequest, error) {
	if err := g.may(ctx, op, MaySee, tenant); err != nil {
		return ApprovalRequest{}, err
	}
	r, err := g.Approvals.Get(ctx, tenant, id)
	if err != nil {
		return ApprovalRequest{}, err
	}
	if err := g.Recorder.Record(ctx, g.operatorFact(ctx, audit.ApprovalViewed, op, r)); err != nil {
		return ApprovalRequest{}, fmt.Errorf("record view: %w", err)
	}
	return r, nil
}

// operatorFact is what the record says of what an operator does about a request.
// Its task is there as it is now, where that can be read.
func (g *Gateway) operatorFact(ctx context.Context, t audit.Type, op Operator, r ApprovalRequest) Fact {
	task := r.AskedOn()
	if now, err := g.Tasks.Get(ctx, r.Tenant, r.TaskID); err == nil {
		task = now
	}
	return Fact{
		Type: t, Tenant: r.Tenant, Operator: &op, Approval: &r,
		Principal: &Principal{ID: r.Principal, Tenant: r.Tenant, OnBehalfOf: r.OnBehalfOf, Owner: r.Owner, Chain: r.Chain},
		Task:      &task,
		Tool:      &Tool{Server: r.Server, Name: r.Tool, Hash: r.Definition},
	}
}

// AskedOn is the task that the request was made on, with its chain, as it was then.
func (r ApprovalRequest) AskedOn() Task {
	if r.Was != nil {
		return *r.Was
	}
	return Task{ID: r.TaskID, Tenant: r.Tenant, Kind: r.TaskKind, Purpose: r.Purpose, Owner: r.TaskOwner, OnBehalfOf: r.TaskFor}
}

// HumanName is what two spellings of one human's name have in common: case,
// space around it and the schemes that people's names travel under do not tell
// humans apart. It is for comparing, never for showing.
func HumanName(name string) string {
	n := strings.TrimSpace(fold(norm.NFKC.String(name)))
	for _, scheme := range []string{"mailto:", "acct:", "operator:"} {
		n = strings.TrimPrefix(n, fold(scheme))
	}
	return strings.TrimSpace(n)
}

// behind says how an operator stands behind a request, as the page would; empty
// when it does not. Whoever asked, and its chain, cannot approve.
func behind(op Operator, r ApprovalRequest) string {
	self := func(name string) bool {
		n := HumanName(name)
		return n != "" && (n == HumanName(op.Name) || slices.ContainsFunc(op.Identities, func(id string) bool { return n == HumanName(id) }))
	}
	switch {
	case self(r.TaskOwner):
		return "You own this task."
	case self(r.StartedBy):
		return "You started this task."
	case slices.ContainsFunc(r.Starters, self):
		return "You started a task above this one."
	case self(r.OnBehalfOf), self(r.TaskFor):
		return "The agent acts for you."
	case self(r.Owner):
		return "You own this agent's credential."
	case self(r.Principal), slices.ContainsFunc(r.Chain, self):
		return "You are this agent, as far as we know."
	}
	return ""
}

// Answers reports whether the operator may vote in a tenant and is called approver,
// or is in the group that it names as "group:NAME".
func (op Operator) Answers(tenant, approver string) bool {
	return !op.Disabled && op.Can(MayVote) && (slices.Contains(op.Tenants, "*") || slices.Contains(op.Tenants, tenant)) && op.named(approver)
}

func (op Operator) named(approver string) bool {
	group, is := strings.CutPrefix(approver, "group:")
	return approver == op.Name || is && slices.Contains(op.Groups, group)
}

// mayAnswer reports whether the task's own approvers, if it has any, let an
// operator answer. They narrow what policy asks for, and never add to it.
func (r ApprovalRequest) mayAnswer(op Operator) bool {
	return len(r.Approvers) == 0 || slices.ContainsFunc(r.Approvers, op.named)
}

// fourEyes reports whether every human behind a call is one we know, so that a
// voter is known to be somebody else.
func (g *Gateway) fourEyes(p Principal, t Task) bool {
	for _, name := range []string{t.Owner, p.Owner, p.OnBehalfOf, t.OnBehalfOf} {
		if name == "" {
			continue
		}
		if _, ok := g.Operators.Human(name); !ok {
			return false
		}
	}
	return t.Owner != ""
}

// MayVote returns nil, or a *Forbidden with the sentence why not.
func (g *Gateway) MayVote(op Operator, r ApprovalRequest) error {
	if op.Disabled {
		return &Forbidden{Why: "This operator is disabled."}
	}
	if why := behind(op, r); why != "" {
		return &Forbidden{Why: why + " Someone else has to answer this request."}
	}
	if !r.mayAnswer(op) {
		return &Forbidden{Why: "The task lets only " + strings.Join(r.Approvers, ", ") + " answer this request."}
	}
	if !slices.ContainsFunc(op.Roles, func(role string) bool { return slices.Contains(rights[role], MayVote) }) {
		return &Forbidden{Why: "Your roles do not let you vote on requests."}
	}
	if slices.ContainsFunc(r.Votes, func(v Vote) bool { return v.By == op.Name }) {
		return &Forbidden{Why: "You have voted on this request already."}
	}
	var groups []string
	for _, n := range r.Need {
		if n.Group == "" || slices.Contains(op.Groups, n.Group) {
			return nil
		}
		groups = append(groups, n.Group)
	}
	return &Forbidden{Why: "This request is for members of " + strings.Join(groups, ", ") + "."}
}

// Vote gives an operator's answer to the request whose digest was shown. The
// vote is durable before it counts.
func (g *Gateway) Vote(ctx context.Context, op Operator, tenant, id string, approve bool, digest, reason string) (ApprovalRequest, error) {
	none := ApprovalRequest{}
	if err := g.may(ctx, op, MayVote, tenant); err != nil {
		return none, err
	}
	reason = strings.TrimSpace(reason)
	if err := plainText("The reason", reason, 500); err != nil {
		return none, err
	}
	if !approve && reason == "" {
		return none, &Forbidden{Why: "A denial needs a reason."}
	}
	r, err := g.Approvals.Get(ctx, tenant, id)
	if err != nil {
		return none, err
	}
	if err := g.MayVote(op, r); err != nil {
		f := g.operatorFact(ctx, audit.ApprovalVoteRefused, op, r)
		f.Detail = err.Error()
		g.recordOperator(ctx, f)
		return none, err
	}
	if subtle.ConstantTimeCompare([]byte(digest), []byte(r.Digest)) != 1 {
		f := g.operatorFact(ctx, audit.ApprovalVoteRefused, op, r)
		f.Detail = "the answer was for another digest"
		g.recordOperator(ctx, f)
		return none, ErrNotNow
	}
	if r.State != ApprovalPending {
		return none, ErrNotNow
	}
	v := Vote{By: op.Name, Groups: op.Groups, Approve: approve, Reason: reason, Digest: r.Digest, At: g.now().UTC()}
	f := g.operatorFact(ctx, audit.ApprovalVote, op, r)
	f.Vote = &v
	if err := g.Recorder.Durable(ctx, f); err != nil {
		return none, fmt.Errorf("record vote: %w", err)
	}
	after, err := g.Approvals.Vote(ctx, tenant, id, v)
	if err != nil {
		f := g.operatorFact(ctx, audit.ApprovalVoteRefused, op, r)
		f.Vote, f.Detail = &v, "the vote came too late or could not be counted"
		g.recordOperator(ctx, f)
		return none, err
	}
	if after.Kind == RequestEscalation && after.State == ApprovalDenied {
		f := g.operatorFact(ctx, audit.EscalationRefused, op, after)
		f.Code, f.Detail = DeniedByOperator, "an operator said no"
		g.recordOperator(ctx, f)
	}
	return after, nil
}

// plainText refuses what could fool a reader of the page, a terminal or the log.
func plainText(what, s string, most int) error {
	if utf8.RuneCountInString(s) > most {
		return &Forbidden{Why: fmt.Sprintf("%s can have at most %d characters.", what, most)}
	}
	for _, r := range s {
		if r != '\n' && r != '\t' && hidden(r) {
			return &Forbidden{Why: what + " contains a hidden or control character."}
		}
	}
	return nil
}

// hidden reports whether a reader would not see r as a mark of its own: controls,
// direction marks, separators, what is ignored by default, variation selectors,
// and the letter that looks like a space.
func hidden(r rune) bool {
	const brailleBlank = '\u2800'
	return r == utf8.RuneError || r == brailleBlank || r != ' ' && !unicode.IsPrint(r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Changes sends whenever some approval request changed; it stops with ctx.
func (g *Gateway) Changes(ctx context.Context) <-chan struct{} { return g.Approvals.Changes(ctx) }
