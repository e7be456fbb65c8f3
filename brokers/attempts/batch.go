package attempts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

const (
	most    = 500 // steps of one round trip
	timeout = 2 * time.Second
	lease   = 4 * time.Second // without a word from a replica for so long, it is dead

	company    = 16                   // runs under way, with which a batch
	companyFor = 2 * time.Millisecond // waits so long for more, about as long as their records take
)

// A batch is one round trip: steps, in the order in which they were pushed.
type batch struct {
	keys  []redis.Key // this replica's sign of life, and then one for each step
	steps []byte      // as the script reads them

	ready chan struct{}   // closed when Redis has answered
	found map[int][]found // then: who else has the same, by step
	now   time.Time       // then: Redis's
	err   error           // then
}

const (
	begins  = 'b'
	keeps   = 'k' // for another window
	forgets = 'f'
)

// found is what Redis has of a key: a replica's boot and the number of its latest
// beginning, or what became of a run.
type found struct{ field, value string }

const attempt = "attempt" // the field that is no boot

// together runs a batch. KEYS: the boot's sign of life, then a key for each step.
// ARGV: boot, lease, how long a beginning is kept, and the steps, each with a space
// behind it: its kind, its number, and what is not in the way of a beginning, as
// ";boot=number;". A beginning leaves the boot's field, unless there is another's or an
// attempt; what there is comes back behind its place.
var together = redis.NewScript(redis.Clock + `
local boot, window = ARGV[1], ARGV[3]
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
local out, i = {'ok', now}, 1
for kind, number, but in string.gmatch(ARGV[4], '(%l)(%d+)(%S*) ') do
  i = i + 1
  local key = KEYS[i]
  if kind == 'f' then
    redis.call('HDEL', key, boot)
  elseif kind == 'k' then
    redis.call('HSETNX', key, boot, number)
    redis.call('PEXPIRE', key, window)
  else
    local free, all = true, redis.call('HGETALL', key)
    for j = 1, #all, 2 do
      local what = all[j] .. '='
      if all[j] ~= 'attempt' then what = what .. all[j + 1] end
      if all[j] ~= boot and not string.find(but, ';' .. what .. ';', 1, true) then
        free = false
        out[#out + 1] = i - 2
        out[#out + 1] = all[j]
        out[#out + 1] = all[j + 1]
      end
    end
    if free then
      redis.call('HSET', key, boot, number)
      redis.call('PEXPIRE', key, window)
    end
  end
end
return out`)

// push adds a step to the next batch and says where it is. A beginning is waited for,
// so flush follows it; anything else goes along, or with the next beat.
func (a *Attempts) push(kind byte, k redis.Key, number int64, but string) (in *batch, step int) {
	if n := len(a.queue); n > 0 && len(a.queue[n-1].keys) <= most {
		in = a.queue[n-1]
	} else {
		in = &batch{keys: []redis.Key{a.alive}, ready: make(chan struct{})}
		a.queue = append(a.queue, in)
	}
	in.steps = append(append(strconv.AppendInt(append(in.steps, kind), number, 10), but...), ' ')
	in.keys = append(in.keys, k)
	return in, len(in.keys) - 2
}

// flush sends what is queued. Whatever comes in while a batch is on its way goes
// together in the next. Where many runs are under way, many more are about to begin: a
// moment's wait spares most of them a round trip of their own.
func (a *Attempts) flush() {
	if a.sending || len(a.queue) == 0 {
		return
	}
	a.sending = true
	go func() {
		for {
			a.mu.Lock()
			if len(a.queue) == 0 {
				a.sending = false
				a.mu.Unlock()
				return
			}
			next, many := a.queue[0], len(a.tries)-a.answered.Len() >= company
			a.queue = slices.Delete(a.queue, 0, 1)
			a.mu.Unlock()
			if a.send(next); many {
				time.Sleep(companyFor)
			}
		}
	}()
}

func (a *Attempts) send(b *batch) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	reply, err := a.Store.Run(ctx, together, b.keys, a.boot, lease.Milliseconds(), (a.Window + brief).Milliseconds(), b.steps)
	b.found, b.now, b.err = readReply(reply, err, len(b.keys)-1)
	close(b.ready)
}

// readReply reads what a batch found, by step; nil where it found nothing at all.
func readReply(reply []string, err error, n int) (all map[int][]found, now time.Time, _ error) {
	if err != nil {
		return nil, now, err
	}
	if len(reply) < 2 || len(reply)%3 != 2 {
		return nil, now, errors.New("a reply of an odd length")
	}
	at, err := strconv.ParseInt(reply[1], 10, 64)
	if err != nil {
		return nil, now, fmt.Errorf("a reply without the time: %w", err)
	}
	now = time.UnixMilli(at)
	for rest := reply[2:]; len(rest) > 0; rest = rest[3:] {
		i, err := strconv.Atoi(rest[0])
		if err != nil || i < 0 || i >= n {
			return nil, now, errors.New("a reply about nothing")
		}
		if all == nil {
			all = map[int][]found{}
		}
		all[i] = append(all[i], found{rest[1], rest[2]})
	}
	return all, now, nil
}

// lostOne keeps what became of a call. KEYS: attempt, kept. ARGV: sealed attempt, the
// same without its answer or ”, tenant and key, window, when it is forgotten, how
// many answers a tenant may have kept.
var lostOne = redis.NewScript(redis.Clock + `
local attempt = ARGV[1]
if ARGV[2] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) and not redis.call('ZSCORE', KEYS[2], ARGV[3]) then
    attempt = ARGV[2]
  else
    redis.call('ZADD', KEYS[2], ARGV[5], ARGV[3])
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
  end
end
redis.call('HSET', KEYS[1], 'attempt', attempt)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'ok'}`)

// store keeps what became of a try where every replica finds it.
func (a *Attempts) store(ctx context.Context, t *try) error {
	a.mu.Lock()
	one := t.became
	a.mu.Unlock()
	kept, err := a.Store.Key(redis.Shared, redis.AttemptsKept, t.Tenant)
	if err != nil {
		return err
	}
	now, err := a.Store.Now(ctx)
	if err != nil {
		return err
	}
	until := now.Add(a.Window)
	sealed, err := a.seal(t.key, one, until)
	if err != nil {
		return err
	}
	var instead []byte
	if len(one.Answer) > 0 {
		if instead, err = a.seal(t.key, gateway.Attempt{Call: one.Call, Doubt: true}, until); err != nil {
			return err
		}
	}
	_, err = a.Store.Run(ctx, lostOne, []redis.Key{t.key, kept},
		sealed, instead, t.Tenant+":"+t.Key, a.Window.Milliseconds(), redis.Millis(until), a.MaxKept)
	return err
}
