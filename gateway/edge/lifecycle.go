package edge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"toolbroker/gateway"
)

// newSession returns a session id: 130 random bits in the closed grammar of ids.
func newSession() string { return "mcp-" + strings.ToLower(rand.Text()) }

const maxFollows = 64 // resources that one session or stream hears of

// answerers are the two servers of mcp-go that say what this one is: one for each
// era, because what they may say of themselves differs. They hold nothing.
type answerers struct{ legacy, modern *server.MCPServer }

func newAnswerers(c Config) answerers {
	make := func(more ...server.ServerOption) *server.MCPServer {
		return server.NewMCPServer(c.Name, c.Version, append(more, server.WithInstructions(c.Instructions),
			server.WithToolCapabilities(true), server.WithResourceCapabilities(true, true), server.WithPromptCapabilities(true),
			server.WithCompletions(), server.WithLogging())...)
	}
	return answerers{legacy: make(), modern: make(server.WithExtensions(map[string]any{TasksExtension: struct{}{}}))}
}

// say lets mcp-go answer what is about nothing but this server. It gets the
// params, and nothing that says who asks; the id stays with us, because it would
// read it as floating point.
func (e *Edge) say(ctx context.Context, r request) (a answer, protocol string) {
	s := e.answerers.legacy
	if r.modern {
		s = e.answerers.modern
	}
	params := r.params
	if params == nil {
		params = []byte("{}")
	}
	msg, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": r.method, "params": json.RawMessage(params)})
	if err == nil {
		switch out := s.HandleMessage(ctx, msg).(type) {
		case mcp.JSONRPCResponse:
			var body []byte
			if body, err = json.Marshal(out.Result); err == nil {
				began, _ := out.Result.(mcp.InitializeResult)
				return result(body), began.ProtocolVersion
			}
		case mcp.JSONRPCError:
			return r.fault(&fault{code: out.Error.Code, message: out.Error.Message, data: out.Error.Data}), ""
		}
	}
	return r.fault(&fault{code: mcp.INTERNAL_ERROR, message: "internal"}), ""
}

// initialize answers a legacy client, and opens a session for it: none is given
// out that is not bound to its owner and task. Without an id there is none.
func (e *Edge) initialize(ctx context.Context, r request) (a answer, id, protocol string, err error) {
	if a, protocol = e.say(ctx, r); a.failed {
		return a, "", "", nil
	}
	caps, ok := lastingCaps(r.offers)
	if !ok {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: "the capabilities are too long"}), "", "", nil
	}
	id = newSession()
	if err := e.Gateway.OpenSession(ctx, r.cred, id, protocol, caps); err != nil {
		return answer{}, "", "", err
	}
	return a, id, protocol, nil
}

// maxLasting is how much is kept with a session of what its client says that it can do.
const maxLasting = 2 << 10

// lastingCaps is what a session's servers can ever be told of its client's
// capabilities, if that is not too much to keep. The rest nobody reads.
func lastingCaps(offers jsontext.Value) (json.RawMessage, bool) {
	var kept struct {
		Elicitation jsontext.Value `json:"elicitation,omitzero"`
		Sampling    jsontext.Value `json:"sampling,omitzero"`
		Roots       jsontext.Value `json:"roots,omitzero"`
		Extensions  *struct {
			UI jsontext.Value `json:"io.modelcontextprotocol/ui,omitzero"`
		} `json:"extensions,omitzero"`
	}
	if offers.Kind() != '{' || strict.Unmarshal(offers, &kept) != nil {
		return nil, true
	}
	if kept.Extensions != nil && kept.Extensions.UI == nil {
		kept.Extensions = nil
	}
	caps, err := strict.Marshal(kept)
	return caps, err == nil && len(caps) <= maxLasting
}

// setLevel keeps the level of log messages that a session wants.
func (e *Edge) setLevel(ctx context.Context, r request) (answer, error) {
	if err := e.Gateway.Pace(r.who); err != nil {
		return answer{}, err
	}
	level := levelOf(r.severity)
	if level == "" {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: "params.level must be one of " + strings.Join(levels, ", ")}), nil
	}
	a, err := e.change(ctx, r, func(s *gateway.Session) { s.LogLevel = level })
	if err != nil || a.failed {
		return a, err
	}
	// Servers that it has sessions at hear it now; its next call says it as well.
	if err := e.Sessions.Tell(ctx, gateway.News{Session: r.cred.Session, Level: level}); err != nil {
		e.Logger.Warn("a log level was not passed on", "err", err)
	}
	return a, nil
}

// follow lets a session hear of a resource's changes, on its stream of notices:
// the replica that has it follows. The gateway decides here whether it may, and
// again for each change.
func (e *Edge) follow(ctx context.Context, r request) (answer, error) {
	c, bad := r.call()
	if bad != "" {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: bad}), nil
	}
	if r.cred.Session == "" {
		return r.fault(noSession), nil
	}
	if out, err := e.Gateway.Handle(ctx, c, nil); err != nil {
		return e.refused(r, err)
	} else if out.Error != nil {
		return relayError(r, out.Error), nil
	}
	full := false
	a, err := e.change(ctx, r, func(s *gateway.Session) {
		known := slices.Contains(s.Follows, c.Name)
		if full = !known && len(s.Follows) >= maxFollows; !known && !full {
			s.Follows = append(s.Follows, c.Name)
		}
	})
	if full && err == nil {
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: "a session can be subscribed to 64 resources at most"}), nil
	}
	return a, err
}

func (e *Edge) unfollow(ctx context.Context, r request) (answer, error) {
	if err := e.Gateway.Pace(r.who); err != nil {
		return answer{}, err
	}
	uri, bad := text("uri", r.uri, maxURI)
	if bad != "" {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: bad}), nil
	}
	return e.change(ctx, r, func(s *gateway.Session) {
		s.Follows = slices.DeleteFunc(s.Follows, func(f string) bool { return f == uri })
	})
}

var noSession = &fault{code: mcp.INVALID_REQUEST, message: "this is kept with a session: send initialize first, and then its " + mcp.HeaderSessionID}

// change changes the caller's session, and tells its stream where that is here;
// another replica's sees it within a second.
func (e *Edge) change(ctx context.Context, r request, f func(*gateway.Session)) (answer, error) {
	if r.cred.Session == "" {
		return r.fault(noSession), nil
	}
	if _, err := e.Sessions.Change(ctx, r.cred.Session, f); err != nil {
		return answer{}, sessionRefusal(err)
	}
	e.feeds.changed(r.cred.Session)
	return done(false), nil
}

func isNotFound(err error) bool { return errors.Is(err, gateway.ErrNotFound) }

// sessionRefusal is why a session could not be had.
func sessionRefusal(err error) error {
	if isNotFound(err) {
		return &gateway.Refusal{Code: gateway.Unidentified, Err: &gateway.NotIdentified{Why: gateway.WhySession, Err: err}}
	}
	return &gateway.Refusal{Code: gateway.Internal, Err: err}
}

// deleteSession ends a legacy session here and, through the gateway, everywhere.
func (e *Edge) deleteSession(w http.ResponseWriter, r *http.Request, cred gateway.Credential) {
	if cred.Session == "" {
		http.Error(w, mcp.HeaderSessionID+" is missing", http.StatusBadRequest)
		return
	}
	if err := e.Gateway.CloseSession(r.Context(), cred); err != nil {
		e.refuse(w, r, cred, nil, err)
		return
	}
	e.local.end(cred.Session)
	w.WriteHeader(http.StatusOK)
}
