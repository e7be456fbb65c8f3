// Package brokers opens what several brokers share. The brokers themselves are
// the packages below it, one per outside system.
package brokers

import "toolbroker/brokers/internal/redis"

// A StoreConfig says which Redis the brokers share, and for which tenants.
type StoreConfig = redis.Config

// OpenStore opens the store that the brokers' configs take. It does not wait
// for Redis; the store's Ping does.
func OpenStore(c StoreConfig) (*redis.Store, error) { return redis.Open(c) }
