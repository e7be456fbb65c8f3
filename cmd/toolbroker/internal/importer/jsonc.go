package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/tailscale/hujson"
)

// A node is a JSON value that knows where it stands. A nil one is absent.
type node struct {
	path, name string // "mcpServers.github.env.TOKEN", "TOKEN"
	line       int
	kind       byte    // as the value begins: { [ " 0 t f n
	value      string  // of a string its text, else as it is written
	children   []*node // of an object by its last spelling of a name, in the file's order
	again      []*node // members that a later one of the same name replaced
}

const maxDepth = 64

// parse reads JSON as these clients do: with comments, trailing commas and a byte
// order mark. Its errors quote nothing.
func parse(text []byte) (*node, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	root, err := hujson.Parse(text)
	if err != nil {
		where := regexp.MustCompile(`line \d+, column \d+`).FindString(err.Error())
		if where == "" {
			where = "somewhere"
		}
		return nil, fmt.Errorf("not JSON, with or without comments: %s", where)
	}
	n, err := read(root, text, "", "", 0)
	if err == nil && n.kind != '{' {
		err = errors.New("not a JSON object")
	}
	return n, err
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func read(v hujson.Value, text []byte, path, name string, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	n := &node{path: path, name: name, line: 1 + bytes.Count(text[:v.StartOffset], []byte("\n")), kind: byte(v.Value.Kind())}
	switch x := v.Value.(type) {
	case hujson.Literal:
		n.value = string(x)
		if n.kind == '"' {
			if err := json.Unmarshal(x, &n.value); err != nil {
				return nil, fmt.Errorf("line %d: not a string", n.line)
			}
		}
	case *hujson.Array:
		for i, e := range x.Elements {
			c, err := read(e, text, fmt.Sprintf("%s[%d]", path, i), fmt.Sprint(i), depth+1)
			if err != nil {
				return nil, err
			}
			n.children = append(n.children, c)
		}
	case *hujson.Object:
		for _, m := range x.Members {
			var key string
			if err := json.Unmarshal(m.Name.Value.(hujson.Literal), &key); err != nil {
				return nil, fmt.Errorf("line %d: not a name", n.line)
			}
			c, err := read(m.Value, text, below(path, key), key, depth+1)
			if err != nil {
				return nil, err
			}
			if i := slices.IndexFunc(n.children, func(o *node) bool { return o.name == key }); i >= 0 {
				n.again = append(n.again, n.children[i])
				n.children = slices.Delete(n.children, i, i+1)
			}
			n.children = append(n.children, c)
		}
	}
	return n, nil
}

func below(path, name string) string {
	switch {
	case !plainName.MatchString(name):
		return fmt.Sprintf("%s[%q]", path, name)
	case path == "":
		return name
	}
	return path + "." + name
}

// get returns an object's member, or nil.
func (n *node) get(name string) *node {
	if n == nil || n.kind != '{' {
		return nil
	}
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// all are the members of an object or the elements of a list.
func (n *node) all() []*node {
	if n == nil {
		return nil
	}
	return n.children
}

// text is a string's, and "" for anything else.
func (n *node) text() string {
	if n == nil || n.kind != '"' {
		return ""
	}
	return n.value
}

// scalar is a value that stands for a string: one, a number or a yes or no.
func (n *node) scalar() (string, bool) {
	return n.value, n.kind == '"' || n.kind == '0' || n.kind == 't' || n.kind == 'f'
}

func (n *node) duplicates() []*node {
	all := slices.Clone(n.again)
	for _, c := range n.children {
		all = append(all, c.duplicates()...)
	}
	return all
}
