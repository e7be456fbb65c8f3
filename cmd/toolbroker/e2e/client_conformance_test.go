package e2e

import (
	"bytes"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The suite's scenarios for clients put a client before a server of the suite's own,
// and look at what the client sends and at what it makes of odd answers. Through the
// gateway it is the gateway's leg to the server that is looked at, with a real client
// behind it: suite <- gateway <- the Go SDK's everything-client.
//
// The suite runs a command and adds its server's address. The command is this test's
// own binary again, for TestAsClient.

const harnessRows = `
p, agent:a, acme, work, harness/**, call,      , allow
p, agent:a, acme, work, harness/**, read,      , allow
p, agent:a, acme, work, harness/**, get,       , allow
p, agent:a, acme, work, harness/**, elicit,    , allow
p, agent:*, *,    *,    task:work,  start,     , allow
`

// What of the suite can be seen through a gateway. The scenarios named auth/ put the
// client before an authorization server: our leg's credentials come from Vault, and
// no agent's browser is asked for them.
var clientScenarios = map[string][]string{
	"2026-07-28": {
		"tools_call", "request-metadata", "sep-2322-client-request-state", "http-standard-headers", "http-custom-headers",
		"http-invalid-tool-headers", "json-schema-ref-no-deref", "json-schema-2020-12-preservation",
	},
	"2025-11-25": {"initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry", "json-schema-2020-12-preservation"},
}

const asClient = "TOOLBROKER_E2E_AS_CLIENT" // the everything-client, where TestAsClient is to run it

func TestClientConformance(t *testing.T) {
	npm(t)
	t.Setenv(asClient, everything(t, "everything-client"))
	t.Setenv(builtBinary, binary)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for version, scenarios := range clientScenarios {
		t.Run(version, func(t *testing.T) {
			for _, how := range []struct{ name, command string }{
				{"straight", os.Getenv(asClient)},
				{"gateway", self + " -test.run ^TestAsClient$ -test.v -test.timeout 100s"},
			} {
				t.Run(how.name, func(t *testing.T) {
					found := map[string]verdict{}
					for _, name := range scenarios {
						for s, v := range suite(t, "client", "--command", how.command, "--scenario", name, "--spec-version", version, "--timeout", "110000") {
							found[s] = v
						}
					}
					judge(t, version+"/client-"+how.name, found)
				})
			}
		})
	}
}

// TestAsClient is the command that the suite runs: it starts a gateway whose one
// server is the suite's and drives the everything-client through it.
func TestAsClient(t *testing.T) {
	client := os.Getenv(asClient)
	if client == "" || flag.NArg() != 1 {
		t.Skip("it is the conformance suite that runs this")
	}
	h := newHouse(t, Options{Policy: harnessRows, Servers: unprefixed("harness", flag.Arg(0))})
	_, token := h.Task("agent:a")
	// Some of the suite's servers have tools, and some never get to say so.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if list, err := h.list(t.Context(), token); err == nil && strings.Contains(list, `"inputSchema"`) {
			break
		}
	}
	var and []func(http.Handler) http.Handler
	if os.Getenv("MCP_CONFORMANCE_PROTOCOL_VERSION") < "2026" {
		and = append(and, legacyOnly)
	}
	cmd := exec.Command(client, withBearer(t, h.MCP, token, and...))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// legacyOnly makes a server look as one that has not heard of 2026-07-28, so that a
// client that speaks every era speaks an older one.
func legacyOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if bytes.Contains(body, []byte(`"server/discover"`)) {
			http.Error(w, "what is that?", http.StatusNotFound)
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(w, r)
	})
}
