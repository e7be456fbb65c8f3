//lint:file-ignore SA1019 roots are deprecated, and relayed all the same.

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway/audit"
)

// An agent's session is on two replicas, its requests on either, its stream on one.
// server-filesystem, a child of each replica, works in the agent's roots, also once
// they are others; and neither child outlives the session.
func TestAnAgentsSessionAtAServer(t *testing.T) {
	packages, node := npm(t)
	dirs := [3]string{t.TempDir(), t.TempDir(), t.TempDir()}
	h := newHouse(t, Options{Redis: redis(t), Policy: `
p, agent:a, acme, work, **, call, , allow
p, agent:a, acme, work, files/read_text_file, roots, , allow
p, agent:*, *, *, task:work, start, , allow
`, Servers: fmt.Sprintf("\n  - {name: files, command: %s, args: [%s, %s]}\n", node, filepath.Join(packages, "@modelcontextprotocol/server-filesystem/dist/index.js"), dirs[0])})
	r2 := h.Replica("r2")
	_, token := h.Task("agent:a")
	h.shows(token, "files__read_text_file")
	r2.shows(token, "files__read_text_file")
	to := [2]*httputil.ReverseProxy{httputil.NewSingleHostReverseProxy(mustURL(t, h.Agent)), httputil.NewSingleHostReverseProxy(mustURL(t, r2.Agent))}
	for _, p := range to {
		p.FlushInterval = -1
	}
	var posts atomic.Int64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host = ""
		if r.Method == http.MethodPost {
			to[posts.Add(1)%2].ServeHTTP(w, r)
		} else {
			to[1].ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	c := sdk.NewClient(&sdk.Implementation{Name: "rooted", Version: "1"}, &sdk.ClientOptions{
		Capabilities: &sdk.ClientCapabilities{RootsV2: &sdk.RootCapabilities{ListChanged: true}}})
	c.AddRoots(&sdk.Root{URI: "file://" + dirs[1]})
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: front.URL + "/mcp", HTTPClient: &http.Client{Transport: withToken{token}}},
		&sdk.ClientSessionOptions{ProtocolVersion: "2025-11-25"})
	if err != nil {
		t.Fatal(err)
	}
	works := func(in string) {
		t.Helper()
		there := 0 // how many times in a row: the two children take turns
		until(t, "both work in "+in, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			out, err := s.CallTool(ctx, &sdk.CallToolParams{Name: "files__list_allowed_directories", Arguments: map[string]any{"n": there}})
			if err != nil || out.IsError {
				t.Fatalf("%v %s", err, said(out, err))
			}
			if there++; !strings.HasSuffix(said(out, nil), in) {
				there = 0
			}
			return there == 4
		})
	}
	works(dirs[1])
	c.RemoveRoots("file://" + dirs[1])
	c.AddRoots(&sdk.Root{URI: "file://" + dirs[2]})
	works(dirs[2])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*House{h, r2} {
		until(t, "the child is gone, on record", func() bool { return r.Count(audit.SessionEnded) == 1 })
		for _, e := range r.Events() {
			if e.Type == audit.SessionEnded && (e.Closing.Links != 1 || len(e.Closing.Unproven) > 0) {
				t.Errorf("on record is %+v", e.Closing)
			}
		}
	}
	h.Stop()
	r2.Stop()
	h.Verify()
	r2.Verify()
}
