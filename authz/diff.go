package authz

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Change is what a new policy answers otherwise than the old one did: to whom,
// where, on which kinds of task and about which tools. What it says holds for all
// whom it names, if not for all arguments.
type Change struct {
	Wider   bool          `json:"wider"`             // it allows, or asks fewer humans; else it denies, or asks more
	Perhaps string        `json:"perhaps,omitempty"` // why it may be no change after all
	Who     Names         `json:"who"`               // principals
	Role    string        `json:"role,omitempty"`    // by which rows are about them
	Tenant  Names         `json:"tenant"`
	Task    Names         `json:"task"`
	Tool    Names         `json:"tool"`
	Tools   []string      `json:"tools,omitempty"` // which of those there are
	Actions []Action      `json:"actions"`
	Before  []ReachRow    `json:"before"` // all rows of the old policy that have a say, whatever they come to
	After   []ReachRow    `json:"after"`  // of the new one
	Example *DiffExample  `json:"example,omitempty"`
	says    [2][]sayingOf // of the rows, for comparing changes
}

type sayingOf struct {
	line int
	eft  string
}

// A DiffExample is one request that the two answer differently.
type DiffExample struct {
	Principal string          `json:"principal"`
	Tenant    string          `json:"tenant"`
	Task      string          `json:"task"`
	Tool      string          `json:"tool"`
	Action    Action          `json:"action"`
	Args      json.RawMessage `json:"args,omitempty"` // nil: whatever they are
	Time      *time.Time      `json:"time,omitempty"` // nil: at any time
	Before    Verdict         `json:"before"`
	NeedThen  []string        `json:"need_before,omitempty"`
	After     Verdict         `json:"after"`
	NeedNow   []string        `json:"need_after,omitempty"`
}

// A Difference is all changes, wider ones first, or so many of each sort as anybody
// reads, and how many there are.
type Difference struct {
	Changes  []Change `json:"changes"`
	Wider    int      `json:"wider"`
	Narrower int      `json:"narrower"`
}

// is reports whether the example is one of a wider answer, or of a narrower one.
func (x *DiffExample) is(wider bool) bool {
	if wider {
		return x.After > x.Before
	}
	return x.After < x.Before
}

// Covers reports whether a request is one that the change is about, arguments and
// time aside. Whoever may newly call a tool may newly list it, too.
func (c Change) Covers(r Request) bool {
	about := slices.Contains(c.Actions, r.Action) || r.Action == List && slices.Contains(c.Actions, Call)
	return about && c.Who.Have(r.Subject.Principal) && c.Tenant.Have(r.Subject.Tenant) && c.Task.Have(r.Task) &&
		c.Tool.Have(r.Tool) && (c.Tools == nil || slices.Contains(c.Tools, r.Tool))
}

// The bounds of a comparison. What is beyond is told as a perhaps, unsplit.
const (
	maxChanges  = 1000      // of each sort
	maxAlike    = 100       // changes that a new one is held against, lest it was told before
	maxSteps    = 500       // parts that what one row is about is split into
	maxTogether = 64        // rows that have a say beside it; where there are more, each grant is looked at by itself
	maxBeside   = 4000      // rows that have a say beside it; where there are more, it is not looked into
	maxBut      = 64        // names that a part is without
	maxDiff     = 4_000_000 // rows held against parts, in all
	maxHolders  = 5000      // of one role
)

