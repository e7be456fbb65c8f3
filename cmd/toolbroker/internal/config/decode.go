package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// A Problem is one thing wrong with the file.
type Problem struct {
	File string
	Line int    // from 1; 0 when no line is to blame
	Key  string // "servers[0].timeout", or empty
	What string // what is wrong
	Hint string // what may have been meant, or what to write
}

func (p Problem) String() string {
	s := p.File + ":"
	if p.Line > 0 {
		s += strconv.Itoa(p.Line) + ":"
	}
	s += " error:"
	if p.Key != "" {
		s += " " + p.Key + ":"
	}
	s += " " + p.What
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// A Path is a file's or directory's name, absolute once loaded.
type Path string

// A Size is a number of bytes; the file may write 64KiB, 4MiB or 1GiB.
type Size int64

// A decoder copies YAML nodes into a struct and remembers where each came from.
type decoder struct {
	file, dir string
	lines     map[string]int // key to line
	problems  []Problem
}

func (d *decoder) problem(line int, key, hint, what string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, line, key, fmt.Sprintf(what, args...), hint})
}

// at reports a problem with a key that was read, or with the nearest key above it.
func (d *decoder) at(key, hint, what string, args ...any) {
	d.problem(lineOf(d.lines, key), key, hint, what, args...)
}

// lineOf is where a key stands, or the nearest key above it.
func lineOf(lines map[string]int, key string) int {
	line, above := lines[key], key
	for line == 0 && above != "" {
		cut := strings.LastIndexAny(above, ".[")
		above = above[:max(cut, 0)]
		line = lines[above]
	}
	return line
}

// At is what whoever reads the files that a config names, or makes something of
// its settings, found wrong with a key.
func (c *Config) At(key, hint, what string, args ...any) Problem {
	return Problem{c.path, lineOf(c.lines, key), key, fmt.Sprintf(what, args...), hint}
}

// has reports whether the file sets the key.
func (d *decoder) has(key string) bool { return d.lines[key] > 0 }

func (d *decoder) sorted() []Problem {
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return d.problems
}

func (d *decoder) document(n *yaml.Node, c *Config) {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	if n.Kind == 0 || n.Tag == "!!null" {
		d.problem(0, "", "start from config.example.yaml", "the file is empty")
		return
	}
	d.value(n, reflect.ValueOf(c).Elem(), "")
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.lines[key] == 0 {
		d.lines[key] = n.Line
	}
	if n.Tag == "!!null" {
		d.problem(n.Line, key, "give it a value or leave the key out", "has no value")
		return
	}
	if r, ok := v.Addr().Interface().(*Redis); ok && n.Kind == yaml.ScalarNode {
		if r.Embedded = n.Value == "embedded"; !r.Embedded {
			d.problem(n.Line, key, "write `redis: embedded`, or a mapping with `url`", "%q is no Redis", n.Value)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			d.scalar(n, v, key)
			return
		}
		d.fields(n, v, key)
	case reflect.Slice:
		d.list(n, v, key)
	case reflect.Map:
		d.table(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

// pairs walks a mapping, refusing a key that stands twice.
func (d *decoder) pairs(n *yaml.Node, key string, each func(name string, k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.problem(n.Line, key, "write `name: value` lines below it", "is not a mapping")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if first := seen[k.Value]; first > 0 {
			d.problem(k.Line, join(key, k.Value), fmt.Sprintf("it stands at line %d already", first), "is set twice")
			continue
		}
		seen[k.Value] = k.Line
		each(k.Value, k, n.Content[i+1])
	}
}

func (d *decoder) fields(n *yaml.Node, v reflect.Value, key string) {
	known := map[string]reflect.Value{}
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" && name != "-" {
			known[name] = v.Field(i)
		}
	}
	d.pairs(n, key, func(name string, k, val *yaml.Node) {
		field, ok := known[name]
		if !ok {
			d.problem(k.Line, join(key, name), nearest(name, known), "unknown key")
			return
		}
		d.lines[join(key, name)] = k.Line
		d.value(val, field, join(key, name))
	})
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.problem(n.Line, key, "write it as [a, b] or as lines that begin with -", "is not a list")
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if e, ok := list.Index(i).Addr().Interface().(interface{ defaults() }); ok {
			e.defaults()
		}
		d.value(item, list.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
	v.Set(list)
}

func (d *decoder) table(n *yaml.Node, v reflect.Value, key string) {
	table := reflect.MakeMap(v.Type())
	d.pairs(n, key, func(name string, k, val *yaml.Node) {
		entry := reflect.New(v.Type().Elem()).Elem()
		d.lines[join(key, name)] = k.Line
		d.value(val, entry, join(key, name))
		table.SetMapIndex(reflect.ValueOf(name), entry)
	})
	v.Set(table)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.ScalarNode {
		d.problem(n.Line, key, "", "wants a single value")
		return
	}
	s := n.Value
	bad := func(hint, what string) { d.problem(n.Line, key, hint, "%q is not %s", s, what) }
	switch v.Interface().(type) {
	case time.Duration:
		t, err := time.ParseDuration(s)
		if err != nil || t < 0 {
			bad("write a number with a unit, such as 30s, 10m or 1h", "a duration")
			return
		}
		v.SetInt(int64(t))
	case time.Time:
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			if t, err = time.Parse(time.DateOnly, s); err != nil {
				bad("write 2027-01-31 or 2027-01-31T15:04:05Z", "a date or a time")
				return
			}
		}
		v.Set(reflect.ValueOf(t))
	case Size:
		size, err := parseSize(s)
		if err != nil {
			bad("write bytes, or a number with KiB, MiB or GiB", "a size")
			return
		}
		v.SetInt(int64(size))
	case Path:
		if s != "" && !filepath.IsAbs(s) {
			s = filepath.Join(d.dir, s)
		}
		v.SetString(s)
	case bool:
		if s != "true" && s != "false" {
			bad("write true or false", "a yes or no")
			return
		}
		v.SetBool(s == "true")
	case int:
		i, err := strconv.Atoi(s)
		if err != nil {
			bad("", "a whole number")
			return
		}
		v.SetInt(int64(i))
	case string:
		v.SetString(s)
	}
}

func parseSize(s string) (Size, error) {
	unit := Size(1)
	for suffix, u := range map[string]Size{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = strings.TrimSpace(rest), u
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0, errors.New("not a size")
	}
	return Size(n) * unit, nil
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// nearest says which known key was probably meant.
func nearest(name string, known map[string]reflect.Value) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	return suggest(name, names)
}

// suggest says which of names is close to what was written, and which there are otherwise.
func suggest(name string, names []string) string {
	best, far := "", 1+len(name)/2
	for _, candidate := range names {
		if dist := distance(strings.ToLower(name), candidate); dist < far {
			best, far = candidate, dist
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(names) == 0:
		return "none is declared"
	}
	return "there are " + strings.Join(names, ", ")
}

// distance counts the edits (one letter, or two swapped) between two words.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// syntax turns the YAML parser's complaint into a problem with a line.
func syntax(path string, err error) Problem {
	p := Problem{File: path, What: strings.TrimPrefix(err.Error(), "yaml: "), Hint: "indent with spaces and quote what holds a colon"}
	if load, ok := errors.AsType[*yaml.LoadError](err); ok {
		p.Line, p.What = load.Mark.Line, load.Message
	}
	if strings.Contains(p.What, "no documents") {
		p.What, p.Hint = "the file is empty", "start from config.example.yaml"
	}
	return p
}

// unpath drops the path from an error whose reader names it already.
func unpath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
