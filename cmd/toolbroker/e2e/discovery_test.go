package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"toolbroker/brokers/identity/identitytest"
	"toolbroker/gateway/audit"
)

// Clients that know a URL and nothing else: no token, no client id, no issuer.
// What they find out, they find out by what the server says.
var byDiscovery = map[string]func(t *testing.T, url, era string) agent{"go-sdk": goDiscovers, "typescript-sdk": jsDiscovers}

// goDiscovers is the Go SDK's own handler, with a browser whose user says yes.
func goDiscovers(t *testing.T, url, era string) agent {
	t.Helper()
	const back = "http://127.0.0.1/callback"
	handler, err := auth.NewAuthorizationCodeHandler(&auth.AuthorizationCodeHandlerConfig{
		DynamicClientRegistrationConfig: &auth.DynamicClientRegistrationConfig{
			Metadata: &oauthex.ClientRegistrationMetadata{ClientName: "t", RedirectURIs: []string{back}},
		},
		AuthorizationCodeFetcher: func(ctx context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
			landed, err := identitytest.Visit(ctx, args.URL, back)
			if err != nil {
				return nil, err
			}
			return &auth.AuthorizationResult{Code: landed.Get("code"), State: landed.Get("state"), Iss: landed.Get("iss")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, &sdk.ClientOptions{Capabilities: &sdk.ClientCapabilities{}})
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: url, OAuthHandler: handler}, &sdk.ClientSessionOptions{ProtocolVersion: era})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if got := s.InitializeResult().ProtocolVersion; got != era {
		t.Fatalf("speaks %s, not %s", got, era)
	}
	return sdkAgent(s)
}

// jsDiscovers is the TypeScript SDK's client in a process of its own; see
// testdata/discover.mjs.
func jsDiscovers(t *testing.T, url, era string) agent {
	t.Helper()
	mode := era
	if era < "2026" {
		mode = "legacy"
	}
	return scripted(t, era, nil, "discover.mjs", url, mode)
}

// scripted is a client in a process of its own, by a script of testdata that says
// which revision it speaks and then does as it is asked, line by line.
func scripted(t *testing.T, era string, env []string, script string, args ...string) agent {
	t.Helper()
	_, node := npm(t)
	cmd := exec.Command(node, append([]string{filepath.Join("testdata", script)}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	problems := &lockedBuffer{}
	cmd.Stderr = problems
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	type answer struct {
		Ready   string
		Names   []string
		Text    string
		IsError bool
		Error   string
	}
	var one sync.Mutex
	answers := json.NewDecoder(bufio.NewReader(out))
	ask := func(ctx context.Context, what map[string]any) (a answer, err error) {
		one.Lock()
		defer one.Unlock()
		defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
		if what != nil {
			if err := json.NewEncoder(in).Encode(what); err != nil {
				return a, err
			}
		}
		if err := answers.Decode(&a); err != nil {
			return a, fmt.Errorf("%w: %s", err, problems)
		}
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	}
	ready, err := ask(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if ready.Ready != era {
		t.Fatalf("speaks %s, not %s", ready.Ready, era)
	}
	return agent{
		list: func(ctx context.Context) ([]string, error) {
			a, err := ask(ctx, map[string]any{"list": true})
			return a.Names, err
		},
		more: func(ctx context.Context, of string) ([]string, error) {
			a, err := ask(ctx, map[string]any{"list": of})
			return a.Names, err
		},
		call: func(ctx context.Context, name string, args map[string]any) (string, bool, error) {
			a, err := ask(ctx, map[string]any{"call": name, "args": args})
			return a.Text, a.IsError, err
		},
	}
}

// sdkServer is somebody else's protected server, by which the clients themselves
// are tested: the Go SDK's middleware, metadata, and a tool that says who asks.
func sdkServer(t *testing.T, p *identitytest.Provider) (url string) {
	t.Helper()
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	url = s.URL + "/mcp"
	server := sdk.NewServer(&sdk.Implementation{Name: "s", Version: "1"}, nil)
	sdk.AddTool(server, &sdk.Tool{Name: "whoami"}, func(_ context.Context, r *sdk.CallToolRequest, _ struct{}) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: r.Extra.TokenInfo.UserID}}}, nil, nil
	})
	verify := func(_ context.Context, token string, _ *http.Request) (*auth.TokenInfo, error) {
		claims, err := p.Verify(token, url)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", auth.ErrInvalidToken, err)
		}
		expires, _ := claims["exp"].(float64)
		subject, _ := claims["sub"].(string)
		return &auth.TokenInfo{UserID: subject, Expiration: time.Unix(int64(expires), 0)}, nil
	}
	metadata := "/.well-known/oauth-protected-resource/mcp"
	mux.Handle(metadata, auth.ProtectedResourceMetadataHandler(&oauthex.ProtectedResourceMetadata{Resource: url, AuthorizationServers: []string{p.Issuer}}))
	mux.Handle("/mcp", auth.RequireBearerToken(verify, &auth.RequireBearerTokenOptions{ResourceMetadataURL: s.URL + metadata})(
		sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)))
	return url
}

