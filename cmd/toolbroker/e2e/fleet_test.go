package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// inspector is the Inspector's command line: a new process for each thing it does,
// as a person at a terminal has it. era is one of its own: legacy, auto or modern.
func inspector(t *testing.T, url, token, era string) agent {
	t.Helper()
	packages, node := npm(t)
	home := t.TempDir()
	run := func(ctx context.Context, out any, args ...string) error {
		cmd := exec.CommandContext(ctx, node, append([]string{filepath.Join(packages, "@modelcontextprotocol/inspector/clients/launcher/build/index.js"), "--cli",
			"--server-url", url, "--transport", "http", "--protocol-era", era, "--header", "Authorization: Bearer " + token, "--format", "json"}, args...)...)
		cmd.Env = []string{"HOME=" + home, "PATH=" + filepath.Dir(node)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = 10 * time.Second
		var problems strings.Builder
		cmd.Stderr = &problems
		text, err := cmd.Output()
		// It ends with 5 where the tool said that it failed, which is an answer too.
		if err != nil && cmd.ProcessState.ExitCode() != 5 {
			return fmt.Errorf("%w: %s%s", err, text, problems.String())
		}
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("%w: %s%s", err, text, problems.String())
		}
		return nil
	}
	return agent{
		list: func(ctx context.Context) (names []string, err error) {
			var out struct {
				Tools  []struct{ Name string }
				Result struct{ Tools []struct{ Name string } }
			}
			if err := run(ctx, &out, "--method", "tools/list"); err != nil {
				return nil, err
			}
			for _, t := range append(out.Tools, out.Result.Tools...) {
				names = append(names, t.Name)
			}
			return names, nil
		},
		call: func(ctx context.Context, name string, args map[string]any) (string, bool, error) {
			how := []string{"--method", "tools/call", "--tool-name", name}
			for k, v := range args {
				how = append(how, "--tool-arg", fmt.Sprintf("%s=%v", k, v))
			}
			type result struct {
				Content json.RawMessage
				IsError bool
			}
			var out struct {
				result
				Result result
			}
			if err := run(ctx, &out, how...); err != nil {
				return "", false, err
			}
			if out.Content == nil {
				out.result = out.Result
			}
			return string(out.Content), out.IsError, nil
		},
	}
}

// tsSDK is a client by one of the official TypeScript SDKs; see testdata/agent.mjs.
func tsSDK(sdk string) func(*testing.T, string, string, string) agent {
	return func(t *testing.T, url, token, era string) agent {
		return scripted(t, era, []string{"TOKEN=" + token}, "agent.mjs", sdk, url, era)
	}
}

// again does what was refused because the machine is busy, as such a refusal says.
func again(do func() error) error {
	for {
		if err := do(); err == nil || !busy(err.Error()) {
			return err
		}
	}
}

// A mixed fleet: clients by five hands in the eras that they speak, before servers by
// three, over HTTP in two eras and over stdio, all at once through one gateway. Each
// client sees everything and uses a tool of each server.
func TestFleet(t *testing.T) {
	packages, node := npm(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hello.txt"), "hello from a file")
	bin := everything(t, "everything-server")
	modern, legacy := freeAddr(t), freeAddr(t)
	process(t, io.Discard, bin, "-http", modern)
	process(t, io.Discard, bin, "-http", legacy, "-stateless=false")
	answers(t, modern)
	answers(t, legacy)
	at := func(p string) string { return filepath.Join(packages, "@modelcontextprotocol", p, "dist/index.js") }
	h := newHouse(t, Options{Redis: redis(t), Servers: fmt.Sprintf(`
  - {name: modern, url: "http://%[1]s"}
  - {name: legacy, url: "http://%[2]s"}
  - {name: everything, command: %[3]s, args: [%[4]s, stdio]}
  - {name: files, command: %[3]s, args: [%[5]s, %[6]s]}
  - {name: memory, command: %[3]s, args: [%[7]s], env: {MEMORY_FILE_PATH: %[8]s}}
`, modern, legacy, node, at("server-everything"), at("server-filesystem"), dir, at("server-memory"), filepath.Join(t.TempDir(), "memory.jsonl")), Policy: `
p, agent:a, acme, work, modern/test_*,         call,  , allow
p, agent:a, acme, work, legacy/test_*,         call,  , allow
p, agent:a, acme, work, everything/*,          call,  , allow
p, agent:a, acme, work, files/read_text_file,  call,  , allow
p, agent:a, acme, work, memory/*,              call,  , allow
p, agent:*, *,    *,    task:work,             start, , allow
`})
	_, token := h.Task("agent:a")
	uses := []struct {
		tool string
		args map[string]any
		want string
	}{
		{"modern__test_simple_text", nil, "simple text response"},
		{"legacy__test_simple_text", nil, "simple text response"},
		{"everything__echo", map[string]any{"message": "over stdio"}, "over stdio"},
		{"files__read_text_file", map[string]any{"path": filepath.Join(dir, "hello.txt")}, "hello from a file"},
		{"memory__read_graph", nil, "entities"},
		{"everything__simulate-research-query", map[string]any{"topic": "gateways"}, "Research Report: gateways"}, // a task, in 2025-11-25
	}
	for _, u := range uses {
		h.shows(token, u.tool)
	}
	var fleet sync.WaitGroup
	for _, member := range []struct {
		name, era string
		connect   func(*testing.T, string, string, string) agent
	}{
		{"inspector", "legacy", inspector}, {"inspector", "auto", inspector}, {"inspector", "modern", inspector},
		{"typescript-sdk v1", "2025-11-25", tsSDK("v1")}, {"typescript-sdk v2", "2025-11-25", tsSDK("v2")}, {"typescript-sdk v2", "2026-07-28", tsSDK("v2")},
		{"go-sdk", "2025-03-26", goSDK}, {"go-sdk", "2025-06-18", goSDK}, {"go-sdk", "2025-11-25", goSDK}, {"go-sdk", "2026-07-28", goSDK},
		{"mcp-go", "2025-11-25", mcpGo}, {"mcp-go", "2026-07-28", mcpGo},
	} {
		a := member.connect(t, h.MCP, token, member.era)
		fleet.Go(func() {
			who := member.name + ", " + member.era
			var names []string
			err := again(func() (err error) { names, err = a.list(t.Context()); return err })
			if err != nil {
				t.Errorf("%s: list: %v", who, err)
				return
			}
			for _, u := range uses {
				if !slices.Contains(names, u.tool) {
					t.Errorf("%s does not see %s", who, u.tool)
				}
				var text string
				var isError bool
				err := again(func() (err error) {
					if text, isError, err = a.call(t.Context(), u.tool, u.args); err == nil && busy(text) {
						err = errors.New(text)
					}
					return err
				})
				if err != nil || isError || !strings.Contains(text, u.want) {
					t.Errorf("%s: %s: %.300s %v", who, u.tool, text, err)
				}
			}
			if slices.Contains(names, "files__write_file") {
				t.Errorf("%s sees a tool that it may not call", who)
			}
		})
	}
	fleet.Wait()
	h.Stop()
	h.Verify()
}
