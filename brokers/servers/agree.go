package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// listingCaps is what a session declares that only lists: servers register some tools
// only for clients that can be asked. What it is asked is refused.
var listingCaps = json.RawMessage(`{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{}}`)

// errOtherTools is of a process that is not what was listed.
var errOtherTools = fmt.Errorf("%w: the process that was started for the call defines the tool in another way than was accepted", gateway.ErrWithheld)

// toolsSaid is what the process behind a link defines, by its own names. It never
// changes; a new listing makes a new one.
type toolsSaid struct {
	after int64 // so many changes of its lists
	hash  map[string]string
}

// agrees reports whether a process defines a tool as t, or does not list it: then the
// agent read nothing of its.
func (said *toolsSaid) agrees(t gateway.Tool) bool {
	hash, listed := said.hash[t.Name]
	return !listed || hash == t.Hash
}

// compare asks a process once what its tools are, before it gets the first call, and
// again after it said that they changed: it was started long after its server was
// listed, by another process. A call of a tool that it defines in another way is not
// sent, and the server is listed anew. Other links need no such thing: what is listed
// over the network is listed where calls go.
func (s *Servers) compare(ctx context.Context, srv *server, l link, f gateway.Forward) error {
	if srv.kind != stdio || f.Method != "" && f.Method != gateway.MethodCall {
		return nil
	}
	d := l.at()
	if said := d.tools.Load(); said != nil && said.after == d.changes.Load() && said.agrees(f.Tool) {
		return nil
	}
	return d.order(ctx, func() error {
		said := d.tools.Load()
		if said == nil || said.after != d.changes.Load() || !said.agrees(f.Tool) { // what it said may be of before an acceptance
			var err error
			if said, err = s.toolsOf(ctx, srv, l, f.Principal.Tenant); err != nil {
				return fmt.Errorf("compare the tools of the process that was started for the call: %w", err)
			}
			d.tools.Store(said)
		}
		if said.agrees(f.Tool) {
			return nil
		}
		s.disagrees(srv, f, said.hash[f.Tool.Name])
		if c, ok := l.(*child); ok && d.idle() {
			c.fail(errOtherTools) // the next call starts another
		}
		return errOtherTools
	})
}

// toolsOf lists the tools behind a link.
func (s *Servers) toolsOf(ctx context.Context, srv *server, l link, tenant string) (*toolsSaid, error) {
	d := l.at()
	said := &toolsSaid{after: d.changes.Load(), hash: map[string]string{}}
	known, left := earlierThan(s.listingOf(srv, tenant)), newRoom()
	err := srv.pages(ctx, l, l.speaks(), 0, func(raw json.RawMessage) {
		t, err := srv.definedBefore(raw, known, left)
		hash, twice := said.hash[t.Name]
		if said.hash[t.Name] = t.Hash; err != nil || twice && hash != t.Hash {
			said.hash[t.Name] = "" // no accepted one is this
		}
	})
	if bad, ok := errors.AsType[errList](err); ok && bad.code == codeMethod {
		err = nil // it lists nothing
	}
	return said, err
}

// definedBefore is define, of which most is known.
func (s *server) definedBefore(raw json.RawMessage, known *earlier, r *room) (gateway.Tool, error) {
	if i, ok := known.place(raw); ok && known.tools[i].Sort == "" {
		return known.tools[i], nil
	}
	return s.define(raw, r)
}

// listingOf is what a tenant's feed of a server last heard, or nil.
func (s *Servers) listingOf(srv *server, tenant string) *listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range srv.feeds {
		if slices.Contains(f.tenants, tenant) {
			return f.current
		}
	}
	return nil
}

// disagrees puts on record, once, that a process defines a tool in another way, and
// has the server listed anew: most likely it is another server by now.
func (s *Servers) disagrees(srv *server, f gateway.Forward, hash string) {
	srv.look()
	at := site{f.Principal.Tenant, srv.Name}
	if !s.pins.fresh(at, thingOf(f.Tool), hash, "of a process, beside "+f.Tool.Hash) {
		return
	}
	t := f.Tool
	t.Hash = hash
	s.log.Warn("a process that was started for a call defines a tool in another way", "server", srv.Name, "tenant", at.tenant, "hash", hash)
	s.record(at.tenant, gateway.Fact{Type: audit.ToolWithheld, Tool: &t,
		Detail: "tool: a process that was started for a call defines it in another way; accepted was " + f.Tool.Hash})
}

// idle reports whether nobody waits for an answer.
func (d *desk) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting) == 0
}
