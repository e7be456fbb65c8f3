package tracker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/examples/servers/tracker"
)

// bearer adds a token to whatever a client sends.
type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b != "" {
		r.Header.Set("Authorization", "Bearer "+string(b))
	}
	return http.DefaultTransport.RoundTrip(r)
}

func connect(t *testing.T, file, token string) *mcp.ClientSession {
	t.Helper()
	web := httptest.NewServer(tracker.Handler(tracker.Config{File: file, Verify: func(_ context.Context, token string) error {
		if token != "the-right-token" {
			return errors.New("wrong")
		}
		return nil
	}}))
	t.Cleanup(web.Close)
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	s, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: web.URL, HTTPClient: &http.Client{Transport: bearer(token)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func call(t *testing.T, s *mcp.ClientSession, tool, args string) (text string, failed bool) {
	t.Helper()
	r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: json.RawMessage(args)})
	if err != nil {
		return err.Error(), true
	}
	return r.Content[0].(*mcp.TextContent).Text, r.IsError
}

func TestALifeOfIssues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issues.json")
	s := connect(t, file, "the-right-token")
	for _, step := range []struct {
		tool, args string
		failed     bool
		says       string
	}{
		{"list_issues", `{}`, false, `{"issues":[]}`},
		{"create_issue", `{"title":"door sticks","body":"since Monday","labels":["house"]}`, false, `"number":1`},
		{"create_issue", `{"title":"lamp flickers"}`, false, `"number":2`},
		{"list_issues", `{"label":"house"}`, false, `"title":"door sticks"`},
		{"get_issue", `{"number":1}`, false, `since Monday`},
		{"close_issue", `{"number":1}`, false, `"reason":"completed"`},
		{"close_issue", `{"number":1,"reason":"duplicate"}`, false, `"reason":"completed"`}, // nothing changes
		{"list_issues", `{"state":"closed"}`, false, `door sticks`},
		{"delete_issue", `{"number":2}`, false, `"deleted":2`},
		{"get_issue", `{"number":2}`, true, `there is no issue 2`},
		{"delete_issue", `{"number":2}`, true, `there is no issue 2`},
		{"create_issue", `{"title":"third"}`, false, `"number":3`}, // a number is not given out twice
		{"create_issue", `{"title":"x","assignee":"me"}`, true, `assignee`},
		{"create_issue", `{"title":""}`, true, `title`},
		{"get_issue", `{"number":"1"}`, true, `number`},
	} {
		text, failed := call(t, s, step.tool, step.args)
		if failed != step.failed || !strings.Contains(text, step.says) {
			t.Errorf("%s %s: failed=%v, %s", step.tool, step.args, failed, text)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v; want it readable by its owner only", info.Mode(), err)
	}
	left, _ := filepath.Glob(file + "*")
	if len(left) != 1 {
		t.Errorf("left beside the file: %v", left)
	}
}

func TestCallsNeedATokenAndListingDoesNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issues.json")
	for _, token := range []string{"", "wrong", "the-right-token-and-more"} {
		s := connect(t, file, token)
		tools, err := s.ListTools(t.Context(), nil)
		if err != nil || len(tools.Tools) != 5 {
			t.Errorf("token %q: %d tools, %v", token, len(tools.Tools), err)
		}
		if text, failed := call(t, s, "create_issue", `{"title":"x"}`); !failed || !strings.HasPrefix(text, "unauthorized") {
			t.Errorf("token %q: %s", token, text)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a call that was refused left a file")
	}
}

func TestWithoutVerifyNothingRuns(t *testing.T) {
	web := httptest.NewServer(tracker.Handler(tracker.Config{File: filepath.Join(t.TempDir(), "i.json")}))
	defer web.Close()
	s, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).
		Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: web.URL, HTTPClient: &http.Client{Transport: bearer("anything")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if text, failed := call(t, s, "list_issues", `{}`); !failed {
		t.Error(text)
	}
}

func TestABrokenFileIsNotLostOrShown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issues.json")
	os.WriteFile(file, []byte("{broken"), 0o600)
	s := connect(t, file, "the-right-token")
	text, failed := call(t, s, "create_issue", `{"title":"x"}`)
	if !failed || strings.Contains(text, file) {
		t.Error(text)
	}
	if data, _ := os.ReadFile(file); string(data) != "{broken" {
		t.Errorf("the file is now %s", data)
	}
}
