package attempts

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// What one replica says to another about a key that both have runs of. Messages can
// be lost and are sent again; a replica that says nothing until its sign of life is
// gone has died.
const (
	free = "free" // none of mine is in your way
	busy = "busy" // one is, and it is not over
	told = "told" // what became of one is in Redis now
)

const (
	patience = 250 * time.Millisecond // for an answer, until the question is put again
	again    = 50 * time.Millisecond  // between two questions about what is not over
)

// ask puts a question to a boot, if there still is one. KEYS: attempt, the boot's sign
// of life, topic. ARGV: boot, number, question.
var ask = redis.NewScript(`
if redis.call('HEXISTS', KEYS[1], 'attempt') == 1 or redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return {'moved'}
end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'dead'} end
redis.call('PUBLISH', KEYS[3], ARGV[3])
return {'asked'}`)

var say = redis.NewScript(`redis.call('PUBLISH', KEYS[1], ARGV[1]) return {'ok'}`)

// afterOthers returns once t begins again, because nothing that was found is in its
// way any more, or what became of the run that it repeats.
func (a *Attempts) afterOthers(ctx context.Context, t *try, found []found, now time.Time) (gateway.Attempt, bool, error) {
	a.mu.Lock()
	t.state = waiting
	but := t.but
	a.mu.Unlock()
	for _, f := range found {
		if f.field == attempt {
			one, still, err := a.open(t.key, f.value, now)
			if err != nil || still {
				return one, still, err
			}
			but = with(but, attempt, "")
		}
	}
	for _, f := range found {
		if f.field == attempt {
			continue
		}
		verdict, err := a.wait(ctx, t, f)
		switch {
		case err != nil:
			return gateway.Attempt{}, false, err
		case verdict == dead:
			return gateway.Attempt{Doubt: true}, true, nil
		case verdict == free:
			but = with(but, f.field, f.value)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t.but = but
	a.begin(t)
	return gateway.Attempt{}, false, nil
}

const dead = "dead"

func with(but, field, value string) string {
	if but == "" {
		but = ";"
	}
	return but + field + "=" + value + ";"
}

// wait returns free once the boot that has an equal run says that it is not in t's
// way, dead where it cannot any more, and else "" once there is something new.
func (a *Attempts) wait(ctx context.Context, t *try, f found) (string, error) {
	life, err := a.Store.Key(redis.Shared, redis.AttemptsAlive, f.field)
	if err != nil {
		return "", fmt.Errorf("attempt: %w", err)
	}
	if _, err := strconv.ParseUint(f.value, 10, 64); err != nil {
		return "", errors.New("attempt: a beginning that has no number")
	}
	question := strings.ToLower(rand.Text())
	answer := make(chan string, 1)
	a.mu.Lock()
	a.asked[question] = answer
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.asked, question)
	}()
	text := strings.Join([]string{"ask", f.field, t.Tenant, t.Key, question}, " ")
	for {
		reply, err := a.Store.Run(ctx, ask, []redis.Key{t.key, life, a.topic}, f.field, f.value, text)
		if err != nil {
			return "", fmt.Errorf("ask about an attempt: %w", err)
		}
		switch reply[0] {
		case dead:
			return dead, nil
		case "moved":
			return "", nil
		}
		timer := time.NewTimer(patience)
		select {
		case said := <-answer:
			if timer.Stop(); said == free {
				return free, nil
			} else if said == told {
				return "", nil
			}
			timer.Reset(again)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
	}
}

// hear takes in a message from another replica.
func (a *Attempts) hear(ctx context.Context, text string) {
	words := strings.Fields(text)
	switch {
	case len(words) == 3 && words[0] == "say":
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case a.asked[words[1]] <- words[2]:
		default: // nobody's, or an answer to a question that was put twice
		}
	case len(words) == 5 && words[0] == "ask" && words[1] == a.boot:
		if k, err := a.Store.Key(redis.Shared, redis.Attempt, words[2], words[3]); err == nil {
			a.tell(ctx, k, words[4])
		}
	}
}

// tell says what this replica has of a key.
func (a *Attempts) tell(ctx context.Context, k redis.Key, question string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	said, one := a.standing(k)
	if one != nil {
		if err := a.store(ctx, one); err != nil {
			return // it asks again
		}
	}
	// Who is not told asks again.
	_, _ = a.Store.Run(ctx, say, []redis.Key{a.topic}, "say "+question+" "+said)
}

