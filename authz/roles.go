package authz

import (
	"slices"
	"strings"
	"sync"

	"github.com/casbin/casbin/v2/rbac"
)

// holders answers Casbin's g(who, cell, tenant): is the principal who the cell
// of a p row covers? It stands in for Casbin's role manager, which would need
// half a minute for 10,000 rows with globs and takes equal names for a link: here
// only a g row gives a role, and a principal called "role:x" holds nothing by
// its name.
type holders struct {
	rbac.RoleManager // nil: Casbin asks for nothing but HasLink
	exact            map[string][]link
	globs            []link
	nested           map[string][]link // by the role that holds another
	memo             bounded[[2]string, map[string]bool]
}

func newHolders(links []link) *holders {
	h := &holders{exact: map[string][]link{}, nested: map[string][]link{}}
	for _, l := range links {
		switch {
		case strings.HasPrefix(l.workload, rolePrefix):
			h.nested[l.workload] = append(h.nested[l.workload], l)
		case strings.Contains(l.workload, "*"):
			h.globs = append(h.globs, l)
		default:
			h.exact[l.workload] = append(h.exact[l.workload], l)
		}
	}
	return h
}

// roles returns the roles that a principal holds in a tenant. The map is shared.
func (h *holders) roles(principal, tenant string) map[string]bool {
	key := [2]string{principal, tenant}
	if held, ok := h.memo.load(key); ok {
		return held
	}
	held := map[string]bool{}
	var todo []string
	take := func(l link) {
		if !held[l.role] && glob(tenant, l.tenant) {
			held[l.role] = true
			todo = append(todo, l.role)
		}
	}
	for _, l := range h.exact[principal] {
		take(l)
	}
	for _, l := range h.globs {
		if glob(principal, l.workload) {
			take(l)
		}
	}
	for len(todo) > 0 {
		role := todo[0]
		todo = todo[1:]
		for _, l := range h.nested[role] {
			take(l)
		}
	}
	h.memo.store(key, held)
	return held
}

func (h *holders) HasLink(principal, cell string, tenant ...string) (bool, error) {
	if strings.HasPrefix(cell, rolePrefix) {
		return len(tenant) == 1 && h.roles(principal, tenant[0])[cell], nil
	}
	return glob(principal, cell), nil
}

// noLabel is the tool cell, impossible in a file, that covers the tools nobody
// labelled.
const noLabel = "no label"

// groups answers Casbin's g2(tool, cell): is the tool what the cell of a p row covers?
type groups struct {
	rbac.RoleManager // nil: Casbin asks for nothing but HasLink
	tools            map[string][]string
}

func newGroups(members []member) *groups {
	g := &groups{tools: map[string][]string{}}
	for _, m := range members {
		g.tools[m.group] = append(g.tools[m.group], m.tool)
	}
	return g
}

func (g *groups) HasLink(tool, cell string, _ ...string) (bool, error) {
	return g.inGroup(tool, cell), nil
}

func (g *groups) inGroup(tool, cell string) bool {
	if cell == noLabel {
		return g.unlabelled(tool)
	}
	if globs, ok := g.tools[cell]; ok {
		return slices.ContainsFunc(globs, func(pattern string) bool { return glob(tool, pattern) })
	}
	return !slices.Contains(labels, cell) && glob(tool, cell)
}

// unlabelled reports whether no g2 row gives tool a label. A task's kind is not
// a tool.
func (g *groups) unlabelled(tool string) bool {
	return !strings.HasPrefix(tool, taskPrefix) &&
		!slices.ContainsFunc(labels, func(label string) bool { return len(g.tools[label]) > 0 && g.inGroup(tool, label) })
}

// bounded is a map for many goroutines that forgets everything when it is full,
// so that what callers name cannot fill the memory.
type bounded[K comparable, V any] struct {
	mu  sync.RWMutex
	all map[K]V
}

const maxRemembered = 1 << 14

func (b *bounded[K, V]) load(k K) (V, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v, ok := b.all[k]
	return v, ok
}

func (b *bounded[K, V]) store(k K, v V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil || len(b.all) >= maxRemembered {
		b.all = map[K]V{}
	}
	b.all[k] = v
}
