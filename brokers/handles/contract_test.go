package handles_test

import (
	"testing"

	"toolbroker/brokers/handles"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		gatewaytest.HandlesContract(t, func(t testing.TB) gatewaytest.HandlesRig {
			s := start(t)
			return gatewaytest.HandlesRig{
				Replica: func() gateway.Handles { return replica(t, s) },
				Advance: s.Advance,
				Now:     s.Now,
				Stop:    func() { s.Stop(t) },
				Start:   func() { s.Start(t) },
			}
		})
	})
}

func replica(t testing.TB, s *redistest.Server) *handles.Handles {
	t.Helper()
	h, err := handles.New(handles.Config{Store: s.Open(t, "acme", "globex"), MaxPerTask: 8, MaxBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return h
}
