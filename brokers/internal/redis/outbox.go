package redis

import (
	"context"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"strconv"
	"time"
)

// An Outbox carries facts from transitions to the log. A transition's script
// XADDs an entry in the same step that changes the state, so there is neither
// a change without its fact nor a fact without its change; one replica at a
// time drains, and takes an entry away only after it was kept.
type Outbox struct {
	store *Store
	owner string
	token string // who we are in the lock
	woken chan struct{}
}

// An Entry is one fact on its way.
type Entry struct {
	Tenant string
	Key    string // the same however often the entry is sent, and no other entry's
	Fields map[string]string
}

// Outbox returns the outbox of one broker, which names itself.
func (s *Store) Outbox(owner string) *Outbox {
	return &Outbox{store: s, owner: owner, token: rand.Text(), woken: make(chan struct{}, 1)}
}

// Key is the stream that a tenant's transitions XADD to.
func (o *Outbox) Key(tenant string) (Key, error) { return o.store.Key(tenant, outbox, o.owner) }

// Wake says that there is something to drain, so that it need not wait for the
// next look.
func (o *Outbox) Wake() {
	select {
	case o.woken <- struct{}{}:
	default:
	}
}

// Run drains until ctx ends: on every Wake, and each second for what other
// replicas or an earlier life of this one left behind. An entry whose send
// fails stays and is sent again, and does not hold up those behind it; send must
// make one fact of two sendings, by the entry's Key.
func (o *Outbox) Run(ctx context.Context, send func(context.Context, Entry) error) error {
	for {
		for _, t := range o.store.tenants {
			if err := o.Drain(ctx, t, send); err != nil && ctx.Err() == nil {
				o.store.log.WarnContext(ctx, "outbox not drained, will be tried again", "outbox", o.owner, "tenant", t, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.woken:
		case <-time.After(Jitter(time.Second)):
		}
	}
}

// hold is how long a replica may keep an outbox to itself without saying so
// again; what it sends must be done before that.
const hold = 10 * time.Second

// take locks the outbox for one replica and returns entries from an id on, flat:
// id, number of strings, strings.
var take = NewScript(`
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'held'} end
if redis.call('XLEN', KEYS[1]) == 0 then return {'empty'} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local out = {'ok'}
for _, e in ipairs(redis.call('XRANGE', KEYS[1], ARGV[4], '+', 'COUNT', ARGV[3])) do
  out[#out+1] = e[1]
  out[#out+1] = #e[2]
  for _, v in ipairs(e[2]) do out[#out+1] = v end
end
return out`)

// leave gives the lock back if it is still ours.
var leave = NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'ok'}`)

// Drain sends what a tenant's outbox holds now, unless another replica is at
// it. A crash after send and before the entry is gone means that it is sent
// again.
func (o *Outbox) Drain(ctx context.Context, tenant string, send func(context.Context, Entry) error) error {
	stream, err := o.Key(tenant)
	if err != nil {
		return err
	}
	lock, err := o.store.Key(tenant, outboxLock, o.owner)
	if err != nil {
		return err
	}
	held := false
	defer func() {
		if held {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			o.store.Run(ctx, leave, []Key{lock}, o.token)
		}
	}()
	var failed error
	for last := "-"; ; {
		reply, err := o.store.Run(ctx, take, []Key{stream, lock}, o.token, hold.Milliseconds(), 64, last)
		if err != nil {
			return errors.Join(failed, err)
		}
		if reply[0] != "ok" {
			return failed
		}
		held = true
		before := last
		if last, err = o.sendAll(ctx, stream, last, reply[1:], send); err != nil {
			failed = err // one is enough to say
		}
		if last == before || ctx.Err() != nil {
			return failed
		}
	}
}

// sendAll sends a batch, but for what was tried already, and returns the last
// entry it tried.
func (o *Outbox) sendAll(ctx context.Context, stream Key, last string, flat []string, send func(context.Context, Entry) error) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, hold-2*time.Second)
	defer cancel()
	var failed error
	for len(flat) > 0 {
		id := flat[0]
		n, err := strconv.Atoi(flat[1])
		if err != nil || n%2 != 0 || n > len(flat)-2 {
			return last, errors.New("redis: outbox: not an entry")
		}
		strings := flat[2 : 2+n]
		flat = flat[2+n:]
		if id == last {
			continue
		}
		if ctx.Err() != nil {
			return last, ctx.Err()
		}
		last = id
		e := Entry{Tenant: stream.tenant, Key: o.owner + ":" + stream.tenant + ":" + id, Fields: map[string]string{}}
		for i := 0; i < n; i += 2 {
			e.Fields[strings[i]] = strings[i+1]
		}
		if err = send(ctx, e); err == nil {
			err = o.store.client.XDel(ctx, stream.name, id).Err()
		}
		if err != nil {
			failed = err
		}
	}
	return last, failed
}

// Jitter returns a duration around d, so that replicas do not march in step.
func Jitter(d time.Duration) time.Duration { return d*3/4 + mrand.N(d/2+1) }
