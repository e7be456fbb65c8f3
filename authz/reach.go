package authz

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// A Reach is something that some row grants: to whom, where, on which kind of
// task, and which tool. Each of these may have wildcards; then what is said holds
// for whatever they cover, but for what Rows say of a part of it.
type Reach struct {
	Who     string        `json:"who"`            // a principal
	Role    string        `json:"role,omitempty"` // by which it is granted
	Tenant  string        `json:"tenant"`
	Task    string        `json:"task"`
	Tool    string        `json:"tool"`
	Action  Action        `json:"action"`
	Verdict string        `json:"verdict,omitempty"` // allow or approve, where the arguments were given
	Need    []Requirement `json:"need,omitempty"`    // who must agree, where they were
	Rows    []ReachRow    `json:"rows"`              // all that have a say: grants first, then what restricts them
}

// A ReachRow is a row that has a say in a [Reach].
type ReachRow struct {
	Rule
	Verdict string `json:"verdict"`
	When    string `json:"when,omitempty"` // its condition
	Part    string `json:"part,omitempty"` // what part of the Reach it is about, where it is not about all of it
}

// A Wanted says what reaches to look for; what is empty may be anything.
type Wanted struct {
	Principal string // or "role:NAME", for whoever holds it
	Tenant    string
	Task      string
	Tool      string // "server/tool"
	Action    Action
	Args      json.RawMessage // with these arguments, an object; nil: whatever they are
	Time      time.Time       // of such a call
	Tools     []string        // all the tools there are, to be named instead of patterns; nil: not known
}

// maxReach bounds how much is told at once.
const maxReach = 2000

// Reach lists what the policy grants of what is wanted. It solves no condition,
// it says them; what a row without one denies is left out. With arguments, what
// the policy would answer is told of each, and what it denies is left out, too.
// It looks at every row and is not meant for the path of a call.
func (p *Policy) Reach(w Wanted) (found []Reach, more bool) {
	f := &finder{p: p, s: p.rules, w: w, holders: map[string][]link{}, seen: map[question]bool{}, byTool: map[[2]string][]*row{}}
	for _, l := range p.links {
		f.holders[l.role] = append(f.holders[l.role], l)
	}
	for _, r := range p.rules.rows {
		if r.verdict.word != "allow" {
			f.restricts = append(f.restricts, r)
		}
	}
	for _, r := range p.rules.rows {
		if r.verdict.grants() {
			f.grant(r)
		}
	}
	slices.SortStableFunc(f.found, func(a, b Reach) int {
		return cmp.Or(strings.Compare(a.Who, b.Who), strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Task, b.Task), strings.Compare(a.Tool, b.Tool))
	})
	return f.found, f.more
}

// A finder gathers reaches. It asks about patterns by way of a name that they
// cover and that no file holds.
type finder struct {
	p         *Policy
	s         *ruleset
	w         Wanted
	holders   map[string][]link // by the role that they hold
	restricts []*row
	byTool    map[[2]string][]*row // of restricts, by tool and action
	seen      map[question]bool    // by the patterns themselves
	found     []Reach
	more      bool
}

// grant adds what one row grants of what is wanted.
func (f *finder) grant(r *row) {
	w := f.w
	if w.Task != "" && !glob(w.Task, r.task) || w.Tenant != "" && !glob(w.Tenant, r.tenant) || w.Tool != "" && !f.s.inGroup(w.Tool, r.tool) {
		return
	}
	for _, who := range f.whos(r) {
		tenant := cmp.Or(w.Tenant, narrower(r.tenant, who.tenant))
		if !overlap(tenant, who.tenant) {
			continue
		}
		for _, tool := range f.tools(r) {
			for _, action := range f.actions(r) {
				f.add(r, question{who.workload, tenant, cmp.Or(w.Task, r.task), tool, action, false})
			}
		}
	}
}

// whos lists the principals that a row is about, and in which tenants.
func (f *finder) whos(r *row) []link {
	all := []link{{workload: r.who, tenant: "*"}}
	if strings.HasPrefix(r.who, rolePrefix) {
		all = f.holding(r.who, "*", map[string]bool{})
	}
	if f.w.Principal == "" {
		return all
	}
	wanted := []link{{workload: f.w.Principal, tenant: "*"}}
	if strings.HasPrefix(f.w.Principal, rolePrefix) {
		wanted = f.holding(f.w.Principal, "*", map[string]bool{})
	}
	var common []link
	for _, a := range all {
		for _, b := range wanted {
			if overlap(a.workload, b.workload) && overlap(a.tenant, b.tenant) {
				common = append(common, link{workload: narrower(a.workload, b.workload), tenant: narrower(a.tenant, b.tenant)})
			}
		}
	}
	return common
}

