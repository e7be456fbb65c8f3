// Package servers is the way downstream: it knows what each MCP server offers, in
// whatever era it speaks, and carries decided calls there, and the answers and what
// a server asks meanwhile back, each with its sender's own bytes.
//
// It decides nothing and blanks nothing; it never sends what an agent sent but
// what was decided, with the credential of that call and no other. The
// protocol's pieces are mcp-go's where those keep bytes; the messages
// themselves are written and read here, because a typed client loses data.
package servers

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
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
	"syscall"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A Protocol pins how a server is spoken to.
type Protocol string

// Auto asks the server; the others skip what it says.
const (
	Auto   Protocol = "auto"
	Legacy Protocol = "legacy" // 2025-11-25 to 2025-03-26, as the server likes
	Modern Protocol = "modern" // 2026-07-28
	SSE    Protocol = "sse"    // 2024-11-05 over HTTP
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
	Refresh     time.Duration // how often it is asked what it offers anyway; zero: 60 s, and 10 min where listing takes a credential

	// Where its URL may lead. A name is held against these at each connection; one
	// that says that it is on this machine may be there, and no other may.
	Allow        []string // networks, such as 10.1.0.0/16, that it may be in whatever they are
	AllowPrivate bool     // it may be in any private network (RFC 1918, RFC 6598, unique local); not on the link, where metadata is

	// A server that can tell a call that it has seen gets a key of its own with each
	// tools/call; nothing is sent where neither is named.
	IdempotencyHeader string // the HTTP header that it reads the key from
	IdempotencyMeta   string // the _meta key that it reads it from

	Trust    Trust  // in definitions that no admin accepted; empty: FirstUse
	Digest   string // of the child's program, "sha256:<hex>"; another one is not started. Empty: it is recorded
	Floating bool   // the command may fetch whatever is newest, such as npx without a version; on record at each start
	User     string // whom the child runs as, by name or number, where we may choose (as root); empty: as we do, on record at each start
}

// Config is what [New] needs. Zero values are safe.
type Config struct {
	Servers []Server
	Tenants []string // every tenant there is

	// Discovery returns the credential for listing a server's tools, and what
	// gives it back. It is asked for servers that have a Class, for each tenant;
	// nil: tools are listed without a credential.
	Discovery func(ctx context.Context, tenant, server string) (gateway.Lease, func(), error)

	// Store shares between the replicas what was accepted of servers' definitions;
	// nil: it is in this process's memory only, for tests and embedders.
	Store *redis.Store
	// Keep names a file that remembers it as well, so that a store that forgot is
	// not taken for a first look; empty: there is none.
	Keep string
	// Changed is called when agents may see other definitions though no server
	// changed any: one was accepted, here or on another replica. Nil: nobody is told.
	Changed func()
	// Completed is called when a legacy server says, beside its calls, that the user of
	// an agent's session is done with a page that it sent them to; the elicitation's id
	// is the server's. It must not block. Nil: nobody is told.
	Completed func(session, elicitation string)

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
	spaces   map[string]string // of URIs, and whose each is
	prefixes map[string]bool   // of names
	feeds    []*feed
	pins     *pins
	pool     *pool
	launcher *launcher // nil without children
	ration   *ration
	scratch  string // folder for children that were given none; removed by Close

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
	space     string            // before its URIs, as agents see them; empty: they see its own
	spaces    map[string]string // of all servers: space to name; not written once New is done
	prefixes  map[string]bool   // likewise, before names
	way       way               // nil of a child
	blank     *http.Request     // to its URL, for copies; nil of a child
	agent     []string          // what we say that we are, in HTTP
	breaker   *breaker
	ids       atomic.Int64
	era       atomic.Int32
	feeds     []*feed
	tidy      func(func())
	completed func(session, elicitation string) // nil: nobody is told
	pins      *pins
	uid       *syscall.Credential // whom the child runs as; nil: as we do
	log       *slog.Logger
}

