package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// TaskHeader names a running task where the bearer token does not, and TaskMeta
// does in a message's _meta, for clients that can set no header.
const (
	TaskHeader = "Toolbroker-Task"
	TaskMeta   = ours + "task"
)

// Handler serves /mcp, /v1/tasks, /oauth/token and what the first says of itself
// for discovery, and nothing else. It checks first what a page in somebody's
// browser could forge, then who asks, and only then reads; a token exchange is
// the one body that has to be read first, because who asks stands in it.
func (e *Edge) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tasks", e.startTask)
	mux.HandleFunc("GET /v1/tasks/{id}", e.showTask)
	mux.HandleFunc("POST /v1/tasks/{id}/end", e.endTask)
	mux.HandleFunc("POST /v1/tasks/{id}/delegate", e.delegateTask)
	mux.HandleFunc("POST /oauth/token", e.exchange)
	for _, path := range metadataPaths {
		mux.HandleFunc("GET "+path, e.metadata) // and HEAD
		mux.HandleFunc("OPTIONS "+path, e.metadata)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connOf(r).next()
		h := w.Header()
		h["Cache-Control"], h["X-Content-Type-Options"], h["X-Accel-Buffering"] = noStore, noSniff, noBuffers
		loopback := onLoopback(r)
		switch {
		case !e.hostAllowed(r.Host, loopback):
			http.Error(w, "this server does not answer to that Host", http.StatusMisdirectedRequest)
			return
		case !slices.Contains(metadataPaths, r.URL.Path) && !e.originAllowed(r.Header.Values("Origin"), loopback):
			http.Error(w, "requests from that Origin are not allowed", http.StatusForbidden)
			return
		case r.URL.RawQuery != "" || r.URL.ForceQuery:
			// URLs end up in logs: a token must never be in one, so nothing is.
			http.Error(w, "no query parameters here; a token goes in the Authorization header", http.StatusBadRequest)
			return
		}
		for _, name := range single {
			if len(r.Header[name]) > 1 {
				http.Error(w, name+" is given more than once", http.StatusBadRequest)
				return
			}
		}
		if !e.enter() {
			h.Set("Retry-After", "1")
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
			return
		}
		defer e.leave()
		if r.URL.Path == "/mcp" { // nearly every request, and spared the search
			e.serveMCP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

const headerDPoP = "Dpop" // in the writing that net/http keeps it in

// What every answer says; net/http only reads it.
var (
	noStore   = []string{"no-store"}
	noSniff   = []string{"nosniff"}
	noBuffers = []string{"no"}
	saysJSON  = []string{"application/json"}
)

// single are the headers that two readers could read differently if there were
// two of them.
var single = []string{
	"Authorization", headerDPoP, "Content-Type", TaskHeader,
	mcp.HeaderSessionID, mcp.HeaderProtocolVersion, mcp.HeaderMethod, mcp.HeaderName,
}

// onLoopback reports whether the request came in on a loopback address.
func onLoopback(r *http.Request) bool {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && isLoopback(addr.String())
}

func isLoopback(hostport string) bool {
	host := hostOnly(hostport)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

func (e *Edge) hostAllowed(host string, loopback bool) bool {
	return loopback && isLoopback(host) || slices.ContainsFunc(e.Hosts, func(allowed string) bool {
		return strings.EqualFold(allowed, host) || strings.EqualFold(allowed, hostOnly(host))
	})
}

// originAllowed lets through what is no browser's request, and pages that the
// config names.
func (e *Edge) originAllowed(origins []string, loopback bool) bool {
	if len(origins) == 0 {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	if slices.ContainsFunc(e.Origins, func(o string) bool { return strings.EqualFold(o, origins[0]) }) {
		return true
	}
	u, err := url.Parse(origins[0])
	return err == nil && loopback && (u.Scheme == "http" || u.Scheme == "https") && isLoopback(u.Host)
}

// credential is what the request presents, but for a session. It is false when
// a header cannot be what it should be.
func (e *Edge) credential(r *http.Request) (gateway.Credential, bool) {
	c := gateway.Credential{Task: r.Header.Get(TaskHeader), Source: r.RemoteAddr,
		Proof: gateway.Proof{DPoP: r.Header.Get(headerDPoP), Method: r.Method}}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	c.DPoP = strings.EqualFold(scheme, "DPoP")
	if c.DPoP || c.Proof.DPoP != "" {
		if base := e.base(r); base != "" {
			c.Proof.URL = base + r.URL.EscapedPath()
		}
	}
	if c.DPoP || strings.EqualFold(scheme, "Bearer") {
		c.Bearer = gateway.NewSecret(strings.TrimSpace(token))
	}
	// An Authorization that cannot be read is not made good by a certificate.
	if r.TLS != nil && (!c.Bearer.IsZero() || !presents(r)) {
		c.Proof.Peer = r.TLS.PeerCertificates
	}
	return c, c.Task == "" || isID(c.Task)
}

// identify asks who presents cred, before anything else is done for a request. A
// proof of possession is good once, so from here on cred says what it proved,
// for whoever asks again while the request is served.
func (e *Edge) identify(ctx context.Context, cred *gateway.Credential) (gateway.Principal, error) {
	p, err := e.Gateway.Identify(ctx, *cred)
	if err == nil {
		cred.Proof.DPoP, cred.Proof.Proven = "", p.Bound
	}
	return p, err
}

// presents reports whether the request has an Authorization header, of whatever
// kind.
func presents(r *http.Request) bool { return len(r.Header.Values("Authorization")) > 0 }

// base is this server's address as agents write it, without a path. It is empty
// where nobody said it and it cannot be known: a proxy may stand in front of
// whatever does not come in on loopback under a loopback name.
func (e *Edge) base(r *http.Request) string {
	if e.PublicURL != "" {
		return e.PublicURL
	}
	if !onLoopback(r) || !isLoopback(r.Host) {
		return ""
	}
	u := url.URL{Scheme: "http", Host: r.Host}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	base := u.String()
	if again, err := url.Parse(base); err != nil || again.Host != r.Host {
		return ""
	}
	return base
}

// isID reports whether s is in the closed grammar of ids.
func isID(s string) bool {
	return len(s) <= 64 && s != "" && strings.IndexFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
	}) < 0
}

// accepts says which kinds of answer the client can read. One that does not say
// gets plain JSON.
func accepts(h http.Header) (plain, events bool) {
	values := h.Values("Accept")
	if len(values) == 0 {
		return true, false
	} else if len(values) == 1 && values[0] == "application/json, text/event-stream" {
		return true, true // what nearly every client says
	}
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		kind, params, err := mime.ParseMediaType(part)
		if err != nil || strings.Trim(params["q"], "0.") == "" && params["q"] != "" {
			continue
		}
		switch kind {
		case "application/json", "application/*":
			plain = true
		case "text/event-stream", "text/*":
			events = true
		case "*/*":
			plain, events = true, true
		}
	}
	return plain, events
}

// readBody reads a JSON body of at most limit bytes, or writes why not.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	body, status, why := readKind(w, r, "application/json", limit)
	if why != "" {
		http.Error(w, why, status)
		return nil, false
	}
	return body, true
}

