package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	"toolbroker/gateway/audit"
)

// A vault is a real Vault in dev mode, whose leased secrets are SSH one-time
// passwords: they need no other server and can be looked up.
type vault struct {
	addr, root string
	process    *os.Process
}

func newVault(t *testing.T) *vault {
	t.Helper()
	path := os.Getenv("TOOLBROKER_VAULT_BIN")
	if home, err := os.UserHomeDir(); path == "" && err == nil {
		path = filepath.Join(home, ".cache/toolbroker/vault-1.21.1/vault")
	}
	_, err := os.Stat(path)
	need(t, "Vault (TOOLBROKER_VAULT_BIN)", err == nil)
	v := &vault{addr: freeAddr(t), root: "root-of-a-test"}
	cmd := exec.Command(path, "server", "-dev", "-dev-no-store-token")
	cmd.Env = []string{"HOME=" + t.TempDir(), "VAULT_DEV_ROOT_TOKEN_ID=" + v.root, "VAULT_DEV_LISTEN_ADDRESS=" + v.addr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.process = cmd.Process
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	until(t, "Vault", func() bool { code, _ := v.ask(t, "GET", "sys/health", nil); return code == 200 })
	for _, c := range []struct {
		path string
		body map[string]any
	}{
		{"sys/mounts/ssh", map[string]any{"type": "ssh"}},
		{"ssh/roles/otp", map[string]any{"key_type": "otp", "default_user": "ubuntu", "cidr_list": "127.0.0.0/8"}},
		{"sys/policies/acl/tools", map[string]any{"policy": `path "ssh/creds/*" { capabilities = ["update"] }`}},
		{"auth/token/roles/toolbroker-task", map[string]any{"allowed_policies": "tools", "orphan": false, "token_type": "service", "token_no_default_policy": true, "renewable": false}},
	} {
		if code, text := v.ask(t, "POST", c.path, c.body); code/100 != 2 {
			t.Fatalf("%s: %d %s", c.path, code, text)
		}
	}
	return v
}

func (v *vault) ask(t *testing.T, method, path string, body any) (int, string) {
	t.Helper()
	var in io.Reader
	if body != nil {
		b, _ := json.Marshal(body)
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, "http://"+v.addr+"/v1/"+path, in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", v.root)
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer w.Body.Close()
	text, _ := io.ReadAll(w.Body)
	return w.StatusCode, string(text)
}

// live counts the leases that Vault holds.
func (v *vault) live(t *testing.T) int {
	t.Helper()
	code, text := v.ask(t, "LIST", "sys/leases/lookup/ssh/creds/otp", nil)
	if code == 404 {
		return 0
	}
	var out struct{ Data struct{ Keys []string } }
	if err := json.Unmarshal([]byte(text), &out); err != nil || code != 200 {
		t.Fatalf("leases: %d %s", code, text)
	}
	return len(out.Data.Keys)
}

// verify asks Vault whether a one-time password exists; asking uses it up, but
// not its lease.
func (v *vault) verify(string) error { return nil }

// yaml is the vault section of a config.
func (v *vault) yaml(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vault-token")
	write(t, file, v.root)
	return fmt.Sprintf("vault: {address: \"http://%s\", token_file: %s, token_role: toolbroker-task}\n", v.addr, file)
}

// Kill -9 at any moment: no pending approval is lost, no lease lives on after
// the restart, the log verifies, and what was under way is said to be in doubt.
func TestKillNine(t *testing.T) {
	v := newVault(t)
	arrived := make(chan struct{}, 1024)
	hang := newSlow(t, arrived)
	servers, extra := trackerYAML(t, v, hang, "call")
	servers += strings.ReplaceAll(strings.ReplaceAll(servers, "name: tracker", "name: pertask"), "mode: call", "mode: task")
	h := newHouse(t, Options{Redis: redis(t), Policy: `
p, agent:a, acme, work, */wait,   call, , allow
p, agent:a, acme, work, */danger, call, , approve 2 of group:sre
p, agent:*, *,    *,    task:work, start, , allow
`, Servers: servers, Extra: extra, Approvals: "{hold: 1s}"})
	_, token := h.Task("agent:a")
	bob := h.Login("bob")
	until(t, "tools", func() bool {
		out, err := h.rpc(t.Context(), token, "tracker__danger", `{"n":0}`)
		return err == nil && strings.Contains(out, "PENDING_APPROVAL")
	})
	if code := h.Vote(bob, h.Pending(bob), true); code != 200 {
		t.Fatal(code)
	}
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 4 { // other calls in each round: the same ones would be repetitions
			wg.Go(func() { _, _ = h.rpc(ctx, token, "tracker__wait", fmt.Sprintf(`{"n":%d}`, 10*round+i)) })
			wg.Go(func() { _, _ = h.rpc(ctx, token, "pertask__wait", fmt.Sprintf(`{"n":%d}`, 10*round+i)) })
		}
		// Once with all calls under way, then earlier and earlier in their lives.
		for range max(0, 8-2*round) {
			<-arrived
		}
		if round == 0 && v.live(t) == 0 {
			t.Error("nothing was leased; the test shows nothing")
		}
		h.Kill()
		cancel()
		wg.Wait()
		h.Verify()
		h.Start()
		until(t, "every lease of the killed process to end", func() bool { return v.live(t) == 0 })
		for len(arrived) > 0 {
			<-arrived
		}
	}
	// The request still waits, with the vote it had; the second one grants it.
	bob, carol := h.Login("bob"), h.Login("carol")
	p := h.Pending(carol)
	if code := h.Vote(bob, p, true); code == 200 {
		t.Error("bob's vote was forgotten")
	}
	if code := h.Vote(carol, p, true); code != 200 {
		t.Fatalf("vote after the kills: %d", code)
	}
	out, err := h.rpc(t.Context(), token, "tracker__danger", `{"n":0}`)
	if err != nil || !strings.Contains(out, `"text":"done"`) {
		t.Fatalf("%s %v", out, err)
	}
	h.Stop()
	t.Log(h.Verify())
	outcomes := map[string]int{}
	for _, e := range h.Events() {
		switch e.Type {
		case audit.CallAllowed:
			outcomes[e.Call.ID]++
		case audit.CallCompleted, audit.CallFailed, audit.CallCancelled, audit.CallInDoubt, audit.CallDenied:
			outcomes[e.Call.ID] += 100
		}
	}
	for id, n := range outcomes {
		if n%100 > 0 && n/100 != 1 {
			t.Errorf("call %s was allowed and has %d outcomes", id, n/100)
		}
	}
	if h.Count(audit.CallInDoubt) == 0 {
		t.Error("nothing was in doubt")
	}
	ends := map[string]int{}
	for _, e := range h.Events() {
		switch e.Type {
		case audit.SecretIssued:
			ends[e.Secret.ID] += 0
		case audit.SecretRevoked, audit.SecretExpired:
			ends[e.Secret.ID]++
		}
	}
	for id, n := range ends {
		if n != 1 {
			t.Errorf("lease %s has %d recorded ends", id, n)
		}
	}
}

// newSlow is a server whose tool wait never answers and whose tool danger does.
func newSlow(t *testing.T, arrived chan<- struct{}) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" {
			w.WriteHeader(405)
			return
		}
		var in struct {
			ID     json.RawMessage
			Method string
			Params struct{ Name string }
		}
		_ = json.NewDecoder(bufio.NewReader(r.Body)).Decode(&in)
		reply := func(result string) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, in.ID, result)
		}
		switch in.Method {
		case "initialize":
			reply(`{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"slow","version":"1"}}`)
		case "tools/list":
			schema := `{"type":"object","properties":{"n":{"type":"number"}},"additionalProperties":false}`
			reply(`{"tools":[{"name":"wait","inputSchema":` + schema + `},{"name":"danger","inputSchema":` + schema + `}]}`)
		case "tools/call":
			if in.Params.Name == "wait" {
				arrived <- struct{}{}
				<-r.Context().Done()
				return
			}
			reply(`{"content":[{"type":"text","text":"done"}]}`)
		default:
			if in.ID == nil {
				w.WriteHeader(202)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, in.ID)
		}
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// An ended task is refused at once, what hangs on it ends, and its running calls
// are cancelled.
func TestTaskEnd(t *testing.T) {
	v := newVault(t)
	arrived := make(chan struct{}, 16)
	servers, extra := trackerYAML(t, v, newSlow(t, arrived), "task")
	h := newHouse(t, Options{Redis: redis(t), Servers: servers, Extra: extra, Policy: `
p, agent:a, acme, work, tracker/wait,   call, , allow
p, agent:a, acme, work, tracker/danger, call, , approve
p, agent:*, *,    *,    task:work,      start, , allow
`})
	id, token := h.Task("agent:a")
	ended := make(chan string, 2)
	until(t, "the tools", func() bool {
		go func() { out, _ := h.rpc(t.Context(), token, "tracker__wait", `{"n":1}`); ended <- out }()
		select {
		case <-arrived:
			return true
		case <-ended:
			return false
		}
	})
	go func() { out, _ := h.rpc(t.Context(), token, "tracker__danger", `{"n":1}`); ended <- out }()
	alice := h.Login("alice")
	h.Pending(alice)
	if v.live(t) != 1 {
		t.Fatalf("%d leases", v.live(t))
	}
	if code := request(t, "POST", h.Console+"/api/v1/tasks/acme/"+id+"/end", alice, map[string]any{}, nil); code != 200 {
		t.Fatal(code)
	}
	for range 2 {
		if out := <-ended; !strings.Contains(out, "no_task") {
			t.Errorf("a call of the ended task: %s", out)
		}
	}
	if out, err := h.rpc(t.Context(), token, "tracker__wait", `{"n":1}`); err == nil && !strings.Contains(out, "no_task") {
		t.Errorf("a new call: %s", out)
	}
	until(t, "the lease to end", func() bool { return v.live(t) == 0 })
	for _, a := range h.Approvals(alice) {
		if a.State == "pending" {
			t.Errorf("still pending: %+v", a)
		}
	}
	h.Stop()
	h.Verify()
	told := map[audit.Type]int{}
	for _, e := range h.Events() {
		if e.Task != nil && e.Task.ID == id {
			told[e.Type]++
		}
	}
	for _, once := range []audit.Type{audit.TaskEnded, audit.SecretIssued, audit.SecretRevoked, audit.CallCancelled, audit.ApprovalCancelled} {
		if told[once] != 1 {
			t.Errorf("the log tells of %d %s", told[once], once)
		}
	}
}

