package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"toolbroker/gateway/audit"
)

// Replica starts one more process on the same Redis, with files of its own.
func (h *House) Replica(name string) *House {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Dir, "config.yaml"))
	if err != nil {
		h.t.Fatal(err)
	}
	dir := h.t.TempDir()
	r := &House{t: h.t, Dir: dir, Keys: h.Keys, Policy: filepath.Join(dir, "policy.csv"), AuditDir: filepath.Join(dir, "audit")}
	r.Agent, r.Console, r.Probes = "http://"+freeAddr(h.t), "http://"+freeAddr(h.t), "http://"+freeAddr(h.t)
	r.MCP = r.Agent + "/mcp"
	config := strings.NewReplacer(
		"replica: r1", "replica: "+name+"\nseal_key: "+filepath.Join(h.Dir, "data", "seal.key"),
		filepath.Join(h.Dir, "data"), filepath.Join(dir, "data"), h.AuditDir, r.AuditDir,
		strings.TrimPrefix(h.Agent, "http://"), strings.TrimPrefix(r.Agent, "http://"),
		strings.TrimPrefix(h.Console, "http://"), strings.TrimPrefix(r.Console, "http://"),
		strings.TrimPrefix(h.Probes, "http://"), strings.TrimPrefix(r.Probes, "http://"),
	).Replace(string(text))
	policy, err := os.ReadFile(h.Policy)
	if err != nil {
		h.t.Fatal(err)
	}
	write(h.t, filepath.Join(dir, "config.yaml"), config)
	write(h.t, r.Policy, string(policy))
	r.Start()
	return r
}

// children lists the processes that a process started and that live.
func children(t *testing.T, pid int) (all []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(after) > 1 && after[1] == fmt.Sprint(pid) && after[0] != "Z" {
			all = append(all, string(text))
		}
	}
	return all
}

// A task runs on three replicas, with everything that can hang on one: calls
// under way, a pending approval, leases, downstream sessions, stdio children,
// agents' sessions, a child task. It is ended on one replica. Within 100 ms no
// replica lets a call of it pass, and then nothing of it is left anywhere.
func TestNothingIsLeftOfAnEndedTask(t *testing.T) {
	v := newVault(t)
	arrived := make(chan struct{}, 64)
	servers, extra := trackerYAML(t, v, newSlow(t, arrived), "task")
	notes := t.TempDir()
	write(t, filepath.Join(notes, "a.md"), "A note.")
	servers += fmt.Sprintf(`
  - name: notes
    command: %s
    args: [dev, notes-server, --dir, %s]
    env: {NOTES_KEY: any}
`, binary, notes)
	url := redis(t)
	r1 := newHouse(t, Options{Redis: url, Servers: servers, Extra: extra, Policy: `
p, agent:a, acme, *, tracker/wait,   call,     , allow
p, agent:a, acme, *, tracker/danger, call,     , approve
p, agent:a, acme, *, notes/*,        call,     , allow
p, agent:a, acme, *, task:work,      delegate, , allow
p, agent:*, *,    *, task:work,      start,    , allow
`})
	replicas := []*House{r1, r1.Replica("r2"), r1.Replica("r3")}
	id, token := r1.Task("agent:a")
	notesCall := func(r *House, token string) bool {
		out, err := r.rpc(t.Context(), token, "notes__list_notes", `{}`)
		return err == nil && strings.Contains(out, `a.md`)
	}
	for _, r := range replicas {
		until(t, "the tools of every replica", func() bool { return notesCall(r, token) })
	}

	// A child, by the agent's own hand.
	out, err := r1.rpc(t.Context(), token, "toolbroker__delegate", `{"kind":"work","purpose":"a part of it"}`)
	if err != nil {
		t.Fatal(err)
	}
	var delegated struct {
		Result struct {
			StructuredContent struct{ Task, Token string }
		}
	}
	if err := json.Unmarshal([]byte(out), &delegated); err != nil || delegated.Result.StructuredContent.Token == "" {
		t.Fatalf("delegate: %s", out)
	}
	child := delegated.Result.StructuredContent
	for _, r := range replicas {
		until(t, "the child's calls", func() bool { return notesCall(r, child.Token) })
	}

	// Calls under way on each replica, of both; a pending approval; agents' sessions.
	var calls sync.WaitGroup
	for _, r := range replicas {
		for _, tok := range []string{token, child.Token} {
			calls.Go(func() {
				if out, err := r.rpc(context.WithoutCancel(t.Context()), tok, "tracker__wait", `{"n":1}`); err == nil && !strings.Contains(out, "no_task") {
					t.Errorf("a call under way ended with %s", out)
				}
			})
		}
		initialize(t, r, token)
	}
	for range 2 * len(replicas) {
		<-arrived
	}
	calls.Go(func() {
		_, _ = replicas[1].rpc(context.WithoutCancel(t.Context()), token, "tracker__danger", `{"n":7}`)
	})
	alice := replicas[2].Login("alice")
	replicas[2].Pending(alice)
	if v.live(t) == 0 || len(children(t, r1.proc.Pid)) == 0 {
		t.Fatal("nothing hangs on the task; the test shows nothing")
	}

	// Ended on one; hammered on all.
	if code := request(t, "POST", replicas[2].Console+"/api/v1/tasks/acme/"+id+"/end", alice, map[string]any{}, nil); code != 200 {
		t.Fatal(code)
	}
	over := time.Now()
	for _, r := range replicas {
		for _, tok := range []string{token, child.Token} {
			calls.Go(func() {
				for {
					asked := time.Now()
					out, err := r.rpc(context.WithoutCancel(t.Context()), tok, "notes__list_notes", `{}`)
					passed := err == nil && strings.Contains(out, "a.md")
					if passed && asked.Sub(over) > 100*time.Millisecond {
						t.Errorf("let through %v after its end", asked.Sub(over))
					}
					if asked.Sub(over) > time.Second {
						return
					}
				}
			})
		}
	}
	calls.Wait()

	closed := map[string]*audit.Event{}
	until(t, "both to be closed", func() bool {
		for _, r := range replicas {
			for _, e := range r.Events() {
				if e.Closing != nil && e.Type != audit.TaskEndUnproven {
					closed[e.Task.ID] = &e
				}
			}
		}
		return len(closed) == 2
	})
	for id, want := range map[string]struct {
		kind                                            audit.Type
		calls, approvals, leases, links, sess, children int
	}{
		// One credential per task and server, whichever replica uses it: the ledger's.
		id:         {audit.TaskEnded, 4, 1, 3, 6, 3, 1},
		child.Task: {audit.TaskRevoked, 3, 0, 3, 6, 0, 0},
	} {
		e := closed[id]
		c := e.Closing
		if e.Type != want.kind || c.Calls < want.calls || c.Approvals != want.approvals || c.Leases < 1 || c.Links < 3 || c.Sessions != want.sess || c.Children != want.children || len(c.Unproven) > 0 {
			t.Errorf("%s: %s %+v, want %+v", id, e.Type, c, want)
		}
		t.Logf("%s closed in %d ms: %+v", e.Type, c.TookMS, *c)
	}

	// Nothing in Redis but the two records that are remembered for a day.
	opt, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	rdb := goredis.NewClient(opt)
	defer rdb.Close()
	var left []string
	for _, key := range rdb.Keys(t.Context(), "*").Val() {
		for _, id := range []string{id, child.Task} {
			if strings.Contains(key, id) {
				left = append(left, strings.ReplaceAll(key, id, "ID"))
			}
		}
	}
	slices.Sort(left)
	remembered := regexp.MustCompile(`^tb:\{acme\}:(task|approvals-over|leases-over|handles-over):ID$`) // records, and that it is over
	for _, key := range left {
		if !remembered.MatchString(key) {
			t.Errorf("left in Redis: %s", key)
		}
	}
	// Nothing in Vault, no process, no session, no call downstream.
	if n := v.live(t); n != 0 {
		t.Errorf("%d leases live in Vault", n)
	}
	for _, r := range replicas {
		if all := children(t, r.proc.Pid); len(all) > 0 {
			t.Errorf("processes live on: %q", all)
		}
		if strings.Contains(r.log.String(), token) || strings.Contains(r.log.String(), child.Token) {
			t.Error("a token is in the operational log")
		}
		r.Stop()
		r.Verify()
	}
}

