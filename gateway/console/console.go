// Package console is the operators' face of the gateway: a page on which a
// human sees exactly what would be sent and says yes or no, and the same as an
// API for the command line.
//
// It holds no state and decides nothing; who may do what, and what a vote comes
// to, is the gateway's business. What agents wrote is shown with every hidden
// character made visible, and never as markup.
package console

import (
	"context"
	"embed"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"toolbroker/gateway"
)

// Gateway is what the page and the API ask for; [*gateway.Gateway] is one.
type Gateway interface {
	Login(ctx context.Context, name string, password gateway.Secret, source string) (gateway.Secret, gateway.Operator, error)
	Operator(ctx context.Context, token gateway.Secret) (gateway.Operator, error)
	Logout(ctx context.Context, token gateway.Secret) error
	ApprovalList(ctx context.Context, op gateway.Operator) ([]gateway.ApprovalRequest, error)
	ApprovalShow(ctx context.Context, op gateway.Operator, tenant, id string) (gateway.ApprovalRequest, error)
	MayVote(op gateway.Operator, r gateway.ApprovalRequest) error
	Vote(ctx context.Context, op gateway.Operator, tenant, id string, approve bool, digest, reason string) (gateway.ApprovalRequest, error)
	TaskStart(ctx context.Context, op gateway.Operator, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error)
	TaskList(ctx context.Context, op gateway.Operator, tenant string) ([]gateway.Task, error)
	TaskShow(ctx context.Context, op gateway.Operator, tenant, id string) (gateway.Task, error)
	TaskEnd(ctx context.Context, op gateway.Operator, tenant, id string) (gateway.Task, error)
	TaskDelegate(ctx context.Context, op gateway.Operator, tenant, parent string, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error)
	StopSet(ctx context.Context, op gateway.Operator, s gateway.Stop) error
	StopLift(ctx context.Context, op gateway.Operator, tenant string, kind gateway.StopKind, name string) error
	StopList(ctx context.Context, op gateway.Operator, tenant string) ([]gateway.Stop, error)
	Definitions(ctx context.Context, op gateway.Operator, tenant string) ([]gateway.Definition, error)
	AcceptDefinition(ctx context.Context, op gateway.Operator, tenant, server string, s gateway.Sort, name, hash string) (gateway.Definition, error)
	Changes(ctx context.Context) <-chan struct{}
}

// Config is what a console is made of.
type Config struct {
	Gateway   Gateway
	PublicURL string           // where operators reach it; its host is answered, and https makes cookies Secure
	Secure    bool             // cookies are Secure whatever PublicURL says
	Hosts     []string         // further Host headers answered, "host" for any port or "host:port"; with no PublicURL, loopback names
	Tenants   []string         // all tenants; an operator of "*" sees the tasks of each
	Mode      string           // "dev" puts a banner on every page
	Logger    *slog.Logger     // faults, without arguments or secrets; default discards
	Now       func() time.Time // default time.Now
}

// Limits on what a caller may send and hold open.
const (
	maxForm    = 64 << 10
	maxBody    = 256 << 10 // of an API request
	maxStreams = 256       // live pages at once; one more gets none and still works
)

//go:embed assets
var assets embed.FS

type console struct {
	Config
	hosts   []string
	streams atomic.Int64
}

