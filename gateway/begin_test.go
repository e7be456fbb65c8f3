package gateway_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// A call is made known once it is decided, and nothing of it is asked, sent or kept
// before that is so; a no to it is on record.
func TestBegin(t *testing.T) {
	again := &gateway.Refusal{Code: gateway.Cancelled, Err: errors.New("a repetition")}
	doubt := &gateway.Refusal{Code: gateway.InDoubt, Err: errors.New("a repetition")}
	for _, row := range []struct {
		name   string
		tool   string
		vote   bool // somebody agrees
		later  bool
		err    error // of Begin
		code   gateway.Code
		begins int
		log    string
		sent   int
	}{
		{"allowed", "files__read", false, false, nil, "", 1, "tool.call.allowed tool.call.completed", 1},
		{"answered before", "files__read", false, false, again, gateway.Cancelled, 1, "tool.call.allowed tool.call.cancelled:cancelled", 0},
		{"in doubt", "files__read", false, false, doubt, gateway.InDoubt, 1, "tool.call.allowed tool.call.denied:in_doubt", 0},
		{"nobody can tell", "files__read", false, false, errors.New("away"), gateway.Internal, 1, "tool.call.allowed tool.call.denied:internal", 0},
		{"not allowed", "files__none", false, false, nil, gateway.UnknownTool, 0, "tool.call.denied:unknown_tool", 0},
		{"held", "files__write", false, false, nil, gateway.PendingApproval, 1, "tool.call.held approval.requested", 0},
		{"agreed to and answered before", "files__write", false, false, again, gateway.Cancelled, 1, "tool.call.held tool.call.cancelled:cancelled", 0},
		{"agreed to", "files__write", true, false, nil, "", 1, "tool.call.held approval.requested approval.vote approval.consumed tool.call.allowed tool.call.completed", 1},
		{"kept", "files__write", false, true, nil, "", 1, "tool.call.held approval.requested", 0},
		{"kept before", "files__write", false, true, doubt, gateway.InDoubt, 1, "tool.call.held tool.call.denied:in_doubt", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := gatewaytest.New(t, func(c *gateway.Config) {
				if row.vote {
					patient(c)
				}
			})
			in := gatewaytest.Call("a", row.tool, `{"path":"x"}`)
			in.Later, in.Once = row.later, "the-same"
			begins := 0
			in.Begin = func() func(context.Context) error {
				begins++
				return func(context.Context) error {
					if len(h.Servers.Sent()) > 0 {
						t.Error("sent before it was known")
					}
					return row.err
				}
			}
			end := make(chan error, 1)
			go func() {
				_, err := h.Handle(t.Context(), in, nil)
				end <- err
			}()
			if row.vote {
				r := asked(t, h, "acme")
				for !strings.Contains(h.Events(), "approval.requested") { // an operator is not that quick
					time.Sleep(time.Millisecond)
				}
				if _, err := vote(t, h, "bob", r, true); err != nil {
					t.Fatal(err)
				}
			}
			err := <-end
			if (err == nil) != (row.code == "") || err != nil && gateway.CodeOf(err) != row.code {
				t.Errorf("%v; want %q", err, row.code)
			}
			if log := h.Events(); log != row.log || begins != row.begins {
				t.Errorf("begun %d times, log:\n got %s\nwant %s", begins, log, row.log)
			}
			sent := h.Servers.Sent()
			if len(sent) != row.sent || row.sent > 0 && sent[0].Once != "the-same" {
				t.Errorf("sent %+v", sent)
			}
		})
	}
}
