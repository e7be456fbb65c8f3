package gatewaytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// LeaseFacts is a Recorder that remembers, and makes one fact of those with one key,
// as the log does.
type LeaseFacts struct {
	mu   sync.Mutex
	all  []gateway.Fact
	fail error
}

// Record implements gateway.Recorder.
func (r *LeaseFacts) Record(_ context.Context, facts ...gateway.Fact) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	for _, f := range facts {
		if f.Key == "" || !slices.ContainsFunc(r.all, func(o gateway.Fact) bool { return o.Key == f.Key }) {
			r.all = append(r.all, f)
		}
	}
	return nil
}

// Durable implements gateway.Recorder.
func (r *LeaseFacts) Durable(ctx context.Context, facts ...gateway.Fact) error {
	return r.Record(ctx, facts...)
}

// Fail makes every record fail, until it is told nil.
func (r *LeaseFacts) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// Of returns what was recorded of a lease; of all where id is empty.
func (r *LeaseFacts) Of(id string) (facts []gateway.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.all {
		if id == "" || f.Lease != nil && f.Lease.ID == id {
			facts = append(facts, f)
		}
	}
	return facts
}

// Story is what was recorded of a lease, in one line.
func (r *LeaseFacts) Story(id string) string {
	var said []string
	for _, f := range r.Of(id) {
		s := strings.TrimPrefix(string(f.Type), "secret.")
		if f.LeaseEnd != nil && f.LeaseEnd.Confirmed {
			s += "!"
		}
		said = append(said, s)
	}
	return strings.Join(said, " ")
}

// Faults that a LeasesRig can bring about.
const (
	FaultSealed     = "sealed"      // the system refuses everything
	FaultDown       = "down"        // it cannot be reached
	FaultRate       = "rate"        // it refuses for too many requests
	FaultLoseSecret = "lose-secret" // it issues, and its answer never comes
	FaultLoseToken  = "lose-token"  // the same when asked for a token
	FaultRevoke     = "revoke"      // it does not revoke
	FaultLookup     = "lookup"      // it revokes, and does not say what it still has
)

// A LeasesRig is the outside of a gateway.Leases under test: a system that issues,
// and hands to make it fail. Its servers are "call" and "task" (a lease that can
// be revoked, per call and per task), "brief" (the same, per task, living for two
// seconds), "static" and "static-task" (a static secret), "forbidden" (the system
// does not permit it), "missing" (there is no such secret) and "unfit" (the secret
// lacks a field), all of tenant "acme"; tenant "globex" has none.
type LeasesRig struct {
	Start  func(t *testing.T) LeasesProcess // a new process of the same gateway, running
	Facts  *LeaseFacts                      // what all of them record
	Live   func(t *testing.T) (leases, tokens int)
	Works  func(t *testing.T, l gateway.Lease) bool // what l holds is good at its target; asked once per lease
	Fault  func(t *testing.T, fault string) (repair func())
	Stored func(t *testing.T) string // everything that is kept or logged
	Static string                    // the static secret's value
}

// A LeasesProcess is one life of the process that holds a gateway.Leases.
type LeasesProcess struct {
	gateway.Leases
	InLedger func(t *testing.T, id string) bool
	Kill     func()                      // ends it without a word
	Close    func(context.Context) error // ends it properly
}

// LeasesContract holds a gateway.Leases to what the gateway relies on.
func LeasesContract(t *testing.T, rig func(t *testing.T) *LeasesRig) {
	for _, c := range []struct {
		fact string
		test func(*leasesTest)
	}{
		{"a call's lease is in the ledger, works, and is proven gone when given back", (*leasesTest).perCall},
		{"a server without a binding needs no credential", (*leasesTest).unbound},
		{"a task's calls share one lease, issued once, ended with the task", (*leasesTest).perTask},
		{"ending a task ends the leases of its running calls, and no more are issued", (*leasesTest).endTask},
		{"an expired lease is never handed out, and its end is on record", (*leasesTest).expiry},
		{"a lease without a task lives for its call", (*leasesTest).noTask},
		{"what a crash left behind is ended by the next start", (*leasesTest).crash},
		{"a proper stop leaves nothing", (*leasesTest).stop},
		{"a static secret is disclosed, never revoked", (*leasesTest).static},
		{"a sealed system refuses, and a lease outlives it only until it answers again", (*leasesTest).sealed},
		{"a system that is down or too busy refuses", (*leasesTest).down},
		{"what is not permitted, not there or unfit is refused, and leaves nothing", (*leasesTest).refused},
		{"an issue whose answer is lost is ended by its token", (*leasesTest).lostSecret},
		{"a token whose answer is lost was never used", (*leasesTest).lostToken},
		{"a revoke that fails is alerted once, and done in the end", (*leasesTest).revokeFails},
		{"a lease that cannot be looked up is not called revoked", (*leasesTest).lookupFails},
		{"nothing is issued, and no end forgotten, while nothing can be recorded", (*leasesTest).noRecord},
		{"a caller that goes away leaves nothing", (*leasesTest).gone},
	} {
		t.Run(c.fact, func(t *testing.T) {
			x := &leasesTest{T: t, LeasesRig: rig(t)}
			x.LeasesProcess = x.Start(t)
			c.test(x)
			// Whatever happened, no value is anywhere but in a lease.
			x.silent()
		})
	}
}

