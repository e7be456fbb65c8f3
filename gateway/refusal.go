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
	BadArguments     Code = "bad_arguments"
	Denied           Code = "denied"
	PendingApproval  Code = "pending_approval"
	DeniedByOperator Code = "denied_by_operator"
	ApprovalExpires  Code = "approval_expired"
	NoCredential     Code = "no_credential"
	Downstream       Code = "downstream"
	TooMany          Code = "too_many"
	Cancelled        Code = "cancelled"
	Internal         Code = "internal"
)

// A Refusal is a no with two audiences: the agent reads Code, Say and the call
// id; Err is ours.
type Refusal struct {
	Code     Code
	Say      string // what happened and what to do next, for the agent
	CallID   string
	Approval *ApprovalRequest // when Code is PendingApproval
	InDoubt  bool             // something may have reached the server
	Err      error
}

func (r *Refusal) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("refused: %s", r.Code)
	}
	return fmt.Sprintf("refused: %s: %v", r.Code, r.Err)
}

func (r *Refusal) Unwrap() error { return r.Err }

// CodeOf returns the code of a refusal, and Internal for any other error.
func CodeOf(err error) Code {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return Internal
}
