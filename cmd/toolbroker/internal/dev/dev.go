// Package dev is `toolbroker dev`: a whole gateway in one process, for trying it
// out on this machine, with sample servers, a sample policy and sample tasks.
//
// It serves through the very code that `serve` runs; only what stands around it
// is made up: an embedded Redis, a Vault that may be a stand-in, two operators.
// It listens on loopback only, and its records say `mode: dev`.
package dev

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/cmd/toolbroker/internal/serve"
	"toolbroker/examples/servers/tracker"
	"toolbroker/gateway"
)

// Options are the command's flags.
type Options struct {
	Dir     string // where everything is kept; made when missing
	Listen  string // the agents' door; empty for 127.0.0.1:8080 or else any port
	Console string // the operators' page; empty for 127.0.0.1:8081 or else any port
	Version string
	Out     io.Writer // the tutorial
}

// Tenant and Principal are the sample agent's.
const (
	Tenant    = "acme"
	Principal = "agent:sample"
)

// File is dev.json, for scripts: everything there is to know, once it is ready.
type File struct {
	MCP        string            `json:"mcp_url"`
	Console    string            `json:"console_url"`
	AuditDir   string            `json:"audit_dir"`
	PolicyFile string            `json:"policy_file"`
	ConfigFile string            `json:"config_file"`
	Vault      VaultFile         `json:"vault"`
	Operators  []Operator        `json:"operators"`
	Tasks      map[string]Task   `json:"tasks"`
	Samples    map[string]Sample `json:"samples"` // allow, deny, approve
}

// VaultFile is where credentials come from.
type VaultFile struct {
	Address string `json:"address"`
	Token   string `json:"token"`
	StandIn bool   `json:"stand_in"`
}

// Operator is a sample operator.
type Operator struct {
	Name     string `json:"name"`
	Password string `json:"password"`
}

// Task is a running sample task and the token that is it.
type Task struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

// Sample is a call whose outcome is known.
type Sample struct {
	Task string         `json:"task"` // a name in Tasks
	Tool string         `json:"tool"`
	Args map[string]any `json:"args"`
}

//go:embed sample
var sample embed.FS

var samples = map[string]Sample{
	"allow":   {"triage", "tracker__list_issues", map[string]any{}},
	"deny":    {"triage", "tracker__close_issue", map[string]any{"number": 1}},
	"approve": {"triage", "tracker__close_issue", map[string]any{"number": 2, "reason": "completed"}},
}

// Run serves until ctx ends. When it returns, dev.json and the tokens are gone
// and so is everything it started; what it kept in Dir serves the next time.
func Run(ctx context.Context, o Options) error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	for _, a := range []string{o.Listen, o.Console} {
		if host, _, err := net.SplitHostPort(a); a != "" && (err != nil || !config.Loopback(host)) {
			return fmt.Errorf("%q is not HOST:PORT on loopback; dev is for this machine only, `toolbroker serve` is for others", a)
		}
	}
	if err := lay(dir); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	devJSON := filepath.Join(dir, "dev.json")
	if err := os.Remove(devJSON); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // a stale one would be taken for readiness
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "toolbroker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	log := slog.New(slog.NewJSONHandler(logFile, nil))

	vault, err := openVault(ctx, dir)
	if err != nil {
		return err
	}
	defer vault.close()
	trackerURL, stop, err := runTracker(dir, vault, o.Version)
	if err != nil {
		return err
	}
	defer stop()
	operators, err := people(dir)
	if err != nil {
		return err
	}
	cfg, err := o.config(dir, vault, trackerURL, operators)
	if err != nil {
		return err
	}
	house, err := serve.New(ctx, cfg, serve.Options{Mode: "dev", StandIn: vault.standIn, Version: o.Version, Logger: log})
	if err != nil {
		return err
	}
	running := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { running <- house.Run(ctx) }()

	if err := started(ctx, house, running, func() error {
		return announce(ctx, o, dir, devJSON, house, cfg, vault, operators)
	}); err != nil {
		cancel()
		return errors.Join(err, <-running)
	}
	defer func() {
		for _, dead := range []string{"dev.json", "triage.token", "reading.token", "cursor.json", "vscode.json", "vault-token"} {
			os.Remove(filepath.Join(dir, dead))
		}
	}()
	return <-running
}

