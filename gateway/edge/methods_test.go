package edge

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// A legacy client gets the revision it asks for, or the newest that has sessions;
// what it sends in its session is then in that one, whether it says so or not.
func TestVersions(t *testing.T) {
	for asked, got := range map[string]string{
		"2025-03-26": "2025-03-26", "2025-06-18": "2025-06-18", "2025-11-25": "2025-11-25",
		"2026-07-28": "2025-11-25", "2099-01-01": "2025-11-25", "1999-01-01": "2025-11-25",
	} {
		d := open(t)
		in := d.do(req{body: rpc(1, "initialize", `"protocolVersion":"`+asked+`","capabilities":{"roots":{}},"clientInfo":{"name":"t","version":"1"}`)})
		var out struct {
			Result struct {
				ProtocolVersion string
				Capabilities    map[string]json.RawMessage
			}
		}
		if err := json.Unmarshal([]byte(in.body), &out); err != nil || out.Result.ProtocolVersion != got {
			t.Errorf("%s: %s", asked, in.body)
		}
		if out.Result.Capabilities["extensions"] != nil || out.Result.Capabilities["tasks"] != nil {
			t.Errorf("%s: says that it has tasks: %s", asked, in.body)
		}
		sid := in.header.Get(mcp.HeaderSessionID)
		s, err := d.kept.Session(t.Context(), sid)
		if err != nil || s.Protocol != got || string(s.Caps) != `{"roots":{}}` {
			t.Errorf("%s: kept %+v %v", asked, s, err)
		}
		d.do(req{body: call("echo", "{}")}.with(mcp.HeaderSessionID, sid))
		if len(d.calls) != 1 || d.calls[0].Protocol != got || string(d.calls[0].Caps) != `{"roots":{}}` {
			t.Errorf("%s: %+v", asked, d.calls)
		}
	}
	d := open(t)
	got := d.do(modernReq("server/discover", "", ""))
	var out struct {
		Result struct {
			ResultType        string
			SupportedVersions []string
			Capabilities      map[string]json.RawMessage
			TTL               *int `json:"ttlMs"`
			CacheScope        string
			Meta              map[string]struct{ Name, Version string } `json:"_meta"`
		}
	}
	if err := json.Unmarshal([]byte(got.body), &out); err != nil {
		t.Fatalf("%s %v", got.body, err)
	}
	r := out.Result
	if r.ResultType != "complete" || r.TTL == nil || r.CacheScope != "private" || r.Meta["io.modelcontextprotocol/serverInfo"].Name != "toolbroker" || r.SupportedVersions[0] != modern {
		t.Error(got.body)
	}
	for name, want := range map[string]string{
		"tools": `{"listChanged":true}`, "prompts": `{"listChanged":true}`, "resources": `{"subscribe":true,"listChanged":true}`,
		"completions": `{}`, "logging": `{}`, "extensions": `{"io.modelcontextprotocol/tasks":{}}`,
	} {
		if string(r.Capabilities[name]) != want {
			t.Errorf("%s: %s", name, r.Capabilities[name])
		}
	}
	if r.Capabilities["tasks"] != nil {
		t.Error(got.body)
	}
	// A version that is refused is refused with those that are not.
	bad := d.do(req{body: rpc(1, "tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"v999","io.modelcontextprotocol/clientCapabilities":{}}`)}.with(mcp.HeaderProtocolVersion, "v999"))
	var refused struct {
		Error struct {
			Data struct {
				Supported []string
				Requested string
			}
		}
	}
	if json.Unmarshal([]byte(bad.body), &refused) != nil || bad.status != 400 || refused.Error.Data.Requested != "v999" || !slices.Equal(refused.Error.Data.Supported, r.SupportedVersions) {
		t.Errorf("%d %s", bad.status, bad.body)
	}
}

// Each method is its era's; in the other it is as unknown as one that nobody has.
func TestMethodsOfEachEra(t *testing.T) {
	d := open(t)
	for method, row := range methods {
		legacy := d.do(req{body: rpc(1, method, "")})
		if unknown := strings.Contains(legacy.body, "-32601"); unknown != (row.legacy == nothing) || unknown && legacy.status != 200 {
			t.Errorf("%s, legacy: %d %s", method, legacy.status, legacy.body)
		}
		r := declaring(tasksCap, method, "x", `"name":"x","uri":"x","taskId":"x","notifications":{}`)
		got := d.do(r)
		if unknown := strings.Contains(got.body, "-32601"); unknown != (row.modern == nothing) || unknown && got.status != 404 {
			t.Errorf("%s, modern: %d %s", method, got.status, got.body)
		}
	}
}

// What is to be read, got and completed goes to the gateway in the agent's bytes.
func TestRequestsCarryTheAgentsBytes(t *testing.T) {
	d := open(t)
	for _, row := range []struct {
		method, params, name, args string
		ref                        gateway.Sort
	}{
		{"resources/read", `"uri":"a:\u0062","arguments":{"x":1}`, "a:b", `{}`, ""},
		{"prompts/get", `"name":"p","arguments":{ "a" : "\u0062" }`, "p", `{ "a" : "\u0062" }`, ""},
		{"prompts/get", `"name":"p"`, "p", `{}`, ""},
		{"completion/complete", `"ref":{"name":"p","type":"ref/prompt","title":"t"},"argument":{ "value":"\u0062","name":"a","x":1 }`, "p", `{"argument":{ "value":"\u0062","name":"a","x":1 }}`, gateway.SortPrompt},
		{"completion/complete", `"ref":{"type":"ref/resource","uri":"a:{x}"},"argument":{"name":"x","value":""},"context":{ "arguments":{"y":"z"}}`, "a:{x}", `{"argument":{"name":"x","value":""},"context":{ "arguments":{"y":"z"}}}`, gateway.SortTemplate},
		{"completion/complete", `"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"x","value":""},"context":null`, "p", `{"argument":{"name":"x","value":""}}`, gateway.SortPrompt},
	} {
		d.set(func() { d.calls = nil })
		got := d.do(req{body: rpc(1, row.method, row.params+`,"_meta":{"progressToken":1}`)})
		if got.status != 200 || !strings.Contains(got.body, `"result"`) || len(d.calls) != 1 {
			t.Fatalf("%s: %d %s", row.params, got.status, got.body)
		}
		c := d.calls[0]
		if c.Method != row.method || c.Name != row.name || string(c.Args) != row.args || c.Ref != row.ref || string(c.Meta) != `{"progressToken":1}` || c.Agrees != nil {
			t.Errorf("%s: %+v, args %s", row.params, c, c.Args)
		}
	}
}
