package authz

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// The bounds of what linting looks at, so that it stays near linear in the file.
// What is beyond is not looked at.
const (
	maxHeld     = 4_000_000 // pairs of rows that are held against one another
	maxWide     = 500       // rows that any one row is held against
	maxCompared = 1_000_000 // names compared in search of what was meant
	maxNamed    = 3         // tools that one finding names
)

// lint looks at the rows together.
func (p *parser) lint() {
	p.lintRoles()
	p.lintTools()
	looked := map[*condition]string{} // what was found about each condition
	for _, r := range p.rows {
		p.lintRow(r)
		if p.lintCondition(r, looked); r.when != nil && (r.action == string(Start) || r.action == string(Delegate)) {
			p.lintArguments(r, []string{r.action}, map[string]*schema{r.action: startSchema})
		}
	}
	p.lintCovered()
	if !slices.ContainsFunc(p.rows, func(r *row) bool { return r.verdict.grants() }) && len(p.rows) > 0 && !HasErrors(p.findings) {
		p.say(0, "no-grant", "", "no row grants anything: every call will be denied")
	}
}

// startSchema is of what a start and a delegation are asked with.
var startSchema = newSchema(json.RawMessage(`{"properties":{"principal":{"type":"string"},"principals":{"type":"array"},
	"on_behalf_of":{"type":"string"},"purpose":{"type":"string"},"reference":{"type":"string"},"labels":{"type":"array"}},
	"required":["principal"],"additionalProperties":false}`))

// near is nearest, until so many names have been compared that the file has more
// mistakes than anybody reads.
func (p *parser) near(word string, known []string) string {
	if p.compared += len(known); p.compared > maxCompared {
		return ""
	}
	return nearest(word, known)
}

func (p *parser) lintRoles() {
	parents := map[string][]string{} // whoever holds the key holds these too
	held, granted, used := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var todo []string
	hold := func(role string) {
		if !held[role] {
			held[role] = true
			todo = append(todo, role)
		}
	}
	for _, l := range p.links {
		granted[l.role] = true
		if strings.HasPrefix(l.workload, rolePrefix) {
			parents[l.workload] = append(parents[l.workload], l.role)
			used[l.workload] = true
		}
	}
	for _, l := range p.links {
		if !strings.HasPrefix(l.workload, rolePrefix) {
			hold(l.role)
		}
	}
	for len(todo) > 0 {
		role := todo[0]
		todo = todo[1:]
		for _, r := range parents[role] {
			hold(r)
		}
	}
	known := slices.Sorted(maps.Keys(granted))
	for _, r := range p.rows {
		if !strings.HasPrefix(r.who, rolePrefix) {
			continue
		}
		if used[r.who] = true; !held[r.who] {
			p.say(r.line, "nobody-holds", p.near(r.who, known), "nobody holds %s", r.who)
		}
	}
	circle := circles(parents)
	for _, l := range p.links {
		if n := circle[l.workload]; n > 0 && n == circle[l.role] {
			p.say(l.line, "role-cycle", "", "role cycle through %s", l.workload)
		}
	}
	for _, l := range p.links {
		if !used[l.role] {
			used[l.role] = true
			p.say(l.line, "unused-role", "", "no row is about %s", l.role)
		}
	}
}

