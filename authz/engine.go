package authz

import (
	"errors"
	"fmt"
	"slices"
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

// An enforcer is Casbin with the model and, while it decides, the rows of one
// candidate set and what the model's functions read. It serves one question at a
// time and is used for any ruleset: making one costs more than ten decisions.
type enforcer struct {
	casbin *casbin.Enforcer
	rows   *[][]string // of its model
	*effects
	rules *ruleset
}

var enforcers sync.Pool

func newEnforcer() (*enforcer, error) {
	parsed, err := parsedModel()
	if err != nil {
		return nil, err
	}
	m := parsed.Copy()
	e, err := casbin.NewEnforcer(m)
	if err != nil {
		return nil, err
	}
	f := &enforcer{e, &m["p"]["p"].Policy, &effects{}, nil}
	// Without role managers Casbin calls the functions of these names; around a
	// manager it would put a memory that is never cleared.
	m["g"]["g"].RM, m["g"]["g2"].RM = nil, nil
	e.SetEffector(f.effects)
	e.AddFunction("g", func(a ...any) (any, error) { return f.rules.is(a[0].(string), a[1].(string), a[2].(string)), nil })
	e.AddFunction("g2", func(a ...any) (any, error) { return f.rules.inGroup(a[0].(string), a[1].(string)), nil })
	e.AddFunction("glob", func(a ...any) (any, error) { return glob(a[0].(string), a[1].(string)), nil })
	e.AddFunction("does", func(a ...any) (any, error) { return does(a[0].(string), a[1].(string)), nil })
	e.AddFunction("when", func(a ...any) (any, error) {
		text := a[0].(string)
		cond, ok := f.rules.conditions[text]
		if !ok && text != "" {
			return nil, errors.New("a condition that was never compiled")
		}
		return a[2].(*call).matches(cond, a[1].(string)), nil
	})
	return f, nil
}

// enforce lets Casbin decide among clauses that match q, conditions aside. It
// returns the verdict and the places in clauses of every one that matched.
func (s *ruleset) enforce(clauses []clause, q question, c *call) (Verdict, []int, error) {
	f, ok := enforcers.Get().(*enforcer)
	if !ok {
		var err error
		if f, err = newEnforcer(); err != nil {
			return Deny, nil, err
		}
	}
	// The rows are set, not added: adding them is where Casbin would drop the
	// second of two rows whose cells join to the same text.
	rows := make([][]string, len(clauses))
	for i, c := range clauses {
		rows[i] = []string{c.who, c.tenant, c.task, c.tool, c.action, c.condition(), c.eft}
	}
	f.rules, *f.rows, f.matches = s, rows, nil
	allowed, decider, err := f.casbin.EnforceEx(q.who, q.tenant, q.task, q.tool, q.action, c)
	matches := f.matches
	if err != nil {
		// Not put back: nothing is known about the state it is in. The error
		// may quote the request, so it goes no further.
		return Deny, nil, errors.New("the policy engine failed")
	}
	f.rules, *f.rows, f.matches = nil, nil, nil
	enforcers.Put(f)
	if len(matches) != len(clauses) {
		return Deny, nil, fmt.Errorf("the policy engine looked at %d of %d rows", len(matches), len(clauses))
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
