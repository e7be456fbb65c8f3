package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"toolbroker/gateway/audit"
)

// Real clients hand a part of their task on, and ask a human for more, by tools
// that they see like any other.
func TestDelegateAndEscalateByRealClients(t *testing.T) {
	v := newVault(t)
	servers, extra := trackerYAML(t, v, issues(t, func(_ context.Context, token string) error { return v.verify(token) }), "call")
	h := newHouse(t, Options{Servers: servers, Extra: extra,
		Kinds: `  - name: reading
    purpose: a part
    ttl: 1h
    escalation: 10m
    initial: [{tool: tracker/list_issues, action: call, verdict: allow}]
    scope: [{tool: "tracker/*", action: call, verdict: allow}]
`,
		Policy: `
p, agent:a, acme, work,    tracker/*,            call,     , allow
p, agent:a, acme, work,    task:reading,         delegate, , allow
p, agent:s, acme, reading, tracker/list_issues,  call,     , allow
p, agent:s, acme, reading, tracker/create_issue, call,     , allow
p, agent:s, acme, reading, tracker/create_issue, escalate, , approve 1 of group:sre
p, agent:*, *,    *,       task:work,            start,    , allow
`})
	bob := h.Login("bob")
	for _, era := range []string{"2025-11-25", "2026-07-28"} {
		for lib, connect := range map[string]func(*testing.T, string, string, string) agent{"mcp-go": mcpGo, "go-sdk": goSDK} {
			t.Run(lib+"/"+era, func(t *testing.T) {
				id, token := h.Task("agent:a")
				parent := connect(t, h.MCP, token, era)
				until(t, "the tools", func() bool { names, err := parent.list(t.Context()); return err == nil && len(names) > 1 })
				text, isError, err := parent.call(t.Context(), "toolbroker__delegate", map[string]any{"kind": "reading", "purpose": "read", "principal": "agent:s"})
				if err != nil || isError {
					t.Fatalf("delegate: %s %v", text, err)
				}
				var sub struct{ Task, Token string }
				var content []struct{ Text string }
				if err := json.Unmarshal([]byte(text), &content); err != nil || len(content) != 1 {
					t.Fatalf("delegate: %s %v", text, err)
				}
				if err := json.Unmarshal([]byte(content[0].Text), &sub); err != nil || sub.Token == "" {
					t.Fatalf("delegate: %s %v", text, err)
				}
				child := connect(t, h.MCP, sub.Token, era)
				names, err := child.list(t.Context())
				if got := strings.Join(names, " "); err != nil || got != "tracker__list_issues toolbroker__request_access" {
					t.Fatalf("the child sees %s, %v", got, err)
				}
				if _, _, err := child.call(t.Context(), "tracker__create_issue", map[string]any{"title": "x"}); err == nil {
					t.Error("beyond its scope")
				}
				wish := map[string]any{"tools": []string{"tracker__create_issue"}, "reason": "found one", "minutes": 5}
				done := make(chan string, 1)
				go func() {
					text, isError, err := child.call(t.Context(), "toolbroker__request_access", wish)
					if isError || err != nil {
						text = "no: " + text
					}
					done <- text
				}()
				if code := h.Vote(bob, h.Pending(bob), true); code != 200 {
					t.Fatalf("vote: %d", code)
				}
				if got := <-done; strings.HasPrefix(got, "no: ") {
					t.Fatalf("approved, but %s", got)
				}
				if text, isError, err := child.call(t.Context(), "tracker__create_issue", map[string]any{"title": "x"}); err != nil || isError {
					t.Fatalf("with more scope: %s %v", text, err)
				}
				for _, e := range h.Events() {
					if e.Type == audit.CallCompleted && e.Task.ID == sub.Task && (e.Task.Parent != id || len(e.Workload.Delegation) != 1 || e.Workload.Delegation[0] != "agent:a") {
						t.Errorf("its chain on record: %+v %+v", e.Task, e.Workload)
					}
				}
				if code := request(t, "POST", h.Agent+"/v1/tasks/"+id+"/end", token, map[string]any{}, nil); code != 200 {
					t.Fatal(code)
				}
				if text, isError, err := child.call(t.Context(), "tracker__list_issues", nil); err == nil && !isError {
					t.Errorf("after its parent's end: %s", text)
				}
			})
		}
	}
}