// circles numbers the roles that reach themselves; those of one circle have the
// same number. It walks with a stack of its own, for a file may nest deeply.
func circles(parents map[string][]string) map[string]int {
	type visit struct {
		role string
		next int // of its parents
	}
	index, low, circle := map[string]int{}, map[string]int{}, map[string]int{}
	on := map[string]bool{}
	var open []string // Tarjan's stack
	count, found := 0, 0
	for _, start := range slices.Sorted(maps.Keys(parents)) {
		if index[start] > 0 {
			continue
		}
		walk := []visit{{role: start}}
		for len(walk) > 0 {
			v := &walk[len(walk)-1]
			if v.next == 0 && index[v.role] == 0 {
				count++
				index[v.role], low[v.role], on[v.role] = count, count, true
				open = append(open, v.role)
			}
			if v.next < len(parents[v.role]) {
				to := parents[v.role][v.next]
				v.next++
				switch {
				case index[to] == 0:
					walk = append(walk, visit{role: to})
				case on[to]:
					low[v.role] = min(low[v.role], index[to])
				}
				continue
			}
			role := v.role
			walk = walk[:len(walk)-1]
			if len(walk) > 0 {
				up := walk[len(walk)-1].role
				low[up] = min(low[up], low[role])
			}
			if low[role] != index[role] {
				continue
			}
			at := len(open) - 1
			for open[at] != role {
				at--
			}
			together := open[at:]
			found++
			for _, r := range together {
				on[r] = false
				if len(together) > 1 || slices.Contains(parents[r], r) {
					circle[r] = found
				}
			}
			open = open[:at]
		}
	}
	return circle
}

func (p *parser) lintTools() {
	groups, used := map[string]bool{}, map[string]bool{}
	for _, m := range p.members {
		groups[m.group] = true
	}
	known := append(slices.Sorted(maps.Keys(groups)), labels...)
	for _, r := range p.rows {
		used[r.tool] = true
		switch {
		case r.tool == "" || isToolGlob(r.tool) || groups[r.tool]:
		case slices.Contains(labels, r.tool):
			if !r.verdict.grants() {
				p.say(r.line, "unused-label", "", "no g2 row labels a tool %s; only tools without any label count as it", r.tool)
			} else {
				p.say(r.line, "unused-label", "", "no g2 row labels a tool %s, so this grants nothing", r.tool)
			}
		default:
			p.say(r.line, "unknown-group", p.near(r.tool, known), "column tool: %q is neither server/tool nor a group of a g2 row", r.tool)
		}
	}
	for _, m := range p.members {
		if !used[m.group] && !slices.Contains(labels, m.group) {
			used[m.group] = true
			p.say(m.line, "unused-group", nearest(m.group, labels), "no row is about the group %s", m.group)
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
			p.say(r.line, "wide-grant", "", "this lets everybody do this to every tool")
		case everything && r.action == "*":
			p.say(r.line, "wide-grant", "", "this lets %s do everything to every tool, and start every kind of task", r.who)
		case r.who == "*" && r.tenant == "*" && r.when == nil:
			p.say(r.line, "wide-grant", "", "this lets everybody in every tenant do this to %s", r.tool)
		}
		if r.when != nil && len(r.when.loose) > 0 {
			p.say(r.line, "loose-pattern", "", "the pattern '%s' is found anywhere in the value; begin it with ^ or end it with $", r.when.loose[0])
		}
	}
	if r.verdict.requires() {
		if start || r.action == "*" && everything {
			p.say(r.line, "cannot-wait", "", "a start or a delegation cannot wait for an operator: where this row matches one, the task does not start")
		}
		if r.action == string(List) {
			p.say(r.line, "list-waits", "", "a list never waits for an operator; this row %s", map[bool]string{true: "grants it", false: "does nothing"}[r.verdict.grants()])
		}
	}
	if isTask := strings.HasPrefix(r.tool, taskPrefix); start && !isTask && !strings.HasPrefix(r.tool, "*") {
		p.say(r.line, "never-matches", taskPrefix+"KIND", "this can never match: what a %s is about is a task, not %s", map[string]string{string(Start): "start", string(Delegate): "delegation"}[r.action], r.tool)
	} else if isTask && !start && r.action != "*" {
		p.say(r.line, "never-matches", string(Start), "this can never match: %s is started or delegated, nothing else", r.tool)
	}
}

