package secrets

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/secrets/standin"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// canary is a static secret that must never be seen.
const canary = "canary-5f0c9a7e1b2d"

// A backend is a Vault, real or not, with what the tests need in it: the
// gateway's AppRole, the token role "toolbroker-task", and secrets that a child
// may or may not read.
type backend struct {
	name            string
	address         string
	root            string
	roleID, secret  string
	mount, path     string            // of the leased secret
	params          map[string]string // to get it
	field           string            // of it
	live            func(t *testing.T) (leases, tokens int)
	works           func(t *testing.T, value string) bool
	seal, unseal    func(t *testing.T)
	standin         *standin.Server
	wrap            string // how long the next answer stays wrapped
	leasePathPrefix string
}

func standIn(t *testing.T) *backend {
	t.Helper()
	s, err := standin.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Policy("toolbroker", map[string][]string{
		"auth/token/create/toolbroker-task": {"update"}, "auth/token/lookup-accessor": {"update"}, "auth/token/revoke-accessor": {"update"},
		"sys/leases/lookup": {"update"}, "sys/leases/renew": {"update"}, "sys/leases/revoke": {"update"},
	})
	s.Policy("toolbroker-tools", map[string][]string{"creds/*": {"read"}, "secret/data/tools/*": {"read"}})
	s.TokenRole("toolbroker-task", "toolbroker-tools")
	s.AppRole("gateway", "gateway-secret", time.Hour, true, "toolbroker")
	s.Creds("tool", 10*time.Minute)
	s.Creds("short", 2*time.Second)
	s.PutKV("tools/notes", map[string]any{"token": canary})
	s.PutKV("forbidden", map[string]any{"token": canary})
	return &backend{
		name: "stand-in", address: s.Address(), root: s.RootToken(), roleID: "gateway", secret: "gateway-secret",
		mount: "creds", path: "tool", field: "token", leasePathPrefix: "/v1/creds/",
		live:  func(*testing.T) (int, int) { return s.Live() },
		works: func(_ *testing.T, v string) bool { return s.Verify(v) == nil },
		seal:  func(*testing.T) { s.Seal() }, unseal: func(*testing.T) { s.Unseal() }, standin: s,
	}
}

// vaultBinary is a real Vault, if there is one here.
func vaultBinary(t *testing.T) string {
	t.Helper()
	name := os.Getenv("TOOLBROKER_VAULT_BIN")
	if cache, err := os.UserHomeDir(); name == "" && err == nil {
		name = filepath.Join(cache, ".cache", "toolbroker", "vault-1.21.1", "vault")
	}
	if _, err := os.Stat(name); err != nil {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
			t.Fatal("no real Vault, and TOOLBROKER_REQUIRE_REAL=1")
		}
		t.Skip("no real Vault (TOOLBROKER_VAULT_BIN): tested on the stand-in only")
	}
	return name
}

