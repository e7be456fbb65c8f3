package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Clients that number their requests alike, and their progress tokens too, are on one
// gateway at once; each gets its own answer and its own progress, and a cancel that
// names a number is nobody else's. That all are inside at once is made sure of: the
// tool answers none before it has seen all.
func TestSameNumbers(t *testing.T) {
	const clients = 200
	for _, server := range serverEras {
		t.Run("server of "+server, func(t *testing.T) {
			inside := make(chan struct{}, clients)
			release := make(chan struct{})
			s := sdk.NewServer(&sdk.Implementation{Name: "s", Version: "1"}, nil)
			s.AddTool(&sdk.Tool{Name: "mine", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
				var in struct{ Mark string }
				if err := json.Unmarshal(r.Params.Arguments, &in); err != nil {
					return nil, err
				}
				r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: r.Params.GetProgressToken(), Progress: 1, Message: in.Mark})
				inside <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: in.Mark}}}, nil
			})
			hs := httptest.NewServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: server >= "2026"}))
			t.Cleanup(func() { hs.CloseClientConnections(); hs.Close() })
			h := newHouse(t, Options{Redis: redis(t), Servers: fmt.Sprintf("  - {name: s, url: %q}\n", hs.URL), Policy: `
p, agent:*, acme, work, s/mine,    call,  , allow
p, agent:*, *,    *,    task:work, start, , allow
`})
			var tokens []string
			for range 4 {
				_, token := h.Task("agent:a")
				tokens = append(tokens, token)
			}
			h.shows(tokens[0], "s__mine")

			type client struct {
				*raw
				mark string
				got  rpcAnswer
				err  error
			}
			all := make([]*client, clients)
			for i := range all {
				era := clientEras[i%len(clientEras)]
				all[i] = &client{raw: newRaw(t, h.MCP, tokens[i/4%len(tokens)], era, "{}"), mark: fmt.Sprintf("mark-%03d-%s", i, era)}
				all[i].meta = `,"progressToken":7`
			}
			var calls sync.WaitGroup
			for _, c := range all {
				calls.Go(func() {
					for again := true; again; again = c.err == nil && busy(c.got.Body) {
						c.id = 0
						c.got, c.err = c.do(t.Context(), "tools/call", fmt.Sprintf(`{"name":"s__mine","arguments":{"mark":%q}}`, c.mark))
					}
				})
			}
			for i := range clients {
				select {
				case <-inside:
				case <-time.After(60 * time.Second):
					close(release)
					calls.Wait()
					for _, c := range all {
						if c.err != nil || c.got.text() != c.mark {
							t.Errorf("%s: %v %.300s", c.mark, c.err, c.got.Body)
						}
					}
					t.Fatalf("only %d of %d calls got in", i, clients)
				}
			}
			// Everybody is in. Now strangers cancel number 1: those who have a session, in one
			// of their own; those who have none, as 2026-07-28 has it, and as a client might
			// who mistakes the era.
			for _, era := range clientEras {
				stranger := newRaw(t, h.MCP, tokens[0], era, "{}")
				for range 20 {
					if err := stranger.notify(t.Context(), "notifications/cancelled", `{"requestId":1,"reason":"not mine"}`); err != nil {
						t.Fatal(err)
					}
				}
				stranger.session = ""
				stranger.notify(t.Context(), "notifications/cancelled", `{"requestId":1}`)
			}
			close(release)
			calls.Wait()
			for _, c := range all {
				if c.err != nil || c.got.text() != c.mark {
					t.Errorf("%s got %.300s %v", c.mark, c.got.Body, c.err)
					continue
				}
				if n := strings.Count(c.got.Body, "mark-"); n != strings.Count(c.got.Body, c.mark) {
					t.Errorf("%s heard of others: %.600s", c.mark, c.got.Body)
				}
				if !strings.Contains(c.got.Body, "notifications/progress") {
					t.Errorf("%s heard no progress: %.300s", c.mark, c.got.Body)
				}
			}
			h.Stop()
			h.Verify()
		})
	}
}

// busy reports whether a call was refused because the machine has too much to do to
// confirm in time that its task runs: then nothing was done, and it says so.
func busy(answer string) bool { return strings.Contains(answer, "try again in a moment") }

