package secrets

import (
	"testing"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway/gatewaytest"
)

func TestContract(t *testing.T) {
	t.Run("stand-in Vault", func(t *testing.T) {
		redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
			s := start(t)
			gatewaytest.LeasesContract(t, func(t *testing.T) *gatewaytest.LeasesRig {
				s.Do(t, "FLUSHALL")
				return newWorld(t, standIn(t), s).rig(t)
			})
		})
	})
	t.Run("stand-in Vault and a store that dies with the process", func(t *testing.T) {
		gatewaytest.LeasesContract(t, func(t *testing.T) *gatewaytest.LeasesRig {
			return newWorld(t, standIn(t), nil).rig(t)
		})
	})
	t.Run("real Vault", func(t *testing.T) {
		b, s := realVault(t), redistest.Embedded(t)
		gatewaytest.LeasesContract(t, func(t *testing.T) *gatewaytest.LeasesRig {
			s.Do(t, "FLUSHALL")
			return newWorld(t, b, s).rig(t)
		})
	})
}
