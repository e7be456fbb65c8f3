package gateway

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"toolbroker/gateway/audit"
)

// Definitions lists what a tenant's servers define, beside what of it was
// accepted, for an operator.
func (g *Gateway) Definitions(ctx context.Context, op Operator, tenant string) ([]Definition, error) {
	if err := g.may(ctx, op, MaySee, tenant); err != nil {
		return nil, err
	}
	if g.Config.Definitions == nil {
		return []Definition{}, nil
	}
	all, err := g.Config.Definitions.Definitions(ctx, tenant)
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	return all, nil
}

// AcceptDefinition takes what a server says now, and that hash alone, as good:
// from then on agents see and reach it. It is on record before it takes effect.
// It is ErrNotNow where the server says something else by now, or nothing is
// withheld, and ErrNotFound where it offers no such thing, or none that can be used.
func (g *Gateway) AcceptDefinition(ctx context.Context, op Operator, tenant, server string, s Sort, name, hash string) (Definition, error) {
	none := Definition{}
	if err := g.may(ctx, op, MayAccept, tenant); err != nil {
		return none, err
	}
	if g.Config.Definitions == nil {
		return none, ErrNotFound
	}
	all, err := g.Config.Definitions.Definitions(ctx, tenant)
	if err != nil {
		return none, fmt.Errorf("accept a definition: %w", err)
	}
	i := slices.IndexFunc(all, func(d Definition) bool {
		return d.Server == server && d.Sort == s && d.Name == name && d.Hash != "" && !d.Unfit
	})
	switch {
	case i < 0:
		return none, ErrNotFound
	case subtle.ConstantTimeCompare([]byte(all[i].Hash), []byte(hash)) != 1, all[i].Hash == all[i].Pinned:
		return none, ErrNotNow
	}
	d := all[i]
	f := Fact{Type: audit.ToolPinned, Tenant: tenant, Operator: &op, Tool: &d.Tool, Count: 1,
		Detail: fmt.Sprintf("%s: accepted; was %s", d.Sort, cmp.Or(d.Pinned, "accepted by nobody"))}
	if err := g.Recorder.Durable(ctx, f); err != nil {
		return none, fmt.Errorf("record acceptance: %w", err)
	}
	// Do it even if whoever asked is gone: it is on record.
	after, err := g.Config.Definitions.Accept(context.WithoutCancel(ctx), tenant, server, s, name, hash, "operator:"+op.Name)
	if err != nil {
		f.Type, f.Detail = audit.ToolWithheld, string(d.Sort)+": accepted, but that could not be kept"
		if errors.Is(err, ErrNotNow) || errors.Is(err, ErrNotFound) {
			f.Detail = string(d.Sort) + ": accepted, but the server says something else by now"
		}
		g.recordOperator(ctx, f)
		return none, err
	}
	return after, nil
}