// A tap is a server that keeps all that it was sent, and passes it on to a real one.
func tap(t *testing.T, to string, heard io.Writer) (url string) {
	t.Helper()
	target := mustURL(t, to)
	p := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var all bytes.Buffer
		fmt.Fprintln(&all, r.Method, r.RequestURI)
		r.Header.Write(&all)
		all.Write(body)
		io.Copy(heard, &all)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// What an agent presents to us never reaches a server, wherever else in its requests
// it stands: not as a header of any name, not in _meta, not in a parameter or an
// answer, plain or encoded, in no era and on no transport.
func TestTokenStaysHere(t *testing.T) {
	dir := t.TempDir()
	heard := &lockedBuffer{}
	modern, legacy := newEraServer(t, true), newEraServer(t, false)
	child := filepath.Join(dir, "child.sh")
	write(t, child, fmt.Sprintf("env > %[1]s/env\nexec tee -a %[1]s/in | %[2]s\n", dir, everything(t, "everything-server")))
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, Options{Redis: redis(t), Servers: fmt.Sprintf(`
  - {name: modern, url: %q, protocol: modern, meta: [example.com/note]}
  - {name: legacy, url: %q, protocol: legacy, meta: [example.com/note]}
  - {name: child, command: %s, args: [%s], env: {PATH: %q}, meta: [example.com/note]}
`, tap(t, modern.url, heard), tap(t, legacy.url, heard), sh, child, os.Getenv("PATH")), Policy: eraRows + `
p, agent:a, acme, work, child/**, call, , allow
p, agent:a, acme, work, child/**, read, , allow
p, agent:a, acme, work, child/**, get,  , allow
p, agent:a, acme, work, child/**, elicit, , allow
`})
	_, token := h.Task("agent:a")
	task, _ := h.Task("agent:a")
	for _, tool := range []string{"modern__echo", "legacy__echo", "child__test_simple_text"} {
		h.shows(token, tool)
	}
	own := map[string]string{"a task's token": token, "a workload's key": h.Keys["agent:a"]}
	encoded := func(s string) map[string]string {
		return map[string]string{
			"plain": s, "base64": base64.StdEncoding.EncodeToString([]byte(s)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(s)),
			"hex": hex.EncodeToString([]byte(s)), "percent": url.QueryEscape(s), "with a scheme": "Bearer " + s,
		}
	}
	harmless := "harmless-canary-8f2c61"
	for _, bearer := range own {
		for _, era := range clientEras {
			for _, canary := range append([]string{harmless}, values(encoded(bearer))...) {
				c := &raw{url: h.MCP, token: bearer, era: era, caps: `{"elicitation":{}}`}
				if bearer != token {
					c.headers = map[string]string{"Toolbroker-Task": task}
				}
				c.open(t)
				extra := map[string]string{
					"Cookie": "session=" + canary, "Proxy-Authorization": "Bearer " + canary, "X-Api-Key": canary, "X-Forwarded-For": "10.0.0.1",
					"Mcp-Param-Region": canary, "Traceparent": "00-" + strings.Repeat("a", 32) + "-" + strings.Repeat("b", 16) + "-01", "Tracestate": "v=" + canary,
					"Baggage": "v=" + canary, "Last-Event-Id": canary, "User-Agent": canary, "X-Custom": canary,
				}
				for _, how := range []struct {
					name, meta string
					headers    map[string]string
					arg        string
				}{
					{"headers", "", extra, harmless},
					{"_meta", fmt.Sprintf(`,"progressToken":%[1]q,"authorization":%[1]q,"example.com/note":%[1]q,"traceparent":%[1]q`, strings.Replace(canary, "harmless", "meta", 1)), nil, harmless},
					{"parameters", "", nil, canary},
				} {
					old := c.headers
					c.headers, c.meta = merged(old, how.headers), how.meta
					for _, server := range []string{"modern", "legacy", "child"} {
						for _, ask := range [][2]string{
							{"tools/call", fmt.Sprintf(`{"name":"%s__echo","arguments":{"v":%[2]q,%[2]q:{"deep":[%[2]q]}}}`, server, how.arg)},
							{"tools/call", fmt.Sprintf(`{"name":"%s__test_simple_text","arguments":{"v":%[2]q}}`, server, how.arg)},
							{"resources/read", fmt.Sprintf(`{"uri":%q}`, server+"+eras://many/"+how.arg)},
							{"prompts/get", fmt.Sprintf(`{"name":"%s__greet","arguments":{"who":%q}}`, server, how.arg)},
							{"completion/complete", fmt.Sprintf(`{"ref":{"type":"ref/prompt","name":"%s__greet"},"argument":{"name":"who","value":%q}}`, server, how.arg)},
							{"tools/call", fmt.Sprintf(`{"name":"%s__ask_form","arguments":{},"requestState":%[2]q,"inputResponses":{"a":{"action":"accept","content":{"name":%[2]q}}}}`, server, how.arg)},
						} {
							ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
							c.do(ctx, ask[0], ask[1]) // refused or not is not the question here
							cancel()
						}
					}
					c.headers, c.meta = old, ""
				}
			}
		}
	}
	h.Stop()
	downstream := heard.String() + read(t, dir)
	if !strings.Contains(heard.String(), harmless) || !strings.Contains(heard.String(), strings.Replace(harmless, "harmless", "meta", 1)) || !strings.Contains(readFile(t, filepath.Join(dir, "in")), harmless) {
		t.Error("nothing of the parameters, or of what _meta may hold, reached a server: this test would not see a token either")
	}
	for what, bearer := range own {
		for how, s := range encoded(bearer) {
			if i := strings.Index(downstream, s); i >= 0 {
				t.Errorf("%s (%s) reached a server: …%.400s", what, how, strings.ReplaceAll(downstream[max(0, i-200):i], "\n", " "))
			}
		}
	}
	h.Verify()
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func merged(a, b map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}
