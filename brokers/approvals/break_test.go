package approvals_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/brokers/approvals"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

const key = "tb:{acme}:approval:"

func request(id string) gateway.ApprovalRequest {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return gateway.ApprovalRequest{
		ID: id, Tenant: "acme", Fingerprint: "sha256:fp-" + id, Digest: "sha256:digest-" + id, Principal: "agent:a", TaskID: "task-1",
		Purpose: "canary-purpose", Args: json.RawMessage(`{"to":"canary-argument"}`), Need: []authz.Requirement{{N: 1, Group: "sre"}},
		Created: now, Expires: now.Add(10 * time.Minute),
	}
}

func approve(t *testing.T, a *approvals.Approvals, r gateway.ApprovalRequest) {
	t.Helper()
	got, err := a.Vote(t.Context(), r.Tenant, r.ID, gateway.Vote{By: "carol", Groups: []string{"sre"}, Approve: true, Digest: r.Digest})
	if err != nil || got.State != gateway.ApprovalGranted {
		t.Fatal(got.State, err)
	}
}

func ask(t *testing.T, a *approvals.Approvals, r gateway.ApprovalRequest) {
	t.Helper()
	if _, fresh, err := a.Request(t.Context(), r); err != nil || !fresh {
		t.Fatal(fresh, err)
	}
}

// Somebody with full access to Redis can take requests away, but grant none.
func TestForgedRedisStateGrantsNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, forge := range map[string]func(t *testing.T, s *redistest.Server){
			"a flipped byte": func(t *testing.T, s *redistest.Server) {
				b := []byte(s.Do(t, "HGET", key+"apr-1", "request").(string))
				b[len(b)-1] ^= 1
				s.Do(t, "HSET", key+"apr-1", "request", b)
			},
			"a grant in the clear": func(t *testing.T, s *redistest.Server) {
				b, _ := json.Marshal(map[string]any{"request": map[string]any{"id": "apr-1", "tenant": "acme", "state": "granted", "seq": 2}})
				s.Do(t, "HSET", key+"apr-1", "seq", "2", "request", b)
			},
			"a state beside the record": func(t *testing.T, s *redistest.Server) {
				s.Do(t, "HSET", key+"apr-1", "state", "granted", "votes", "9")
			},
			"another request's grant": func(t *testing.T, s *redistest.Server) {
				for _, f := range []string{"seq", "request", "args"} {
					s.Do(t, "HSET", key+"apr-1", f, s.Do(t, "HGET", key+"apr-granted", f))
				}
			},
			"another version": func(t *testing.T, s *redistest.Server) { s.Do(t, "HINCRBY", key+"apr-1", "seq", 1) },
			"no deadline":     func(t *testing.T, s *redistest.Server) { s.Do(t, "DEL", "tb:{acme}:approvals-due") },
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				a := replica(t, s, &gatewaytest.Facts{})
				ask(t, a, request("apr-1"))
				ask(t, a, request("apr-granted"))
				approve(t, a, request("apr-granted"))
				b := replica(t, s, &gatewaytest.Facts{})
				forge(t, s)
				for _, r := range []*approvals.Approvals{a, b} {
					if g, err := r.Claim(t.Context(), "acme", "apr-1", "call-1"); err == nil || g.Call != "" {
						t.Errorf("claimed: %+v", g.Request)
					}
				}
				if _, err := b.List(t.Context(), "acme"); err != nil {
					t.Error("nothing can be listed:", err)
				}
			})
		}
	})
}

func TestOtherArgumentsAreNotSent(t *testing.T) {
	s := redistest.Embedded(t)
	a := replica(t, s, &gatewaytest.Facts{})
	for id, forge := range map[string]func(){
		"apr-moved": func() { s.Do(t, "HSET", key+"apr-moved", "args", s.Do(t, "HGET", key+"apr-other", "args")) },
		"apr-plain": func() { s.Do(t, "HSET", key+"apr-plain", "args", `{"to":"mallory"}`) },
		"apr-none":  func() { s.Do(t, "HDEL", key+"apr-none", "args") },
		"apr-swap": func() {
			s.Do(t, "HSET", key+"apr-swap", "args", s.Do(t, "HGET", key+"apr-swap", "request"))
		},
	} {
		if id == "apr-moved" {
			other := request("apr-other")
			other.Args = json.RawMessage(`{"to":"mallory"}`)
			ask(t, a, other)
		}
		ask(t, a, request(id))
		approve(t, a, request(id))
		forge()
		if g, err := a.Claim(t.Context(), "acme", id, "call-1"); err == nil {
			t.Errorf("%s: claimed with %s", id, g.Request.Args)
		}
	}
}

