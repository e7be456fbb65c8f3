package gateway_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// A remote is a server that makes a task of every call.
type remote struct {
	says string // of the task
	met  func() // called when it is asked about the task
}

func (r *remote) answer(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
	switch f.Method {
	case gateway.MethodCall:
		return gateway.Result{Type: gateway.ResultTask, Raw: json.RawMessage(`{"resultType":"task","taskId":"its","status":"working","ttlMs":60000}`)}, nil
	case gateway.MethodTaskGet:
		if r.met != nil {
			r.met()
		}
		if text, ok := strings.CutPrefix(r.says, "error "); ok {
			return gateway.Result{Error: json.RawMessage(text)}, nil
		}
		return gateway.Result{Raw: json.RawMessage(r.says)}, nil
	}
	return gateway.Result{Raw: json.RawMessage(`{"resultType":"complete"}`)}, nil
}

const (
	itsInput = `{"taskId":"its","status":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"?"}}}}`
	itsDone  = `{"taskId":"its","status":"completed","result":{"content":[]}}`
)

// since is what was put on record of handles after a mark, by type and outcome, in
// order; and fails where a call that was let run has not ended exactly once.
func since(t *testing.T, h *gatewaytest.House, mark int) string {
	t.Helper()
	open, ends := map[string]bool{}, map[string]int{}
	var words []string
	for i, e := range h.Lines() {
		if e.Call == nil || !strings.HasPrefix(string(e.Type), "tool.call.") {
			continue
		}
		word := strings.TrimPrefix(string(e.Type), "tool.call.")
		switch e.Type {
		case audit.CallAllowed:
			open[e.Call.ID] = true
		case audit.CallHeld:
		default:
			ends[e.Call.ID]++
		}
		if e.Outcome != nil {
			word += ":" + e.Outcome.Status
		} else if e.Decision != nil && e.Decision.ReasonCode != "ok" {
			word += ":" + e.Decision.ReasonCode
		}
		if e.Tool == nil && e.Type != audit.CallCancelled {
			t.Errorf("%s says nothing of its tool", word)
		}
		if i >= mark {
			words = append(words, word)
		}
	}
	for id := range open {
		if ends[id] != 1 {
			t.Errorf("call %s has %d ends", id, ends[id])
		}
	}
	return strings.Join(words, " ")
}

