package gatewaytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// An ApprovalsRig is approvals under test. They have the tenants "acme" and
// "globex"; a grant can be used for 5 minutes, held for 2, and a task may have 8
// open requests.
type ApprovalsRig struct {
	Replica func() gateway.Approvals // one more replica of the same approvals, running until the test ends
	Facts   *Facts                   // what its replicas recorded
	Stop    func()                   // the outside system stops
	Start   func()                   // and comes back with what it had

	// Advance moves the outside system's clock, which stands still from the
	// first call on, and Now reads it. Advance returns false where the clock is
	// not ours to move; what needs it is then left out.
	Advance func(time.Duration) bool
	Now     func() time.Time
}

const (
	useWindow   = 5 * time.Minute
	reservation = 2 * time.Minute
	perTask     = 8
)

// ApprovalsContract holds approvals to what [gateway.Approvals] promises.
func ApprovalsContract(t *testing.T, open func(t testing.TB) ApprovalsRig) {
	ask := func(t *testing.T, a gateway.Approvals, r gateway.ApprovalRequest) gateway.ApprovalRequest {
		t.Helper()
		got, fresh, err := a.Request(t.Context(), r)
		if err != nil || !fresh || got.State != gateway.ApprovalPending || got.Seq != 1 {
			t.Fatalf("Request = %s, seq %d, fresh %v, %v", got.State, got.Seq, fresh, err)
		}
		return got
	}
	vote := func(t *testing.T, a gateway.Approvals, r gateway.ApprovalRequest, by string, approve bool) gateway.ApprovalRequest {
		t.Helper()
		got, err := a.Vote(t.Context(), r.Tenant, r.ID, aVote(r, by, approve))
		if err != nil {
			t.Fatalf("%s votes %v: %v", by, approve, err)
		}
		return got
	}
	claim := func(t *testing.T, a gateway.Approvals, r gateway.ApprovalRequest, call string) gateway.Grant {
		t.Helper()
		g, err := a.Claim(t.Context(), r.Tenant, r.ID, call)
		if err != nil {
			t.Fatalf("Claim: %v", err)
		}
		return g
	}
	is := func(t *testing.T, a gateway.Approvals, r gateway.ApprovalRequest, want gateway.ApprovalState) gateway.ApprovalRequest {
		t.Helper()
		got, err := a.Get(t.Context(), r.Tenant, r.ID)
		if err != nil || got.State != want {
			t.Fatalf("it is %s, %v; want %s", got.State, err, want)
		}
		if got.State.Final() != (got.Args == nil) {
			t.Errorf("%s, with arguments %q", got.State, got.Args)
		}
		return got
	}
	refused := func(t *testing.T, what string, err error) {
		t.Helper()
		if !errors.Is(err, gateway.ErrNotNow) {
			t.Errorf("%s: %v, want ErrNotNow", what, err)
		}
	}
	granted := func(t *testing.T, a gateway.Approvals, tenant, id string) gateway.ApprovalRequest {
		t.Helper()
		r := ask(t, a, aRequest(tenant, id, time.Now()))
		vote(t, a, r, "alice", true)
		return vote(t, a, r, "bob", true)
	}

	t.Run("asked, answered, used up", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		want := aRequest("acme", "apr-1", rig.Now())
		ask(t, a, want)
		got := is(t, b, want, gateway.ApprovalPending)
		want.State, want.Seq = gateway.ApprovalPending, 1
		if !same(got, want) {
			t.Errorf("it came back as\n%+v\nand was\n%+v", got, want)
		}
		if r := vote(t, b, got, "alice", true); r.State != gateway.ApprovalPending || r.Seq != 2 || len(r.Votes) != 1 {
			t.Errorf("after one of two: %s, %d", r.State, r.Seq)
		}
		r := vote(t, a, got, "bob", true)
		if r.State != gateway.ApprovalGranted || r.Seq != 3 || len(r.Votes) != 2 {
			t.Errorf("after two of two: %s, %d", r.State, r.Seq)
		}
		g := claim(t, b, r, "call-1")
		want.State, want.Seq, want.Votes = gateway.ApprovalReserved, 4, r.Votes
		if g.Call != "call-1" || !same(g.Request, want) {
			t.Errorf("the grant is\n%+v\nwant\n%+v", g.Request, want)
		}
		if err := b.Consume(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if r := is(t, a, r, gateway.ApprovalConsumed); r.Seq != 5 || len(r.Votes) != 2 {
			t.Errorf("in the end: %+v", r)
		}
		// What the gateway records itself does not come twice.
		await(t, "the grant is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalGranted)) == 1 })
		f := rig.Facts.Of()[0]
		if len(rig.Facts.Of()) != 1 || f.Approval.ID != "apr-1" || f.Approval.Seq != 3 || len(f.Approval.Votes) != 2 || f.Approval.Args != nil ||
			f.Tenant != "acme" || f.Task.ID != "task-1" || f.Task.Parent != "task-0" || len(f.Task.Ancestors) != 1 || f.Task.State != gateway.TaskRunning || f.Principal.ID != want.Principal || f.At.IsZero() {
			t.Errorf("recorded: %+v", rig.Facts.Of())
		}
	})

	t.Run("repeats attach", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for name, c := range map[string]struct {
			attach bool
			do     func(t *testing.T, r gateway.ApprovalRequest)
		}{
			"pending": {true, func(t *testing.T, r gateway.ApprovalRequest) {}},
			"voted":   {true, func(t *testing.T, r gateway.ApprovalRequest) { vote(t, a, r, "alice", true) }},
			"denied":  {true, func(t *testing.T, r gateway.ApprovalRequest) { vote(t, a, r, "alice", false) }},
			"granted": {true, func(t *testing.T, r gateway.ApprovalRequest) {
				vote(t, a, r, "alice", true)
				vote(t, a, r, "bob", true)
			}},
			"reserved": {true, func(t *testing.T, r gateway.ApprovalRequest) {
				vote(t, a, r, "alice", true)
				vote(t, a, r, "bob", true)
				claim(t, a, r, "c")
			}},
			"consumed": {false, func(t *testing.T, r gateway.ApprovalRequest) {
				vote(t, a, r, "alice", true)
				vote(t, a, r, "bob", true)
				a.Consume(t.Context(), claim(t, a, r, "c"))
			}},
			"voided": {false, func(t *testing.T, r gateway.ApprovalRequest) {
				vote(t, a, r, "alice", true)
				vote(t, a, r, "bob", true)
				a.Void(t.Context(), claim(t, a, r, "c"))
			}},
		} {
			t.Run(name, func(t *testing.T) {
				first := aRequest("acme", "apr-"+name, time.Now())
				first.TaskID = "task-" + name
				ask(t, a, first)
				c.do(t, first)
				before, _ := a.Get(t.Context(), "acme", first.ID)
				again := first
				again.ID, again.Args = first.ID+"-again", json.RawMessage(`{ "other": "bytes" }`)
				got, fresh, err := b.Request(t.Context(), again)
				if err != nil || fresh == c.attach {
					t.Fatalf("fresh %v, %v", fresh, err)
				}
				if c.attach && !same(got, before) {
					t.Errorf("attached to\n%+v\nwhich is\n%+v", got, before)
				}
				if _, err := a.Get(t.Context(), "acme", again.ID); (err == nil) == c.attach {
					t.Errorf("the repeat: %v", err)
				}
				other := again
				other.Tenant = "globex"
				if _, fresh, err := b.Request(t.Context(), other); err != nil || !fresh {
					t.Errorf("another tenant's attaches: %v, %v", fresh, err)
				}
			})
		}
	})

	t.Run("withdrawn by who waits for it", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		ends := 0
		for name, c := range map[string]struct {
			holders []string // who ask, one after another
			votes   int
			claimed bool
			gone    []string // who withdraw
			want    gateway.ApprovalState
		}{
			"the only one":              {[]string{"h1"}, 0, false, []string{"h1"}, gateway.ApprovalCancelled},
			"twice the same":            {[]string{"h1", "h1"}, 0, false, []string{"h1"}, gateway.ApprovalCancelled},
			"half granted":              {[]string{"h1"}, 1, false, []string{"h1"}, gateway.ApprovalCancelled},
			"granted":                   {[]string{"h1"}, 2, false, []string{"h1"}, gateway.ApprovalCancelled},
			"both":                      {[]string{"h1", "h2"}, 0, false, []string{"h1", "h2"}, gateway.ApprovalCancelled},
			"another waits":             {[]string{"h1", "h2"}, 0, false, []string{"h1", "h1"}, gateway.ApprovalPending},
			"the other waits":           {[]string{"h1", "h2"}, 0, false, []string{"h2"}, gateway.ApprovalPending},
			"another waits for a grant": {[]string{"h1", "h2"}, 2, false, []string{"h1"}, gateway.ApprovalGranted},
			"somebody came first":       {[]string{"", "h1"}, 0, false, []string{"h1"}, gateway.ApprovalPending},
			"somebody came after":       {[]string{"h1", ""}, 0, false, []string{"h1"}, gateway.ApprovalPending},
			"a call is using it":        {[]string{"h1"}, 2, true, []string{"h1"}, gateway.ApprovalReserved},
			"by nobody":                 {[]string{"h1"}, 0, false, []string{""}, gateway.ApprovalPending},
			"by somebody without name":  {[]string{""}, 0, false, []string{""}, gateway.ApprovalPending},
			"by a stranger":             {[]string{"h1"}, 0, false, []string{"h2"}, gateway.ApprovalPending},
		} {
			t.Run(name, func(t *testing.T) {
				r := aRequest("acme", "apr-"+strings.ReplaceAll(name, " ", "-"), time.Now())
				r.TaskID = "task-" + strings.ReplaceAll(name, " ", "-")
				for i, holder := range c.holders {
					again := r
					again.Holder = holder
					if i > 0 {
						again.ID += "-again"
					}
					got, fresh, err := []gateway.Approvals{a, b}[i%2].Request(t.Context(), again)
					if err != nil || fresh != (i == 0) || got.ID != r.ID || got.Holder != "" {
						t.Fatalf("%s asks: %s, fresh %v, for %q, %v", holder, got.ID, fresh, got.Holder, err)
					}
				}
				for _, by := range []string{"alice", "bob"}[:c.votes] {
					vote(t, a, r, by, true)
				}
				if c.claimed {
					claim(t, a, r, "call-1")
				}
				for _, holder := range c.gone {
					if err := b.Withdraw(t.Context(), "acme", r.ID, holder); err != nil {
						t.Fatalf("%q withdraws: %v", holder, err)
					}
				}
				is(t, a, r, c.want)
				if c.want != gateway.ApprovalCancelled {
					return
				}
				ends++
				_, err := a.Vote(t.Context(), "acme", r.ID, aVote(r, "carol", true))
				refused(t, "a vote afterwards", err)
				_, err = a.Claim(t.Context(), "acme", r.ID, "call-2")
				refused(t, "a claim", err)
				if err := a.Withdraw(t.Context(), "acme", r.ID, "h1"); err != nil {
					t.Errorf("once more: %v", err)
				}
				next := r
				next.ID += "-next"
				ask(t, a, next) // it is a new question
			})
		}
		if err := a.Withdraw(t.Context(), "globex", "apr-granted", "h1"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("another tenant's: %v", err)
		}
		await(t, "it is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalCancelled)) == ends })
		for _, f := range rig.Facts.Of(audit.ApprovalCancelled) {
			if f.Detail != "the agent withdrew it" || f.Task.State != gateway.TaskRunning || f.Principal.ID == "" {
				t.Errorf("recorded: %+v", f)
			}
		}
	})

	t.Run("quorum", func(t *testing.T) {
		rig := open(t)
		a := rig.Replica()
		need := func(n int, group string) authz.Requirement { return authz.Requirement{N: n, Group: group} }
		for i, c := range []struct {
			name  string
			need  []authz.Requirement
			votes []string // operators; see groupsOf
			want  gateway.ApprovalState
		}{
			{"one of anyone", []authz.Requirement{need(1, "")}, []string{"alice"}, gateway.ApprovalGranted},
			{"one of a group, by another", []authz.Requirement{need(1, "sre")}, []string{"alice"}, gateway.ApprovalPending},
			{"one of a group", []authz.Requirement{need(1, "sre")}, []string{"alice", "carol"}, gateway.ApprovalGranted},
			{"two of a group, by one of it and one other", []authz.Requirement{need(2, "sre")}, []string{"carol", "alice"}, gateway.ApprovalPending},
			{"two of a group", []authz.Requirement{need(2, "sre")}, []string{"carol", "dave"}, gateway.ApprovalGranted},
			{"a vote counts for each requirement", []authz.Requirement{need(1, "sre"), need(1, "dba"), need(1, "")}, []string{"dave"}, gateway.ApprovalGranted},
			{"all requirements count", []authz.Requirement{need(1, "sre"), need(1, "dba")}, []string{"carol", "alice"}, gateway.ApprovalPending},
			{"a weaker one replaces no stronger", []authz.Requirement{need(3, ""), need(1, "")}, []string{"alice", "bob"}, gateway.ApprovalPending},
			{"in any order", []authz.Requirement{need(1, ""), need(3, "")}, []string{"alice", "bob"}, gateway.ApprovalPending},
			{"none of none is one", []authz.Requirement{need(0, "")}, nil, gateway.ApprovalPending},
			{"less than none is one", []authz.Requirement{need(-1, "sre")}, []string{"alice"}, gateway.ApprovalPending},
		} {
			r := aRequest("acme", fmt.Sprint("apr-", i), time.Now())
			r.Need, r.TaskID = c.need, r.ID
			ask(t, a, r)
			for _, by := range c.votes {
				vote(t, a, r, by, true)
			}
			if got := is(t, a, r, c.want); t.Failed() {
				t.Errorf("%s: %+v", c.name, got.Votes)
			}
			_, err := a.Claim(t.Context(), "acme", r.ID, "call")
			if (err == nil) != (c.want == gateway.ApprovalGranted) {
				t.Errorf("%s: Claim: %v", c.name, err)
			}
		}
		for name, change := range map[string]func(*gateway.ApprovalRequest){
			"nobody to ask":   func(r *gateway.ApprovalRequest) { r.Need = nil },
			"no fingerprint":  func(r *gateway.ApprovalRequest) { r.Fingerprint = "" },
			"no digest":       func(r *gateway.ApprovalRequest) { r.Digest = "" },
			"no id":           func(r *gateway.ApprovalRequest) { r.ID = "" },
			"a strange id":    func(r *gateway.ApprovalRequest) { r.ID = "apr:1" },
			"a strange task":  func(r *gateway.ApprovalRequest) { r.TaskID = "}" },
			"unknown tenant":  func(r *gateway.ApprovalRequest) { r.Tenant = "initech" },
			"expired already": func(r *gateway.ApprovalRequest) { r.Expires = time.Now().Add(-time.Second) },
		} {
			r := aRequest("acme", "apr-bad", time.Now())
			change(&r)
			if _, _, err := a.Request(t.Context(), r); err == nil {
				t.Errorf("%s: asked", name)
			}
		}
	})

	t.Run("votes that do not count", func(t *testing.T) {
		rig := open(t)
		a := rig.Replica()
		r := ask(t, a, aRequest("acme", "apr-1", time.Now()))
		vote(t, a, r, "alice", true)
		_, err := a.Vote(t.Context(), "acme", r.ID, aVote(r, "alice", true))
		refused(t, "a second one of the same operator", err)
		_, err = a.Vote(t.Context(), "acme", r.ID, aVote(r, "alice", false))
		refused(t, "a change of mind", err)
		for _, digest := range []string{"", "sha256:other", r.Fingerprint} {
			v := aVote(r, "bob", true)
			v.Digest = digest
			_, err = a.Vote(t.Context(), "acme", r.ID, v)
			refused(t, "one for another digest", err)
		}
		if _, err := a.Vote(t.Context(), "acme", r.ID, aVote(r, "", true)); err == nil {
			t.Error("nobody's counts")
		}
		if _, err := a.Vote(t.Context(), "globex", r.ID, aVote(r, "bob", true)); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("from another tenant: %v", err)
		}
		if got := is(t, a, r, gateway.ApprovalPending); len(got.Votes) != 1 || got.Seq != 2 {
			t.Errorf("left behind: %+v", got.Votes)
		}
	})

	t.Run("a denial denies", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		r := ask(t, a, aRequest("acme", "apr-1", time.Now()))
		vote(t, a, r, "alice", true)
		vote(t, b, r, "bob", false)
		_, err := a.Vote(t.Context(), "acme", r.ID, aVote(r, "carol", true))
		refused(t, "a vote afterwards", err)
		_, err = a.Claim(t.Context(), "acme", r.ID, "call-1")
		refused(t, "a claim", err)
		is(t, a, r, gateway.ApprovalDenied)
		await(t, "it is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalDenied)) == 1 })
	})

	t.Run("only the call that reserved it", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		r := granted(t, a, "acme", "apr-1")
		g := claim(t, a, r, "call-1")
		thief := g
		thief.Call = "call-2"
		for what, do := range map[string]func(gateway.Approvals, context.Context, gateway.Grant) error{
			"Consume": gateway.Approvals.Consume, "Release": gateway.Approvals.Release, "Void": gateway.Approvals.Void,
		} {
			refused(t, what+" by another call", do(b, t.Context(), thief))
			refused(t, what+" by no call", do(b, t.Context(), gateway.Grant{Request: g.Request}))
		}
		_, err := b.Claim(t.Context(), "acme", r.ID, "call-2")
		refused(t, "a claim of what is reserved", err)
		if _, err := b.Claim(t.Context(), "acme", r.ID, ""); err == nil {
			t.Error("claimed for no call")
		}
		if err := b.Release(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		refused(t, "releasing twice", a.Release(t.Context(), g))
		refused(t, "using up what was given back", a.Consume(t.Context(), g))
		g2 := claim(t, b, r, "call-2")
		refused(t, "the first call again", a.Consume(t.Context(), g))
		if err := a.Consume(t.Context(), g2); err != nil {
			t.Fatal(err)
		}
		refused(t, "using up twice", b.Consume(t.Context(), g2))
		refused(t, "giving back what is used up", b.Release(t.Context(), g2))
		_, err = b.Claim(t.Context(), "acme", r.ID, "call-2")
		refused(t, "claiming what is used up", err)
		is(t, a, r, gateway.ApprovalConsumed)

		r = granted(t, a, "globex", "apr-2")
		g = claim(t, a, r, "call-3")
		if err := a.Void(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		refused(t, "using up what is void", a.Consume(t.Context(), g))
		_, err = b.Claim(t.Context(), "globex", r.ID, "call-3")
		refused(t, "claiming what is void", err)
		await(t, "it is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalVoided)) == 1 })
	})

	t.Run("time passes", func(t *testing.T) {
		rig := open(t)
		if !rig.Advance(0) {
			t.Skip("this clock is not ours to move; see expiry, and the embedded run")
		}
		a, b := rig.Replica(), rig.Replica()
		r := aRequest("acme", "apr-1", rig.Now())
		ask(t, a, r)
		vote(t, a, r, "alice", true)
		vote(t, a, r, "bob", true)
		g := claim(t, a, r, "call-1")
		rig.Advance(reservation) // its replica died
		g2 := claim(t, b, r, "call-2")
		refused(t, "a reservation that lapsed", a.Consume(t.Context(), g))
		refused(t, "giving that back", a.Release(t.Context(), g))
		if got := is(t, a, r, gateway.ApprovalReserved); got.Seq != 6 {
			t.Errorf("seq %d: lapsing is a transition of its own", got.Seq)
		}
		rig.Advance(time.Minute)
		if err := b.Release(t.Context(), g2); err != nil {
			t.Fatal(err)
		}
		rig.Advance(useWindow - reservation - time.Minute)
		_, err := b.Claim(t.Context(), "acme", r.ID, "call-3")
		refused(t, "a grant whose window is over", err)
		is(t, a, r, gateway.ApprovalExpired)

		// A grant never outlives its request, nor a reservation its grant.
		r = aRequest("acme", "apr-2", rig.Now())
		r.Expires = rig.Now().Add(3 * time.Minute)
		ask(t, a, r)
		rig.Advance(2 * time.Minute)
		vote(t, a, r, "alice", true)
		vote(t, a, r, "bob", true)
		g = claim(t, a, r, "call-1")
		rig.Advance(time.Minute)
		refused(t, "using up after expiry", a.Consume(t.Context(), g))
		is(t, b, r, gateway.ApprovalExpired)
		await(t, "both are on record", func() bool { return len(rig.Facts.Of(audit.ApprovalExpired)) == 2 })

		// A denial stays with its fingerprint as long as the request would have lived.
		r = aRequest("acme", "apr-3", rig.Now())
		ask(t, a, r)
		vote(t, a, r, "alice", false)
		again := aRequest("acme", "apr-4", rig.Now())
		again.Fingerprint = r.Fingerprint
		rig.Advance(10*time.Minute - time.Second)
		again.Expires = rig.Now().Add(10 * time.Minute)
		if got, fresh, err := b.Request(t.Context(), again); err != nil || fresh || got.ID != r.ID {
			t.Errorf("a repeat within its life: %s, %v, %v", got.ID, fresh, err)
		}
		rig.Advance(time.Second)
		if _, fresh, err := b.Request(t.Context(), again); err != nil || !fresh {
			t.Errorf("a repeat after it: %v, %v", fresh, err)
		}
		if n := len(rig.Facts.Of(audit.ApprovalExpired)); n != 2 {
			t.Errorf("%d expiries on record: what was denied does not expire", n)
		}
	})

	t.Run("expiry", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		rig.Replica()
		var r gateway.ApprovalRequest
		for ttl := 300 * time.Millisecond; ; ttl *= 2 { // over soon, as soon as this machine can
			r = aRequest("acme", "apr-1", time.Now())
			r.Expires = time.Now().Add(ttl)
			if _, _, err := a.Request(t.Context(), r); err == nil {
				break
			} else if !errors.Is(err, gateway.ErrNotNow) || ttl > time.Minute {
				t.Fatal(err)
			}
		}
		got, err := b.Wait(t.Context(), "acme", r.ID)
		if err != nil || got.State != gateway.ApprovalExpired || time.Now().Before(r.Expires) {
			t.Errorf("Wait = %s, %v", got.State, err)
		}
		_, err = a.Vote(t.Context(), "acme", r.ID, aVote(r, "alice", true))
		refused(t, "a vote", err)
		again := aRequest("acme", "apr-2", time.Now())
		again.Fingerprint = r.Fingerprint
		ask(t, b, again)
		await(t, "it is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalExpired)) > 0 })
		if f := rig.Facts.Of(); len(f) != 1 || f[0].Approval.ID != "apr-1" || f[0].Approval.State != gateway.ApprovalExpired {
			t.Errorf("recorded: %+v", f)
		}
	})

	t.Run("the end of a task", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		pending := ask(t, a, aRequest("acme", "apr-pending", time.Now()))
		held := granted(t, a, "acme", "apr-held")
		g := claim(t, a, held, "call-1")
		free := granted(t, a, "acme", "apr-free")
		denied := ask(t, a, aRequest("acme", "apr-denied", time.Now()))
		vote(t, a, denied, "alice", false)
		other := aRequest("acme", "apr-other", time.Now())
		other.TaskID = "task-2"
		ask(t, a, other)
		theirs := ask(t, a, aRequest("globex", "apr-pending", time.Now()))

		waited := make(chan gateway.ApprovalState, 1)
		go func() { r, _ := a.Wait(context.WithoutCancel(t.Context()), "acme", pending.ID); waited <- r.State }()
		if n, err := b.Cancel(t.Context(), "acme", "task-1"); err != nil || len(n) != 3 {
			t.Fatalf("Cancel = %v, %v; want 3", n, err)
		}
		if s := <-waited; s != gateway.ApprovalCancelled {
			t.Errorf("who waited got %s", s)
		}
		is(t, a, pending, gateway.ApprovalCancelled)
		is(t, a, held, gateway.ApprovalCancelled)
		is(t, a, free, gateway.ApprovalCancelled)
		is(t, a, denied, gateway.ApprovalDenied)
		is(t, a, other, gateway.ApprovalPending)
		is(t, a, theirs, gateway.ApprovalPending)
		refused(t, "the reserved grant", a.Consume(t.Context(), g))
		_, _, err := a.Request(t.Context(), aRequest("acme", "apr-late", time.Now()))
		refused(t, "one more request of that task", err)
		if n, err := a.Cancel(t.Context(), "acme", "task-1"); err != nil || len(n) != 0 {
			t.Errorf("cancelling twice: %v, %v", n, err)
		}
		if n, err := a.Cancel(t.Context(), "acme", "task-unknown"); err != nil || len(n) != 0 {
			t.Errorf("cancelling nothing: %v, %v", n, err)
		}
		await(t, "it is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalCancelled)) == 3 })
		for _, f := range rig.Facts.Of(audit.ApprovalCancelled) {
			if f.Task.State != gateway.TaskEnding || len(f.Task.Ancestors) != 1 {
				t.Errorf("cancelled on %+v", f.Task)
			}
		}
	})

	t.Run("a denial outlives the task it was given in", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		again := func(tenant, id, task, finger, denial string) gateway.ApprovalRequest {
			r := aRequest(tenant, id, time.Now())
			r.TaskID, r.Fingerprint, r.Denials = task, finger, denials(denial)
			return r
		}
		first := ask(t, a, again("acme", "apr-1", "task-1", "f-1", "same"))
		ask(t, a, again("acme", "apr-open", "task-9", "f-9", "same")) // a request that is open is no denial
		vote(t, a, first, "alice", false)
		if _, err := a.Cancel(t.Context(), "acme", "task-1"); err != nil {
			t.Fatal(err)
		}
		got, fresh, err := b.Request(t.Context(), again("acme", "apr-2", "task-2", "f-2", "same"))
		if err != nil || fresh || got.ID != "apr-1" || got.State != gateway.ApprovalDenied {
			t.Errorf("asked again on another task: %s %s, fresh %v, %v", got.ID, got.State, fresh, err)
		}
		if _, err := b.Get(t.Context(), "acme", "apr-2"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("it was stored: %v", err)
		}
		if got, _, err := b.Request(t.Context(), again("acme", "apr-10", "task-2", "f-11", "more same")); err != nil || got.ID != "apr-1" {
			t.Errorf("asked again beside something else: %s, %v", got.ID, err)
		}
		_, _, err = b.Request(t.Context(), again("acme", "apr-3", "task-1", "f-1", "same"))
		refused(t, "a request of the task that is over", err)
		for _, r := range []gateway.ApprovalRequest{
			again("acme", "apr-4", "task-2", "f-4", "another"), again("acme", "apr-5", "task-2", "f-5", ""), again("globex", "apr-6", "task-2", "f-6", "same"),
		} {
			ask(t, b, r)
		}
		// Only a human's no is remembered so: not what expired or was cancelled.
		ask(t, a, again("acme", "apr-7", "task-3", "f-7", "cancelled"))
		if _, err := a.Cancel(t.Context(), "acme", "task-3"); err != nil {
			t.Fatal(err)
		}
		ask(t, b, again("acme", "apr-8", "task-4", "f-8", "cancelled"))
		if rig.Advance(first.Expires.Sub(rig.Now()) + time.Second) {
			r := again("acme", "apr-9", "task-2", "f-10", "same")
			r.Created, r.Expires = rig.Now(), rig.Now().Add(time.Hour)
			ask(t, b, r)
		}
	})

	t.Run("waiting", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		r := ask(t, a, aRequest("acme", "apr-1", time.Now()))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if got, err := b.Wait(ctx, "acme", "apr-1"); got.State != gateway.ApprovalPending || err != nil && !errors.Is(err, ctx.Err()) {
			t.Errorf("when its time is up: %s, %v", got.State, err)
		}
		if got, err := b.Wait(ctx, "acme", "apr-1"); got.State != gateway.ApprovalPending || err != nil && !errors.Is(err, ctx.Err()) {
			t.Errorf("when its time was up before: %s, %v", got.State, err)
		}
		if _, err := b.Wait(t.Context(), "acme", "apr-2"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("for what is unknown: %v", err)
		}
		if _, err := b.Wait(t.Context(), "globex", "apr-1"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("for another tenant's: %v", err)
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got, err := b.Wait(t.Context(), "acme", "apr-1"); err != nil || got.State != gateway.ApprovalGranted || got.Args == nil {
					t.Errorf("Wait = %s, %v", got.State, err)
				}
			})
		}
		vote(t, a, r, "alice", true)
		vote(t, a, r, "bob", true)
		all.Wait()
	})

	t.Run("changes are heard on every replica", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		ctx, cancel := context.WithCancel(t.Context())
		there, here := b.Changes(ctx), a.Changes(ctx)
		r := aRequest("acme", "apr-1", time.Now())
		for _, do := range []func(){
			func() { ask(t, a, r) }, func() { vote(t, a, r, "alice", true) }, func() { vote(t, a, r, "bob", true) },
			func() { claim(t, a, r, "call-1") }, func() { a.Cancel(ctx, "acme", "task-1") },
		} {
			for len(there)+len(here) > 0 { // what came before
				select {
				case <-there:
				case <-here:
				}
			}
			do()
			closes(t, "a change, where it was made", here)
			closes(t, "a change, on the other replica", there)
		}
		cancel()
		for range there { // until it is closed
		}
		for range here {
		}
	})

	t.Run("a list", func(t *testing.T) {
		rig := open(t)
		a, b := rig.Replica(), rig.Replica()
		for i, id := range []string{"apr-c", "apr-b", "apr-a"} {
			r := aRequest("acme", id, time.Now())
			r.Created = r.Created.Add(time.Duration(i) * time.Second)
			ask(t, a, r)
		}
		ask(t, a, aRequest("globex", "apr-theirs", time.Now()))
		vote(t, a, aRequest("acme", "apr-b", time.Now()), "alice", false)
		list, err := b.List(t.Context(), "acme")
		var got []string
		for _, r := range list {
			got = append(got, r.ID+" "+string(r.State))
			if r.Args != nil {
				t.Errorf("%s has its arguments", r.ID)
			}
		}
		if want := []string{"apr-c pending", "apr-b denied", "apr-a pending"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("List = %q, %v; want %q", got, err, want)
		}
		if list, err := b.List(t.Context(), "initech"); err == nil && len(list) > 0 {
			t.Errorf("of an unknown tenant: %v", list)
		}
		if rig.Advance(0) {
			rig.Advance(9 * time.Minute) // all are over soon, the denied one lately
			if list, _ := b.List(t.Context(), "acme"); len(list) != 3 {
				t.Errorf("after 9 minutes: %d", len(list))
			}
			rig.Advance(16 * time.Minute)
			if list, _ := b.List(t.Context(), "acme"); slices.ContainsFunc(list, func(r gateway.ApprovalRequest) bool { return r.ID == "apr-b" || !r.State.Final() }) {
				t.Errorf("after 25 minutes: %+v", list)
			}
		}
	})

	t.Run("a task cannot fill the page", func(t *testing.T) {
		rig := open(t)
		a := rig.Replica()
		for i := range perTask {
			ask(t, a, aRequest("acme", fmt.Sprint("apr-", i), time.Now()))
		}
		_, _, err := a.Request(t.Context(), aRequest("acme", "apr-more", time.Now()))
		if !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("one more: %v", err)
		}
		r := aRequest("acme", "apr-0", time.Now())
		if _, fresh, err := a.Request(t.Context(), r); err != nil || fresh {
			t.Errorf("a repeat still attaches: %v, %v", fresh, err)
		}
		vote(t, a, r, "alice", false)
		ask(t, a, aRequest("acme", "apr-more", time.Now()))
		other := aRequest("acme", "apr-other", time.Now())
		other.TaskID = "task-2"
		ask(t, a, other)
	})

	t.Run("tenants do not see each other", func(t *testing.T) {
		rig := open(t)
		a := rig.Replica()
		ours, theirs := aRequest("acme", "apr-1", time.Now()), aRequest("globex", "apr-1", time.Now())
		ask(t, a, ours)
		ask(t, a, theirs)
		vote(t, a, theirs, "alice", true)
		vote(t, a, theirs, "bob", true)
		_, err := a.Claim(t.Context(), "acme", "apr-1", "call-1")
		refused(t, "a claim by the other's votes", err)
		g := claim(t, a, theirs, "call-1")
		g.Request.Tenant = "acme"
		refused(t, "using up as the other", a.Consume(t.Context(), g))
		if _, err := a.Cancel(t.Context(), "acme", "task-1"); err != nil {
			t.Fatal(err)
		}
		is(t, a, ours, gateway.ApprovalCancelled)
		is(t, a, theirs, gateway.ApprovalReserved)
		for _, tenant := range []string{"initech", "", "_", "acme}"} {
			if _, err := a.Get(t.Context(), tenant, "apr-1"); !errors.Is(err, gateway.ErrNotFound) {
				t.Errorf("of tenant %q: %v", tenant, err)
			}
		}
	})

	t.Run("without the store, errors and no grant", func(t *testing.T) {
		rig := open(t)
		a := rig.Replica()
		free, pending := granted(t, a, "acme", "apr-1"), ask(t, a, aRequest("acme", "apr-2", time.Now()))
		held := claim(t, a, granted(t, a, "acme", "apr-3"), "call-3")
		await(t, "the grants are on record", func() bool { return len(rig.Facts.Of(audit.ApprovalGranted)) == 2 })
		rig.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if g, err := a.Claim(ctx, "acme", free.ID, "call-1"); err == nil || g.Call != "" || g.Request.ID != "" {
			t.Errorf("claimed %+v, %v", g, err)
		}
		if _, err := a.Vote(ctx, "acme", pending.ID, aVote(pending, "alice", true)); err == nil {
			t.Error("voted")
		}
		if err := a.Consume(ctx, held); err == nil {
			t.Error("used up")
		}
		if _, err := a.Wait(ctx, "acme", pending.ID); err == nil {
			t.Error("waited")
		}
		if _, _, err := a.Request(ctx, aRequest("acme", "apr-4", time.Now())); err == nil {
			t.Error("asked")
		}
		if _, err := a.List(ctx, "acme"); err == nil {
			t.Error("listed")
		}
		if _, err := a.Cancel(ctx, "acme", "task-1"); err == nil {
			t.Error("cancelled")
		}
		rig.Start()
		await(t, "it answers again", func() bool { _, err := a.Get(t.Context(), "acme", pending.ID); return err == nil })
		is(t, a, pending, gateway.ApprovalPending)
		if err := a.Consume(ctx, held); err != nil {
			t.Errorf("what was held can be used: %v", err)
		}
		claim(t, a, free, "call-5")
	})

	t.Run("many at once, each used up once", func(t *testing.T) { approvalsStorm(t, open(t)) })

	t.Run("whatever happens, in any order", func(t *testing.T) { approvalsMachine(t, open(t)) })
}

