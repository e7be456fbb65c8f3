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
	trips = 5                // failures in a row that open it
	cools = 10 * time.Second // that it stays open
)

var errOpen = errors.New("the server cannot be reached; it is tried again in a moment")

// A breaker spares callers the wait for a server that is not there. It opens after
// failures in a row, lets one call through after a while, and closes when that or
// anything else reaches the server. What a server answers, however bad, is no
// failure of this kind; neither is an answer that is slow.
type breaker struct {
	mu      sync.Mutex
	failed  int
	until   time.Time // while it is open
	probing bool
	cools   time.Duration
}

// enter admits a call, or says why not. done takes the call's end.
func (b *breaker) enter() (done func(error), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed < trips {
		return b.done, nil
	}
	if b.probing || time.Now().Before(b.until) {
		return nil, errOpen
	}
	b.probing = true
	return func(err error) {
		b.mu.Lock()
		b.probing = false
		b.mu.Unlock()
		b.done(err)
	}, nil
}

func (b *breaker) done(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case unreachable(err):
		if b.failed++; b.failed >= trips {
			b.until = time.Now().Add(b.cools)
		}
	case err == nil || errors.Is(err, gateway.ErrBadAnswer):
		b.failed = 0
	}
}

// works closes it: the server was reached in another way.
func (b *breaker) works() { b.done(nil) }

// errUnreachable marks that a connection could not be made or broke.
var errUnreachable = errors.New("reach the server")

// unreachable reports whether an error says that the server is not there.
func unreachable(err error) bool {
	if status, ok := errors.AsType[statusError](err); ok {
		return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
	}
	return errors.Is(err, errUnreachable) && !errors.Is(err, context.Canceled) && !errors.Is(err, gateway.ErrBadAnswer)
}
