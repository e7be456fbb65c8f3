package authz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/casbin/casbin/v2"
	"github.com/casbin/casbin/v2/effector"
	"github.com/casbin/casbin/v2/model"
)

// Model is the Casbin model that this engine is built for; the repository's
// model.conf holds it byte for byte. A [Store] accepts no other.
const Model = `# The Casbin model that toolbroker decides with. It is not a setting: the engine
# is built for these lines, ` + "`serve`" + ` refuses any other, and every record of a
# loaded policy names their hash. docs/policy.md explains the columns.
#
# The policy file's last column, the verdict, is called eft here because Casbin
# takes a row's effect from that name only. ` + "`approve`" + ` is loaded as the two rows
# that it means, an ` + "`allow` and a `require`" + `; so Casbin knows three effects.

[request_definition]
r = who, tenant, task, tool, action, call

[policy_definition]
p = who, tenant, task, tool, action, when, eft

# g:  workload, role, tenant      g2: tool, group
[role_definition]
g  = _, _, _
g2 = _, _

# Any deny denies; else nothing granted denies; else every require must be met.
[policy_effect]
e = deny > require > allow

[matchers]
m = g(r.who, p.who, r.tenant) && glob(r.tenant, p.tenant) && glob(r.task, p.task) && g2(r.tool, p.tool) && does(r.action, p.action) && when(p.when, p.eft, r.call)
`

var parsedModel = sync.OnceValues(func() (model.Model, error) { return model.NewModelFromString(Model) })

// A clause is a row as Casbin sees it.
//
// An approve row is two clauses, an allow and a require: when its condition
// cannot be evaluated it must not grant, and it must still ask. A row that
// restricts a label is two as well: one for the tools that have the label, one
// for those that have none.
type clause struct {
	*row
	tool, eft string
}

func clauses(r *row) []clause {
	var all []clause
	if r.verdict.grants() {
		all = append(all, clause{r, r.tool, "allow"})
	}
	restricts := r.verdict.word
	if restricts == "approve" {
		restricts = "require"
	}
	if restricts != "allow" {
		all = append(all, clause{r, r.tool, restricts})
		if slices.Contains(labels, r.tool) {
			all = append(all, clause{r, noLabel, restricts})
		}
	}
	return all
}

func (c clause) condition() string {
	if c.when == nil {
		return ""
	}
	return c.when.text
}

// A call is what Casbin passes through to `when`, and where `when` notes what
// each condition came to. It serves one goroutine.
type call struct {
	input
	list bool // asks whether a row could match, for some arguments at some time
	came map[*condition]truth
}

func (c *call) eval(cond *condition) truth {
	if t, ok := c.came[cond]; ok {
		return t
	}
	t := cond.eval(&c.input)
	if c.came == nil {
		c.came = map[*condition]truth{}
	}
	c.came[cond] = t
	return t
}

// matches is `when` of the matcher. What cannot be evaluated does not match a
// clause that grants and does match one that restricts. When listing, a
// condition could hold and could fail, so it keeps a grant and lifts a denial.
func (c *call) matches(cond *condition, eft string) bool {
	if cond == nil {
		return true
	}
	grant := eft == "allow"
	if c.list {
		return grant
	}
	switch c.eval(cond) {
	case yes:
		return true
	case unknown:
		return !grant
	}
	return false
}

// does is the action column. A tool may be listed by whoever could call it.
func does(asked, cell string) bool {
	return cell == "*" || cell == asked || asked == string(List) && cell == string(Call)
}

// An engine holds Casbin enforcers for one list of clauses. An enforcer's
// effector keeps what matched, so an enforcer serves one question at a time.
type engine struct {
	clauses []clause
	pool    sync.Pool
}

// key tells lists of clauses apart by their places in the ruleset.
func key(places []int) string {
	var b []byte
	for _, i := range places {
		b = binary.AppendUvarint(b, uint64(i))
	}
	return string(b)
}

type enforcer struct {
	casbin  *casbin.Enforcer
	effects *effects
}

