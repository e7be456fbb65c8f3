// Package serve builds a running gateway out of a config: it opens the brokers,
// hands them to the gateway, puts the doors in front of it, and takes all of it
// down in order.
//
// It decides nothing. It cannot construct the stand-in Vault: a test holds it
// to never importing that.
package serve

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"toolbroker/authz"
	"toolbroker/brokers"
	"toolbroker/brokers/approvals"
	"toolbroker/brokers/attempts"
	"toolbroker/brokers/handles"
	"toolbroker/brokers/identity"
	"toolbroker/brokers/operators"
	"toolbroker/brokers/secrets"
	"toolbroker/brokers/servers"
	"toolbroker/brokers/sessions"
	"toolbroker/brokers/tasks"
	"toolbroker/cmd/toolbroker/internal/cases"
	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/console"
	"toolbroker/gateway/edge"
)

// Grace is how long calls that run may go on once the process is told to end.
const Grace = 30 * time.Second

// Options are what the command knows and the config does not.
type Options struct {
	Mode    string // "serve" or "dev", on every record
	StandIn bool   // the Vault is a stand-in, and what it gives is labelled so
	Version string
	Logger  *slog.Logger
	Stdio   *Stdio // one agent on a pair of pipes, beside the listeners; or nil
}

// Stdio is one agent that speaks over pipes.
type Stdio struct {
	In   io.Reader
	Out  io.Writer
	Cred gateway.Credential
}

// A House is a gateway with all that it stands on. It is safe for concurrent use.
type House struct {
	cfg  *config.Config
	opts Options
	log  *slog.Logger

	audit    *audit.Log
	recorder metered
	meter    *meter
	policy   *authz.Store
	store    interface {
		Ping(context.Context) error
		Close() error
	}
	tasks     *tasks.Tasks
	approvals *approvals.Approvals
	secrets   *secrets.Broker
	servers   *servers.Servers
	sessions  *sessions.Sessions
	attempts  *attempts.Attempts
	operators *operators.Operators
	identity  *identity.Identity
	gateway   *gateway.Gateway
	edge      *edge.Edge

	agents, console, probes *listener
	requests                context.Context // of the console's; ends with shutdown
	endRequests             context.CancelFunc
	serving                 atomic.Bool
}

