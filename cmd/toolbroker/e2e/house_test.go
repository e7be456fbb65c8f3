// Package e2e runs the built program as its users do: a process, its config, and
// real parts around it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"toolbroker/brokers/identity"
	"toolbroker/brokers/operators"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

var binary string

// builtBinary names the program where it is built already: this test runs itself, see
// TestAsClient.
const builtBinary = "TOOLBROKER_E2E_BINARY"

func TestMain(m *testing.M) {
	if binary = os.Getenv(builtBinary); binary != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "toolbroker-e2e-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "toolbroker")
	build := exec.Command("go", append(append([]string{"build"}, raceFlag...), "-o", binary, "toolbroker/cmd/toolbroker")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// need skips a test without a real part, or fails it where all parts are required.
func need(t *testing.T, what string, there bool) {
	t.Helper()
	if there {
		return
	}
	if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
		t.Fatalf("%s is not here, and TOOLBROKER_REQUIRE_REAL asks for it", what)
	}
	t.Skipf("%s is not here", what)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	for range 100 { // one that was given is free until it is used
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		if !given.addrs[addr] {
			given.addrs[addr] = true
			return addr
		}
	}
	t.Fatal("no address is free")
	return ""
}

var given = struct {
	sync.Mutex
	addrs map[string]bool
}{addrs: map[string]bool{}}

// A program runs until the test ends, or sooner.
type program struct {
	*os.Process
	done chan struct{} // closed when it has ended
	err  error         // how, once done is closed
}

// process starts a program that ends with the test.
func process(t *testing.T, out io.Writer, name string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second // for what a child of it keeps open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{Process: cmd.Process, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.Kill(); <-p.done })
	return p
}

// until polls something outside of this process that cannot be awaited.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within a minute", what)
}

// redis starts a real Redis that keeps what it acknowledged.
func redis(t *testing.T) (url string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	need(t, "redis-server", err == nil)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	process(t, io.Discard, path, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--appendonly", "yes", "--appendfsync", "always", "--save", "")
	until(t, "redis", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer c.Close()
		fmt.Fprint(c, "PING\r\n")
		b := make([]byte, 7)
		_, err = io.ReadFull(c, b)
		return err == nil && string(b) == "+PONG\r\n"
	})
	return "redis://" + addr + "/0"
}

// A House is one toolbroker process and the files it was started with.
type House struct {
	t                           *testing.T
	Dir                         string
	MCP, Agent, Console, Probes string
	Keys                        map[string]string // principal to API key
	Policy                      string            // the file
	AuditDir                    string
	proc                        *program
	log                         *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Options are the parts of a config that differ from test to test.
type Options struct {
	Redis     string // a URL; embedded when empty
	Policy    string
	Kinds     string // YAML of more task kinds
	Servers   string // YAML under servers:
	Extra     string // more top-level YAML
	Issuers   string // YAML under identity.issuers; {mcp} is the URL of the door
	Approvals string // YAML under approvals:
	AuditDir  string
}

const password = "correct horse battery staple"

var passwordHash = sync.OnceValue(func() string {
	h, err := operators.HashPassword(gateway.NewSecret(password))
	if err != nil {
		panic(err)
	}
	return h
})

// newHouse writes a config with the tenants acme and globex, the operators alice
// (owns everything), bob and carol (approvers, sre) and gus (of globex), API keys
// of agent:a (acme) and agent:b (globex), and a task kind "work".
func newHouse(t *testing.T, o Options) *House {
	t.Helper()
	dir := t.TempDir()
	h := &House{t: t, Dir: dir, Keys: map[string]string{}, Policy: filepath.Join(dir, "policy.csv"), AuditDir: o.AuditDir}
	if h.AuditDir == "" {
		h.AuditDir = filepath.Join(dir, "audit")
	}
	h.Agent, h.Console, h.Probes = "http://"+freeAddr(t), "http://"+freeAddr(t), "http://"+freeAddr(t)
	h.MCP = h.Agent + "/mcp"
	var c strings.Builder
	redisLine := "redis: embedded"
	if o.Redis != "" {
		redisLine = "redis: {url: " + o.Redis + "}"
	}
	fmt.Fprintf(&c, `
data_dir: %s
replica: r1
log: {level: debug}
agent: {listen: %s}
console: {listen: %s}
management: {listen: %s}
%s
audit: {dir: %s, checkpoint_every: 1s}
policy: {file: policy.csv}
tenants: [acme, globex]
limits: {calls_per_second: 10000}
`, filepath.Join(dir, "data"), strings.TrimPrefix(h.Agent, "http://"), strings.TrimPrefix(h.Console, "http://"), strings.TrimPrefix(h.Probes, "http://"), redisLine, h.AuditDir)
	c.WriteString("identity:\n  api_keys:\n")
	for _, k := range []struct{ id, tenant, principal, owner string }{
		{"a", "acme", "agent:a", "alice"}, {"b", "globex", "agent:b", "gus"},
	} {
		key, hash, err := identity.NewKey(k.id)
		if err != nil {
			t.Fatal(err)
		}
		h.Keys[k.principal] = key.Reveal()
		fmt.Fprintf(&c, "    - {id: %s, hash: %q, tenant: %s, principal: %q, owner: %s, expires: 2099-01-01}\n", k.id, hash, k.tenant, k.principal, k.owner)
	}
	if o.Issuers != "" {
		c.WriteString("  issuers:\n" + strings.ReplaceAll(o.Issuers, "{mcp}", h.MCP))
	}
	c.WriteString("operators:\n")
	for _, op := range []struct{ name, roles, tenants, groups string }{
		{"alice", "admin, approver", "acme", "sre"}, {"bob", "approver", "acme, globex", "sre"}, {"carol", "approver", "acme", "sre"}, {"gus", "admin, approver", "globex", "sre"},
	} {
		fmt.Fprintf(&c, "  - {name: %s, password_hash: %q, roles: [%s], tenants: [%s], groups: [%s]}\n", op.name, passwordHash(), op.roles, op.tenants, op.groups)
	}
	c.WriteString(`task_kinds:
  - name: work
    purpose: to test
    ttl: 2h
    self_start: true
    parallel: true
    delegation: {depth: 2, fan_out: 8}
    scope:
      - {tool: "**", action: "*", verdict: allow}
`)
	c.WriteString(o.Kinds)
	if o.Approvals != "" {
		c.WriteString("approvals: " + o.Approvals + "\n")
	}
	c.WriteString(o.Extra)
	c.WriteString("servers:\n" + o.Servers)
	write(t, filepath.Join(dir, "config.yaml"), c.String())
	write(t, h.Policy, o.Policy)
	h.Start()
	return h
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Start starts the process and waits until it is ready.
func (h *House) Start() {
	h.t.Helper()
	h.log = &lockedBuffer{}
	h.proc = process(h.t, h.log, binary, "serve", "--config", filepath.Join(h.Dir, "config.yaml"))
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("toolbroker:\n%s", h.log)
		}
		if strings.Contains(h.log.String(), "DATA RACE") {
			h.t.Errorf("a data race in the process:\n%s", h.log)
		}
	})
	until(h.t, "ready", func() bool {
		select {
		case <-h.proc.done:
			h.t.Fatalf("ended: %v\n%s", h.proc.err, h.log)
		default:
		}
		r, err := http.Get(h.Probes + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == 200
	})
}

