// Package importer reads the file in which an MCP client (Claude Desktop, Claude
// Code, Cursor, VS Code) keeps its servers, and says what they are in toolbroker's
// config: with Vault bindings where the file holds secrets, and by name whatever a
// human must still settle.
//
// It opens nothing and runs nothing. A secret leaves it only as a [gateway.Secret],
// for whoever puts it into Vault; nothing else that it returns holds one.
package importer

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"toolbroker/gateway"
)

// Options say how the result is named.
type Options struct {
	File    string   // for findings
	Tenants []string // whose the servers are
	Mount   string   // of the KV version 2 engine
	Prefix  string   // of the paths there: one below it per server
}

// A Result is a fragment of toolbroker's config, and what must be done for it.
type Result struct {
	Tenants  []string  `json:"tenants" yaml:"tenants"`
	Servers  []Server  `json:"servers" yaml:"servers"`
	Vault    []*Put    `json:"vault" yaml:"-"`
	Findings []Finding `json:"findings" yaml:"-"` // what a human must settle
	Notes    []Finding `json:"notes" yaml:"-"`    // what is different, and need not be settled
}

// A Server is one in toolbroker's words.
type Server struct {
	Name       string            `json:"name" yaml:"name"`
	Tenants    []string          `json:"tenants" yaml:"tenants,flow"`
	URL        string            `json:"url,omitempty" yaml:"url,omitempty"`
	Protocol   string            `json:"protocol,omitempty" yaml:"protocol,omitempty"`
	Command    string            `json:"command,omitempty" yaml:"command,omitempty"`
	Args       []string          `json:"args,omitempty" yaml:"args,omitempty,flow"`
	Env        map[string]string `json:"env,omitempty" yaml:"env,omitempty"`
	Dir        string            `json:"dir,omitempty" yaml:"dir,omitempty"`
	Credential *Credential       `json:"credential,omitempty" yaml:"credential,omitempty"`
}

// A Credential binds a server to its secret in Vault.
type Credential struct {
	Engine  string            `json:"engine" yaml:"engine"`
	Mount   string            `json:"mount" yaml:"mount"`
	Path    string            `json:"path" yaml:"path"`
	Headers map[string]string `json:"headers,omitempty" yaml:"headers,omitempty"`
	Env     map[string]string `json:"env,omitempty" yaml:"env,omitempty"`
}

// A Put is what must lie in Vault for a binding to work.
type Put struct {
	Server  string  `json:"server"`
	From    string  `json:"from"` // the server in the file
	Line    int     `json:"line"`
	Mount   string  `json:"mount"`
	Path    string  `json:"path"`
	Fields  []Field `json:"fields"`
	Written bool    `json:"written"` // what the file holds of it lies there now
	Command string  `json:"command"` // what puts the rest there, with a placeholder for each value; empty: nothing is left
}

// say makes the command.
func (p *Put) say() {
	words := []string{"vault kv put", "-mount=" + p.Mount, p.Path}
	if p.Written {
		words[0] = "vault kv patch"
	}
	n := len(words)
	for _, f := range p.Fields {
		if !p.Written || !f.Inline {
			words = append(words, f.Name+"='<"+f.Name+">'")
		}
	}
	if p.Command = strings.Join(words, " "); len(words) == n {
		p.Command = ""
	}
}

// Keep puts what the file holds of a server's secrets into Vault, by a function
// that knows how. What cannot be put is a finding.
func (r *Result) Keep(file string, keep func(mount, path string, fields map[string]gateway.Secret) error) {
	for _, p := range r.Vault {
		fields := map[string]gateway.Secret{}
		for _, f := range p.Fields {
			if f.Inline {
				fields[f.Name] = f.Value
			}
		}
		if len(fields) == 0 {
			continue
		}
		if err := keep(p.Mount, p.Path, fields); err != nil {
			r.Findings = append(r.Findings, Finding{file, p.Line, p.From, fmt.Sprintf("its secrets are not in Vault: %v", err), p.Command})
			continue
		}
		p.Written = true
		p.say()
	}
}

// A Field is one secret of a Put.
type Field struct {
	Name   string         `json:"name"`
	From   string         `json:"from"`   // where the file has it or asks for it
	Inline bool           `json:"inline"` // the file holds it
	Value  gateway.Secret `json:"-"`      // where it does
}

// A Finding is something about one place of the file.
type Finding struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Path string `json:"path"` // "mcpServers.github.args[2]"
	What string `json:"what"`
	Hint string `json:"hint,omitempty"`
}

// String is the finding in a line, after what kind of thing it is.
func (f Finding) String(kind string) string {
	s := fmt.Sprintf("%s:%d: %s: %s: %s", f.File, f.Line, kind, f.Path, f.What)
	if f.Hint != "" {
		s += "; " + f.Hint
	}
	return s
}