// readKind reads a body of one media type of at most limit bytes, or returns why
// not and the status that says so.
func readKind(w http.ResponseWriter, r *http.Request, want string, limit int64) (body []byte, status int, why string) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != want {
		return nil, http.StatusUnsupportedMediaType, "Content-Type must be " + want
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, http.StatusUnsupportedMediaType, "no Content-Encoding is accepted"
	}
	tooLarge := fmt.Sprintf("the body is too large: no more than %d bytes are taken", limit)
	if r.ContentLength > limit {
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	}
	body = make([]byte, 0, max(r.ContentLength+1, 512))
	body, err := appendAll(body, http.MaxBytesReader(w, r.Body, limit))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	} else if err != nil {
		return nil, http.StatusBadRequest, "the body could not be read"
	}
	return body, 0, ""
}

// appendAll is io.ReadAll into a buffer of the right size.
func appendAll(b []byte, r io.Reader) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b))
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		} else if err != nil {
			return b, err
		}
	}
}

// foreign reports whether a refusal says that the session is unknown or
// somebody else's: the one thing that an identified caller hears as 404.
func foreign(cred gateway.Credential, err error) bool {
	return cred.Session != "" && whyNot(err) == gateway.WhySession
}

// statusOf is the HTTP status of a refusal that has no JSON-RPC result to be in.
// [Edge.challenge] knows that of a caller who was not identified.
func statusOf(code gateway.Code) int {
	switch code {
	case gateway.TooMany:
		return http.StatusTooManyRequests
	case gateway.BadArguments:
		return http.StatusBadRequest
	case gateway.Internal, gateway.NoCredential, gateway.Cancelled:
		return http.StatusInternalServerError
	case gateway.Downstream:
		return http.StatusBadGateway
	}
	return http.StatusForbidden
}
