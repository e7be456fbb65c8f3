package jobs_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"toolbroker/examples/servers/jobs"
)

// A client is one that takes tasks, or not.
type client struct {
	t    *testing.T
	url  string
	caps string
}

// ask makes one request; name is what the Mcp-Name header says.
func (c client) ask(method, name, params string) (status int, answer map[string]any) {
	c.t.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":%s}%s}}`, method, c.caps, params)
	r, err := http.NewRequestWithContext(c.t.Context(), "POST", c.url, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("MCP-Protocol-Version", "2026-07-28")
	r.Header.Set("Mcp-Method", method)
	if name != "" {
		r.Header.Set("Mcp-Name", name)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if err := json.Unmarshal(text, &answer); err != nil {
		c.t.Fatalf("%s: %s", resp.Status, text)
	}
	return resp.StatusCode, answer
}

// The protocol's suite looks at the shapes (cmd/toolbroker/e2e); this looks at what
// the shapes are about.
func TestJobs(t *testing.T) {
	s := httptest.NewServer(jobs.Handler(jobs.Config{Took: time.Millisecond}))
	defer s.Close()
	takes := client{t, s.URL, `{"elicitation":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}`}
	plain := client{t, s.URL, `{}`}

	start := func(tool, args string) string {
		t.Helper()
		_, a := takes.ask("tools/call", tool, fmt.Sprintf(`,"name":%q,"arguments":%s`, tool, args))
		result, _ := a["result"].(map[string]any)
		id, _ := result["taskId"].(string)
		if id == "" {
			t.Fatalf("%s: %v", tool, a)
		}
		return id
	}
	look := func(id string) map[string]any {
		t.Helper()
		for {
			_, a := takes.ask("tasks/get", id, fmt.Sprintf(`,"taskId":%q`, id))
			result, ok := a["result"].(map[string]any)
			if !ok {
				t.Fatal(a)
			}
			if result["status"] != "working" {
				return result
			}
		}
	}
	if got := look(start("failing_job", `{}`)); got["status"] != "completed" || got["result"].(map[string]any)["isError"] != true {
		t.Errorf("a tool that fails: %v", got)
	}
	if got := look(start("protocol_error_job", `{}`)); got["status"] != "failed" || got["error"] == nil {
		t.Errorf("a server that fails: %v", got)
	}

	// A human who says no is heard, and an answer to nothing is not.
	id := start("confirm_delete", `{"filename":"x"}`)
	takes.ask("tasks/update", id, fmt.Sprintf(`,"taskId":%q,"inputResponses":{"other":{"action":"accept"}}`, id))
	if got := look(id); got["status"] != "input_required" {
		t.Errorf("answered something else: %v", got)
	}
	takes.ask("tasks/update", id, fmt.Sprintf(`,"taskId":%q,"inputResponses":{"confirm":{"action":"decline"}}`, id))
	if got := fmt.Sprint(look(id)); !strings.Contains(got, "kept x") {
		t.Errorf("declined: %s", got)
	}

	id = start("slow_compute", `{"seconds":3600}`)
	takes.ask("tasks/cancel", id, fmt.Sprintf(`,"taskId":%q`, id))
	if got := look(id); got["status"] != "cancelled" {
		t.Errorf("cancelled: %v", got)
	}

	// Who takes no tasks gets none, and is told.
	if status, a := plain.ask("tools/call", "failing_job", `,"name":"failing_job","arguments":{}`); status != 400 || !strings.Contains(fmt.Sprint(a), "-32021") {
		t.Errorf("%d %v", status, a)
	}
	if status, a := plain.ask("tasks/get", id, fmt.Sprintf(`,"taskId":%q`, id)); status != 400 || !strings.Contains(fmt.Sprint(a), "-32021") {
		t.Errorf("%d %v", status, a)
	}
	if _, a := takes.ask("tasks/get", "nobody's", `,"taskId":"nobody's"`); !strings.Contains(fmt.Sprint(a), "-32602") {
		t.Error(a)
	}
	if status, a := takes.ask("tools/call", "greet", `,"name":"slow_compute","arguments":{"seconds":0}`); status != 400 || !strings.Contains(fmt.Sprint(a), "-32020") {
		t.Errorf("a header that says otherwise: %d %v", status, a)
	}
}
