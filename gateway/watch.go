package gateway

import (
	"context"
	"errors"
	"time"
)

// A stream of notices that names a handle stands for its agent's coming back: what
// tasks/get would do at a moment at which there is something new, Watch does, by the
// stream's credential, identified again then. A notice that only said that there is
// something to get would be another than tasks/get gives, which the extension does
// not allow, and would leave an agent waiting that need not ask where it listens.

const (
	watchEvery = time.Second // how often a watcher compares versions; what humans decide it hears at once
	watchSlow  = 30 * time.Second
)

// Kept returns a handle as it is stored, for whoever got it, and does nothing about
// it. Of in the same counts as for [Gateway.Look].
func (g *Gateway) Kept(ctx context.Context, in Call) (Handle, error) {
	in.Method = MethodTaskGet
	return g.handled(ctx, in, func(_ context.Context, _ *life, h Handle) (Handle, error) { return h, nil })
}

// Watch looks at a handle as [Gateway.Look] does, at first and whenever that could
// say something new, on whatever replica it came to be, and calls moved where it
// did. It returns nil once nothing can follow, or a [*Refusal]; what may be otherwise
// soon it tries again.
func (g *Gateway) Watch(ctx context.Context, in Call, moved func()) error {
	told, wait := Handle{}, watchEvery
	for {
		h, err := g.Look(ctx, in)
		if err != nil {
			switch CodeOf(err) {
			case Internal, TooMany, Downstream, NoCredential:
			default:
				return err
			}
			if !pause(ctx, wait) {
				return refuse(Cancelled, ctx.Err())
			}
			wait = min(2*wait, watchSlow)
			continue
		}
		wait = watchEvery
		if h.differs(told) {
			told = h
			moved()
		}
		if h.Final() {
			return nil
		}
		if !g.news(ctx, h) {
			return refuse(Cancelled, ctx.Err())
		}
	}
}

// differs reports whether an agent would read something else of h than of was.
func (h Handle) differs(was Handle) bool {
	return h.Status != was.Status || !h.Updated.Equal(was.Updated)
}

// news waits until a look at a handle could say something else than h, and reports
// whether that is so; it is not where ctx ends. Of a server's task only a look can
// tell, as often as the server says.
func (g *Gateway) news(ctx context.Context, h Handle) bool {
	began := time.Now()
	var decided chan struct{}
	if h.Remote == "" && h.Run == "" && h.Status == HandleWorking {
		waiting, stop := context.WithCancel(ctx)
		decided = make(chan struct{})
		defer func() { stop(); <-decided }()
		go func() {
			defer close(decided)
			for {
				_, err := g.Approvals.Wait(waiting, h.Tenant, h.Approval)
				if err == nil || errors.Is(err, ErrNotFound) || !pause(waiting, watchEvery) {
					return
				}
			}
		}()
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-decided:
			return pause(ctx, time.Until(began.Add(watchEvery))) // the last look may have come too soon
		case <-tick.C:
		}
		if h.Remote != "" && time.Since(began) >= h.Poll || h.Run != "" && !g.now().Before(h.RunUntil) {
			return true
		}
		switch moved, err := g.Handles.Moved(ctx, h.Tenant, h.ID, h.Seq); {
		case errors.Is(err, ErrNotFound):
			return true
		case err != nil, !moved:
			continue
		}
		now, err := g.Handles.Handle(ctx, h.Tenant, h.ID)
		if err == nil && now.differs(h) {
			return true
		}
		if err == nil {
			h = now // whoever runs it is alive
		}
	}
}

// pause reports whether ctx lasted for d.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
