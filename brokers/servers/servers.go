// Package servers is the way downstream: it knows what tools each MCP server
// offers, and carries decided calls there and the answers back, each with its
// sender's own bytes.
//
// It decides nothing and blanks nothing; it never sends what an agent sent but
// what was decided, with the credential of that call and no other. The
// protocol's pieces are mcp-go's where those keep bytes; the messages
// themselves are written and read here, because a typed client loses data.
package servers

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A Protocol pins how a server is spoken to.
type Protocol string

// Auto asks the server; the others skip what it says.
const (
	Auto   Protocol = "auto"
	Legacy Protocol = "legacy" // 2025-11-25
	Modern Protocol = "modern" // 2026-07-28
)

const (
	overHTTP = "http"
	stdio    = "stdio"
)

// A Server is one downstream MCP server: a URL, or a command to start.
type Server struct {
	Name    string   // "[a-z0-9-]{1,64}"; `toolbroker` is reserved
	Tenants []string // who may use it; empty: every tenant

	URL     string            // of its Streamable HTTP endpoint
	Command []string          // of a server over stdio: the program and its arguments, without a shell
	Env     map[string]string // of the child, besides PATH, HOME, LANG and the lease's
	Dir     string            // of the child, and its HOME; empty: a fresh empty folder

	Protocol    Protocol      // empty: Auto
	Timeout     time.Duration // of a call, and of a listing; zero: 30 s
	MaxResponse int64         // bytes of a reply; zero: 4 MiB
	Prefix      *string       // before the names agents see; nil: "<name>__"
	Meta        []string      // _meta keys of the agent's that are let through
	Class       string        // of the credential it needs; empty when it needs none
	TargetArg   string        // argument that names the object touched
	Refresh     time.Duration // how often its tools are listed anyway; zero: 60 s, and 10 min for a child or where listing takes a credential
}

// Config is what [New] needs. Zero values are safe.
type Config struct {
	Servers []Server
	Tenants []string // every tenant there is

	// Discovery returns the credential for listing a server's tools, and what
	// gives it back. It is asked for servers that have a Class, for each tenant;
	// nil: tools are listed without a credential.
	Discovery func(ctx context.Context, tenant, server string) (gateway.Lease, func(), error)

	Recorder gateway.Recorder // of what servers and their tools do; nil: nobody
	Logger   *slog.Logger     // nil: nowhere
	Version  string           // ours, as servers see it; empty: "dev"
	Idle     time.Duration    // after which an unused session or child is closed; zero: 5 min

	// Proxy says which HTTP proxy to use; nil: none, whatever the environment says.
	Proxy func(*http.Request) (*url.URL, error)
	// TLS is for https servers; nil: the system's roots.
	TLS *tls.Config
}

// Servers implements [gateway.Servers]. It is safe for concurrent use.
type Servers struct {
	config   Config
	log      *slog.Logger
	pace     pace
	servers  map[string]*server
	feeds    []*feed
	pool     *pool
	launcher *launcher // nil without children
	scratch  string    // folder for children that were given none; removed by Close
	web      *http.Transport

	mu   sync.Mutex      // orders publications
	told map[string]bool // clashes of aliases that are on record
	view atomic.Pointer[map[string]*catalogue]

	ready    chan struct{}
	stop     context.CancelFunc
	stopped  context.Context
	tasks    sync.WaitGroup // what goes on in the background
	tasksMu  sync.Mutex
	tasksEnd bool
	closing  sync.Once
}

// server is a Server, ready for use.
type server struct {
	Server
	kind      string
	prefix    string
	addr      string   // for the record
	argv      []string // with an absolute path
	dir       string
	plaintext bool // http, and not to this machine
	version   string
	meta      []byte // what each modern request says about us
	transport *http.Transport
	ids       atomic.Int64
	era       atomic.Int32
	feeds     []*feed
	tidy      func(func())
	log       *slog.Logger
}

var (
	_        gateway.Servers = (*Servers)(nil)
	idShape                  = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	prefixOK                 = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)
)

