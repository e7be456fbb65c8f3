package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// A watcher is a stream that names a handle.
type watcher struct {
	*gatewaytest.House
	t     *testing.T
	id    string
	moved chan struct{}
	over  chan error
}

func watch(t *testing.T, h *gatewaytest.House, c gateway.Call) *watcher {
	ctx, stop := context.WithCancel(t.Context())
	w := &watcher{House: h, t: t, id: c.Name, moved: make(chan struct{}, 100), over: make(chan error, 1)}
	go func() { w.over <- h.Watch(ctx, c, func() { w.moved <- struct{}{} }) }()
	t.Cleanup(stop)
	return w
}

// next is what the handle is when it next moved.
func (w *watcher) next() gateway.Handle {
	w.t.Helper()
	select {
	case <-w.moved:
	case err := <-w.over:
		w.t.Fatalf("it is over: %v", err)
	case <-time.After(20 * time.Second):
		w.t.Fatal("it does not move")
	}
	h, err := w.Kept(w.t.Context(), about(w.id))
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *watcher) until(status string) gateway.Handle {
	w.t.Helper()
	for {
		h := w.next()
		if h.Status == status {
			return h
		}
		if h.Final() {
			w.t.Fatalf("it is %s: %s", h.Status, h.Result.Error)
		}
	}
}

func (w *watcher) end() error {
	w.t.Helper()
	select {
	case err := <-w.over:
		return err
	case <-time.After(20 * time.Second):
		w.t.Fatal("it goes on")
		return nil
	}
}

