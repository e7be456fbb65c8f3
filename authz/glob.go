package authz

import (
	"slices"
	"strings"
)

// glob reports whether pattern covers s. `*` is any run without a `/`, `**` any
// run, and a pattern that is only `*` covers everything. Nothing else is special.
//
// Casbin's own keyMatch ignores what follows the first star, so it is not used.
func glob(s, pattern string) bool {
	if pattern == "*" {
		return true
	}
	var si, pi int
	// Where to go on after the last * and the last **, and what they have taken so far.
	star, starTook, deep, deepTook := -1, 0, -1, 0
	for {
		switch {
		case strings.HasPrefix(pattern[pi:], "**"):
			pi += 2
			deep, deepTook, star = pi, si, -1
			continue
		case pi < len(pattern) && pattern[pi] == '*':
			pi++
			star, starTook = pi, si
			continue
		case pi < len(pattern) && si < len(s) && pattern[pi] == s[si]:
			pi++
			si++
			continue
		case pi == len(pattern) && si == len(s):
			return true
		}
		switch {
		case star >= 0 && starTook < len(s) && s[starTook] != '/' && s[starTook] != deepRun[0]:
			starTook++
			pi, si = star, starTook
		case deep >= 0 && deepTook < len(s):
			deepTook++
			pi, si, star = deep, deepTook, -1
		default:
			return false
		}
	}
}

// covers reports whether wide matches everything that narrow matches. It may
// miss a case; it never claims one that is not.
//
// A wildcard of narrow's stands for any run, so it is put to wide as a sign that
// no name holds: only a wildcard of wide's, at least as far-reaching, takes it.
func covers(wide, narrow string) bool {
	switch {
	case wide == narrow, wide == "*", wide == "**":
		return true
	case narrow == "*":
		return false
	}
	return glob(anyRun.Replace(narrow), wide)
}

const (
	oneRun  = "\x01" // within a segment
	deepRun = "\x02" // across segments; `*` does not take it
)

var anyRun = strings.NewReplacer("**", deepRun, "*", oneRun)

// patterns finds those of many patterns that cover a name without trying each:
// by what stands before a pattern's first star and after its last.
type patterns struct {
	cells  []string
	ids    map[string]int32 // places in cells
	ends   map[[2]string][]int32
	shapes [][2]int // how long the ends are, each pair once
}

// add returns the place of a pattern, the same for the same pattern.
func (p *patterns) add(cell string) int32 {
	if id, ok := p.ids[cell]; ok {
		return id
	}
	if p.ids == nil {
		p.ids, p.ends = map[string]int32{}, map[[2]string][]int32{}
	}
	id := int32(len(p.cells))
	p.cells = append(p.cells, cell)
	p.ids[cell] = id
	if first := strings.IndexByte(cell, '*'); first >= 0 {
		ends := [2]string{cell[:first], cell[strings.LastIndexByte(cell, '*')+1:]}
		if shape := [2]int{len(ends[0]), len(ends[1])}; len(p.ends[ends]) == 0 && !slices.Contains(p.shapes, shape) {
			p.shapes = append(p.shapes, shape)
		}
		p.ends[ends] = append(p.ends[ends], id)
	}
	return id
}

// covering appends the places of the patterns that cover name.
func (p *patterns) covering(name string, to []int32) []int32 {
	if id, ok := p.ids[name]; ok && strings.IndexByte(name, '*') < 0 {
		to = append(to, id)
	}
	for _, shape := range p.shapes {
		if shape[0]+shape[1] > len(name) {
			continue
		}
		for _, id := range p.ends[[2]string{name[:shape[0]], name[len(name)-shape[1]:]}] {
			if glob(name, p.cells[id]) {
				to = append(to, id)
			}
		}
	}
	return to
}
