// Package edge is the agents' door: it speaks MCP over HTTP and stdio, in every
// era on one endpoint, the agents' REST for tasks, and as much OAuth as lets a
// client that knows nothing but a URL find out whom to ask for a token (RFC 9728)
// and trade that for a task's (RFC 8693).
//
// It reads each message once and strictly, finds out who asks, and hands what has
// a downstream to the gateway; it carries back what a server notifies and asks
// meanwhile, and tells those who listen what changed for them. What this server
// says of itself (initialize, ping, server/discover) is said by mcp-go behind its
// checks. It decides nothing and records nothing: that is the gateway's.
package edge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"toolbroker/gateway"
)

// Gateway is what the door needs of a [*gateway.Gateway]. Every error is a
// [*gateway.Refusal].
type Gateway interface {
	Identify(context.Context, gateway.Credential) (gateway.Principal, error)
	InSession(context.Context, gateway.Principal, gateway.Credential) error
	Admit(context.Context, gateway.Credential) (gateway.Principal, gateway.Task, error)
	OpenSession(ctx context.Context, cred gateway.Credential, session, protocol string, caps json.RawMessage) error
	CloseSession(context.Context, gateway.Credential) error
	RootsChanged(context.Context, gateway.Credential) error
	List(context.Context, gateway.Credential, gateway.Sort, gateway.CallRef) ([]gateway.Tool, error)
	Shown(context.Context, gateway.Credential, gateway.Sort) (string, error)
	Hears(context.Context, gateway.Credential, gateway.Note) bool
	Malformed(context.Context, gateway.Credential)
	Pace(gateway.Principal) error
	Handle(context.Context, gateway.Call, gateway.Stream) (gateway.Result, error)
	Follow(ctx context.Context, c gateway.Call, updated func()) error
	Look(ctx context.Context, c gateway.Call) (gateway.Handle, error)
	Kept(ctx context.Context, c gateway.Call) (gateway.Handle, error)
	Watch(ctx context.Context, c gateway.Call, moved func()) error
	Update(ctx context.Context, c gateway.Call) (gateway.Handle, error)
	Withdraw(ctx context.Context, c gateway.Call) (gateway.Handle, error)
	StartTask(context.Context, gateway.Credential, gateway.TaskSpec) (gateway.Task, gateway.Secret, error)
	ShowTask(ctx context.Context, cred gateway.Credential, id string) (gateway.Task, error)
	EndTask(ctx context.Context, cred gateway.Credential, id string) (gateway.Task, error)
	Delegate(ctx context.Context, cred gateway.Credential, parent string, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error)
	Exchange(context.Context, gateway.Credential, gateway.Exchange) (gateway.Task, gateway.Secret, error)
}

// Config is everything a door is made of.
type Config struct {
	Gateway      Gateway
	Sessions     gateway.Sessions // the same as the gateway's; for what legacy sessions send
	Attempts     gateway.Attempts // calls that are under way, or whose answers did not arrive; nil: a repeated call is a new one
	Name         string           // what the server calls itself; default "toolbroker"
	Version      string           // of the program
	Instructions string           // for agents, on how to use the tools; may be empty
	Hosts        []string         // names that agents may reach it by, "host" or "host:port"; loopback names are added on a loopback listener
	Origins      []string         // web origins that may send requests, "https://host[:port]"; loopback ones are added on a loopback listener
	MaxBody      int64            // bytes of one message; default 1 MiB

	// PublicURL is what agents type, without /mcp: "https://tools.example". Empty
	// will do on loopback only, where it is made from each request's Host; else
	// nobody can discover whom to ask, and no DPoP proof can be checked.
	PublicURL string
	Issuers   []string // authorization servers whose tokens are taken, as RFC 8414 names them; empty: nothing is said of OAuth
	Scopes    []string // OAuth scopes that a client should ask for
	DPoPAlgs  []string // for DPoP proofs; default ES256, ES384, EdDSA, RS256 and PS256
	MTLS      bool     // clients are asked for certificates, and tokens may be bound to them

	// ApprovalURL returns the console's link to an approval request; nil for none.
	ApprovalURL func(tenant, id string) string
	// Decided returns once an approval request is not pending any more, or with
	// gateway.ErrNotFound; nil: no legacy client is sent to the console, since nobody
	// could tell it when to go on.
	Decided func(ctx context.Context, tenant, id string) error

	Logger *slog.Logger     // operational log; default discards
	Now    func() time.Time // default time.Now
}

// An Edge is the door. It is safe for concurrent use.
type Edge struct {
	Config
	answerers
	local  underway
	feeds  feeds
	visits visits
	waits  atomic.Int64 // words on their way to other replicas' streams

	streams, calls       context.Context // end with the streams of notices, and with the calls
	endStreams, endCalls context.CancelFunc
	mu                   sync.Mutex
	closing              bool
	inside               int           // requests under way
	empty                chan struct{} // closed when closing and nobody is inside
}

// New makes a door, or says what is missing. It hears of what other replicas do
// until Shutdown.
func New(c Config) (*Edge, error) {
	if c.Gateway == nil {
		return nil, errors.New("edge: no Gateway")
	}
	if c.Sessions == nil {
		return nil, errors.New("edge: no Sessions")
	}
	c.Name = cmp.Or(c.Name, "toolbroker")
	c.MaxBody = cmp.Or(c.MaxBody, 1<<20)
	if c.MaxBody < 0 {
		return nil, errors.New("edge: MaxBody is negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := c.discoverable(); err != nil {
		return nil, err
	}
	for _, o := range c.Origins {
		if !strings.HasPrefix(o, "http://") && !strings.HasPrefix(o, "https://") {
			return nil, errors.New("edge: an origin starts with http:// or https://")
		}
	}
	e := &Edge{Config: c, answerers: newAnswerers(c), empty: make(chan struct{})}
	e.streams, e.endStreams = context.WithCancel(context.Background())
	calls, endCalls := context.WithCancelCause(context.Background())
	e.calls, e.endCalls = calls, func() { endCalls(errShutdown) }
	go c.Sessions.Watch(e.calls, e.heard)
	return e, nil
}

// Server returns an HTTP server for a door: with limits on what a client may
// send before it is known, and none on how long a call may take, because each
// frame of an answer has its own.
func Server(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second, // ends with the body
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
}

// Shutdown refuses new requests and ends the streams of notices at once, lets
// calls that are under way finish until ctx ends, and then cancels them. It
// returns ctx's error if it had to. Call it beside [http.Server.Shutdown], which
// waits for the same requests.
func (e *Edge) Shutdown(ctx context.Context) error {
	e.mu.Lock()
	if !e.closing {
		e.closing = true
		if e.inside == 0 {
			close(e.empty)
		}
	}
	e.mu.Unlock()
	e.endStreams()
	defer e.endCalls()
	select {
	case <-e.empty:
		return nil
	case <-ctx.Done():
		e.endCalls()
		<-e.empty
		return ctx.Err()
	}
}

// enter counts a request in, unless the door is closing.
func (e *Edge) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.inside++
	return true
}

func (e *Edge) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.inside--; e.closing && e.inside == 0 {
		close(e.empty)
	}
}

// Why a call's context ended, where it was not the agent's connection.
var (
	errShutdown   = gateway.ErrGoingDown
	errCancelled  = errors.New("the agent cancelled the call")
	errReaderGone = errors.New("the agent does not read its answer")
	errSessionEnd = errors.New("the session ended")
	errReplaced   = errors.New("the session opened a newer stream")
	errNotAllowed = errors.New("the stream's credential, session or task is no longer good")
)
