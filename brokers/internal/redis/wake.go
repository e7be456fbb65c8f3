package redis

import (
	"context"
	"strings"
)

// Topic is the channel that a tenant's transitions, or [Shared] ones, PUBLISH to,
// an id each. It is handed to scripts among their keys.
func (s *Store) Topic(tenant, topic string) (Key, error) {
	if tenant == Shared {
		return s.Key(Shared, wakeShared, topic)
	}
	return s.Key(tenant, wake, topic)
}

// A Woken is a hint that something changed.
type Woken struct{ Tenant, ID string }

// Listen sends a hint for every change that any replica publishes to a topic,
// until ctx ends. Hints get lost: whoever waits also looks for itself now and
// then.
func (s *Store) Listen(ctx context.Context, topic string) (<-chan Woken, error) {
	channels := map[string]string{}
	var names []string
	for _, t := range append([]string{Shared}, s.tenants...) {
		k, err := s.Topic(t, topic)
		if err != nil {
			return nil, err
		}
		channels[k.name], names = t, append(names, k.name)
	}
	sub := s.client.Subscribe(ctx, names...)
	hints := make(chan Woken)
	go func() {
		defer close(hints)
		defer sub.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case m, ok := <-sub.Channel():
				if !ok {
					return
				}
				select {
				case hints <- Woken{channels[m.Channel], strings.Clone(m.Payload)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return hints, nil
}
