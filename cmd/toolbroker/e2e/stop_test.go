package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"toolbroker/gateway/audit"
)

// A gateway that is told to end waits for a call that runs for a handle, whose agent
// reads what came of it on the next one.
func TestAStopInOrderLetsHandlesRun(t *testing.T) {
	store := redis(t)
	fixture := newEraServer(t, true)
	behind, err := url.Parse(fixture.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: behind.Scheme, Host: behind.Host})
	running, release := make(chan struct{}), make(chan struct{})
	began := sync.OnceFunc(func() { close(running) })
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if bytes.Contains(body, []byte(`"tools/call"`)) {
			began()
			select {
			case <-release:
			case <-r.Context().Done():
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(slow.Close)
	h := newHouse(t, Options{Redis: store, Policy: eraRows, Servers: fmt.Sprintf("\n  - {name: modern, url: %q, protocol: modern}\n", slow.URL+behind.Path)})
	_, token := h.Task("agent:a")
	h.shows(token, "modern__guarded")
	c := newRaw(t, h.MCP, token, "2026-07-28", `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	a, err := c.do(t.Context(), "tools/call", `{"name":"modern__guarded","arguments":{"for":"x"}}`)
	var kept struct{ TaskID string }
	if err != nil || json.Unmarshal(a.Result, &kept) != nil || kept.TaskID == "" {
		t.Fatalf("%s %v", a.Body, err)
	}
	bob := h.Login("bob")
	if code := h.Vote(bob, h.Pending(bob), true); code != 200 {
		t.Fatalf("vote: %d", code)
	}
	look := func() string {
		t.Helper()
		a, err := c.do(t.Context(), "tasks/get", `{"taskId":"`+kept.TaskID+`"}`)
		if err != nil {
			t.Fatal(err)
		}
		return string(a.Body)
	}
	look()
	<-running
	over := make(chan struct{})
	go func() { defer close(over); h.Stop() }()
	until(t, "it is ending", func() bool {
		r, err := http.Get(h.Probes + "/readyz")
		if err != nil {
			return true
		}
		defer r.Body.Close()
		return r.StatusCode != 200
	})
	close(release)
	<-over
	h.Start()
	if got := look(); !strings.Contains(got, `"status":"completed"`) || !strings.Contains(got, `"result":{`) {
		t.Errorf("%s", got)
	}
	if n, doubt := h.Count(audit.CallCompleted), h.Count(audit.CallInDoubt); n != 1 || doubt != 0 {
		t.Errorf("%d completed, %d in doubt", n, doubt)
	}
	h.Stop()
	h.Verify()
}
