package edge

import (
	"errors"
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

// TaskHeader names a running task where the bearer token does not.
const TaskHeader = "Toolbroker-Task"

// Handler serves /mcp and /v1/tasks, and nothing else. It checks first what a
// page in somebody's browser could forge, then who asks, and only then reads.
func (e *Edge) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/mcp", e.serveMCP)
	mux.HandleFunc("POST /v1/tasks", e.startTask)
	mux.HandleFunc("GET /v1/tasks/{id}", e.showTask)
	mux.HandleFunc("POST /v1/tasks/{id}/end", e.endTask)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Accel-Buffering", "no")
		loopback := onLoopback(r)
		switch {
		case !e.hostAllowed(r.Host, loopback):
			http.Error(w, "this server does not answer to that Host", http.StatusMisdirectedRequest)
			return
		case !e.originAllowed(r.Header.Values("Origin"), loopback):
			http.Error(w, "requests from that Origin are not allowed", http.StatusForbidden)
			return
		case r.URL.RawQuery != "" || r.URL.ForceQuery:
			// URLs end up in logs: a token must never be in one, so nothing is.
			http.Error(w, "no query parameters here; a token goes in the Authorization header", http.StatusBadRequest)
			return
		}
		for _, name := range single {
			if len(r.Header.Values(name)) > 1 {
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
		mux.ServeHTTP(w, r)
	})
}

// single are the headers that two readers could read differently if there were
// two of them.
var single = []string{
	"Authorization", "Content-Type", TaskHeader,
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
func credential(r *http.Request) (gateway.Credential, bool) {
	c := gateway.Credential{Task: r.Header.Get(TaskHeader), Source: r.RemoteAddr}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		c.Bearer = gateway.NewSecret(strings.TrimSpace(token))
	}
	return c, c.Task == "" || isID(c.Task)
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
	const plain = "application/json"
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != plain {
		http.Error(w, "Content-Type must be application/json", http.StatusUnsupportedMediaType)
		return nil, false
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		http.Error(w, "no Content-Encoding is accepted", http.StatusUnsupportedMediaType)
		return nil, false
	}
	if r.ContentLength > limit {
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		return nil, false
	}
	body := make([]byte, 0, max(r.ContentLength+1, 512))
	body, err := appendAll(body, http.MaxBytesReader(w, r.Body, limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		return nil, false
	} else if err != nil {
		http.Error(w, "the body could not be read", http.StatusBadRequest)
		return nil, false
	}
	return body, true
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
	return cred.Session != "" && errors.Is(err, gateway.ErrNotFound) && !errors.Is(err, gateway.ErrUnidentified)
}

// statusOf is the HTTP status of a refusal that has no JSON-RPC result to be in.
func statusOf(code gateway.Code) int {
	switch code {
	case gateway.Unidentified:
		return http.StatusUnauthorized
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
