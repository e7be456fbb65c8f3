package edge

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
)

// Each message of a batch is read, identified, decided and answered as if it had
// come alone.
func TestBatch(t *testing.T) {
	d := open(t)
	sid := d.sessionOf("alice", "2025-03-26", "{}")
	batch := "[ " + strings.Join([]string{
		rpc(1, "tools/call", `"name":"echo","arguments":{"a":1}`),
		rpc("x", "ping", ""),
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		rpc(2, "tools/call", `"name":"nope"`),
		`{"jsonrpc":"2.0","id":3,"method":"ping","params":[]}`,
		`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"echo","Name":"raw"}}`,
		`{"jsonrpc":"2.0","id":"ask-none","result":{}}`,
		`7`,
		rpc(6, "tools/list", ""),
	}, " ,\n") + "]"
	whole := d.do(req{body: batch}.with(mcp.HeaderSessionID, sid))
	var all []struct {
		ID     any
		Result json.RawMessage
		Error  *struct{ Code int }
	}
	if err := json.Unmarshal([]byte(whole.body), &all); err != nil || whole.status != 200 || len(all) != 8 {
		t.Fatalf("%d %s %v", whole.status, whole.body, err)
	}
	byID := map[any]int{}
	for _, one := range all {
		code := 0
		if one.Error != nil {
			code = one.Error.Code
		}
		if one.ID != nil {
			byID[one.ID] = code
		}
	}
	for id, code := range map[any]int{1.0: 0, "x": 0, 2.0: -32602, 3.0: -32600, 5.0: -32600, 6.0: 0} {
		if got, there := byID[id]; !there || got != code {
			t.Errorf("%v: %d %v in %s", id, got, there, whole.body)
		}
	}
	if len(d.calls) != 2 || string(d.calls[0].Args)+string(d.calls[1].Args) != `{"a":1}{}` && string(d.calls[1].Args)+string(d.calls[0].Args) != `{"a":1}{}` {
		t.Errorf("calls %+v", d.calls)
	}
	for _, c := range d.calls {
		if c.Credential.Session != sid || c.Protocol != "2025-03-26" {
			t.Errorf("%+v", c)
		}
	}

	// Where none is to be answered, nothing is.
	if got := d.do(req{body: `[{"jsonrpc":"2.0","method":"notifications/initialized"}]`}); got.status != 202 || got.body != "" {
		t.Errorf("%d %q", got.status, got.body)
	}
	// A session that is another's is as unknown for each as for all.
	for _, session := range []string{sid, "mcp-nobodys"} {
		got := d.do(req{token: "bob", body: "[" + rpc(1, "ping", "") + "," + rpc(2, "tools/list", "") + "]"}.with(mcp.HeaderSessionID, session))
		if got.status != 404 || strings.Count(got.body, "no such session") != 2 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	// Who it is is asked before it is read.
	if got := d.do(req{token: "mallory", body: "[" + strings.Repeat("[", 1000)}); got.status != 401 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// One message that blows up takes no other with it.
func TestBatchSurvivesPanic(t *testing.T) {
	h := newHouse()
	d := another(t, h, func(c *Config) { c.Gateway = panicky{h} })
	got := d.do(req{body: "[" + call("echo", "{}") + "," + rpc(2, "ping", "") + "]"})
	if got.status != 200 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, `"id":2,"result":{}`) {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestBatchOverStdio(t *testing.T) {
	d := open(t)
	batch := "[" + call("echo", "{}") + `,{"jsonrpc":"2.0","method":"notifications/initialized"},` + rpc(2, "nope", "") + "]"
	for protocol, want := range map[string]int{"2025-03-26": 2, "2025-11-25": 0} {
		got := converse(t, d, rpc(0, "initialize", `"protocolVersion":"`+protocol+`"`), batch)
		_, answer, _ := strings.Cut(got, "\n")
		var all []any
		if json.Unmarshal([]byte(answer), &all); len(all) != want || (want == 0) != strings.Contains(answer, "batches are not supported") {
			t.Errorf("%s: %s", protocol, answer)
		}
	}
	if got := converse(t, d, rpc(0, "initialize", `"protocolVersion":"2025-03-26"`), "[7,8"); !strings.Contains(got, "-32700") {
		t.Error(got)
	}
}

// FuzzBatch: a batch that is taken apart is what another decoder finds in it.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("[" + call("echo", "{}") + " , " + rpc(2, "ping", "") + " ]"))
	f.Add([]byte("[[]]"))
	f.Add([]byte(`[7,"x",{"a":{"b":1}}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !isBatch(raw) {
			return
		}
		all, err := splitBatch(raw)
		if err != nil {
			return
		}
		var want []json.RawMessage
		if err := json.Unmarshal(raw, &want); err != nil || len(want) != len(all) || len(all) > maxBatch {
			t.Fatalf("%q: %d messages, want %d, %v", raw, len(all), len(want), err)
		}
		for i := range all {
			if string(all[i]) != string(want[i]) {
				t.Fatalf("%q: %q, want %q", raw, all[i], want[i])
			}
		}
	})
}
