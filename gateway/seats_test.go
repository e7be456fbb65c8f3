package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// hang makes servers answer when they are let, and returns what tells of each call
// that has come to one, and what lets them answer.
func hang(h *gatewaytest.House) (came <-chan string, let func()) {
	arrived, answer := make(chan string, 100), make(chan struct{})
	h.Servers.Answer = func(ctx context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		arrived <- f.Tool.Name
		select {
		case <-answer:
			return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
		case <-ctx.Done():
			return gateway.Result{}, ctx.Err()
		}
	}
	return arrived, func() { close(answer) }
}

// calls makes n calls at once as whoever has a token, and returns what waits for them.
func calls(t *testing.T, h *gatewaytest.House, n int, bearer string) (ended func()) {
	t.Helper()
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := h.Handle(t.Context(), gatewaytest.Call(bearer, "files__read", `{}`), nil)
			errs <- err
		}()
	}
	return func() {
		t.Helper()
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
}

func wantTooMany(t *testing.T, what string, err error, says string) {
	t.Helper()
	r, ok := errors.AsType[*gateway.Refusal](err)
	if !ok || r.Code != gateway.TooMany || !strings.Contains(r.Say, says) {
		t.Errorf("%s: %v", what, err)
	}
}

// A workload has so many calls under way and no more, others have theirs, and what
// it is refused is counted.
func TestCallsUnderWay(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.UnderWay = 3 })
	came, let := hang(h)
	ended := calls(t, h, 3, "a")
	for range 3 {
		<-came
	}
	for range 5 {
		_, err := h.Call(t.Context(), "files__read", `{}`)
		wantTooMany(t, "the fourth", err, "wait until some of them have ended")
	}
	other := calls(t, h, 1, "b") // another tenant's
	<-came
	let()
	ended()
	other()
	ended = calls(t, h, 3, "a")
	ended()
	if n := h.Seats(); n != 0 {
		t.Errorf("%d seats are taken by nobody", n)
	}
	runFor(t, h)
	for _, e := range h.Lines() {
		if e.Type == "ratelimit.hit" && e.Count == 5 {
			return
		}
	}
	t.Errorf("not counted: %s", h.Events())
}

// runFor lets the gateway write what it counted.
func runFor(t *testing.T, h *gatewaytest.House) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// Workloads of one tenant share what the tenant has.
func TestCallsUnderWayOfATenant(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.UnderWay, c.UnderWayTenant = 3, 2 })
	came, let := hang(h)
	ended := calls(t, h, 2, "a")
	<-came
	<-came
	_, err := h.Call(t.Context(), "files__read", `{}`)
	wantTooMany(t, "the tenant's third", err, "of this tenant")
	other := calls(t, h, 1, "b")
	<-came
	let()
	ended()
	other()
}

// A call that waits for a human is under way as well.
func TestHeldCallsAreUnderWay(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.UnderWay, c.Hold = 1, 20*time.Second })
	asked := make(chan struct{})
	h.Approvals.Asked = func() { close(asked) }
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := h.Call(ctx, "files__write", `{}`)
		over <- err
	}()
	<-asked
	_, err := h.Call(t.Context(), "files__read", `{}`)
	wantTooMany(t, "beside a held one", err, "under way")
	cancel()
	if err := <-over; codeOf(err) != gateway.Cancelled {
		t.Error(err)
	}
	if _, err := h.Call(t.Context(), "files__read", `{}`); err != nil {
		t.Error(err)
	}
}

// A handle's call has a seat before it runs, and where there is none it waits for
// the next look: what humans agreed to is not lost.
func TestKeptCallsAreUnderWay(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.UnderWay = 1 })
	came, let := hang(h)
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	ended := calls(t, h, 1, "a")
	<-came
	_, err := h.Look(t.Context(), about(kept.ID))
	wantTooMany(t, "a look that would run it", err, "under way")
	let()
	ended()

	came, let = hang(h)
	until(t, h, kept.ID, gateway.HandleWorking)
	<-came
	_, err = h.Call(t.Context(), "files__read", `{}`)
	wantTooMany(t, "beside one that runs", err, "under way")
	if _, err := h.Look(t.Context(), about(kept.ID)); err != nil { // costs no seat
		t.Error(err)
	}
	let()
	until(t, h, kept.ID, gateway.HandleCompleted)
	runFor(t, h)
	if n := h.Seats(); n != 0 {
		t.Errorf("%d seats are taken by nobody", n)
	}
}

// What is no call shares the rate of calls, and takes nothing of the tenant's day.
func TestPace(t *testing.T) {
	now := time.Now()
	h := gatewaytest.New(t, func(c *gateway.Config) {
		c.CallsPerSecond, c.TenantDay, c.Now = 5, 2, func() time.Time { return now }
	})
	p, err := h.Identify(t.Context(), gateway.Credential{Bearer: gateway.NewSecret("a")})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := h.Pace(p); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		wantTooMany(t, "over the rate", h.Pace(p), "slow down")
	}
	_, err = h.Call(t.Context(), "files__read", `{}`)
	wantTooMany(t, "a call beside", err, "slow down")
	now = now.Add(time.Second)
	for range 2 {
		if _, err := h.Call(t.Context(), "files__read", `{}`); err != nil {
			t.Error(err)
		}
	}
	_, err = h.Call(t.Context(), "files__read", `{}`)
	wantTooMany(t, "over the day", err, "today")
	runFor(t, h)
	for _, e := range h.Lines() {
		if e.Type == "ratelimit.hit" && e.Count == 4 {
			return
		}
	}
	t.Errorf("not counted: %s", h.Events())
}
