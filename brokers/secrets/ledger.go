package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

const (
	grace     = 2 * time.Second  // after an expiry, before somebody looks whether it came about
	overFor   = 24 * time.Hour   // how long an ended task is remembered; its calls are refused before they get here
	deadAfter = 30 * time.Second // without a beat
	beatEvery = deadAfter / 3
)

// A state is where a lease is in its life. What is not in the ledger has ended,
// with its end on record.
type state string

const (
	intent state = "intent" // about to be made: a token of it, if there is one, was never used
	token  state = "token"  // its token's accessor is known: what hangs from it, if anything, is not
	open   state = "open"   // known whole, and handed over
	due    state = "due"    // to be ended, or being ended
)

// A record is one lease as the ledger has it: enough to end it and to say so,
// and never its value nor its token.
type record struct {
	ID      string       `json:"id"`
	Tenant  string       `json:"tenant"`
	Task    gateway.Task `json:"task,omitzero"` // what was known of it, without its scope
	Call    string       `json:"call,omitempty"`
	Server  string       `json:"server"`
	Binding string       `json:"binding"`
	Engine  string       `json:"engine"`
	Class   string       `json:"class"`
	PerCall bool         `json:"per_call,omitempty"`
	Replica string       `json:"replica"`
	Boot    string       `json:"boot"`

	State    state     `json:"state"`
	Began    time.Time `json:"began"`
	Bound    time.Time `json:"bound"`              // its token is dead by then, whatever happens
	Accessor string    `json:"accessor,omitempty"` // of its token
	LeaseID  string    `json:"lease_id,omitempty"` // Vault's
	Issued   time.Time `json:"issued,omitzero"`    // when it became open; zero if it never did
	Expires  time.Time `json:"expires,omitzero"`
	Request  string    `json:"request,omitempty"` // Vault's request id
	Version  string    `json:"version,omitempty"`

	Lost    bool      `json:"lost,omitempty"`    // Vault's answer never came: something may hang from the token
	Refused bool      `json:"refused,omitempty"` // that nothing came of it is on record
	Alerted bool      `json:"alerted,omitempty"` // that it would not end is on record
	Tries   int       `json:"tries,omitempty"`   // to end it
	By      string    `json:"by,omitempty"`      // who is ending it
	Until   time.Time `json:"until,omitzero"`    // and until when nobody else should

	version int64 // of the stored record; every change counts one up
}

// ends is when the lease is dead, whatever happens.
func (r *record) ends() time.Time {
	if r.Expires.IsZero() {
		return r.Bound
	}
	return r.Expires
}

// unlearnt says that whoever was about to learn what hangs from the token did
// not come to say so.
func (r *record) unlearnt() bool { return r.State == token && r.Engine == Leased && !r.Refused }

// What the ledger says where a record is not as it was.
var (
	errTaken = errors.New("the lease was taken to be ended")
	errOver  = errors.New("the task is over")
)

// A ledger keeps the records in Redis, sealed, and where Redis is in this
// process also in a journal.
type ledger struct {
	store         *redis.Store
	journal       *journal // or nil
	replica, boot string
}

type recordKeys struct{ record, due, boot, task, over redis.Key }

func (k recordKeys) list() []redis.Key { return []redis.Key{k.record, k.due, k.boot, k.task, k.over} }

func (l *ledger) keys(r *record) (k recordKeys, err error) {
	// A lease of no task is in the set of a task that cannot be.
	task := r.Task.ID
	if task == "" {
		task = "-"
	}
	var errs [5]error
	k.record, errs[0] = l.store.Key(r.Tenant, redis.Lease, r.ID)
	k.due, errs[1] = l.store.Key(r.Tenant, redis.LeasesDue)
	k.boot, errs[2] = l.store.Key(r.Tenant, redis.LeasesBoot, r.Replica, r.Boot)
	k.task, errs[3] = l.store.Key(r.Tenant, redis.LeasesTask, task)
	k.over, errs[4] = l.store.Key(r.Tenant, redis.LeasesOver, task)
	return k, errors.Join(errs[:]...)
}

// begin keeps a new record, unless its task is over.
var begin = redis.NewScript(`
if ARGV[5] == '' and redis.call('EXISTS', KEYS[5]) == 1 then return {'over'} end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3], 'record', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
return {'ok'}`)

// move replaces the record if it is still the one that was read.
var move = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[5] then return {'taken'} end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3], 'record', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
return {'ok'}`)

// finish forgets the record if it is still the one that was read.
var finish = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then return {'taken'} end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
return {'ok'}`)

// over lets nothing more begin for a task.
var over = redis.NewScript(`
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
local out = {'ok'}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do out[#out+1] = id end
return out`)

// alive says that a boot is.
var alive = redis.NewScript(redis.Clock + `
redis.call('ZADD', KEYS[1], now, ARGV[1])
return {'ok'}`)

// postpone puts off looking after a lease.
var postpone = redis.NewScript(`
redis.call('ZADD', KEYS[1], 'XX', ARGV[2], ARGV[1])
return {'ok'}`)

var buried = redis.NewScript(`
redis.call('ZREM', KEYS[1], ARGV[1])
return {'ok'}`)

// begin writes a lease down before anything of it is made.
func (l *ledger) begin(ctx context.Context, r *record) error {
	r.version, r.State = 1, intent
	return l.put(ctx, begin, r, "", r.Bound.Add(grace))
}

// restore writes down again what was forgotten too early, to be ended.
func (l *ledger) restore(ctx context.Context, r *record) error {
	r.Lost = r.Lost || r.unlearnt()
	r.version, r.State = r.version+1000, due
	return l.put(ctx, begin, r, "1", time.Now())
}