// A credential that cannot be ended is an alert two seconds after its task's end
// began; when Vault is back the task is closed.
func TestAnEndThatVaultDelays(t *testing.T) {
	v := newVault(t)
	arrived := make(chan struct{}, 16)
	servers, extra := trackerYAML(t, v, newSlow(t, arrived), "task")
	h := newHouse(t, Options{Redis: redis(t), Servers: servers, Extra: extra, Policy: `
p, agent:a, acme, work, tracker/wait, call,  , allow
p, agent:*, *,    *,    task:work,    start, , allow
`})
	id, token := h.Task("agent:a")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for { // until its tools are known
			if out, err := h.rpc(context.WithoutCancel(t.Context()), token, "tracker__wait", `{"n":1}`); err != nil || !strings.Contains(out, "Unknown tool") {
				return
			}
		}
	}()
	<-arrived
	if v.live(t) != 1 {
		t.Fatalf("%d leases", v.live(t))
	}
	if err := v.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	alice := h.Login("alice")
	if code := request(t, "POST", h.Console+"/api/v1/tasks/acme/"+id+"/end", alice, map[string]any{}, nil); code != 200 {
		t.Fatal(code)
	}
	<-done // its call does not wait for Vault
	find := func(kind audit.Type) (found *audit.Event) {
		for _, e := range h.Events() {
			if e.Type == kind && e.Task != nil && e.Task.ID == id {
				found = &e
			}
		}
		return found
	}
	until(t, "the alert", func() bool { return find(audit.TaskEndUnproven) != nil })
	if e := find(audit.TaskEndUnproven); !slices.Contains(e.Closing.Unproven, "credentials") {
		t.Errorf("the alert says %+v", e.Closing)
	}
	if find(audit.TaskEnded) != nil {
		t.Error("closed with a live credential")
	}
	if out, err := h.rpc(t.Context(), token, "tracker__wait", `{"n":1}`); err == nil && !strings.Contains(out, "no_task") {
		t.Errorf("a call meanwhile: %s", out)
	}
	if err := v.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "the closing", func() bool { return find(audit.TaskEnded) != nil })
	if e := find(audit.TaskEnded); len(e.Closing.Unproven) > 0 || e.Closing.Leases != 1 || v.live(t) != 0 {
		t.Errorf("closed with %+v, %d leases live", e.Closing, v.live(t))
	}
	h.Stop()
	h.Verify()
}

// initialize opens a legacy session for a token.
func initialize(t *testing.T, r *House, token string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", r.MCP, strings.NewReader(
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Authorization": "Bearer " + token} {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Mcp-Session-Id") == "" {
		t.Fatalf("initialize: %s", resp.Status)
	}
}
