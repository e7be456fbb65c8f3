// Package cases reads the questions, with the answers expected, that stand beside
// a policy. Who asks them, and what a wrong answer means, is left to others.
package cases

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"toolbroker/authz"
)

// Beside is where the cases of a policy are: policy_test.yaml for policy.csv.
func Beside(policy string) string {
	return strings.TrimSuffix(policy, filepath.Ext(policy)) + "_test.yaml"
}

// Read reads a file of cases. What is wrong with it is told line by line.
func Read(file string) (cases []authz.Case, wrong []string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	d := &caseReader{file: file}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		d.wrong(1, "the file has no cases")
		return nil, d.said, nil
	}
	var standard authz.Case // what a case is when it does not say
	d.pairs(doc.Content[0], map[string]func(*yaml.Node){
		"defaults": func(n *yaml.Node) { d.read(n, &standard, true) },
		"cases": func(n *yaml.Node) {
			if n.Kind != yaml.SequenceNode {
				d.wrong(n.Line, "cases is not a list")
			}
		},
	})
	if len(d.said) > 0 {
		return nil, d.said, nil
	}
	for i, n := range doc.Content[0].Content {
		if n.Value != "cases" || i%2 == 1 {
			continue
		}
		for _, item := range doc.Content[0].Content[i+1].Content {
			c := standard
			c.Line = item.Line
			d.read(item, &c, false)
			cases = append(cases, c)
		}
	}
	if len(cases) == 0 && len(d.said) == 0 {
		d.wrong(1, "the file has no cases")
	}
	return cases, d.said, nil
}

// A caseReader reads cases out of YAML and gathers what is wrong with them.
type caseReader struct {
	file string
	said []string
}

func (d *caseReader) wrong(line int, format string, a ...any) {
	d.said = append(d.said, fmt.Sprintf("%s:%d: error: %s", d.file, line, fmt.Sprintf(format, a...)))
}

// pairs walks a mapping whose keys are known.
func (d *caseReader) pairs(n *yaml.Node, known map[string]func(*yaml.Node)) map[string]bool {
	seen := map[string]bool{}
	if n.Kind != yaml.MappingNode {
		d.wrong(n.Line, "write `name: value` lines here")
		return seen
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		for value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		read, ok := known[key.Value]
		switch {
		case !ok:
			var names []string
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			d.wrong(key.Line, "unknown key %q; known are %s", key.Value, strings.Join(names, ", "))
		case seen[key.Value]:
			d.wrong(key.Line, "%s is set twice", key.Value)
		default:
			read(value)
		}
		seen[key.Value] = true
	}
	return seen
}

func (d *caseReader) text(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		d.wrong(n.Line, "want one value")
	}
	return n.Value
}

func (d *caseReader) list(n *yaml.Node) []string {
	all := []string{}
	if n.Kind == yaml.ScalarNode {
		return append(all, n.Value)
	}
	if n.Kind != yaml.SequenceNode {
		d.wrong(n.Line, "want a list")
	}
	for _, item := range n.Content {
		all = append(all, d.text(item))
	}
	return all
}

// read fills in one case, or the defaults of all.
func (d *caseReader) read(n *yaml.Node, c *authz.Case, defaults bool) {
	r := &c.Request
	claims := map[string]any{} // about a task, which a start is asked with
	args := func(n *yaml.Node) any {
		v, err := jsonOf(n)
		if err != nil {
			d.wrong(n.Line, "%v", err)
		}
		return v
	}
	claim := func(name string) func(*yaml.Node) {
		return func(n *yaml.Node) { claims[name] = args(n) }
	}
	scope := func(n *yaml.Node) {
		text, err := json.Marshal(args(n))
		s := &authz.Scope{}
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err != nil {
			d.wrong(n.Line, "%v", err)
		}
		r.Scopes = append(slices.Clip(r.Scopes), s)
	}
	known := map[string]func(*yaml.Node){
		"principal": func(n *yaml.Node) { r.Subject.Principal = d.text(n) },
		"tenant":    func(n *yaml.Node) { r.Subject.Tenant = d.text(n) },
		"task":      func(n *yaml.Node) { r.Task = d.text(n) },
		"tool":      func(n *yaml.Node) { r.Tool = d.text(n) },
		"action":    func(n *yaml.Node) { r.Action = authz.Action(d.text(n)) },
		"time": func(n *yaml.Node) {
			var err error
			if r.Time, err = time.Parse(time.RFC3339, d.text(n)); err != nil {
				d.wrong(n.Line, "time: write it as 2026-11-23T09:00:00Z")
			}
		},
	}
	if !defaults {
		known["name"] = func(n *yaml.Node) { c.Name = d.text(n) }
		known["args"] = func(n *yaml.Node) {
			v := args(n)
			if _, ok := v.(map[string]any); !ok {
				d.wrong(n.Line, "args is not a mapping")
			}
			r.Args, _ = json.Marshal(v)
		}
		for _, name := range []string{"on_behalf_of", "purpose", "reference", "labels"} {
			known[name] = claim(name)
		}
		known["scope"] = scope
		known["scopes"] = func(n *yaml.Node) {
			if n.Kind != yaml.SequenceNode {
				d.wrong(n.Line, "scopes is not a list of scopes")
			}
			for _, one := range n.Content {
				scope(one)
			}
		}
		known["verdict"] = func(n *yaml.Node) {
			if err := c.Verdict.UnmarshalText([]byte(d.text(n))); err != nil {
				d.wrong(n.Line, "verdict %q is none of allow, approve and deny", n.Value)
			}
		}
		known["need"] = func(n *yaml.Node) { c.Need = d.list(n) }
		known["rules"] = func(n *yaml.Node) { c.Rules = d.list(n) }
	}
	seen := d.pairs(n, known)
	if defaults {
		return
	}
	if r.Action == "" {
		r.Action = authz.Call
	}
	if len(claims) > 0 {
		if r.Action != authz.Start && r.Action != authz.Delegate {
			d.wrong(n.Line, "only a start or a delegation is decided by what a task is for; on_behalf_of, purpose, reference and labels belong there")
		}
		all := map[string]any{}
		_ = json.Unmarshal(r.Args, &all) // it came from Marshal, or is empty
		for name, v := range claims {
			all[name] = v
		}
		r.Args, _ = json.Marshal(all)
	}
	for _, must := range []struct {
		name string
		has  bool
	}{{"name", c.Name != ""}, {"principal", r.Subject.Principal != ""}, {"tenant", r.Subject.Tenant != ""}, {"tool", r.Tool != ""}, {"verdict", seen["verdict"]}} {
		if !must.has {
			d.wrong(n.Line, "the case has no %s", must.name)
		}
	}
}

// jsonOf is a YAML value as JSON has it. Numbers keep their digits, and what YAML
// takes for a date is a string.
func jsonOf(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.AliasNode:
		return nil, fmt.Errorf("*%s cannot be read here", n.Value) // it may be a part of itself
	case yaml.SequenceNode:
		all := []any{}
		for _, item := range n.Content {
			v, err := jsonOf(item)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	case yaml.MappingNode:
		all := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := all[key]; twice {
				return nil, fmt.Errorf("%s is set twice", key)
			}
			v, err := jsonOf(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			all[key] = v
		}
		return all, nil
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strconv.ParseBool(strings.ToLower(n.Value))
	case "!!int", "!!float":
		if !json.Valid([]byte(n.Value)) {
			return nil, fmt.Errorf("%s is no number as JSON writes it", n.Value)
		}
		return json.Number(n.Value), nil
	}
	return n.Value, nil
}
