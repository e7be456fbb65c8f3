package edge

import (
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// Of what a client says that it can do a session keeps what servers can be told,
// and no more of that than anybody needs.
func TestWhatASessionKeeps(t *testing.T) {
	d := open(t)
	initialize := func(caps string) res {
		return d.do(req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","clientInfo":{"name":"c","version":"1"},"capabilities":`+caps)})
	}
	long := `"` + strings.Repeat("x", 4<<10) + `"`
	for caps, want := range map[string]string{
		`{}`: "{}", `{"experimental":{"a":` + long + `},"extensions":{"b":{"c":` + long + `}}}`: "{}",
		`{"experimental":{"a":` + long + `},"sampling":{"tools":{}},"roots":{"listChanged":true},"elicitation":{"url":{}}}`: `{"elicitation":{"url":{}},"sampling":{"tools":{}},"roots":{"listChanged":true}}`,
	} {
		got := initialize(caps)
		if got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		s, err := d.kept.Session(t.Context(), got.header.Get(mcp.HeaderSessionID))
		if err != nil || string(s.Caps) != want {
			t.Errorf("%.80s: keeps %s, %v", caps, s.Caps, err)
		}
	}
	if got := initialize(`{"sampling":{"a":` + long + `}}`); !strings.Contains(got.body, "-32602") || got.header.Get(mcp.HeaderSessionID) != "" {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// What is no call is under the rate of calls all the same: over it nothing of it is
// passed on, and who sends it hears when to try again.
func TestPace(t *testing.T) {
	d := open(t)
	sid := d.session("alice")
	heard := d.hears()
	held := d.hold(req{body: call("hold", "{}")}.with(mcp.HeaderSessionID, sid))
	all := map[string]string{
		"a cancellation here":      `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
		"a cancellation elsewhere": `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`,
		"that roots changed":       `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`,
		"any notification":         `{"jsonrpc":"2.0","method":"notifications/x"}`,
		"an answer":                `{"jsonrpc":"2.0","id":"ask-x","result":{}}`,
		"a log level":              rpc(1, "logging/setLevel", `"level":"debug"`),
		"the end of following":     rpc(1, "resources/unsubscribe", `"uri":"file:///x"`),
	}
	d.set(func() { d.tooFast = no(gateway.TooMany, "slow down", nil) })
	for about, body := range all {
		got := d.do(req{body: body}.with(mcp.HeaderSessionID, sid))
		if got.status != 429 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "slow down") {
			t.Errorf("%s: %d %s", about, got.status, got.body)
		}
	}
	if got := d.do(req{body: rpc(1, "ping", "")}.with(mcp.HeaderSessionID, sid)); got.status != 200 {
		t.Errorf("ping: %d %s", got.status, got.body)
	}
	if len(heard) != 0 || len(held) != 0 {
		t.Errorf("it was passed on: %d told, %d cancelled", len(heard), len(held))
	}
	d.set(func() { d.tooFast = nil })
	for about, body := range all {
		if got := d.do(req{body: body}.with(mcp.HeaderSessionID, sid)); got.status == 429 {
			t.Errorf("%s: %d %s", about, got.status, got.body)
		}
	}
	get(t, "the cancelled call", held)
}
