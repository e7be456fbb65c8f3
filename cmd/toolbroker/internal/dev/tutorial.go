package dev

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

var tutorialText = template.Must(template.New("tutorial").Parse(`
toolbroker dev is ready; Ctrl-C ends it. This is for trying out, on this machine only.

  agents     {{.File.MCP}}
  console    {{.File.Console}}
             log in as bob, password {{.Bob.Password}}     (may approve)
                    or {{.Alice.Name}}, password {{.Alice.Password}}   (owns the tasks, so may not; ends them, and stops)
  policy     {{.File.PolicyFile}}     edit it: it takes effect when you save
  record     {{.File.AuditDir}}
  secrets    {{.Vault}}

Three calls, in another terminal:

  export TOOLBROKER_URL={{.File.MCP}} TOOLBROKER_TOKEN=$(cat {{.Token}})
  {{.Self}} call tracker__list_issues                    # allowed
  {{.Self}} call tracker__close_issue --arg number=1     # denied: issue 1 is pinned
  {{.Self}} call tracker__close_issue --arg number=2     # waits: approve it in the console

What happened, and is it whole?

  {{.Self}} audit tail {{.File.AuditDir}}
  {{.Self}} audit verify {{.File.AuditDir}}

Your own client:

  Claude Code   claude mcp add --transport http toolbroker {{.File.MCP}} --header "Authorization: Bearer $(cat {{.Token}})"
  Cursor        put this into .cursor/mcp.json (it is in {{.Dir}}/cursor.json):
                {{.Cursor}}
  VS Code       put this into .vscode/mcp.json (it is in {{.Dir}}/vscode.json):
                {{.VSCode}}

`))

// tutorial prints what to do next. It holds passwords and a token: it is meant
// for the terminal of whoever started dev, and nothing else prints them.
func tutorial(w io.Writer, f File, dir, vaultName string) error {
	type entry struct {
		Type    string            `json:"type,omitempty"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
	}
	headers := map[string]string{"Authorization": "Bearer " + f.Tasks["triage"].Token}
	cursor, err := json.Marshal(map[string]any{"mcpServers": map[string]entry{"toolbroker": {"", f.MCP, headers}}})
	if err != nil {
		return err
	}
	vscode, err := json.Marshal(map[string]any{"servers": map[string]entry{"toolbroker": {"http", f.MCP, headers}}})
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"cursor.json": cursor, "vscode.json": vscode} {
		if err := write(filepath.Join(dir, name), string(text)+"\n"); err != nil {
			return err
		}
	}
	self := "toolbroker"
	if len(os.Args) > 0 && strings.Contains(os.Args[0], "/") {
		self = os.Args[0]
	}
	return tutorialText.Execute(w, map[string]any{
		"File": f, "Alice": f.Operators[0], "Bob": f.Operators[1], "Vault": vaultName, "Dir": dir, "Self": self,
		"Token": filepath.Join(dir, "triage.token"), "Cursor": string(cursor), "VSCode": string(vscode),
	})
}