// Kill ends the process as a power cut would.
func (h *House) Kill() {
	h.proc.Kill()
	<-h.proc.done
}

// Stop ends the process as an admin would, and checks that it ends well.
func (h *House) Stop() {
	h.t.Helper()
	h.proc.Signal(syscall.SIGTERM)
	<-h.proc.done
	if h.proc.err != nil {
		h.t.Fatalf("stop: %v\n%s", h.proc.err, h.log)
	}
}

// request speaks JSON with bearer and decodes the answer into out.
func request(t *testing.T, method, url, bearer string, in, out any) int {
	t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			t.Fatalf("%s %s: %s: %.300s", method, url, resp.Status, text)
		}
	}
	return resp.StatusCode
}

// Task starts a task with a workload's own key and returns its id and token.
func (h *House) Task(principal string) (id, token string) {
	h.t.Helper()
	var out struct {
		Task  struct{ ID string }
		Token string
		Error any
	}
	if code := request(h.t, "POST", h.Agent+"/v1/tasks", h.Keys[principal], map[string]any{"kind": "work", "purpose": "a test"}, &out); code != 201 {
		h.t.Fatalf("start task: %d %v", code, out.Error)
	}
	return out.Task.ID, out.Token
}

// Login returns an operator's session on the admin API.
func (h *House) Login(name string) string {
	h.t.Helper()
	var out struct{ Token string }
	if code := request(h.t, "POST", h.Console+"/api/v1/login", "", map[string]string{"name": name, "password": password}, &out); code != 200 {
		h.t.Fatalf("login %s: %d", name, code)
	}
	return out.Token
}

// An Approval is what the admin API says of a request.
type Approval struct {
	ID, Tenant, Digest, State, Args, Tool string
	MayVote                               string `json:"may_vote"`
}

// Approvals lists what an operator sees.
func (h *House) Approvals(session string) []Approval {
	h.t.Helper()
	var out struct{ Approvals []Approval }
	if code := request(h.t, "GET", h.Console+"/api/v1/approvals", session, nil, &out); code != 200 {
		h.t.Fatalf("approvals: %d", code)
	}
	return out.Approvals
}

// Pending waits for a pending request.
func (h *House) Pending(session string) (a Approval) {
	h.t.Helper()
	until(h.t, "a pending request", func() bool {
		for _, a = range h.Approvals(session) {
			if a.State == "pending" {
				return true
			}
		}
		return false
	})
	return a
}

// Vote answers a request and returns the HTTP status.
func (h *House) Vote(session string, a Approval, yes bool) int {
	h.t.Helper()
	var out json.RawMessage
	return request(h.t, "POST", h.Console+"/api/v1/approvals/"+a.Tenant+"/"+a.ID+"/vote", session,
		map[string]any{"approve": yes, "digest": a.Digest, "reason": "a test"}, &out)
}

// Verify checks the log with the program, as an auditor would.
func (h *House) Verify() string {
	h.t.Helper()
	out, err := exec.Command(binary, "audit", "verify", h.AuditDir).CombinedOutput()
	if err != nil {
		h.t.Fatalf("audit verify: %v\n%s", err, out)
	}
	return string(out)
}

// Events reads the log.
func (h *House) Events() (all []audit.Event) {
	h.t.Helper()
	for line, err := range audit.Read(h.AuditDir, 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, line.Event)
	}
	return all
}

// Count counts the log's events of a type.
func (h *House) Count(typ audit.Type) (n int) {
	h.t.Helper()
	for _, e := range h.Events() {
		if e.Type == typ {
			n++
		}
	}
	return n
}

// rpc makes a bare 2026-07-28 tools/call and returns the whole answer.
func (h *House) rpc(ctx context.Context, token, tool, args string) (string, error) {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}}}}`, tool, args)
	r, err := http.NewRequestWithContext(ctx, "POST", h.MCP, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Authorization": "Bearer " + token,
		"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool,
	} {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = errors.New(resp.Status)
	}
	return string(text), err
}
