package authz

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MarshalText writes the verdict as its word.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads a verdict's word. An unknown one is an error and Deny.
func (v *Verdict) UnmarshalText(text []byte) error {
	for _, known := range []Verdict{Deny, Approve, Allow} {
		if string(text) == known.String() {
			*v = known
			return nil
		}
	}
	*v = Deny
	return fmt.Errorf("verdict %q is unknown", text)
}

// An Explanation is a decision for a human who may see the arguments: it quotes
// them, so it never goes into a log or to an agent.
type Explanation struct {
	Verdict   Verdict       `json:"verdict"`
	Rules     []Rule        `json:"rules"`     // that decided, as in [Decision]
	Overruled []Rule        `json:"overruled"` // that match too and changed nothing
	Need      []Requirement `json:"need"`
	Reason    string        `json:"reason"`
	Near      []NearMiss    `json:"near"` // grants that one column, or where there is none two, kept from granting; restrictions whose condition did not hold
	Revision  string        `json:"revision"`
}

// A NearMiss is a row that nearly matches.
type NearMiss struct {
	Rule
	Column string `json:"column"` // that it misses by; the first of them
	Why    string `json:"why"`    // "line 17 would allow, but args.repo is 'evil/x'"
	by     int    // columns
}

const (
	maxNear = 20 // near misses; the likeliest come first
	far     = 9  // as many columns as are not near
)

