package attempts

import (
	"time"

	"toolbroker/gateway"
)

// Age makes a run that much older.
func Age(one gateway.Try, by time.Duration) {
	t := one.(*try)
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.since = t.since.Add(-by)
}
