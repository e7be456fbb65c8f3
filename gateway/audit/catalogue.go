package audit

// A kind is what every event of one type has in common.
type kind struct {
	code     string // stable; the last letter says how loud: I, W, E or A (alert)
	phase    string // intent, decision, outcome or state
	severity string // info, low, medium, high or critical
	class    string // denial, escalation, override or none
}

// catalogue gives every type its row. A code is never given to another type,
// not even when its own is gone.
var catalogue = map[Type]kind{
	TaskStarted:      {"TG1001I", "state", "info", "none"},
	TaskStartRefused: {"TG1002W", "decision", "medium", "denial"},
	TaskEnded:        {"TG1003I", "outcome", "info", "none"},
	TaskExpired:      {"TG1004I", "outcome", "info", "none"},
	TaskEnding:       {"TG1005I", "state", "info", "none"},
	TaskRevoked:      {"TG1006W", "outcome", "medium", "override"},
	TaskEndUnproven:  {"TG1007A", "outcome", "critical", "escalation"},
	TaskNotNamed:     {"TG1008W", "decision", "medium", "denial"},
	SessionEnded:     {"TG1009I", "outcome", "info", "none"},

	EscalationRequested: {"TG1101I", "state", "medium", "escalation"},
	EscalationGranted:   {"TG1102W", "decision", "high", "escalation"},
	EscalationRefused:   {"TG1103W", "decision", "medium", "denial"},

	StopSet:    {"TG1201W", "state", "high", "override"},
	StopLifted: {"TG1202W", "state", "high", "override"},

	CallAllowed:   {"TG2001I", "decision", "info", "none"},
	CallHeld:      {"TG2002I", "decision", "low", "none"},
	CallDenied:    {"TG2003W", "decision", "medium", "denial"},
	CallCompleted: {"TG2004I", "outcome", "info", "none"},
	CallFailed:    {"TG2005E", "outcome", "low", "none"},
	CallCancelled: {"TG2006W", "outcome", "low", "none"},
	CallInDoubt:   {"TG2007A", "outcome", "high", "escalation"},
	ListFiltered:  {"TG2008I", "decision", "info", "none"},
	AskAllowed:    {"TG2009I", "decision", "low", "none"},
	AskDenied:     {"TG2010W", "decision", "medium", "denial"},
	AskAnswered:   {"TG2011I", "outcome", "info", "none"},
	ResultStrange: {"TG2012W", "outcome", "low", "none"},

	ToolsSeen:    {"TG2101I", "state", "info", "none"},
	ToolsChanged: {"TG2102W", "state", "medium", "escalation"},
	ServerDown:   {"TG2103E", "state", "medium", "none"},
	ServerUp:     {"TG2104I", "state", "info", "none"},
	ToolWithheld: {"TG2105W", "state", "medium", "escalation"},
	ToolPinned:   {"TG2106I", "state", "medium", "none"},

	ServerUnsafe:   {"TG2107W", "state", "medium", "none"},
	ProgramSeen:    {"TG2108I", "state", "info", "none"},
	ProgramChanged: {"TG2109W", "state", "high", "escalation"},

	ApprovalRequested:      {"TG3001I", "state", "medium", "escalation"},
	ApprovalViewed:         {"TG3002I", "state", "info", "none"},
	ApprovalVote:           {"TG3003I", "decision", "medium", "none"},
	ApprovalVoteRefused:    {"TG3004W", "decision", "medium", "denial"},
	ApprovalGranted:        {"TG3005I", "decision", "medium", "none"},
	ApprovalDenied:         {"TG3006W", "decision", "medium", "denial"},
	ApprovalExpired:        {"TG3007W", "state", "low", "denial"},
	ApprovalCancelled:      {"TG3008I", "state", "low", "none"},
	ApprovalVoided:         {"TG3009W", "state", "medium", "denial"},
	ApprovalConsumed:       {"TG3010I", "state", "medium", "none"},
	ApprovalConsumeRefused: {"TG3011W", "decision", "high", "denial"},

	SecretRequested:    {"TG4001I", "intent", "info", "none"},
	SecretIssued:       {"TG4002I", "state", "info", "none"},
	SecretRefused:      {"TG4003W", "decision", "medium", "denial"},
	SecretRevoked:      {"TG4004I", "outcome", "info", "none"},
	SecretExpired:      {"TG4005I", "outcome", "low", "none"},
	SecretDisclosed:    {"TG4006W", "outcome", "low", "none"},
	SecretRevokeFailed: {"TG4007A", "outcome", "critical", "escalation"},
	ResponseRedacted:   {"TG4008W", "outcome", "high", "none"},

	PolicyLoaded:   {"TG5001I", "state", "medium", "none"},
	PolicyRejected: {"TG5002E", "state", "medium", "none"},

	IdentityRejected: {"TG6001W", "decision", "low", "denial"},
	RateLimited:      {"TG6002W", "decision", "low", "denial"},
	RequestRejected:  {"TG6003W", "decision", "low", "denial"},

	OperatorLogin:       {"TG7001I", "state", "info", "none"},
	OperatorLoginFailed: {"TG7002W", "decision", "medium", "denial"},
	OperatorLogout:      {"TG7003I", "state", "info", "none"},
	OperatorRefused:     {"TG7004W", "decision", "medium", "denial"},

	AuditStarted:   {"TG9001I", "state", "info", "none"},
	AuditStopped:   {"TG9002I", "state", "info", "none"},
	AuditRecovered: {"TG9003E", "state", "high", "none"},
	AuditQueried:   {"TG9004I", "state", "info", "none"},
	AuditDegraded:  {"TG9005A", "state", "critical", "none"},
}

// outcome reports whether events of this type say how something ended that had
// already begun. They alone may use the reserve when the disk is full.
func (t Type) outcome() bool { return catalogue[t].phase == "outcome" }
