package audit

// Unknown is what a field says when the gateway does not know; it is never
// left out.
const Unknown = "unknown"

// An Event is one line of the log. Fields stand in the order of their JSON
// names, so that encoding/json's output is already canonical (RFC 8785); a
// test holds it to that. A caller fills what it knows; [Log] fills Code,
// FirstClass, Gateway, ID, Integrity, MonoNS, Phase, Severity, Time and V,
// whatever the caller put there.
type Event struct {
	Approval   *Approval  `json:"approval,omitempty"`
	Args       *Args      `json:"args,omitempty"`
	At         string     `json:"at,omitempty"` // when it happened, where that is not when it was written
	Call       *Call      `json:"call,omitempty"`
	Closing    *Closing   `json:"closing,omitempty"`
	Code       string     `json:"code"` // stable; its last letter is I, W, E or A (alert)
	Corr       *Corr      `json:"corr,omitempty"`
	Count      int64      `json:"count,omitempty"` // how many, in a counted summary
	Decision   *Decision  `json:"decision,omitempty"`
	Detail     string     `json:"detail,omitempty"` // in words, ours; length-capped
	FirstClass string     `json:"first_class"`      // denial, escalation, override or none
	Gateway    Gateway    `json:"gw"`
	ID         string     `json:"id"` // ULID
	Integrity  Integrity  `json:"integrity"`
	Key        string     `json:"key,omitempty"` // events with the same key are one; see [Log.Append]
	MonoNS     int64      `json:"mono_ns"`       // since this process opened the log; in whole microseconds, so that any JSON reader keeps it exact
	Operator   *Operator  `json:"operator,omitempty"`
	Outcome    *Outcome   `json:"outcome,omitempty"`
	Phase      string     `json:"phase"` // intent, decision, outcome or state
	Policy     *PolicyRef `json:"policy,omitempty"`
	Secret     *Secret    `json:"secret,omitempty"`
	Severity   string     `json:"severity"` // info, low, medium, high, critical
	Stop       *Stop      `json:"stop,omitempty"`
	Target     *Target    `json:"target,omitempty"`
	Task       *Task      `json:"task"` // null with UnboundReason
	Tenant     string     `json:"tenant"`
	Time       string     `json:"time"` // RFC 3339, UTC, microseconds; never runs back
	Tool       *Tool      `json:"tool,omitempty"`
	Type       Type       `json:"type"`
	Unbound    string     `json:"unbound_reason,omitempty"` // why Task is null
	V          int        `json:"v"`
	Workload   *Workload  `json:"workload"` // null where no workload is behind the event
}

// Approval is the approval request an event is about.
type Approval struct {
	Digest      string `json:"digest"` // the approval digest an operator answers to
	Expires     string `json:"expires"`
	Fingerprint string `json:"fingerprint"`
	FourEyes    string `json:"four_eyes"` // proven, or unproven where a human behind the task is unknown here
	ID          string `json:"id"`
	Need        []Need `json:"need"`
	Reason      string `json:"reason,omitempty"` // the operator's
	Seq         int64  `json:"seq"`              // dense per request: its transitions in order
	State       string `json:"state"`
	Votes       []Vote `json:"votes"`
}

// Need is one requirement of an approval request.
type Need struct {
	Group string `json:"group"`
	N     int    `json:"n"`
	Rule  string `json:"rule"`
}

// Vote is one operator's answer.
type Vote struct {
	At       string `json:"at"`
	By       string `json:"by"`
	Decision string `json:"decision"` // approve or deny
	Digest   string `json:"digest"`
}

// Args says what the arguments were without holding them.
type Args struct {
	Bytes     int    `json:"bytes"`
	Digest    string `json:"digest"`     // of the canonical form
	RawDigest string `json:"raw_digest"` // of the agent's bytes
}

// Call is the agent's request.
type Call struct {
	ID        string `json:"id"`
	JSONRPCID string `json:"jsonrpc_id"`
	Method    string `json:"mcp_method"`
	Protocol  string `json:"mcp_protocol"`
	Session   string `json:"session"`
	Source    string `json:"source"` // the address the request came from
	TraceID   string `json:"trace_id"`
}

// Closing is what ended with a task.
type Closing struct {
	Approvals int          `json:"approvals"`
	Calls     int          `json:"calls"`
	Children  int          `json:"children"`
	Leases    int          `json:"leases"`
	Links     int          `json:"links"` // downstream sessions and stdio children
	Names     ClosingNames `json:"names"`
	Sessions  int          `json:"sessions"`
	TookMS    int64        `json:"took_ms"` // from the beginning of its end
	Unproven  []string     `json:"unproven"`
	Why       string       `json:"why"`
}

// ClosingNames says what a closing counts, of each sort at most 20.
type ClosingNames struct {
	Approvals []string `json:"approvals"` // ids
	Children  []string `json:"children"`  // ids of tasks
	Leases    []string `json:"leases"`    // bindings
	Links     []string `json:"links"`     // servers
}

