package gatewaytest

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
)

// An AttemptsRig is attempts under test.
type AttemptsRig struct {
	Replica func() gateway.Attempts  // one more replica of the same attempts, running until the test ends
	Advance func(time.Duration) bool // moves the outside system's clock; false where it is not ours to move
	Window  time.Duration            // how long one is remembered; zero: for ever
	Stop    func()                   // the outside system stops; nil where there is none
	Start   func()                   // and comes back with what it had
}

// AttemptsContract holds attempts to what [gateway.Attempts] promises.
func AttemptsContract(t *testing.T, open func(t *testing.T) AttemptsRig) {
	broke := func(t *testing.T, a gateway.Attempts, tenant, key string, one gateway.Attempt) {
		t.Helper()
		if err := a.Broke(t.Context(), tenant, key, one); err != nil {
			t.Fatal(err)
		}
	}
	none := func(t *testing.T, a gateway.Attempts, tenant, key string) {
		t.Helper()
		if got, ok, err := a.Broken(t.Context(), tenant, key); ok || err != nil {
			t.Errorf("%s %s: %+v, %v, %v", tenant, key, got, ok, err)
		}
	}
	// Another replica is told, which takes a moment.
	is := func(t *testing.T, a gateway.Attempts, tenant, key string, want gateway.Attempt) {
		t.Helper()
		await(t, key+" is known", func() bool {
			got, ok, err := a.Broken(t.Context(), tenant, key)
			return ok && err == nil && reflect.DeepEqual(got, want)
		})
	}

	t.Run("remembered as it was, on every replica", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for key, want := range map[string]gateway.Attempt{
			"answered": {Call: "call-1", Answer: []byte("{ \"content\" : [\"<b>\"],\n\"x\":1e2 }\x00\xff")},
			"an-error": {Call: "call-2", Answer: []byte(`{"code":-32603}`), Error: true},
			"in-doubt": {Call: "call-3", Doubt: true},
		} {
			none(t, a, "acme", key)
			none(t, b, "acme", key)
			broke(t, a, "acme", key, want)
			if got, ok, err := a.Broken(t.Context(), "acme", key); !ok || err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("here, at once: %+v, %v, %v", got, ok, err)
			}
			is(t, b, "acme", key, want)
			is(t, b, "acme", key, want) // as often as it is asked for
			none(t, a, "globex", key)
			none(t, b, "globex", key)
			is(t, rig.Replica(), "acme", key, want) // one that came later
		}
	})

	t.Run("a later one takes its place", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		broke(t, a, "acme", "k", gateway.Attempt{Call: "call-1", Doubt: true})
		broke(t, b, "acme", "k", gateway.Attempt{Call: "call-2", Answer: []byte(`{}`)})
		broke(t, b, "globex", "k", gateway.Attempt{Call: "call-3", Doubt: true})
		is(t, a, "acme", "k", gateway.Attempt{Call: "call-2", Answer: []byte(`{}`)})
		is(t, a, "globex", "k", gateway.Attempt{Call: "call-3", Doubt: true})
	})

	t.Run("many at once", func(t *testing.T) {
		rig := open(t)
		replicas := []gateway.Attempts{rig.Replica(), rig.Replica()}
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				broke(t, replicas[i%2], "acme", fmt.Sprint("k-", i), gateway.Attempt{Call: fmt.Sprint("call-", i), Doubt: true})
			})
		}
		all.Wait()
		for i := range 200 {
			is(t, replicas[(i+1)%2], "acme", fmt.Sprint("k-", i), gateway.Attempt{Call: fmt.Sprint("call-", i), Doubt: true})
		}
	})

	t.Run("forgotten after the window", func(t *testing.T) {
		rig := open(t)
		if rig.Window == 0 || !rig.Advance(0) {
			t.Skip("no clock to move")
		}
		a, b := rig.Replica(), rig.Replica()
		broke(t, a, "acme", "k", gateway.Attempt{Call: "call-1", Doubt: true})
		rig.Advance(rig.Window - time.Second)
		is(t, b, "acme", "k", gateway.Attempt{Call: "call-1", Doubt: true})
		rig.Advance(2 * time.Second)
		none(t, a, "acme", "k")
		none(t, b, "acme", "k")
	})

	t.Run("a restart loses nothing, and while it lasts nobody knows", func(t *testing.T) {
		rig := open(t)
		if rig.Stop == nil {
			t.Skip("nothing to restart")
		}
		a, b := rig.Replica(), rig.Replica()
		broke(t, a, "acme", "before", gateway.Attempt{Call: "call-1", Doubt: true})
		is(t, b, "acme", "before", gateway.Attempt{Call: "call-1", Doubt: true})
		rig.Stop()
		if err := a.Broke(t.Context(), "acme", "meanwhile", gateway.Attempt{Call: "call-2", Doubt: true}); err == nil {
			t.Error("remembered while nobody could be told")
		}
		if _, _, err := b.Broken(t.Context(), "acme", "before"); err == nil {
			t.Error("answered while nobody knows")
		}
		await(t, "what nobody broke is not sure either", func() bool {
			_, _, err := b.Broken(t.Context(), "acme", "other")
			return err != nil
		})
		rig.Start()
		await(t, "what broke can be told again", func() bool {
			return a.Broke(t.Context(), "acme", "after", gateway.Attempt{Call: "call-3", Doubt: true}) == nil
		})
		for key, call := range map[string]string{"before": "call-1", "after": "call-3"} {
			is(t, a, "acme", key, gateway.Attempt{Call: call, Doubt: true})
			is(t, b, "acme", key, gateway.Attempt{Call: call, Doubt: true})
		}
	})
}