// approvalsStorm lets voters and callers on two replicas go at 200 requests.
func approvalsStorm(t *testing.T, rig ApprovalsRig) {
	rs := []gateway.Approvals{rig.Replica(), rig.Replica()}
	const n = 200
	var used [n]atomic.Int32
	var all sync.WaitGroup
	room := make(chan bool, 6)
	for i := range n {
		r := aRequest("acme", fmt.Sprint("apr-", i), time.Now())
		r.TaskID = fmt.Sprint("task-", i)
		room <- true
		all.Go(func() {
			defer func() { <-room }()
			var asked, work sync.WaitGroup
			for _, a := range rs { // who asks second attaches
				asked.Go(func() {
					if _, _, err := a.Request(t.Context(), r); err != nil && !errors.Is(err, gateway.ErrNotNow) {
						t.Errorf("Request: %v", err)
					}
				})
			}
			asked.Wait()
			for j, by := range []string{"alice", "bob", "carol", "alice"} {
				work.Go(func() {
					if _, err := rs[j%2].Vote(t.Context(), "acme", r.ID, aVote(r, by, true)); err != nil && !errors.Is(err, gateway.ErrNotNow) {
						t.Errorf("Vote: %v", err)
					}
				})
			}
			for j := range 3 {
				work.Go(func() {
					a := rs[j%2]
					for {
						if now, err := a.Wait(t.Context(), "acme", r.ID); err != nil || now.State.Final() {
							if err != nil {
								t.Errorf("Wait: %v", err)
							}
							return
						}
						g, err := a.Claim(t.Context(), "acme", r.ID, fmt.Sprint("call-", j))
						if errors.Is(err, gateway.ErrNotNow) {
							time.Sleep(rand.N(3 * time.Millisecond))
							continue
						}
						if err != nil {
							t.Errorf("Claim: %v", err)
							return
						}
						if rand.N(3) == 0 {
							if err := a.Release(t.Context(), g); err != nil {
								t.Errorf("Release: %v", err)
							}
							continue
						}
						if err := rs[(j+1)%2].Consume(t.Context(), g); err != nil {
							t.Errorf("Consume: %v", err)
						} else {
							used[i].Add(1)
						}
						if err := a.Consume(t.Context(), g); err == nil {
							t.Error("used up twice")
						}
					}
				})
			}
			work.Wait()
		})
	}
	all.Wait()
	for i := range used {
		if got := used[i].Load(); got != 1 {
			t.Errorf("apr-%d was used up %d times", i, got)
		}
	}
	await(t, "each grant is on record", func() bool { return len(rig.Facts.Of(audit.ApprovalGranted)) >= n })
	if got := len(rig.Facts.Of()); got != n {
		t.Errorf("%d facts for %d grants", got, n)
	}
}