// realVault starts a Vault in dev mode and sets it up as docs/vault.md says. Its
// leased secrets are SSH one-time passwords: they need no other server, and
// revoking one really ends it.
func realVault(t *testing.T) *backend {
	t.Helper()
	binary := vaultBinary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	b := &backend{name: "real", address: "http://" + at, root: "root-of-a-test", roleID: "", mount: "ssh", path: "creds/otp",
		params: map[string]string{"ip": "127.0.0.1"}, field: "key", leasePathPrefix: "/v1/ssh/creds/"}
	cmd := exec.Command(binary, "server", "-dev", "-dev-no-store-token")
	cmd.Env = []string{"HOME=" + t.TempDir(), "VAULT_DEV_ROOT_TOKEN_ID=" + b.root, "VAULT_DEV_LISTEN_ADDRESS=" + at}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	key := make(chan string, 1)
	go func() { // the unseal key stands in what it prints
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if k, ok := strings.CutPrefix(lines.Text(), "Unseal Key: "); ok {
				key <- k
			}
		}
	}()
	unseal := <-key
	redistest.Await(t, "Vault answers", func() bool { status, _ := b.ask(t, "GET", "sys/health", nil); return status == 200 })

	hcl := documented(t)
	for _, c := range []struct {
		path string
		body map[string]any
	}{
		{"sys/mounts/ssh", map[string]any{"type": "ssh"}},
		{"ssh/roles/otp", map[string]any{"key_type": "otp", "default_user": "ubuntu", "cidr_list": "127.0.0.0/8"}},
		{"secret/data/tools/notes", map[string]any{"data": map[string]string{"token": canary}}},
		{"secret/data/forbidden", map[string]any{"data": map[string]string{"token": canary}}},
		{"sys/policies/acl/toolbroker", map[string]any{"policy": hcl["gateway"]}},
		{"sys/policies/acl/toolbroker-tools", map[string]any{"policy": `
			path "secret/data/tools/*" { capabilities = ["read"] }
			path "ssh/creds/*"         { capabilities = ["update"] }`}},
		{"auth/token/roles/toolbroker-task", map[string]any{"allowed_policies": "toolbroker-tools", "orphan": false, "token_type": "service",
			"token_no_default_policy": true, "renewable": false}},
		{"auth/token/roles/orphans", map[string]any{"allowed_policies": "toolbroker-tools", "orphan": true}},
		{"auth/token/roles/batch", map[string]any{"allowed_policies": "toolbroker-tools", "token_type": "batch", "orphan": true, "renewable": false}},
		{"sys/auth/approle", map[string]any{"type": "approle"}},
		{"auth/approle/role/toolbroker", map[string]any{"token_policies": "toolbroker", "token_period": "1h"}},
	} {
		if status, text := b.ask(t, "POST", c.path, c.body); status/100 != 2 {
			t.Fatalf("%s: %d %s", c.path, status, text)
		}
	}
	b.roleID = b.read(t, "GET", "auth/approle/role/toolbroker/role-id", "data", "role_id")
	b.secret = b.read(t, "POST", "auth/approle/role/toolbroker/secret-id", "data", "secret_id")
	b.live = func(t *testing.T) (int, int) {
		tokens := 0
		for _, a := range b.list(t, "auth/token/accessors") {
			if _, text := b.ask(t, "POST", "auth/token/lookup-accessor", map[string]any{"accessor": a}); strings.Contains(text, `"path":"auth/token/create/`) {
				tokens++
			}
		}
		return len(b.list(t, "sys/leases/lookup/ssh/creds/otp")), tokens
	}
	b.works = func(t *testing.T, v string) bool {
		status, _ := b.ask(t, "POST", "ssh/verify", map[string]any{"otp": v})
		return status == 200
	}
	b.seal = func(t *testing.T) { b.ask(t, "PUT", "sys/seal", nil) }
	b.unseal = func(t *testing.T) {
		b.ask(t, "PUT", "sys/unseal", map[string]any{"key": unseal})
		redistest.Await(t, "Vault is unsealed", func() bool { status, _ := b.ask(t, "GET", "sys/health", nil); return status == 200 })
	}
	return b
}

