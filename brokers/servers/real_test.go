package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	mcpgoserver "github.com/mark3labs/mcp-go/server"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway"
)

// missing skips a test whose real part is not here, or fails it where that is
// demanded.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("TOOLBROKER_REQUIRE_REAL") != "" {
		t.Fatal(what + " is missing")
	}
	t.Skip(what + " is missing")
}

func serveReal(t *testing.T, h http.Handler) string {
	t.Helper()
	web := httptest.NewServer(h)
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	return web.URL
}

// The official Go SDK's server, in both of its modes.
func TestGoSDK(t *testing.T) {
	for _, stateless := range []bool{true, false} {
		t.Run(fmt.Sprintf("stateless=%v", stateless), func(t *testing.T) {
			server := gosdk.NewServer(&gosdk.Implementation{Name: "real", Version: "1"}, nil)
			addEcho(server, "echo")
			began, heard, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
			gosdk.AddTool(server, &gosdk.Tool{Name: "wait"}, func(ctx context.Context, _ *gosdk.CallToolRequest, _ struct{}) (*gosdk.CallToolResult, any, error) {
				close(began)
				select {
				case <-ctx.Done():
					close(heard)
				case <-end: // this SDK does not tell a handler that a modern stream was closed
				}
				return nil, nil, ctx.Err()
			})
			url := serveReal(t, gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return server }, &gosdk.StreamableHTTPOptions{Stateless: stateless}))
			s, d := start(t, Config{Servers: []Server{{Name: "real", URL: url, Refresh: time.Hour}}})
			if got, want := era(s.servers["real"].era.Load()), map[bool]era{true: modernEra, false: legacyEra}[stateless]; got != want {
				t.Errorf("it was taken to speak era %d", got)
			}
			e := &ear{}
			r, err := forwardTo(t, s, "real__echo", `{"text":"<é>"}`, e, func(f *gateway.Forward) { f.Progress = true })
			if got := said(t, r, err); got != "<é>" || len(e.heard) != 1 {
				t.Errorf("said %q after %q", got, e.heard)
			}
			r, err = forward(t, s, "real__echo", `{"text":7}`)
			if err != nil || !r.Failed() {
				t.Errorf("bad arguments: %v %s", err, r.Raw)
			}
			// A change is told of, over whatever stream it has for that.
			addEcho(server, "second")
			if c := d.await(t, "tool.definition.changed", "real", 1); c.Tool.Name != "second" {
				t.Errorf("on record is %+v", c)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-began; cancel() }()
			tool, _ := s.Resolve("a", gateway.SortTool, "real__wait")
			if _, err := s.Forward(ctx, gateway.Forward{Tool: tool, Principal: gateway.Principal{Tenant: "a"}}, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
			if !stateless {
				<-heard
			}
			close(end)
		})
	}
}

func addEcho(server *gosdk.Server, name string) {
	gosdk.AddTool(server, &gosdk.Tool{Name: name, Description: "Say it again."},
		func(ctx context.Context, r *gosdk.CallToolRequest, in struct {
			Text string `json:"text"`
		}) (*gosdk.CallToolResult, any, error) {
			if token := r.Params.GetProgressToken(); token != nil {
				_ = r.Session.NotifyProgress(ctx, &gosdk.ProgressNotificationParams{ProgressToken: token, Progress: 1})
			}
			return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{Text: in.Text}}}, nil, nil
		})
}

// mcp-go's server, pinned to each era and asked.
func TestMCPGo(t *testing.T) {
	for _, p := range []Protocol{Auto, Legacy, Modern} {
		t.Run(string(p), func(t *testing.T) {
			server := mcpgoserver.NewMCPServer("real", "1", mcpgoserver.WithToolCapabilities(true))
			echo := func(_ context.Context, r mcpgo.CallToolRequest) (*mcpgo.CallToolResult, error) {
				return mcpgo.NewToolResultText(r.GetString("text", "") + r.Header.Get("Authorization")), nil
			}
			server.AddTool(mcpgo.NewTool("echo", mcpgo.WithString("text", mcpgo.Required())), echo)
			url := serveReal(t, mcpgoserver.NewStreamableHTTPServer(server, mcpgoserver.WithStateful(true)))
			s, d := start(t, Config{Servers: []Server{{Name: "real", URL: url, Protocol: p, Refresh: time.Hour}}})
			r, err := forward(t, s, "real__echo", `{"text":"hi "}`, func(f *gateway.Forward) {
				f.Lease = gateway.Lease{ID: "l", PerCall: true, Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer b")}}
			})
			if got := said(t, r, err); got != "hi Bearer b" {
				t.Errorf("said %q", got)
			}
			server.AddTool(mcpgo.NewTool("second"), echo)
			if c := d.await(t, "tool.definition.changed", "real", 1); c.Tool.Name != "second" {
				t.Errorf("on record is %+v", c)
			}
		})
	}
}

// everything builds go-sdk's conformance server, once.
var everything = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "toolbroker", "go-sdk")
	bin := filepath.Join(dir, "everything-server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", bin, "github.com/modelcontextprotocol/go-sdk/conformance/everything-server").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// everythingAt runs go-sdk's everything-server in one of its modes.