// Diff compares two policies: p, and the one that is to replace it. tools are all
// the tools there are; nil: not known, then what the files name is looked at.
//
// It looks where a row is in only one of them, or is about somebody or something
// else because of a g or g2 row, splits that by every other row that is about a
// part of it until all rows are about all of a part or none, and asks both. So no
// widening is ever missed, and what is told without a perhaps is so: of
// conditions it finds arguments for which it is, or says perhaps.
func (p *Policy) Diff(next *Policy, tools []string) Difference {
	d := &differ{sides: [2]*side{newSide(p), newSide(next)}, found: []Change{}, tools: tools, effort: maxDiff, sense: &sense{maxEffort}, seeds: map[string]bool{}, by: map[string][]int{}}
	d.unlike()
	d.rows()
	d.links()
	d.members()
	if d.effort < 0 {
		every := Names{In: []string{"*"}}
		d.role = ""
		d.unsure(region{every, every, every, every, allActions}, nil, [2]bool{}, tooMuch)
	}
	slices.SortStableFunc(d.found, func(a, b Change) int {
		first := func(c Change) int {
			n := 0
			if !c.Wider {
				n += 2
			}
			if c.Perhaps != "" {
				n++
			}
			return n
		}
		line := func(c Change) int {
			n := 1 << 30
			for _, r := range c.After {
				n = min(n, r.Line)
			}
			return n
		}
		return cmp.Or(first(a)-first(b), strings.Compare(a.Who.String(), b.Who.String()), strings.Compare(a.Tenant.String(), b.Tenant.String()),
			strings.Compare(a.Task.String(), b.Task.String()), strings.Compare(a.Tool.String(), b.Tool.String()), line(a)-line(b))
	})
	return Difference{d.found, d.told[0], d.told[1]}
}

// A differ gathers the changes.
type differ struct {
	sides  [2]*side // the old one and the new one
	tools  []string
	effort int
	steps  int // of one region
	sense  *sense
	seeds  map[string]bool // regions that were looked into
	found  []Change
	told   [2]int           // wider and narrower ones, those left out too
	by     map[string][]int // places in found, by what they have in common

	role        string          // of the region that is looked into
	wider       bool            // whether what it is looked into for makes the answer wider
	roles       map[string]bool // that not the same principals hold in both
	groups      map[string]bool // that not the same tools are in
	relabelled  bool
	lastWho     string // whose rows are kept in lastRows
	lastHolders [2]map[string][]holder
}

// A holder is whoever a pattern covers, in the tenants that all of tenants cover.
type holder struct {
	workload string
	tenants  []string
}

// A side is one of the policies, with what is asked about it more than once.
type side struct {
	*Policy
	byWho    map[string]*prefixes[*row] // by tenant
	keys     map[string]bool            // of rows, links and members
	nested   map[string][]link
	holding  map[string][]link // by the role that is held
	expanded map[string]expansion
	whos     prefixes[whoCell]
	labelled []string // patterns of tools that have a label, and those that need none
}

type expansion struct {
	holders []holder
	vague   bool // there are too many
}

// A whoCell is a who column, and one way to be whom it is about.
type whoCell struct {
	cell  string
	vague bool
	holder
}

func newSide(p *Policy) *side {
	s := &side{Policy: p, byWho: map[string]*prefixes[*row]{}, keys: map[string]bool{}, nested: map[string][]link{}, holding: map[string][]link{}, expanded: map[string]expansion{}}
	for _, r := range p.rules.rows {
		if s.byWho[r.who] == nil {
			s.byWho[r.who] = &prefixes[*row]{}
		}
		s.byWho[r.who].add(r.tenant, r)
		s.keys[keyOf(r)] = true
	}
	for _, l := range p.links {
		s.holding[l.role] = append(s.holding[l.role], l)
		s.nested[l.workload] = append(s.nested[l.workload], l)
		s.keys[keyOf(l)] = true
	}
	s.labelled = []string{taskPrefix + "**"}
	for _, m := range p.rules.members {
		s.keys[keyOf(m)] = true
		if slices.Contains(labels, m.group) {
			s.labelled = append(s.labelled, m.tool)
		}
	}
	for cell, rows := range s.byWho {
		slices.Sort(rows.sorted)
		x := s.whoOf(cell)
		for _, h := range x.holders {
			s.whos.add(h.workload, whoCell{cell, x.vague, h})
		}
	}
	slices.Sort(s.whos.sorted)
	return s
}