// Corr joins an event to other systems' records.
type Corr struct {
	OAuthClient    string `json:"oauth_client"` // that got the token the caller came with
	OAuthIssuer    string `json:"oauth_issuer"` // that made it
	VaultRequestID string `json:"vault_request_id"`
}

// Stop is a standing no of an operator's.
type Stop struct {
	Kind   string `json:"kind"` // tenant, principal, owner, human, standing
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Decision is what authz said.
type Decision struct {
	Effect     string   `json:"effect"` // allow, approve, deny
	Engine     string   `json:"engine"`
	Need       []Need   `json:"need"`
	PolicyRev  string   `json:"policy_rev"`
	Reason     string   `json:"reason"`
	ReasonCode string   `json:"reason_code"` // the refusal code, or ok
	Rules      []string `json:"rules"`       // FILE:LINE: row
}

// Gateway is the replica that wrote the event.
type Gateway struct {
	Boot       string `json:"boot"`
	Build      string `json:"build"`
	ConfigHash string `json:"config_hash"`
	Mode       string `json:"mode"` // serve or dev
	Replica    string `json:"replica"`
	Version    string `json:"version"`
}

// Integrity ties the event into its log.
type Integrity struct {
	Index int64  `json:"idx"`
	Log   string `json:"log"`  // the checkpoint origin
	Prev  string `json:"prev"` // "sha256:<hex>" of the line before, without its newline; of nothing, for the first
}

// Operator is the human who acted on the gateway.
type Operator struct {
	Groups []string `json:"groups"`
	Name   string   `json:"name"`
	Source string   `json:"source"`
}

// Outcome is how a call ended.
type Outcome struct {
	Code         string `json:"code"` // a refusal code, or none
	LatencyUS    int64  `json:"latency_us"`
	Redacted     int    `json:"redacted"` // occurrences of a secret blanked in the result
	ResultBytes  int    `json:"result_bytes"`
	ResultDigest string `json:"result_digest"`
	Status       string `json:"status"` // ok, tool_error, downstream_error, denied, timeout, in_doubt, cancelled
}

// PolicyRef names a policy file's content.
type PolicyRef struct {
	File     string `json:"file"`
	Model    string `json:"model"` // sha256 of model.conf
	Revision string `json:"revision"`
	Rows     int    `json:"rows"`
}

// Secret is a credential's life, never its value.
type Secret struct {
	Binding   string `json:"binding"`
	Class     string `json:"class"`     // revocable, ttl-bound, static, none-disclosed, stand-in
	Confirmed bool   `json:"confirmed"` // a lookup after the revoke said it is gone
	EndKind   string `json:"end_kind"`  // none yet: "open"; revoked, expired, disclosed, failed
	Engine    string `json:"engine"`
	Expires   string `json:"expires"`
	ID        string `json:"id"`         // ours
	LeaseHash string `json:"lease_hash"` // sha256 of Vault's lease id, or unknown
	Server    string `json:"server"`
	TTLS      int64  `json:"ttl_s"`
	Version   string `json:"version"` // of a static secret, or unknown
}

// Target is what was touched, as far as the gateway can know.
type Target struct {
	Addr   string `json:"addr"`
	Kind   string `json:"kind"`   // http or stdio
	Object string `json:"object"` // unknown unless the server's config names the argument that says it
}

// Task is the task an event belongs to.
type Task struct {
	Approvers []string `json:"approvers,omitempty"` // who alone may approve its calls
	Asserted  []string `json:"asserted"`            // which of its claims nobody proved
	Chain     []string `json:"chain"`               // the tasks above it, outermost first
	Expires   string   `json:"expires"`
	ID        string   `json:"id"`
	Implicit  bool     `json:"implicit"`
	Kind      string   `json:"kind"`
	Labels    []string `json:"labels,omitempty"`
	OnBehalf  string   `json:"on_behalf_of"`
	Owner     string   `json:"owner"`
	Parent    string   `json:"parent"`
	Purpose   string   `json:"purpose"`
	Reference string   `json:"reference,omitempty"`
	ScopeHash string   `json:"scope_hash"`
	State     string   `json:"state"`
	Widened   []string `json:"widened,omitempty"` // the approvals that widened it and have not lapsed
}

// Tool is the tool a call named, as resolved.
type Tool struct {
	Definition string `json:"def_hash"`
	Name       string `json:"name"`
	Server     string `json:"server"`
}

// Workload is who asked.
type Workload struct {
	Authn      string   `json:"authn"` // api_key, task_token, oidc, kubernetes, spiffe_jwt, spiffe_x509, mtls
	Bound      string   `json:"bound"` // the key its credential is bound to and was proven with, or none
	Credential string   `json:"credential"`
	Delegation []string `json:"delegation"`
	ID         string   `json:"id"`
	OnBehalfOf string   `json:"on_behalf_of"` // the human it acts for, or none
	Owner      string   `json:"owner"`
}