// lintCondition finds a condition that says nothing, whatever the call. Each is
// looked into once.
func (p *parser) lintCondition(r *row, looked map[*condition]string) {
	c := r.when
	if c == nil {
		return
	}
	code, ok := looked[c]
	clash := ""
	if !ok {
		if ok, why := p.sense.can(c, false, nil); !ok {
			code = "never-holds"
			if clash = " (" + strings.Join(why, ", ") + ")"; len(why) == 0 {
				clash = ""
			}
		} else if ok, _ := p.sense.can(c, true, nil); !ok {
			code = "always-holds"
		}
		looked[c] = code
	}
	switch {
	case code == "never-holds" && r.verdict.grants():
		p.say(r.line, code, "", "the condition can never hold%s, so this grants nothing", clash)
	case code == "never-holds":
		p.say(r.line, code, "", "the condition can never hold%s; this restricts only what it cannot be evaluated for", clash)
	case code == "always-holds":
		p.say(r.line, code, "", "the condition holds whatever %s is, so long as it can be evaluated", strings.Join(c.vars, " and "))
	}
}

// A wide row is one that others may lie within, found by whom it is about.
type wideRows struct {
	held  int               // pairs
	by    map[string][]*row // by who, where it is a role or a name
	globs []*row
}

func (w *wideRows) add(r *row) {
	if w.by == nil {
		w.by = map[string][]*row{}
	}
	if who := r.who; who == "*" || !strings.Contains(who, "*") {
		if len(w.by[who]) < maxWide {
			w.by[who] = append(w.by[who], r)
		}
	} else if len(w.globs) < maxWide {
		w.globs = append(w.globs, r)
	}
}

// around returns the first row, other than r, that covers it and that take takes.
func (w *wideRows) around(r *row, covers func(wide, narrow *row) bool, take func(*row) bool) *row {
	lists := [][]*row{w.by["*"], w.by[r.who], w.globs}
	if r.who == "*" {
		lists = lists[:1]
	}
	for _, list := range lists {
		for _, wide := range list {
			if w.held++; w.held > maxHeld {
				return nil
			}
			if wide != r && covers(wide, r) && take(wide) {
				return wide
			}
		}
	}
	return nil
}

// lintCovered finds rows that can never decide. It may miss some; it never
// names one that can.
func (p *parser) lintCovered() {
	members := map[string][]string{}
	for _, m := range p.members {
		members[m.group] = append(members[m.group], m.tool)
	}
	covers := func(wide, narrow *row) bool { return wide.covers(narrow, members) }
	var denies, allows wideRows
	for _, r := range p.rows {
		switch {
		case r.when != nil:
		case r.verdict.word == "deny":
			denies.add(r)
		case r.verdict.word == "allow":
			allows.add(r)
		}
	}
	for _, r := range p.rows {
		// Of two rows that say the same, in other words, the first stays.
		elder := func(wide *row) bool {
			return !(r.verdict.word == wide.verdict.word && r.when == nil && r.line < wide.line && covers(r, wide))
		}
		if d := denies.around(r, covers, elder); d != nil {
			p.say(r.line, "shadowed", "", "this can never decide: line %d denies all of it", d.line)
			continue
		}
		if r.verdict.word != "allow" {
			continue
		}
		if a := allows.around(r, covers, elder); a != nil && r.when != nil {
			p.say(r.line, "redundant", "", "the condition never matters: line %d allows all of it without one", a.line)
		} else if a != nil {
			p.say(r.line, "redundant", "", "this adds nothing: line %d allows all of it", a.line)
		}
	}
}

// covers reports whether r matches whatever narrow matches, conditions aside.
func (r *row) covers(narrow *row, members map[string][]string) bool {
	return (r.action == "*" || r.action == narrow.action) &&
		(r.who == "*" || r.who == narrow.who || !strings.HasPrefix(r.who, rolePrefix) && !strings.HasPrefix(narrow.who, rolePrefix) && covers(r.who, narrow.who)) &&
		covers(r.tenant, narrow.tenant) && covers(r.task, narrow.task) &&
		(r.tool == "*" || r.tool == narrow.tool || isToolGlob(narrow.tool) &&
			(isToolGlob(r.tool) && covers(r.tool, narrow.tool) ||
				slices.ContainsFunc(members[r.tool], func(tool string) bool { return covers(tool, narrow.tool) })))
}