// keyOf is the same for lines of two files that say the same.
func keyOf(line any) string {
	switch l := line.(type) {
	case *row:
		when := ""
		if l.when != nil {
			when = l.when.text
		}
		return strings.Join([]string{"p", l.who, l.tenant, l.task, l.tool, l.action, when, l.verdict.String()}, "\x00")
	case link:
		return strings.Join([]string{"g", l.workload, l.role, l.tenant}, "\x00")
	}
	m := line.(member)
	return strings.Join([]string{"g2", m.tool, m.group}, "\x00")
}

// whoOf lists whom a who column is about.
func (s *side) whoOf(cell string) expansion {
	if !strings.HasPrefix(cell, rolePrefix) {
		return expansion{holders: []holder{{workload: cell}}}
	}
	x, ok := s.expanded[cell]
	if ok {
		return x
	}
	seen := map[string]bool{}
	todo := []holder{{workload: cell}}
	for len(todo) > 0 {
		h := todo[0]
		todo = todo[1:]
		if !strings.HasPrefix(h.workload, rolePrefix) {
			x.holders = append(x.holders, h)
			continue
		}
		for _, l := range s.holding[h.workload] {
			to := holder{l.workload, narrowed(h.tenants, l.tenant)}
			if key := l.workload + "\x00" + strings.Join(to.tenants, "\x00"); !seen[key] {
				seen[key] = true
				todo = append(todo, to)
			}
		}
		if len(seen) > maxHolders {
			x = expansion{[]holder{{workload: "*"}}, true}
			break
		}
	}
	s.expanded[cell] = x
	return x
}

// narrowed adds a pattern to those that must all cover, unless one of them lies within it.
func narrowed(all []string, pattern string) []string {
	for _, p := range all {
		if covers(pattern, p) {
			return all
		}
	}
	all = slices.DeleteFunc(slices.Clone(all), func(p string) bool { return covers(p, pattern) })
	all = append(all, pattern)
	slices.Sort(all)
	return all
}

// toolsOf lists the patterns of tools that a clause is about, or, for the tools
// that nobody labelled, those that it is not about.
func (s *side) toolsOf(tool string) (patterns []string, not bool) {
	if tool == noLabel {
		return s.labelled, true
	}
	if members, ok := s.rules.groups.tools[tool]; ok {
		return members, false
	}
	if slices.Contains(labels, tool) {
		return nil, false
	}
	return []string{tool}, false
}

// unlike finds which roles and groups are not the same in both.
func (d *differ) unlike() {
	d.roles, d.groups = map[string]bool{}, map[string]bool{}
	for i, s := range d.sides {
		for _, l := range s.links {
			if !d.sides[1-i].keys[keyOf(l)] {
				for role := range s.above(l.role) {
					d.roles[role] = true
				}
			}
		}
		for _, m := range s.rules.members {
			if !d.sides[1-i].keys[keyOf(m)] {
				d.groups[m.group] = true
				d.relabelled = d.relabelled || slices.Contains(labels, m.group)
			}
		}
	}
}

// above lists a role, and those that whoever holds it holds too.
func (s *side) above(role string) map[string]bool {
	all := map[string]bool{role: true}
	for todo := []string{role}; len(todo) > 0; todo = todo[1:] {
		for _, l := range s.nested[todo[0]] {
			if !all[l.role] {
				all[l.role] = true
				todo = append(todo, l.role)
			}
		}
	}
	return all
}

// rows looks into what the rows are about that only one side has.
func (d *differ) rows() {
	for i, s := range d.sides {
		for _, r := range s.rules.rows {
			if !d.sides[1-i].keys[keyOf(r)] {
				for _, c := range clauses(r) {
					d.clause(s, c, s.whoOf(r.who), nil)
				}
			}
		}
	}
}

