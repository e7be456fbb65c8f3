package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// What is malformed, misdirected or unidentified is refused before it means
// anything, and the gateway never hears of it.
func TestHygiene(t *testing.T) {
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	echo := call("echo", `{}`)
	for _, row := range []struct {
		name   string
		req    req
		status int
		says   string // part of the body
	}{
		{"no token", req{token: " ", body: echo}, 401, "unidentified"},
		{"unknown token", req{token: "mallory", body: echo}, 401, "unidentified"},
		{"unknown token and a body that is no JSON", req{token: "mallory", body: "{"}, 401, "unidentified"},
		{"another scheme", req{body: echo, header: map[string]string{"Authorization": "Basic alice"}}, 401, ""},
		{"token in the query", req{path: "/mcp?access_token=alice", body: echo}, 400, "no query"},
		{"any query", req{path: "/mcp?x", body: echo}, 400, "no query"},
		{"an empty query", req{path: "/mcp?", body: echo}, 400, "no query"},
		{"task that is no id", req{body: echo, header: map[string]string{TaskHeader: "Task 1"}}, 400, ""},
		{"session that is no id", req{body: echo, header: map[string]string{mcp.HeaderSessionID: "../x"}}, 400, ""},

		{"foreign host", req{body: echo, host: "evil.example"}, 421, ""},
		{"rebound host", req{body: echo, host: "localhost.evil.example:80"}, 421, ""},
		{"foreign host without a token", req{token: " ", body: echo, host: "evil.example"}, 421, ""},
		{"host by another loopback name", req{body: echo, host: "localhost:1"}, 200, ""},
		{"configured host", req{body: echo, host: "Broker.example"}, 200, ""},
		{"configured host and any port", req{body: echo, host: "broker.example:8443"}, 200, ""},
		{"host configured with a port", req{body: echo, host: "other.example:99"}, 200, ""},
		{"host configured with another port", req{body: echo, host: "other.example:98"}, 421, ""},
		{"foreign origin", req{body: echo, header: map[string]string{"Origin": "https://evil.example"}}, 403, ""},
		{"null origin", req{body: echo, header: map[string]string{"Origin": "null"}}, 403, ""},
		{"origin that looks like ours", req{body: echo, header: map[string]string{"Origin": "https://app.example.evil.example"}}, 403, ""},
		{"configured origin", req{body: echo, header: map[string]string{"Origin": "https://app.example"}}, 200, ""},
		{"loopback origin", req{body: echo, header: map[string]string{"Origin": "http://localhost:3000"}}, 200, ""},

		{"another path", req{path: "/mcp/", body: echo}, 404, ""},
		{"the root", req{method: "GET", path: "/"}, 404, ""},
		{"another verb", req{method: "PUT", body: echo}, 405, ""},
		{"preflight", req{method: "OPTIONS", header: map[string]string{"Origin": "https://app.example"}}, 405, ""},

		{"no content type", req{body: echo, header: map[string]string{"Content-Type": ""}}, 415, ""},
		{"form", req{body: echo, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}}, 415, ""},
		{"text", req{body: echo, header: map[string]string{"Content-Type": "text/plain"}}, 415, ""},
		{"charset", req{body: echo, header: map[string]string{"Content-Type": "application/json; charset=utf-8"}}, 200, ""},
		{"compressed", req{body: echo, header: map[string]string{"Content-Encoding": "gzip"}}, 415, ""},
		{"accepts neither", req{body: echo, header: map[string]string{"Accept": "text/html"}}, 406, ""},
		{"accepts with weight zero", req{body: echo, header: map[string]string{"Accept": "application/json;q=0, text/event-stream;q=0.0"}}, 406, ""},
		{"accepts anything", req{body: echo, header: map[string]string{"Accept": "*/*"}}, 200, ""},
		{"accepts JSON only", req{body: echo, header: map[string]string{"Accept": "application/json"}}, 200, ""},
		{"accepts events only", req{body: echo, header: map[string]string{"Accept": "text/event-stream"}}, 200, "data: {"},
		{"oversized", req{body: call("echo", `{"x":"`+strings.Repeat("x", 70_000)+`"}`)}, 413, "no more than 65536 bytes"},

		{"empty", req{body: ""}, 400, "-32700"},
		{"not JSON", req{body: "{"}, 400, "-32700"},
		{"trailing data", req{body: echo + "{}"}, 400, "-32700"},
		{"two messages", req{body: echo + "\n" + echo}, 400, "-32700"},
		{"trailing comma", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping",}`}, 400, "-32700"},
		{"comment", req{body: `{"jsonrpc":"2.0",/**/"id":1,"method":"ping"}`}, 400, "-32700"},
		{"byte order mark", req{body: "\ufeff" + echo}, 400, "-32700"},
		{"invalid UTF-8", req{body: call("echo", "{\"a\":\"\xff\"}")}, 400, "-32700"},
		{"lone surrogate", req{body: call("echo", `{"a":"\ud800"}`)}, 400, "-32700"},
		{"lone surrogate in a name", req{body: call("echo", `{"\udc00":1}`)}, 400, "-32700"},
		{"batch of another era", req{body: "[" + echo + "]"}.with(mcp.HeaderProtocolVersion, "2025-06-18"), 400, "batches are not supported"},
		{"batch of another era, again", req{body: "[" + echo + "]"}.with(mcp.HeaderProtocolVersion, modern), 400, "batches are not supported"},
		{"empty batch", req{body: " []"}, 400, "-32600"},
		{"batch in a batch", req{body: "[[" + echo + "]]"}, 400, "batches are not supported"},
		{"endless batch", req{body: "[" + strings.Repeat(echo+",", maxBatch) + echo + "]"}, 400, "send 32 at most"},
		{"batch that is not over", req{body: "[" + echo}, 400, "-32700"},
		{"two batches", req{body: "[" + echo + "][" + echo + "]"}, 400, "-32700"},
		{"batch with a session to open", req{body: "[" + echo + "," + rpc(1, "initialize", `"protocolVersion":"2025-03-26"`) + "]"}, 400, "initialize comes alone"},
		{"batch with another era's request", req{body: "[" + rpc(1, "tools/call", modernMeta("")+`,"name":"echo"`) + "]"}, 400, "-32020"},
		{"a string", req{body: `"ping"`}, 400, "-32600"},
		{"nested 100,000 deep", req{body: "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":" + deep[:60_000] + "}}"}, 400, "nested too deeply"},
		{"nested 100,000 deep as a batch", req{body: deep[:65_000]}, 400, ""},
		{"32,100 values", req{body: call("echo", `{"a":[`+strings.Repeat("0,", 32_100)+"0]}")}, 400, `"id":1,"error":{"code":-32600,"message":"the message holds more than 32000 values`},
		{"20,100 empty values", req{body: call("echo", `{"a":[`+strings.Repeat("{},", 20_100)+"{}]}")}, 200, `"result":{`},
		{"many commas in a text", req{body: call("echo", `{"a":"`+strings.Repeat("[0,", 20_000)+`"}`)}, 200, `"result":{`},
		{"nested objects", req{body: call("echo", strings.Repeat(`{"a":`, 10_000)+"1"+strings.Repeat("}", 10_000))}, 400, "nested too deeply"},

		{"jsonrpc missing", req{body: `{"id":1,"method":"ping"}`}, 400, "-32600"},
		{"jsonrpc 1.0", req{body: `{"jsonrpc":"1.0","id":1,"method":"ping"}`}, 400, "-32600"},
		{"jsonrpc a number", req{body: `{"jsonrpc":2.0,"id":1,"method":"ping"}`}, 400, "-32600"},
		{"method missing", req{body: `{"jsonrpc":"2.0","id":1}`}, 400, "-32600"},
		{"method empty", req{body: `{"jsonrpc":"2.0","id":1,"method":""}`}, 400, "-32600"},
		{"method a number", req{body: `{"jsonrpc":"2.0","id":1,"method":7}`}, 400, "-32600"},
		{"id null", req{body: `{"jsonrpc":"2.0","id":null,"method":"ping"}`}, 400, "-32600"},
		{"id a fraction", req{body: `{"jsonrpc":"2.0","id":1.5,"method":"ping"}`}, 400, "-32600"},
		{"id with an exponent", req{body: `{"jsonrpc":"2.0","id":1e2,"method":"ping"}`}, 400, "-32600"},
		{"id an object", req{body: `{"jsonrpc":"2.0","id":{},"method":"ping"}`}, 400, "-32600"},
		{"id true", req{body: `{"jsonrpc":"2.0","id":true,"method":"ping"}`}, 400, "-32600"},
		{"id endless", req{body: `{"jsonrpc":"2.0","id":"` + strings.Repeat("x", 300) + `","method":"ping"}`}, 400, "-32600"},
		{"params an array", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}`}, 400, "-32600"},
		{"request and response in one", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`}, 400, "-32600"},
		{"response to nothing", req{body: `{"jsonrpc":"2.0","id":1,"result":{}}`}, 400, "-32600"},
		{"error to nothing", req{body: `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}`}, 400, "-32600"},

		{"method twice", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}`}, 400, "given twice"},
		{"method in another case", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}`}, 400, "only in case"},
		{"method only in another case", req{body: `{"jsonrpc":"2.0","id":1,"METHOD":"ping"}`}, 400, "only in case"},
		{"method spelt with a long s", req{body: `{"jſonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"ping"}`}, 400, "only in case"},
		{"method twice, once escaped", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","\u006dethod":"tools/call"}`}, 400, "given twice"},
		{"params twice", req{body: `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{},"params":{}}`}, 400, "given twice"},
		{"name twice", req{body: rpc(1, "tools/call", `"name":"nope","name":"echo"`)}, 400, "given twice"},
		{"name in another case", req{body: rpc(1, "tools/call", `"name":"nope","Name":"echo"`)}, 400, "only in case"},
		{"arguments in another case", req{body: rpc(1, "tools/call", `"name":"echo","arguments":{},"ARGUMENTS":{}`)}, 400, "only in case"},
		{"an argument twice", req{body: call("echo", `{"a":1,"a":2}`)}, 400, "given twice"},
		{"an argument twice, deep down", req{body: call("echo", `{"a":[{"b":{"c":1,"c":2}}]}`)}, 400, "given twice"},
		{"an argument twice, once escaped", req{body: call("echo", `{"a":1,"\u0061":2}`)}, 400, "given twice"},
		{"a meta key twice", req{body: rpc(1, "tools/call", `"name":"echo","_meta":{"progressToken":1,"progressToken":2}`)}, 400, "given twice"},
		{"a meta key in another case", req{body: rpc(1, "tools/call", `"name":"echo","_meta":{"ProgressToken":1}`)}, 400, "only in case"},
		{"meta is no object", req{body: rpc(1, "tools/call", `"name":"echo","_meta":[]`)}, 400, "-32602"},
		{"a token that is an object", req{body: rpc(1, "tools/call", `"name":"echo","_meta":{"progressToken":{}}`)}, 400, "-32602"},
		{"an unknown field twice", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","x":1,"x":2}`}, 400, "given twice"},
		{"an unknown field", req{body: `{"jsonrpc":"2.0","id":1,"method":"ping","x":{"y":1}}`}, 200, `"result":{}`},

		{"name missing", req{body: rpc(1, "tools/call", ``)}, 200, "-32602"},
		{"name a number", req{body: rpc(1, "tools/call", `"name":1`)}, 200, "-32602"},
		{"name endless", req{body: call(strings.Repeat("x", 300), "{}")}, 200, "-32602"},
		{"arguments an array", req{body: call("echo", "[]")}, 200, "-32602"},
		{"answers to what nobody asked", req{body: rpc(1, "tools/call", `"name":"echo","inputResponses":{}`)}, 200, "-32602"},
		{"a cursor", req{body: rpc(1, "tools/list", `"cursor":"abc"`)}, 200, "unknown cursor"},
		{"an empty cursor", req{body: rpc(1, "tools/list", `"cursor":""`)}, 200, `"tools"`},
		{"an id that mcp-go would change", req{body: `{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`}, 200, `"id":9007199254740993,"result":{}`},
		{"the same id for a call", req{body: `{"jsonrpc":"2.0","id":9007199254740993,"method":"tools/list"}`}, 200, `"id":9007199254740993,"result"`},
		{"a version nobody speaks", req{body: rpc(1, "tools/list", "")}.with(mcp.HeaderProtocolVersion, "2020-01-01"), 400, "-32022"},

		{"resources", req{body: rpc(1, "resources/list", "")}, 200, `"result":{"resources":[]}`},
		{"templates", req{body: rpc(1, "resources/templates/list", "")}, 200, `"result":{"resourceTemplates":[]}`},
		{"prompts", req{body: rpc(1, "prompts/list", "")}, 200, `"result":{"prompts":[]}`},
		{"a resource that is not there", req{body: rpc(1, "resources/read", `"uri":"hidden:x"`)}, 200, `-32002,"message":"Resource not found","data":{"uri":"hidden:x"}`},
		{"a resource without a name", req{body: rpc(1, "resources/read", `"name":"x"`)}, 200, "-32602"},
		{"a resource of many names", req{body: rpc(1, "resources/read", `"uri":"x","URI":"y"`)}, 400, "only in case"},
		{"a resource with an endless name", req{body: rpc(1, "resources/read", `"uri":"x:`+strings.Repeat("x", 5000)+`"`)}, 200, "-32602"},
		{"a prompt that is not there", req{body: rpc(1, "prompts/get", `"name":"hidden"`)}, 200, `-32602,"message":"Unknown prompt"`},
		{"a prompt's arguments in an array", req{body: rpc(1, "prompts/get", `"name":"p","arguments":[]`)}, 200, "-32602"},
		{"completion of nothing", req{body: rpc(1, "completion/complete", "")}, 200, "-32602"},
		{"completion of a tool", req{body: rpc(1, "completion/complete", `"ref":{"type":"ref/tool","name":"x"},"argument":{"name":"a","value":"b"}`)}, 200, "-32602"},
		{"completion of two things", req{body: rpc(1, "completion/complete", `"ref":{"type":"ref/prompt","name":"x","Name":"y"},"argument":{"name":"a","value":"b"}`)}, 400, "only in case"},
		{"completion of a number", req{body: rpc(1, "completion/complete", `"ref":{"type":"ref/prompt","name":"x"},"argument":{"name":"a","value":1}`)}, 200, "-32602"},
		{"completion of what is not there", req{body: rpc(1, "completion/complete", `"ref":{"type":"ref/resource","uri":"hidden:{x}"},"argument":{"name":"a","value":"b"}`)}, 200, `-32602,"message":"Unknown prompt or resource template"`},
		{"MCP tasks", req{body: rpc(1, "tasks/get", `"taskId":"x"`)}, 200, "-32601"},
		{"a log level without a session", req{body: rpc(1, "logging/setLevel", `"level":"info"`)}, 200, "-32600"},
		{"a log level that is none", req{body: rpc(1, "logging/setLevel", `"level":"loud"`)}, 200, "-32602"},
		{"a subscription without a session", req{body: rpc(1, "resources/subscribe", `"uri":"a:b"`)}, 200, "-32600"},
		{"the end of one without a session", req{body: rpc(1, "resources/unsubscribe", `"uri":"a:b"`)}, 200, "-32600"},
		{"listening, which is another era's", req{body: rpc(1, "subscriptions/listen", `"notifications":{}`)}, 200, "-32601"},
		{"capabilities without end", req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":{"experimental":{"x":"`+strings.Repeat("x", 20_000)+`"}}`)}, 400, "-32602"},
		{"capabilities in another case", req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":{"Sampling":{}}`)}, 400, "only in case"},
		{"a mode in another case", req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":{"elicitation":{"URL":{}}}`)}, 400, "only in case"},
		{"discovery without the era", req{body: rpc(1, "server/discover", "")}, 200, "-32601"},
		{"an unknown method", req{body: rpc(1, "nope", "")}, 200, "-32601"},

		{"modern: fine", modernReq("tools/call", "echo", `"name":"echo","arguments":{}`), 200, `"resultType":"complete"`},
		{"modern: name in base64", modernReq("tools/call", "=?base64?ZWNobw==?=", `"name":"echo"`), 200, `"resultType":"complete"`},
		{"modern: no version header", modernReq("tools/list", "", "").with(mcp.HeaderProtocolVersion, ""), 400, "-32020"},
		{"modern: a legacy version header", modernReq("tools/list", "", "").with(mcp.HeaderProtocolVersion, "2025-11-25"), 400, "-32020"},
		{"modern: no version in the body", req{body: rpc(1, "tools/list", "")}.with(mcp.HeaderProtocolVersion, modern).with(mcp.HeaderMethod, "tools/list"), 400, "-32602"},
		{"modern: no capabilities", req{body: rpc(1, "tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`)}.with(mcp.HeaderProtocolVersion, modern).with(mcp.HeaderMethod, "tools/list"), 400, "-32602"},
		{"modern: a version to come", req{body: rpc(1, "tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2099-01-01"}`)}.with(mcp.HeaderProtocolVersion, "2099-01-01"), 400, `-32022,"message":"unsupported protocol version","data":{"supported":["2026-07-28"`},
		{"modern: no method header", modernReq("tools/list", "", "").with(mcp.HeaderMethod, ""), 400, "-32020"},
		{"modern: another method header", modernReq("tools/list", "", "").with(mcp.HeaderMethod, "tools/call"), 400, "-32020"},
		{"modern: no name header", modernReq("tools/call", "", `"name":"echo"`), 400, "-32020"},
		{"modern: another name header", modernReq("tools/call", "hold", `"name":"echo"`), 400, "-32020"},
		{"modern: broken base64", modernReq("tools/call", "=?base64?*?=", `"name":"echo"`), 400, "-32020"},
		{"modern: resuming", modernReq("tools/list", "", "").with(mcp.HeaderLastEventID, "7"), 400, "-32020"},
		{"modern: parameter header", modernReq("tools/call", "region", `"name":"region","arguments":{"region":"eu"}`).with("Mcp-Param-Region", "eu"), 200, "complete"},
		{"modern: no parameter header", modernReq("tools/call", "region", `"name":"region","arguments":{"region":"eu"}`), 400, "-32020"},
		{"modern: another parameter header", modernReq("tools/call", "region", `"name":"region","arguments":{"region":"eu"}`).with("Mcp-Param-Region", "us"), 400, "-32020"},
		{"modern: a parameter header for nothing", modernReq("tools/call", "region", `"name":"region"`).with("Mcp-Param-Region", "us"), 400, "-32020"},
		{"modern: parameter headers of a tool that has none", modernReq("tools/call", "echo", `"name":"echo"`).with("Mcp-Param-Region", "us"), 200, "complete"},
		{"modern: a resource", modernReq("resources/read", "a://b", `"uri":"a://b"`), 200, `{"resultType":"complete","ttlMs":0,"cacheScope":"private","contents":[{"uri":"a://b"`},
		{"modern: a resource without its name", modernReq("resources/read", "", `"uri":"a://b"`), 400, "-32020"},
		{"modern: a resource by another name", modernReq("resources/read", "a://c", `"uri":"a://b"`), 400, "-32020"},
		{"modern: a resource that is not there", modernReq("resources/read", "hidden:x", `"uri":"hidden:x"`), 400, `-32602,"message":"Resource not found","data":{"uri":"hidden:x"}`},
		{"modern: a prompt by another name", modernReq("prompts/get", "p", `"name":"q"`), 400, "-32020"},
		{"modern: a log level", func() req {
			r := modernReq("tools/list", "", "")
			r.body = strings.Replace(r.body, `"io.modelcontextprotocol/clientCapabilities"`, `"io.modelcontextprotocol/logLevel":"loud","io.modelcontextprotocol/clientCapabilities"`, 1)
			return r
		}(), 400, "-32602"},
		{"modern: the level of a session", modernReq("logging/setLevel", "", `"level":"info"`), 404, "-32601"},
		{"modern: a subscription", modernReq("resources/subscribe", "", `"uri":"a:b"`), 404, "-32601"},
		{"modern: listening to nothing that is said", modernReq("subscriptions/listen", "", ""), 400, "-32602"},
		{"modern: listening to nothing", modernReq("subscriptions/listen", "", `"notifications":{}`), 200, "acknowledged"},
		{"modern: listening without events", modernReq("subscriptions/listen", "", `"notifications":{}`).with("Accept", "application/json"), 406, ""},
		{"modern: answers without a question", modernReq("tools/call", "echo", `"name":"echo","inputResponses":[]`), 400, "-32602"},
		{"modern: answers to a completion", modernReq("completion/complete", "", `"ref":{"type":"ref/prompt","name":"x"},"argument":{"name":"a","value":"b"},"requestState":"x"`), 400, "-32602"},
		{"modern: a state that is no text", modernReq("tools/call", "echo", `"name":"echo","requestState":{}`), 400, "-32602"},
		{"modern: an unknown method", modernReq("nope", "", ""), 404, "-32601"},
		{"modern: MCP tasks, undeclared", modernReq("tasks/get", "x", `"taskId":"x"`), 400, `-32021,"message":"this method needs the client capability io.modelcontextprotocol/tasks","data":{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}`},
		{"modern: MCP tasks by another name", modernReq("tasks/get", "y", `"taskId":"x"`), 400, "-32020"},
		{"modern: MCP tasks by no name", modernReq("tasks/cancel", "", `"taskId":"x"`), 400, "-32020"},
		{"modern: a method that MCP tasks had once", modernReq("tasks/list", "", ""), 404, "-32601"},
		{"modern: initialize", modernReq("initialize", "", ""), 404, "-32601"},
		{"modern: ping", modernReq("ping", "", ""), 404, "-32601"},
		{"modern: discovery", modernReq("server/discover", "", ""), 200, `"supportedVersions":["2026-07-28"`},
		{"modern: unknown tool", modernReq("tools/call", "nope", `"name":"nope"`), 400, "Unknown tool"},
		{"modern: a session is ignored", modernReq("tools/list", "", "").with(mcp.HeaderSessionID, "mcp-nobodys"), 200, `"cacheScope":"private"`},
		{"modern: GET", req{method: "GET"}.with(mcp.HeaderProtocolVersion, modern), 405, ""},
		{"modern: DELETE", req{method: "DELETE"}.with(mcp.HeaderProtocolVersion, modern), 405, ""},
		{"modern: GET by nobody", req{method: "GET", token: "mallory"}.with(mcp.HeaderProtocolVersion, modern), 401, ""},

		{"GET without a session", req{method: "GET"}, 400, ""},
		{"DELETE without a session", req{method: "DELETE"}, 400, ""},
		{"GET of plain JSON", req{method: "GET"}.with("Accept", "application/json"), 406, ""},

		{"no task: initialize", req{token: "key", body: rpc(1, "initialize", `"protocolVersion":"2025-11-25"`)}, 403, `"data":{"io.toolbroker/refusal":{"code":"no_task"}}`},
		{"no task: tools/list", req{token: "key", body: rpc(1, "tools/list", "")}, 403, "NO_TASK"},
		{"no task: tools/call", req{token: "key", body: echo}, 200, `"isError":true,"_meta":{"io.toolbroker/refusal":{"code":"no_task"`},
		{"no task: modern listen", func() req { r := modernReq("subscriptions/listen", "", ""); r.token = "key"; return r }(), 403, "NO_TASK"},
		{"task named in the header", req{token: "key", body: echo}.with(TaskHeader, "task-k"), 200, `"content"`},
		{"token and header name different tasks", req{body: echo}.with(TaskHeader, "task-b"), 200, "NO_TASK"},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := open(t, func(c *Config) {
				c.MaxBody = 64 << 10
				c.Hosts = []string{"broker.example", "other.example:99"}
				c.Origins = []string{"https://app.example"}
			})
			got := d.do(row.req)
			if got.status != row.status || !strings.Contains(got.body, row.says) {
				t.Fatalf("%d %s\nwant %d ...%s...", got.status, got.body, row.status, row.says)
			}
			if got.header.Get("Cache-Control") != "no-store" || got.header.Get("X-Accel-Buffering") != "no" {
				t.Errorf("headers %v", got.header)
			}
			if (got.status == 401) != (got.header.Get("WWW-Authenticate") == "Bearer") {
				t.Errorf("WWW-Authenticate %q with %d", got.header.Get("WWW-Authenticate"), got.status)
			}
			if len(d.calls) > 0 && row.status != 200 && !strings.Contains(row.name, "parameter") && !strings.Contains(row.name, "unknown tool") && !strings.Contains(row.name, "not there") {
				t.Error("the gateway heard of it")
			}
		})
	}
}

func TestTwoOfAHeader(t *testing.T) {
	d := open(t)
	if !slices.Contains(single, "Authorization") || !slices.Contains(single, http.CanonicalHeaderKey("DPoP")) || !slices.Contains(single, TaskHeader) {
		t.Error("who asks, or for what, could be read in two ways")
	}
	for _, name := range single {
		r := d.request(req{body: call("echo", "{}")})
		if name != http.CanonicalHeaderKey(name) {
			t.Errorf("%s is not as net/http has it", name)
		}
		r.Header[name] = []string{"Bearer alice", "Bearer bob"}
		out, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		out.Body.Close()
		if out.StatusCode != 400 {
			t.Errorf("two of %s: %d", name, out.StatusCode)
		}
	}
	if len(d.calls) != 0 {
		t.Error("the gateway heard of it")
	}
}

// Off loopback only what the config names is let in.
func TestLoopbackNamesAreForLoopback(t *testing.T) {
	e := &Edge{Config: Config{Hosts: []string{"broker.example"}}}
	for _, row := range []struct {
		host     string
		loopback bool
		want     bool
	}{
		{"localhost", true, true}, {"127.0.0.1:80", true, true}, {"[::1]:80", true, true}, {"127.9.9.9", true, true},
		{"localhost", false, false}, {"127.0.0.1:80", false, false}, {"broker.example", false, true},
		{"10.0.0.1", true, false}, {"", true, false}, {"localhost.", true, false}, {"broker.example.", false, false},
	} {
		if got := e.hostAllowed(row.host, row.loopback); got != row.want {
			t.Errorf("host %q on loopback %v: %v", row.host, row.loopback, got)
		}
	}
	for origin, want := range map[string]bool{"http://localhost:3000": true, "https://[::1]": true, "null": false, "http://10.0.0.1": false, "file://localhost": false, "": false} {
		if got := e.originAllowed([]string{origin}, true); got != want {
			t.Errorf("origin %q: %v", origin, got)
		}
		if e.originAllowed([]string{origin}, false) {
			t.Errorf("origin %q off loopback", origin)
		}
	}
}

// While the gateway cannot tell who asks, nobody is let in and nothing is told.
func TestInternal(t *testing.T) {
	d := open(t)
	d.down = errDown
	for _, r := range []req{{body: call("echo", "{}")}, {body: rpc(1, "initialize", "")}, {method: "GET"}, {method: "GET", path: "/v1/tasks/task-a"}} {
		if got := d.do(r); got.status != 500 || strings.Contains(got.body, "redis") {
			t.Errorf("%+v: %d %s", r, got.status, got.body)
		}
	}
}

// A session is its principal's, on every verb, and gone when it is deleted.
func TestSessions(t *testing.T) {
	d := open(t)
	sid := d.session("alice")
	if other := d.session("alice"); other == sid || !isID(sid) || len(sid) < 26 {
		t.Errorf("session ids %q %q", sid, other)
	}
	in := func(token, method, session, body string) req {
		return req{token: token, method: method, body: body}.with(mcp.HeaderSessionID, session)
	}
	for _, token := range []string{"bob", "key", "mallory"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			for _, body := range []string{call("echo", "{}"), rpc(1, "initialize", ""), rpc(1, "ping", ""), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`} {
				want := 404
				if token == "mallory" {
					want = 401
				}
				foreign, unknown := d.do(in(token, method, sid, body)), d.do(in(token, method, "mcp-no-such", body))
				if foreign.status != want || unknown.status != want || foreign.body != unknown.body {
					t.Errorf("%s %s: %d %s, unknown: %d %s", token, method, foreign.status, foreign.body, unknown.status, unknown.body)
				}
			}
		}
	}
	if got := d.do(in("alice", "POST", sid, call("echo", "{}"))); got.status != 200 {
		t.Errorf("its own session: %d %s", got.status, got.body)
	}
	if len(d.calls) != 1 || d.calls[0].Credential.Session != sid {
		t.Fatalf("calls: %+v", d.calls)
	}

	stream := d.openStream("alice", sid)
	held := d.hold(in("alice", "POST", sid, call("hold", "{}")))
	if got := d.do(in("alice", "DELETE", sid, "")); got.status != 200 {
		t.Fatalf("DELETE: %d %s", got.status, got.body)
	}
	get(t, "end of the stream", stream.ended)
	if err := get(t, "end of the call", d.ended1); !errors.Is(err, errSessionEnd) {
		t.Errorf("the call ended with %v", err)
	}
	get(t, "answer", held)
	for _, method := range []string{"GET", "POST", "DELETE"} {
		if got := d.do(in("alice", method, sid, call("echo", "{}"))); got.status != 404 {
			t.Errorf("%s after DELETE: %d %s", method, got.status, got.body)
		}
	}
}

// A session that the gateway does not bind is not given out.
func TestNoSessionWithoutBinding(t *testing.T) {
	d := open(t)
	for _, body := range []string{
		rpc(1, "initialize", `"protocolVersion":7`), // refused by mcp-go
		rpc(1, "ping", ""),
	} {
		if got := d.do(req{body: body}); got.header.Get(mcp.HeaderSessionID) != "" {
			t.Errorf("%s: got a session", body)
		}
	}
	if len(d.sessions) != 0 {
		t.Errorf("sessions %v", d.sessions)
	}
	if got := d.do(req{token: "key", body: rpc(1, "initialize", "")}); got.header.Get(mcp.HeaderSessionID) != "" {
		t.Error("a session without a task")
	}
}

type openStream struct {
	lines chan string
	ended chan error
	close context.CancelFunc
}

// openStream opens a session's GET stream and returns once it listens.
func (d *door) openStream(token, sid string) *openStream {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	return d.stream(ctx, cancel, req{method: "GET", token: token}.with(mcp.HeaderSessionID, sid))
}

// stream opens a stream of events.
func (d *door) stream(ctx context.Context, cancel context.CancelFunc, r req) *openStream {
	d.Helper()
	out, err := http.DefaultClient.Do(d.request(r).WithContext(ctx))
	if err != nil {
		d.Fatal(err)
	}
	if out.StatusCode != 200 || out.Header.Get("Content-Type") != "text/event-stream" || out.Header.Get("Cache-Control") != "no-store" {
		body, _ := io.ReadAll(out.Body)
		d.Fatalf("no stream: %d %v %s", out.StatusCode, out.Header, body)
	}
	s := &openStream{make(chan string, 64), make(chan error, 1), cancel}
	go func() {
		defer out.Body.Close()
		lines := bufio.NewScanner(out.Body)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				s.lines <- data
			}
		}
		s.ended <- lines.Err()
	}()
	d.Cleanup(cancel)
	return s
}

// hold starts a call that is held and returns its answer to come.
func (d *door) hold(r req) <-chan res {
	d.Helper()
	out := make(chan res, 1)
	go func() {
		defer close(out)
		resp, err := http.DefaultClient.Do(d.request(r))
		if err != nil {
			return
		}
		defer resp.Body.Close()
		b := new(strings.Builder)
		s := bufio.NewScanner(resp.Body)
		for s.Scan() {
			b.WriteString(s.Text() + "\n")
		}
		out <- res{resp.StatusCode, resp.Header, b.String()}
	}()
	get(d.T, "held call", d.holding)
	return out
}

// Notices come on the newest stream of a session, and only while its task runs.
func TestStreamOfNotices(t *testing.T) {
	d := open(t)
	sid := d.session("alice")
	first := d.openStream("alice", sid)
	d.change(gateway.SortTool)
	if got := get(t, "notice", first.lines); got != `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}` {
		t.Errorf("notice %s", got)
	}
	second := d.openStream("alice", sid)
	get(t, "end of the older stream", first.ended)
	d.change(gateway.SortPrompt)
	if got := get(t, "notice on the newer stream", second.lines); !strings.Contains(got, mcp.MethodNotificationPromptsListChanged) {
		t.Errorf("notice %s", got)
	}

	bobs := d.openStream("bob", d.session("bob"))
	d.set(func() { d.ended["task-a"] = true })
	get(t, "end of a stream whose task ended", second.ended)
	if len(bobs.ended) > 0 {
		t.Error("another's stream ended with it")
	}
	// One that cannot be asked about hears nothing, and hears it later.
	d.set(func() { d.down = errDown })
	d.change(gateway.SortTool)
	var before, after int
	d.set(func() { before = d.admits })
	d.set(func() { d.down = nil })
	if got := get(t, "the notice, late", bobs.lines); !strings.Contains(got, mcp.MethodNotificationToolsListChanged) {
		t.Errorf("notice %s", got)
	}
	if d.set(func() { after = d.admits }); after <= before {
		t.Error("nobody was asked")
	}
}

// Only a session's own calls can be cancelled, and only by it: ids repeat.
func TestCancelledReachesOwnCallOnly(t *testing.T) {
	d := open(t)
	cancel := func(token, session, id string) {
		t.Helper()
		r := req{token: token, body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `}}`}
		if session != "" {
			r = r.with(mcp.HeaderSessionID, session)
		}
		if got := d.do(r); got.status != 202 || got.body != "" {
			t.Errorf("cancelled: %d %s", got.status, got.body)
		}
	}
	alice, bob := d.session("alice"), d.session("bob")
	held := d.hold(req{body: call("hold", "{}")}.with(mcp.HeaderSessionID, alice))
	modernHeld := d.hold(modernReq("tools/call", "hold", `"name":"hold"`))
	loose := d.hold(req{body: call("hold", "{}")})

	cancel("bob", bob, "1")
	cancel("bob", "", "1")
	cancel("alice", "", "1")
	cancel("alice", alice, "2")
	cancel("alice", alice, `"1"`)
	cancel("alice", alice, "1.0")
	m := modernReq("notifications/cancelled", "", `"requestId":1`)
	m.body = strings.Replace(m.body, `"id":1,`, "", 1)
	if got := d.do(m); got.status != 202 {
		t.Errorf("modern cancelled: %d %s", got.status, got.body)
	}
	if len(d.ended1) != 0 {
		t.Fatal("somebody else's call was cancelled")
	}
	cancel("alice", alice, "1")
	if err := get(t, "end of the call", d.ended1); !errors.Is(err, errCancelled) {
		t.Errorf("ended with %v", err)
	}
	if got := get(t, "no answer", held); got.status != 202 || got.body != "" {
		t.Errorf("a cancelled call was answered: %d %s", got.status, got.body)
	}
	if len(d.ended1) != 0 || len(modernHeld) != 0 || len(loose) != 0 {
		t.Error("more than one call was cancelled")
	}
	if len(d.edge.local.sessions) != 0 {
		t.Errorf("left behind: %v", d.edge.local.sessions)
	}
	go d.edge.Shutdown(cancelledContext())
	for range 2 {
		if err := get(t, "end of the others", d.ended1); !errors.Is(err, errShutdown) {
			t.Errorf("ended with %v", err)
		}
	}
	if got := get(t, "answer at shutdown", loose); got.status != 200 || !strings.Contains(got.body, "CANCELLED: ") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func cancelledContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A client of 2026-07-28 that hangs up cancels its call.
func TestHangUpCancels(t *testing.T) {
	d := open(t)
	for _, token := range []string{`"_meta":{`, `"_meta":{"progressToken":"p",`} {
		ctx, cancel := context.WithCancel(t.Context())
		in := modernReq("tools/call", "hold", `"name":"hold"`)
		in.body = strings.Replace(in.body, `"_meta":{`, token, 1)
		r := d.request(in).WithContext(ctx)
		go func() {
			if out, err := http.DefaultClient.Do(r); err == nil {
				_, _ = bufio.NewReader(out.Body).ReadString(0)
				out.Body.Close()
			}
		}()
		get(t, "held call", d.holding)
		cancel()
		get(t, "end of the call", d.ended1)
	}
}

// Shutdown lets calls finish, ends streams at once, and takes nothing new.
func TestShutdown(t *testing.T) {
	d := open(t)
	sid := d.session("alice")
	stream := d.openStream("alice", sid)
	held := d.hold(req{body: call("hold", "{}")}.with(mcp.HeaderSessionID, sid))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.edge.Shutdown(ctx) }()
	get(t, "end of the stream", stream.ended)
	if got := d.do(req{body: call("echo", "{}")}); got.status != 503 {
		t.Errorf("a new request: %d", got.status)
	}
	if len(done) != 0 || len(d.ended1) != 0 {
		t.Error("did not wait for the call")
	}
	cancel()
	if err := get(t, "shutdown", done); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	if got := get(t, "answer", held); !strings.Contains(got.body, "CANCELLED") {
		t.Errorf("%+v", got)
	}
	if err := d.edge.Shutdown(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestServerHasLimits(t *testing.T) {
	s := Server("127.0.0.1:0", http.NotFoundHandler())
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 || s.WriteTimeout != 0 {
		t.Errorf("%+v", s)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	for _, c := range []Config{{}, {Gateway: newHouse()}, {Gateway: newHouse(), Sessions: gatewaytest.NewSessions(), MaxBody: -1}, {Gateway: newHouse(), Sessions: gatewaytest.NewSessions(), Origins: []string{"app.example"}}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	var _ Gateway = (*gateway.Gateway)(nil)
}

// Nothing of ours or of mcp-go's server runs on after everybody left.
func TestNothingRunsOn(t *testing.T) {
	t.Run("all of it", func(t *testing.T) {
		d := open(t)
		sid := d.session("alice")
		d.openStream("alice", sid)
		d.hold(req{body: rpc(1, "tools/call", `"name":"hold","_meta":{"progressToken":1}`)}.with(mcp.HeaderSessionID, sid))
		d.do(modernReq("tools/call", "steps", `"name":"steps"`))
		_, w := pipes(t, d)
		fmt.Fprintln(w, rpc(1, "initialize", `"protocolVersion":"2025-11-25"`))
		d.shut.Store(true)
		go d.edge.Shutdown(cancelledContext())
		get(t, "end of the call", d.ended1)
	})
	var running string
	for range 1000 {
		buf := make([]byte, 1<<20)
		running = ""
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if (strings.Contains(g, "gateway/edge.(") || strings.Contains(g, "mcp-go/server")) && !strings.Contains(g, "testing.tRunner") {
				running += g + "\n\n"
			}
		}
		if running == "" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("still running:\n%s", running)
}
