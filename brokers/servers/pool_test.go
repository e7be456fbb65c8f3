package servers

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"toolbroker/gateway"
)

// Whoever keeps all their sessions at a server busy has used up a share: their own,
// then their tenant's. Everybody else finds room.
func TestNobodyTakesAllOfAServer(t *testing.T) {
	p := &pool{links: map[key]*pooled{}, tidy: func(func()) {}}
	take := func(tenant, principal string, n int) error {
		_, err := p.entry(t.Context(), key{server: "x", tenant: tenant, principal: principal, session: fmt.Sprint(n)}, func(context.Context) (link, error) {
			return &web{desk: newDesk(&server{})}, nil
		})
		return err
	}
	for _, c := range []struct {
		tenant, principal string
		fit               int
	}{
		{"a", "p", maxLinks / 4}, {"a", "q", maxLinks / 4}, {"a", "r", maxLinks / 4}, {"a", "s", 0}, // three quarters are their tenant's
		{"b", "p", maxLinks / 4}, {"c", "p", 0},
	} {
		n := 0
		var err error
		for ; n < maxLinks && err == nil; n++ {
			err = take(c.tenant, c.principal, n)
		}
		if n-1 != c.fit || !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("%s of %s: %d, %v; want %d", c.principal, c.tenant, n-1, err, c.fit)
		}
	}
	for _, e := range p.links { // one is done with
		e.users = 0
		break
	}
	for k, e := range p.links {
		if e.users == 0 {
			if err := take(k.tenant, k.principal, -1); err != nil || len(p.links) != maxLinks {
				t.Errorf("where one is idle: %d, %v", len(p.links), err)
			}
			break
		}
	}
}