// Redis away: calls are refused, not let through; Redis back: they go on.
func TestRedisAway(t *testing.T) {
	url := redis(t)
	h := newHouse(t, Options{Redis: url, Servers: "  - {name: slow, url: " + newSlow(t, make(chan struct{}, 1)) + "}\n", Policy: `
p, agent:a, acme, work, slow/danger, call, , allow
p, agent:*, *, *, task:work, start, , allow
`})
	_, token := h.Task("agent:a")
	until(t, "served", func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err == nil && strings.Contains(out, `"text":"done"`)
	})
	pause(t, url)
	paused := time.Now()
	until(t, "refused while Redis is away", func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err != nil || strings.Contains(out, "internal")
	})
	// What was confirmed before the pause counts for 100 ms.
	time.Sleep(time.Until(paused.Add(200 * time.Millisecond)))
	for time.Since(paused) < 4*time.Second {
		if out, err := h.rpc(t.Context(), token, "slow__danger", `{}`); err == nil && strings.Contains(out, `"text":"done"`) {
			t.Fatalf("let through without Redis, %s after it paused", time.Since(paused))
		}
	}
	until(t, "served again", func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err == nil && strings.Contains(out, `"text":"done"`)
	})
	h.Stop()
	h.Verify()
}

// pause makes a Redis answer nobody for ten seconds.
func pause(t *testing.T, url string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "redis://"), "/0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "CLIENT PAUSE 10000 ALL\r\n")
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "+OK\r\n" {
		t.Fatalf("pause: %q %v", b, err)
	}
}