// A record of before its use, put back as it was, grants nothing on a replica
// that saw the use; nor does a Redis that went back.
func TestAUsedGrantPutBackIsNotUsedAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s, &gatewaytest.Facts{})
		r := request("apr-1")
		ask(t, a, r)
		approve(t, a, r)
		before := map[string]any{}
		for _, f := range []string{"seq", "request", "args"} {
			before[f] = s.Do(t, "HGET", key+r.ID, f)
		}
		g, err := a.Claim(t.Context(), "acme", r.ID, "call-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Consume(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		for f, v := range before {
			s.Do(t, "HSET", key+r.ID, f, v)
		}
		if _, err := a.Claim(t.Context(), "acme", r.ID, "call-2"); err == nil {
			t.Error("claimed again")
		}
		if err := a.Consume(t.Context(), g); err == nil {
			t.Error("used up again")
		}
		if got, err := a.Get(t.Context(), "acme", r.ID); err == nil {
			t.Errorf("shown as %s", got.State)
		}
	})
}

func TestAFingerprintCannotBePointedElsewhere(t *testing.T) {
	s := redistest.Embedded(t)
	a := replica(t, s, &gatewaytest.Facts{})
	ask(t, a, request("apr-granted"))
	approve(t, a, request("apr-granted"))
	ask(t, a, request("apr-1"))
	for _, k := range s.Keys(t, "tb:{acme}:approvals-finger:*") {
		s.Do(t, "SET", k, "apr-granted")
	}
	again := request("apr-2")
	again.Fingerprint = request("apr-1").Fingerprint
	if got, _, err := a.Request(t.Context(), again); err == nil {
		t.Errorf("attached to %s", got.ID)
	}
	for _, k := range s.Keys(t, "tb:{acme}:approvals-finger:*") {
		s.Do(t, "SET", k, "apr-unknown")
	}
	if got, fresh, err := a.Request(t.Context(), again); err != nil || !fresh || got.State != gateway.ApprovalPending {
		t.Errorf("behind a request that is gone: %s, %v, %v", got.State, fresh, err)
	}
}