// New opens everything a config names and starts nothing: nobody is answered
// before Run. When it fails, what it opened is closed again.
func New(ctx context.Context, cfg *config.Config, opts Options) (*House, error) {
	h := &House{cfg: cfg, opts: opts, log: opts.Logger}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.requests, h.endRequests = context.WithCancel(context.Background())
	if err := h.open(ctx); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// open is in the order in which things need one another. The log is opened
// first and closed last: nothing happens that it could not say.
func (h *House) open(ctx context.Context) error {
	keepMemoryOurs(h.log)
	if err := privateDir(string(h.cfg.DataDir)); err != nil {
		return err
	}
	if err := h.openLog(ctx); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err := h.openPolicy(ctx); err != nil {
		return err
	}
	if err := h.openBrokers(ctx); err != nil {
		return err
	}
	return h.openDoors()
}

func (h *House) openLog(ctx context.Context) error {
	c := h.cfg
	key, err := audit.NewKey(filepath.Join(string(c.DataDir), "checkpoint.key"), c.Audit.Origin)
	if err != nil {
		return err
	}
	h.audit, err = audit.Open(audit.Config{
		Dir: string(c.Audit.Dir), Origin: c.Audit.Origin, Key: key, CheckpointEvery: c.Audit.CheckpointEvery,
		Gateway: audit.Gateway{
			Boot: boot, Build: build(), ConfigHash: c.Hash, Mode: h.opts.Mode, Replica: c.Replica, Version: h.opts.Version,
		},
	})
	if err != nil {
		return err
	}
	h.meter = newMeter(h.opts.Mode, func() error { return h.Ready(context.Background()) }, func() bool { return h.policy != nil && h.policy.Refused() != nil })
	h.recorder = metered{gateway.NewRecorder(h.audit), h.meter}
	return h.closeBooks(ctx)
}

// closeBooks says of every call that the last run dispatched and never saw the
// end of that it is in doubt, and of every approval request that died with an
// embedded Redis that it is cancelled. The keys make a second restart say
// nothing twice.
func (h *House) closeBooks(ctx context.Context) error {
	var said []audit.Event
	for _, e := range h.audit.Unfinished() {
		end := e
		end.Key = "closed-books:" + e.ID
		end.Decision, end.Policy = nil, nil
		switch {
		case e.Type == audit.CallAllowed:
			end.Type, end.Detail = audit.CallInDoubt, "the gateway ended while this call was running; whether the server did it is unknown"
			end.Outcome = &audit.Outcome{Code: string(gateway.Downstream), Status: "in_doubt", ResultDigest: audit.Unknown}
		case e.Type == audit.ApprovalRequested && h.cfg.Redis.Embedded:
			end.Type, end.Detail = audit.ApprovalCancelled, "it was kept in the process that has ended"
			if e.Approval != nil {
				a := *e.Approval
				a.State, a.Seq = string(gateway.ApprovalCancelled), a.Seq+1
				end.Approval = &a
			}
		default:
			continue
		}
		said = append(said, end)
	}
	if len(said) == 0 {
		return nil
	}
	h.log.Warn("the last run left work unfinished; it is on record now", "events", len(said))
	return h.audit.Append(ctx, said...)
}

// usedGrants reads from the log which grants are used up and could still be
// brought back by a Redis that forgot.
func (h *House) usedGrants() (map[string]time.Time, error) {
	used := map[string]time.Time{}
	for line, err := range audit.Find(string(h.cfg.Audit.Dir), 0, audit.Filter{Types: []audit.Type{audit.ApprovalConsumed}}) {
		if err != nil {
			return nil, fmt.Errorf("read used grants: %w", err)
		}
		if a := line.Event.Approval; a != nil {
			if until, err := time.Parse(time.RFC3339, a.Expires); err == nil && time.Now().Before(until) {
				used[a.ID] = until
			}
		}
	}
	return used, nil
}

// endedTasks reads from the log whose end has begun and could still be brought
// back by a Redis into which an old record was put.
func (h *House) endedTasks() (map[string][]string, error) {
	over := map[string][]string{}
	ends := audit.Filter{Types: []audit.Type{audit.TaskEnding, audit.TaskEnded, audit.TaskRevoked, audit.TaskExpired}}
	for line, err := range audit.Find(string(h.cfg.Audit.Dir), 0, ends) {
		if err != nil {
			return nil, fmt.Errorf("read ended tasks: %w", err)
		}
		if t := line.Event.Task; t != nil {
			if until, err := time.Parse(time.RFC3339, t.Expires); err == nil && time.Now().Before(until) {
				over[line.Event.Tenant] = append(over[line.Event.Tenant], t.ID)
			}
		}
	}
	return over, nil
}

func (h *House) openPolicy(ctx context.Context) error {
	c := h.cfg
	var err error
	h.policy, err = authz.Open(authz.StoreConfig{
		File: string(c.Policy.File), Model: string(c.Policy.Model), LastGood: filepath.Join(string(c.DataDir), "policy.last-good.csv"),
		Check: casesHold, Beside: []string{cases.Beside(string(c.Policy.File))},
		OnLoad: func(p *authz.Policy) {
			warnings := p.Warnings()
			h.record(ctx, gateway.Fact{Type: audit.PolicyLoaded, Policy: policyRef(p), Detail: accepted(warnings), Unbound: "a policy is nobody's task"})
			h.log.Info("policy in force", "file", p.File(), "rows", p.Rows(), "revision", p.Revision(), "warnings", len(warnings))
			for i, f := range warnings {
				if i == maxWarnings {
					h.log.Warn("more about the policy; `toolbroker policy check` says all", "warnings", len(warnings)-i)
					break
				}
				h.log.Warn("policy", "finding", f.String())
			}
			h.meter.warnings.Set(float64(len(warnings)))
			if h.edge != nil {
				h.edge.Changed()
			}
		},
		OnReject: func(findings []authz.Finding) {
			first := ""
			for _, f := range findings {
				if f.Severity == authz.SeverityError {
					h.log.Error("policy refused", "finding", f.String())
				}
				if first == "" && f.Severity == authz.SeverityError {
					first = f.String()
				}
			}
			h.record(ctx, gateway.Fact{Type: audit.PolicyRejected, Detail: first, Unbound: "a policy is nobody's task",
				Policy: &audit.PolicyRef{File: string(c.Policy.File), Model: authz.ModelHash(), Revision: audit.Unknown}})
		},
	})
	return err
}

// maxWarnings is how many warnings one load puts into the log, and how many cases
// that fail.
const maxWarnings = 20

// casesHold asks a policy the cases that stand beside it, where there are any. One
// that is answered otherwise refuses the file, and so does a file of cases that
// cannot be read.
func casesHold(p *authz.Policy) (found []authz.Finding) {
	file := cases.Beside(p.File())
	add := func(line int, text string) {
		found = append(found, authz.Finding{File: file, Line: line, Severity: authz.SeverityError, Code: "case", Text: text})
	}
	asked, wrong, err := cases.Read(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		add(0, err.Error())
	case len(wrong) > 0:
		for _, w := range wrong {
			add(0, "cannot be read: "+w)
		}
	}
	if len(found) > 0 {
		return found
	}
	for _, c := range p.Test(asked).Cases {
		if len(c.Wrong) > 0 && len(found) < maxWarnings {
			add(c.Line, c.Name+": "+strings.Join(c.Wrong, "; "))
		}
	}
	return found
}

// accepted is what an admin had to say in a file for it to be taken, or nothing.
func accepted(warnings []authz.Finding) string {
	for _, f := range warnings {
		if f.Code == "shrunk-meant" {
			return f.String()
		}
	}
	return ""
}

func policyRef(p *authz.Policy) *audit.PolicyRef {
	return &audit.PolicyRef{File: p.File(), Model: authz.ModelHash(), Revision: p.Revision(), Rows: p.Rows()}
}

func (h *House) record(ctx context.Context, f gateway.Fact) {
	if err := h.recorder.Durable(context.WithoutCancel(ctx), f); err != nil {
		h.log.Error("not recorded", "type", string(f.Type), "err", err)
	}
}

func (h *House) openBrokers(ctx context.Context) error {
	c := h.cfg
	seal, err := sealKey(string(c.SealKey))
	if err != nil {
		return fmt.Errorf("seal key: %w", err)
	}
	redisConfig := brokers.StoreConfig{Embedded: c.Redis.Embedded, Tenants: c.Tenants, SealKey: seal, AllowPlaintext: c.Redis.TLSProxy != "", Log: h.log}
	if !c.Redis.Embedded {
		if redisConfig.URL, redisConfig.TLS, err = redisWay(c.Redis); err != nil {
			return fmt.Errorf("redis: %w", err)
		}
	}
	store, err := brokers.OpenStore(redisConfig)
	if err != nil {
		return err
	}
	h.store = store
	if err := store.Ping(ctx); err != nil {
		// Not fatal: it may come up after us, and until then nothing is let through.
		h.log.Warn("Redis does not answer yet", "err", err)
	}

	signing, err := tasks.LoadKey(filepath.Join(string(c.DataDir), "task.key"))
	if err != nil {
		return err
	}
	over, err := h.endedTasks()
	if err != nil {
		return err
	}
	if h.tasks, err = tasks.New(tasks.Config{
		Store: store, Recorder: h.recorder, SigningKey: signing, Issuer: "toolbroker", Audience: "toolbroker",
		Over: over, Replica: c.Replica, Here: h.closeHere, Shared: h.closeShared, DisabledOwners: c.DisabledOperators(), Log: h.log,
	}); err != nil {
		return err
	}
	if h.operators, err = operators.New(operators.Config{Store: store, Operators: people(c)}); err != nil {
		return err
	}
	h.identity, err = identity.New(identity.Config{
		Keys: apiKeys(c), Issuers: issuers(c), TaskTokens: h.tasks.VerifyToken, Tenants: c.Tenants, Owners: names(c.Operators),
		ActDepth: c.Identity.ActDepth, PerSecond: c.Identity.VerificationsPerSecond, Once: identity.Once(store, nil), Log: h.log,
	})
	if err != nil {
		return err
	}
	if h.approvals, err = approvals.New(approvals.Config{Store: store, Recorder: h.recorder, UseWindow: c.Approvals.UseWindow, Log: h.log}); err != nil {
		return err
	}
	for _, file := range []config.Path{c.Vault.TokenFile, c.Vault.AppRole.SecretIDFile} {
		if file == "" {
			continue
		}
		if err := private(string(file)); err != nil && !errors.Is(err, fs.ErrNotExist) { // Vault can be without one until we log in
			return fmt.Errorf("vault: %w", err)
		}
	}
	journal := ""
	if c.Redis.Embedded {
		journal = filepath.Join(string(c.DataDir), "leases.journal")
	}
	if h.secrets, err = secrets.New(secrets.Config{
		Vault: vaultOf(c), Bindings: bindings(c), Store: store, Recorder: h.recorder, Replica: c.Replica, Boot: boot,
		Journal: journal, StandIn: h.opts.StandIn, Logger: h.log, Tasks: h.tasks,
	}); err != nil {
		return err
	}
	if h.servers, err = servers.New(servers.Config{
		Servers: downstreams(c, h.opts.StandIn), Tenants: c.Tenants, Discovery: h.discovery, Recorder: listening{h.recorder, h}, Logger: h.log, Version: h.opts.Version,
		Store: store, Keep: filepath.Join(string(c.DataDir), "pins.json"), Changed: func() { h.edge.Changed() },
		Completed: func(session, elicitation string) { h.edge.Completed(session, elicitation) },
	}); err != nil {
		return err
	}
	if h.sessions, err = sessions.New(sessions.Config{Store: store, MaxAnswer: max(4<<20, int(c.Agent.MaxBody)), Most: c.Limits.Sessions, Log: h.log}); err != nil {
		return err
	}
	if h.attempts, err = attempts.New(attempts.Config{Store: store, Log: h.log}); err != nil {
		return err
	}
	kept, err := handles.New(handles.Config{Store: store, MaxBytes: int(c.Agent.MaxBody) + largest(c), Log: h.log})
	if err != nil {
		return err
	}
	kinds, err := taskKinds(c)
	if err != nil {
		return err
	}
	reference, err := hkdf.Key(sha256.New, seal, nil, "toolbroker reference v1", 32)
	if err != nil {
		return err
	}
	state, err := hkdf.Key(sha256.New, seal, nil, "toolbroker requestState v1", 32)
	if err != nil {
		return err
	}
	used, err := h.usedGrants()
	if err != nil {
		return err
	}
	h.gateway, err = gateway.New(gateway.Config{
		Identity: h.identity, Tasks: h.tasks, Approvals: h.approvals, Leases: h.secrets, Servers: h.servers, Operators: h.operators, Sessions: h.sessions, Handles: kept,
		Recorder: h.recorder, Policy: h.policy, Definitions: h.servers, Kinds: kinds, Tenants: c.Tenants, ReferenceKey: reference, StateKey: state, Search: c.Agent.Catalogue == "search",
		Hold: c.Approvals.Hold, ApprovalTTL: c.Approvals.Expire, CallsPerSecond: float64(c.Limits.CallsPerSecond),
		Held: c.Limits.HeldPerPrincipal, HeldTenant: c.Limits.HeldPerTenant, UnderWay: c.Limits.UnderWay, UnderWayTenant: c.Limits.UnderWayTenant, TenantDay: int64(c.Limits.TenantPerDay), Used: used, SyncOutcomes: c.Audit.SyncOutcomes, Logger: h.log,
	})
	return err
}

// listening tells agents to list their tools again when a server's changed,
// which it hears of as the servers record it.
type listening struct {
	metered
	house *House
}

func (l listening) Record(ctx context.Context, all ...gateway.Fact) error {
	err := l.metered.Record(ctx, all...)
	if slices.ContainsFunc(all, func(f gateway.Fact) bool { return f.Type == audit.ToolsSeen || f.Type == audit.ToolsChanged }) {
		l.house.edge.Changed()
	}
	return err
}

// discovery lends the gateway's own credential for listing a server's tools.
func (h *House) discovery(ctx context.Context, tenant, server string) (gateway.Lease, func(), error) {
	return h.gateway.Discover(ctx, tenant, server)
}

// closeHere and closeShared close what hung on a task, here and in what replicas
// share. Tasks are kept before there is a gateway, which needs them.
func (h *House) closeHere(ctx context.Context, t gateway.Task) gateway.Closing {
	return h.gateway.CloseHere(ctx, t)
}

func (h *House) closeShared(ctx context.Context, t gateway.Task) gateway.Closing {
	return h.gateway.CloseShared(ctx, t)
}

func (h *House) openDoors() error {
	c := h.cfg
	var err error
	agents, pages, probes := limited(nil), limited(nil), limited(nil)
	pages.BaseContext = func(net.Listener) context.Context { return h.requests }
	if h.agents, err = listen("agent", c.Agent.Listen, c.Agent.TLS, agents, h.log); err != nil {
		return err
	}
	if h.agents.cert != nil && c.ClientCertificates() {
		// Asked for, not verified here: an agent may have none, and whose it is says the identity room.
		agents.TLSConfig.ClientAuth = tls.RequestClientCert
	}
	h.agents.Listener = edge.Watch(agents, h.agents.Listener)
	if h.console, err = listen("console", c.Console.Listen, c.Console.TLS, pages, h.log); err != nil {
		return err
	}
	if h.probes, err = listen("management", c.Management.Listen, c.Management.TLS, probes, h.log); err != nil {
		return err
	}
	link := strings.TrimSuffix(or(c.Approvals.Link, h.ConsoleURL()), "/")
	if h.edge, err = edge.New(edge.Config{
		Gateway: h.gateway, Sessions: h.sessions, Attempts: h.attempts, Version: h.opts.Version, Hosts: hosts(h.agentURL(), c.Agent.Hosts), Origins: origins(h.agentURL(), c.Agent.Origins),
		MaxBody: int64(c.Agent.MaxBody), Logger: h.log,
		PublicURL: h.agentURL(), Issuers: authorizationServers(c), Scopes: oauthScopes(c), MTLS: agents.TLSConfig != nil,
		ApprovalURL: func(tenant, id string) string {
			return link + "/approvals/" + url.PathEscape(tenant) + "/" + url.PathEscape(id)
		},
		Decided: func(ctx context.Context, tenant, id string) error {
			_, err := h.approvals.Wait(ctx, tenant, id)
			return err
		},
	}); err != nil {
		return err
	}
	agents.Handler = forwarded(c.Agent.TrustForwarded, h.edge.Handler())
	pages.Handler = forwarded(c.Console.TrustForwarded, console.New(console.Config{
		Gateway: h.gateway, PublicURL: h.ConsoleURL(), Hosts: c.Console.Hosts, Tenants: c.Tenants, Mode: h.opts.Mode, Logger: h.log,
	}))
	probes.Handler = h.management()
	return nil
}

// Run serves until ctx ends or a listener fails, then takes the house down:
// accept nothing more, let calls finish, give credentials back, close the log.
func (h *House) Run(ctx context.Context) error {
	defer h.close()
	// The brokers outlive the doors, so that a call that ends last can still be
	// recorded and its credential given back.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var work sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"tasks": h.tasks.Run, "approvals": h.approvals.Run, "secrets": h.secrets.Run, "gateway": h.gateway.Run, "identity": h.identity.Run,
		"sessions": h.sessions.Run, "attempts": h.attempts.Run,
		"servers": func(ctx context.Context) error { h.servers.Run(ctx); return nil },
	} {
		work.Go(func() {
			if err := run(inner); err != nil && inner.Err() == nil {
				h.log.Error("background work ended", "room", name, "err", err)
			}
		})
	}
	if h.cfg.Policy.Watch {
		work.Go(func() {
			if err := h.policy.Watch(inner); err != nil {
				h.log.Warn("policy", "err", err)
			}
		})
	}
	failed := make(chan error, 4)
	listeners := []*listener{h.agents, h.console, h.probes}
	for _, l := range listeners {
		go func() { failed <- l.serve() }()
		h.log.Info("listening", "listener", l.name, "address", l.Addr().String(), "tls", l.cert != nil)
	}
	if s := h.opts.Stdio; s != nil {
		go func() {
			h.settle(ctx) // nothing has been promised to the agent yet, so let it wait
			failed <- h.edge.ServeStdio(inner, s.In, s.Out, s.Cred)
		}()
	}
	h.serving.Store(true)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	h.log.Info("ending", "grace", Grace.String())
	h.serving.Store(false)
	h.endRequests()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), Grace)
	defer cancel()
	var doors sync.WaitGroup
	doors.Go(func() { _ = h.edge.Shutdown(drain) }) // it cut calls off at the end of the grace; they said so
	for _, l := range listeners {
		doors.Go(func() { l.shutdown(drain) })
	}
	doors.Wait()
	h.gateway.Finish(drain) // what runs for handles has the same time; nobody can begin more
	// Children hold credentials, so they end first.
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancelLast()
	if err := h.servers.Close(last); err != nil {
		h.log.Error("downstream sessions not closed in order", "err", err)
	}
	stop()
	work.Wait()
	if err := h.secrets.Close(last); err != nil {
		h.log.Error("credentials not given back; their ledger has them", "err", err)
	}
	return err
}

