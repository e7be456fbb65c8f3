package approvals_test

import (
	"context"
	"sync"
	"testing"

	"toolbroker/brokers/approvals"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		gatewaytest.ApprovalsContract(t, func(t testing.TB) gatewaytest.ApprovalsRig {
			s, facts := start(t), &gatewaytest.Facts{}
			return gatewaytest.ApprovalsRig{
				Replica: func() gateway.Approvals { return replica(t, s, facts) },
				Facts:   facts,
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
				Advance: s.Advance,
				Now:     s.Now,
			}
		})
	})
}

// replica runs one more replica until the test ends.
func replica(t testing.TB, s *redistest.Server, facts gateway.Recorder) *approvals.Approvals {
	t.Helper()
	a, err := approvals.New(approvals.Config{Store: s.Open(t, "acme", "globex"), Recorder: facts, MaxPerTask: 8})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { a.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return a
}