// standing is what an equal run elsewhere has to know of those here: free, busy, or
// told and what became of one. What waits for another replica itself does not count.
func (a *Attempts) standing(k redis.Key) (string, *try) {
	a.mu.Lock()
	defer a.mu.Unlock()
	said := free
	for _, t := range a.tries[k.String()] {
		switch {
		case t.state == waiting:
		case t.state == lost, t.state == answered && (t.Session != "" || t.Gone(true)):
			return told, t
		case t.state == queued && (t.Session != "" || t.Gone(false)):
			said = busy
		}
	}
	if len(a.tries[k.String()]) == 0 { // what Redis has of it is from a beginning that failed
		a.push(forgets, k, 0, "")
	}
	return said, nil
}

// Run says that this replica is alive, answers what others ask, and forgets what is
// over, until ctx ends.
func (a *Attempts) Run(ctx context.Context) error {
	hints, err := a.Store.Listen(ctx, topic)
	if err != nil {
		return fmt.Errorf("attempts: %w", err)
	}
	a.beat(ctx)
	tick, beat := time.NewTicker(every), time.NewTicker(lease/4)
	defer tick.Stop()
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			a.leave()
			return ctx.Err()
		case m, ok := <-hints:
			if !ok {
				hints = nil
				continue
			}
			go a.hear(ctx, m.ID)
		case <-tick.C:
			a.mu.Lock()
			a.flush()
			a.mu.Unlock()
		case <-beat.C:
			a.beat(ctx)
			a.sweep(time.Now())
		}
	}
}

const every = 100 * time.Millisecond // ends wait that long for a beginning

func (a *Attempts) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := a.Store.Set(ctx, a.alive, []byte("1"), lease); err != nil && ctx.Err() == nil {
		a.Log.WarnContext(ctx, "other replicas do not hear that this one is alive; they take its calls for lost", "error", err)
	}
}

// sweep forgets what was answered long enough ago, keeps what runs on for longer than
// a window, and sends again what others must know.
func (a *Attempts) sweep(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.answered.Front(); e != nil; {
		t := e.Value.(*try)
		e = e.Next()
		age := now.Sub(t.since)
		if t.state == answered && age <= unread {
			break // nor is any after it old enough
		}
		if t.state == answered && (age > a.Window || t.Session == "") {
			a.remove(t)
		}
	}
	if a.losing == 0 && now.Sub(a.swept) < a.Window/16 {
		return // nothing that cannot wait
	}
	a.swept = now
	for _, all := range a.tries {
		for _, t := range all {
			switch age := now.Sub(t.since); {
			case t.state == queued && age > a.Window/4:
				t.since = now
				a.push(keeps, t.key, t.number, "")
			case t.state == lost && age > a.Window:
				defer a.remove(t)
			case t.state == lost && age > timeout:
				go a.publish(t)
			}
		}
	}
}

// leave takes back this replica's word of what is over, leaves behind what became of
// sessions' calls, and then takes back its sign of life: the rest is in doubt.
func (a *Attempts) leave() {
	a.handOver()
	a.mu.Lock()
	rest := a.queue
	a.queue = nil
	a.mu.Unlock()
	for _, b := range rest {
		a.send(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := a.Store.Del(ctx, a.alive); err != nil {
		a.Log.WarnContext(ctx, "other replicas learn only in some seconds that this one has ended", "error", err)
	}
}

// handOver puts what became of sessions' calls where every replica finds it, the newest
// first, as far as there is time.
func (a *Attempts) handOver() {
	var left []*try
	a.mu.Lock()
	for e := a.answered.Back(); e != nil; {
		t := e.Value.(*try)
		switch e = e.Prev(); {
		case t.state != answered:
		case t.Session == "":
			a.remove(t)
		case !t.became.Doubt:
			left = append(left, t)
		}
	}
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for i, t := range left {
		if err := a.store(ctx, t); err != nil {
			a.Log.WarnContext(ctx, "what became of calls of this replica is not known to others; repeated there they are in doubt", "calls", len(left)-i, "error", err)
			return
		}
		a.mu.Lock()
		a.remove(t)
		a.mu.Unlock()
	}
}