// A modelled request: what the machine thinks it is.
type modelled struct {
	req           gateway.ApprovalRequest
	state         gateway.ApprovalState
	seq           int64
	votes         map[string]bool
	call          string
	until, window time.Time
	used          int
}

// approvalsMachine makes random moves on two replicas, and compares with a model
// after each.
func approvalsMachine(t *testing.T, rig ApprovalsRig) {
	moves := rig.Advance(0)
	rs := []gateway.Approvals{rig.Replica(), rig.Replica()}
	operators := slices.Sorted(maps.Keys(groupsOf))
	want := map[string]int{} // facts
	run, everything := 0, []*modelled{}
	rapid.Check(t, func(t *rapid.T) {
		run++
		ctx := context.Background()
		task := fmt.Sprint("task-", run)
		var now *modelled // whom the fingerprint attaches to, if anyone
		var all []*modelled
		enter := func(m *modelled, s gateway.ApprovalState) {
			m.state = s
			m.seq++
			if _, ok := map[gateway.ApprovalState]bool{"denied": true, "expired": true, "cancelled": true, "voided": true}[s]; ok {
				want[m.req.ID+":"+string(s)]++
			}
		}
		// pass lets time do to the model what it does.
		pass := func() {
			for _, m := range all {
				for !m.state.Final() && !rig.Now().Before(m.until) {
					if m.state == gateway.ApprovalReserved && m.until.Before(m.window) {
						m.until, m.call = m.window, ""
						enter(m, gateway.ApprovalGranted)
					} else {
						enter(m, gateway.ApprovalExpired)
					}
				}
			}
			if now != nil && now.state.Final() && (now.state != gateway.ApprovalDenied || !rig.Now().Before(now.req.Expires)) {
				now = nil
			}
		}
		over := false
		replica := rapid.SampledFrom(rs)
		pick := func(t *rapid.T) *modelled {
			if len(all) == 0 {
				t.Skip("nothing asked")
			}
			return all[rapid.IntRange(max(0, len(all)-2), len(all)-1).Draw(t, "which")]
		}
		check := func(t *rapid.T, what string, err error, may bool) bool {
			if may && err != nil || !may && !errors.Is(err, gateway.ErrNotNow) {
				t.Fatalf("%s: %v, want possible %v", what, err, may)
			}
			return may
		}
		actions := map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				r := aRequest("acme", fmt.Sprintf("apr-%d-%d", run, len(all)), rig.Now())
				r.TaskID, r.Fingerprint = task, fmt.Sprint("fp-", run)
				got, fresh, err := replica.Draw(t, "on").Request(ctx, r)
				switch {
				case over:
					check(t, "Request", err, false)
				case err != nil || fresh != (now == nil):
					t.Fatalf("Request = fresh %v, %v; attached to %+v", fresh, err, now)
				case fresh:
					now = &modelled{req: r, state: gateway.ApprovalPending, seq: 1, votes: map[string]bool{}, until: r.Expires}
					all, everything = append(all, now), append(everything, now)
				case got.ID != now.req.ID:
					t.Fatalf("attached to %s, not %s", got.ID, now.req.ID)
				}
			},
			"vote": func(t *rapid.T) {
				m, by := pick(t), rapid.SampledFrom(operators).Draw(t, "by")
				approve := rapid.IntRange(0, 5).Draw(t, "no") != 0
				_, err := replica.Draw(t, "on").Vote(ctx, "acme", m.req.ID, aVote(m.req, by, approve))
				_, voted := m.votes[by]
				if !check(t, "Vote", err, m.state == gateway.ApprovalPending && !voted) {
					return
				}
				m.votes[by] = approve
				switch {
				case !approve:
					enter(m, gateway.ApprovalDenied)
				case len(m.votes) >= 2:
					enter(m, gateway.ApprovalGranted)
					want[m.req.ID+":granted"]++
					if m.window = rig.Now().Add(useWindow); m.window.After(m.req.Expires) {
						m.window = m.req.Expires
					}
					m.until = m.window
				default:
					enter(m, gateway.ApprovalPending)
				}
			},
			"claim": func(t *rapid.T) {
				m, call := pick(t), rapid.SampledFrom([]string{"call-1", "call-2"}).Draw(t, "call")
				g, err := replica.Draw(t, "on").Claim(ctx, "acme", m.req.ID, call)
				if !check(t, "Claim", err, m.state == gateway.ApprovalGranted) {
					return
				}
				if string(g.Request.Args) != string(m.req.Args) || g.Call != call {
					t.Fatalf("the grant is %+v", g)
				}
				enter(m, gateway.ApprovalReserved)
				m.call = call
				if m.until = rig.Now().Add(reservation); m.until.After(m.window) {
					m.until = m.window
				}
			},
			"cancel": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "rarely") != 0 {
					t.Skip()
				}
				if _, err := replica.Draw(t, "on").Cancel(ctx, "acme", task); err != nil {
					t.Fatal(err)
				}
				over = true
				for _, m := range all {
					if !m.state.Final() {
						enter(m, gateway.ApprovalCancelled)
					}
				}
			},
			"": func(t *rapid.T) {
				pass()
				for _, m := range all {
					got, err := rs[0].Get(ctx, "acme", m.req.ID)
					if err != nil || got.State != m.state || got.Seq != m.seq || len(got.Votes) != len(m.votes) {
						t.Fatalf("%s is %s, seq %d, %d votes, %v; want %s, %d, %d", m.req.ID, got.State, got.Seq, len(got.Votes), err, m.state, m.seq, len(m.votes))
					}
					if m.used > 1 {
						t.Fatalf("%s was used up %d times", m.req.ID, m.used)
					}
				}
			},
		}
		for name, c := range map[string]struct {
			do func(gateway.Approvals, context.Context, gateway.Grant) error
			to gateway.ApprovalState
		}{
			"consume": {gateway.Approvals.Consume, gateway.ApprovalConsumed},
			"release": {gateway.Approvals.Release, gateway.ApprovalGranted},
			"void":    {gateway.Approvals.Void, gateway.ApprovalVoided},
		} {
			actions[name] = func(t *rapid.T) {
				m, call := pick(t), rapid.SampledFrom([]string{"call-1", "call-2"}).Draw(t, "call")
				err := c.do(replica.Draw(t, "on"), ctx, gateway.Grant{Request: m.req, Call: call})
				if !check(t, name, err, m.state == gateway.ApprovalReserved && m.call == call) {
					return
				}
				enter(m, c.to)
				m.call, m.until = "", m.window
				if c.to == gateway.ApprovalConsumed {
					m.used++
				}
			}
		}
		if moves {
			actions["time passes"] = func(t *rapid.T) {
				rig.Advance(time.Duration(rapid.IntRange(1, 200).Draw(t, "seconds")) * time.Second)
				pass()
			}
		}
		t.Repeat(actions)
	})
	// In the end all expires that can; then every fact that the model expects is
	// on record, and no other, once.
	if moves {
		rig.Advance(time.Hour)
		for _, m := range everything {
			if !m.state.Final() {
				want[m.req.ID+":expired"]++
			}
		}
	}
	await(t, "all facts are on record", func() bool { return len(rig.Facts.Of()) >= len(want) })
	got := map[string]int{}
	for _, f := range rig.Facts.Of() {
		got[f.Approval.ID+":"+string(f.Approval.State)]++
	}
	if !reflect.DeepEqual(got, want) {
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s: recorded %d times, want %d", k, got[k], want[k])
			}
			delete(got, k)
		}
		t.Errorf("recorded besides: %v", got)
	}
}