// documented are the policies of docs/vault.md, so that what it says is what works.
func documented(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/vault.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```hcl (\\w+)\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = m[2]
	}
	return all
}

func (b *backend) ask(t *testing.T, method, path string, body any) (int, string) {
	t.Helper()
	raw, _ := json.Marshal(body)
	if body == nil {
		raw = nil
	}
	r, err := http.NewRequest(method, b.address+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", b.root)
	if b.wrap != "" {
		r.Header.Set("X-Vault-Wrap-TTL", b.wrap)
	}
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer w.Body.Close()
	text, _ := io.ReadAll(w.Body)
	return w.StatusCode, string(text)
}

func (b *backend) read(t *testing.T, method, path string, keys ...string) string {
	t.Helper()
	_, text := b.ask(t, method, path, map[string]any{})
	if method == "GET" {
		_, text = b.ask(t, method, path, nil)
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		v = v.(map[string]any)[k]
	}
	return v.(string)
}

func (b *backend) list(t *testing.T, path string) []string {
	t.Helper()
	status, text := b.ask(t, "LIST", path, nil)
	if status == 404 {
		return nil
	}
	var v struct{ Data struct{ Keys []string } }
	if err := json.Unmarshal([]byte(text), &v); err != nil || status != 200 {
		t.Fatal(status, text)
	}
	return v.Data.Keys
}

// A proxy stands before a Vault and makes it fail.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	fault string
	lease string // path prefix of what issues leases
	urls  strings.Builder
	seen  http.Header // of the last request
	last  string      // its method and path

	// The request that hangs: the n-th from now but one, before it gets to
	// Vault or before its answer gets back.
	hangAt  int
	after   bool
	hanging chan struct{} // closed when it does
	release chan struct{}
}

// hang makes the n-th request from now hang; what it returns is closed when it does.
func (p *proxy) hang(n int, after bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangAt, p.after, p.hanging = n, after, make(chan struct{})
	return p.hanging
}

func newProxy(t *testing.T, b *backend) *proxy {
	to, err := url.Parse(b.address)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{lease: b.leasePathPrefix, release: make(chan struct{})}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		fault := p.fault
		fmt.Fprintln(&p.urls, r.URL)
		p.seen, p.last = r.Header.Clone(), r.Method+" "+r.URL.Path
		p.hangAt--
		hangs, hanging, after := p.hangAt == 0, p.hanging, p.after
		p.mu.Unlock()
		if hangs {
			if after {
				forward.ServeHTTP(httptest.NewRecorder(), r)
			}
			close(hanging)
			<-p.release
			panic(http.ErrAbortHandler)
		}
		lose := fault == gatewaytest.FaultLoseSecret && strings.HasPrefix(r.URL.Path, p.lease) ||
			fault == gatewaytest.FaultLoseToken && strings.HasPrefix(r.URL.Path, "/v1/auth/token/create")
		switch {
		case lose: // Vault does it, and nobody hears of it
			forward.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case fault == gatewaytest.FaultDown:
			panic(http.ErrAbortHandler)
		case fault == gatewaytest.FaultRate && r.URL.Path != "/v1/sys/health": // which Vault never limits
			w.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(w, `{"errors":["request path \"x\": rate limit quota exceeded"]}`)
		case fault == gatewaytest.FaultRevoke && r.URL.Path == "/v1/sys/leases/revoke":
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"errors":["failed to revoke entry: target is down, password `+canary+`"]}`)
		case fault == gatewaytest.FaultLookup && r.URL.Path == "/v1/sys/leases/lookup":
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, `{"errors":["internal error `+canary+`"]}`)
		default:
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { close(p.release); p.Close() })
	return p
}