// A Tool is one of those there are.
type Tool struct {
	Name   string          `json:"name"`                  // "server/tool"
	Schema json.RawMessage `json:"inputSchema,omitempty"` // of its arguments, a JSON Schema; nil: not known
}

// Beside is what a policy can be held against. What is zero is not looked at.
type Beside struct {
	Tools  []Tool    // all the tools there are
	Now    time.Time // rows whose time is over are found
	Before *Policy   // the file that this one is to replace
}

// Lint holds the policy against what lies outside its file. Of what it finds
// only a file that lost half of its rows is an error.
func (p *Policy) Lint(b Beside) []Finding {
	out := &parser{file: p.file, sense: &sense{maxEffort}}
	if f := p.shrunk(b.Before); f != nil {
		out.findings = append(out.findings, *f)
	}
	if !b.Now.IsZero() {
		out.lintExpired(p.rules.rows, b.Now)
	}
	if len(b.Tools) > 0 {
		out.lintCatalogue(p.rules, b.Tools)
	}
	return out.report()
}

// lintExpired finds rows whose condition holds on no day from now on.
func (p *parser) lintExpired(rows []*row, now time.Time) {
	today := fact{term: &term{name: "date", op: ">=", text: "from today on",
		among: []value{{kind: numberKind, number: float64(dayOf(now))}}}}
	for _, r := range rows {
		if r.when == nil || !slices.Contains(r.when.vars, "date") {
			continue
		}
		if ok, _ := p.sense.can(r.when, false, nil); !ok {
			continue // it never held
		}
		if ok, _ := p.sense.can(r.when, false, nil, today); !ok {
			p.say(r.line, "expired", "", "this is over: its condition holds on no day from %s on", now.UTC().Format(time.DateOnly))
		}
	}
}

