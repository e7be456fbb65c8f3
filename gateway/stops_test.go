package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// A stop refuses and ends what it is about, is on record first, and lasts until
// it is lifted.
func TestStops(t *testing.T) {
	for _, c := range []struct {
		name string
		stop gateway.Stop
		a, b bool // whether agent:a of acme and agent:b of globex may still call
	}{
		{"a workload", gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a"}, false, true},
		{"another workload", gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:z"}, true, true},
		{"an owner", gateway.Stop{Tenant: "acme", Kind: gateway.StopOwner, Name: "Alice"}, false, true},
		{"a tenant", gateway.Stop{Tenant: "acme", Kind: gateway.StopTenant}, false, true},
		{"everything", gateway.Stop{Tenant: gateway.EveryTenant, Kind: gateway.StopTenant}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.RecordClosings()
			c.stop.Reason = "it went wild"
			root := h.Operators.Op("root")
			if err := h.StopSet(t.Context(), root, c.stop); err != nil {
				t.Fatal(err)
			}
			h.Tasks.Settle()
			for bearer, may := range map[string]bool{"a": c.a, "b": c.b} {
				_, err := h.Handle(t.Context(), gatewaytest.Call(bearer, "files__read", `{}`), nil)
				if may != (err == nil) || !may && gateway.CodeOf(err) != gateway.NoTask {
					t.Errorf("%s: %v", bearer, err)
				} else if r, is := err.(*gateway.Refusal); is && !strings.Contains(r.Say, "an operator stopped this") {
					t.Errorf("%s hears %q", bearer, r.Say)
				}
			}
			_, _, err := h.StartTask(t.Context(), as("key"), spec())
			if c.a != (err == nil) {
				t.Errorf("a start: %v", err)
			}
			log := h.Events()
			if !strings.HasPrefix(log, "stop.set") || strings.Contains(log, "task.revoked") == c.a {
				t.Errorf("log: %s", log)
			}
			tenant := strings.ReplaceAll(c.stop.Tenant, "*", "acme")
			stops, err := h.StopList(t.Context(), root, tenant)
			if err != nil || len(stops) != 1 || stops[0].By != "root" || stops[0].Reason != "it went wild" {
				t.Fatalf("list: %+v, %v", stops, err)
			}
			if err := h.StopLift(t.Context(), root, tenant, stops[0].Kind, stops[0].Name); err != nil {
				t.Fatal(err)
			}
			if err := h.StopLift(t.Context(), root, tenant, stops[0].Kind, stops[0].Name); !errors.Is(err, gateway.ErrNotFound) {
				t.Errorf("twice: %v", err)
			}
			if _, _, err := h.StartTask(t.Context(), as("key"), spec()); err != nil && !c.a {
				t.Errorf("after the lift: %v", err)
			}
		})
	}
}

// Who may stop what, and what a stop must say.
func TestStopRights(t *testing.T) {
	h := gatewaytest.New(t)
	ok := gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:a", Reason: "x"}
	for _, c := range []struct {
		name, op string
		change   func(*gateway.Stop)
	}{
		{"an approver", "bob", func(*gateway.Stop) {}},
		{"a viewer", "vic", func(*gateway.Stop) {}},
		{"another tenant's admin", "alice", func(s *gateway.Stop) { s.Tenant = "globex" }},
		{"everything, by an admin of one tenant", "alice", func(s *gateway.Stop) { s.Tenant, s.Kind, s.Name = "*", gateway.StopTenant, "" }},
		{"no reason", "alice", func(s *gateway.Stop) { s.Reason = " " }},
		{"nobody", "alice", func(s *gateway.Stop) { s.Name = "" }},
		{"an unknown kind", "alice", func(s *gateway.Stop) { s.Kind = "all" }},
		{"a tenant with a name", "alice", func(s *gateway.Stop) { s.Kind = gateway.StopTenant }},
		{"a hidden character", "alice", func(s *gateway.Stop) { s.Reason = "a\u200bb" }},
	} {
		s := ok
		c.change(&s)
		if err := h.StopSet(t.Context(), h.Operators.Op(c.op), s); err == nil {
			t.Errorf("%s: it was set", c.name)
		}
	}
	if _, err := h.Call(t.Context(), "files__read", `{}`); err != nil {
		t.Errorf("something was stopped: %v", err)
	}
	if err := h.StopSet(t.Context(), h.Operators.Op("alice"), ok); err != nil {
		t.Error(err)
	}
}

// The closing event lists what ended with the task.
func TestClosing(t *testing.T) {
	h := gatewaytest.New(t)
	h.RecordClosings()
	if err := h.OpenSession(t.Context(), as("a"), "mcp-1", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(h, "files__write", `{"path":"x"}`); gateway.CodeOf(err) != gateway.PendingApproval {
		t.Fatal(err)
	}
	if _, _, err := h.Delegate(t.Context(), as("a"), "task-a", spec(func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind })); err != nil {
		t.Fatal(err)
	}
	running := make(chan struct{})
	h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		close(running)
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	done := make(chan error)
	go func() { _, err := ask(h, "files__slow", `{}`); done <- err }()
	<-running
	if _, err := h.TaskEnd(t.Context(), h.Operators.Op("alice"), "acme", "task-a"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("the running call: %v", err)
	}
	h.Tasks.Settle()
	var closing *audit.Closing
	for _, e := range h.Lines() {
		if e.Type == audit.TaskEnded && e.Task.ID == "task-a" {
			closing = e.Closing
		}
	}
	if closing == nil {
		t.Fatal("no closing event")
	}
	if closing.Calls != 1 || closing.Approvals != 1 || closing.Sessions != 1 || len(closing.Unproven) != 0 || closing.Why != "it was ended" {
		t.Errorf("closing %+v", closing)
	}
	if n := closing.Names; len(n.Approvals) != 1 || !slices.Equal(n.Links, []string{"files"}) || closing.Links != 1 {
		t.Errorf("names %+v", n)
	}
}

// What is left downstream is named by its server, once, and what was given up is
// said to be so and not counted.
func TestClosingNamesServers(t *testing.T) {
	h := gatewaytest.New(t)
	h.RecordClosings()
	h.Servers.Ends = &gateway.LinkEnds{Gone: []string{"a", "a"}, Open: []string{"b", "b"}, Lost: []string{"c", "c"}}
	task, _ := h.Tasks.Get(t.Context(), "acme", "task-a")
	c := h.CloseHere(t.Context(), task)
	if c.Links != 2 || !slices.Equal(c.Names.Links, []string{"a"}) ||
		!slices.Equal(c.Unproven, []string{"sessions or children of server b"}) ||
		!slices.Equal(c.Lost, []string{"sessions of server c, which did not confirm their end"}) {
		t.Errorf("%+v", c)
	}
	if _, err := h.TaskEnd(t.Context(), h.Operators.Op("root"), "acme", "task-a"); err != nil {
		t.Fatal(err)
	}
	h.Tasks.Settle()
	for _, e := range h.Lines() {
		if e.Closing != nil && !slices.Contains(e.Closing.Unproven, c.Lost[0]) {
			t.Errorf("%+v", e.Closing)
		}
	}
}

// However much there was, a closing names 20 of each sort.
func TestClosingNamesFew(t *testing.T) {
	var all gateway.Closing
	for i := range 100 {
		id := []string{fmt.Sprintf("%03d", i%50)}
		all = all.Add(gateway.Closing{Children: 1, Names: gateway.Names{Approvals: id, Leases: id, Links: id, Children: id}})
	}
	if n := all.Names; all.Children != 100 || len(n.Approvals) != 20 || len(n.Leases) != 20 || len(n.Links) != 20 || len(n.Children) != 20 || n.Children[19] != "019" {
		t.Errorf("%d: %+v", all.Children, n)
	}
}

// A call that does not end is said to, until it does.
func TestClosingUnproven(t *testing.T) {
	h := gatewaytest.New(t)
	running, stuck := make(chan struct{}), make(chan struct{})
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		close(running)
		<-stuck
		return gateway.Result{Raw: json.RawMessage(`{}`)}, nil
	}
	done := make(chan error)
	go func() { _, err := ask(h, "files__slow", `{}`); done <- err }()
	<-running
	task, _ := h.Tasks.Get(t.Context(), "acme", "task-a")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if c := h.CloseHere(ctx, task); c.Calls != 0 || len(c.Unproven) != 1 || c.Unproven[0] != "1 calls under way" {
		t.Errorf("%+v", c)
	}
	close(stuck)
	<-done
	if c := h.CloseHere(t.Context(), task); len(c.Unproven) != 0 {
		t.Errorf("%+v", c)
	}
}

// The log says why credentials were not taken, in words that are ours.
func TestWhyUnidentified(t *testing.T) {
	h := gatewaytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	for range 3 {
		_, err := h.Handle(t.Context(), gatewaytest.Call("bound", "files__read", `{}`), nil)
		if gateway.CodeOf(err) != gateway.Unidentified {
			t.Error(err)
		}
	}
	cancel()
	<-done
	for _, e := range h.Lines() {
		if e.Type == audit.IdentityRejected && strings.HasSuffix(e.Detail, gateway.WhyProof) && e.Count == 3 {
			return
		}
	}
	t.Errorf("log: %s", h.Events())
}