func (p *proxy) set(fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// A world is a Vault, a Redis and a log, in which gateways live and die.
type world struct {
	*backend
	proxy   *proxy
	redis   *redistest.Server // nil: every process has its own
	facts   *gatewaytest.LeaseFacts
	journal string
	secret  string // file
	boots   int
	mu      sync.Mutex
	log     bytes.Buffer
}

func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func newWorld(t *testing.T, b *backend, r *redistest.Server) *world {
	w := &world{backend: b, proxy: newProxy(t, b), redis: r, facts: &gatewaytest.LeaseFacts{}}
	dir := t.TempDir()
	w.secret = filepath.Join(dir, "secret-id")
	if err := os.WriteFile(w.secret, []byte(b.secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r == nil {
		w.journal = filepath.Join(dir, "journal", "leases")
	}
	return w
}

func (w *world) config(t *testing.T, change ...func(*Config)) Config {
	leased := Binding{Tenants: []string{"acme"}, Engine: Leased, Mount: w.mount, Path: w.path, Params: w.params, Class: Revocable,
		Headers: map[string]string{"Authorization": "Bearer {{." + w.field + "}}"}}
	static := Binding{Tenants: []string{"acme"}, Engine: KV, Mount: "secret", Path: "tools/notes", Mode: PerCall,
		Env: map[string]string{"TOKEN": "{{.token}}"}}
	with := func(b Binding, server, mode string, change func(*Binding)) Binding {
		b.Server, b.Mode = server, mode
		if change != nil {
			change(&b)
		}
		return b
	}
	w.boots++
	c := Config{
		Vault: Vault{Address: w.proxy.URL, TokenRole: "toolbroker-task",
			Auth: Auth{AppRole: &AppRole{RoleID: w.roleID, SecretIDFile: w.secret}}},
		Bindings: []Binding{
			with(leased, "call", PerCall, nil), with(leased, "task", PerTask, nil),
			with(leased, "brief", PerTask, func(b *Binding) { b.TTL = 2 * time.Second }),
			with(static, "static", PerCall, nil), with(static, "static-task", PerTask, nil),
			with(static, "forbidden", PerCall, func(b *Binding) { b.Path = "forbidden" }),
			with(static, "missing", PerCall, func(b *Binding) { b.Path = "tools/missing" }),
			with(static, "unfit", PerCall, func(b *Binding) { b.Env = map[string]string{"TOKEN": "{{.nosuch}}"} }),
		},
		Recorder: w.facts, Replica: "r1", Boot: fmt.Sprintf("boot-%d", w.boots), Journal: w.journal,
		Logger: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if w.redis != nil {
		c.Store = w.redis.Open(t, "acme", "globex")
	} else {
		store, err := redis.Open(redis.Config{Embedded: true, Tenants: []string{"acme", "globex"}, SealKey: redistest.SealKey[:redis.SealKeySize]})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		c.Store = store
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// A process is a broker that runs, until it is killed.
type process struct {
	*Broker
	kill func()
}

func (w *world) start(t *testing.T, change ...func(*Config)) process {
	t.Helper()
	b, err := New(w.config(t, change...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	kill := func() { cancel(); <-done }
	t.Cleanup(kill)
	return process{b, kill}
}

func (p process) inLedger(t *testing.T, id string) bool {
	t.Helper()
	r, err := p.ledger.get(t.Context(), "acme", id)
	if err != nil {
		t.Fatal(err)
	}
	return r != nil
}

func (w *world) stored(t *testing.T) string {
	var all strings.Builder
	if w.redis != nil {
		for _, k := range w.redis.Do(t, "KEYS", "*").([]any) {
			fmt.Fprintln(&all, k)
			for _, c := range [][]any{{"GET", k}, {"HGETALL", k}, {"SMEMBERS", k}, {"ZRANGE", k, "0", "-1"}} {
				if kind := w.redis.Do(t, "TYPE", k); kind == map[string]string{"GET": "string", "HGETALL": "hash", "SMEMBERS": "set", "ZRANGE": "zset"}[c[0].(string)] {
					fmt.Fprintln(&all, w.redis.Do(t, c...))
				}
			}
		}
	}
	if w.journal != "" {
		b, err := os.ReadFile(w.journal)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proxy.mu.Lock()
	defer w.proxy.mu.Unlock()
	return all.String() + w.log.String() + w.proxy.urls.String()
}

// rig makes a world what the contract test wants.
func (w *world) rig(t *testing.T) *gatewaytest.LeasesRig {
	leases, tokens := w.live(t) // what an earlier test left to expire
	return &gatewaytest.LeasesRig{
		Facts: w.facts, Static: canary, Stored: w.stored,
		Start: func(t *testing.T) gatewaytest.LeasesProcess {
			p := w.start(t)
			return gatewaytest.LeasesProcess{Leases: p, InLedger: p.inLedger, Kill: p.kill, Close: p.Close}
		},
		Live: func(t *testing.T) (int, int) {
			l, k := w.live(t)
			return l - leases, k - tokens
		},
		Works: func(t *testing.T, l gateway.Lease) bool { return w.works(t, l.Values[0].Reveal()) },
		Fault: func(t *testing.T, fault string) func() {
			if fault == gatewaytest.FaultSealed {
				w.seal(t)
				return func() { w.unseal(t) }
			}
			w.proxy.set(fault)
			return func() { w.proxy.set("") }
		},
	}
}
