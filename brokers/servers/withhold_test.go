package servers

import (
	"context"
	"strings"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A definition that repeats the credential it was listed with is read by nobody,
// in whatever common encoding, and neither is its name.
func TestCredentialInADefinition(t *testing.T) {
	const secret = "canary-5f0c9a7e1b2d"
	f := &fake{tools: `[
		{"name":"act","inputSchema":{"type":"object"}},
		{"name":"plain","description":"my key is ` + secret + `","inputSchema":{"type":"object"}},
		{"name":"escaped","description":"\u0063anary-5f0c9a7e1b2d","inputSchema":{"type":"object"}},
		{"name":"` + secret + `","inputSchema":{"type":"object"}},
		{"name":"` + secret + `","inputSchema":"none"}]`}
	discovery := func(context.Context, string, string) (gateway.Lease, func(), error) {
		return gateway.Lease{ID: "l", Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer " + secret)}}, func() {}, nil
	}
	s, d := start(t, Config{Discovery: discovery, Servers: []Server{{Name: "x", URL: f.serve(t), Class: "static", Protocol: Legacy}}})
	seen := d.await(t, audit.ToolsSeen, "x", 1)
	if strings.Contains(seen.Detail, "canary") {
		t.Errorf("on record: %s", seen.Detail)
	}
	if got := aliases(s, "a"); got != "x__act" {
		t.Errorf("offered: %s", got)
	}
}
