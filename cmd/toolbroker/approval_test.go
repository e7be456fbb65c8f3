package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"toolbroker/gateway"
)

// Whoever answers on the command line sees what a server asked beside the answers,
// and no character of it does anything to the terminal.
func TestAQuestionIsPrinted(t *testing.T) {
	for answers, want := range map[string]bool{"sha256:x": true, "": false} {
		var out bytes.Buffer
		cmd := &cobra.Command{}
		cmd.SetOut(&out)
		r := request{ApprovalRequest: gateway.ApprovalRequest{ID: "apr-1", Answers: answers},
			Args: "{\"arguments\":{},\"inputRequests\":{\"k\":{\"params\":{\"message\":\"sure\u202e?\"}}},\"inputResponses\":{}}"}
		if err := printRequest(cmd, r); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "is its question (untrusted"); got != want {
			t.Errorf("answers %q: %s", answers, out.String())
		}
		if !strings.Contains(out.String(), `sure\u{202e}?`) || strings.Contains(out.String(), "\u202e") {
			t.Errorf("%q", out.String())
		}
	}
}