// settle waits until it can serve, or for some seconds.
func (h *House) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for h.Ready(ctx) != nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// close lets go of whatever is open, the log last.
func (h *House) close() {
	h.endRequests()
	for _, l := range []*listener{h.agents, h.console, h.probes} {
		if l != nil {
			l.Close()
		}
	}
	if h.store != nil {
		h.store.Close()
	}
	if h.audit != nil {
		if err := h.audit.Close(); err != nil {
			h.log.Error("audit log not closed in order", "err", err)
		}
	}
}

// Reload reads the policy and the certificates again. What is wrong is logged
// and on record, and what was in force stays.
func (h *House) Reload() {
	if err := h.policy.Reload(); err != nil {
		h.log.Error("policy not reloaded", "err", err)
	}
	for _, l := range []*listener{h.agents, h.console, h.probes} {
		if l.cert != nil {
			if err := l.cert.load(); err != nil {
				h.log.Error("certificate not reloaded", "listener", l.name, "err", err)
			}
		}
	}
}

// Ready says why it cannot serve now, or nil. It never holds a secret.
func (h *House) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if !h.serving.Load() {
		return errors.New("not serving")
	}
	if err := h.gateway.Fault(); err != nil {
		return err
	}
	if err := h.store.Ping(ctx); err != nil {
		return errors.New("no answer from Redis")
	}
	if !h.tasks.Fresh() {
		return errors.New("ended tasks are not confirmed")
	}
	select {
	case <-h.servers.Ready():
		return nil
	default:
		return errors.New("servers have not been asked for their tools")
	}
}

