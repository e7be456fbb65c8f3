package serve

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/operators"
	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A gateway that serves others can neither start nor name the stand-in Vault.
func TestServeCannotReachTheStandIn(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "toolbroker/brokers/secrets") {
		t.Fatal("the list of imports is not one")
	}
	for _, d := range deps {
		if strings.HasPrefix(d, "toolbroker/") && (strings.Contains(d, "standin") || strings.Contains(d, "examples") || strings.HasSuffix(d, "internal/dev")) {
			t.Errorf("serve imports %s", d)
		}
	}
}

var passwordHash = sync.OnceValues(func() (string, error) {
	return operators.HashPassword(gateway.NewSecret("correct horse battery staple"))
})

// newConfig is a config in a fresh directory, with more YAML at its end.
func newConfig(t testing.TB, more string) (c *config.Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	hash, err := passwordHash()
	if err != nil {
		t.Fatal(err)
	}
	text := `data_dir: data
replica: r1
agent: {listen: "127.0.0.1:0"}
console: {listen: "127.0.0.1:0"}
management: {listen: "127.0.0.1:0"` + "}\n" + `redis: embedded
policy: {file: policy.csv}
tenants: [acme]
operators: [{name: alice, password_hash: '` + hash + `', roles: [admin], tenants: [acme]}]
task_kinds: [{name: work, scope: [{tool: "**", action: "*", verdict: allow}]}]
` + more
	write(t, filepath.Join(dir, "config.yaml"), text)
	write(t, filepath.Join(dir, "policy.csv"), "p, agent:a, acme, work, **, call, , allow\n")
	c, problems := config.Load(filepath.Join(dir, "config.yaml"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return c, dir
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a house until the test ends or stop is called.
func start(t testing.TB, c *config.Config, log io.Writer) (h *House, stop func()) {
	t.Helper()
	h, err := New(t.Context(), c, Options{Mode: "serve", Version: "test", Logger: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	t.Cleanup(stop)
	for h.Ready(t.Context()) != nil {
		if len(done) > 0 || t.Context().Err() != nil {
			t.Fatal("it did not come up")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return h, stop
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	r, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

func TestManagementSaysOnlyHowItIs(t *testing.T) {
	c, _ := newConfig(t, "")
	h, stop := start(t, c, io.Discard)
	at := "http://" + h.probes.Addr().String()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/": 404, "/mcp": 404, "/debug/pprof/": 404, "/api/v1/login": 404} {
		if got, text := get(t, http.DefaultClient, at+path); got != want {
			t.Errorf("%s answers %d: %s", path, got, text)
		}
	}
	if _, text := get(t, http.DefaultClient, at+"/metrics"); !strings.Contains(text, `toolbroker_events_total{type="policy.loaded"} 1`) || !strings.Contains(text, `toolbroker_ready{mode="serve"} 1`) {
		t.Errorf("metrics: %s", text)
	}
	// The store is gone: it says so instead of letting calls through.
	h.store.Close()
	if got, text := get(t, http.DefaultClient, at+"/readyz"); got != 503 || !strings.Contains(text, "Redis") {
		t.Errorf("without Redis, /readyz answers %d: %s", got, text)
	}
	if got, _ := get(t, http.DefaultClient, at+"/healthz"); got != 200 {
		t.Error("without Redis it is not even alive")
	}
	stop()
	if err := h.Ready(context.Background()); err == nil {
		t.Error("ready after its end")
	}
}

func TestLabelsAreClosedSets(t *testing.T) {
	m := newMeter("serve", func() error { return nil }, func() bool { return false })
	for _, who := range []string{"agent:a", "agent:b"} {
		_ = m.count([]gateway.Fact{{Type: audit.CallDenied, Tenant: "t-" + who, Code: gateway.Denied, Principal: &gateway.Principal{ID: who}}}, nil)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.Contains(f.String(), "agent:") {
			t.Errorf("a caller is in the metrics: %s", f)
		}
	}
}

// certificate writes a self-signed certificate and returns whom to trust.
func newCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, filepath.Join(dir, "tls.crt"), string(cert))
	write(t, filepath.Join(dir, "tls.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return pool
}

func TestTLSAndItsRenewal(t *testing.T) {
	c, dir := newConfig(t, "")
	c.Console.TLS = config.TLS{Cert: config.Path(dir + "/tls.crt"), Key: config.Path(dir + "/tls.key")}
	old := newCertificate(t, dir)
	h, _ := start(t, c, io.Discard)
	page := func(trust *x509.CertPool) error {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}, DisableKeepAlives: true}}
		r, err := client.Get(h.ConsoleURL() + "/login")
		if err == nil {
			r.Body.Close()
		}
		return err
	}
	if err := page(old); err != nil || !strings.HasPrefix(h.ConsoleURL(), "https://") {
		t.Fatal(h.ConsoleURL(), err)
	}
	renewed := newCertificate(t, dir)
	h.Reload()
	if err := page(renewed); err != nil {
		t.Error("the renewed certificate is not shown:", err)
	}
	write(t, dir+"/tls.crt", "rubbish")
	h.Reload()
	if err := page(renewed); err != nil {
		t.Error("a bad certificate took the place of a good one:", err)
	}
}

func TestRefusesWhatOthersCanRead(t *testing.T) {
	for _, name := range []string{"data", "data/seal.key", "data/task.key", "data/checkpoint.key"} {
		c, dir := newConfig(t, "")
		h, err := New(t.Context(), c, Options{Mode: "serve"})
		if err != nil {
			t.Fatal(err)
		}
		h.close()
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if h, err := New(t.Context(), c, Options{Mode: "serve"}); err == nil {
			h.close()
			t.Errorf("%s is everybody's, and it served", name)
		} else if !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s: no way out in %q", name, err)
		}
	}
}

// What was open when a process died is closed on record by the next, once.
func TestBooksAreClosed(t *testing.T) {
	c, dir := newConfig(t, "")
	h, err := New(t.Context(), c, Options{Mode: "serve"})
	if err != nil {
		t.Fatal(err)
	}
	task := &audit.Task{ID: "task-1", Kind: "work", State: "running"}
	if err := h.audit.Append(t.Context(),
		audit.Event{Type: audit.CallAllowed, Tenant: "acme", Task: task, Call: &audit.Call{ID: "call-1"}, Workload: &audit.Workload{ID: "agent:a"}},
		audit.Event{Type: audit.CallAllowed, Tenant: "acme", Task: task, Call: &audit.Call{ID: "call-2"}},
		audit.Event{Type: audit.CallCompleted, Tenant: "acme", Task: task, Call: &audit.Call{ID: "call-2"}},
		audit.Event{Type: audit.ApprovalRequested, Tenant: "acme", Task: task, Approval: &audit.Approval{ID: "apr-1", State: "pending", Seq: 1, Need: []audit.Need{}, Votes: []audit.Vote{}}},
	); err != nil {
		t.Fatal(err)
	}
	h.close() // the log ends in order; the call and the request do not
	for range 2 {
		if h, err = New(t.Context(), c, Options{Mode: "serve"}); err != nil {
			t.Fatal(err)
		}
		h.close()
	}
	var said []string
	for line, err := range audit.Read(filepath.Join(dir, "data", "audit"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch e := line.Event; e.Type {
		case audit.CallInDoubt:
			said = append(said, e.Call.ID+" "+e.Outcome.Status)
		case audit.ApprovalCancelled:
			said = append(said, e.Approval.ID+" "+e.Approval.State)
		}
	}
	if want := []string{"call-1 in_doubt", "apr-1 cancelled"}; !slices.Equal(said, want) {
		t.Errorf("said %v, want %v", said, want)
	}
	if r, err := audit.Verify(filepath.Join(dir, "data", "audit"), audit.VerifyOptions{}); err != nil || r.Bad != nil {
		t.Error(r.Bad, err)
	}
}

func TestForwardedIsTheProxysWord(t *testing.T) {
	for _, tt := range []struct {
		trust bool
		sent  []string
		want  string
	}{
		{false, []string{"192.0.2.1"}, "10.0.0.9:5"},
		{true, []string{"192.0.2.1"}, "192.0.2.1:0"},
		{true, []string{"6.6.6.6, 192.0.2.1"}, "192.0.2.1:0"},
		{true, []string{"6.6.6.6", "192.0.2.1"}, "192.0.2.1:0"},
		{true, []string{"2001:db8::1"}, "[2001:db8::1]:0"},
		{true, []string{"not an address"}, "10.0.0.9:5"},
		{true, nil, "10.0.0.9:5"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = "10.0.0.9:5"
		for _, s := range tt.sent {
			r.Header.Add("X-Forwarded-For", s)
		}
		forwarded(tt.trust, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.RemoteAddr != tt.want {
				t.Errorf("%v %q: %s, want %s", tt.trust, tt.sent, r.RemoteAddr, tt.want)
			}
		})).ServeHTTP(nil, r)
	}
}

func TestEveryRoleIsTheGateways(t *testing.T) {
	for _, role := range gateway.Roles() {
		c, _ := newConfig(t, "")
		text, err := os.ReadFile(c.File)
		if err != nil {
			t.Fatal(err)
		}
		if _, problems := config.Parse("c.yaml", bytes.Replace(text, []byte("roles: [admin]"), []byte("roles: ["+role+"]"), 1)); len(problems) > 0 {
			t.Error(problems)
		}
	}
}

// A policy that is broken when it starts leaves the last accepted one in force.
func TestBrokenPolicyAtStart(t *testing.T) {
	c, dir := newConfig(t, "")
	write(t, dir+"/policy.csv", "p, agent:a, acme, work, **, call, , alow\n")
	if _, err := New(t.Context(), c, Options{Mode: "serve"}); err == nil || !strings.Contains(err.Error(), "policy.csv:1") {
		t.Fatalf("no policy at all, and: %v", err)
	}
	write(t, dir+"/policy.csv", "p, agent:a, acme, work, **, call, , allow\n")
	h, err := New(t.Context(), c, Options{Mode: "serve"})
	if err != nil {
		t.Fatal(err)
	}
	good := h.policy.Revision()
	h.close()
	write(t, dir+"/policy.csv", "p, agent:a, acme, work, **, call, , alow\n")
	if h, err = New(t.Context(), c, Options{Mode: "serve"}); err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if h.policy.Revision() != good {
		t.Error("another policy is in force")
	}
}

// A case beside the policy that fails keeps a new policy out, with its line and what
// was decided; a file cut short stays out, too, and what was accepted is on record.
func TestPolicyThatFailsItsCases(t *testing.T) {
	c, dir := newConfig(t, "")
	const good = "p, agent:a, acme, work, **, call, , allow\np, agent:b, acme, work, **, call, , allow\n"
	write(t, dir+"/policy.csv", good)
	write(t, dir+"/policy_test.yaml", "cases:\n- {name: its own, principal: agent:a, tenant: acme, task: work, tool: s/t, verdict: allow}\n")
	var said strings.Builder
	h, err := New(t.Context(), c, Options{Mode: "serve", Logger: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	was := h.policy.Revision()
	if n := strings.Count(said.String(), "[redundant]") + strings.Count(said.String(), "[wide-grant]"); n != 0 {
		t.Errorf("%d warnings about a good policy", n)
	}
	write(t, dir+"/policy.csv", strings.Replace(good, "agent:a, acme, work, **, call, , allow", "agent:a, acme, work, **, call, , approve", 1))
	h.Reload()
	f := h.policy.Refused()
	if h.policy.Revision() != was || f == nil || !strings.HasSuffix(f.File, "policy_test.yaml") || f.Line != 2 || !strings.Contains(f.Text, "its own: want allow, got approve: needs approval: an operator by ") {
		t.Fatalf("%s in force, refused: %v", h.policy.Revision(), f)
	}
	answer := httptest.NewRecorder()
	h.management().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(answer.Body.String(), "toolbroker_policy_refused 1\n") {
		t.Error("the metrics do not say that the file is refused")
	}
	answer = httptest.NewRecorder()
	h.management().ServeHTTP(answer, httptest.NewRequest("GET", "/readyz", nil))
	if !strings.Contains(answer.Body.String(), `"policy":"the file is refused, and `+was+` is in force: `) {
		t.Errorf("/readyz says %s", answer.Body)
	}
	write(t, dir+"/policy_test.yaml", "cases:\n- {name: its own, principal: agent:a}\n")
	h.Reload()
	if f := h.policy.Refused(); f == nil || !strings.Contains(f.Text, "policy_test.yaml:2: error: the case has no ") {
		t.Errorf("refused: %v", f)
	}
	if err := os.Remove(dir + "/policy_test.yaml"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/policy.csv", "p, *, acme, work, **, call, , allow\n")
	h.Reload()
	if f := h.policy.Refused(); f == nil || f.Code != "shrunk" {
		t.Errorf("refused: %v", f)
	}
	write(t, dir+"/policy.csv", "# toolbroker: replaces "+was+"\np, *, acme, work, **, call, , allow\n")
	h.Reload()
	if f := h.policy.Refused(); f != nil || h.policy.Revision() == was {
		t.Errorf("refused: %v", f)
	}
	if n := strings.Count(said.String(), "[wide-grant]"); n != 1 {
		t.Errorf("%d warnings of the sort, want 1", n)
	}
	answer = httptest.NewRecorder()
	h.management().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(answer.Body.String(), "toolbroker_policy_refused 0\n") || !strings.Contains(answer.Body.String(), "toolbroker_policy_warnings 2\n") {
		t.Error("the metrics do not say that the file is in force, with two warnings")
	}
	var details []string
	for line, err := range audit.Find(string(c.Audit.Dir), 0, audit.Filter{Types: []audit.Type{audit.PolicyLoaded, audit.PolicyRejected}}) {
		if err != nil {
			t.Fatal(err)
		}
		details = append(details, string(line.Event.Type)+" "+line.Event.Detail)
	}
	for i, want := range []string{"policy.loaded ", "its own: want allow, got approve", "the case has no", "[shrunk]", "[shrunk-meant]"} {
		if i >= len(details) || !strings.Contains(details[i], want) {
			t.Errorf("on record are %q, want %q at %d", details, want, i)
		}
	}
}

func TestScopeMistakeNamesItsKind(t *testing.T) {
	c, _ := newConfig(t, "")
	c.TaskKinds[0].Scope[0].Verdict = "perhaps"
	if _, err := New(t.Context(), c, Options{Mode: "serve"}); err == nil || !strings.Contains(err.Error(), "task kind work") {
		t.Error(err)
	}
}