func everythingAt(t *testing.T, bin, mode string) Server {
	t.Helper()
	srv := Server{Name: "real", Prefix: new("")}
	if mode == "stdio" {
		srv.Command = []string{bin}
		return srv
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(bin, "-http", addr, fmt.Sprintf("-stateless=%v", mode == "stateless"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	srv.URL = "http://" + addr // the gateway comes back until it listens
	return srv
}

// go-sdk's everything-server, as its own process, over HTTP in both modes and
// over stdio: every tool that answers by itself does.
func TestEverythingServer(t *testing.T) {
	bin, err := everything()
	if err != nil {
		missing(t, "go-sdk's everything-server: "+err.Error())
	}
	for _, mode := range []string{"stateless", "stateful", "stdio"} {
		t.Run(mode, func(t *testing.T) {
			s, d := start(t, Config{Servers: []Server{everythingAt(t, bin, mode)}})
			d.await(t, "tool.definition.seen", "real", 1)
			if got := len(s.Offered("a", gateway.SortTool)); got != 28 {
				t.Errorf("%d tools", got)
			}
			for tool, want := range map[string]string{
				"test_simple_text": "This is a simple text response", "test_image_content": `"type":"image"`, "test_audio_content": `"type":"audio"`,
				"test_embedded_resource": `"uri":"test://`, "test_multiple_content_types": `"type":"resource"`, "test_error_handling": `"isError":true`,
				"test_tool_with_logging": `"content"`, "test_tool_with_progress": `"content"`,
			} {
				e := &ear{}
				r, err := forwardTo(t, s, tool, `{}`, e, func(f *gateway.Forward) { f.Progress = true })
				if err != nil || !strings.Contains(string(r.Raw), want) {
					t.Errorf("%s: %v %.200s", tool, err, r.Raw)
				}
				if tool == "test_tool_with_progress" && len(e.heard) != 3 {
					t.Errorf("heard %q", e.heard)
				}
			}
			if mode == "stateless" {
				if r, err := forward(t, s, "test_x_mcp_header", `{"region":"eu-1","priority":3}`); err != nil || r.Failed() {
					t.Errorf("mirrored headers: %v %s %s", err, r.Raw, r.Error)
				}
				r, err := forward(t, s, "test_input_required_result_elicitation", `{}`, func(f *gateway.Forward) { f.Caps = json.RawMessage(`{"elicitation":{}}`) })
				if err != nil || r.Type != gateway.ResultInput || !strings.Contains(string(r.Raw), `"elicitation/create"`) {
					t.Errorf("asking back: %v %s %s", err, r.Raw, r.Error)
				}
			}
		})
	}
}

// @modelcontextprotocol/server-filesystem over stdio.
func TestFilesystemServer(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(home, ".cache", "toolbroker", "npm")
	bin := filepath.Join(cache, "node_modules", ".bin", "mcp-server-filesystem")
	if _, err := os.Stat(bin); err != nil {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "" {
			missing(t, "@modelcontextprotocol/server-filesystem")
		}
		out, err := exec.Command("npm", "install", "--no-audit", "--no-fund", "--prefix", cache, "@modelcontextprotocol/server-filesystem@2026.8.31").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, d := start(t, Config{Servers: []Server{{Name: "fs", Command: []string{bin, dir}, Dir: dir}}})
	d.await(t, "tool.definition.seen", "fs", 1)
	arg := func(path string) string {
		b, _ := json.Marshal(map[string]string{"path": path})
		return string(b)
	}
	r, err := forward(t, s, "fs__read_text_file", arg(filepath.Join(dir, "hello.txt")))
	if got := said(t, r, err); got != "hello\n" {
		t.Errorf("said %q", got)
	}
	if r, err := forward(t, s, "fs__read_text_file", arg("/etc/passwd")); err != nil || !r.Failed() {
		t.Errorf("outside: %v %s", err, r.Raw)
	}
	tool, _ := s.Resolve("a", gateway.SortTool, "fs__read_text_file")
	if err := tool.Check(json.RawMessage(`{"path":7}`)); err == nil {
		t.Error("a path that is a number passes")
	}
}

// What a call costs here, in front of a server that does nothing.
func BenchmarkForward(b *testing.B) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var m fakeMessage
		json.Unmarshal(body, &m)
		w.Header().Set("Content-Type", contentJSON)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"hello"}]}}`, m.ID)
	}))
	defer web.Close()
	s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", URL: web.URL}}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(context.Background())
	s.servers["x"].era.Store(int32(modernEra))
	f := gateway.Forward{CallID: "c", Tool: gateway.Tool{Server: "x", Name: "act"}, Args: json.RawMessage(`{"a":1}`), Principal: gateway.Principal{Tenant: "a"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Forward(b.Context(), f, nil); err != nil {
			b.Fatal(err)
		}
	}
}