// started waits until the house can serve and its tools are there, then runs then.
func started(ctx context.Context, house *serve.House, running <-chan error, then func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		if len(running) > 0 {
			return errors.New("it ended before it could serve")
		}
		err := house.Ready(ctx)
		for _, server := range []string{"tracker", "notes"} {
			if err == nil && !slices.ContainsFunc(house.Tools(Tenant), func(t gateway.Tool) bool { return t.Server == server }) {
				err = fmt.Errorf("the sample server %s has not shown its tools", server)
			}
		}
		if err == nil {
			return then()
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("not ready after 30 s: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

// announce starts the sample tasks, writes dev.json and prints the tutorial.
func announce(ctx context.Context, o Options, dir, devJSON string, house *serve.House, cfg *config.Config, vault *vault, operators []Operator) error {
	f := File{
		MCP: house.MCPURL(), Console: house.ConsoleURL(), AuditDir: string(cfg.Audit.Dir), PolicyFile: string(cfg.Policy.File),
		ConfigFile: cfg.File, Vault: VaultFile{vault.address, vault.token, vault.standIn}, Operators: operators, Tasks: map[string]Task{}, Samples: samples,
	}
	op, ok := house.Operator(operators[0].Name)
	if !ok {
		return fmt.Errorf("operator %s is missing", operators[0].Name)
	}
	for kind, purpose := range map[string]string{"triage": "Sort the new issues", "reading": "Read the notes"} {
		t, token, err := house.Gateway().TaskStart(ctx, op, gateway.TaskSpec{Tenant: Tenant, Kind: kind, Purpose: purpose, Principal: Principal})
		if err != nil {
			return fmt.Errorf("start the sample task %s: %w", kind, err)
		}
		f.Tasks[kind] = Task{t.ID, token.Reveal()}
		if err := write(filepath.Join(dir, kind+".token"), token.Reveal()+"\n"); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := write(devJSON, string(text)+"\n"); err != nil {
		return err
	}
	return tutorial(o.Out, f, dir, vault.name)
}

// lock keeps two from sharing a directory.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another toolbroker dev runs in %s; choose another --dir, or end it", dir)
	}
	return func() { f.Close() }, nil // which unlocks
}

// lay makes the directory and puts the samples there that are not yet.
func lay(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be entered by others and would hold secrets; choose another --dir, or `chmod 700` it", dir)
	}
	if err := write(filepath.Join(dir, ".gitignore"), "*\n"); err != nil {
		return err
	}
	return fs.WalkDir(sample, "sample", func(name string, d fs.DirEntry, err error) error {
		to := filepath.Join(dir, strings.TrimPrefix(name, "sample"))
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(to, 0o700))
		}
		if _, err := os.Lstat(to); err == nil {
			return nil // the user's by now
		}
		text, err := sample.ReadFile(name)
		if err != nil {
			return err
		}
		return write(to, string(text))
	})
}

// write puts a private file there, whole or not at all.
func write(file, text string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(text)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// people are the sample operators; their passwords are made once per directory.
func people(dir string) ([]Operator, error) {
	file := filepath.Join(dir, "operators.json")
	var all []Operator
	text, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &all); err != nil || len(all) != 2 {
			return nil, fmt.Errorf("%s is not what we wrote; remove it for new passwords", file)
		}
		return all, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for _, name := range []string{"alice", "bob"} {
		all = append(all, Operator{name, strings.ToLower(rand.Text()[:20])})
	}
	if text, err = json.Marshal(all); err != nil {
		return nil, err
	}
	return all, write(file, string(text))
}

// runTracker serves the sample tracker on a loopback port.
func runTracker(dir string, v *vault, version string) (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", tracker.Handler(tracker.Config{File: filepath.Join(dir, "issues.json"), Verify: v.verify, Version: version}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.Serve(l) }() // ends with Close
	return "http://" + l.Addr().String() + "/mcp", func() { s.Close() }, nil
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
