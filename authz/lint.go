package authz

import (
	"maps"
	"slices"
	"strings"
)

// maxWide bounds how many unconditional rows every row is held against, so that
// linting stays near linear in the file. What is beyond is not looked at.
const maxWide = 500

// lint looks at the rows together.
func (p *parser) lint() {
	p.lintRoles()
	p.lintTools()
	for _, r := range p.rows {
		p.lintRow(r)
	}
	p.lintCovered()
	if !slices.ContainsFunc(p.rows, func(r *row) bool { return r.verdict.grants() }) && len(p.rows) > 0 && !HasErrors(p.findings) {
		p.warn(0, "", "no row grants anything: every call will be denied")
	}
}

func (p *parser) lintRoles() {
	parents := map[string][]string{} // whoever holds the key holds these too
	held, granted := map[string]bool{}, map[string]bool{}
	for _, l := range p.links {
		if strings.HasPrefix(l.workload, rolePrefix) {
			parents[l.workload] = append(parents[l.workload], l.role)
		} else {
			held[l.role] = true
		}
		granted[l.role] = true
	}
	for again := true; again; {
		again = false
		for child, roles := range parents {
			for _, role := range roles {
				if held[child] && !held[role] {
					held[role], again = true, true
				}
			}
		}
	}
	used := map[string]bool{}
	for _, r := range p.rows {
		if !strings.HasPrefix(r.who, rolePrefix) {
			continue
		}
		if used[r.who] = true; !held[r.who] {
			p.warn(r.line, nearest(r.who, slices.Sorted(maps.Keys(granted))), "nobody holds %s", r.who)
		}
	}
	reaches := func(from, to string) bool {
		seen, todo := map[string]bool{}, []string{from}
		for len(todo) > 0 {
			at := todo[0]
			todo = todo[1:]
			if at == to {
				return true
			}
			if !seen[at] {
				seen[at] = true
				todo = append(todo, parents[at]...)
			}
		}
		return false
	}
	for _, l := range p.links {
		if !strings.HasPrefix(l.workload, rolePrefix) {
			continue
		}
		used[l.workload] = true
		if reaches(l.role, l.workload) {
			p.fail(l.line, "", "role cycle through %s", l.workload)
		}
	}
	for _, l := range p.links {
		if !used[l.role] {
			used[l.role] = true
			p.warn(l.line, "", "no row is about %s", l.role)
		}
	}
}

func (p *parser) lintTools() {
	groups, used := map[string]bool{}, map[string]bool{}
	for _, m := range p.members {
		groups[m.group] = true
	}
	for _, r := range p.rows {
		used[r.tool] = true
		switch {
		case r.tool == "" || isToolGlob(r.tool) || groups[r.tool]:
		case slices.Contains(labels, r.tool):
			if !r.verdict.grants() {
				p.warn(r.line, "", "no g2 row labels a tool %s; only tools without any label count as it", r.tool)
			} else {
				p.warn(r.line, "", "no g2 row labels a tool %s, so this grants nothing", r.tool)
			}
		default:
			known := append(slices.Sorted(maps.Keys(groups)), labels...)
			p.fail(r.line, nearest(r.tool, known), "column tool: %q is neither server/tool nor a group of a g2 row", r.tool)
		}
	}
	for _, m := range p.members {
		if !used[m.group] && !slices.Contains(labels, m.group) {
			used[m.group] = true
			p.warn(m.line, nearest(m.group, labels), "no row is about the group %s", m.group)
		}
	}
}