// Gateway is the one it serves.
func (h *House) Gateway() *gateway.Gateway { return h.gateway }

// Tools is a tenant's catalogue.
func (h *House) Tools(tenant string) []gateway.Tool {
	return h.servers.Offered(tenant, gateway.SortTool)
}

// Operator is a configured operator.
func (h *House) Operator(name string) (gateway.Operator, bool) { return h.operators.Human(name) }

// MCPURL is where agents connect.
func (h *House) MCPURL() string { return h.agentURL() + "/mcp" }

// ConsoleURL is where operators do.
func (h *House) ConsoleURL() string {
	return publicURL(h.cfg.Console.PublicURL, h.cfg.Console.TLSProxy, h.console)
}

func (h *House) agentURL() string {
	return publicURL(h.cfg.Agent.PublicURL, h.cfg.Agent.TLSProxy, h.agents)
}

func publicURL(configured, proxy string, l *listener) string {
	if configured != "" {
		return strings.TrimSuffix(configured, "/")
	}
	scheme := "http"
	if l.cert != nil || proxy != "" {
		scheme = "https"
	}
	return scheme + "://" + l.Addr().String()
}

func hosts(public string, more []string) []string {
	if u, err := url.Parse(public); err == nil {
		return append([]string{u.Host}, more...)
	}
	return more
}