var (
	_        gateway.Servers     = (*Servers)(nil)
	_        gateway.Definitions = (*Servers)(nil)
	idShape                      = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	headerOK                     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	prefixOK                     = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)
)

// ownPrefix is before the names of what the gateway itself offers.
const ownPrefix = "toolbroker__"

// New checks the configuration and makes the parts. It reaches for no server:
// [Servers.Run] does. What New made must be closed.
func New(c Config) (*Servers, error) {
	c.Version = cmp.Or(c.Version, "dev")
	c.Idle = cmp.Or(c.Idle, 5*time.Minute)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Servers{config: c, log: c.Logger, pace: usualPace, servers: map[string]*server{}, told: map[string]bool{}, spaces: map[string]string{}, prefixes: map[string]bool{ownPrefix: true}, ration: newRation(), ready: make(chan struct{})}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.pool = &pool{links: map[key]*pooled{}, ended: map[life]time.Time{}, ending: map[life][]*pooled{}, stale: 30 * time.Second, asks: asks, stopped: s.stopped.Done(), tidy: s.background}
	s.view.Store(&map[string]*catalogue{})
	var err error
	if s.pins, err = newPins(s); err != nil {
		s.stop()
		return nil, err
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
	srv := &server{Server: conf, version: s.config.Version, spaces: s.spaces, prefixes: s.prefixes, breaker: &breaker{cools: cools}, tidy: s.background, completed: s.config.Completed, pins: s.pins, log: s.log}
	srv.Protocol = cmp.Or(conf.Protocol, Auto)
	srv.Trust = cmp.Or(conf.Trust, FirstUse)
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
	if conf.Class != "" && s.config.Discovery != nil {
		usual = 10 * time.Minute // a listing costs a credential's whole life on record
	}
	srv.Refresh = cmp.Or(conf.Refresh, usual)
	// Ids of two replicas should not meet at a server that mixes up its callers.
	srv.ids.Store(mrand.Int64N(1 << 40))

	unknown := slices.IndexFunc(srv.Tenants, func(t string) bool { return !slices.Contains(s.config.Tenants, t) })
	switch {
	case !idShape.MatchString(conf.Name):
		return nil, errors.New("a name is made of a-z, 0-9 and -")
	case conf.Name == "toolbroker", strings.HasPrefix(srv.prefix, ownPrefix):
		return nil, errors.New("this name is reserved")
	case s.servers[conf.Name] != nil:
		return nil, errors.New("there are two of this name")
	case !prefixOK.MatchString(srv.prefix):
		return nil, errors.New("a prefix is made of at most 64 of A-Z a-z 0-9 _ . -")
	case len(srv.Tenants) == 0:
		return nil, errors.New("it has no tenants")
	case unknown >= 0:
		return nil, fmt.Errorf("tenant %q is not configured", srv.Tenants[unknown])
	case !slices.Contains([]Protocol{Auto, Legacy, Modern, SSE}, srv.Protocol):
		return nil, errors.New("protocol is auto, legacy, modern or sse")
	case srv.Protocol == SSE && conf.URL == "":
		return nil, errors.New("protocol sse is of servers with a URL")
	case srv.prefix != "" && s.spaces[spaceOf(conf.Name)] != "":
		return nil, fmt.Errorf("its resources would have the same names as those of server %q", s.spaces[spaceOf(conf.Name)])
	case !validKey(conf.IdempotencyMeta) || conf.IdempotencyHeader != "" && !headerOK.MatchString(conf.IdempotencyHeader):
		return nil, errors.New("the name of its idempotency key is no good")
	case strings.HasPrefix(dashed(conf.IdempotencyHeader), "mcp-") || slices.Contains(reserved, dashed(conf.IdempotencyHeader)):
		return nil, errors.New("the header of its idempotency key means something else")
	case conf.IdempotencyHeader != "" && conf.URL == "":
		return nil, errors.New("an idempotency header is of servers with a URL")
	case !slices.Contains([]Trust{FirstUse, Review}, srv.Trust):
		return nil, errors.New("trust is first_use or review")
	case srv.Timeout < 0 || srv.MaxResponse < 0 || srv.Refresh < 0:
		return nil, errors.New("a limit is negative")
	case (conf.URL == "") == (len(conf.Command) == 0):
		return nil, errors.New("it needs a URL or a command, and not both")
	}
	s.prefixes[srv.prefix] = true
	if srv.prefix != "" {
		srv.space = spaceOf(conf.Name)
		s.spaces[srv.space] = conf.Name
	}
	if conf.URL != "" {
		if srv.Digest != "" || srv.User != "" || srv.Floating {
			return nil, errors.New("a digest, a user and a floating version are a command's")
		}
		return srv, s.prepareURL(srv)
	}
	return srv, s.prepareCommand(srv)
}

// reserved are headers that say what a request is, or who sends it.
var reserved = []string{"accept", "authorization", "connection", "content-length", "content-type", "cookie", "dpop", "host", "last-event-id",
	"origin", "proxy-authorization", "te", "transfer-encoding", "upgrade", "user-agent"}

// dashed is a header's name as some servers read it, to whom _ and - are one.
func dashed(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// validKey refuses a name of idempotency that is ours or MCP's to say.
func validKey(name string) bool {
	return name != "progressToken" && !strings.HasPrefix(name, ours) && !strings.HasPrefix(name, "io.modelcontextprotocol/") &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' })
}

func (s *Servers) prepareURL(srv *server) error {
	u, err := url.Parse(srv.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("its URL is not http or https") // nothing of it is shown: it may hold a password
	}
	if u.User != nil || u.Fragment != "" {
		return errors.New("its URL holds a password or a fragment; a credential belongs into a binding")
	}
	srv.plaintext = u.Scheme == "http" && !local(u)
	if srv.plaintext && srv.Class != "" {
		return errors.New("it needs a credential, which is not sent over plain http: use https")
	}
	srv.kind = overHTTP
	srv.addr = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	if srv.blank, err = http.NewRequest("", srv.URL, nil); err != nil {
		return errors.New("its URL is not one that a request can be sent to")
	}
	srv.agent = []string{"toolbroker/" + srv.version}
	srv.way, err = s.way(srv, srv.blank.URL)
	return err
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
	if why := floating(srv.argv); why != "" && !srv.Floating {
		return fmt.Errorf("its command may run another program tomorrow than today: %s; or take the risk by `unsafe: floating`", why)
	}
	if srv.Digest != "" && !digestShape.MatchString(srv.Digest) {
		return errors.New("a digest is sha256: and 64 hex digits")
	}
	if srv.User != "" {
		uid, gid, err := account(srv.User)
		if err != nil {
			return err
		}
		srv.uid = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
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
		if err := os.Chmod(s.scratch, 0o711); err != nil { // so that children of other users find theirs
			return err
		}
	}
	srv.dir = filepath.Join(s.scratch, srv.Name)
	if err := os.Mkdir(srv.dir, 0o700); err != nil || srv.uid == nil {
		return err
	}
	return os.Chown(srv.dir, int(srv.uid.Uid), int(srv.uid.Gid))
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
	defer s.sum(true)
	defer all.Wait()
	for _, f := range s.feeds {
		for _, why := range f.s.unsafe() {
			f.record(gateway.Fact{Type: audit.ServerUnsafe, Detail: why})
		}
		all.Go(func() { f.run(ctx) })
	}
	all.Go(func() { s.pins.watch(ctx) })
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
			s.sum(false)
			if s.launcher != nil { // what was left behind may have ended since
				s.launcher.clear(nil)
			}
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
		for _, srv := range s.servers {
			if srv.way != nil {
				srv.way.CloseIdleConnections()
			}
		}
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

// Offered implements [gateway.Servers].
func (s *Servers) Offered(tenant string, of gateway.Sort) []gateway.Tool {
	if c := (*s.view.Load())[tenant]; c != nil {
		return c.shelf(of).tools
	}
	return nil
}

// Resolve implements [gateway.Servers].
func (s *Servers) Resolve(tenant string, of gateway.Sort, alias string) (gateway.Tool, bool) {
	if c := (*s.view.Load())[tenant]; c != nil {
		return c.find(of, alias)
	}
	return gateway.Tool{}, false
}

// publish takes a feed's new listing into its tenants' catalogues.
func (s *Servers) publish(f *feed, found *listing) {
	s.pins.settle(f, found.all(), f.current == nil)
	s.pins.tellUnfit(f, found.unfit)
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
	for _, tenant := range f.tenants {
		fresh = append(fresh, s.rebuild(tenant)...)
	}
	return fresh
}

// rebuild puts a tenant's new catalogue in place, out of what its servers say and
// what of that was accepted. s.mu is held.
func (s *Servers) rebuild(tenant string) (fresh []clash) {
	var listings []*listing
	for _, f := range s.feeds {
		if f.current != nil && slices.Contains(f.tenants, tenant) {
			listings = append(listings, s.pins.admitted(tenant, f.current))
		}
	}
	c, withheld := merge(listings)
	for _, t := range withheld {
		if id := tenant + " " + t.ID(); !s.told[id] && len(s.told) < maxTools {
			s.told[id] = true
			fresh = append(fresh, clash{tenant, t})
		}
	}
	view := maps.Clone(*s.view.Load())
	view[tenant] = c
	s.view.Store(&view)
	return fresh
}

func (s *Servers) record(tenant string, facts ...gateway.Fact) {
	if s.config.Recorder == nil || len(facts) == 0 {
		return
	}
	if facts = s.ration.cut(tenant, facts); len(facts) > 0 {
		s.write(tenant, facts)
	}
}

func (s *Servers) write(tenant string, facts []gateway.Fact) {
	for i := range facts {
		facts[i].Tenant = tenant
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.config.Recorder.Record(ctx, facts...); err != nil {
		s.log.Error("a fact about a server is not on record", "type", facts[0].Type, "err", err)
	}
}

// sum puts on record how much was not written of hours that are over.
func (s *Servers) sum(all bool) {
	if s.config.Recorder == nil {
		return
	}
	for tenant, facts := range s.ration.over(all) {
		s.write(tenant, facts)
	}
}

// asTool names the server where a fact wants a tool.
func (srv *server) asTool() *gateway.Tool {
	return &gateway.Tool{Server: srv.Name, Kind: srv.kind, Addr: srv.addr}
}

// EndTask implements [gateway.Servers]; calls of the task that come later are not
// sent. It returns when its sessions and children are gone or ctx ends. A server
// that does not say that it ended a session is asked for a minute.
func (s *Servers) EndTask(ctx context.Context, tenant, task string) gateway.LinkEnds {
	ends, _ := s.pool.end(ctx, life{tenant: tenant, task: task})
	return ends
}

// EndSession implements [gateway.Servers]. It returns when all is gone or ctx ends,
// as EndTask does.
func (s *Servers) EndSession(ctx context.Context, session string) (gateway.Owner, gateway.LinkEnds) {
	if session == "" { // what has none is nobody's session
		return gateway.Owner{}, gateway.LinkEnds{}
	}
	ends, of := s.pool.end(ctx, life{session: session})
	return gateway.Owner{Tenant: of.tenant, Task: of.task, Principal: of.principal}, ends
}

// Hear implements [gateway.Servers].
func (s *Servers) Hear(ctx context.Context, n gateway.News) {
	for _, l := range s.pool.of(n.Session) {
		s.background(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.at().s.Timeout)
			defer cancel()
			l.at().hears(ctx, l, n)
		})
	}
}
