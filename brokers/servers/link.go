package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// A link is an open way to one server: an address, a session there, or a child
// process. It is safe for concurrent use.
type link interface {
	// do sends a request and returns the response to it, once. Its error wraps
	// gateway.ErrNotSent when nothing of the request can have reached the
	// server, or errForgotten too when it says that; it never holds a byte that the server chose.
	do(ctx context.Context, c call) (message, error)
	// note sends a notification.
	note(ctx context.Context, method string, params json.RawMessage) error
	// attend returns when everything that the server sends beside calls comes in, or
	// as soon as that is known not to be.
	attend(ctx context.Context) error
	// listen opens what the server tells of changes on, calls open when it stands,
	// and told for each notification, until it ends.
	listen(ctx context.Context, to filter, open func(), told func(message)) error
	// at is where what comes over it is handed out.
	at() *desk
	// speaks returns the era to use it in.
	speaks() era
	// settle makes it a legacy link, before it is shared.
	settle(version string, c capabilities)
	// dead reports whether a new link is needed.
	dead() bool
	// close says goodbye, and returns nil when nothing is left of the link. An error
	// says that this is not known: errKept that asking again is of no use.
	close(ctx context.Context) error
}

// A call is a request on its way.
type call struct {
	method string
	params json.RawMessage
	header map[string]string // mirrors of the params, for the modern era over HTTP
	hears  *hearing          // whom it is for what comes meanwhile; nil: nobody
}

var (
	errKept     = errors.New("the server ends no session when asked to")
	errNotEnded = errors.New("the child has not ended")
)

// An era is a way of speaking MCP.
type era int32

const (
	unknownEra era = iota
	legacyEra      // 2025-11-25 to 2025-03-26: a handshake, then a session
	modernEra      // 2026-07-28: each request stands for itself
	sseEra         // 2024-11-05 over HTTP: as legacyEra, but all answers come over one stream
)

// greeting is what a server said of itself.
type greeting struct {
	era  era
	can  capabilities
	told string // its instructions
}

var errEra = errors.New("the server speaks no protocol version that we do")

// capabilities are what a server says that it can do, as far as that matters here.
type capabilities struct {
	Tools     *changing        `json:"tools"`
	Prompts   *changing        `json:"prompts"`
	Resources *changing        `json:"resources"`
	Logging   *json.RawMessage `json:"logging"`
	Tasks     *json.RawMessage `json:"tasks"` // of 2025-11-25
}

type changing struct {
	ListChanged bool `json:"listChanged"`
	Subscribe   bool `json:"subscribe"`
}

func (c *changing) tells() bool        { return c != nil && c.ListChanged }
func (c capabilities) logs() bool      { return c.Logging != nil }
func (c capabilities) subscribe() bool { return c.Resources != nil && c.Resources.Subscribe }

// A filter says which changes somebody wants to hear of.
type filter struct {
	Tools     bool     `json:"toolsListChanged,omitempty"`
	Prompts   bool     `json:"promptsListChanged,omitempty"`
	Resources bool     `json:"resourcesListChanged,omitempty"`
	URIs      []string `json:"resourceSubscriptions,omitempty"`
}

func (c capabilities) changes() filter {
	return filter{Tools: c.Tools.tells(), Prompts: c.Prompts.tells(), Resources: c.Resources.tells()}
}

func (f filter) empty() bool { return !f.Tools && !f.Prompts && !f.Resources && len(f.URIs) == 0 }

// discover asks a server whether it speaks the modern era. Some answer an
// unknown method with an empty result, so what counts is that the version is
// in the list. It returns errEra when the server answered and does not.
func discover(ctx context.Context, l link, era []byte) (greeting, error) {
	ask := call{method: "server/discover", params: slices.Concat([]byte(`{"_meta":{`), era, []byte(`}}`))}
	m, err := l.do(ctx, ask)
	if err == nil && m.fault != nil && supports(m.fault, mcp.ProtocolVersion20260728) {
		m, err = l.do(ctx, ask) // it refuses the version and names it as one that it takes: it may mean another moment
	}
	if answered(err) {
		return greeting{}, errEra // however it puts it, it does not know the question
	}
	if err != nil {
		return greeting{}, err
	}
	var body struct {
		Versions     []string     `json:"supportedVersions"`
		Capabilities capabilities `json:"capabilities"`
		Instructions string       `json:"instructions"`
	}
	if m.fault != nil || jsonv2.Unmarshal(m.result, &body) != nil || !slices.Contains(body.Versions, mcp.ProtocolVersion20260728) {
		return greeting{}, errEra
	}
	return greeting{modernEra, body.Capabilities, body.Instructions}, nil
}

// supports reports whether an error says that a version is not supported, and
// names this one among those that are.
func supports(fault json.RawMessage, version string) bool {
	var body struct {
		Code int64 `json:"code"`
		Data struct {
			Supported []string `json:"supported"`
		} `json:"data"`
	}
	return json.Unmarshal(fault, &body) == nil && body.Code == codeVersion && slices.Contains(body.Data.Supported, version)
}

