package tasks_test

import (
	"context"
	"crypto/ed25519"
	"sync"
	"testing"

	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/tasks"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		gatewaytest.TasksContract(t, func(t *testing.T) gatewaytest.TasksRig {
			s, facts := start(t), &gatewaytest.Facts{}
			return gatewaytest.TasksRig{
				Replica: func() gateway.Tasks { return replica(t, s, facts) },
				Facts:   facts,
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
			}
		})
	})
}

// replica runs one more replica, with a key of its own, until the test ends.
func replica(t *testing.T, s *redistest.Server, facts gateway.Recorder, change ...func(*tasks.Config)) *tasks.Tasks {
	t.Helper()
	return runs(t, s.Open(t, "acme", "globex"), facts, change...)
}

func runs(t *testing.T, store *redis.Store, facts gateway.Recorder, change ...func(*tasks.Config)) *tasks.Tasks {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := tasks.Config{Store: store, Recorder: facts, SigningKey: key, Issuer: "https://broker.test", Audience: "toolbroker"}
	for _, change := range change {
		change(&c)
	}
	r, err := tasks.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return r
}

// by is an ordinary end.
func by(who string) gateway.Ending {
	return gateway.Ending{As: gateway.TaskEnded, By: who, Why: "done"}
}