// links looks into what the roles are about that g rows give to others.
func (d *differ) links() {
	for i, s := range d.sides {
		for _, l := range s.links {
			if d.sides[1-i].keys[keyOf(l)] {
				continue
			}
			x := s.whoOf(l.workload)
			holders := make([]holder, len(x.holders))
			for n, h := range x.holders {
				holders[n] = holder{h.workload, narrowed(h.tenants, l.tenant)}
			}
			for role := range s.above(l.role) {
				if s.byWho[role] == nil {
					continue
				}
				s.byWho[role].near(l.tenant, func(r *row) {
					if d.effort--; d.effort < 0 {
						return
					}
					for _, c := range clauses(r) {
						d.clause(s, c, expansion{holders, x.vague}, nil)
					}
				})
			}
		}
	}
}

// members looks into the tools that g2 rows put into other groups. A tool that
// gets its first label, or loses its last, is one that every row about a label
// is, or is no longer, about.
func (d *differ) members() {
	for i, s := range d.sides {
		for _, m := range s.rules.members {
			if d.sides[1-i].keys[keyOf(m)] {
				continue
			}
			label := slices.Contains(labels, m.group)
			for _, of := range d.sides {
				for _, r := range of.rules.rows {
					if d.effort--; d.effort < 0 {
						break
					}
					if r.tool == m.group || label && slices.Contains(labels, r.tool) {
						for _, c := range clauses(r) {
							d.clause(of, c, of.whoOf(r.who), []string{m.tool})
						}
					}
				}
			}
		}
	}
}

// clause looks into what a clause says of holders and of tools, or of its own.
func (d *differ) clause(s *side, c clause, who expansion, tools []string) {
	if d.effort < 0 {
		return
	}
	d.role = ""
	if strings.HasPrefix(c.who, rolePrefix) {
		d.role = c.who
	}
	d.wider = (c.eft == "allow") == (s == d.sides[1])
	actions := allActions
	if c.action != "*" {
		actions = slices.DeleteFunc(slices.Clone(allActions), func(a string) bool { return !does(a, c.action) })
	}
	var about []Names
	patterns, not := s.toolsOf(c.tool)
	switch {
	case tools != nil:
		patterns, not = tools, false
	case not:
		about = append(about, Names{[]string{"**"}, patterns})
	}
	if !not {
		for _, p := range patterns {
			about = append(about, Names{In: []string{p}})
		}
	}
	for _, h := range who.holders {
		tenant := Names{In: []string{"*"}}
		for _, t := range append(slices.Clip(h.tenants), c.tenant) {
			tenant = tenant.with(t)
		}
		if name, sure := tenant.one(); name == "" && sure {
			continue
		}
		for _, tool := range about {
			r := region{Names{In: []string{h.workload}}, tenant, Names{In: []string{c.task}}, tool, actions}
			key := fmt.Sprint(d.wider, r)
			if d.seeds[key] || !d.any(tool) {
				continue
			}
			d.seeds[key] = true
			all := d.speaking(r)
			switch d.steps = maxSteps; {
			case who.vague:
				d.unsure(r, all, [2]bool{}, tooMany)
			case len(all) > maxBeside:
				d.unsure(r, all, [2]bool{}, tooMuch)
			case len(all) > maxTogether:
				d.byGrants(r, all)
			default:
				d.explore(r, all)
			}
		}
	}
}

const (
	tooMuch = "the files differ in too much to look at all of it"
	tooMany = "a role is held by too many to look at all of them"
)

// byGrants looks into the parts of a region that something grants, one by one:
// nowhere else can anything change.
func (d *differ) byGrants(r region, all []*speaker) {
	for _, g := range all {
		if g.eft != "allow" {
			continue
		}
		if d.effort -= len(all); d.effort < 0 {
			return
		}
		for _, h := range g.whos {
			part := r
			part.who, part.task, part.tenant = r.who.with(h.workload), r.task.with(g.task), r.tenant.with(g.tenant)
			for _, t := range h.tenants {
				part.tenant = part.tenant.with(t)
			}
			part.actions = slices.DeleteFunc(slices.Clone(r.actions), func(a string) bool { return !does(a, g.action) })
			for _, tool := range g.tools {
				part.tool = r.tool.with(tool)
				if !part.some() || !d.any(part.tool) {
					continue
				}
				var here []*speaker
				for _, s := range all {
					if some, _ := s.in(part); some {
						here = append(here, s)
					}
				}
				d.steps = maxSteps
				d.explore(part, here)
			}
		}
	}
}