func (s *ruleset) newEnforcer(clauses []clause) (*enforcer, error) {
	parsed, err := parsedModel()
	if err != nil {
		return nil, err
	}
	m := parsed.Copy()
	// The rows are set, not added: adding them is where Casbin would drop the
	// second of two rows whose cells join to the same text.
	for _, c := range clauses {
		m["p"]["p"].Policy = append(m["p"]["p"].Policy, []string{c.who, c.tenant, c.task, c.tool, c.action, c.condition(), c.eft})
	}
	e, err := casbin.NewEnforcer(m)
	if err != nil {
		return nil, err
	}
	// Only now: NewEnforcer clears them.
	m["g"]["g"].RM = s.holders
	m["g"]["g2"].RM = s.groups
	keep := &effects{}
	e.SetEffector(keep)
	e.AddFunction("glob", func(a ...any) (any, error) { return glob(a[0].(string), a[1].(string)), nil })
	e.AddFunction("does", func(a ...any) (any, error) { return does(a[0].(string), a[1].(string)), nil })
	e.AddFunction("when", func(a ...any) (any, error) {
		text := a[0].(string)
		cond, ok := s.conditions[text]
		if !ok && text != "" {
			return nil, errors.New("a condition that was never compiled")
		}
		return a[2].(*call).matches(cond, a[1].(string)), nil
	})
	return &enforcer{e, keep}, nil
}

// ask lets Casbin decide. It returns the verdict and the places in e.clauses of
// every clause that matched.
func (s *ruleset) ask(e *engine, q question, c *call) (Verdict, []int, error) {
	f, ok := e.pool.Get().(*enforcer)
	if !ok {
		var err error
		if f, err = s.newEnforcer(e.clauses); err != nil {
			return Deny, nil, err
		}
	}
	f.effects.matches = nil
	allowed, decider, err := f.casbin.EnforceEx(q.who, q.tenant, q.task, q.tool, q.action, c)
	matches := f.effects.matches
	if err != nil {
		// Not put back: nothing is known about the state it is in. The error
		// may quote the request, so it goes no further.
		return Deny, nil, errors.New("the policy engine failed")
	}
	e.pool.Put(f)
	if len(matches) != len(e.clauses) {
		return Deny, nil, fmt.Errorf("the policy engine looked at %d of %d rows", len(matches), len(e.clauses))
	}
	var matched []int
	for i, m := range matches {
		if m != 0 {
			matched = append(matched, i)
		}
	}
	switch {
	case allowed:
		return Allow, matched, nil
	case len(decider) > 0 && decider[len(decider)-1] == "require":
		return Approve, matched, nil
	}
	return Deny, matched, nil
}

const policyEffect = "deny > require > allow"

// effects is `deny > require > allow`. Casbin shows it every row in turn and
// takes Indeterminate for "go on"; it answers at the last row, so that all rows
// are known, and keeps which matched.
type effects struct{ matches []float64 }

func (e *effects) MergeEffects(expr string, rows []effector.Effect, matches []float64, at, of int) (effector.Effect, int, error) {
	if expr != policyEffect {
		return effector.Deny, -1, fmt.Errorf("the model's effect is %q, not %q", expr, policyEffect)
	}
	if at < of-1 {
		return effector.Indeterminate, -1, nil
	}
	e.matches = matches
	first := map[effector.Effect]int{effector.Deny: -1, effector.Indeterminate: -1, effector.Allow: -1}
	for i, m := range matches {
		if m != 0 && first[rows[i]] < 0 {
			first[rows[i]] = i
		}
	}
	deny, require, allow := first[effector.Deny], first[effector.Indeterminate], first[effector.Allow]
	switch {
	case deny >= 0:
		return effector.Deny, deny, nil
	case allow < 0:
		return effector.Deny, -1, nil
	case require >= 0:
		return effector.Indeterminate, require, nil
	}
	return effector.Allow, allow, nil
}

// A ruleset is rows ready to be asked about. It never changes; what it
// remembers are answers that no argument and no clock can alter.
type ruleset struct {
	rows       []*row
	members    []member
	clauses    []clause
	conditions map[string]*condition
	*holders
	*groups

	// Places in clauses, by who they are about.
	byRole, byName map[string][]int
	byGlob         []int

	plans   bounded[question, *plan]
	engines bounded[string, *engine]
}

