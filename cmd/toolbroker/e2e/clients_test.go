package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	goclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/examples/servers/tracker"
	"toolbroker/gateway/audit"
)

// An agent is a client not written by us.
type agent struct {
	list func(context.Context) ([]string, error)
	more func(ctx context.Context, of string) ([]string, error) // lists resources, templates or prompts
	call func(ctx context.Context, name string, args map[string]any) (text string, isError bool, err error)
}

type withToken struct{ token string }

func (b withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func mcpGo(t *testing.T, url, token, era string) agent {
	t.Helper()
	tr, err := transport.NewStreamableHTTP(url, transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer " + token}))
	if err != nil {
		t.Fatal(err)
	}
	c := goclient.NewClient(tr, goclient.WithProtocolVersion(era))
	t.Cleanup(func() { c.Close() })
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var in mcp.InitializeRequest
	in.Params.ProtocolVersion, in.Params.ClientInfo = era, mcp.Implementation{Name: "t", Version: "1"}
	if _, err := c.Initialize(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if got := c.ProtocolVersion(); got != era {
		t.Fatalf("speaks %s, not %s", got, era)
	}
	return agent{
		list: func(ctx context.Context) (names []string, err error) {
			out, err := c.ListTools(ctx, mcp.ListToolsRequest{})
			if err != nil {
				return nil, err
			}
			for _, t := range out.Tools {
				names = append(names, t.Name)
			}
			return names, nil
		},
		more: func(ctx context.Context, of string) (names []string, err error) {
			switch of {
			case "resources":
				out, err := c.ListResources(ctx, mcp.ListResourcesRequest{})
				if err != nil {
					return nil, err
				}
				for _, r := range out.Resources {
					names = append(names, r.URI)
				}
			case "templates":
				out, err := c.ListResourceTemplates(ctx, mcp.ListResourceTemplatesRequest{})
				if err != nil {
					return nil, err
				}
				for _, r := range out.ResourceTemplates {
					names = append(names, r.URITemplate.Raw())
				}
			case "prompts":
				out, err := c.ListPrompts(ctx, mcp.ListPromptsRequest{})
				if err != nil {
					return nil, err
				}
				for _, p := range out.Prompts {
					names = append(names, p.Name)
				}
			}
			return names, nil
		},
		call: func(ctx context.Context, name string, args map[string]any) (string, bool, error) {
			in := mcp.CallToolRequest{}
			in.Params.Name, in.Params.Arguments = name, args
			out, err := c.CallTool(ctx, in)
			if err != nil {
				return "", false, err
			}
			text, _ := json.Marshal(out.Content)
			return string(text), out.IsError, nil
		},
	}
}

func goSDK(t *testing.T, url, token, era string) agent {
	t.Helper()
	c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, &sdk.ClientOptions{Capabilities: &sdk.ClientCapabilities{}})
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: withToken{token}}},
		&sdk.ClientSessionOptions{ProtocolVersion: era})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if got := s.InitializeResult().ProtocolVersion; got != era {
		t.Fatalf("speaks %s, not %s", got, era)
	}
	return sdkAgent(s)
}

func sdkAgent(s *sdk.ClientSession) agent {
	return agent{
		list: func(ctx context.Context) (names []string, err error) {
			for t, err := range s.Tools(ctx, nil) {
				if err != nil {
					return nil, err
				}
				names = append(names, t.Name)
			}
			return names, nil
		},
		more: func(ctx context.Context, of string) (names []string, err error) {
			switch of {
			case "resources":
				for r, err := range s.Resources(ctx, nil) {
					if err != nil {
						return nil, err
					}
					names = append(names, r.URI)
				}
			case "templates":
				for r, err := range s.ResourceTemplates(ctx, nil) {
					if err != nil {
						return nil, err
					}
					names = append(names, r.URITemplate)
				}
			case "prompts":
				for p, err := range s.Prompts(ctx, nil) {
					if err != nil {
						return nil, err
					}
					names = append(names, p.Name)
				}
			}
			return names, nil
		},
		call: func(ctx context.Context, name string, args map[string]any) (string, bool, error) {
			out, err := s.CallTool(ctx, &sdk.CallToolParams{Name: name, Arguments: args})
			if err != nil {
				return "", false, err
			}
			text, _ := json.Marshal(out.Content)
			return string(text), out.IsError, nil
		},
	}
}

