package redis

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Shared stands where a tenant does in the keys of what belongs to none: an
// operator's session, a replica's public key. No tenant can have this name.
const Shared = "_"

// A Kind is one sort of key. The kinds below are all there are, because only
// this file can make one.
type Kind struct {
	name   string
	ids    int  // how many ids follow the name
	shared bool // belongs to no tenant
}

// The key grammar: "tb:{TENANT}:KIND[:ID]...". The braces keep a tenant's keys
// in one slot of a cluster, so that one script can have them all.
var (
	Task          = Kind{name: "task", ids: 1}                      // HASH: one task
	TasksDue      = Kind{name: "tasks-due"}                         // ZSET: running tasks by expiry, ms
	TasksClosing  = Kind{name: "tasks-closing"}                     // ZSET: ending tasks by when somebody should look, ms
	TasksLately   = Kind{name: "tasks-lately"}                      // ZSET: tasks by when their end began, ms
	TasksEnded    = Kind{name: "tasks-ended"}                       // STREAM: what ended or changed, what replicas confirm against
	TasksStops    = Kind{name: "tasks-stops"}                       // HASH: stops, by digest of what they are about
	TasksLifted   = Kind{name: "tasks-lifted", ids: 1}              // STRING: which stop was lifted, by the same digest
	TaskUsers     = Kind{name: "task-users", ids: 1}                // SET: replica/boot that used a task
	TaskReports   = Kind{name: "task-reports", ids: 1}              // HASH: what they closed of it, by replica/boot
	TaskChildren  = Kind{name: "task-children", ids: 1}             // SET: a task's children that are not closed
	TaskSpent     = Kind{name: "task-spent", ids: 1}                // STRING: calls taken from a task's budget
	TaskDay       = Kind{name: "task-day", ids: 2}                  // STRING: calls of a workload, human and kind on a day
	TaskBound     = Kind{name: "task-bound", ids: 1}                // STRING: the root task that a workload is on
	TaskStanding  = Kind{name: "task-standing", ids: 1}             // STRING: the implicit task of a workload, human and kind
	TaskKey       = Kind{name: "task-key", ids: 1, shared: true}    // STRING: a replica's public key, by kid
	ReplicasAlive = Kind{name: "replicas-alive", shared: true}      // ZSET: replica/boot by when it was last heard of, ms
	ReplicaBye    = Kind{name: "replica-bye", ids: 1, shared: true} // STRING: a boot that ended in order, by digest of replica/boot

	Approval        = Kind{name: "approval", ids: 1}         // HASH: one approval request
	ApprovalsDue    = Kind{name: "approvals-due"}            // ZSET: open requests by when something is due, ms
	ApprovalsLately = Kind{name: "approvals-lately"}         // ZSET: final requests by end, ms
	ApprovalsTask   = Kind{name: "approvals-task", ids: 1}   // SET: a task's open requests
	ApprovalsOver   = Kind{name: "approvals-over", ids: 1}   // STRING: the task is over, nothing is asked for it any more
	ApprovalsMoves  = Kind{name: "approvals-moves"}          // HASH: n, counts every transition
	ApprovalsFinger = Kind{name: "approvals-finger", ids: 1} // STRING: the request that a fingerprint attaches to
	ApprovalsDenial = Kind{name: "approvals-denial", ids: 1} // STRING: the denied request that other tasks' are told of

	Lease      = Kind{name: "lease", ids: 1}       // one lease of the ledger
	LeasesDue  = Kind{name: "leases-due"}          // ZSET: open leases by expiry, ms
	LeasesTask = Kind{name: "leases-task", ids: 1} // SET: a task's open leases
	LeasesCall = Kind{name: "leases-call", ids: 1} // SET: a call's open leases

	LeasesBoot  = Kind{name: "leases-boot", ids: 2}        // SET: open leases of a replica's boot
	LeasesOver  = Kind{name: "leases-over", ids: 1}        // STRING: the task is over, nothing is issued for it any more
	LeasesAlive = Kind{name: "leases-alive", shared: true} // ZSET: replica/boot by when it was last heard of, ms

	Pins      = Kind{name: "pins", ids: 1} // HASH: the definitions of one server that were accepted
	PinsMoves = Kind{name: "pins-moves"}   // HASH: n, counts every transition of a tenant's

	OperatorSession = Kind{name: "operator-session", ids: 1, shared: true} // by digest of its token
	OperatorTries   = Kind{name: "operator-tries", ids: 1, shared: true}   // failed logins
	AgentSession    = Kind{name: "agent-session", ids: 1, shared: true}    // an agent's MCP session, by digest
	SessionsTask    = Kind{name: "sessions-task", ids: 2, shared: true}    // SET: digests of a task's sessions, by tenant and task
	SessionsOf      = Kind{name: "sessions-of", ids: 2, shared: true}      // ZSET: a workload's sessions, by digest, by a time at or before their last use, ms; by tenant and digest of the workload
	SessionsMail    = Kind{name: "sessions-mail", shared: true}            // STREAM: what agents cancelled, and sessions that were closed
	AgentAsk        = Kind{name: "agent-ask", ids: 1, shared: true}        // HASH: an ask that an agent has not answered or has, by digest of session and ask

	Attempt       = Kind{name: "attempt", ids: 2, shared: true}        // HASH: what became of a call, or the boots that have it, by tenant and key
	AttemptsAlive = Kind{name: "attempts-alive", ids: 1, shared: true} // STRING: a boot that is alive
	AttemptsKept  = Kind{name: "attempts-kept", ids: 1, shared: true}  // ZSET: a tenant's attempts with an answer, by when they are forgotten, ms

	Handle      = Kind{name: "handle", ids: 1}       // HASH: what an agent of the tasks extension comes back for
	HandlesTask = Kind{name: "handles-task", ids: 1} // ZSET: a task's handles by expiry, ms
	HandlesOver = Kind{name: "handles-over", ids: 1} // STRING: the task is over, nothing is kept for it any more

	Proof = Kind{name: "proof", ids: 1, shared: true} // STRING: a proof of possession that was used, by digest

	outbox     = Kind{name: "outbox", ids: 1}      // STREAM: facts on their way to the log, by broker
	outboxLock = Kind{name: "outbox-lock", ids: 1} // STRING: the replica that drains it
	wake       = Kind{name: "wake", ids: 1}        // a Pub/Sub channel, by topic

	wakeShared = Kind{name: "wake", ids: 1, shared: true} // the same for what belongs to no tenant
)