// A full disk stops calls with a clear refusal, and nothing runs unrecorded; room
// made again, calls go on without a restart.
func TestDiskFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m,mode=0700"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	h := newHouse(t, Options{AuditDir: filepath.Join(dir, "audit"), Servers: "  - {name: slow, url: " + newSlow(t, make(chan struct{}, 1)) + "}\n", Policy: `
p, agent:a, acme, work, slow/danger, call, , allow
p, agent:*, *, *, task:work, start, , allow
`})
	_, token := h.Task("agent:a")
	served := func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err == nil && strings.Contains(out, `"text":"done"`)
	}
	until(t, "served", served)
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	until(t, "refused on a full disk", func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err == nil && strings.Contains(out, "INTERNAL")
	})
	if r, err := http.Get(h.Probes + "/readyz"); err != nil || r.StatusCode == 200 {
		t.Errorf("ready on a full disk: %v %v", r, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	until(t, "served again", served)
	h.Stop()
	h.Verify()
}

// Twenty thousand bad tokens leave a short log, and a neighbour unaffected.
func TestFlood(t *testing.T) {
	h := newHouse(t, Options{Servers: "  - {name: slow, url: " + newSlow(t, make(chan struct{}, 1)) + "}\n", Policy: `
p, agent:a, acme, work, slow/danger, call, , allow
p, agent:*, *, *, task:work, start, , allow
`})
	_, token := h.Task("agent:a")
	n := 20_000
	if testing.Short() {
		n = 1000
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range n / 8 {
				_, _ = h.rpc(t.Context(), fmt.Sprintf("tbk_a_%d%d", w, i), "slow__danger", `{}`)
			}
		})
	}
	wg.Wait()
	until(t, "served", func() bool {
		out, err := h.rpc(t.Context(), token, "slow__danger", `{}`)
		return err == nil && strings.Contains(out, `"text":"done"`)
	})
	h.Stop()
	h.Verify()
	total, size := int64(0), 0
	segments, _ := filepath.Glob(filepath.Join(h.AuditDir, "*.jsonl"))
	for _, f := range segments {
		size += len(readFile(t, f))
	}
	for _, e := range h.Events() {
		if e.Type == audit.IdentityRejected {
			total += e.Count
		}
	}
	if total < int64(n) || size > 1<<20 {
		t.Errorf("%d of %d refusals counted, in %d bytes", total, n, size)
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