// Whatever is done about a handle, and whatever becomes of it, is on record once.
func TestWhatBecomesOfHandlesIsOnRecord(t *testing.T) {
	look := func(status string) func(*testing.T, *gatewaytest.House, gateway.Handle) {
		return func(t *testing.T, h *gatewaytest.House, k gateway.Handle) {
			until(t, h, k.ID, status)
			until(t, h, k.ID, status)
		}
	}
	for name, row := range map[string]struct {
		says string
		do   func(*testing.T, *gatewaytest.House, gateway.Handle)
		want string
	}{
		"answered": {itsInput, func(t *testing.T, h *gatewaytest.House, k gateway.Handle) {
			until(t, h, k.ID, gateway.HandleInput)
			c := about(k.ID)
			c.Answers = json.RawMessage(`{"k":{"action":"accept"}}`)
			if _, err := h.Update(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}, "allowed completed:ok"},
		"cancelled": {itsInput, func(t *testing.T, h *gatewaytest.House, k gateway.Handle) {
			for range 2 {
				if _, err := h.Withdraw(t.Context(), about(k.ID)); err != nil {
					t.Fatal(err)
				}
			}
		}, "allowed cancelled:cancelled"},
		"done":                        {itsDone, look(gateway.HandleCompleted), "completed:ok"},
		"done by a tool that failed":  {`{"taskId":"its","status":"completed","result":{"content":[],"isError":true}}`, look(gateway.HandleCompleted), "completed:tool_error"},
		"failed":                      {`{"taskId":"its","status":"failed","error":{"code":-1,"message":"m"}}`, look(gateway.HandleFailed), "failed:downstream_error"},
		"failed, and nobody says why": {`{"taskId":"its","status":"failed"}`, look(gateway.HandleFailed), "failed:downstream_error"},
		"cancelled by its server":     {`{"taskId":"its","status":"cancelled"}`, look(gateway.HandleCancelled), "cancelled:cancelled"},
		"known no more":               {`error {"code":-32602,"message":"unknown"}`, look(gateway.HandleFailed), "failed:downstream_error"},
	} {
		t.Run(name, func(t *testing.T) {
			h, server := gatewaytest.New(t), &remote{says: row.says}
			h.Policy.Set(gatewaytest.Text + elicitRows)
			h.Servers.Answer = server.answer
			k := keep(t, h, later("files__read", `{}`))
			mark := len(h.Lines())
			row.do(t, h, k)
			if got := since(t, h, mark); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
		})
	}
}

// Of those who look at once, one puts the end on record.
func TestOneOfManyRecordsAnEnd(t *testing.T) {
	const many = 4
	var at, inside sync.WaitGroup
	at.Add(many)
	h, server := gatewaytest.New(t), &remote{says: itsDone, met: func() { at.Done(); at.Wait() }}
	h.Servers.Answer = server.answer
	k := keep(t, h, later("files__read", `{}`))
	mark := len(h.Lines())
	for range many {
		inside.Go(func() {
			if _, err := h.Look(t.Context(), about(k.ID)); err != nil {
				t.Error(err)
			}
		})
	}
	inside.Wait()
	server.met = nil
	if one := until(t, h, k.ID, gateway.HandleCompleted); string(one.Result.Raw) != `{"content":[]}` {
		t.Errorf("%s", one.Result.Raw)
	}
	if got := since(t, h, mark); got != "completed:ok" {
		t.Error(got)
	}
}

// An end that somebody began to put on record and did not, somebody else does.
func TestAnEndThatWasNotRecorded(t *testing.T) {
	h, server := gatewaytest.New(t), &remote{says: itsDone}
	h.Servers.Answer = server.answer
	k := keep(t, h, later("files__read", `{}`))
	one := kept(t, h, k.ID)
	one.Run, one.RunUntil = "call-x", time.Now().Add(time.Minute)
	one, err := h.Handles.Move(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	if got := until(t, h, k.ID, gateway.HandleWorking); len(h.Servers.Sent()) != 1 {
		t.Errorf("%+v: its server is asked while another replica is at it", got)
	}
	one.RunUntil = time.Now().Add(-time.Second)
	if _, err := h.Handles.Move(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	until(t, h, k.ID, gateway.HandleCompleted)
}

// A server's result that is too large to keep is none, once.
func TestAServersResultThatIsTooLargeToKeep(t *testing.T) {
	h, server := gatewaytest.New(t), &remote{says: `{"taskId":"its","status":"completed","result":{"content":[],"x":"` + strings.Repeat("x", 100_000) + `"}}`}
	h.Servers.Answer = server.answer
	h.Handles.Most = 50_000
	k := keep(t, h, later("files__read", `{}`))
	mark := len(h.Lines())
	if one := until(t, h, k.ID, gateway.HandleFailed); !one.Refused || !strings.Contains(string(one.Result.Error), "too large") {
		t.Errorf("%s", one.Result.Error)
	}
	if got := since(t, h, mark); got != "completed:ok" {
		t.Error(got)
	}
}

// Together are approvals that many read at one time.
type together struct {
	gateway.Approvals
	meet func() // where they do; nil for nowhere
}

func (a *together) Get(ctx context.Context, tenant, id string) (gateway.ApprovalRequest, error) {
	if a.meet != nil {
		a.meet()
	}
	return a.Approvals.Get(ctx, tenant, id)
}

// An operator's no to a kept call is on record with what it was about, once, and
// reads as ours.
func TestARefusedHandleIsOnRecord(t *testing.T) {
	together := &together{}
	h := gatewaytest.New(t, func(c *gateway.Config) {
		together.Approvals = c.Approvals
		c.Approvals = together
	})
	k := keep(t, h, later("files__write", `{"path":"p"}`))
	all, err := h.Approvals.List(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", all[0].ID, false, all[0].Digest, "because"); err != nil {
		t.Fatal(err)
	}
	mark := len(h.Lines())
	var inside sync.WaitGroup
	const many = 4
	var at sync.WaitGroup
	at.Add(many)
	together.meet = func() { at.Done(); at.Wait() }
	for range many {
		inside.Go(func() {
			if one, err := h.Look(t.Context(), about(k.ID)); err != nil || one.Status != gateway.HandleFailed {
				t.Errorf("%s, %v", one.Status, err)
			}
		})
	}
	inside.Wait()
	one := until(t, h, k.ID, gateway.HandleFailed)
	if got := since(t, h, mark); got != "denied:denied_by_operator" {
		t.Error(got)
	}
	var said struct {
		Data struct {
			Refusal struct{ Code, Call string } `json:"io.toolbroker/refusal"`
		}
	}
	for _, e := range h.Lines()[mark:] {
		if e.Type != audit.CallDenied {
			continue
		}
		if err := json.Unmarshal(one.Result.Error, &said); err != nil || !one.Refused || said.Data.Refusal.Code != "denied_by_operator" || said.Data.Refusal.Call != e.Call.ID {
			t.Errorf("%s, %v; on record as %s", one.Result.Error, err, e.Call.ID)
		}
		if e.Tool.Name != "write" || e.Target.Object != "p" || e.Approval == nil || e.Approval.ID != all[0].ID || e.Call.Method != gateway.MethodCall {
			t.Errorf("%+v %+v %+v", e.Tool, e.Target, e.Approval)
		}
	}
}

// A running is a kept call that runs, on a server that answers when it is let.
type running struct {
	*gatewaytest.House
	kept   gateway.Handle
	answer chan struct{}
	gone   chan struct{} // its context ended
}

func run(t *testing.T) *running {
	r := &running{House: gatewaytest.New(t), answer: make(chan struct{}), gone: make(chan struct{})}
	sent := make(chan struct{})
	r.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		close(sent)
		select {
		case <-ctx.Done():
			close(r.gone)
			return gateway.Result{}, ctx.Err()
		case <-r.answer:
			return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
		}
	}
	r.kept = keep(t, r.House, later("files__write", `{}`))
	approveAll(t, r.House, "bob")
	if _, err := r.Look(t.Context(), about(r.kept.ID)); err != nil {
		t.Fatal(err)
	}
	<-sent
	return r
}

// A grace tells when somebody begins to wait for its end.
type grace struct {
	context.Context
	waits func()
}

func (g grace) Done() <-chan struct{} {
	g.waits()
	return g.Context.Done()
}

// A gateway that is told to go down lets what runs for a handle end, and begins
// nothing more.
func TestHandlesRunToTheirEnd(t *testing.T) {
	r := run(t)
	waits, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		r.Finish(grace{t.Context(), sync.OnceFunc(func() { close(waits) })})
	}()
	<-waits
	other := keep(t, r.House, later("files__write", `{"path":"other"}`))
	approveAll(t, r.House, "bob")
	if one, err := r.Look(t.Context(), about(other.ID)); codeOf(err) != gateway.Internal {
		t.Errorf("%+v %v", one, err)
	}
	close(r.answer)
	<-over
	if one := kept(t, r.House, r.kept.ID); one.Status != gateway.HandleCompleted {
		t.Errorf("%s: %s", one.Status, one.Result.Error)
	}
	if one := kept(t, r.House, other.ID); one.Final() || one.Run != "" {
		t.Errorf("the other: %+v", one)
	}
}

// What it cannot wait for is in doubt, and says so to the agent and on record.
func TestHandlesThatAreCutOff(t *testing.T) {
	r := run(t)
	mark := len(r.Lines())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Finish(ctx)
	<-r.gone
	one := kept(t, r.House, r.kept.ID)
	var said struct {
		Message string
		Data    struct {
			Refusal struct{ Code, Call string } `json:"io.toolbroker/refusal"`
		}
	}
	if err := json.Unmarshal(one.Result.Error, &said); err != nil || !one.Refused || one.Status != gateway.HandleFailed ||
		said.Data.Refusal.Code != "in_doubt" || !strings.Contains(said.Message, "look before you repeat it") {
		t.Fatalf("%s %s, %v", one.Status, one.Result.Error, err)
	}
	if got := since(t, r.House, mark); got != "in_doubt:in_doubt" {
		t.Error(got)
	}
	for _, e := range r.Lines()[mark:] {
		if e.Type == audit.CallInDoubt && (e.Call.ID != said.Data.Refusal.Call || !strings.Contains(e.Detail, "the gateway stopped")) {
			t.Errorf("%s: %s; the agent reads %s", e.Call.ID, e.Detail, said.Data.Refusal.Call)
		}
	}
}

// A plain call that is cut off is in doubt as well.
func TestCallsThatAreCutOff(t *testing.T) {
	h := gatewaytest.New(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		cancel(gateway.ErrGoingDown)
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	_, err := h.Call(ctx, "files__read", `{}`)
	if codeOf(err) != gateway.InDoubt {
		t.Error(err)
	}
	if got := since(t, h, 0); got != "allowed in_doubt:in_doubt" {
		t.Error(got)
	}
}

// Whoever takes a handle back while its call runs is what ended it.
func TestARunningHandleIsTakenBack(t *testing.T) {
	r := run(t)
	if _, err := r.Withdraw(t.Context(), about(r.kept.ID)); err != nil {
		t.Fatal(err)
	}
	<-r.gone
	r.Finish(t.Context())
	said := false
	for _, e := range r.Lines() {
		said = said || e.Type == audit.CallCancelled && e.Outcome != nil && strings.Contains(e.Detail, "cancelled its handle while the call was running")
	}
	if !said {
		t.Errorf("%s", since(t, r.House, 0))
	}
}