// A Key names one thing in Redis. Only [Store.Key] makes one, so that every id
// in it was checked.
type Key struct{ tenant, name string }

// String returns the key as Redis has it; it is also what seals are bound to.
func (k Key) String() string { return k.name }

// Tenant returns whose key it is, or [Shared].
func (k Key) Tenant() string { return k.tenant }

// ErrKey says that a tenant or an id cannot be part of a key. It holds neither.
var ErrKey = errors.New("not a key")

// ValidID reports whether s may be an id in a key: [a-z0-9-]{1,64}.
func ValidID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Key returns the key of a kind, for a tenant this store was opened for, or an
// error that wraps [ErrKey].
func (s *Store) Key(tenant string, k Kind, ids ...string) (Key, error) {
	if k.shared != (tenant == Shared) || !k.shared && !slices.Contains(s.tenants, tenant) {
		return Key{}, fmt.Errorf("%w: %s: unknown tenant", ErrKey, k.name)
	}
	if k.name == "" || len(ids) != k.ids || !all(ids, ValidID) {
		return Key{}, fmt.Errorf("%w: %s: bad id", ErrKey, k.name)
	}
	n := len("tb:{}:") + len(tenant) + len(k.name)
	for _, id := range ids {
		n += 1 + len(id)
	}
	var b strings.Builder
	b.Grow(n)
	for _, s := range []string{"tb:{", tenant, "}:", k.name} {
		b.WriteString(s)
	}
	for _, id := range ids {
		b.WriteByte(':')
		b.WriteString(id)
	}
	return Key{tenant, b.String()}, nil
}

func all(ids []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(ids, func(s string) bool { return !ok(s) })
}
