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
			kill := map[gateway.Attempts]func(){}
			return gatewaytest.AttemptsRig{
				Replica: func() gateway.Attempts {
					store := s.Open(t, "acme", "globex")
					a, stop := replica(t, store)
					kill[a] = func() { store.Close(); stop() } // it has no way to say goodbye
					return a
				},
				Kill:    func(a gateway.Attempts) { kill[a]() },
				Advance: s.Advance,
				Window:  2 * time.Minute,
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
			}
		})
	})
}

const kept = 8 // answers of one tenant

// replica runs one more replica until the test ends, or is stopped.
func replica(t testing.TB, store *redis.Store) (*attempts.Attempts, func()) {
	t.Helper()
	a, err := attempts.New(attempts.Config{Store: store, MaxAnswer: 1 << 10, MaxKept: kept})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = a.Run(ctx) })
	stop := func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return a, stop
}
