package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the commands ask of the admin API, word for word: a stop that is about
// more than was typed, or a task that may more, is a mistake that ends work.
func TestWhatTheConsoleIsAsked(t *testing.T) {
	dir := t.TempDir()
	password, scope := filepath.Join(dir, "password"), filepath.Join(dir, "scope.json")
	for file, text := range map[string]string{password: "correct horse", scope: `[{"tool":"notes/*","action":"call","verdict":"allow"}]`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const started = `{"task":{"id":"task-1","state":"running","claims":{"owner":"proven"},"owner":"alice","purpose":"p","scope":[],
		"ancestors":[{"id":"task-0","kind":"plan","principal":"agent:p","scope":[]}],"implicit":true,
		"widened":[{"approval":"apr-1","rows":[{"tool":"a/b","action":"call","verdict":"allow"}],"until":"2026-01-02T03:04:05Z","by":["bob"]}]},"token":"t.t.t"}`
	const stops = `{"stops":[{"tenant":"acme","kind":"human","name":"dana\u200b","by":"operator:alice","reason":"r","at":"2026-01-02T03:04:05Z"}]}`
	for _, c := range []struct {
		args, asked, says string
		worlds            string // whose tenants are known; default: acme alone
	}{
		{"stop set --principal agent:a --reason r", `POST /api/v1/stops {"kind":"principal","name":"agent:a","reason":"r","tenant":"acme"}`, "stopped", ""},
		{"stop set --owner oscar --reason r --tenant globex", `POST /api/v1/stops {"kind":"owner","name":"oscar","reason":"r","tenant":"globex"}`, "stopped", ""},
		{"stop set --human dana --reason r", `POST /api/v1/stops {"kind":"human","name":"dana","reason":"r","tenant":"acme"}`, "stopped", ""},
		{"stop set --all-of-tenant --reason r", `POST /api/v1/stops {"kind":"tenant","reason":"r","tenant":"acme"}`, "stopped", ""},
		{"stop set --everything --reason r", `POST /api/v1/stops {"kind":"tenant","reason":"r","tenant":"*"}`, "stopped", ""},
		{"stop lift --standing agent:a", `POST /api/v1/stops/lift {"kind":"standing","name":"agent:a","tenant":"acme"}`, "lifted", ""},
		{"stop lift --everything", `POST /api/v1/stops/lift {"kind":"tenant","tenant":"*"}`, "lifted", ""},
		{"stop list", `GET /api/v1/stops?tenant=acme `, `dana\u{200b}`, ""},
		{"stop set --reason r", "", "exactly one of", ""},
		{"stop set --reason r --tenant acme --owner=", "", "exactly one of", ""},
		{"stop set --reason r --owner a --human b", "", "exactly one of", ""},
		{"stop set --reason r --everything --all-of-tenant", "", "exactly one of", ""},
		{"stop set --reason r --everything --tenant acme", "", "drop --tenant", ""},
		{"stop set --owner a", "", `required flag(s) "reason"`, ""},
		{"stop lift", "", "exactly one of", ""},
		{
			"task start --kind k --principal agent:a --purpose p --reference T-1 --label a --label b,c --approver bob --approver group:sre --calls 7 --ttl 90s --on-behalf-of dana --scope " + scope,
			`POST /api/v1/tasks {"tenant":"acme","kind":"k","purpose":"p","principal":"agent:a","on_behalf_of":"dana","ttl_seconds":90,"scope":[{"tool":"notes/*","action":"call","verdict":"allow"}],"reference":"T-1","labels":["a","b,c"],"approvers":["bob","group:sre"],"calls":7}`,
			"t.t.t", "",
		},
		{"task delegate task-0 --kind k --principal agent:a --purpose p", `POST /api/v1/tasks/acme/task-0/delegate {"kind":"k","purpose":"p","principal":"agent:a"}`, "task-0 (plan) of agent:p", ""},
		{"task start --kind k --principal agent:a --purpose p", `POST /api/v1/tasks {"tenant":"acme","kind":"k","purpose":"p","principal":"agent:a"}`, "until 2026-01-02 03:04:05Z by bob (apr-1): [{", ""},
		{"task start --kind k --principal agent:a --purpose p", `POST /api/v1/tasks {"tenant":"acme","kind":"k","purpose":"p","principal":"agent:a"}`, "alice  (proven)", ""},
		{"task start --kind k --principal agent:a --purpose p", `POST /api/v1/tasks {"tenant":"acme","kind":"k","purpose":"p","principal":"agent:a"}`, "p  (says its starter)", ""},
		{"task start --kind k --principal agent:a --purpose p --calls -1", "", "no number of calls", ""},
		{"task start --kind k --principal agent:a --purpose p --ttl 1ms", "", "no time to run", ""},
		{"task delegate --kind k --principal agent:a --purpose p", "", "wants PARENT", ""},
		{"stop list", "", "whose? give --tenant NAME: acme, globex", `["acme","globex"]`},
		{"task list", "", "whose? give --tenant NAME: acme, globex", `["acme","globex"]`},
		{"stop list --tenant *", "", "--tenant names one: acme, globex", `["acme","globex"]`},
		{"task end task-1 --tenant *", "", "--tenant names one: acme, globex", `["acme","globex"]`},
	} {
		t.Run(c.args, func(t *testing.T) {
			asked := ""
			console := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				switch r.URL.Path {
				case "/api/v1/login":
					worlds := `["acme"]`
					if c.worlds != "" {
						worlds = c.worlds
					}
					fmt.Fprint(w, `{"token":"session-of-alice","operator":{"name":"alice","tenants":["*"],"worlds":`+worlds+`}}`)
					return
				case "/api/v1/logout":
					return
				}
				asked += r.Method + " " + r.URL.String() + " " + string(body)
				fmt.Fprint(w, map[bool]string{true: stops, false: started}[r.Method == "GET"])
			}))
			defer console.Close()
			root := newRoot()
			var out bytes.Buffer
			root.SetOut(&out)
			root.SetArgs(append(strings.Fields(c.args), "--console", console.URL, "--operator", "alice", "--password-file", password))
			err := root.ExecuteContext(t.Context())
			said := out.String()
			if err != nil {
				said = err.Error()
			}
			if asked != c.asked || (err == nil) != (c.asked != "") || !strings.Contains(said, c.says) {
				t.Errorf("asked %s\nsaid %s", asked, said)
			}
		})
	}
}
