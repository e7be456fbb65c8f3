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

const wantsPages = `{"code":-32042,"message":"open","data":{"elicitations":[` +
	`{"mode":"url","elicitationId":"e1","url":"https://pay.example/1","message":"Pay."},{"mode":"url","elicitationId":"e2","url":"https://pay.example/2","message":"Sign."}]}}`

// opening has a server want pages to be opened so many times, and then be done.
func opening(times int) func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
	return func(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if times--; times >= 0 {
			return gateway.Result{Error: json.RawMessage(wantsPages)}, nil
		}
		if f.Answers != nil || f.State != "" {
			return gateway.Result{Raw: json.RawMessage(`{"content":[],"isError":true}`)}, nil
		}
		return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
	}
}

type pages struct {
	Asks map[string]struct {
		Method string
		Params map[string]string
	} `json:"inputRequests"`
	State string `json:"requestState"`
}

// A modern agent opens the pages that a server of before wants, and makes the same
// call again; the server hears nothing but that.
func TestPagesByAnError(t *testing.T) {
	const rows = "p, agent:a, acme, work, files/read, elicit, args.mode == 'url', allow\n"
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + rows)
	h.Servers.Answer = opening(2)
	call := asking("a", "files__read", `{"path":"x"}`, "2026-07-28")
	next := func() (p pages) {
		t.Helper()
		r, err := h.Handle(t.Context(), call, nil)
		if err != nil || r.Type != gateway.ResultInput || json.Unmarshal(r.Raw, &p) != nil || len(p.Asks) != 2 {
			t.Fatalf("%s %s %v", r.Raw, r.Error, err)
		}
		return p
	}
	const opened = `{"page-1":{"action":"accept"},"page-2":{"action":"accept"}}`
	p := next()
	if got := p.Asks["page-1"]; got.Method != gateway.MethodElicit || len(got.Params) != 3 || got.Params["mode"] != "url" || got.Params["url"] != "https://pay.example/1" || got.Params["message"] != "Pay." {
		t.Errorf("it asks %v", got)
	}
	first := p.State
	sent := len(h.Servers.Sent())
	for answers, code := range map[string]gateway.Code{
		`{"page-1":{"action":"accept"},"page-2":{"action":"decline"}}`: gateway.Downstream,
		`{"page-1":{"action":"accept"}}`:                               gateway.Downstream,
		`{"page-1":{"action":"accept"},"page-2":7}`:                    gateway.Downstream,
		`{"page-1":{"action":"accept","Action":"decline"}}`:            gateway.BadState,
	} {
		call.State, call.Answers = first, json.RawMessage(answers)
		if _, err := h.Handle(t.Context(), call, nil); codeOf(err) != code {
			t.Errorf("%s: %v", answers, err)
		}
	}
	other := call
	other.Args, other.Answers = json.RawMessage(`{"path":"y"}`), json.RawMessage(opened)
	if _, err := h.Handle(t.Context(), other, nil); codeOf(err) != gateway.BadState {
		t.Errorf("of another call: %v", err)
	}
	if n := len(h.Servers.Sent()); n != sent {
		t.Errorf("%d were sent", n-sent)
	}
	call.State, call.Answers = first, json.RawMessage(opened)
	call.State = next().State
	r, err := h.Handle(t.Context(), call, nil)
	if err != nil || string(r.Raw) != `{"content":[]}` {
		t.Errorf("%s %v", r.Raw, err)
	}
	if log := h.Events(); strings.Count(log, "tool.ask.allowed") != 4 {
		t.Errorf("on record is %s", log)
	}
}