func newRuleset(rows []*row, links []link, members []member) *ruleset {
	s := &ruleset{
		rows: rows, members: members, conditions: map[string]*condition{},
		holders: newHolders(links), groups: newGroups(members),
		byRole: map[string][]int{}, byName: map[string][]int{},
	}
	for _, r := range rows {
		if r.when != nil {
			s.conditions[r.when.text] = r.when
		}
		for _, c := range clauses(r) {
			i := len(s.clauses)
			s.clauses = append(s.clauses, c)
			switch {
			case strings.HasPrefix(c.who, rolePrefix):
				s.byRole[c.who] = append(s.byRole[c.who], i)
			case strings.Contains(c.who, "*"):
				s.byGlob = append(s.byGlob, i)
			default:
				s.byName[c.who] = append(s.byName[c.who], i)
			}
		}
	}
	return s
}

// A question is a request without what may differ from call to call.
type question struct {
	who, tenant, task, tool, action string
	could                           bool
}

// candidates returns the places of the clauses that match q, conditions aside,
// in the order of the file.
func (s *ruleset) candidates(q question) []int {
	places := slices.Concat(s.byName[q.who], s.byGlob)
	for role := range s.roles(q.who, q.tenant) {
		places = append(places, s.byRole[role]...)
	}
	places = slices.DeleteFunc(places, func(i int) bool {
		c := s.clauses[i]
		return s.misses(c.row, c.tool, q) != ""
	})
	slices.Sort(places)
	return places
}

// misses returns the first column of a row, read with tool as its tool cell,
// that does not match q, or "".
func (s *ruleset) misses(r *row, tool string, q question) string {
	switch {
	case !does(q.action, r.action):
		return "action"
	case !s.inGroup(q.tool, tool):
		return "tool"
	case !glob(q.task, r.task):
		return "task"
	case !glob(q.tenant, r.tenant):
		return "tenant"
	}
	if ok, _ := s.holders.HasLink(q.who, r.who, q.tenant); !ok {
		return "who"
	}
	return ""
}

// A plan is how to answer one question: which clauses there are to ask about
// and, when none of them depends on the call, the answer.
type plan struct {
	engine *engine
	reads  bool    // some row reads arguments
	fixed  *answer // nil: must be asked each time
}

// An answer is what one ruleset says of one request. It is shared and never changes.
type answer struct {
	verdict Verdict
	hits    []hit // in the order of the file
	reads   bool
	grants  []*row // of the rows that could grant this, whatever their condition came to
	fixed   bool   // no arguments and no time change it
	err     error
}

// nothing is the answer where no row could match.
var nothing = &answer{fixed: true}

// A hit is a row that matched. An approve row may match without granting.
type hit struct {
	*row
	granted bool
}

// answer asks the ruleset. Where no row could match, there is nothing to ask
// Casbin about, and its answer for no rows at all is not to be trusted.
func (s *ruleset) answer(q question, c *call) *answer {
	p, ok := s.plans.load(q)
	if !ok {
		p = s.plan(q, c)
		s.plans.store(q, p)
	}
	if p.fixed != nil {
		return p.fixed
	}
	return s.decide(p, q, c)
}

func (s *ruleset) plan(q question, c *call) *plan {
	places := s.candidates(q)
	if len(places) == 0 {
		return &plan{fixed: nothing}
	}
	k := key(places)
	e, ok := s.engines.load(k)
	if !ok {
		e = &engine{}
		for _, i := range places {
			e.clauses = append(e.clauses, s.clauses[i])
		}
		s.engines.store(k, e)
	}
	p := &plan{engine: e}
	asks := false
	for _, cl := range e.clauses {
		if cl.when != nil && !c.list {
			asks = true
			p.reads = p.reads || cl.when.args
		}
	}
	if !asks {
		// A failure is not remembered: it may pass.
		if a := s.decide(p, q, c); a.err == nil {
			a.fixed, p.fixed = true, a
		}
	}
	return p
}

func (s *ruleset) decide(p *plan, q question, c *call) *answer {
	a := &answer{reads: p.reads}
	var matched []int
	a.verdict, matched, a.err = s.ask(p.engine, q, c)
	for _, i := range matched {
		cl := p.engine.clauses[i]
		if n := len(a.hits); n == 0 || a.hits[n-1].row != cl.row {
			a.hits = append(a.hits, hit{row: cl.row})
		}
		if cl.eft == "allow" {
			a.hits[len(a.hits)-1].granted = true
		}
	}
	for _, cl := range p.engine.clauses {
		if cl.eft == "allow" {
			a.grants = append(a.grants, cl.row)
		}
	}
	return a
}
