package redis

import (
	"errors"
	"fmt"
	"regexp"
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
	Task        = Kind{name: "task", ids: 1}                   // HASH: one task
	TasksDue    = Kind{name: "tasks-due"}                      // ZSET: running tasks by expiry, ms
	TasksLately = Kind{name: "tasks-lately"}                   // ZSET: ended tasks by end, ms
	TasksEnded  = Kind{name: "tasks-ended"}                    // STREAM: ids of ended tasks, what replicas confirm against
	TaskKey     = Kind{name: "task-key", ids: 1, shared: true} // STRING: a replica's public key, by kid

	Approval        = Kind{name: "approval", ids: 1}         // HASH: one approval request
	ApprovalsDue    = Kind{name: "approvals-due"}            // ZSET: open requests by when something is due, ms
	ApprovalsLately = Kind{name: "approvals-lately"}         // ZSET: final requests by end, ms
	ApprovalsTask   = Kind{name: "approvals-task", ids: 1}   // SET: a task's open requests
	ApprovalsOver   = Kind{name: "approvals-over", ids: 1}   // STRING: the task is over, nothing is asked for it any more
	ApprovalsMoves  = Kind{name: "approvals-moves"}          // HASH: n, counts every transition
	ApprovalsFinger = Kind{name: "approvals-finger", ids: 1} // STRING: the request that a fingerprint attaches to

	Lease      = Kind{name: "lease", ids: 1}       // one lease of the ledger
	LeasesDue  = Kind{name: "leases-due"}          // ZSET: open leases by expiry, ms
	LeasesTask = Kind{name: "leases-task", ids: 1} // SET: a task's open leases
	LeasesCall = Kind{name: "leases-call", ids: 1} // SET: a call's open leases

	LeasesBoot  = Kind{name: "leases-boot", ids: 2}        // SET: open leases of a replica's boot
	LeasesOver  = Kind{name: "leases-over", ids: 1}        // STRING: the task is over, nothing is issued for it any more
	LeasesAlive = Kind{name: "leases-alive", shared: true} // ZSET: replica/boot by when it was last heard of, ms

	OperatorSession = Kind{name: "operator-session", ids: 1, shared: true} // by digest of its token
	OperatorTries   = Kind{name: "operator-tries", ids: 1, shared: true}   // failed logins
	AgentSession    = Kind{name: "agent-session", ids: 1, shared: true}    // an agent's MCP session, by digest

	outbox     = Kind{name: "outbox", ids: 1}      // STREAM: facts on their way to the log, by broker
	outboxLock = Kind{name: "outbox-lock", ids: 1} // STRING: the replica that drains it
	wake       = Kind{name: "wake", ids: 1}        // a Pub/Sub channel, by topic
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

var id = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// ValidID reports whether s may be an id in a key.
func ValidID(s string) bool { return id.MatchString(s) }

// Key returns the key of a kind, for a tenant this store was opened for, or an
// error that wraps [ErrKey].
func (s *Store) Key(tenant string, k Kind, ids ...string) (Key, error) {
	if k.shared != (tenant == Shared) || !k.shared && !slices.Contains(s.tenants, tenant) {
		return Key{}, fmt.Errorf("%w: %s: unknown tenant", ErrKey, k.name)
	}
	if k.name == "" || len(ids) != k.ids || !all(ids, ValidID) {
		return Key{}, fmt.Errorf("%w: %s: bad id", ErrKey, k.name)
	}
	return Key{tenant, strings.Join(append([]string{"tb:{" + tenant + "}", k.name}, ids...), ":")}, nil
}

func all(ids []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(ids, func(s string) bool { return !ok(s) })
}