// answered reports whether an error is one of a server that is there and answers,
// but not as it was asked to. A 401 or 403 is about our credential.
func answered(err error) bool {
	status, _ := errors.AsType[statusError](err)
	return errors.Is(err, gateway.ErrBadAnswer) && status != 401 && status != 403
}

// initialize opens a legacy session on l for a client.
func initialize(ctx context.Context, l link, version string, who client) (greeting, error) {
	l.at().serves(who)
	m, err := l.do(ctx, call{method: "initialize", params: slices.Concat(
		[]byte(`{"protocolVersion":"`+mcp.ProtocolVersion20251125+`","capabilities":`), capsOr(who.caps), []byte(`,"clientInfo":`), clientInfo(version), []byte(`}`))})
	if err != nil {
		return greeting{}, err
	}
	if m.fault != nil {
		return greeting{}, fmt.Errorf("%w, with error %d", errRefused, faultCode(m.fault))
	}
	var body struct {
		Version      string       `json:"protocolVersion"`
		Capabilities capabilities `json:"capabilities"`
		Instructions string       `json:"instructions"`
	}
	if err := jsonv2.Unmarshal(m.result, &body); err != nil {
		return greeting{}, errRubbish
	}
	if !slices.Contains(mcp.LegacyProtocolVersions(), body.Version) {
		return greeting{}, errEra
	}
	l.settle(body.Version, body.Capabilities)
	if err := l.note(ctx, "notifications/initialized", nil); err != nil {
		return greeting{}, err
	}
	l.at().asksFirst(ctx, l)
	return greeting{legacyEra, body.Capabilities, body.Instructions}, nil
}

var errRefused = errors.New("the server refused to initialize")

// greet opens a way to a server and learns which era it speaks. Nothing of it
// is left when there is an error.
func (s *Servers) greet(ctx context.Context, srv *server, lease gateway.Lease, who client) (link, greeting, error) {
	ctx, cancel := context.WithTimeout(ctx, srv.Timeout)
	defer cancel()
	if srv.Protocol == Auto || srv.Protocol == Modern {
		l, err := s.dial(ctx, srv, lease, modernEra)
		if err != nil {
			return nil, greeting{}, err
		}
		short, stop := ctx, context.CancelFunc(func() {})
		if srv.kind == stdio && srv.Protocol == Auto {
			short, stop = context.WithTimeout(ctx, s.pace.discover)
		}
		g, err := discover(short, l, modernMeta(srv.version, nil, ""))
		stop()
		if err == nil {
			return l, g, nil
		}
		// Some legacy children do not answer what they do not know, or end.
		again := errors.Is(err, errEra) || srv.kind == stdio && ctx.Err() == nil
		if srv.Protocol == Modern || !again {
			l.close(ctx)
			return nil, greeting{}, err
		}
		if srv.kind == stdio && !l.dead() {
			g, err := initialize(ctx, l, srv.version, who)
			if err != nil {
				l.close(ctx)
			}
			return l, g, err
		}
		l.close(ctx)
	}
	if srv.Protocol != SSE {
		l, g, err := s.session(ctx, srv, lease, who, legacyEra)
		// What answers no POST at all may be of the time when answers came over one stream.
		if status, _ := errors.AsType[statusError](err); srv.Protocol == Legacy || srv.kind == stdio || status != 400 && status != 404 && status != 405 {
			return l, g, err
		}
		if l, g, other := s.session(ctx, srv, lease, who, sseEra); other == nil {
			return l, g, nil
		}
		return nil, greeting{}, err
	}
	return s.session(ctx, srv, lease, who, sseEra)
}

// session opens a legacy session.
func (s *Servers) session(ctx context.Context, srv *server, lease gateway.Lease, who client, e era) (link, greeting, error) {
	l, err := s.dial(ctx, srv, lease, e)
	if err != nil {
		return nil, greeting{}, err
	}
	g, err := initialize(ctx, l, srv.version, who)
	if err != nil {
		l.close(ctx)
		return nil, greeting{}, err
	}
	g.era = e
	return l, g, nil
}

// dial makes a link: an address, a stream, or a child that was just started.
func (s *Servers) dial(ctx context.Context, srv *server, lease gateway.Lease, e era) (link, error) {
	switch {
	case srv.kind == stdio:
		return srv.launch(s.launcher, lease)
	case e == sseEra:
		return srv.connect(ctx, lease)
	}
	return newWeb(srv, lease.Headers, e == modernEra), nil
}

// sent is an error of a call that may have left: whatever could not be sent since, the
// call was.
func sent(err error) error {
	if errors.Is(err, gateway.ErrNotSent) {
		return ran{err}
	}
	return err
}

// ran is such an error. It does not say that nothing was sent, nor that the call can be
// made again in another session.
type ran struct{ error }

func (r ran) Is(target error) bool {
	return target != gateway.ErrNotSent && target != errForgotten && errors.Is(r.error, target)
}

// notSent marks an error as one before which nothing reached the server.
func notSent(err error) error {
	if errors.Is(err, gateway.ErrNotSent) {
		return err
	}
	return fmt.Errorf("%w: %w", gateway.ErrNotSent, err)
}