// some reports whether anything may be in a region.
func (r region) some() bool {
	for _, names := range []Names{r.who, r.tenant, r.task, r.tool} {
		if name, sure := names.one(); name == "" && sure {
			return false
		}
	}
	return len(r.actions) > 0
}

var allActions = slices.Clone(actions)

// any reports whether there is such a tool.
func (d *differ) any(tool Names) bool { return d.tools == nil || len(d.known(tool)) > 0 }

// known lists the tools there are, and kinds of tasks that are named, of those that
// Names are.
func (d *differ) known(tool Names) []string {
	all := slices.DeleteFunc(slices.Clone(d.tools), func(t string) bool { return !tool.Have(t) })
	for _, in := range tool.In {
		if strings.HasPrefix(in, taskPrefix) {
			if name, _ := tool.one(); name != "" {
				all = append(all, name)
			}
		}
	}
	return all
}

// A region is a part of all that can be asked.
type region struct {
	who, tenant, task, tool Names
	actions                 []string
}

func (r region) String() string {
	return fmt.Sprintf("%q %q %q %q %q", r.who, r.tenant, r.task, r.tool, r.actions)
}

// A speaker is a clause that has a say in some of a region.
type speaker struct {
	clause
	side   int
	whos   []holder
	vague  bool // whom it is about is not known
	tools  []string
	not    bool // it is about the tools that are not in tools
	steady bool // it is in both policies, about the same
}

// speaking lists the clauses of both sides that have a say in some of a region.
func (d *differ) speaking(r region) (all []*speaker) {
	first := r.who.In[0]
	if first != d.lastWho || d.lastHolders[0] == nil {
		d.lastWho = first
		for i, s := range d.sides {
			found := map[string][]holder{}
			s.whos.near(first, func(w whoCell) {
				if overlap(w.workload, first) {
					found[w.cell] = append(found[w.cell], w.holder)
				}
			})
			d.lastHolders[i] = found
		}
	}
	for i, s := range d.sides {
		tools, whos := map[string][]string{}, map[[2]string][]holder{}
		for cell := range d.lastHolders[i] {
			s.byWho[cell].near(r.tenant.In[0], func(row *row) {
				if d.effort--; d.effort < 0 || len(all) > maxBeside {
					return
				}
				if some, _ := r.tenant.about(row.tenant); !some {
					return
				}
				holders, ok := whos[[2]string{cell, row.tenant}]
				if !ok {
					for _, h := range d.lastHolders[i][cell] {
						if !slices.ContainsFunc(h.tenants, func(t string) bool { return apart(t, row.tenant) }) {
							holders = append(holders, h)
						}
					}
					whos[[2]string{cell, row.tenant}] = holders
				}
				for _, c := range clauses(row) {
					near, ok := tools[c.tool]
					patterns, not := s.toolsOf(c.tool)
					if !ok {
						for _, p := range patterns {
							if some, _ := r.tool.about(p); some {
								near = append(near, p)
							}
						}
						tools[c.tool] = near
					}
					sp := &speaker{clause: c, side: i, whos: holders, vague: s.expanded[cell].vague, tools: near, not: not}
					sp.steady = d.sides[1-i].keys[keyOf(row)] && !d.roles[row.who] && !d.groups[c.tool] && !(not && d.relabelled)
					if some, _ := sp.in(r); some {
						all = append(all, sp)
					}
				}
			})
		}
	}
	slices.SortStableFunc(all, func(a, b *speaker) int { return cmp.Or(a.side-b.side, a.line-b.line) })
	return all
}

// A column of a region, or that there is none to split by.
type column uint8

const (
	byNone column = iota
	byWho
	byTenant
	byTask
	byTool
	byAction
)

