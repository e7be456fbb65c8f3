package edge

import (
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
)

// The tasks of 2025-11-25 are nothing that agents are offered: a call that wants to be
// one is a plain call, answered plainly, and there is no task to ask about.
func TestCoreTasksAreNotOffered(t *testing.T) {
	d := open(t)
	const caps = `{"tasks":{"list":{},"cancel":{},"requests":{"elicitation":{"create":{}}}}}`
	begun := d.do(req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":`+caps+`,"clientInfo":{"name":"t","version":"1"}`)})
	if begun.status != 200 || strings.Contains(begun.body, `"tasks"`) {
		t.Errorf("%d %s", begun.status, begun.body)
	}
	session := d.sessionOf("alice", "2025-11-25", caps)
	in := func(body string) res { return d.do(req{body: body}.with(mcp.HeaderSessionID, session)) }
	plain := in(rpc(7, "tools/call", `"name":"raw","arguments":{}`))
	asTask := in(rpc(7, "tools/call", `"name":"raw","arguments":{},"task":{"ttl":60000}`))
	if plain.status != 200 || !strings.Contains(plain.body, `"content"`) || asTask.status != plain.status || asTask.body != plain.body {
		t.Errorf("plain %d %s\nas a task %d %s", plain.status, plain.body, asTask.status, asTask.body)
	}
	if last := d.calls[len(d.calls)-1]; last.Later || strings.Contains(string(last.Args), "task") {
		t.Errorf("the gateway hears %+v", last)
	}
	for _, method := range []string{"tasks/get", "tasks/result", "tasks/list", "tasks/cancel"} {
		if got := in(rpc(8, method, `"taskId":"x"`)); got.status != 200 || !strings.Contains(got.body, `"code":-32601`) {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
	}
}
