package gateway

import (
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A Fact is one thing that happened, in the gateway's nouns. Everything but
// Type and Tenant may be left out; what an event must say and a fact does not
// is recorded as unknown.
type Fact struct {
	Type   audit.Type
	Tenant string
	Key    string    // facts with the same non-empty key are one event, even across restarts
	At     time.Time // when it happened, if not now

	Principal *Principal
	Task      *Task
	Call      *CallRef
	Tool      *Tool
	Args      *ArgsRef
	Decision  *authz.Decision
	Code      Code // the refusal, if it is one
	Approval  *ApprovalRequest
	Vote      *Vote
	Lease     *Lease
	LeaseEnd  *LeaseEnd
	Operator  *Operator
	Outcome   *Outcome
	Policy    *audit.PolicyRef
	Count     int64
	Detail    string // ours, in words; never an argument, a result or a secret
}

// A CallRef names a call.
type CallRef struct {
	ID, JSONRPCID, Method, Protocol, Session, Source, Trace string
}

// An ArgsRef says what the arguments were without holding them.
type ArgsRef struct {
	Bytes          int
	Canonical, Raw string // "sha256:<hex>"
}

// A LeaseEnd is how a lease ended.
type LeaseEnd struct {
	Kind      string // revoked, expired, disclosed, failed
	Confirmed bool   // a lookup afterwards said it is gone
}

// An Outcome is how a dispatched call ended.
type Outcome struct {
	Status   string // ok, tool_error, downstream_error, timeout, in_doubt, cancelled
	Latency  time.Duration
	Bytes    int
	Digest   string
	Redacted int
}