// lintRow looks at what one row says.
func (p *parser) lintRow(r *row) {
	everything := r.tool == "*" || r.tool == "**"
	start := r.action == string(Start) || r.action == string(Delegate)
	if r.verdict.grants() {
		switch {
		case r.who == "*" && everything:
			p.warn(r.line, "", "this lets everybody do this to every tool")
		case everything && r.action == "*":
			p.warn(r.line, "", "this lets %s do everything to every tool, and start every kind of task", r.who)
		}
		if r.when != nil && len(r.when.loose) > 0 {
			p.warn(r.line, "", "the pattern '%s' is found anywhere in the value; begin it with ^ or end it with $", r.when.loose[0])
		}
	}
	if r.verdict.requires() {
		if start || r.action == "*" && everything {
			p.warn(r.line, "", "a start or a delegation cannot wait for an operator: where this row matches one, the task does not start")
		}
		if r.action == string(List) {
			p.warn(r.line, "", "a list never waits for an operator; this row %s", map[bool]string{true: "grants it", false: "does nothing"}[r.verdict.grants()])
		}
	}
	if isTask := strings.HasPrefix(r.tool, taskPrefix); start && !isTask && !strings.HasPrefix(r.tool, "*") {
		p.warn(r.line, taskPrefix+"KIND", "this can never match: what a %s is about is a task, not %s", map[string]string{string(Start): "start", string(Delegate): "delegation"}[r.action], r.tool)
	} else if isTask && !start && r.action != "*" {
		p.warn(r.line, string(Start), "this can never match: %s is started or delegated, nothing else", r.tool)
	}
}

// lintCovered finds rows that can never decide. It may miss some; it never
// names one that can.
func (p *parser) lintCovered() {
	var denies, allows []*row
	for _, r := range p.rows {
		switch {
		case r.when != nil:
		case r.verdict.word == "deny" && len(denies) < maxWide:
			denies = append(denies, r)
		case r.verdict.word == "allow" && len(allows) < maxWide:
			allows = append(allows, r)
		}
	}
	for _, r := range p.rows {
		if i := slices.IndexFunc(denies, func(d *row) bool { return d != r && d.covers(r) }); i >= 0 {
			// Of two denials that say the same, in other words, the first stays.
			if d := denies[i]; !(r.verdict.word == "deny" && r.when == nil && r.line < d.line && r.covers(d)) {
				p.warn(r.line, "", "this can never decide: line %d denies all of it", d.line)
				continue
			}
		}
		if r.verdict.word == "allow" && r.when != nil {
			if i := slices.IndexFunc(allows, func(a *row) bool { return a.covers(r) }); i >= 0 {
				p.warn(r.line, "", "the condition never matters: line %d allows all of it without one", allows[i].line)
			}
		}
	}
}

// covers reports whether r matches whatever narrow matches, conditions aside.
func (r *row) covers(narrow *row) bool {
	return (r.action == "*" || r.action == narrow.action) &&
		(r.who == "*" || r.who == narrow.who || !strings.HasPrefix(r.who, rolePrefix) && !strings.HasPrefix(narrow.who, rolePrefix) && covers(r.who, narrow.who)) &&
		covers(r.tenant, narrow.tenant) && covers(r.task, narrow.task) &&
		(r.tool == "*" || r.tool == narrow.tool || isToolGlob(r.tool) && isToolGlob(narrow.tool) && covers(r.tool, narrow.tool))
}

// Lint holds the policy against a catalogue of tools, each "server/tool": rows
// that match none of them, and tools that nobody labelled. All it finds are
// warnings.
func (p *Policy) Lint(tools []string) []Finding {
	out := &parser{file: p.file}
	rules := p.rules
	for _, m := range rules.members {
		if !strings.HasPrefix(m.tool, taskPrefix) && !slices.ContainsFunc(tools, func(t string) bool { return glob(t, m.tool) }) {
			out.warn(m.line, nearest(m.tool, tools), "no known tool matches %q", m.tool)
		}
	}
	labelled := slices.ContainsFunc(rules.members, func(m member) bool { return slices.Contains(labels, m.group) })
	for _, r := range rules.rows {
		isLabel := slices.Contains(labels, r.tool)
		labelled = labelled || isLabel
		if !isLabel && !strings.HasPrefix(r.tool, taskPrefix) && r.action != string(Start) && !slices.ContainsFunc(tools, func(t string) bool { return rules.inGroup(t, r.tool) }) {
			out.warn(r.line, nearest(r.tool, tools), "no known tool matches %q", r.tool)
		}
	}
	for _, tool := range slices.Sorted(slices.Values(tools)) {
		if labelled && rules.unlabelled(tool) {
			out.warn(0, "", "%s has no label, so it counts as %s wherever a row restricts", tool, strings.Join(labels, ", "))
		}
	}
	return out.report()
}
