package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"toolbroker/brokers/operators"
	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/gateway"
)

// The config that dev serves; the file is also there to read and to copy from.
var configText = template.Must(template.New("config").Funcs(template.FuncMap{"q": quote}).Parse(`# Made by toolbroker dev at every start: edits here are lost. The policy beside it is yours to edit.
data_dir: data
replica: dev
agent: {listen: {{q .Agent}}}
console: {listen: {{q .Console}}}
management: {listen: {{q .Management}}}
redis: embedded
audit: {dir: audit, origin: toolbroker-dev}
policy: {file: policy.csv}
tenants: [{{.Tenant}}]
operators:
{{- range .Operators}}
  - name: {{.Name}}
    password_hash: {{q .Hash}}
    groups: [leads]
    roles: [{{.Roles}}]
    tenants: [{{$.Tenant}}]
    identities: [{{.Name}}@example.com]
{{- end}}
task_kinds:
  - name: triage
    purpose: Sort new issues, with the notes at hand.
    ttl: 8h
    delegation: {depth: 1, fan_out: 4}
    scope:
      - {tool: "tracker/*", action: call, verdict: allow}
      - {tool: "notes/*", action: call, verdict: allow}
      - {tool: "task:reading", action: delegate, verdict: allow}
  - name: reading
    purpose: Read the notes; an issue only if a human lets it.
    ttl: 8h
    escalation: 30m
    initial:
      - {tool: "notes/*", action: call, verdict: allow}
    scope:
      - {tool: "notes/*", action: call, verdict: allow}
      - {tool: "tracker/get_issue", action: call, verdict: allow}
vault:
  address: {{q .Vault.Address}}
  token_file: vault-token
  policies: [toolbroker-dev]
{{- if .Vault.CA}}
  ca: {{q .Vault.CA}}
{{- end}}
{{- if .Vault.Namespace}}
  namespace: {{q .Vault.Namespace}}
{{- end}}
servers:
  - name: tracker
    url: {{q .Tracker}}
    timeout: 30s
    target_argument: number
    credential:
{{- if .Vault.StandIn}}
      {engine: leased, mount: creds, path: tracker, mode: call, ttl: 5m, headers: {Authorization: "Bearer {{"{{.token}}"}}"}}
{{- else}}
      {engine: kv, mount: secret, path: toolbroker-dev/tracker, mode: call, headers: {Authorization: "Bearer {{"{{.token}}"}}"}}
{{- end}}
  - name: notes
    command: {{q .Self}}
    args: [dev, notes-server, --dir, {{q .Notes}}, --key-sha256, {{.NotesKeyHash}}]
    timeout: 30s
    credential: {engine: kv, mount: secret, path: toolbroker-dev/notes, env: {NOTES_KEY: "{{"{{.key}}"}}"}}
`))

// quote writes a string as YAML that means it whatever it holds; JSON is YAML.
func quote(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

func (o Options) config(dir string, v *vault, trackerURL string, people []Operator) (*config.Config, error) {
	type operator struct{ Name, Hash, Roles string }
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	data := struct {
		Agent, Console, Management, Tenant, Tracker, Self, Notes, NotesKeyHash string
		Operators                                                              []operator
		Vault                                                                  struct {
			Address, CA, Namespace string
			StandIn                bool
		}
	}{Tenant: Tenant, Tracker: trackerURL, Self: self, Notes: filepath.Join(dir, "notes"), NotesKeyHash: sum(v.notesKey)}
	data.Vault.Address, data.Vault.StandIn = v.address, v.standIn
	data.Vault.CA, data.Vault.Namespace = v.ca, v.namespace
	for i, p := range people {
		hash, err := operators.HashPassword(gateway.NewSecret(p.Password))
		if err != nil {
			return nil, err
		}
		data.Operators = append(data.Operators, operator{p.Name, hash, []string{"admin, approver", "approver"}[i]})
	}
	for _, a := range []struct {
		to               *string
		wanted, fallback string
	}{{&data.Agent, o.Listen, "127.0.0.1:8080"}, {&data.Console, o.Console, "127.0.0.1:8081"}, {&data.Management, "", "127.0.0.1:0"}} {
		if *a.to = a.wanted; a.wanted == "" {
			*a.to = free(a.fallback)
		}
	}
	var text strings.Builder
	if err := configText.Execute(&text, data); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yaml")
	if err := write(file, text.String()); err != nil {
		return nil, err
	}
	if err := write(filepath.Join(dir, "vault-token"), v.token+"\n"); err != nil {
		return nil, err
	}
	cfg, problems := config.Load(file)
	if len(problems) > 0 {
		return nil, fmt.Errorf("the config that dev made is wrong: %w", errors.New(problems[0].String()))
	}
	return cfg, nil
}

// free is the address, or one with any port where that is taken.
func free(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "127.0.0.1:0"
	}
	l.Close()
	return address
}
