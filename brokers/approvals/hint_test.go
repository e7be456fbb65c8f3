package approvals

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// A hint and the safety net each wake who waits on another replica, without the
// other.
func TestBothWaysToBeWoken(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		open := func() *Approvals {
			a, err := New(Config{Store: s.Open(t, "acme"), Recorder: &gatewaytest.Facts{}})
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		a, b := open(), open()
		now := time.Now()
		r := gateway.ApprovalRequest{
			ID: "apr-1", Tenant: "acme", Fingerprint: "f", Digest: "d", TaskID: "task-1", Args: json.RawMessage(`{}`),
			Need: []authz.Requirement{{N: 1}}, Created: now, Expires: now.Add(time.Hour),
		}
		move := func() { // a transition, whichever is possible
			if _, fresh, err := a.Request(t.Context(), r); err != nil {
				t.Fatal(err)
			} else if fresh {
				if _, err := a.Vote(t.Context(), "acme", r.ID, gateway.Vote{By: "alice", Approve: true, Digest: "d"}); err != nil {
					t.Fatal(err)
				}
				return
			}
			g, err := a.Claim(t.Context(), "acme", r.ID, "call-1")
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Release(t.Context(), g); err != nil {
				t.Fatal(err)
			}
		}
		rung, stop := b.bell.wait(ref{"acme", r.ID})
		defer stop()

		moves := map[string]string{}
		b.lookForMoves(t.Context(), "acme", moves)
		for range 2 {
			move()
			for len(rung) > 0 {
				<-rung
			}
			if b.lookForMoves(t.Context(), "acme", moves); len(rung) != 1 {
				t.Error("the safety net did not notice")
			}
			<-rung
			if b.lookForMoves(t.Context(), "acme", moves); len(rung) != 0 {
				t.Error("the safety net rings when nothing moved")
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.listen(ctx)
		redistest.Await(t, "a hint arrives", func() bool { // nobody says when it listens
			move()
			return len(rung) == 1
		})
	})
}