type leasesTest struct {
	*testing.T
	*LeasesRig
	LeasesProcess

	mu     sync.Mutex
	calls  int
	values []string // every secret that was handed out
	said   []string // every error
}

// lease asks for a lease for a new call, and notes what came back.
func (x *leasesTest) lease(ctx context.Context, task, server string) (gateway.Lease, error) {
	x.mu.Lock()
	x.calls++
	call := fmt.Sprintf("call-%d", x.calls)
	x.mu.Unlock()
	l, err := x.Lease(ctx, "acme", task, call, server)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, v := range l.Values {
		x.values = append(x.values, v.Reveal())
	}
	if err != nil {
		x.said = append(x.said, err.Error())
		if !errors.Is(err, gateway.ErrNoCredential) || l.ID != "" {
			x.Errorf("a refused lease is %v with %v, want ErrNoCredential and nothing", l.ID, err)
		}
	}
	return l, err
}

func (x *leasesTest) must(task, server string) gateway.Lease {
	x.Helper()
	l, err := x.lease(x.Context(), task, server)
	if err != nil || l.ID == "" {
		x.Fatalf("lease for %s: %v %v", server, l.ID, err)
	}
	return l
}

func (x *leasesTest) giveBack(l gateway.Lease) error {
	ctx, cancel := context.WithTimeout(x.Context(), 5*time.Second)
	defer cancel()
	err := x.GiveBack(ctx, l)
	if err != nil {
		x.said = append(x.said, err.Error())
	}
	return err
}

func (x *leasesTest) endOf(task string) error {
	ctx, cancel := context.WithTimeout(x.Context(), 5*time.Second)
	defer cancel()
	_, err := x.EndTask(ctx, "acme", task)
	return err
}

func (x *leasesTest) live(leases, tokens int) {
	x.Helper()
	if l, k := x.Live(x.T); l != leases || k != tokens {
		x.Errorf("alive: %d leases and %d tokens, want %d and %d", l, k, leases, tokens)
	}
}

func (x *leasesTest) story(id, want string) {
	x.Helper()
	if got := x.Facts.Story(id); got != want {
		x.Errorf("on record of %s: %q, want %q", id, got, want)
	}
}

func (x *leasesTest) await(what string, holds func() bool) {
	x.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.Fatalf("never: %s; on record: %s", what, x.Facts.Story(""))
		}
	}
}

func (x *leasesTest) awaitStory(id, want string) {
	x.Helper()
	x.await(id+" "+want, func() bool { return x.Facts.Story(id) == want })
}

func (x *leasesTest) silent() {
	all := x.Stored(x.T) + fmt.Sprintf("%v", x.Facts.Of("")) + strings.Join(x.said, " ")
	for _, f := range x.Facts.Of("") {
		lease, err := json.Marshal(f.Lease)
		if err != nil {
			x.Fatal(err)
		}
		all += string(lease) + fmt.Sprintf("%+v %#v", *f.Lease, *f.Lease)
	}
	for _, v := range append(x.values, x.Static) {
		if v != "" && strings.Contains(all, v) {
			x.Errorf("a secret's value was stored, recorded, logged or said in an error")
		}
	}
}