// issues runs the sample tracker and returns its URL; every token is good.
func issues(t *testing.T, verify func(context.Context, string) error) string {
	t.Helper()
	if verify == nil {
		verify = func(context.Context, string) error { return nil }
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", tracker.Handler(tracker.Config{File: filepath.Join(t.TempDir(), "issues.json"), Verify: verify}))
	s := httptest.NewServer(mux)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL + "/mcp"
}

// A credential that needs no Vault would be none; the tracker wants a bearer
// token, so tests that call it have a Vault.
func trackerYAML(t *testing.T, v *vault, url, mode string) (servers, extra string) {
	return fmt.Sprintf(`
  - name: tracker
    url: %s
    tenants: [acme]
    target_argument: number
    credential: {engine: leased, mount: ssh, path: creds/otp, params: {ip: 127.0.0.1}, class: revocable, mode: %s, headers: {Authorization: "Bearer {{.key}}"}}
`, url, mode), v.yaml(t)
}

const trackerPolicy = `
p, agent:a, acme, work, tracker/list_issues,  call, ,                          allow
p, agent:a, acme, work, tracker/create_issue, call, args.title =~ '^bug:',     allow
p, agent:a, acme, work, tracker/delete_issue, call, ,                          approve 1 of group:sre
p, agent:*, *,    *,    task:work,            start, ,                         allow
`

// Unmodified clients, both eras: they see only what they may call, are refused
// with a reason, wait for a human, and are served.
func TestRealClients(t *testing.T) {
	v := newVault(t)
	var tokens []string
	url := issues(t, func(_ context.Context, token string) error { tokens = append(tokens, token); return v.verify(token) })
	servers, extra := trackerYAML(t, v, url, "call")
	h := newHouse(t, Options{Policy: trackerPolicy, Servers: servers, Extra: extra})
	bob := h.Login("bob")
	for _, era := range []string{"2025-11-25", "2026-07-28"} {
		for lib, connect := range map[string]func(*testing.T, string, string, string) agent{"mcp-go": mcpGo, "go-sdk": goSDK} {
			t.Run(lib+"/"+era, func(t *testing.T) {
				_, token := h.Task("agent:a")
				a := connect(t, h.MCP, token, era)
				var names []string
				until(t, "the tracker's tools", func() bool {
					var err error
					if names, err = a.list(t.Context()); err != nil {
						t.Fatal(err)
					}
					return len(names) > 0
				})
				slices.Sort(names)
				if got := strings.Join(names, " "); got != "tracker__create_issue tracker__delete_issue tracker__list_issues" {
					t.Fatalf("sees %s", got)
				}
				if text, isError, err := a.call(t.Context(), "tracker__create_issue", map[string]any{"title": "bug: " + lib + era}); err != nil || isError {
					t.Fatalf("allowed: %s %v", text, err)
				}
				text, isError, err := a.call(t.Context(), "tracker__create_issue", map[string]any{"title": "spam"})
				if err != nil || !isError || !strings.Contains(text, "DENIED") {
					t.Fatalf("denied: %s %v", text, err)
				}
				if text, _, err := a.call(t.Context(), "tracker__get_issue", map[string]any{"number": 1}); err == nil {
					t.Fatalf("a hidden tool answers: %s", text)
				}
				done := make(chan string, 1)
				go func() {
					text, isError, err := a.call(t.Context(), "tracker__delete_issue", map[string]any{"number": 1})
					done <- fmt.Sprint(isError, err, " ", text)
				}()
				p := h.Pending(bob)
				if p.Tool != "delete_issue" || p.MayVote != "" {
					t.Errorf("pending: %+v", p)
				}
				if code := h.Vote(bob, p, true); code != 200 {
					t.Fatalf("vote: %d", code)
				}
				if got := <-done; strings.Contains(got, "PENDING") || strings.Contains(got, "DENIED") {
					t.Fatalf("approved, but: %s", got)
				}
			})
		}
	}
	if n := v.live(t); n != 0 {
		t.Errorf("%d leases live after their calls", n)
	}
	h.Stop()
	h.Verify()
	issued, ended := 0, 0
	for _, e := range h.Events() {
		switch e.Type {
		case audit.SecretIssued:
			issued++
		case audit.SecretRevoked:
			ended++
			if !e.Secret.Confirmed {
				t.Errorf("not confirmed: %+v", e.Secret)
			}
		}
	}
	if issued == 0 || issued != ended {
		t.Errorf("%d credentials issued, %d revoked", issued, ended)
	}
	// The credential went to the tracker and nowhere else.
	if len(tokens) == 0 {
		t.Fatal("the tracker saw no credential")
	}
	for _, token := range tokens {
		for name, sink := range map[string]string{"the log": read(t, h.AuditDir), "standard error": h.log.String(), "the data directory": read(t, filepath.Join(h.Dir, "data"))} {
			if strings.Contains(sink, token) {
				t.Errorf("a credential stands in %s", name)
			}
		}
	}
}

// read returns every file below a directory, one after another.
func read(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// Servers not written by us.
func TestRealServers(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hello.txt"), "hello from a file")
	everything := filepath.Join(t.TempDir(), "everything-server")
	if out, err := exec.Command("go", "build", "-o", everything, "github.com/modelcontextprotocol/go-sdk/conformance/everything-server").CombinedOutput(); err != nil {
		t.Fatalf("everything-server: %v\n%s", err, out)
	}
	modern, legacy := freeAddr(t), freeAddr(t)
	process(t, io.Discard, everything, "-http", modern)
	process(t, io.Discard, everything, "-http", legacy, "-stateless=false")
	servers := fmt.Sprintf(`
  - {name: modern, url: "http://%s"}
  - {name: legacy, url: "http://%s"}
  - {name: dead, url: "http://%s", timeout: 1s}
`, modern, legacy, freeAddr(t))
	files := os.Getenv("TOOLBROKER_NPM")
	if files != "" {
		node, err := exec.LookPath("node")
		if err != nil {
			t.Fatal(err)
		}
		servers += fmt.Sprintf("  - {name: files, command: %s, args: [%s, %s]}\n", node, filepath.Join(files, "@modelcontextprotocol/server-filesystem/dist/index.js"), dir)
	} else if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
		t.Fatal("TOOLBROKER_NPM is not set, and TOOLBROKER_REQUIRE_REAL asks for it")
	} else {
		t.Log("without TOOLBROKER_NPM: server-filesystem is left out")
	}
	h := newHouse(t, Options{Servers: servers, Policy: `
p, agent:a, acme, work, **, call, , allow
p, agent:*, *, *, task:work, start, , allow
`})
	_, token := h.Task("agent:a")
	for _, era := range []string{"2025-11-25", "2026-07-28"} {
		a := goSDK(t, h.MCP, token, era)
		want := []string{"modern__test_simple_text", "legacy__test_simple_text"}
		if files != "" {
			want = append(want, "files__read_text_file")
		}
		until(t, "every server's tools", func() bool {
			names, err := a.list(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				if !slices.Contains(names, w) {
					return false
				}
			}
			return true
		})
		for _, tool := range []string{"modern__test_simple_text", "legacy__test_simple_text", "legacy__test_tool_with_progress", "modern__test_image_content"} {
			if text, isError, err := a.call(t.Context(), tool, nil); err != nil || isError {
				t.Errorf("%s: %s %v", tool, text, err)
			}
		}
		if text, isError, err := a.call(t.Context(), "modern__test_error_handling", nil); err != nil || !isError {
			t.Errorf("a tool that fails: %s %v", text, err)
		}
		if files != "" {
			if text, isError, err := a.call(t.Context(), "files__read_text_file", map[string]any{"path": filepath.Join(dir, "hello.txt")}); err != nil || isError || !strings.Contains(text, "hello from a file") {
				t.Errorf("files: %s %v", text, err)
			}
		}
	}
	h.Stop()
	h.Verify()
}

// Two tenants side by side never see each other's tools, tasks, requests or
// records.
func TestTenants(t *testing.T) {
	v := newVault(t)
	url := issues(t, nil)
	h := newHouse(t, Options{Extra: v.yaml(t), Servers: fmt.Sprintf(`
  - {name: ours, url: %[1]s, tenants: [acme]}
  - {name: theirs, url: %[1]s, tenants: [globex]}
`, url), Policy: `
p, agent:*, *, work, *ours*/**,   call, , approve
p, agent:*, *, work, *theirs*/**, call, , approve
p, agent:*, *, *,    task:work, start, , allow
`, Approvals: "{hold: 1s}"})
	ta, a := h.Task("agent:a")
	tb, b := h.Task("agent:b")
	sa, sb := goSDK(t, h.MCP, a, "2025-11-25"), goSDK(t, h.MCP, b, "2026-07-28")
	for prefix, s := range map[string]agent{"ours__": sa, "theirs__": sb} {
		var names []string
		until(t, "tools", func() bool { names, _ = s.list(t.Context()); return len(names) > 0 })
		for _, n := range names {
			if !strings.HasPrefix(n, prefix) {
				t.Errorf("a neighbour's tool: %s", n)
			}
		}
	}
	if text, _, err := sb.call(t.Context(), "ours__list_issues", nil); err == nil {
		t.Errorf("b calls a's tool: %s", text)
	}
	if text, _, err := sa.call(t.Context(), "ours__list_issues", nil); err != nil || !strings.Contains(text, "PENDING_APPROVAL") {
		t.Fatalf("%s %v", text, err)
	}
	carol, gus := h.Login("carol"), h.Login("gus")
	p := h.Pending(carol)
	if got := h.Approvals(gus); len(got) != 0 {
		t.Errorf("globex sees %+v", got)
	}
	for _, path := range []string{"/api/v1/approvals/acme/" + p.ID, "/api/v1/approvals/globex/" + p.ID, "/api/v1/tasks/acme/" + ta, "/api/v1/tasks/globex/" + ta} {
		if code := request(t, "GET", h.Console+path, gus, nil, nil); code != 404 {
			t.Errorf("GET %s as globex: %d", path, code)
		}
	}
	for _, path := range []string{"/api/v1/tasks/acme/" + ta + "/end", "/api/v1/tasks/globex/" + ta + "/end"} {
		if code := request(t, "POST", h.Console+path, gus, map[string]any{}, nil); code != 404 {
			t.Errorf("POST %s as globex: %d", path, code)
		}
	}
	if code := h.Vote(gus, p, true); code != 404 {
		t.Errorf("globex votes: %d", code)
	}
	if code := request(t, "GET", h.Agent+"/v1/tasks/"+tb, h.Keys["agent:a"], nil, nil); code == 200 {
		t.Error("a reads b's task")
	}
	h.Stop()
	h.Verify()
	out, err := exec.Command(binary, "audit", "task", h.AuditDir, ta, "--json").CombinedOutput()
	if err != nil || strings.Contains(string(out), `"tenant":"globex"`) || !strings.Contains(string(out), ta) {
		t.Errorf("audit task: %v\n%s", err, out)
	}
}
