package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"toolbroker/gateway/audit"
)

// A client that takes handles and only listens hears of a human's yes by what came of
// the call; and what it takes back, operators are not asked any more.
func TestListeningForAHandle(t *testing.T) {
	store := redis(t)
	fixture := newEraServer(t, true)
	h := newHouse(t, Options{Redis: store, Policy: eraRows, Servers: fmt.Sprintf("\n  - {name: modern, url: %q, protocol: modern}\n", fixture.url)})
	_, token := h.Task("agent:a")
	h.shows(token, "modern__guarded")
	bob := h.Login("bob")
	const caps = `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`
	c := newRaw(t, h.MCP, token, "2026-07-28", caps)
	keep := func(args string) string {
		t.Helper()
		a, err := c.do(t.Context(), "tools/call", `{"name":"modern__guarded","arguments":`+args+`}`)
		var r struct{ TaskID string }
		if err != nil || json.Unmarshal(a.Result, &r) != nil || r.TaskID == "" {
			t.Fatalf("%s %v", a.Body, err)
		}
		return r.TaskID
	}

	id := keep(`{"for":"x"}`)
	body := `{"jsonrpc":"2.0","id":"s","method":"subscriptions/listen","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":` + caps +
		`},"notifications":{"taskIds":["` + id + `","another"]}}}`
	r, err := http.NewRequestWithContext(t.Context(), "POST", h.MCP, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Authorization": "Bearer " + token,
		"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"} {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said []string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		msg, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		said = append(said, msg)
		if len(said) == 2 { // acknowledged, and how it is: now a human agrees
			if code := h.Vote(bob, h.Pending(bob), true); code != 200 {
				t.Fatalf("vote: %d", code)
			}
		}
		if strings.Contains(msg, `"status":"completed"`) {
			break
		}
	}
	if len(said) < 3 || !strings.Contains(said[0], `"taskIds":["`+id+`"]`) || !strings.Contains(said[1], `"status":"working"`) ||
		!strings.Contains(said[len(said)-1], `"result":{`) || !strings.Contains(said[len(said)-1], `"method":"notifications/tasks"`) {
		t.Errorf("said: %s", strings.Join(said, "\n"))
	}
	if n := h.Count(audit.CallCompleted); n != 1 {
		t.Errorf("%d calls completed", n)
	}

	id = keep(`{"for":"y"}`)
	h.Pending(bob)
	if a, err := c.do(t.Context(), "tasks/cancel", `{"taskId":"`+id+`"}`); err != nil || a.Error != nil {
		t.Fatalf("%s %v", a.Body, err)
	}
	for _, a := range h.Approvals(bob) {
		if a.State == "pending" {
			t.Errorf("operators are still asked: %+v", a)
		}
	}
	until(t, "that is on record", func() bool { return h.Count(audit.ApprovalCancelled) == 1 })
	h.Stop()
	h.Verify()
}