// The clients get in where they should, so that a door they do not get through is
// the door's fault.
func TestClientsDiscover(t *testing.T) {
	p := identitytest.Start(t, identitytest.Options{Path: "/realms/acme"})
	url := sdkServer(t, p)
	for lib, connect := range byDiscovery {
		t.Run(lib, func(t *testing.T) {
			a := connect(t, url, "2025-11-25")
			if names, err := a.list(t.Context()); err != nil || !slices.Equal(names, []string{"whoami"}) {
				t.Fatalf("sees %v %v", names, err)
			}
			if text, isError, err := a.call(t.Context(), "whoami", nil); err != nil || isError || !strings.Contains(text, `"ada"`) {
				t.Errorf("%s %v", text, err)
			}
		})
	}
}

// openServer asks nobody for anything, and tells seen what it is told of who asks.
func openServer(t *testing.T, seen *lockedBuffer) (url string) {
	t.Helper()
	server := sdk.NewServer(&sdk.Implementation{Name: "s", Version: "1"}, nil)
	sdk.AddTool(server, &sdk.Tool{Name: "hello"}, func(context.Context, *sdk.CallToolRequest, struct{}) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "hello"}}}, nil, nil
	})
	mcp := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(seen, r.Header.Get("Authorization"), r.Header.Get("DPoP"))
		mcp.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// An unmodified client that was given our URL, and no more, gets in as its user:
// by a real provider, in either era, on the standing task that config names.
func TestDiscovery(t *testing.T) {
	p := identitytest.Start(t, identitytest.Options{})
	p.SetClaims("ada", map[string]any{"groups": []string{"triage"}})
	seen := &lockedBuffer{}
	url := openServer(t, seen)
	h := newHouse(t, Options{
		Issuers: fmt.Sprintf(`    - name: people
      kind: oidc
      issuer: %s
      audiences: ["{mcp}"]
      rules:
        - {when: {groups: triage}, principal: "agent:ide", tenant: acme, owner: alice, on_behalf_of: "{sub}", default_task: work}
`, p.Issuer),
		Servers: fmt.Sprintf("  - {name: plain, url: %s}\n", url),
		Policy: `
p, agent:ide, acme, work, plain/hello, call, , allow
p, agent:ide, acme, *, task:work, start, , allow
`})
	for _, era := range []string{"2025-11-25", "2026-07-28"} {
		for lib, connect := range byDiscovery {
			t.Run(lib+"/"+era, func(t *testing.T) {
				a := connect(t, h.MCP, era)
				until(t, "the server's tool", func() bool {
					names, err := a.list(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					return slices.Equal(names, []string{"plain__hello"})
				})
				if text, isError, err := a.call(t.Context(), "plain__hello", nil); err != nil || isError {
					t.Errorf("%s %v", text, err)
				}
			})
		}
	}

	// Whoever signs in otherwise is somebody whom no rule knows, however good the token.
	if code := request(t, "POST", h.MCP, p.Mint(map[string]any{"sub": "eve", "aud": h.MCP, "client_id": "c"}), map[string]any{}, nil); code != 401 {
		t.Errorf("a stranger: %d", code)
	}
	// Nor does a token for another server open this one.
	if code := request(t, "POST", h.MCP, p.Mint(map[string]any{"sub": "ada", "groups": "triage", "aud": url, "client_id": "c"}), map[string]any{}, nil); code != 401 {
		t.Errorf("a token for somebody else: %d", code)
	}
	h.Stop()
	h.Verify()
	started := 0
	for _, e := range h.Events() {
		if e.Type != audit.TaskStarted {
			continue
		}
		started++
		if e.Task == nil || !e.Task.Implicit || e.Task.Kind != "work" || e.Task.OnBehalf != "ada" || e.Task.Owner != "alice" {
			t.Errorf("started: %+v", e.Task)
		}
	}
	if started != 1 {
		t.Errorf("%d tasks for one workload and human", started)
	}
	if seen.String() != "" {
		t.Error("an agent's token went to the server")
	}
}