// Read imports a file's text. Its error is about the file as a whole, and quotes
// none of it.
func Read(text []byte, o Options) (*Result, error) {
	root, err := parse(text)
	if err != nil {
		return nil, err
	}
	im := &importer{Options: o, names: map[string]bool{"toolbroker": true}, result: &Result{Tenants: o.Tenants, Servers: []Server{}, Vault: []*Put{}, Findings: []Finding{}, Notes: []Finding{}}}
	for _, d := range root.duplicates() {
		im.find(d, "", "is set twice; the last one counts")
	}
	if !im.document(root) {
		return nil, fmt.Errorf("no mcpServers and no servers in it: not a client's configuration that toolbroker knows")
	}
	im.result.blank()
	for _, list := range [][]Finding{im.result.Findings, im.result.Notes} {
		slices.SortStableFunc(list, func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
	}
	return im.result, nil
}

// blank takes every secret that was found out of all else that is returned: one
// that stands in the file twice may be known for one in one place only.
func (r *Result) blank() {
	var secrets []string
	for _, p := range r.Vault {
		for _, f := range p.Fields {
			// A short word may well stand elsewhere as itself.
			if v := f.Value.Reveal(); len(v) >= 12 || len(v) >= 8 && strings.ContainsAny(v, "0123456789") {
				secrets = append(secrets, v, removed)
			}
		}
	}
	clean := strings.NewReplacer(secrets...).Replace
	all := func(m map[string]string) {
		for k, v := range m {
			m[k] = clean(v)
		}
	}
	for i := range r.Servers {
		s := &r.Servers[i]
		s.URL, s.Command, s.Dir = clean(s.URL), clean(s.Command), clean(s.Dir)
		for j := range s.Args {
			s.Args[j] = clean(s.Args[j])
		}
		all(s.Env)
		if s.Credential != nil {
			for _, templates := range []map[string]string{s.Credential.Headers, s.Credential.Env} {
				for k, v := range templates {
					templates[k] = literal.ReplaceAllStringFunc(v, clean)
				}
			}
		}
	}
	for _, list := range [][]Finding{r.Findings, r.Notes} {
		for i := range list {
			list[i].What = clean(list[i].What)
		}
	}
}

// literal is what stands in a template before, between and after its fields.
var literal = regexp.MustCompile(`(^|}})[^{}]+`)

type importer struct {
	Options
	names  map[string]bool // of servers, taken
	inputs map[string]*node
	result *Result
}

func (im *importer) at(n *node, hint, what string, args []any) Finding {
	return Finding{im.File, n.line, n.path, fmt.Sprintf(what, args...), hint}
}

func (im *importer) find(n *node, hint, what string, args ...any) {
	im.result.Findings = append(im.result.Findings, im.at(n, hint, what, args))
}

func (im *importer) note(n *node, hint, what string, args ...any) {
	im.result.Notes = append(im.result.Notes, im.at(n, hint, what, args))
}

// document finds the servers: mcpServers in Claude Desktop's and Cursor's file, and
// in Claude Code's by project too; servers in VS Code's mcp.json, and below mcp in
// its settings.
func (im *importer) document(root *node) (known bool) {
	each := func(holder *node, name string) {
		servers := holder.get(name)
		if servers == nil || servers.kind != '{' {
			return
		}
		known = true
		im.inputs = map[string]*node{}
		for _, input := range holder.get("inputs").all() {
			im.inputs[input.get("id").text()] = input
		}
		for _, m := range servers.all() {
			im.server(m)
		}
	}
	each(root, "mcpServers")
	each(root, "servers")
	each(root.get("mcp"), "servers")
	for _, project := range root.get("projects").all() {
		each(project, "mcpServers")
	}
	return known
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// name makes a server's name of what the file calls it.
func (im *importer) name(n *node) string {
	name := strings.Trim(notName.ReplaceAllString(strings.ToLower(n.name), "-"), "-")
	name = strings.Trim(name[:min(len(name), 48)], "-")
	if name == "" {
		name = "server"
	}
	free := name
	for i := 2; im.names[free]; i++ {
		free = fmt.Sprintf("%s-%d", name, i)
	}
	im.names[free] = true
	if free != n.name {
		im.note(n, "", "is called %s here", free)
	}
	return free
}

// fieldNamed is a name for a secret's field that is not taken in p.
func (p *Put) fieldNamed(of string) string {
	name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(of), "_"), "_")
	if name == "" {
		name = "value"
	}
	free := name
	for i := 2; slices.ContainsFunc(p.Fields, func(f Field) bool { return f.Name == free }); i++ {
		free = fmt.Sprintf("%s_%d", name, i)
	}
	return free
}
