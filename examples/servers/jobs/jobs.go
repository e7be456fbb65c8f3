// Package jobs is an MCP server of revision 2026-07-28 whose tools take their time:
// a sample of the tasks extension (io.modelcontextprotocol/tasks, SEP-2663), in
// plain net/http, and the fixtures that the protocol's conformance suite asks of it.
//
// A client that declares the extension gets a task where a tool takes long, asks
// what became of it, answers what it is asked, and may cancel it. Tasks are kept in
// memory; whoever knows a task's id may ask for it.
package jobs

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"sync"
	"time"
)

// extension is how clients and servers name it.
const extension = "io.modelcontextprotocol/tasks"

// What a task is at.
const (
	working       = "working"
	inputRequired = "input_required"
	completed     = "completed"
	failed        = "failed"
	cancelled     = "cancelled"
)

// Config says how the server behaves; zero is fine.
type Config struct {
	Version string        // what it says it is; default "dev"
	TTL     time.Duration // how long a task can be asked for; default 5 minutes
	Took    time.Duration // how long a job takes that names no time; default 200 ms
}

// object is a JSON object.
type object = map[string]any

// A job is a task and what it waits for.
type job struct {
	id               string
	created, updated time.Time
	status           string
	result           object            // where completed
	err              *fault            // where failed
	asks             map[string]object // what the client has yet to answer
	answers          map[string]answer
	then             func(map[string]answer) object // makes the result of the answers
	timer            *time.Timer
}

// An answer is a client's to an elicitation.
type answer struct {
	Action  string
	Content map[string]any
}

// jobs are the tasks that there are.
type jobs struct {
	Config
	key [32]byte // of the state that clients carry between rounds

	mu  sync.Mutex
	all map[string]*job
}

func newJobs(c Config) *jobs {
	c.Version, c.TTL, c.Took = cmp.Or(c.Version, "dev"), cmp.Or(c.TTL, 5*time.Minute), cmp.Or(c.Took, 200*time.Millisecond)
	j := &jobs{Config: c, all: map[string]*job{}}
	rand.Read(j.key[:])
	return j
}

// start keeps a job and returns it as the client reads it at first: it can be asked
// for before its answer is sent.
func (j *jobs) start(b *job) object {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	for id, old := range j.all {
		if now.Sub(old.created) > j.TTL {
			old.stop()
			delete(j.all, id)
		}
	}
	b.id, b.created, b.updated = rand.Text(), now, now
	b.status, b.answers = working, map[string]answer{}
	if len(b.asks) > 0 {
		b.status = inputRequired
	}
	j.all[b.id] = b
	o := b.shown(j.TTL)
	o["resultType"] = "task"
	return o
}

// after starts a job that ends by itself: with a result, or with a fault.
func (j *jobs) after(d time.Duration, result object, err *fault) object {
	b := &job{}
	b.timer = time.AfterFunc(d, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if err != nil {
			b.end(failed, nil, err)
		} else {
			b.end(completed, result, nil)
		}
	})
	return j.start(b)
}

// end is final; a job that has ended stays as it is.
func (b *job) end(status string, result object, err *fault) {
	if b.final() {
		return
	}
	b.status, b.result, b.err, b.asks, b.updated = status, result, err, nil, time.Now()
	b.stop()
}

func (b *job) stop() {
	if b.timer != nil {
		b.timer.Stop()
	}
}

func (b *job) final() bool {
	return b.status == completed || b.status == failed || b.status == cancelled
}

// shown is the task without what came of it.
func (b *job) shown(ttl time.Duration) object {
	const format = "2006-01-02T15:04:05.000Z07:00"
	return object{
		"taskId": b.id, "status": b.status, "ttlMs": ttl.Milliseconds(), "pollIntervalMs": 100,
		"createdAt": b.created.UTC().Format(format), "lastUpdatedAt": b.updated.UTC().Format(format),
	}
}

// get is tasks/get.
func (j *jobs) get(id string) (object, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, ok := j.all[id]
	if !ok {
		return nil, errNoTask
	}
	o := b.shown(j.TTL)
	o["resultType"] = "complete"
	switch b.status {
	case inputRequired:
		o["inputRequests"] = maps.Clone(b.asks)
	case completed:
		o["result"] = b.result
	case failed:
		o["error"] = b.err
	}
	return o, nil
}

// update is tasks/update: answers to what is still asked count, whatever else comes
// is ignored, and the last answer lets the job go on.
func (j *jobs) update(id string, in map[string]json.RawMessage) (object, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, ok := j.all[id]
	if !ok {
		return nil, errNoTask
	}
	for key, raw := range in {
		var a answer
		if _, asked := b.asks[key]; asked && json.Unmarshal(raw, &a) == nil && a.Action != "" {
			b.answers[key] = a
			delete(b.asks, key)
			b.updated = time.Now()
		}
	}
	if b.status == inputRequired && len(b.asks) == 0 {
		b.end(completed, b.then(b.answers), nil)
	}
	return object{"resultType": "complete"}, nil
}

// cancel is tasks/cancel; cancelling what has ended changes nothing.
func (j *jobs) cancel(id string) (object, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, ok := j.all[id]
	if !ok {
		return nil, errNoTask
	}
	b.end(cancelled, nil, nil)
	return object{"resultType": "complete"}, nil
}

// seal makes the state that a client carries from one round to the next.
func (j *jobs) seal(what string) string {
	m := hmac.New(sha256.New, j.key[:])
	m.Write([]byte(what))
	return what + "." + hex.EncodeToString(m.Sum(nil))
}

// sealed reports whether state is what seal made of what.
func (j *jobs) sealed(state, what string) bool {
	return hmac.Equal([]byte(state), []byte(j.seal(what)))
}

// wait is for clients that take no tasks: they hold on.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.New("the client went away")
	}
}

// text is a result of one line.
func text(s string, isError bool) object {
	o := object{"resultType": "complete", "content": []object{{"type": "text", "text": s}}}
	if isError {
		o["isError"] = true
	}
	return o
}

// elicit is a question to the human at the client.
func elicit(message, field, typ string) object {
	return object{"method": "elicitation/create", "params": object{
		"mode": "form", "message": message,
		"requestedSchema": object{"type": "object", "properties": object{field: object{"type": typ}}, "required": []string{field}},
	}}
}
