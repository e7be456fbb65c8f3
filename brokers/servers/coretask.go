package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// 2025-11-25 has tasks of its own, as an experiment, and no other revision has them:
// a server may say of a tool that it runs as a task only. Such a call is a task
// between the server and us. The agent, of whatever revision, makes a plain call,
// and its answer is what the task comes to.
const (
	taskStatus  = "notifications/tasks/status"
	relatedTask = "io.modelcontextprotocol/related-task"

	usualPoll = time.Second // where the server does not say how often to ask
	leastPoll = 250 * time.Millisecond
	mostPoll  = 5 * time.Second
	maxMissed = 3 // looks in a row that do not reach the server
)

// taskOnly reports whether a server runs a tool as a task only, by its definition.
func taskOnly(definition json.RawMessage) bool {
	var body struct {
		Execution struct {
			Support jsontext.Value `json:"taskSupport"`
		} `json:"execution"`
	}
	return jsonv2.Unmarshal(definition, &body) == nil && string(body.Execution.Support) == `"required"`
}

// plainly is a tool as agents read it: who could run it as a task is us, so that to
// them it is a tool like any other. Clients refuse to call one of which it says that
// they have to make a task of it.
func plainly(t gateway.Tool) gateway.Tool {
	if !bytes.Contains(t.Definition, []byte("execution")) && !bytes.Contains(t.Definition, []byte(`\u`)) {
		return t
	}
	t.TaskOnly = taskOnly(t.Definition)
	for _, read := range []*json.RawMessage{&t.Definition, &t.Shown, &t.ShownBefore} {
		if *read != nil {
			*read = cut(*read, "execution", "taskSupport")
		}
	}
	return t
}

// cut is an object without one member of its member called where, and without that
// where nothing else is in it. Every other byte stays.
func cut(object json.RawMessage, where, name string) json.RawMessage {
	inner, ok := lookup(object, where)
	if _, has := lookup(inner, name); !ok || !has {
		return object
	}
	rest := jsontext.Value(setMember(inner, name, nil))
	if all, err := members(rest); err == nil && len(all) == 0 {
		rest = nil
	}
	return setMember(object, where, rest)
}

// runsTasks reports whether a server says that it runs tools as tasks, and cancels
// whether it takes them back.
func (c capabilities) runsTasks() bool { return c.tasks().Requests.Tools.Call != nil }
func (c capabilities) cancels() bool   { return c.tasks().Cancel != nil }

func (c capabilities) tasks() (can struct {
	Cancel   jsontext.Value `json:"cancel"`
	Requests struct {
		Tools struct {
			Call jsontext.Value `json:"call"`
		} `json:"tools"`
	} `json:"requests"`
}) {
	if c.Tasks != nil {
		_ = jsonv2.Unmarshal(*c.Tasks, &can) // what cannot be read is nothing that it can do
	}
	return can
}

// A coreTask is a call that its server runs as a task.
type coreTask struct {
	l       link
	h       *hearing
	streams bool            // what is said about a request comes in its own stream
	told    chan taskState  // by the server, unasked: the newest
	id      string          // empty while the server has not made it; h.mu guards it
	quoted  json.RawMessage // the same, as {"taskId":…}
	said    string          // what the agent was told last
	n       int
}

// A taskState is what a server says of a task.
type taskState struct {
	ID      string          `json:"taskId"`
	Status  string          `json:"status"`
	Message string          `json:"statusMessage"`
	Poll    json.RawMessage `json:"pollInterval"` // ms
}

// carry sends a call and returns the answer to it, of whatever the server makes of it
// in between.
func (s *server) carry(ctx context.Context, l link, f gateway.Forward, c call) (message, error) {
	if !f.Tool.TaskOnly || c.method != gateway.MethodCall || l.speaks() == modernEra || !l.at().caps.runsTasks() {
		return l.do(ctx, c)
	}
	_, streams := l.(*web)
	t := &coreTask{l: l, h: c.hears, streams: streams, told: make(chan taskState, 1)}
	c.hears.task.Store(t)
	defer t.attend()()
	c.params = slices.Concat(json.RawMessage(`{"task":{},`), c.params[1:]) // behind it stands the tool's name
	m, err := t.ask(ctx, c)
	if err != nil || m.fault != nil {
		return m, err
	}
	made, ok := m.tree.member(m.at, "task")
	if _, answered := m.tree.member(m.at, "content"); !ok || answered {
		return m, nil // it made none
	}
	state, err := readTask(made)
	if err != nil {
		return message{}, err
	}
	t.born(state.ID)
	m, err = t.run(ctx, state)
	if err != nil {
		if f.Lease.PerCall { // what it can be told with is given back next
			t.cancel()
		} else {
			s.tidy(t.cancel)
		}
		return message{}, sent(err)
	}
	return m, nil
}

// member returns the value of a member of the object i, if it has one.
func (t *tree) member(i int, name string) (json.RawMessage, bool) {
	at := t.find(i, name)
	if at == 0 {
		return nil, false
	}
	return t.value(at), true
}

func readTask(raw json.RawMessage) (state taskState, err error) {
	if jsonv2.Unmarshal(raw, &state) != nil || state.ID == "" || len(state.ID) > maxRemote {
		return state, unusable("the server says of its task what cannot be read")
	}
	switch state.Status {
	case "working", "input_required", "completed", "failed", "cancelled":
		return state, nil
	}
	return state, unusable("the server's task is in a state that nobody knows")
}

