package servers

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"toolbroker/gateway"
)

const (
	trips       = 5                // failures in a row that open it
	cools       = 10 * time.Second // that it stays open
	maxTroubled = 1024             // workloads that have one of their own
)

var (
	errOpen  = errors.New("the server cannot be reached; it is tried again in a moment")
	errShort = errors.New("the server broke off this workload's last calls; it is tried again in a moment")
)

// A breaker spares callers the wait for a server that is not there. It opens for all
// after connections in a row that could not be made: no call can bring that about by
// what it says. A call that breaks off, or is answered by a proxy, may do so for that
// call's own sake, and opens it for the workload alone that made it. It lets one call
// through after a while, and closes when that or anything else reaches the server. What
// a server answers, however bad, is no failure; neither is an answer that is slow.
type breaker struct {
	mu       sync.Mutex
	all      circuit
	troubled map[workload]*circuit // of those whose last call failed
	cools    time.Duration
}

// A workload is a principal of a tenant's.
type workload struct{ tenant, principal string }

// A circuit counts failures in a row.
type circuit struct {
	failed int
	until  time.Time // while it is open
}

// shut reports whether a circuit is open. Where it has been for long enough, one call
// may try: the next waits for what comes of that one, or as long again.
func (c *circuit) shut(now time.Time) bool { return c.failed >= trips && now.Before(c.until) }

func (c *circuit) try(until time.Time) {
	if c.failed >= trips {
		c.until = until
	}
}

func (c *circuit) fail(until time.Time) {
	if c.failed++; c.failed >= trips {
		c.until = until
	}
}

// enter admits a call, or says why not. done takes the call's end.
func (b *breaker) enter(of workload) (done func(error), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	own := b.troubled[of]
	switch {
	case b.all.shut(now):
		return nil, errOpen
	case own != nil && own.shut(now):
		return nil, errShort
	}
	b.all.try(now.Add(b.cools))
	if own != nil {
		own.try(now.Add(b.cools))
	}
	return func(err error) { b.done(of, err) }, nil
}

func (b *breaker) done(of workload, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	until := time.Now().Add(b.cools)
	switch gone := unreachable(err); {
	case gone && !itsOwn(err):
		b.all.fail(until)
	case gone:
		b.all.try(time.Time{}) // that says nothing to the others, of whom the next may try
		own := b.troubled[of]
		if own == nil {
			if b.troubled == nil {
				b.troubled = map[workload]*circuit{}
			}
			if own = (&circuit{}); len(b.troubled) < maxTroubled {
				b.troubled[of] = own
			}
		}
		own.fail(until)
	case err == nil || errors.Is(err, gateway.ErrBadAnswer):
		b.all = circuit{}
		delete(b.troubled, of)
	default:
		b.all.try(time.Time{})
		if own := b.troubled[of]; own != nil {
			own.try(time.Time{})
		}
	}
}

// works closes it: the server was reached in another way.
func (b *breaker) works() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all, b.troubled = circuit{}, nil
}

// errUnreachable marks that a connection could not be made or broke.
var errUnreachable = errors.New("reach the server")

// unreachable reports whether an error says that the server is not there.
func unreachable(err error) bool {
	if status, ok := errors.AsType[statusError](err); ok {
		return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
	}
	return errors.Is(err, errUnreachable) && !errors.Is(err, context.Canceled) && !errors.Is(err, gateway.ErrBadAnswer)
}

// itsOwn reports whether such an error may be of one call's own making: the server was
// connected to, or its time went elsewhere.
func itsOwn(err error) bool {
	_, status := errors.AsType[statusError](err)
	_, broke := errors.AsType[lost](err)
	return status || broke || errors.Is(err, errWaited)
}