func (x *leasesTest) perCall() {
	l := x.must("task-1", "call")
	if !l.Fresh || !l.PerCall || l.Class == "" || l.LeaseHash == "" || l.RequestID == "" || l.Server != "call" || l.Expires.Before(time.Now()) {
		x.Errorf("lease is %+v", l)
	}
	if len(l.Headers) != 1 || !strings.HasPrefix(l.Headers["Authorization"].Reveal(), "Bearer ") || len(l.Values) != 1 ||
		l.Headers["Authorization"].Reveal() != "Bearer "+l.Values[0].Reveal() {
		x.Error("the header is not the template filled with the secret's field")
	}
	x.story(l.ID, "requested")
	x.live(1, 1)
	if !x.InLedger(x.T, l.ID) {
		x.Error("not in the ledger while it lives")
	}
	if !x.Works(x.T, l) {
		x.Error("the credential does not work")
	}
	other := x.must("task-1", "call")
	if other.ID == l.ID || other.Values[0].Reveal() == l.Values[0].Reveal() {
		x.Error("two calls share what is one call's")
	}
	for _, l := range []gateway.Lease{l, other, l} { // once more harms nothing
		if err := x.giveBack(l); err != nil {
			x.Error(err)
		}
		x.story(l.ID, "requested revoked!")
		if x.InLedger(x.T, l.ID) {
			x.Error("in the ledger after its end")
		}
	}
	if x.Works(x.T, other) {
		x.Error("the credential works after its end")
	}
	x.live(0, 0)
	for _, f := range x.Facts.Of(l.ID) {
		if f.Task == nil || f.Task.ID != "task-1" || f.Call == nil || f.Call.ID == "" || f.Tenant != "acme" {
			x.Errorf("%s does not say for which task and call", f.Type)
		}
	}
}

func (x *leasesTest) unbound() {
	for _, c := range [][2]string{{"acme", "nothing"}, {"globex", "call"}} {
		l, err := x.Lease(x.Context(), c[0], "task-1", "call-1", c[1])
		if l.ID != "" || err != nil || l.Headers != nil {
			x.Errorf("%v: %v %v", c, l.ID, err)
		}
		if err := x.giveBack(l); err != nil {
			x.Error(err)
		}
	}
	x.story("", "")
}

func (x *leasesTest) perTask() {
	leases := make(chan gateway.Lease, 16)
	var all sync.WaitGroup
	for range cap(leases) {
		all.Go(func() {
			if l, err := x.lease(x.Context(), "task-1", "task"); err != nil {
				x.Error(err)
			} else {
				leases <- l
			}
		})
	}
	all.Wait()
	close(leases)
	fresh, first := 0, gateway.Lease{}
	for l := range leases {
		if l.Fresh {
			fresh++
		}
		if first.ID == "" {
			first = l
		}
		if l.ID != first.ID || l.PerCall || l.Values[0].Reveal() != first.Values[0].Reveal() {
			x.Error("a task's calls do not share its lease")
		}
		if err := x.giveBack(l); err != nil { // it is the task's
			x.Error(err)
		}
	}
	if fresh != 1 {
		x.Errorf("new for %d calls, want 1", fresh)
	}
	x.live(1, 1)
	if other := x.must("task-2", "task"); other.ID == first.ID {
		x.Error("two tasks share a lease")
	}
	x.live(2, 2)
	if err := x.endOf("task-1"); err != nil {
		x.Error(err)
	}
	x.story(first.ID, "requested revoked!")
	x.live(1, 1) // the other task's
	if _, err := x.lease(x.Context(), "task-1", "task"); err == nil {
		x.Error("an ended task got a lease")
	}
	if err := x.endOf("task-2"); err != nil {
		x.Error(err)
	}
	x.live(0, 0)
}

func (x *leasesTest) endTask() {
	mine := []gateway.Lease{x.must("task-1", "call"), x.must("task-1", "call"), x.must("task-1", "task"), x.must("task-1", "static")}
	if err := x.endOf("task-1"); err != nil {
		x.Error(err)
	}
	x.live(0, 0)
	for _, l := range mine[:3] {
		x.story(l.ID, "requested revoked!")
	}
	x.story(mine[3].ID, "requested disclosed")
	for _, server := range []string{"call", "task", "static"} {
		if _, err := x.lease(x.Context(), "task-1", server); err == nil {
			x.Errorf("an ended task got a lease for %s", server)
		}
	}
	if err := x.giveBack(mine[0]); err != nil { // its call ends only now
		x.Error(err)
	}
	x.story(mine[0].ID, "requested revoked!")
	x.live(0, 0)
}

