package notes_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/examples/servers/notes"
)

func connect(t *testing.T, c notes.Config) *mcp.ClientSession {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { done <- notes.Run(ctx, inR, outW, c) }()
	s, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).
		Connect(t.Context(), &mcp.IOTransport{Reader: outR, Writer: inW}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inW.Close() // the client goes away: Run ends by itself
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
		stop()
		outW.Close()
		s.Close()
	})
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

// house makes a folder of notes with a secret beside it, and links towards the secret.
func house(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "notes")
	for name, text := range map[string]string{
		"../secret.md":        "do not show",
		"hello.md":            "# Hello\nThe Kettle is in the kitchen.\n",
		"runbooks/restart.md": "1. Fill the kettle.\n2. Wait.\n",
		"picture.png":         "not a note",
		".hidden/x.md":        "hidden kettle",
	} {
		file := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(file), 0o700)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("../secret.md", filepath.Join(dir, "link.md"))
	os.Symlink("..", filepath.Join(dir, "up"))
	return dir
}

func TestNotes(t *testing.T) {
	s := connect(t, notes.Config{Dir: house(t)})
	for _, step := range []struct {
		tool, args string
		failed     bool
		says       string
	}{
		{"list_notes", `{}`, false, `"path":"hello.md"`},
		{"list_notes", `{"folder":"runbooks"}`, false, `"path":"runbooks/restart.md"`},
		{"list_notes", `{"folder":"../.."}`, false, `"path":"hello.md"`}, // still only the notes
		{"read_note", `{"path":"runbooks/restart.md"}`, false, "Fill the kettle"},
		{"search_notes", `{"text":"kettle"}`, false, `{"path":"hello.md","line":2,"text":"The Kettle is in the kitchen."}`},
		{"read_note", `{"path":"../secret.md"}`, true, "no such note"},
		{"read_note", `{"path":"link.md"}`, true, "no such note"},
		{"read_note", `{"path":"up/secret.md"}`, true, "no such note"},
		{"read_note", `{"path":"/etc/passwd"}`, true, "no such note"},
		{"read_note", `{"path":".hidden/x.md"}`, true, "no such note"},
		{"read_note", `{"path":"picture.png"}`, true, "no such note"},
		{"read_note", `{"path":"runbooks"}`, true, "no such note"},
		{"read_note", `{"path":"hello.md","mode":"w"}`, true, "mode"},
	} {
		text, failed := call(t, s, step.tool, step.args)
		if failed != step.failed || !strings.Contains(text, step.says) {
			t.Errorf("%s %s: failed=%v, %s", step.tool, step.args, failed, text)
		}
		for _, never := range []string{"do not show", "secret.md", "link.md", "hidden"} {
			if strings.Contains(text, never) {
				t.Errorf("%s %s shows %q", step.tool, step.args, never)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	sum := sha256.Sum256([]byte("right"))
	hash := hex.EncodeToString(sum[:])
	for name, c := range map[string]struct {
		notes.Config
		served bool
	}{
		"none wanted":    {notes.Config{}, true},
		"wanted, absent": {notes.Config{RequireKey: true}, false},
		"any key":        {notes.Config{RequireKey: true, Key: "x"}, true},
		"the wrong key":  {notes.Config{RequireKey: true, Key: "x", KeyHash: hash}, false},
		"the right key":  {notes.Config{RequireKey: true, Key: "right", KeyHash: hash}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c.Dir = house(t)
			s := connect(t, c.Config)
			if tools, err := s.ListTools(t.Context(), nil); err != nil || len(tools.Tools) != 3 {
				t.Errorf("listing needs no key, but: %v", err)
			}
			if text, failed := call(t, s, "list_notes", `{}`); failed == c.served {
				t.Errorf("served %v: %s", !failed, text)
			}
		})
	}
}

func TestNoFolderNoServer(t *testing.T) {
	if err := notes.Run(t.Context(), strings.NewReader(""), io.Discard, notes.Config{Dir: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("Run served a folder that is not there")
	}
}