// Whatever becomes of a kept call, its agent hears where it listens, and the call is
// carried out without its coming back by another way.
func TestWatching(t *testing.T) {
	vote := func(yes bool) func(*testing.T, *watcher) {
		return func(t *testing.T, w *watcher) {
			all, _ := w.Approvals.List(t.Context(), "acme")
			if _, err := w.Vote(t.Context(), w.Operators.Op("bob"), "acme", all[0].ID, yes, all[0].Digest, "because"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, row := range map[string]struct {
		do     func(*testing.T, *watcher)
		status string
		says   string
		sent   int
	}{
		"approved": {vote(true), gateway.HandleCompleted, "done", 1},
		"denied":   {vote(false), gateway.HandleFailed, "denied_by_operator", 0},
		"forgotten": {func(t *testing.T, w *watcher) {
			w.Approvals.Rename(kept(t, w.House, w.id).Approval, "apr-another")
			vote(true)(t, w) // something changes
		}, gateway.HandleFailed, "approval_expired", 0},
		"withdrawn": {func(t *testing.T, w *watcher) {
			if _, err := w.Withdraw(t.Context(), about(w.id)); err != nil {
				t.Fatal(err)
			}
		}, gateway.HandleCancelled, "", 0},
		"its runner died": {func(t *testing.T, w *watcher) {
			one := kept(t, w.House, w.id)
			one.Run, one.RunUntil, one.Updated = "call-x", time.Now().Add(1500*time.Millisecond), time.Now().UTC()
			if _, err := w.Handles.Move(t.Context(), one); err != nil {
				t.Fatal(err)
			}
		}, gateway.HandleFailed, "in_doubt", 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			w := watch(t, h, about(keep(t, h, later("files__write", `{"path":"x"}`)).ID))
			if one := w.next(); one.Status != gateway.HandleWorking || !strings.Contains(one.Message, "Waiting") {
				t.Errorf("at first: %+v", one)
			}
			row.do(t, w)
			one := w.until(row.status)
			if got := string(one.Result.Raw) + string(one.Result.Error); !strings.Contains(got, row.says) {
				t.Errorf("%s", got)
			}
			if err := w.end(); err != nil {
				t.Errorf("nothing more can come, and it ends with %v", err)
			}
			if n := len(h.Servers.Sent()); n != row.sent {
				t.Errorf("%d were sent", n)
			}
		})
	}
}

func kept(t *testing.T, h *gatewaytest.House, id string) gateway.Handle {
	t.Helper()
	one, err := h.Handles.Handle(t.Context(), "acme", id)
	if err != nil {
		t.Fatal(err)
	}
	return one
}

// A call that is asked something says so where its agent listens, and what its server
// made a task of is looked after as often as the server says.
func TestWatchingQuestions(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	w := watch(t, h, about(keep(t, h, later("files__write", `{}`)).ID))
	w.next()
	approveAll(t, h, "bob")
	if one := w.until(gateway.HandleInput); !strings.Contains(string(one.Wants), "sure?") {
		t.Errorf("%s", one.Wants)
	}

	h = gatewaytest.New(t)
	looks := 0
	h.Servers.Answer = func(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if f.Method == gateway.MethodCall {
			return gateway.Result{Type: gateway.ResultTask, Raw: json.RawMessage(`{"resultType":"task","taskId":"r1","status":"working","pollIntervalMs":1}`)}, nil
		}
		if looks++; looks == 2 {
			return gateway.Result{}, errors.New("away")
		} else if looks < 4 {
			return gateway.Result{Raw: json.RawMessage(`{"taskId":"r1","status":"working","pollIntervalMs":1}`)}, nil
		}
		return gateway.Result{Raw: json.RawMessage(`{"taskId":"r1","status":"completed","result":{"content":[],"n":1}}`)}, nil
	}
	w = watch(t, h, about(keep(t, h, later("files__read", `{}`)).ID))
	if one := w.until(gateway.HandleCompleted); !strings.Contains(string(one.Result.Raw), `"n":1`) {
		t.Errorf("%s", one.Result.Raw)
	}
	if h.Leases.Live() != 0 {
		t.Error("a lease lives on")
	}
}

// A stream carries out what its credential may carry out when the humans have
// decided, not when it began; and a handle is its owner's there, too.
func TestWatchersAreAskedAgain(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*testing.T, *gatewaytest.House)
		code   gateway.Code // of the stream's end; empty: it goes on
	}{
		"its task ended": {func(t *testing.T, h *gatewaytest.House) {
			if _, err := h.EndTask(t.Context(), gateway.Credential{Bearer: gateway.NewSecret("a")}, "task-a"); err != nil {
				t.Fatal(err)
			}
		}, gateway.NoTask},
		"policy forbids it now": {func(t *testing.T, h *gatewaytest.House) {
			h.Policy.Set("p, agent:a, acme, work, files/write, list, , allow\np, agent:a, acme, work, files/write, call, , deny")
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			w := watch(t, h, about(keep(t, h, later("files__write", `{}`)).ID))
			w.next()
			all, _ := h.Approvals.List(t.Context(), "acme")
			row.change(t, h)
			_, _ = h.Vote(t.Context(), h.Operators.Op("bob"), "acme", all[0].ID, true, all[0].Digest, "")
			if row.code == "" {
				w.until(gateway.HandleFailed)
			} else if err := w.end(); codeOf(err) != row.code {
				t.Errorf("it ends with %v", err)
			}
			if n := len(h.Servers.Sent()); n != 0 {
				t.Errorf("%d were sent", n)
			}
		})
	}
	h := gatewaytest.New(t)
	id := keep(t, h, later("files__write", `{}`)).ID
	for name, c := range map[string]gateway.Call{
		"another tenant's":   {Credential: gateway.Credential{Bearer: gateway.NewSecret("b")}, Name: id},
		"another workload's": {Credential: gateway.Credential{Bearer: gateway.NewSecret("url-bob")}, Name: id},
		"one that is not":    {Credential: gateway.Credential{Bearer: gateway.NewSecret("a")}, Name: "x"},
	} {
		if _, err := h.Kept(t.Context(), c); codeOf(err) != gateway.UnknownHandle {
			t.Errorf("%s: %v", name, err)
		}
		if err := h.Watch(t.Context(), c, func() { t.Errorf("%s moved", name) }); codeOf(err) != gateway.UnknownHandle {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.Kept(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: gateway.NewSecret("nobody")}, Name: id}); codeOf(err) != gateway.Unidentified {
		t.Error(err)
	}
}