// aRequest is a request of task-1, as the gateway makes them: two operators must
// agree, within ten minutes.
func aRequest(tenant, id string, now time.Time) gateway.ApprovalRequest {
	now = now.UTC().Truncate(time.Millisecond)
	return gateway.ApprovalRequest{
		ID: id, Tenant: tenant, Fingerprint: "sha256:fp-" + id, Digest: "sha256:digest-" + id,
		Principal: "agent:" + tenant, OnBehalfOf: "erin", Owner: "frank", Chain: []string{"a", "b"},
		TaskID: "task-1", TaskKind: "triage", TaskOwner: "frank", Purpose: "close <stale> issues & \u202ego",
		Server: "issues", Tool: "close", Alias: "issues__close", Definition: "sha256:def",
		Args: json.RawMessage("{ \"number\" : 7.0,\n\t\"note\":\"\\u003cb\\u003e <i> é\" }"), ArgsDigest: "sha256:raw", ArgsCanon: "sha256:canon",
		Meta:  json.RawMessage(`{ "k": "<v>" }`),
		Need:  []authz.Requirement{{N: 2, Rule: authz.Rule{File: "policy.csv", Line: 3, Text: "p, *, <&>"}}},
		Rules: []authz.Rule{{File: "policy.csv", Line: 3, Text: "p, *, <&>"}},
		Class: "revocable", Revision: "sha256:policy", Created: now, Expires: now.Add(10 * time.Minute),
		Was: &gateway.Task{ID: "task-1", Tenant: tenant, Kind: "triage", Owner: "frank", State: gateway.TaskRunning, Parent: "task-0", Ancestors: []gateway.Ancestor{{ID: "task-0"}}},
	}
}

var groupsOf = map[string][]string{"alice": nil, "bob": {"dev"}, "carol": {"sre"}, "dave": {"sre", "dba"}}

func aVote(r gateway.ApprovalRequest, by string, approve bool) gateway.Vote {
	return gateway.Vote{By: by, Groups: groupsOf[by], Approve: approve, Reason: "because", Digest: r.Digest, At: time.Now().UTC()}
}

// same compares everything, bytes included.
func same(a, b gateway.ApprovalRequest) bool {
	times := func(r *gateway.ApprovalRequest) (out []int64) {
		out = []int64{r.Created.UnixNano(), r.Expires.UnixNano()}
		r.Created, r.Expires = time.Time{}, time.Time{}
		r.Votes = slices.Clone(r.Votes)
		for i := range r.Votes {
			out = append(out, r.Votes[i].At.UnixNano())
			r.Votes[i].At = time.Time{}
		}
		return out
	}
	at, bt := times(&a), times(&b)
	return slices.Equal(at, bt) && reflect.DeepEqual(a, b)
}

// denials are those that a test names, between spaces.
func denials(names string) []string { return strings.Fields(names) }