func origins(public string, more []string) []string {
	if u, err := url.Parse(public); err == nil {
		return append([]string{u.Scheme + "://" + u.Host}, more...)
	}
	return more
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// forwarded takes a caller's address from the last entry of X-Forwarded-For,
// which is the one that the proxy in front appended.
func forwarded(trust bool, next http.Handler) http.Handler {
	if !trust {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if ip := net.ParseIP(strings.TrimSpace(all[len(all)-1])); ip != nil {
			r.RemoteAddr = net.JoinHostPort(ip.String(), "0")
		}
		next.ServeHTTP(w, r)
	})
}

// redisWay is the address with its password, and whom to trust there.
func redisWay(c config.Redis) (gateway.Secret, *tls.Config, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return gateway.Secret{}, nil, errors.New("the url is none")
	}
	if c.PasswordFile != "" {
		password, err := secret(string(c.PasswordFile))
		if err != nil {
			return gateway.Secret{}, nil, err
		}
		u.User = url.UserPassword(c.Username, password)
	} else if c.Username != "" {
		u.User = url.User(c.Username)
	}
	if c.CA == "" {
		return gateway.NewSecret(u.String()), nil, nil
	}
	pem, err := os.ReadFile(string(c.CA))
	if err != nil {
		return gateway.Secret{}, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return gateway.Secret{}, nil, fmt.Errorf("%s holds no PEM certificate", c.CA)
	}
	return gateway.NewSecret(u.String()), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// boot names this process's life among all.
var boot = strings.ToLower(rand.Text())
