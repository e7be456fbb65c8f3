package gatewaytest_test

import (
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// The parts in memory keep the promises that the brokers keep.
func TestMemory(t *testing.T) {
	t.Run("sessions", func(t *testing.T) {
		gatewaytest.SessionsContract(t, func(*testing.T) gatewaytest.SessionsRig {
			s := gatewaytest.NewSessions()
			s.Most = 5
			return gatewaytest.SessionsRig{Most: s.Most, Replica: func() gateway.Sessions { return s }, Later: func() {}}
		})
	})
	t.Run("attempts", func(t *testing.T) {
		gatewaytest.AttemptsContract(t, func(*testing.T) gatewaytest.AttemptsRig {
			a := &gatewaytest.Attempts{}
			return gatewaytest.AttemptsRig{Replica: func() gateway.Attempts { return a }}
		})
	})
	t.Run("handles", func(t *testing.T) {
		gatewaytest.HandlesContract(t, func(testing.TB) gatewaytest.HandlesRig {
			h, now := gatewaytest.NewHandles(), time.Now().Truncate(time.Millisecond)
			h.Now = func() time.Time { return now }
			return gatewaytest.HandlesRig{
				Replica: func() gateway.Handles { return h },
				Advance: func(d time.Duration) bool { now = now.Add(d); return true },
				Now:     func() time.Time { return now },
			}
		})
	})
}
