package attempts_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/attempts"
	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		gatewaytest.AttemptsContract(t, func(t *testing.T) gatewaytest.AttemptsRig {
			s := start(t)
			return gatewaytest.AttemptsRig{
				Replica: func() gateway.Attempts { return replica(t, s.Open(t, "acme", "globex")) },
				Advance: s.Advance,
				Window:  2 * time.Minute,
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
			}
		})
	})
}

// replica runs one more replica until the test ends.
func replica(t testing.TB, store *redis.Store) *attempts.Attempts {
	t.Helper()
	a, err := attempts.New(attempts.Config{Store: store, MaxAnswer: 1 << 10, MaxKept: 3})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return a
}
