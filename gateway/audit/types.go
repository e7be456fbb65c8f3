package audit

// Type is what kind of thing happened.
type Type string

// The catalogue. Every type has a row in catalogue, which gives its code,
// phase, severity and class; a test fails where one lacks it or its line in
// docs/audit-format.md.
const (
	TaskStarted      Type = "task.started"
	TaskStartRefused Type = "task.start_refused"
	TaskEnding       Type = "task.ending"       // its end began: no call passes from here on
	TaskEnded        Type = "task.ended"        // everything of it is gone; closing says what that was
	TaskExpired      Type = "task.expired"      // the same, at its expiry
	TaskRevoked      Type = "task.revoked"      // the same, because a stop, its parent or its owner took it
	TaskEndUnproven  Type = "task.end_unproven" // something of it was not proven gone in time
	TaskNotNamed     Type = "task.hop_refused"  // a workload named or started another root task beside its own
	SessionEnded     Type = "session.ended"     // what a session of an agent's had at servers is gone; closing says what that was

	EscalationRequested Type = "escalation.requested" // an agent asks for more scope
	EscalationGranted   Type = "escalation.granted"   // operators agreed, and the task has it now
	EscalationRefused   Type = "escalation.refused"   // policy, a scope or an operator said no

	StopSet    Type = "stop.set"
	StopLifted Type = "stop.lifted"

	CallAllowed   Type = "tool.call.allowed"   // decision: may run; durable before dispatch
	CallHeld      Type = "tool.call.held"      // decision: waits for a human
	CallDenied    Type = "tool.call.denied"    // decision or refusal before dispatch
	CallCompleted Type = "tool.call.completed" // outcome: the server answered
	CallFailed    Type = "tool.call.failed"    // outcome: the server failed or answered rubbish
	CallCancelled Type = "tool.call.cancelled" // outcome: the agent went away or the task ended
	CallInDoubt   Type = "tool.call.in_doubt"  // dispatched, outcome unknown
	ListFiltered  Type = "tool.list.filtered"
	AskAllowed    Type = "tool.ask.allowed"     // decision: a server may ask the agent this; durable before the question leaves
	AskDenied     Type = "tool.ask.denied"      // decision: it may not
	AskAnswered   Type = "tool.ask.answered"    // outcome: what came of it
	ResultStrange Type = "tool.result.mismatch" // outcome: a result is not what the tool's outputSchema promises

	ToolsSeen    Type = "tool.definition.seen"
	ToolsChanged Type = "tool.definition.changed"
	ToolWithheld Type = "tool.withheld" // a definition that nobody accepted: agents neither see nor reach it
	ToolPinned   Type = "tool.pinned"   // a definition was accepted, at first use or by an admin
	ServerDown   Type = "server.down"
	ServerUp     Type = "server.up"

	ServerUnsafe   Type = "server.unsafe"          // a child has less between it and us than it could
	ProgramSeen    Type = "server.program.seen"    // the digest of a child's program
	ProgramChanged Type = "server.program.changed" // and that it is another one now

	ApprovalRequested      Type = "approval.requested"
	ApprovalViewed         Type = "approval.viewed"
	ApprovalVote           Type = "approval.vote"
	ApprovalVoteRefused    Type = "approval.vote_refused"
	ApprovalGranted        Type = "approval.granted"
	ApprovalDenied         Type = "approval.denied"
	ApprovalExpired        Type = "approval.expired"
	ApprovalCancelled      Type = "approval.cancelled"
	ApprovalVoided         Type = "approval.voided" // a grant no longer enough when claimed
	ApprovalConsumed       Type = "approval.consumed"
	ApprovalConsumeRefused Type = "approval.consume_refused"

	SecretRequested    Type = "secret.requested"
	SecretIssued       Type = "secret.issued"
	SecretRefused      Type = "secret.refused"
	SecretRevoked      Type = "secret.revoked"
	SecretExpired      Type = "secret.expired"
	SecretDisclosed    Type = "secret.disclosed" // the end of a static secret's use: nothing to revoke
	SecretRevokeFailed Type = "secret.revoke_failed"
	ResponseRedacted   Type = "response.redacted"

	PolicyLoaded   Type = "policy.loaded"
	PolicyRejected Type = "policy.rejected"

	IdentityRejected Type = "identity.rejected" // counted per source and second
	RequestRejected  Type = "request.rejected"  // of an identified caller, and not to be read; counted
	RateLimited      Type = "ratelimit.hit"

	OperatorLogin       Type = "operator.login"
	OperatorLoginFailed Type = "operator.login_failed"
	OperatorLogout      Type = "operator.logout"
	OperatorRefused     Type = "operator.refused" // an operator lacked the right

	AuditStarted   Type = "audit.started"
	AuditStopped   Type = "audit.stopped"
	AuditRecovered Type = "audit.recovered" // a torn last line was cut off, or writing works again after a fault
	AuditDegraded  Type = "audit.degraded"  // no space left: only outcomes are written, on the reserve
	AuditQueried   Type = "audit.queried"
)