func (x *leasesTest) expiry() {
	first := x.must("task-1", "brief")
	x.await("another lease, for the first has expired", func() bool {
		l := x.must("task-1", "brief")
		if l.ID == first.ID && time.Now().After(l.Expires) {
			x.Fatal("an expired lease was handed out")
		}
		return l.ID != first.ID
	})
	x.await("the end of the first", func() bool { return len(x.Facts.Of(first.ID)) == 2 })
	x.story(first.ID, "requested expired!")
	if err := x.endOf("task-1"); err != nil {
		x.Error(err)
	}
	x.await("none alive", func() bool { l, k := x.Live(x.T); return l+k == 0 })
}

func (x *leasesTest) noTask() {
	l := x.must("", "task")
	if !l.PerCall {
		x.Error("it is nobody's to end")
	}
	if err := x.giveBack(l); err != nil {
		x.Error(err)
	}
	x.story(l.ID, "requested revoked!")
	x.live(0, 0)
}

func (x *leasesTest) crash() {
	left := []gateway.Lease{x.must("task-1", "call"), x.must("task-1", "task"), x.must("task-2", "task"), x.must("", "call")}
	static := x.must("task-1", "static-task")
	x.Kill()
	x.live(4, 5)
	x.LeasesProcess = x.Start(x.T)
	for _, l := range left {
		x.awaitStory(l.ID, "requested revoked!")
	}
	x.awaitStory(static.ID, "requested disclosed")
	x.live(0, 0)
	again := x.must("task-1", "task") // the task goes on with another
	if again.ID == left[1].ID {
		x.Error("a lease outlived its process")
	}
	if err := x.endOf("task-1"); err != nil {
		x.Error(err)
	}
	x.live(0, 0)
}

func (x *leasesTest) stop() {
	left := []gateway.Lease{x.must("task-1", "call"), x.must("task-1", "task"), x.must("", "call")}
	if err := x.Close(x.Context()); err != nil {
		x.Error(err)
	}
	x.live(0, 0)
	for _, l := range left {
		x.story(l.ID, "requested revoked!")
	}
	if _, err := x.lease(x.Context(), "task-1", "task"); err == nil {
		x.Error("issued after it was stopped")
	}
}

func (x *leasesTest) static() {
	l := x.must("task-1", "static")
	if l.Class != "static" && l.Class != "stand-in" || l.Engine != "kv" || l.Version == "" || l.LeaseHash != "" || !l.Expires.IsZero() {
		x.Errorf("lease is %+v", l)
	}
	if len(l.Env) != 1 || l.Env["TOKEN"].Reveal() != x.Static {
		x.Error("the environment is not the template filled with the secret's field")
	}
	if err := x.giveBack(l); err != nil {
		x.Error(err)
	}
	shared := x.must("task-1", "static-task")
	if again := x.must("task-1", "static-task"); again.ID != shared.ID || again.Fresh {
		x.Error("a task's calls do not share its secret")
	}
	if err := x.endOf("task-1"); err != nil {
		x.Error(err)
	}
	x.story(l.ID, "requested disclosed")
	x.story(shared.ID, "requested disclosed")
	x.live(0, 0)
}

func (x *leasesTest) sealed() {
	l := x.must("task-1", "call")
	repair := x.Fault(x.T, FaultSealed)
	x.refuses("call", "sealed")
	if err := x.giveBack(l); err == nil {
		x.Error("said to have ended while the system was sealed")
	}
	x.story(l.ID, "requested revoke_failed")
	repair()
	x.awaitStory(l.ID, "requested revoke_failed revoked!")
	x.await("none alive", func() bool { l, k := x.Live(x.T); return l+k == 0 })
	x.await("leases again", func() bool {
		l, err := x.lease(x.Context(), "task-1", "call")
		return err == nil && x.giveBack(l) == nil
	})
}

