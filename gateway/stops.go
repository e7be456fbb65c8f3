package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"toolbroker/gateway/audit"
)

// EveryTenant stands for all of them in a [Stop] of a tenant.
const EveryTenant = "*"

// StopSet sets a stop for an operator: what it is about is refused on every
// replica within 100 ms, and every running task of it ends, as revoked. It is on
// record before it takes effect. A stop of the tenant [EveryTenant] stops all of
// them, one after another; an error leaves those stopped that were.
func (g *Gateway) StopSet(ctx context.Context, op Operator, s Stop) error {
	s.Global = s.Tenant == EveryTenant
	if s.Global && s.Kind == StopTenant {
		return g.everywhere(ctx, op, func(tenant string) error {
			s.Tenant = tenant
			return g.stopSet(ctx, op, s)
		})
	}
	if err := g.may(ctx, op, MayStop, s.Tenant); err != nil {
		return err
	}
	return g.stopSet(ctx, op, s)
}

// everywhere does it in every tenant, if the operator may in each.
func (g *Gateway) everywhere(ctx context.Context, op Operator, do func(tenant string) error) error {
	for _, tenant := range g.Config.Tenants {
		if err := g.may(ctx, op, MayStop, tenant); err != nil {
			return err
		}
	}
	var failed []error
	for _, tenant := range g.Config.Tenants {
		failed = append(failed, do(tenant))
	}
	return errors.Join(failed...)
}

func (g *Gateway) stopSet(ctx context.Context, op Operator, s Stop) error {
	s.Name, s.Reason = strings.TrimSpace(s.Name), strings.TrimSpace(s.Reason)
	if err := checkStop(s); err != nil {
		return err
	}
	s.By, s.At = op.Name, g.now().UTC()
	if err := g.Recorder.Durable(ctx, stopFact(audit.StopSet, op, s)); err != nil {
		return fmt.Errorf("record stop: %w", err)
	}
	// Set it even if whoever asked is gone: it is on record.
	if err := g.Tasks.Stop(context.WithoutCancel(ctx), s); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

func checkStop(s Stop) error {
	switch s.Kind {
	case StopTenant:
		if s.Name != "" {
			return &Forbidden{Why: "A stop of a whole tenant names nobody in it."}
		}
	case StopPrincipal, StopOwner, StopHuman, StopStanding:
		if s.Name == "" {
			return &Forbidden{Why: "Say whom to stop."}
		}
	default:
		return &Forbidden{Why: "What can be stopped is a tenant, a principal, an owner, a human, or a standing task."}
	}
	if err := plainText("The name", s.Name, 600); err != nil {
		return err
	}
	if s.Reason == "" {
		return &Forbidden{Why: "A stop needs a reason."}
	}
	return plainText("The reason", s.Reason, 500)
}

// StopLift lifts a stop for an operator; the stop of [EveryTenant] in each of
// them. Tasks that it ended stay ended.
func (g *Gateway) StopLift(ctx context.Context, op Operator, tenant string, kind StopKind, name string) error {
	if tenant == EveryTenant && kind == StopTenant {
		lifted := false
		err := g.everywhere(ctx, op, func(tenant string) error {
			err := g.stopLift(ctx, op, tenant, kind, name)
			if lifted = lifted || err == nil; errors.Is(err, ErrNotFound) {
				return nil
			}
			return err
		})
		if err == nil && !lifted {
			err = ErrNotFound
		}
		return err
	}
	if err := g.may(ctx, op, MayStop, tenant); err != nil {
		return err
	}
	return g.stopLift(ctx, op, tenant, kind, name)
}

func (g *Gateway) stopLift(ctx context.Context, op Operator, tenant string, kind StopKind, name string) error {
	all, err := g.Tasks.Stops(ctx, tenant)
	if err != nil {
		return fmt.Errorf("lift: %w", err)
	}
	for _, s := range all {
		if s.Kind != kind || s.Name != name {
			continue
		}
		// On record first: a lift that nobody can find is worse than one that failed.
		if err := g.Recorder.Durable(ctx, stopFact(audit.StopLifted, op, s)); err != nil {
			return fmt.Errorf("record lift: %w", err)
		}
		_, err := g.Tasks.Lift(context.WithoutCancel(ctx), tenant, kind, name)
		return err
	}
	return ErrNotFound
}

// StopList lists a tenant's stops, newest first. One of all tenants is said to be
// [EveryTenant]'s.
func (g *Gateway) StopList(ctx context.Context, op Operator, tenant string) ([]Stop, error) {
	if err := g.may(ctx, op, MaySee, tenant); err != nil {
		return nil, err
	}
	all, err := g.Tasks.Stops(ctx, tenant)
	for i := range all {
		if all[i].Global {
			all[i].Tenant = EveryTenant
		}
	}
	return all, err
}

func stopFact(t audit.Type, op Operator, s Stop) Fact {
	return Fact{Type: t, Tenant: s.Tenant, Operator: &op, Stop: &s, Unbound: "a stop is about more than one task"}
}
