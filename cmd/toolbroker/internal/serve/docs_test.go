package serve

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/identity"
	"toolbroker/cmd/toolbroker/internal/config"
)

// The commands of docs/tasks.md work in the order in which they stand there, with
// one key, as its first paragraph says.
func TestDocsInSequence(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("skipped: no curl to run the page's commands with")
	}
	page, err := os.ReadFile("../../../../docs/tasks.md")
	if err != nil {
		t.Fatal(err)
	}
	key, hash, err := identity.NewKey("triage-1")
	if err != nil {
		t.Fatal(err)
	}
	c, dir := newConfig(t, "")
	c.Identity.APIKeys = []config.APIKey{{ID: "triage-1", Hash: hash, Tenant: "acme", Principal: "agent:triage", Owner: "alice", Expires: time.Now().Add(time.Hour)}}
	c.Identity.Issuers = []config.Issuer{{Name: "corp", Kind: "oidc", Issuer: "https://corp.example", Audiences: []string{"us"}, JWKSFile: config.Path(filepath.Join(dir, "keys.json")),
		Rules: []config.Rule{{Principal: "agent:{sub}", Tenant: "acme", Owner: "alice"}}}}
	c.TaskKinds = []config.TaskKind{{Name: "triage", TTL: time.Hour, SelfStart: true, Delegation: config.Delegation{Depth: 1, FanOut: 2}, Scope: []config.ScopeRow{
		{Tool: "tracker/*", Action: "call", Verdict: "allow"}, {Tool: "task:triage", Action: "delegate", Verdict: "allow"},
	}}}
	write(t, filepath.Join(dir, "keys.json"), `{"keys":[]}`) // nobody is asked for any
	write(t, filepath.Join(dir, "policy.csv"), `p, agent:triage, acme, triage, tracker/*,   call,     , allow
p, agent:triage, acme, *,      task:triage, start,    , allow
p, agent:triage, acme, triage, task:triage, delegate, , allow
`)
	h, _ := start(t, c, io.Discard)
	url, token, task, ran := "http://"+h.agents.Addr().String(), "", "", 0
	for part := range strings.SplitSeq(string(page), "```sh\n") {
		commands, _, fenced := strings.Cut(part, "```\n")
		if !fenced || !strings.HasPrefix(commands, "curl ") {
			continue
		}
		for command := range strings.SplitSeq(strings.TrimSpace(strings.ReplaceAll(commands, "\\\n", "")), "\n") {
			sh := exec.CommandContext(t.Context(), "sh", "-c", command)
			sh.Env = []string{"PATH=" + filepath.Dir(curl), "URL=" + url, "KEY=" + key.Reveal(), "TOKEN=" + token, "TASK=" + task, "NO_PROXY=*"}
			out, err := sh.CombinedOutput()
			var said struct {
				Error, Result json.RawMessage
				Access        string                  `json:"access_token"`
				Token         string                  `json:"token"`
				Task          struct{ ID string }     `json:"task"`
				Details       []struct{ Task string } `json:"authorization_details"`
			}
			if err != nil || json.Unmarshal(out, &said) != nil || said.Error != nil || strings.Contains(string(out), `"isError":true`) {
				t.Fatalf("%s\n%s %v", command, out, err)
			}
			ran++
			switch {
			case said.Access != "":
				token, task = said.Access, said.Details[0].Task
			case said.Token != "" && strings.Contains(command, "$KEY"):
				token, task = said.Token, said.Task.ID
			}
		}
	}
	if ran < 10 {
		t.Errorf("%d commands were found", ran)
	}
}