// holding lists the workloads that hold a role, by whatever way, and where.
func (f *finder) holding(role, tenant string, path map[string]bool) (all []link) {
	if path[role] {
		return nil
	}
	path[role] = true
	defer delete(path, role)
	for _, l := range f.holders[role] {
		where := narrower(tenant, l.tenant)
		switch {
		case !overlap(tenant, l.tenant):
		case strings.HasPrefix(l.workload, rolePrefix):
			all = append(all, f.holding(l.workload, where, path)...)
		default:
			all = append(all, link{workload: l.workload, tenant: where})
		}
		if len(all) > maxReach {
			f.more = true
			break
		}
	}
	return all
}

// narrower is the pattern that lies within the other, of two that overlap. Where
// neither does it is the first, and what is told of it is told of too much.
func narrower(a, b string) string {
	if covers(a, b) {
		return b
	}
	return a
}

func (f *finder) tools(r *row) []string {
	if f.w.Tool != "" {
		return []string{f.w.Tool}
	}
	cells := []string{r.tool}
	if members, ok := f.s.groups.tools[r.tool]; ok {
		cells = members
	}
	if f.w.Tools == nil {
		return cells
	}
	var all []string
	for _, cell := range cells {
		if strings.HasPrefix(cell, taskPrefix) {
			all = append(all, cell)
		}
	}
	for _, tool := range f.w.Tools {
		if slices.ContainsFunc(cells, func(cell string) bool { return glob(tool, cell) }) {
			all = append(all, tool)
		}
	}
	return all
}

func (f *finder) actions(r *row) []string {
	switch {
	case f.w.Action != "":
		return []string{string(f.w.Action)}
	case r.action != "*":
		return []string{r.action}
	}
	return slices.DeleteFunc(slices.Clone(actions), func(a string) bool {
		if a == string(Start) || a == string(Delegate) {
			return !strings.HasPrefix(r.tool, taskPrefix)
		}
		return a == string(List) || strings.HasPrefix(r.tool, taskPrefix)
	})
}

// add adds one reach of a row, unless nobody can have it or it is there already.
func (f *finder) add(r *row, patterns question) {
	if f.seen[patterns] {
		return
	}
	f.seen[patterns] = true
	one := Reach{Who: patterns.who, Tenant: patterns.tenant, Task: patterns.task, Tool: patterns.tool, Action: Action(patterns.action)}
	if strings.HasPrefix(r.who, rolePrefix) {
		one.Role = r.who
	}
	q := question{anyOf(patterns.who), anyOf(patterns.tenant), anyOf(patterns.task), anyOf(patterns.tool), patterns.action, false}
	speaks := []*row{r}
	for _, i := range f.s.candidates(q, nil) {
		if c := f.s.clauses[i].row; c != r && c.verdict.grants() {
			speaks = append(speaks, c)
		}
	}
	speaks = slices.Concat(speaks, f.restricting(patterns.tool, patterns.action))
	parts := map[*row]string{}
	speaks = slices.DeleteFunc(speaks, func(c *row) bool {
		part, ok := f.part(c, patterns)
		if ok {
			parts[c] = part
		}
		return !ok
	})
	slices.SortStableFunc(speaks, func(a, b *row) int { return cmp.Or(rank(a)-rank(b), a.line-b.line) })
	for _, c := range slices.Compact(speaks) {
		if c.verdict.word == "deny" && c.when == nil && parts[c] == "" {
			return
		}
		one.Rows = append(one.Rows, f.said(c, parts[c]))
	}
	if f.w.Args != nil {
		d := f.p.Decide(Request{Subject: Subject{q.who, q.tenant}, Task: q.task, Tool: q.tool, Action: Action(q.action), Args: f.w.Args, Time: f.w.Time})
		if d.Verdict == Deny {
			return
		}
		one.Verdict, one.Need = d.Verdict.String(), d.Need
	}
	if len(f.found) == maxReach {
		f.more = true
		return
	}
	f.found = append(f.found, one)
}

// restricting lists the rows that restrict something of what a pattern of tools
// covers. Of one pattern they are looked for once.
func (f *finder) restricting(tool, action string) []*row {
	key := [2]string{tool, action}
	found, ok := f.byTool[key]
	if !ok {
		for _, r := range f.restricts {
			if some, _ := f.about(r, tool); some && does(action, r.action) {
				found = append(found, r)
			}
		}
		f.byTool[key] = found
	}
	return found
}

