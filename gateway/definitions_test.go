package gateway_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// shelf is two definitions of acme's, one of which is withheld.
type shelf struct {
	all   []gateway.Definition
	fails error
	took  func()
}

func (s *shelf) Definitions(_ context.Context, tenant string) ([]gateway.Definition, error) {
	if tenant != "acme" {
		return nil, nil
	}
	return s.all, nil
}

func (s *shelf) Accept(_ context.Context, _, _ string, _ gateway.Sort, name, hash, by string) (gateway.Definition, error) {
	if s.took(); s.fails != nil {
		return gateway.Definition{}, s.fails
	}
	for i := range s.all {
		if s.all[i].Name == name {
			s.all[i].Pinned, s.all[i].By, s.all[i].Held = hash, by, ""
			return s.all[i], nil
		}
	}
	return gateway.Definition{}, gateway.ErrNotFound
}

func newShelf() *shelf {
	tool := func(name, hash string) gateway.Tool { return gateway.Tool{Server: "files", Name: name, Hash: hash} }
	return &shelf{took: func() {}, all: []gateway.Definition{
		{Tool: tool("read", "sha256:1"), Server: "files", Sort: gateway.SortTool, Name: "read", Hash: "sha256:1", Pinned: "sha256:1"},
		{Tool: tool("write", "sha256:2"), Server: "files", Sort: gateway.SortTool, Name: "write", Hash: "sha256:2", Pinned: "sha256:0", Held: "changed"},
		{Server: "files", Sort: gateway.SortTool, Name: "gone", Pinned: "sha256:3"},
		{Server: "files", Sort: gateway.SortTool, Name: "odd", Hash: "sha256:5", Held: "it cannot be used", Unfit: true},
	}}
}

// Who may accept what, and what is on record of it.
func TestAcceptDefinition(t *testing.T) {
	for _, c := range []struct {
		what, op, tenant, name, hash string
		sort                         gateway.Sort
		err                          error // nil: accepted; errForbidden: any *Forbidden
		log                          string
	}{
		{"an admin", "alice", "acme", "write", "sha256:2", gateway.SortTool, nil, "tool.pinned"},
		{"an admin of all", "root", "acme", "write", "sha256:2", gateway.SortTool, nil, "tool.pinned"},
		{"an approver", "bob", "acme", "write", "sha256:2", gateway.SortTool, errForbidden, "operator.refused"},
		{"a viewer", "vic", "acme", "write", "sha256:2", gateway.SortTool, errForbidden, "operator.refused"},
		{"another tenant's admin", "alice", "globex", "write", "sha256:2", gateway.SortTool, gateway.ErrNotFound, "operator.refused"},
		{"in the wrong tenant", "root", "globex", "write", "sha256:2", gateway.SortTool, gateway.ErrNotFound, ""},
		{"another hash", "alice", "acme", "write", "sha256:9", gateway.SortTool, gateway.ErrNotNow, ""},
		{"the old one", "alice", "acme", "write", "sha256:0", gateway.SortTool, gateway.ErrNotNow, ""},
		{"what is accepted", "alice", "acme", "read", "sha256:1", gateway.SortTool, gateway.ErrNotNow, ""},
		{"what is gone", "alice", "acme", "gone", "", gateway.SortTool, gateway.ErrNotFound, ""},
		{"what cannot be used", "alice", "acme", "odd", "sha256:5", gateway.SortTool, gateway.ErrNotFound, ""},
		{"another sort", "alice", "acme", "write", "sha256:2", gateway.SortPrompt, gateway.ErrNotFound, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newShelf()
			h := gatewaytest.New(t, func(g *gateway.Config) { g.Definitions = s })
			onRecord := ""
			s.took = func() { onRecord = h.Events() } // before it takes effect
			d, err := h.AcceptDefinition(t.Context(), h.Operators.Op(c.op), c.tenant, "files", c.sort, c.name, c.hash)
			_, forbidden := errors.AsType[*gateway.Forbidden](err)
			if !errors.Is(err, c.err) && !(c.err == errForbidden && forbidden) {
				t.Errorf("%v", err)
			}
			if got := h.Events(); got != c.log {
				t.Errorf("log: %q", got)
			}
			if c.err == nil && (onRecord != "tool.pinned" || d.By != "operator:"+c.op || d.Pinned != c.hash) {
				t.Errorf("on record before: %q; %+v", onRecord, d)
			}
			if c.err != nil && (s.all[1].Pinned != "sha256:0" || onRecord != "") {
				t.Error("it was accepted all the same")
			}
		})
	}
}

var errForbidden = errors.New("forbidden")

func TestAcceptanceIsOnRecordWhole(t *testing.T) {
	s := newShelf()
	h := gatewaytest.New(t, func(g *gateway.Config) { g.Definitions = s })
	s.fails = gateway.ErrNotNow
	if _, err := h.AcceptDefinition(t.Context(), h.Operators.Op("alice"), "acme", "files", gateway.SortTool, "write", "sha256:2"); !errors.Is(err, gateway.ErrNotNow) {
		t.Error(err)
	}
	lines := h.Lines()
	if len(lines) != 2 || lines[0].Type != audit.ToolPinned || lines[0].Operator.Name != "alice" || lines[0].Tool.Definition != "sha256:2" ||
		!strings.HasSuffix(lines[0].Detail, "was sha256:0") || lines[1].Type != audit.ToolWithheld || !strings.Contains(lines[1].Detail, "something else by now") {
		t.Errorf("log: %+v", lines)
	}
}

// Whoever may see a tenant sees what is withheld there; without the seam there is
// nothing to see and nothing to accept.
func TestDefinitionsAreSeen(t *testing.T) {
	h := gatewaytest.New(t, func(g *gateway.Config) { g.Definitions = newShelf() })
	for _, op := range []string{"alice", "bob", "vic", "root"} {
		if all, err := h.Gateway.Definitions(t.Context(), h.Operators.Op(op), "acme"); err != nil || len(all) != 4 {
			t.Errorf("%s: %d, %v", op, len(all), err)
		}
	}
	if _, err := h.Gateway.Definitions(t.Context(), h.Operators.Op("alice"), "globex"); !errors.Is(err, gateway.ErrNotFound) {
		t.Error(err)
	}
	h = gatewaytest.New(t)
	if all, err := h.Gateway.Definitions(t.Context(), h.Operators.Op("alice"), "acme"); err != nil || len(all) != 0 {
		t.Errorf("%d, %v", len(all), err)
	}
	if _, err := h.AcceptDefinition(t.Context(), h.Operators.Op("alice"), "acme", "files", gateway.SortTool, "write", "sha256:2"); !errors.Is(err, gateway.ErrNotFound) {
		t.Error(err)
	}
}
