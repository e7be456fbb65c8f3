package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The tutorial: `toolbroker dev` and nothing else, the example agent's three
// calls, an approval, and a record that an auditor can check.
func TestDev(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "triage")
	if out, err := exec.Command("go", "build", "-o", agent, "toolbroker/examples/agents/triage").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "dev")
	said := &lockedBuffer{}
	cmd := exec.Command(binary, "dev", "--dir", dir, "--listen", freeAddr(t), "--console", freeAddr(t))
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH="} // nothing installed
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	file := filepath.Join(dir, "dev.json")
	until(t, "dev.json", func() bool { _, err := os.Stat(file); return err == nil })
	var dev struct {
		Console   string `json:"console_url"`
		Audit     string `json:"audit_dir"`
		Vault     struct{ Token string }
		Operators []struct{ Name, Password string }
	}
	if err := json.Unmarshal([]byte(readFile(t, file)), &dev); err != nil {
		t.Fatal(err)
	}
	out := &lockedBuffer{}
	run := process(t, out, agent, file)
	// Whichever operator may answer does.
	h := &House{t: t, Console: dev.Console}
	answered := false
	pending := func(session string) (found Approval) {
		until(t, "a pending request", func() bool {
			for _, found = range h.Approvals(session) {
				if found.State == "pending" {
					return true
				}
			}
			select {
			case <-run.done:
				// A machine too busy to confirm in time that the task runs refuses, and says so.
				if !strings.Contains(out.String(), "try again in a moment") {
					t.Fatalf("the agent ended: %v\n%s\n%s", run.err, out, said)
				}
				run = process(t, out, agent, file)
			default:
			}
			return false
		})
		return found
	}
	for _, op := range dev.Operators {
		var login struct{ Token string }
		if code := request(t, "POST", dev.Console+"/api/v1/login", "", map[string]string{"name": op.Name, "password": op.Password}, &login); code != 200 {
			t.Fatalf("%s: %d", op.Name, code)
		}
		answered = h.Vote(login.Token, pending(login.Token), true) == 200 || answered
		if answered {
			break
		}
	}
	if <-run.done; run.err != nil || !answered {
		t.Fatalf("%v, answered %v\n%s\n%s", run.err, answered, out, said)
	}
	for _, want := range []string{"may use tracker__list_issues", `"issues":`, "DENIED", `"state":"closed"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the agent did not see %q:\n%s", want, out)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	h.AuditDir = dev.Audit
	h.Verify()
	for _, e := range h.Events() {
		if e.Gateway.Mode != "dev" {
			t.Fatalf("an event of a dev run says mode %q", e.Gateway.Mode)
		}
	}
}
