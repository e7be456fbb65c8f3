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
	// server; it never holds a byte that the server chose.
	do(ctx context.Context, c call) (message, error)
	// note sends a notification.
	note(ctx context.Context, method string, params json.RawMessage) error
	// speaks returns the era to use it in.
	speaks() era
	// settle makes it a legacy link, before it is shared.
	settle(version string)
	// dead reports whether a new link is needed.
	dead() bool
	// close says goodbye, and returns when nothing is left of the link.
	close(ctx context.Context)
}

// A call is a request on its way.
type call struct {
	method   string
	params   json.RawMessage
	header   map[string]string                  // mirrors of the params, for the modern era over HTTP
	token    string                             // its progress token, or empty
	progress func(params json.RawMessage) error // takes its progress; nil drops it
}

// An era is a way of speaking MCP.
type era int32

const (
	unknownEra era = iota
	legacyEra      // 2025-11-25 and before: a handshake, then a session
	modernEra      // 2026-07-28: each request stands for itself
)

// greeting is what a server said of itself.
type greeting struct {
	era     era
	changes bool // it says when its list of tools changes
}

var errEra = errors.New("the server speaks no protocol version that we do")

type capabilities struct {
	Tools *struct {
		ListChanged bool `json:"listChanged"`
	} `json:"tools"`
}

func (c capabilities) changes() bool { return c.Tools != nil && c.Tools.ListChanged }

// discover asks a server whether it speaks the modern era. Some answer an
// unknown method with an empty result, so what counts is that the version is
// in the list. It returns errEra when the server answered and does not.
func discover(ctx context.Context, l link, era []byte) (greeting, error) {
	m, err := l.do(ctx, call{method: "server/discover", params: slices.Concat([]byte(`{"_meta":{`), era, []byte(`}}`))})
	if status, _ := errors.AsType[statusError](err); errors.Is(err, gateway.ErrBadAnswer) && status != 401 && status != 403 {
		return greeting{}, errEra // however it puts it, it does not know the question
	}
	if err != nil {
		return greeting{}, err
	}
	var body struct {
		Versions     []string     `json:"supportedVersions"`
		Capabilities capabilities `json:"capabilities"`
	}
	if m.fault != nil || jsonv2.Unmarshal(m.result, &body) != nil || !slices.Contains(body.Versions, mcp.ProtocolVersion20260728) {
		return greeting{}, errEra
	}
	return greeting{modernEra, body.Capabilities.changes()}, nil
}

// initialize opens a legacy session on l.
func initialize(ctx context.Context, l link, version string) (greeting, error) {
	m, err := l.do(ctx, call{method: "initialize", params: slices.Concat(
		[]byte(`{"protocolVersion":"`+mcp.ProtocolVersion20251125+`","capabilities":{},"clientInfo":`), clientInfo(version), []byte(`}`))})
	if err != nil {
		return greeting{}, err
	}
	if m.fault != nil {
		return greeting{}, fmt.Errorf("the server refused to initialize, with error %d", faultCode(m.fault))
	}
	var body struct {
		Version      string       `json:"protocolVersion"`
		Capabilities capabilities `json:"capabilities"`
	}
	if err := jsonv2.Unmarshal(m.result, &body); err != nil {
		return greeting{}, errRubbish
	}
	if !slices.Contains(mcp.LegacyProtocolVersions(), body.Version) {
		return greeting{}, errEra
	}
	l.settle(body.Version)
	if err := l.note(ctx, "notifications/initialized", nil); err != nil {
		return greeting{}, err
	}
	return greeting{legacyEra, body.Capabilities.changes()}, nil
}

// notSent marks an error as one before which nothing reached the server.
func notSent(err error) error {
	if errors.Is(err, gateway.ErrNotSent) {
		return err
	}
	return fmt.Errorf("%w: %w", gateway.ErrNotSent, err)
}