// What a server sends an agent to is decided, and has an end.
func TestPagesByAnErrorHaveAnEnd(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, files/read, elicit, , allow\n")
	h.Servers.Answer = opening(100)
	call := asking("a", "files__read", `{}`, "2026-07-28")
	for round := 1; ; round++ {
		var p pages
		r, err := h.Handle(t.Context(), call, nil)
		if err != nil {
			if codeOf(err) != gateway.Downstream || round != 7 {
				t.Errorf("after %d rounds: %v", round-1, err)
			}
			break
		}
		if json.Unmarshal(r.Raw, &p) != nil || p.State == "" {
			t.Fatalf("%s %s", r.Raw, r.Error)
		}
		call.State, call.Answers = p.State, json.RawMessage(`{"page-1":{"action":"accept"},"page-2":{"action":"accept"}}`)
	}
	for name, row := range map[string]struct {
		rows, protocol, caps string
		code                 gateway.Code // empty: the server's error comes as it is
	}{
		"policy says no":          {"p, agent:a, acme, work, files/read, elicit, args.url == 'https://pay.example/1', allow\n", "2026-07-28", everyCap, gateway.Denied},
		"nobody opens pages":      {"p, agent:a, acme, work, files/read, elicit, , allow\n", "2026-07-28", `{"elicitation":{}}`, ""},
		"nobody can be asked":     {"p, agent:a, acme, work, files/read, elicit, , allow\n", "2026-07-28", `{}`, gateway.Downstream},
		"one of before reads it":  {"p, agent:a, acme, work, files/read, elicit, , allow\n", "2025-11-25", everyCap, ""},
		"and one who may not see": {"", "2025-11-25", everyCap, gateway.Denied},
	} {
		h := gatewaytest.New(t)
		h.Policy.Set(gatewaytest.Text + row.rows)
		h.Servers.Answer = opening(1)
		call := asking("a", "files__read", `{}`, row.protocol)
		call.Caps = json.RawMessage(row.caps)
		r, err := h.Handle(t.Context(), call, nil)
		if codeOf(err) != row.code || (err == nil) != strings.Contains(string(r.Error), "-32042") {
			t.Errorf("%s: %s %s %v", name, r.Raw, r.Error, err)
		}
	}
}

// An agent that comes back from the pages too early waits before it is sent there
// again, as long as it is there.
func TestPagesThatAreNotOpenYet(t *testing.T) {
	h := gatewaytest.New(t, patient)
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, files/read, elicit, , allow\n")
	h.Servers.Answer = opening(100)
	call := asking("a", "files__read", `{}`, "2026-07-28")
	ctx, leave := context.WithCancel(t.Context())
	var p pages
	if r, err := h.Handle(ctx, call, nil); err != nil || json.Unmarshal(r.Raw, &p) != nil {
		t.Fatalf("%s %v", r.Raw, err)
	}
	call.State, call.Answers = p.State, json.RawMessage(`{"page-1":{"action":"accept"},"page-2":{"action":"accept"}}`)
	go func() {
		defer leave()
		for ctx.Err() == nil && strings.Count(h.Events(), "tool.ask.allowed") < 4 { // of two pages, twice
			time.Sleep(time.Millisecond)
		}
	}()
	if r, err := h.Handle(ctx, call, nil); codeOf(err) != gateway.Cancelled {
		t.Errorf("it was sent to them at once: %s %v", r.Raw, err)
	}
}

// Nothing is asked about a call that was approved as it is, by an error either.
func TestNoPagesForAnApprovedCall(t *testing.T) {
	for _, protocol := range []string{"2025-11-25", "2026-07-28"} {
		h := gatewaytest.New(t)
		h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, files/write, elicit, , allow\n")
		h.Servers.Answer = opening(1)
		call := asking("a", "files__write", `{}`, protocol)
		if _, err := h.Handle(t.Context(), call, nil); codeOf(err) != gateway.PendingApproval {
			t.Fatal(err)
		}
		approveAll(t, h, "bob")
		before := len(h.Events())
		if r, err := h.Handle(t.Context(), call, nil); codeOf(err) != gateway.Downstream || !strings.Contains(h.Events()[before:], "tool.ask.denied") {
			t.Errorf("%s: %s %s %v; %s", protocol, r.Raw, r.Error, err, h.Events()[before:])
		}
	}
}

// A call that comes back from the pages and needs a human by then is sent on to one,
// and comes back from there without being asked for the pages again.
func TestPagesAndThenAnApproval(t *testing.T) {
	h := gatewaytest.New(t)
	const elicits = "p, agent:a, acme, work, files/read, elicit, , allow\n"
	h.Policy.Set(gatewaytest.Text + elicits)
	h.Servers.Answer = opening(1)
	call := asking("a", "files__read", `{}`, "2026-07-28")
	var p pages
	if r, err := h.Handle(t.Context(), call, nil); err != nil || json.Unmarshal(r.Raw, &p) != nil {
		t.Fatalf("%s %v", r.Raw, err)
	}
	h.Policy.Set(gatewaytest.Text + elicits + "p, agent:a, acme, work, files/read, call, , approve\n")
	call.State, call.Answers = p.State, json.RawMessage(`{"page-1":{"action":"accept"},"page-2":{"action":"accept"}}`)
	for range 2 {
		_, err := h.Handle(t.Context(), call, nil)
		refused, _ := errors.AsType[*gateway.Refusal](err)
		if refused == nil || refused.Code != gateway.PendingApproval || refused.State == "" {
			t.Fatal(err)
		}
		call.State, call.Answers = refused.State, json.RawMessage(`{"io.toolbroker/approval":{"action":"accept"}}`)
	}
}
