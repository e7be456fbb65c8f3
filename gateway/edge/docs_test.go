package edge

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every command of docs/tasks.md that is ours to answer does what stands there.
func TestDocsCommands(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("skipped: no curl to run the page's commands with")
	}
	page, err := os.ReadFile(filepath.FromSlash("../../docs/tasks.md"))
	if err != nil {
		t.Fatal(err)
	}
	says := map[string][]string{ // in order
		"Discovery":            {`"authorization_servers":["https://id.example/realm"]`},
		"Token exchange":       {`"access_token":"the-task-token"`, `{"id":"task-a"`, `"token":"the-childs-token"`, `"state":"ended"`},
		"REST":                 {`"token":"the-token"`, `{"id":"task-a"`, `"token":"the-childs-token"`, `"state":"ended"`},
		"The header and _meta": {`"token":"the-token"`, `"tools":[`, `"tools":[`},
	}
	for title, want := range says {
		_, section, found := strings.Cut(string(page), "\n## "+title+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		if !found || !strings.Contains(section, "```mermaid\nsequenceDiagram\n") {
			t.Errorf("%s: no sequence", title)
		}
		for part := range strings.SplitSeq(section, "```sh\n") {
			commands, _, fenced := strings.Cut(part, "```\n")
			if !fenced || !strings.HasPrefix(commands, "curl ") {
				continue
			}
			for command := range strings.SplitSeq(strings.ReplaceAll(commands, "\\\n", ""), "\n") {
				if command == "" {
					continue
				}
				if len(want) == 0 {
					t.Errorf("%s: nobody says what comes of %s", title, command)
					continue
				}
				d := open(t, func(c *Config) { discoverable(c); c.PublicURL = "" })
				d.set(func() { // under a lock that a request takes: curl tells the race detector nothing
					d.granted = granted(t, "")
					d.granted.Expires = time.Now().Add(time.Hour)
				})
				sh := exec.CommandContext(t.Context(), "sh", "-c", command)
				sh.Env = []string{"PATH=" + filepath.Dir(curl), "URL=" + d.url, "KEY=key", "TOKEN=alice", "TASK=task-a", "NO_PROXY=*"}
				out, err := sh.CombinedOutput()
				if err != nil || !strings.Contains(string(out), want[0]) || strings.Contains(string(out), `"isError":true`) {
					t.Errorf("%s\n%s %v\nwant ...%s...", command, out, err, want[0])
				}
				want = want[1:]
			}
		}
		if len(want) > 0 {
			t.Errorf("%s: no command says %v", title, want)
		}
	}
}