// rank puts grants before what restricts them, and a denial last.
func rank(r *row) int {
	return slices.Index([]string{"allow", "approve", "require", "deny"}, r.verdict.word)
}

func (f *finder) said(r *row, part string) ReachRow {
	said := ReachRow{Rule: r.rule(f.p.file), Verdict: r.verdict.String(), Part: part}
	if r.when != nil {
		said.When = r.when.text
	}
	return said
}

// part says which part of the patterns a row is about, "" being all of it; ok is
// false where that is none.
func (f *finder) part(r *row, patterns question) (part string, ok bool) {
	if !does(patterns.action, r.action) {
		return "", false
	}
	var all []string
	for _, c := range []struct{ name, cell, pattern string }{{"task", r.task, patterns.task}, {"tenant", r.tenant, patterns.tenant}} {
		if !overlap(c.cell, c.pattern) {
			return "", false
		}
		if !covers(c.cell, c.pattern) {
			all = append(all, c.name+" "+c.cell)
		}
	}
	who := []link{{workload: r.who, tenant: "*"}}
	if strings.HasPrefix(r.who, rolePrefix) {
		who = f.holding(r.who, "*", map[string]bool{})
	}
	some, whole := false, false
	for _, l := range who {
		some = some || overlap(l.workload, patterns.who) && overlap(l.tenant, patterns.tenant)
		whole = whole || covers(l.workload, patterns.who) && covers(l.tenant, patterns.tenant)
	}
	if !some {
		return "", false
	}
	if !whole {
		all = append(all, "who "+r.who)
	}
	if some, whole = f.about(r, patterns.tool); !some {
		return "", false
	}
	if !whole {
		all = append(all, "tool "+r.tool)
	}
	return strings.Join(all, ", "), true
}

// about reports whether a row is about some of what a pattern of tools covers,
// and whether about all of it.
func (f *finder) about(r *row, tool string) (some, whole bool) {
	hits := func(cells []string) (some, whole bool) {
		for _, cell := range cells {
			some = some || overlap(cell, tool)
			whole = whole || covers(cell, tool)
		}
		return some, whole
	}
	members, group := f.s.groups.tools[r.tool]
	isLabel := slices.Contains(labels, r.tool)
	if !group && !isLabel {
		return hits([]string{r.tool})
	}
	some, whole = hits(members)
	if !isLabel || r.verdict.word == "allow" || strings.HasPrefix(tool, taskPrefix) {
		return some, whole
	}
	// It is about tools that nobody labelled, too.
	var labelled []string
	for _, label := range labels {
		labelled = append(labelled, f.s.groups.tools[label]...)
	}
	if any, every := hits(labelled); !any {
		return true, true
	} else if !every {
		return true, whole
	}
	return some, whole
}

// anyOf is a name that a pattern covers and that stands in no file by itself.
func anyOf(pattern string) string {
	return strings.ReplaceAll(strings.ReplaceAll(pattern, "**", "*"), "*", "~any~")
}

// overlap reports whether some name is covered by both patterns.
func overlap(a, b string) bool {
	if a == "*" || b == "*" {
		return true
	}
	type at struct{ i, j int }
	failed := map[at]bool{}
	var from func(i, j int) bool
	from = func(i, j int) (ok bool) {
		if failed[at{i, j}] {
			return false
		}
		defer func() { failed[at{i, j}] = !ok }()
		wa, na := wildcard(a[i:])
		wb, nb := wildcard(b[j:])
		switch {
		case i == len(a) && j == len(b):
			return true
		case na > 0 && from(i+na, j), nb > 0 && from(i, j+nb):
			return true
		case na > 0 && nb == 0 && j < len(b) && (wa || b[j] != '/'):
			return from(i, j+1)
		case nb > 0 && na == 0 && i < len(a) && (wb || a[i] != '/'):
			return from(i+1, j)
		case na > 0 || nb > 0 || i == len(a) || j == len(b):
			return false
		}
		return a[i] == b[j] && from(i+1, j+1)
	}
	return from(0, 0)
}

// wildcard reads one at the start of a pattern: whether it crosses segments, and
// its length; 0 is none.
func wildcard(pattern string) (crosses bool, length int) {
	switch {
	case strings.HasPrefix(pattern, "**"):
		return true, 2
	case strings.HasPrefix(pattern, "*"):
		return false, 1
	}
	return false, 0
}