// Explain decides r as [Policy.Decide] does and says more about it. It looks at
// every row and is not meant for the path of a call.
func (p *Policy) Explain(r Request) Explanation {
	d := p.Decide(r)
	x := Explanation{Verdict: d.Verdict, Rules: orEmpty(d.Rules), Need: orEmpty(d.Need), Reason: d.Reason, Revision: d.Revision, Overruled: []Rule{}, Near: []NearMiss{}}
	if p == nil || malformed(r) != "" {
		return x
	}
	r.Could = r.Could || r.Action == List
	c := &call{input: input{raw: r.Args, at: r.Time}, list: r.Could}
	q := question{r.Subject.Principal, r.Subject.Tenant, r.Task, r.Tool, string(r.Action), r.Could}
	x.look(p.rules, p.file, q, c, d)
	for _, s := range r.Scopes {
		if s != nil && s.rules != nil {
			x.look(s.rules, s.file(), question{tool: q.tool, action: q.action, could: q.could}, c, d)
		}
	}
	// A condition is the likeliest to be what was meant to match, then the rest
	// from the right, as an admin reads a row. Rows that miss by more are told only
	// where none misses by less.
	order := []string{"when", "action", "tool", "task", "tenant", "who"}
	slices.SortStableFunc(x.Near, func(a, b NearMiss) int {
		return cmp.Or(a.by-b.by, slices.Index(order, a.Column)-slices.Index(order, b.Column))
	})
	if len(x.Near) > 0 {
		least := min(x.Near[0].by, 2)
		x.Near = slices.DeleteFunc(x.Near, func(n NearMiss) bool { return n.by > least })
	}
	x.Near = x.Near[:min(len(x.Near), maxNear)]
	return x
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (x *Explanation) look(s *ruleset, file string, q question, c *call, d Decision) {
	for _, r := range s.rows {
		missed := s.missed(r, q, c)
		switch {
		case len(missed) == 0:
			if !slices.Contains(d.Rules, r.rule(file)) {
				x.Overruled = append(x.Overruled, r.rule(file))
			}
		case d.Verdict == Deny && len(d.Rules) == 0 && r.verdict.grants(),
			d.Verdict != Deny && !r.verdict.grants() && missed[0].column == "when":
			by := len(missed)
			why := make([]string, by)
			for i, m := range missed {
				why[i] = m.why
				if by > 1 && (m.column == "tool" || m.column == "action") {
					by = far // it is about something else
				}
			}
			if by >= far {
				continue
			}
			x.Near = append(x.Near, NearMiss{r.rule(file), missed[0].column, fmt.Sprintf("line %d would %s, but %s", r.line, r.verdict.word, strings.Join(why, ", and ")), by})
		}
	}
}

// A miss is a column that keeps a row from matching.
type miss struct{ column, why string }

// missed returns every column that keeps r from matching, the likeliest to have
// been meant otherwise first: a condition, then the rest from the right, as an
// admin reads a row. A condition is only looked at where the rest matches all but
// for one column.
func (s *ruleset) missed(r *row, q question, c *call) (all []miss) {
	add := func(column, format string, a ...any) { all = append(all, miss{column, fmt.Sprintf(format, a...)}) }
	if !does(q.action, r.action) {
		add("action", "the action is %s, not %s", q.action, r.action)
	}
	about := clauses(r) // that are about this tool
	about = slices.DeleteFunc(about, func(cl clause) bool { return !s.inGroup(q.tool, cl.tool) })
	if len(about) == 0 {
		if _, group := s.groups.tools[r.tool]; group || slices.Contains(labels, r.tool) {
			add("tool", "%s is not in the group %s", quote(q.tool), r.tool)
		} else {
			add("tool", "the tool is %s, not %s", quote(q.tool), r.tool)
		}
		about = clauses(r)
	}
	if !glob(q.task, r.task) {
		add("task", "the task is %s, not %s", quote(q.task), r.task)
	}
	if !glob(q.tenant, r.tenant) {
		add("tenant", "the tenant is %s, not %s", quote(q.tenant), r.tenant)
	}
	if !s.holders.is(q.who, r.who, q.tenant) {
		if strings.HasPrefix(r.who, rolePrefix) {
			add("who", "%s does not hold %s in %s", quote(q.who), r.who, q.tenant)
		} else {
			add("who", "%s is not %s", quote(q.who), r.who)
		}
	}
	if r.when == nil || len(all) > 1 {
		return all
	}
	holds := slices.ContainsFunc(about, func(cl clause) bool { return c.matches(r.when, cl.eft) })
	if len(all) == 1 && r.verdict.grants() {
		holds = c.matches(r.when, "allow") // an approve that only asks is not near to granting
	}
	if holds {
		return all
	}
	why := "its condition leaves the tool in the list"
	if !c.list {
		why = c.shown(r.when)
	}
	return slices.Insert(all, 0, miss{"when", why})
}

// failed returns the terms that keep a shape from holding; with not, those that
// make it hold.
func (c *call) failed(s *shape, not bool) []*term {
	holds := func(s *shape) truth { return (&condition{holds: s.holds}).eval(&c.input) }
	switch s.op {
	case "":
		return []*term{s.term}
	case "!":
		return c.failed(s.of[0], !not)
	}
	stop := no // what ends it from the left
	if s.op == "||" {
		stop = yes
	}
	if left := holds(s.of[0]); left == stop || left == unknown {
		return c.failed(s.of[0], not)
	} else if right := holds(s.of[1]); right == stop || right == unknown {
		return c.failed(s.of[1], not)
	}
	return append(c.failed(s.of[0], not), c.failed(s.of[1], not)...)
}

// shown quotes what the terms of a condition read that kept it from holding, and
// says which these are where there are others.
func (c *call) shown(cond *condition) string {
	var all, said []string
	terms := c.failed(cond.shape, false)
	for _, t := range terms {
		for _, name := range []string{t.name, t.with} {
			if name != "" && !slices.Contains(said, name) {
				said = append(said, name)
				all = append(all, c.read(name))
			}
		}
	}
	text := strings.Join(all, " and ")
	if len(terms) == 1 && cond.shape.op != "" {
		text += " (" + terms[0].text + ")"
	}
	return text
}

// secretName is of arguments whose values are not shown to anybody.
var secretName = regexp.MustCompile(`(?i)passw|passphrase|secret|token|credential|authorization|api[._-]?key|private[._-]?key`)

// read says what a variable is.
func (c *call) read(name string) string {
	if clock, ok := clocks[name]; ok {
		if c.at.IsZero() {
			return name + " is not known"
		}
		return name + " is " + clock.show(clock.read(c.at))
	}
	v, err := c.arg(strings.Split(strings.TrimPrefix(name, "args."), "."))
	switch {
	case err != nil:
		return err.Error()
	case v.kind >= boolKind && secretName.MatchString(name):
		return fmt.Sprintf("%s is %s, which is not shown", name, v.kind)
	case v.kind == stringKind:
		return name + " is " + quote(v.text)
	case v.kind == numberKind:
		return name + " is " + strconv.FormatFloat(v.number, 'f', -1, 64)
	case v.kind == boolKind:
		return fmt.Sprintf("%s is %t", name, v.truth)
	}
	return fmt.Sprintf("%s is %s", name, v.kind)
}

// quote shows a string in single quotes, cut short, with nothing hidden in it.
func quote(s string) string {
	const most = 80
	dots := ""
	if len(s) > most {
		s, dots = s[:most], "..."
	}
	q := strconv.QuoteToASCII(s)
	return "'" + strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`) + dots + "'"
}

// String is the explanation as `policy explain` prints it.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", x.Verdict, x.Reason)
	list := func(title string, rules []Rule) {
		for i, r := range rules {
			if i == 0 {
				fmt.Fprintf(&b, "%s:\n", title)
			}
			fmt.Fprintf(&b, "  %s:%d: %s\n", r.File, r.Line, r.Text)
		}
	}
	list("decided by", x.Rules)
	list("matching too", x.Overruled)
	for i, n := range x.Need {
		if i == 0 {
			b.WriteString("needs:\n")
		}
		fmt.Fprintf(&b, "  %s (%s:%d)\n", n, n.Rule.File, n.Rule.Line)
	}
	for i, n := range x.Near {
		if i == 0 {
			b.WriteString("near misses:\n")
		}
		fmt.Fprintf(&b, "  %s: %s\n", n.File, n.Why)
	}
	return b.String()
}