// Redis is killed and comes back, and every replica is a new process: what was
// pending is pending, what was granted is granted, what was used up stays so.
func TestARestartLosesNothing(t *testing.T) {
	s := redistest.Real(t)
	t.Run("before", func(t *testing.T) {
		a := replica(t, s, &gatewaytest.Facts{})
		for _, id := range []string{"apr-pending", "apr-granted", "apr-used", "apr-held"} {
			ask(t, a, request(id))
			if id != "apr-pending" {
				approve(t, a, request(id))
			}
		}
		for _, id := range []string{"apr-used", "apr-held"} {
			g, err := a.Claim(t.Context(), "acme", id, "call-1")
			if err != nil {
				t.Fatal(err)
			}
			if id == "apr-used" {
				if err := a.Consume(t.Context(), g); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	s.Stop(t)
	s.Start(t)
	a := replica(t, s, &gatewaytest.Facts{})
	if r, err := a.Get(t.Context(), "acme", "apr-pending"); err != nil || r.State != gateway.ApprovalPending || !bytes.Equal(r.Args, request("").Args) {
		t.Fatalf("pending is %s, %s, %v", r.State, r.Args, err)
	}
	again := request("apr-again")
	again.Fingerprint = request("apr-pending").Fingerprint
	if r, fresh, err := a.Request(t.Context(), again); err != nil || fresh || r.ID != "apr-pending" {
		t.Errorf("a repeat: %s, %v, %v", r.ID, fresh, err)
	}
	approve(t, a, request("apr-pending"))
	for id, want := range map[string]bool{"apr-pending": true, "apr-granted": true, "apr-used": false, "apr-held": false} {
		if _, err := a.Claim(t.Context(), "acme", id, "call-2"); (err == nil) != want {
			t.Errorf("%s: claim: %v", id, err)
		}
	}
}

// What an agent wrote is nowhere in Redis to be read, and its arguments are gone
// when the request is over.
func TestNothingReadableInRedis(t *testing.T) {
	s := redistest.Embedded(t)
	a := replica(t, s, &gatewaytest.Facts{})
	r := request("apr-1")
	ask(t, a, r)
	look := func(when string) {
		for _, k := range s.Keys(t, "*") {
			if strings.Contains(fmt.Sprint(dump(t, s, k)), "canary") {
				t.Errorf("%s: %s can be read", when, k)
			}
		}
	}
	look("while pending")
	approve(t, a, r)
	look("when granted")
	if s.Do(t, "HEXISTS", key+r.ID, "args") != int64(1) {
		t.Error("its arguments went early")
	}
	if _, err := a.Cancel(t.Context(), "acme", "task-1"); err != nil {
		t.Fatal(err)
	}
	if s.Do(t, "HEXISTS", key+r.ID, "args") != int64(0) {
		t.Error("its arguments are still there")
	}
	for _, k := range s.Keys(t, "*"+r.ID+"*") {
		if s.Do(t, "PTTL", k).(int64) <= 0 {
			t.Errorf("%s stays for ever", k)
		}
	}
}

func dump(t *testing.T, s *redistest.Server, k string) any {
	switch s.Do(t, "TYPE", k) {
	case "hash":
		return s.Do(t, "HGETALL", k)
	case "stream":
		return s.Do(t, "XRANGE", k, "-", "+")
	case "zset":
		return s.Do(t, "ZRANGE", k, 0, -1)
	case "set":
		return s.Do(t, "SMEMBERS", k)
	}
	return s.Do(t, "GET", k)
}

func TestForgedFactsAreNotRecorded(t *testing.T) {
	s, facts := redistest.Embedded(t), &gatewaytest.Facts{}
	a := replica(t, s, facts)
	out := "tb:{acme}:outbox:approvals"
	s.Do(t, "XADD", out, "*", "state", "granted", "id", "apr-9", "request", `{"request":{"id":"apr-9","tenant":"acme"}}`)
	s.Do(t, "XADD", out, "*", "state", "consumed", "id", "apr-9", "request", "")
	s.Do(t, "XADD", out, "*", "nonsense", "")
	ask(t, a, request("apr-1"))
	approve(t, a, request("apr-1"))
	redistest.Await(t, "the real one is", func() bool { return len(facts.Of()) > 0 && s.Do(t, "XLEN", out) == int64(0) })
	if got := facts.Of(); len(got) != 1 || got[0].Approval.ID != "apr-1" {
		t.Errorf("recorded %+v", got)
	}
}

// The log was away, and the replica that made the transition died: another
// brings the fact, once.
func TestFactsOutliveTheReplica(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, facts := start(t), &gatewaytest.Facts{}
		t.Run("before", func(t *testing.T) {
			broken := &gatewaytest.Facts{}
			broken.Refuse(errors.New("disk full"))
			a := replica(t, s, broken)
			ask(t, a, request("apr-1"))
			approve(t, a, request("apr-1"))
			redistest.Await(t, "it was tried", func() bool { return broken.Refused() > 0 })
		})
		replica(t, s, facts)
		replica(t, s, facts)
		redistest.Await(t, "it is on record", func() bool { return len(facts.Of()) == 1 })
	})
}

// raw counts what is sent, also twice.
type raw struct {
	gatewaytest.Facts
	mu   sync.Mutex
	sent []string
}

func (r *raw) Durable(_ context.Context, facts ...gateway.Fact) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range facts {
		r.sent = append(r.sent, f.Key)
	}
	return nil
}

func (r *raw) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sent)
}

func TestAGrantGivenBackIsNotGrantedAgain(t *testing.T) {
	s, facts := redistest.Embedded(t), &raw{}
	a := replica(t, s, facts)
	ask(t, a, request("apr-1"))
	approve(t, a, request("apr-1"))
	for range 3 {
		g, err := a.Claim(t.Context(), "acme", "apr-1", "call-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Release(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Cancel(t.Context(), "acme", "task-1"); err != nil {
		t.Fatal(err)
	}
	redistest.Await(t, "the end is sent", func() bool { return slices.Contains(facts.all(), "apr-1:cancelled") })
	if got := facts.all(); !slices.Equal(got, []string{"apr-1:granted", "apr-1:cancelled"}) {
		t.Errorf("sent %q", got)
	}
}