// every is how long the server wants to be left alone between two looks.
func (s taskState) every() time.Duration {
	ms, err := strconv.ParseFloat(string(s.Poll), 64)
	if err != nil {
		return usualPoll
	}
	return time.Duration(min(max(ms, float64(leastPoll.Milliseconds())), float64(mostPoll.Milliseconds()))) * time.Millisecond
}

// attend has what is said between two requests be about this call, until what it
// returns is called.
func (t *coreTask) attend() (leave func()) {
	d := t.l.at()
	id, w := d.join(call{hears: t.h}, !t.streams)
	done := make(chan struct{})
	var listener sync.WaitGroup
	if w.report != nil {
		listener.Go(func() {
			for {
				select {
				case m := <-w.report:
					_ = t.h.note(m) // an agent that is gone ends the call in another way
				case <-done:
					_ = w.catchUp()
					return
				}
			}
		})
	}
	return func() {
		d.leave(id)
		close(done)
		listener.Wait()
	}
}

// ask sends a request. What is said about it over a link that calls share, attend has
// already.
func (t *coreTask) ask(ctx context.Context, c call) (message, error) {
	if c.hears = nil; t.streams {
		c.hears = t.h
	}
	return t.l.do(ctx, c)
}

func (t *coreTask) born(id string) {
	quoted, _ := jsontext.AppendQuote(nil, id) // it was read as a text
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	t.id, t.quoted = id, slices.Concat([]byte(`{"taskId":`), quoted, []byte(`}`))
}

// concerns reports whether a message says that it is about the task that a call became.
func (h *hearing) concerns(m message) bool {
	t := h.task.Load()
	if t == nil || m.params == nil {
		return false
	}
	id := ""
	switch {
	case m.method == taskStatus:
		id = textOf(m.params, "taskId")
	case !m.notification():
		meta, _ := memberOf(m.params, "_meta")
		about, _ := memberOf(meta.value, relatedTask)
		id = textOf(about.value, "taskId")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return id != "" && id == t.id
}

// hear takes what a server says of a task unasked; it counts like an answer.
func (h *hearing) hear(m message) {
	t := h.task.Load()
	if t == nil || !h.concerns(m) {
		return
	}
	state, err := readTask(m.params)
	if err != nil {
		return
	}
	select {
	case <-t.told: // that is old
	default:
	}
	select {
	case t.told <- state:
	default:
	}
}

// run follows a task to its end, and returns what came of it.
func (t *coreTask) run(ctx context.Context, state taskState) (message, error) {
	missed, next := 0, time.Now().Add(state.every())
	for {
		t.tell(state)
		switch state.Status {
		case "cancelled":
			return message{id: json.RawMessage("1"), fault: json.RawMessage(`{"code":-32603,"message":"the server cancelled the task that it made of this call"}`)}, nil
		case "input_required", "completed", "failed":
			return t.result(ctx) // what it needs it asks for on the way
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case state = <-t.told:
			timer.Stop()
			continue
		case <-ctx.Done():
			timer.Stop()
			return message{}, over(ctx)
		case <-timer.C:
		}
		m, err := t.ask(ctx, call{method: gateway.MethodTaskGet, params: t.quoted})
		if missed++; err != nil && unreachable(err) && missed < maxMissed {
			next = time.Now().Add(state.every())
			continue
		}
		if err == nil && m.fault != nil {
			err = unusable(fmt.Sprintf("the server says nothing of its task, with error %d", faultCode(m.fault)))
		}
		if err != nil {
			return message{}, err
		}
		if state, err = readTask(m.result); err != nil {
			return message{}, err
		}
		missed, next = 0, time.Now().Add(state.every())
	}
}

// tell tells an agent that wants to hear how far its call is, as far as a server says
// that in words.
func (t *coreTask) tell(s taskState) {
	if t.h.token == "" || s.Message == "" || s.Message == t.said {
		return
	}
	t.said = s.Message
	t.n++
	var b builder
	b.text("progressToken", t.h.token)
	b.raw("progress", strconv.AppendInt(nil, int64(t.n), 10))
	b.text("message", s.Message)
	if b.err == nil {
		_ = t.h.note(message{method: "notifications/progress", params: b.done()})
	}
}

// result waits for what a task comes to. It is what the call would have been answered
// with; that it was a task is nothing to the agent.
func (t *coreTask) result(ctx context.Context) (message, error) {
	type answer struct {
		m   message
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		m, err := t.ask(ctx, call{method: "tasks/result", params: t.quoted})
		answered <- answer{m, err}
	}()
	for {
		select {
		case state := <-t.told:
			t.tell(state)
		case a := <-answered:
			if a.err != nil || a.m.fault != nil {
				return a.m, a.err
			}
			return parse(slices.Concat([]byte(`{"jsonrpc":"2.0","id":1,"result":`), cut(a.m.result, "_meta", relatedTask), []byte(`}`)))
		}
	}
}

// cancel takes a task back that nobody waits for any more.
func (t *coreTask) cancel() {
	if !t.l.at().caps.cancels() || t.l.dead() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_, _ = t.l.do(ctx, call{method: gateway.MethodTaskCancel, params: t.quoted}) // then it ends by itself
}
