package identity

import (
	"context"
	"errors"
	"hash/maphash"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"toolbroker/gateway"
)

// A gate bounds what callers can make us verify before we know who they are:
// so much at once, so much in a second, and of one source so many that fail.
// What is remembered as verified does not pass it.
type gate struct {
	now  func() time.Time
	all  *rate.Limiter
	room chan struct{}

	seed    maphash.Seed // so that nobody can choose whom to share a bucket with
	mu      sync.Mutex
	sources [sources]*rate.Limiter
}

const (
	sources   = 4096
	failures  = 10 // of one source in a second
	failBurst = 100
)

func newGate(perSecond int, now func() time.Time) *gate {
	return &gate{
		now: now, all: rate.NewLimiter(rate.Limit(perSecond), perSecond), seed: maphash.MakeSeed(),
		room: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

var errBusy = errors.New("verified at most so many; see identity.verifications_per_second")

// enter lets one verification in, or says WhyBusy. Whoever was let in says in
// the end whether the credential was good.
func (g *gate) enter(source string) (leave func(good bool), err error) {
	now, bucket := g.now(), g.bucket(source)
	if bucket.TokensAt(now) < 1 || !g.all.AllowN(now, 1) {
		return nil, refuse(gateway.WhyBusy, errBusy)
	}
	return func(good bool) {
		if !good {
			bucket.AllowN(now, 1)
		}
	}, nil
}

// compute runs what costs a processor, a few at a time. Nothing in f waits.
func (g *gate) compute(ctx context.Context, f func() error) error {
	select {
	case g.room <- struct{}{}:
	case <-ctx.Done():
		return refuse(gateway.WhyBusy, ctx.Err())
	}
	defer func() { <-g.room }()
	return f()
}

// bucket counts a source's failures; sources share buckets, rarely.
func (g *gate) bucket(source string) *rate.Limiter {
	if host, _, err := net.SplitHostPort(source); err == nil {
		source = host
	}
	if ip := net.ParseIP(source); ip != nil && ip.To4() == nil {
		source = string(ip.Mask(net.CIDRMask(64, 128)))
	}
	n := maphash.String(g.seed, source) % sources
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sources[n] == nil {
		g.sources[n] = rate.NewLimiter(failures, failBurst)
	}
	return g.sources[n]
}
