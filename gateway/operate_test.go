package gateway_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// What each role may do, and nothing else: the words of config.example.yaml.
func TestRoles(t *testing.T) {
	see := []string{"tasks", "a task", "requests", "arguments", "definitions", "stops"}
	for role, may := range map[string][]string{
		"viewer":   see,
		"auditor":  see,
		"approver": append([]string{"answer"}, see...),
		"admin":    append([]string{"start", "delegate", "end", "stop", "lift", "accept"}, see...),
		"no role":  nil,
	} {
		h := gatewaytest.New(t)
		op := gateway.Operator{Name: "zoe", Roles: []string{role}, Tenants: []string{"acme"}, Groups: []string{"sre"}}
		_, _ = h.Call(t.Context(), "files__write", `{"path":"x"}`)
		r := asked(t, h, "acme")
		stop := gateway.Stop{Tenant: "acme", Kind: gateway.StopHuman, Name: "nobody@acme", Reason: "x"}
		for _, act := range []struct {
			name string
			do   func() error
		}{
			{"tasks", func() error { _, err := h.TaskList(t.Context(), op, "acme"); return err }},
			{"a task", func() error { _, err := h.TaskShow(t.Context(), op, "acme", "task-a"); return err }},
			{"requests", func() error { _, err := h.ApprovalList(t.Context(), op); return err }},
			{"arguments", func() error { _, err := h.ApprovalShow(t.Context(), op, "acme", r.ID); return err }},
			{"definitions", func() error { _, err := h.Gateway.Definitions(t.Context(), op, "acme"); return err }},
			{"stops", func() error { _, err := h.StopList(t.Context(), op, "acme"); return err }},
			{"answer", func() error { _, err := h.Vote(t.Context(), op, "acme", r.ID, true, r.Digest, ""); return err }},
			{"start", func() error {
				_, _, err := h.TaskStart(t.Context(), op, gateway.TaskSpec{Tenant: "acme", Kind: gatewaytest.Kind, Principal: "agent:a"})
				return err
			}},
			{"delegate", func() error {
				_, _, err := h.TaskDelegate(t.Context(), op, "acme", "task-a", gateway.TaskSpec{Kind: gatewaytest.SubKind, Principal: "agent:a"})
				return err
			}},
			{"stop", func() error { return h.StopSet(t.Context(), op, stop) }},
			{"lift", func() error { return h.StopLift(t.Context(), op, "acme", stop.Kind, stop.Name) }},
			{"accept", func() error {
				_, err := h.AcceptDefinition(t.Context(), op, "acme", "files", gateway.SortTool, "write", "sha256:2")
				return err
			}},
			{"end", func() error { _, err := h.TaskEnd(t.Context(), op, "acme", "task-a"); return err }},
		} {
			err, no := errors.AsType[*gateway.Forbidden](act.do())
			if no = no && strings.HasPrefix(err.Why, "Your roles do not let you "); no == slices.Contains(may, act.name) {
				t.Errorf("%s: %s: forbidden %v", role, act.name, no)
			}
		}
	}
}

// away is a registry whose Redis is.
type away struct{ gateway.Tasks }

func (away) Get(context.Context, string, string) (gateway.Task, error) {
	return gateway.Task{}, errors.New("redis: dial tcp: refused")
}

// Who ends a task while Redis is away hears what to do, and of no call that there is none of.
func TestEndWhileRedisIsAway(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Tasks = away{c.Tasks} })
	_, err := h.EndTask(t.Context(), as("a"), "task-a")
	r, _ := err.(*gateway.Refusal)
	if r == nil || r.Code != gateway.Internal || !strings.Contains(r.Say, "try again") || strings.Contains(r.Say, "call") || strings.Contains(r.Say, "redis") {
		t.Errorf("%+v", r)
	}
}
