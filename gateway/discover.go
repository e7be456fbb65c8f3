package gateway

import (
	"context"
	"fmt"

	"toolbroker/gateway/audit"
)

// Discover hands out the credential with which the gateway itself lists a
// server's tools: always one of its own, durable on record before it is used,
// and given back by the function it returns. It belongs to no task.
func (g *Gateway) Discover(ctx context.Context, tenant, server string) (Lease, func(), error) {
	l, err := g.Leases.Lease(ctx, tenant, "", "", server)
	if err != nil {
		return Lease{}, nil, fmt.Errorf("credential to list tools: %w", err)
	}
	giveBack := func() {
		if l.ID == "" {
			return
		}
		defer g.unguard(l)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
		defer cancel()
		if err := g.Leases.GiveBack(ctx, l); err != nil {
			g.Logger.Error("lease not given back; the ledger will end it", "lease", l.ID, "server", server, "err", err)
		}
	}
	if l.ID == "" {
		return l, giveBack, nil
	}
	g.guard(l, Task{})
	issued := Fact{Type: audit.SecretIssued, Tenant: tenant, Lease: &l, Unbound: "the gateway lists the server's tools"}
	if err := g.Recorder.Durable(ctx, issued); err != nil {
		giveBack()
		return Lease{}, nil, fmt.Errorf("record issue: %w", err)
	}
	return l, giveBack, nil
}