// New checks the configuration and makes the parts. It reaches for no server:
// [Servers.Run] does. What New made must be closed.
func New(c Config) (*Servers, error) {
	c.Version = cmp.Or(c.Version, "dev")
	c.Idle = cmp.Or(c.Idle, 5*time.Minute)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Servers{config: c, log: c.Logger, pace: usualPace, servers: map[string]*server{}, told: map[string]bool{}, ready: make(chan struct{})}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.pool = &pool{links: map[key]*pooled{}, ended: map[[2]string]time.Time{}, ending: map[[2]string][]*pooled{}, stale: 30 * time.Second, tidy: s.background}
	s.view.Store(&map[string]*catalogue{})
	s.web = &http.Transport{
		Proxy:                  c.Proxy,
		TLSClientConfig:        c.TLS,
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // bytes are the server's; and nothing small becomes big
		MaxIdleConns:           512,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
	for _, conf := range c.Servers {
		srv, err := s.prepare(conf)
		if err != nil {
			s.Close(context.Background())
			return nil, fmt.Errorf("server %q: %w", conf.Name, err)
		}
		s.servers[srv.Name] = srv
		// Where listing takes a credential it is a tenant's, and so is what is listed.
		asks := c.Discovery != nil && srv.Class != ""
		groups := [][]string{srv.Tenants}
		if asks {
			groups = slices.Collect(slices.Chunk(srv.Tenants, 1))
		}
		for _, tenants := range groups {
			f := &feed{all: s, s: srv, tenants: tenants, asks: asks, nudged: make(chan struct{}, 1), tried: make(chan struct{})}
			s.feeds, srv.feeds = append(s.feeds, f), append(srv.feeds, f)
		}
	}
	return s, nil
}

func (s *Servers) prepare(conf Server) (*server, error) {
	srv := &server{Server: conf, version: s.config.Version, meta: modernMeta(s.config.Version), transport: s.web, tidy: s.background, log: s.log}
	srv.Protocol = cmp.Or(conf.Protocol, Auto)
	srv.Timeout = cmp.Or(conf.Timeout, 30*time.Second)
	srv.MaxResponse = cmp.Or(conf.MaxResponse, 4<<20)
	srv.prefix = conf.Name + "__"
	if conf.Prefix != nil {
		srv.prefix = *conf.Prefix
	}
	if len(conf.Tenants) == 0 {
		srv.Tenants = s.config.Tenants
	}
	usual := time.Minute
	if len(conf.Command) > 0 || conf.Class != "" && s.config.Discovery != nil {
		usual = 10 * time.Minute // a listing costs a process, or a credential's whole life on record
	}
	srv.Refresh = cmp.Or(conf.Refresh, usual)
	// Ids of two replicas should not meet at a server that mixes up its callers.
	srv.ids.Store(mrand.Int64N(1 << 40))

	unknown := slices.IndexFunc(srv.Tenants, func(t string) bool { return !slices.Contains(s.config.Tenants, t) })
	switch {
	case !idShape.MatchString(conf.Name):
		return nil, errors.New("a name is made of a-z, 0-9 and -")
	case conf.Name == "toolbroker":
		return nil, errors.New("this name is reserved")
	case s.servers[conf.Name] != nil:
		return nil, errors.New("there are two of this name")
	case !prefixOK.MatchString(srv.prefix):
		return nil, errors.New("a prefix is made of at most 64 of A-Z a-z 0-9 _ . -")
	case len(srv.Tenants) == 0:
		return nil, errors.New("it has no tenants")
	case unknown >= 0:
		return nil, fmt.Errorf("tenant %q is not configured", srv.Tenants[unknown])
	case !slices.Contains([]Protocol{Auto, Legacy, Modern}, srv.Protocol):
		return nil, errors.New("protocol is auto, legacy or modern")
	case srv.Timeout < 0 || srv.MaxResponse < 0 || srv.Refresh < 0:
		return nil, errors.New("a limit is negative")
	case (conf.URL == "") == (len(conf.Command) == 0):
		return nil, errors.New("it needs a URL or a command, and not both")
	}
	if conf.URL != "" {
		return srv, srv.prepareURL()
	}
	return srv, s.prepareCommand(srv)
}

func (srv *server) prepareURL() error {
	u, err := url.Parse(srv.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("its URL is not http or https") // nothing of it is shown: it may hold a password
	}
	if u.User != nil || u.Fragment != "" {
		return errors.New("its URL holds a password or a fragment; a credential belongs into a binding")
	}
	ip := net.ParseIP(u.Hostname())
	srv.plaintext = u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
	if srv.plaintext && srv.Class != "" {
		return errors.New("it needs a credential, which is not sent over plain http: use https")
	}
	srv.kind = overHTTP
	srv.addr = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	return nil
}

func (s *Servers) prepareCommand(srv *server) error {
	path, err := exec.LookPath(srv.Command[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return fmt.Errorf("its command: %w", err)
	}
	for name := range maps.Keys(srv.Env) {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return errors.New("a name in its environment is no good")
		}
	}
	srv.argv = append([]string{path}, srv.Command[1:]...)
	srv.kind, srv.addr = stdio, path
	if s.launcher == nil {
		s.launcher = newLauncher()
	}
	if srv.dir = srv.Dir; srv.dir != "" {
		return nil
	}
	if s.scratch == "" {
		if s.scratch, err = os.MkdirTemp("", "toolbroker-"); err != nil {
			return err
		}
	}
	srv.dir = filepath.Join(s.scratch, srv.Name)
	return os.Mkdir(srv.dir, 0o700)
}

// Run keeps the catalogue fresh until ctx ends or the Servers are closed; then
// it returns nil. It is called once.
func (s *Servers) Run(ctx context.Context) error {
	s.tasksMu.Lock()
	if s.tasksEnd {
		s.tasksMu.Unlock()
		return nil
	}
	s.tasks.Add(1) // Close waits for this too
	s.tasksMu.Unlock()
	defer s.tasks.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range s.feeds {
		all.Go(func() { f.run(ctx) })
	}
	all.Go(func() {
		defer close(s.ready)
		grace := time.NewTimer(s.pace.grace)
		defer grace.Stop()
		for _, f := range s.feeds {
			select {
			case <-f.tried:
			case <-grace.C:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	sweep := time.NewTicker(min(s.config.Idle/4+1, 30*time.Second))
	defer sweep.Stop()
	for {
		select {
		case <-sweep.C:
			s.pool.sweep(s.config.Idle)
		case <-ctx.Done():
			return nil
		}
	}
}

// Ready is closed when every server was asked for its tools once, or when Run
// has waited 3 s for those that do not answer. They are asked on.
func (s *Servers) Ready() <-chan struct{} { return s.ready }

// Close ends everything: Run, sessions, children. It returns when all is gone
// or ctx ends. Calls on their way fail.
func (s *Servers) Close(ctx context.Context) error {
	s.stop()
	s.pool.close(ctx)
	s.tasksMu.Lock()
	s.tasksEnd = true
	s.tasksMu.Unlock()
	done := make(chan struct{})
	go func() { s.tasks.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("close the servers: %w", ctx.Err())
	}
	s.closing.Do(func() {
		s.web.CloseIdleConnections()
		if s.launcher != nil {
			s.launcher.stop()
		}
		if s.scratch != "" {
			err = errors.Join(err, os.RemoveAll(s.scratch))
		}
	})
	return err
}

// background runs f beside everything else, and has Close wait for it.
func (s *Servers) background(f func()) {
	s.tasksMu.Lock()
	defer s.tasksMu.Unlock()
	if s.tasksEnd {
		go f() // it ends by itself; nobody waits
		return
	}
	s.tasks.Go(f)
}

// Tools returns a tenant's catalogue, sorted by alias; not to be changed.
func (s *Servers) Tools(tenant string) []gateway.Tool {
	if c := (*s.view.Load())[tenant]; c != nil {
		return c.tools
	}
	return nil
}

// Resolve finds a tool by the name agents see.
func (s *Servers) Resolve(tenant, alias string) (gateway.Tool, bool) {
	if c := (*s.view.Load())[tenant]; c != nil {
		if i, ok := c.byName[alias]; ok {
			return c.tools[i], true
		}
	}
	return gateway.Tool{}, false
}

// publish takes a feed's new listing into its tenants' catalogues.
func (s *Servers) publish(f *feed, found *listing) {
	for _, c := range s.swap(f, found) {
		s.log.Warn("tool withheld: another has the same alias", "tenant", c.tenant, "server", c.tool.Server, "tool", c.tool.Name)
		s.record(c.tenant, gateway.Fact{Type: audit.ToolsChanged, Tool: &c.tool, Detail: "withheld: another tool has the same alias"})
	}
}

// A clash is a tool that a tenant does not see because of another's alias.
type clash struct {
	tenant string
	tool   gateway.Tool
}

// swap puts new catalogues in place and returns the clashes not told before.
func (s *Servers) swap(f *feed, found *listing) (fresh []clash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.current = found
	view := maps.Clone(*s.view.Load())
	for _, tenant := range f.tenants {
		var listings []*listing
		for _, other := range s.feeds {
			if other.current != nil && slices.Contains(other.tenants, tenant) {
				listings = append(listings, other.current)
			}
		}
		c, withheld := merge(listings)
		view[tenant] = c
		for _, t := range withheld {
			if id := tenant + " " + t.ID(); !s.told[id] && len(s.told) < maxTools {
				s.told[id] = true
				fresh = append(fresh, clash{tenant, t})
			}
		}
	}
	s.view.Store(&view)
	return fresh
}

func (s *Servers) record(tenant string, facts ...gateway.Fact) {
	if s.config.Recorder == nil || len(facts) == 0 {
		return
	}
	facts = slices.Clone(facts)
	for i := range facts {
		facts[i].Tenant = tenant
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.config.Recorder.Record(ctx, facts...); err != nil {
		s.log.Error("a fact about a server is not on record", "type", facts[0].Type, "err", err)
	}
}

// asTool names the server where a fact wants a tool.
func (srv *server) asTool() *gateway.Tool {
	return &gateway.Tool{Server: srv.Name, Kind: srv.kind, Addr: srv.addr}
}

// heard takes a notification that a server sent beside a call.
func (srv *server) heard(method string) {
	if method == "notifications/tools/list_changed" {
		for _, f := range srv.feeds {
			f.nudge()
		}
	}
}

// Forward sends a decided call and returns the answer.
//
// The answer's bytes are the server's own, except that keys in our name space
// are gone from _meta and from an error's data. A result that is not the end
// of the call (input_required, task) is an error. Progress goes to s, with the
// call's id as its token. An error that wraps ErrNotSent means that nothing of
// the call reached the server; one that wraps context.DeadlineExceeded or
// context.Canceled says which it was. A call is sent at most once.
func (s *Servers) Forward(ctx context.Context, f gateway.Forward, out gateway.Stream) (gateway.Result, error) {
	srv := s.servers[f.Tool.Server]
	if srv == nil || !slices.Contains(srv.Tenants, f.Principal.Tenant) || f.Task.Tenant != "" && f.Task.Tenant != f.Principal.Tenant {
		return gateway.Result{}, notSent(errors.New("no such server for this tenant"))
	}
	ctx, cancel := context.WithTimeout(ctx, srv.Timeout)
	defer cancel()
	l, give, err := s.link(ctx, srv, f)
	if err != nil {
		for _, f := range srv.feeds {
			f.nudge() // perhaps it is another server by now
		}
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, notSent(err))
	}
	defer give()

	c := call{method: "tools/call"}
	if f.Progress && out != nil {
		c.token = cmp.Or(f.CallID, rand.Text())
		c.progress = func(params json.RawMessage) error {
			return out.Notify(ctx, "notifications/progress", scrub(params, "_meta"))
		}
	}
	var meta []byte
	if l.speaks() == modernEra {
		meta = srv.meta
	}
	if c.params, err = callParams(f, c.token, meta); err != nil {
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, notSent(err))
	}
	if meta != nil && srv.kind == overHTTP {
		c.header = mirror(f.Tool, c.params)
	}
	m, err := l.do(ctx, c)
	switch {
	case err != nil:
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, err)
	case m.fault != nil:
		return gateway.Result{Error: scrub(m.fault, "data")}, nil
	}
	if err := finished(m.result); err != nil {
		return gateway.Result{}, fmt.Errorf("server %s: %w", srv.Name, err)
	}
	return gateway.Result{Raw: scrub(m.result, "_meta")}, nil
}

// link returns a way to the server for one call. In the modern era over HTTP
// that is an address; else it is shared by calls of the same owner only.
func (s *Servers) link(ctx context.Context, srv *server, f gateway.Forward) (link, func(), error) {
	if s.stopped.Err() != nil {
		return nil, nil, errClosed
	}
	e := era(srv.era.Load())
	if srv.kind == overHTTP && e == modernEra {
		l, err := s.dial(srv, f.Lease, modernEra)
		return l, func() {}, err
	}
	k := key{server: srv.Name, tenant: f.Principal.Tenant, task: f.Task.ID, lease: f.Lease.ID}
	if srv.kind == overHTTP {
		k.principal, k.session = f.Principal.ID, f.Session
	}
	return s.pool.take(ctx, k, f.Lease.PerCall, func(ctx context.Context) (link, error) {
		ctx, cancel := context.WithTimeout(ctx, srv.Timeout)
		defer cancel()
		switch {
		case e == legacyEra:
			l, _, err := s.session(ctx, srv, f.Lease)
			return l, err
		case e == modernEra:
			return s.dial(srv, f.Lease, modernEra)
		}
		l, g, err := s.greet(ctx, srv, f.Lease)
		if err == nil {
			srv.era.Store(int32(g.era))
		}
		return l, err
	})
}

// mirror makes the headers that repeat a modern request's params.
func mirror(t gateway.Tool, params []byte) map[string]string {
	all := map[string]string{mcp.HeaderName: t.Name}
	if strings.Contains(string(t.Schema), "x-mcp-header") {
		maps.Copy(all, mcp.GenerateParamHeaders(&mcp.Tool{Name: t.Name, RawInputSchema: t.Schema}, params))
	}
	return all
}

// EndTask implements [gateway.Servers]; calls of the task that come later are not
// sent. It returns when its sessions and children are gone or ctx ends.
func (s *Servers) EndTask(ctx context.Context, tenant, task string) (int, error) {
	closed, left := s.pool.endTask(ctx, tenant, task)
	if left > 0 {
		return closed, fmt.Errorf("%d sessions or children of the task are not closed: %w", left, ctx.Err())
	}
	return closed, nil
}