// lintCatalogue finds rows that match no tool, conditions that no tool's
// arguments fit, and tools that nobody labelled.
func (p *parser) lintCatalogue(rules *ruleset, tools []Tool) {
	var names []string
	schemas := map[string]*schema{}
	for _, t := range tools {
		names = append(names, t.Name)
		if s := newSchema(t.Schema); s != nil {
			schemas[t.Name] = s
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	matching := map[string][]string{} // tools by the cell that covers them
	match := func(cell string, covers func(tool string) bool) []string {
		found, ok := matching[cell]
		if !ok {
			for _, name := range names {
				if covers(name) {
					found = append(found, name)
				}
			}
			matching[cell] = found
		}
		return found
	}
	labelled := false
	for _, m := range rules.members {
		labelled = labelled || slices.Contains(labels, m.group)
		if !strings.HasPrefix(m.tool, taskPrefix) && len(match(m.tool, func(t string) bool { return glob(t, m.tool) })) == 0 {
			p.say(m.line, "unknown-tool", p.near(m.tool, names), "no known tool matches %q", m.tool)
		}
	}
	for _, r := range rules.rows {
		isLabel := slices.Contains(labels, r.tool)
		labelled = labelled || isLabel
		if strings.HasPrefix(r.tool, taskPrefix) || r.action == string(Start) || r.action == string(Delegate) {
			continue
		}
		found := match(r.tool, func(t string) bool { return rules.inGroup(t, r.tool) })
		if len(found) == 0 && !isLabel {
			p.say(r.line, "unknown-tool", p.near(r.tool, names), "no known tool matches %q", r.tool)
		}
		if r.when != nil && r.action == string(Call) {
			p.lintArguments(r, found, schemas)
		}
	}
	for _, tool := range names {
		if labelled && rules.unlabelled(tool) {
			p.say(0, "unlabelled", "", "%s has no label, so it counts as %s wherever a row restricts", tool, strings.Join(labels, ", "))
		}
	}
}

// lintArguments holds a row's condition against the schemas of the tools that
// the row matches. Tools without a schema may take anything.
func (p *parser) lintArguments(r *row, tools []string, schemas map[string]*schema) {
	if slices.ContainsFunc(tools, func(t string) bool { return schemas[t] == nil }) || len(tools) == 0 {
		return
	}
	absent := map[string][]string{} // arguments, and the tools that do not name them
	for _, name := range r.when.vars {
		var all []string
		for _, t := range tools {
			if f := schemas[t].at(name); f != nil && !f.named {
				absent[name] = append(absent[name], t)
			}
			all = append(all, schemas[t].names(name)...)
		}
		if len(absent[name]) == len(tools) {
			p.say(r.line, "unknown-argument", p.near(name, all), "%s is no argument of %s", name, some(tools))
			return
		}
	}
	var fails []string
	for _, t := range tools {
		if ok, _ := p.sense.can(r.when, false, schemas[t]); !ok {
			fails = append(fails, t)
		}
	}
	if len(fails) == len(tools) && p.whole(r.when) {
		p.whyNot(r, tools, schemas)
		return
	}
	if r.verdict.grants() && r.verdict.word == "allow" {
		return
	}
	// What cannot be evaluated restricts: where a tool has none of the arguments,
	// that may be every call of it.
	var always []string
	for _, t := range tools {
		lacks := func(name string) bool { return slices.Contains(absent[name], t) }
		if r.when.args && !slices.ContainsFunc(r.when.vars, func(name string) bool { return !lacks(name) }) && r.when.eval(&input{}) == unknown {
			always = append(always, t)
		}
	}
	if len(always) > 0 {
		p.say(r.line, "always-restricts", "", "%s lacks the arguments of the condition, so this row counts for every call of it", some(always))
	}
}

// whole reports whether a condition can hold by itself: otherwise it is found
// wanting without any schema.
func (p *parser) whole(c *condition) bool {
	ok, _ := p.sense.can(c, false, nil)
	return ok
}

// whyNot says why no tool's arguments can make a condition hold: the first term
// that none of them can, or else the condition as a whole.
func (p *parser) whyNot(r *row, tools []string, schemas map[string]*schema) {
	for _, t := range terms(r.when.shape, nil) {
		if slices.ContainsFunc(tools, func(tool string) bool {
			yes, _ := p.sense.fits([]fact{{t, false}}, schemas[tool])
			no, _ := p.sense.fits([]fact{{t, true}}, schemas[tool])
			return yes || no
		}) {
			continue
		}
		if f := schemas[tools[0]].at(t.name); f != nil && f.named {
			p.say(r.line, "wrong-type", "", "%s is %s to %s, so %s cannot be evaluated", t.name, f.described(), some(tools), t.text)
			return
		}
	}
	for _, t := range terms(r.when.shape, nil) {
		f := schemas[tools[0]].at(t.name)
		if ok, _ := p.sense.fits([]fact{{t, false}}, schemas[tools[0]]); ok || f == nil || f.enum == nil {
			continue
		}
		var known []string
		for _, v := range f.enum {
			known = append(known, v.text)
		}
		suggestion := ""
		for _, lit := range t.among {
			suggestion = p.near(lit.text, known)
		}
		p.say(r.line, "never-matches", suggestion, "%s is never what %s wants of it, says the schema of %s", t.name, t.text, some(tools))
		return
	}
	p.say(r.line, "never-matches", "", "the condition cannot hold for any arguments of %s, says its schema", some(tools))
}

// terms lists the terms of a shape, from left to right.
func terms(s *shape, all []*term) []*term {
	if s.op == "" {
		return append(all, s.term)
	}
	for _, sub := range s.of {
		all = terms(sub, all)
	}
	return all
}

// some names a few.
func some(names []string) string {
	if len(names) > maxNamed {
		names = append(slices.Clone(names[:maxNamed]), "others")
	}
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