func (r *region) names(c column) *Names {
	return []*Names{nil, &r.who, &r.tenant, &r.task, &r.tool}[c]
}

// A cut splits a region in two.
type cut struct {
	column  column
	pattern string
	actions []string
}

// in reports whether a clause has a say in some of a region. It has it in all of
// it where there is no cut; otherwise the cut brings the answer nearer.
func (s *speaker) in(r region) (some bool, at *cut) {
	var first *cut
	by := func(column column, pattern string) {
		if first == nil {
			first = &cut{column: column, pattern: pattern}
		}
	}
	if s.action != "*" && (len(r.actions) != 1 || !does(r.actions[0], s.action)) {
		with := slices.DeleteFunc(slices.Clone(r.actions), func(a string) bool { return !does(a, s.action) })
		if len(with) == 0 {
			return false, nil
		}
		if len(with) < len(r.actions) {
			first = &cut{column: byAction, actions: with}
		}
	}
	some, whole := r.task.about(s.task)
	if !some {
		return false, nil
	}
	if !whole {
		by(byTask, s.task)
	}
	if some, whole = r.tenant.about(s.tenant); !some {
		return false, nil
	}
	if !whole {
		by(byTenant, s.tenant)
	}
	part := ""
	covered := false
	for _, p := range s.tools {
		some, whole := r.tool.about(p)
		if covered = covered || whole; some && !whole && part == "" {
			part = p
		}
	}
	switch {
	case s.not && covered, !s.not && !covered && part == "":
		return false, nil
	case !covered && part != "":
		by(byTool, part)
	}
	if s.vague {
		by(byNone, "")
		return true, first
	}
	var whoCut *cut
	for _, h := range s.whos {
		some, whole := r.who.about(h.workload)
		var way *cut
		if some && !whole {
			way = &cut{column: byWho, pattern: h.workload}
		}
		for _, t := range h.tenants {
			in, all := r.tenant.about(t)
			if some = some && in; some && !all && way == nil {
				way = &cut{column: byTenant, pattern: t}
			}
		}
		if some && way == nil {
			return true, first
		}
		if some && whoCut == nil {
			whoCut = way
		}
	}
	if whoCut == nil {
		return false, nil
	}
	return true, cmp.Or(first, whoCut)
}

// explore tells the changes in a region, in which nobody else than all has a say.
func (d *differ) explore(r region, all []*speaker) {
	d.steps--
	but := len(r.who.But) + len(r.tenant.But) + len(r.task.But) + len(r.tool.But)
	d.effort -= len(all) * (1 + but/4)
	var here []*speaker
	var at, vague *cut
	urgent, steady := false, true
	var denied, grants [2]bool
	for _, s := range all {
		some, c := s.in(r)
		if !some {
			continue
		}
		here = append(here, s)
		steady = steady && s.steady
		denies := s.eft == "deny" && s.when == nil
		denied[s.side] = denied[s.side] || denies && c == nil
		grants[s.side] = grants[s.side] || s.eft == "allow"
		switch {
		case c == nil:
		case c.column == byNone:
			vague = c
		case at == nil || denies && !urgent:
			at, urgent = c, denies
		}
	}
	nothing := func(side int) bool { return denied[side] || !grants[side] }
	switch {
	case steady, nothing(0) && nothing(1):
	case d.effort < 0: // told of once, at the end
	case d.steps < 0 || but > maxBut:
		d.unsure(r, here, denied, tooMuch)
	case at == nil && vague != nil:
		d.unsure(r, here, denied, tooMany)
	case at == nil:
		d.leaf(r, here)
	case at.column == byAction:
		with, without := r, r
		with.actions = at.actions
		without.actions = slices.DeleteFunc(slices.Clone(r.actions), func(a string) bool { return slices.Contains(at.actions, a) })
		d.explore(with, here)
		d.explore(without, here)
	default:
		for _, half := range []func(Names) Names{func(n Names) Names { return n.with(at.pattern) }, func(n Names) Names { return n.without(at.pattern) }} {
			part := r
			names := part.names(at.column)
			*names = half(*names)
			if name, sure := names.one(); name == "" && sure || !d.any(part.tool) {
				continue
			}
			d.explore(part, here)
		}
	}
}

