package sessions_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/sessions"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		gatewaytest.SessionsContract(t, func(t *testing.T) gatewaytest.SessionsRig {
			s, late := start(t), &clock{}
			return gatewaytest.SessionsRig{
				Replica: func() gateway.Sessions { return replica(t, s, late) },
				Later:   func() { late.add(time.Second) },
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
				Most:    5,
			}
		})
	})
}

// A clock is ahead of time.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time      { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) add(d time.Duration) { c.ahead.Add(int64(d)) }

// replica runs one more replica until the test ends.
func replica(t testing.TB, s *redistest.Server, c *clock) *sessions.Sessions {
	t.Helper()
	one, err := sessions.New(sessions.Config{Store: s.Open(t, "acme", "globex"), Now: c.now, MaxAnswer: 1 << 10, Most: 5})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = one.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return one
}
