package authz

import (
	"slices"
	"strings"
)

// holders answers the g(who, cell, tenant) of the matcher: is the principal who
// the cell of a p row covers? It stands in for Casbin's role manager, which would
// need half a minute for 10,000 rows with globs, takes equal names for a link and
// keeps every answer for ever: here only a g row gives a role, and a principal
// called "role:x" holds nothing by its name.
type holders struct {
	workloads patterns
	links     [][]link          // by the place of their workload
	nested    map[string][]link // by the role that holds another
	memo      cache[[2]string, map[string]bool]
}

func newHolders(links []link) *holders {
	h := &holders{nested: map[string][]link{}}
	for _, l := range links {
		if strings.HasPrefix(l.workload, rolePrefix) {
			h.nested[l.workload] = append(h.nested[l.workload], l)
			continue
		}
		id := h.workloads.add(l.workload)
		if int(id) == len(h.links) {
			h.links = append(h.links, nil)
		}
		h.links[id] = append(h.links[id], l)
	}
	return h
}

// maxSubjects is of how many principals it is remembered what they are.
const maxSubjects = 1 << 14

// roles returns the roles that a principal holds in a tenant. The map is shared.
func (h *holders) roles(principal, tenant string) map[string]bool {
	if len(h.links) == 0 {
		return nil
	}
	key := [2]string{principal, tenant}
	if held, ok := h.memo.load(key); ok {
		return held
	}
	held := map[string]bool{}
	var todo []string
	take := func(links []link) {
		for _, l := range links {
			if !held[l.role] && glob(tenant, l.tenant) {
				held[l.role] = true
				todo = append(todo, l.role)
			}
		}
	}
	for _, id := range h.workloads.covering(principal, nil) {
		take(h.links[id])
	}
	for len(todo) > 0 {
		role := todo[0]
		todo = todo[1:]
		take(h.nested[role])
	}
	h.memo.store(key, held, maxSubjects)
	return held
}

// is reports whether cell, of the who column, covers a principal.
func (h *holders) is(principal, cell, tenant string) bool {
	if strings.HasPrefix(cell, rolePrefix) {
		return h.roles(principal, tenant)[cell]
	}
	return glob(principal, cell)
}

// noLabel is the tool cell, impossible in a file, that covers the tools nobody
// labelled.
const noLabel = "no label"

// groups answers the g2(tool, cell) of the matcher: is the tool what the cell of
// a p row covers?
type groups struct {
	tools   map[string][]string // by group
	members patterns
	in      [][]string // the groups of a member, by its place
}

func newGroups(members []member) *groups {
	g := &groups{tools: map[string][]string{}}
	for _, m := range members {
		g.tools[m.group] = append(g.tools[m.group], m.tool)
		id := g.members.add(m.tool)
		if int(id) == len(g.in) {
			g.in = append(g.in, nil)
		}
		g.in[id] = append(g.in[id], m.group)
	}
	return g
}

// of returns the groups that a tool is in, perhaps some twice.
func (g *groups) of(tool string) []string {
	var all []string
	for _, id := range g.members.covering(tool, nil) {
		all = append(all, g.in[id]...)
	}
	return all
}

func (g *groups) inGroup(tool, cell string) bool {
	if cell == noLabel {
		return g.unlabelled(tool)
	}
	if _, ok := g.tools[cell]; ok {
		return slices.Contains(g.of(tool), cell)
	}
	return !slices.Contains(labels, cell) && glob(tool, cell)
}

// unlabelled reports whether no g2 row gives tool a label. A task's kind is not
// a tool.
func (g *groups) unlabelled(tool string) bool {
	return !strings.HasPrefix(tool, taskPrefix) &&
		!slices.ContainsFunc(g.of(tool), func(group string) bool { return slices.Contains(labels, group) })
}