// unsure tells of a region that is not looked into any further: of the direction
// that the clause it belongs to turns the answer. Whatever turns it the other way
// is a clause of its own, and told with that.
func (d *differ) unsure(r region, here []*speaker, denied [2]bool, why string) {
	wider, narrower := d.wider, !d.wider
	if here == nil {
		wider, narrower = true, true
	}
	for _, is := range []bool{true, false} {
		if is && wider && !denied[1] || !is && narrower && !denied[0] {
			x := d.example(r, input{raw: json.RawMessage("{}"), at: time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)}, nil, nil).example
			if x == nil || !x.is(is) {
				x = nil
			} else {
				x.Args = json.RawMessage("{}")
			}
			d.tell(r, is, here, x, why)
		}
	}
}

// toward reports what rows that only one side has could make of the answer.
func toward(here []*speaker) (wider, narrower bool) {
	for _, s := range here {
		if !s.steady {
			looser := (s.eft == "allow") == (s.side == 1)
			wider, narrower = wider || looser, narrower || !looser
		}
	}
	return wider, narrower
}

// leaf asks both policies about a region in which every clause has a say
// everywhere.
func (d *differ) leaf(r region, here []*speaker) {
	told := [2]bool{}
	for _, listing := range []bool{false, true} {
		part := r
		part.actions = slices.DeleteFunc(slices.Clone(r.actions), func(a string) bool { return (a == string(List)) != listing })
		if len(part.actions) == 0 {
			continue
		}
		for i, c := range d.compare(part, here, listing) {
			calls := slices.Contains(part.actions, string(Call))
			if c == nil || listing && told[i] {
				continue
			}
			told[i] = told[i] || calls // listing follows
			d.tell(part, i == 0, here, c.example, c.perhaps)
		}
	}
}

// tell adds a change, unless it is a part of one that was told.
func (d *differ) tell(r region, wider bool, here []*speaker, x *DiffExample, perhaps string) {
	c := Change{Wider: wider, Perhaps: perhaps, Who: r.who, Role: d.role, Tenant: r.tenant, Task: r.task, Tool: r.tool, Example: x, Before: []ReachRow{}, After: []ReachRow{}}
	for _, a := range r.actions {
		c.Actions = append(c.Actions, Action(a))
	}
	if d.tools != nil {
		c.Tools = d.known(r.tool)
	}
	for _, s := range here {
		if perhaps != "" && s.steady && len(here) > maxTold {
			continue
		}
		c.says[s.side] = append(c.says[s.side], sayingOf{s.line, s.eft})
		said := ReachRow{Rule: s.rule(d.sides[s.side].file), Verdict: s.verdict.String()}
		if s.when != nil {
			said.When = s.when.text
		}
		to := &c.Before
		if s.side == 1 {
			to = &c.After
		}
		if !slices.Contains(*to, said) && len(*to) < maxTold {
			*to = append(*to, said)
		}
	}
	key := fmt.Sprint(wider, perhaps, c.says)
	for _, i := range d.by[key][:min(len(d.by[key]), maxAlike)] {
		e := d.found[i]
		if c.Who.within(e.Who) && c.Tenant.within(e.Tenant) && c.Task.within(e.Task) && c.Tool.within(e.Tool) &&
			!slices.ContainsFunc(c.Actions, func(a Action) bool { return !slices.Contains(e.Actions, a) }) {
			return
		}
	}
	sort := 1
	if wider {
		sort = 0
	}
	if d.told[sort]++; d.told[sort] > maxChanges {
		return
	}
	d.by[key] = append(d.by[key], len(d.found))
	d.found = append(d.found, c)
}

// maxTold is how many rows a change cites of each policy.
const maxTold = 100