// move writes down what has become of a lease, and when to look after it. It
// returns errTaken where somebody else changed or ended it in between.
func (l *ledger) move(ctx context.Context, r *record, to state, when time.Time) error {
	was, stateWas := strconv.FormatInt(r.version, 10), r.State
	r.version, r.State = r.version+1, to
	err := l.put(ctx, move, r, was, when)
	if err != nil {
		r.version, r.State = r.version-1, stateWas
	}
	return err
}

func (l *ledger) put(ctx context.Context, script *redis.Script, r *record, arg string, when time.Time) error {
	k, err := l.keys(r)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	version := strconv.FormatInt(r.version, 10)
	said, err := l.store.Run(ctx, script, k.list(), r.ID, version, string(r.State),
		l.store.Seal(k.record, version, raw), arg, redis.Millis(when))
	switch {
	case err != nil:
		return err
	case said[0] == "over":
		return errOver
	case said[0] != "ok":
		return errTaken
	}
	return l.journal.put(r)
}

// finish forgets a lease whose end is on record.
func (l *ledger) finish(ctx context.Context, r *record) error {
	k, err := l.keys(r)
	if err != nil {
		return err
	}
	said, err := l.store.Run(ctx, finish, k.list(), r.ID, strconv.FormatInt(r.version, 10))
	if err != nil {
		return err
	}
	if said[0] != "ok" {
		return errTaken
	}
	return l.journal.end(r.ID)
}

// get returns a record, or nil where it has ended.
func (l *ledger) get(ctx context.Context, tenant, id string) (*record, error) {
	k, err := l.store.Key(tenant, redis.Lease, id)
	if err != nil {
		return nil, err
	}
	found, _, err := l.store.Fields(ctx, []redis.Key{k}, "version", "record")
	if err != nil || found[0]["version"] == "" {
		return nil, err
	}
	raw, err := l.store.Unseal(k, found[0]["version"], []byte(found[0]["record"]))
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("lease record: %w", err)
	}
	r.version, err = strconv.ParseInt(found[0]["version"], 10, 64)
	return r, err
}

// stands says whether a lease is open still, wherever it may have been ended.
func (l *ledger) stands(ctx context.Context, tenant, id string) (bool, error) {
	k, err := l.store.Key(tenant, redis.Lease, id)
	if err != nil {
		return false, err
	}
	found, _, err := l.store.Fields(ctx, []redis.Key{k}, "state")
	return err == nil && state(found[0]["state"]) == open, err
}

// over lets nothing more begin for a task, and returns the leases it has.
func (l *ledger) over(ctx context.Context, tenant, task string) ([]string, error) {
	mark, err := l.store.Key(tenant, redis.LeasesOver, task)
	if err != nil {
		return nil, err
	}
	set, err := l.store.Key(tenant, redis.LeasesTask, task)
	if err != nil {
		return nil, err
	}
	said, err := l.store.Run(ctx, over, []redis.Key{mark, set}, overFor.Milliseconds())
	if err != nil {
		return nil, err
	}
	return said[1:], nil
}

// due returns a tenant's leases that want looking after.
func (l *ledger) due(ctx context.Context, tenant string, n int) ([]string, error) {
	k, err := l.store.Key(tenant, redis.LeasesDue)
	if err != nil {
		return nil, err
	}
	return l.store.Due(ctx, k, n)
}

func (l *ledger) postpone(ctx context.Context, tenant, id string, when time.Time) error {
	k, err := l.store.Key(tenant, redis.LeasesDue)
	if err != nil {
		return err
	}
	_, err = l.store.Run(ctx, postpone, []redis.Key{k}, id, redis.Millis(when))
	return err
}

// beat says that this boot is alive.
func (l *ledger) beat(ctx context.Context) error {
	k, err := l.store.Key(redis.Shared, redis.LeasesAlive)
	if err != nil {
		return err
	}
	_, err = l.store.Run(ctx, alive, []redis.Key{k}, l.replica+"/"+l.boot)
	return err
}

// bury forgets a boot that has no lease left.
func (l *ledger) bury(ctx context.Context, boot string) error {
	k, err := l.store.Key(redis.Shared, redis.LeasesAlive)
	if err != nil {
		return err
	}
	_, err = l.store.Run(ctx, buried, []redis.Key{k}, boot)
	return err
}

// dead returns the boots that cannot end their own leases any more: earlier
// ones of this replica, and of others those not heard of for long. Their values
// were in memory only, so nobody can use these leases rightly.
func (l *ledger) dead(ctx context.Context) ([]string, error) {
	k, err := l.store.Key(redis.Shared, redis.LeasesAlive)
	if err != nil {
		return nil, err
	}
	now, err := l.store.Now(ctx)
	if err != nil {
		return nil, err
	}
	dead, err := l.store.Between(ctx, k, time.Time{}, now.Add(-deadAfter), 64)
	if err != nil {
		return nil, err
	}
	all, err := l.store.Latest(ctx, k, 1024)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if replica, boot, _ := strings.Cut(m, "/"); replica == l.replica && boot != l.boot {
			dead = append(dead, m)
		}
	}
	return dead, nil
}

// of returns the leases of a boot.
func (l *ledger) of(ctx context.Context, tenant, boot string) ([]string, error) {
	replica, id, _ := strings.Cut(boot, "/")
	k, err := l.store.Key(tenant, redis.LeasesBoot, replica, id)
	if err != nil {
		return nil, err
	}
	return l.store.Members(ctx, k)
}