// refuses says that a server's credential is refused, for a reason that is on
// record, and that nothing is left of it.
func (x *leasesTest) refuses(server, reason string) {
	x.Helper()
	before := len(x.Facts.Of(""))
	if _, err := x.lease(x.Context(), "task-1", server); err == nil {
		x.Fatalf("%s: issued", server)
	}
	facts := x.Facts.Of("")[before:]
	if len(facts) == 0 {
		x.Fatalf("%s: nothing on record", server)
	}
	f := facts[len(facts)-1]
	if f.Type != audit.SecretRefused || !strings.HasPrefix(f.Detail, reason+":") {
		x.Errorf("%s: last on record is %s %q, want secret.refused %s", server, f.Type, f.Detail, reason)
	}
	x.await("out of the ledger", func() bool { return !x.InLedger(x.T, f.Lease.ID) })
}

func (x *leasesTest) down() {
	for fault, reason := range map[string]string{FaultDown: "unreachable", FaultRate: "rate limited"} {
		repair := x.Fault(x.T, fault)
		x.refuses("call", reason)
		repair()
		x.await("leases again", func() bool {
			l, err := x.lease(x.Context(), "task-1", "call")
			return err == nil && x.giveBack(l) == nil
		})
	}
	x.live(0, 0)
}

func (x *leasesTest) refused() {
	x.refuses("forbidden", "permission")
	x.refuses("missing", "not found")
	x.refuses("unfit", "secret unusable")
	x.live(0, 0)
}

func (x *leasesTest) lostSecret() {
	repair := x.Fault(x.T, FaultLoseSecret)
	if _, err := x.lease(x.Context(), "task-1", "call"); err == nil {
		x.Fatal("issued")
	}
	repair()
	id := x.Facts.Of("")[0].Lease.ID
	x.awaitStory(id, "requested refused revoked") // by its token, which is all that can be said
	x.await("none alive", func() bool { l, k := x.Live(x.T); return l+k == 0 })
	if x.InLedger(x.T, id) {
		x.Error("in the ledger after its end")
	}
}

func (x *leasesTest) lostToken() {
	repair := x.Fault(x.T, FaultLoseToken)
	x.refuses("call", "unreachable")
	repair()
	x.live(0, 1) // nobody has it, and nothing can hang from it
}

func (x *leasesTest) revokeFails() {
	l := x.must("task-1", "call")
	shared := x.must("task-1", "task")
	repair := x.Fault(x.T, FaultRevoke)
	if err := x.giveBack(l); err == nil {
		x.Error("said to have ended")
	}
	if err := x.endOf("task-1"); err == nil {
		x.Error("said to have ended")
	}
	for _, l := range []gateway.Lease{l, shared} {
		x.story(l.ID, "requested revoke_failed")
		if !x.InLedger(x.T, l.ID) {
			x.Error("not in the ledger while it may live")
		}
	}
	repair()
	for _, l := range []gateway.Lease{l, shared} {
		x.awaitStory(l.ID, "requested revoke_failed revoked!")
	}
	x.live(0, 0)
}

func (x *leasesTest) lookupFails() {
	l := x.must("task-1", "call")
	repair := x.Fault(x.T, FaultLookup)
	if err := x.giveBack(l); err == nil {
		x.Error("said to have ended, unproven")
	}
	x.story(l.ID, "requested revoke_failed")
	repair()
	x.awaitStory(l.ID, "requested revoke_failed revoked!")
	x.live(0, 0)
}

func (x *leasesTest) noRecord() {
	l := x.must("task-1", "call")
	x.Facts.Fail(errors.New("the disk is full"))
	if _, err := x.lease(x.Context(), "task-1", "call"); err == nil {
		x.Error("issued without a record")
	}
	x.live(1, 1)
	if err := x.giveBack(l); err == nil {
		x.Error("ended without a record")
	}
	x.live(0, 0) // all the same
	if !x.InLedger(x.T, l.ID) {
		x.Error("forgotten before its end is on record")
	}
	x.Facts.Fail(nil)
	x.await("its end on record", func() bool {
		f := x.Facts.Of(l.ID)
		return f[len(f)-1].LeaseEnd != nil && f[len(f)-1].LeaseEnd.Kind == "revoked"
	})
}

func (x *leasesTest) gone() {
	ctx, cancel := context.WithCancel(x.Context())
	cancel()
	if _, err := x.lease(ctx, "task-1", "call"); err == nil {
		x.Error("handed to nobody")
	}
	x.await("an end of what was issued", func() bool {
		f := x.Facts.Of("")
		return len(f) > 1 && f[len(f)-1].LeaseEnd != nil
	})
	x.live(0, 0)
}
