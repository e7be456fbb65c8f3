package gateway

import (
	"errors"
	"fmt"
)

// A Code is why a call was refused, as an agent may read it. The set is closed.
type Code string

// The codes. Each stands in docs/call.md with what to do next.
const (
	Unidentified     Code = "unidentified"
	NoTask           Code = "no_task"
	UnknownTool      Code = "unknown_tool"
	UnknownHandle    Code = "unknown_handle"
	InDoubt          Code = "in_doubt"
	BadState         Code = "bad_state"
	BadArguments     Code = "bad_arguments"
	Denied           Code = "denied"
	PendingApproval  Code = "pending_approval"
	DeniedByOperator Code = "denied_by_operator"
	ApprovalExpires  Code = "approval_expired"
	NoCredential     Code = "no_credential"
	Downstream       Code = "downstream"
	TooMany          Code = "too_many"
	OverBudget       Code = "over_budget"
	Cancelled        Code = "cancelled"
	Internal         Code = "internal"
)

// Codes lists every code, for those who must have a row for each.
var Codes = []Code{
	Unidentified, NoTask, UnknownTool, UnknownHandle, InDoubt, BadState, BadArguments, Denied, PendingApproval, DeniedByOperator,
	ApprovalExpires, NoCredential, Downstream, TooMany, OverBudget, Cancelled, Internal,
}

// what an agent reads where nothing more precise is said.
var words = map[Code]string{
	Unidentified:     "no valid credential came with the request",
	NoTask:           "there is no running task for this credential; ask whoever started you to start one",
	UnknownTool:      "unknown tool; list the tools again",
	UnknownHandle:    "unknown task handle, or one that is over and forgotten",
	BadState:         "requestState is not one of this call's; make the call again without it",
	InDoubt:          "this call was sent before, and it is not known whether it was done; look before you repeat it, and then repeat it under a new id",
	BadArguments:     "the arguments do not fit the tool's schema",
	Denied:           "this task may not make this call with these arguments; do not repeat it unchanged",
	PendingApproval:  "this call needs human approval; call again with identical arguments after it was given",
	DeniedByOperator: "an operator refused this call; do not repeat it",
	ApprovalExpires:  "nobody answered the approval request in time; call again to ask once more",
	NoCredential:     "no credential could be had for this tool's server; try again later",
	Downstream:       "the tool's server did not give a usable answer",
	TooMany:          "too many calls at once; slow down and try again",
	OverBudget:       "this task has used up its calls; ask whoever started you for a new one",
	Cancelled:        "the call was cancelled",
	Internal:         "the gateway could not do its part; try again in a moment, and if that does not help, tell whoever runs it",
}

// A Refusal is a no with two audiences: the agent reads Code, Say and CallID;
// Err is ours.
type Refusal struct {
	Code     Code
	Say      string // what happened and what to do next, for the agent
	CallID   string
	Approval *ApprovalRequest // when Code is PendingApproval
	State    string           // with it: the requestState of an input_required that sends a human to it; empty where the agent has been round often enough
	InDoubt  bool             // something may have reached the server
	Err      error

	recorded bool
}

func (r *Refusal) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("refused: %s", r.Code)
	}
	return fmt.Sprintf("refused: %s: %v", r.Code, r.Err)
}

// Unwrap returns the cause, for us.
func (r *Refusal) Unwrap() error { return r.Err }

// refuse makes a refusal with the code's own words.
func refuse(code Code, err error) *Refusal {
	return &Refusal{Code: code, Say: words[code], Err: err}
}

// say replaces the words by more precise ones. Nothing in them may come from
// what the policy hides.
func (r *Refusal) say(text string) *Refusal {
	r.Say = text
	return r
}

// detail is what the record says of the refusal: our own error texts, which
// hold no argument, result or secret.
func (r *Refusal) detail() string {
	if r.Err == nil {
		return ""
	}
	var inner *Refusal
	if errors.As(r.Err, &inner) && inner.Err != nil {
		return inner.Err.Error()
	}
	return r.Err.Error()
}

// asRefusal returns err as a refusal; what is not one yet is internal.
func asRefusal(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return refuse(Internal, err)
}

// CodeOf returns the code of a refusal, and Internal for any other error.
func CodeOf(err error) Code { return asRefusal(err).Code }

// A Forbidden is a no to an operator, in a sentence.
type Forbidden struct{ Why string }

func (f *Forbidden) Error() string { return f.Why }

// A NotIdentified says why a credential is not one. It wraps [ErrUnidentified].
type NotIdentified struct {
	Why   string   // one of the Why words: what refusals are counted by
	Scope []string // with WhyScope: what a token must have, and its holder could get
	Err   error    // ours; holds nothing of the credential
}

// Why a credential was not taken. The set is closed: it is what an outsider can
// make the log say.
const (
	WhyNone      = "no credential"
	WhyMalformed = "not a token that can be read"
	WhyUnknown   = "no such key"
	WhyIssuer    = "an issuer that is not configured"
	WhyAudience  = "a token for somebody else"
	WhyExpired   = "expired"
	WhyEarly     = "not valid yet"
	WhyAlgorithm = "an algorithm that is not allowed"
	WhySignature = "a signature that does not verify"
	WhyKeys      = "the issuer's keys cannot be had"
	WhyProof     = "no valid proof of possession"
	WhyReplay    = "a proof that was used before"
	WhyMapping   = "nobody whom a rule names"
	WhyScope     = "a token without the scope it needs"
	WhyBusy      = "too many tokens to verify at once"
	WhySession   = "another's session"
)

func (u *NotIdentified) Error() string {
	if u.Err == nil {
		return "unidentified: " + u.Why
	}
	return "unidentified: " + u.Why + ": " + u.Err.Error()
}

// Is makes it an [ErrUnidentified].
func (u *NotIdentified) Is(target error) bool { return target == ErrUnidentified }

// Unwrap returns the cause, for us.
func (u *NotIdentified) Unwrap() error { return u.Err }