// New returns the handler for the console's listener. It answers nothing that
// was not addressed to one of its hosts. The address of a request's peer counts
// as the operator's; behind a proxy, set RemoteAddr before it comes here. Live
// pages hold a request open until its context ends, so a server that shuts down
// must end the contexts of its requests.
func New(c Config) http.Handler {
	s := &console{Config: c, hosts: slices.Clone(c.Hosts)}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if u, err := url.Parse(c.PublicURL); err == nil && u.Host != "" {
		s.hosts = append(s.hosts, u.Host)
		s.Secure = s.Secure || u.Scheme == "https"
	} else if len(s.hosts) == 0 {
		s.hosts = []string{"localhost", "127.0.0.1", "::1"}
	}

	pages := http.NewServeMux()
	pages.HandleFunc("GET /static/{name}", static)
	pages.HandleFunc("GET /login", s.loginPage)
	pages.HandleFunc("POST /login", s.login)
	pages.Handle("POST /logout", s.with(s.logout))
	pages.Handle("GET /{$}", s.with(s.listPage))
	pages.Handle("GET /events", s.with(s.events))
	pages.Handle("GET /approvals/{tenant}/{id}", s.with(s.approvalPage))
	pages.Handle("GET /approvals/{tenant}/{id}/status", s.with(s.statusPart))
	pages.Handle("POST /approvals/{tenant}/{id}/vote", s.with(s.vote))
	pages.Handle("GET /tasks", s.with(s.tasksPage))
	pages.Handle("GET /tasks/{tenant}/{id}", s.with(s.taskPage))
	pages.Handle("POST /tasks/{tenant}/{id}/end", s.with(s.endTask))
	pages.Handle("GET /stops", s.with(s.stopsPage))
	pages.Handle("POST /stops/everything", s.with(s.stopEverything))
	pages.Handle("POST /stops/lift", s.with(s.lift))
	pages.Handle("POST /stops/{tenant}/{kind}", s.with(s.stop))
	pages.Handle("GET /tools", s.with(s.toolsPage))
	pages.Handle("POST /tools/accept", s.with(s.accept))
	pages.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.problem(w, r, gateway.Operator{}, gateway.ErrNotFound)
	})

	api := http.NewServeMux()
	api.HandleFunc("POST /api/v1/login", s.apiLogin)
	api.Handle("POST /api/v1/logout", s.bearer(s.apiLogout))
	api.Handle("GET /api/v1/approvals", s.bearer(s.apiApprovals))
	api.Handle("GET /api/v1/approvals/{tenant}/{id}", s.bearer(s.apiApproval))
	api.Handle("POST /api/v1/approvals/{tenant}/{id}/vote", s.bearer(s.apiVote))
	api.Handle("POST /api/v1/tasks", s.bearer(s.apiTaskStart))
	api.Handle("GET /api/v1/tasks", s.bearer(s.apiTasks))
	api.Handle("GET /api/v1/tasks/{tenant}/{id}", s.bearer(s.apiTask))
	api.Handle("POST /api/v1/tasks/{tenant}/{id}/end", s.bearer(s.apiTaskEnd))
	api.Handle("POST /api/v1/tasks/{tenant}/{id}/delegate", s.bearer(s.apiTaskDelegate))
	api.Handle("GET /api/v1/stops", s.bearer(s.apiStops))
	api.Handle("POST /api/v1/stops", s.bearer(s.apiStop))
	api.Handle("POST /api/v1/stops/lift", s.bearer(s.apiLift))
	api.Handle("GET /api/v1/definitions", s.bearer(s.apiDefinitions))
	api.Handle("POST /api/v1/definitions/accept", s.bearer(s.apiAccept))
	api.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		apiFail(w, http.StatusNotFound, "not_found", "There is nothing here.")
	})

	return s.guard(pages, api)
}

const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// guard stands before everything: what a browser may do with an answer, whom we
// answer, how much we read, and who may make us act.
func (s *console) guard(pages, api http.Handler) http.Handler {
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isAPI(r) {
			apiFail(w, http.StatusForbidden, "forbidden", "Requests from other sites are not answered.")
			return
		}
		s.problem(w, r, gateway.Operator{}, &gateway.Forbidden{Why: "This came from another site, so nothing was done."})
	}))
	door := sameOrigin.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isAPI(r) {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			api.ServeHTTP(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		pages.ServeHTTP(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if s.Secure {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if !s.answers(r.Host) {
			http.Error(w, "This host is not served here.", http.StatusMisdirectedRequest)
			return
		}
		door.ServeHTTP(w, r)
	})
}

func isAPI(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/api/") }

// answers reports whether a Host header is one of ours; a page elsewhere whose
// name was pointed at our address must not become our origin.
func (s *console) answers(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	return host != "" && slices.ContainsFunc(s.hosts, func(ours string) bool {
		return strings.EqualFold(ours, host) || strings.EqualFold(strings.Trim(ours, "[]"), name)
	})
}

func static(w http.ResponseWriter, r *http.Request) {
	kinds := map[string]string{"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "mark.svg": "image/svg+xml"}
	name := r.PathValue("name")
	if kinds[name] == "" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", kinds[name])
	http.ServeFileFS(w, r, assets, "assets/"+name)
}

// source is the address a request came from.
func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// named returns the tenant and id in a path, if they can be one's; nothing else
// reaches the gateway.
func named(r *http.Request) (tenant, id string, ok bool) {
	tenant, id = r.PathValue("tenant"), r.PathValue("id")
	return tenant, id, isID(tenant) && isID(id)
}

func isID(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// tenantsOf lists the tenants whose tasks an operator may ask for.
func (s *console) tenantsOf(op gateway.Operator) []string {
	if slices.Contains(op.Tenants, "*") {
		return s.Tenants
	}
	return op.Tenants
}
