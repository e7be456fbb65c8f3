package authz

import (
	"fmt"
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
	Near      []NearMiss    `json:"near"` // grants that one column kept from granting; restrictions whose condition did not hold
	Revision  string        `json:"revision"`
}

// A NearMiss is a row that does not match because of one column.
type NearMiss struct {
	Rule
	Column string `json:"column"`
	Why    string `json:"why"` // "line 17 would allow, but args.repo is 'evil/x'"
}

// maxNear bounds the near misses; the likeliest come first.
const maxNear = 20

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
	// from the right, as an admin reads a row.
	order := []string{"when", "action", "tool", "task", "tenant", "who"}
	slices.SortStableFunc(x.Near, func(a, b NearMiss) int {
		return slices.Index(order, a.Column) - slices.Index(order, b.Column)
	})
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
		column, why, matches := s.miss(r, q, c)
		switch {
		case matches && !slices.Contains(d.Rules, r.rule(file)):
			x.Overruled = append(x.Overruled, r.rule(file))
		case d.Verdict == Deny && len(d.Rules) == 0 && r.verdict.grants() && column != "",
			d.Verdict != Deny && !r.verdict.grants() && column == "when":
			x.Near = append(x.Near, NearMiss{r.rule(file), column, fmt.Sprintf("line %d would %s, but %s", r.line, r.verdict.word, why)})
		}
	}
}

// miss says whether a row matches and, if exactly one column keeps it from
// matching, which and why.
func (s *ruleset) miss(r *row, q question, c *call) (column, why string, matches bool) {
	misses := func(q question) string {
		missed := ""
		for _, cl := range clauses(r) {
			if missed = s.misses(r, cl.tool, q); missed == "" {
				return ""
			}
		}
		return missed
	}
	column = misses(q)
	if column == "" {
		held := false
		for _, cl := range clauses(r) {
			held = held || s.misses(r, cl.tool, q) == "" && c.matches(r.when, cl.eft)
		}
		switch {
		case held:
			return "", "", true
		case c.list:
			return "when", "its condition leaves the tool in the list", false
		}
		return "when", c.shown(r.when), false
	}
	// Grant it that column; whatever still misses makes it more than a near miss.
	near := *r
	cell := ""
	switch column {
	case "action":
		cell, near.action = r.action, q.action
		why = fmt.Sprintf("the action is %s, not %s", q.action, cell)
	case "tool":
		near.tool = "*"
		why = fmt.Sprintf("the tool is %s, not %s", quote(q.tool), r.tool)
		if _, group := s.groups.tools[r.tool]; group || slices.Contains(labels, r.tool) {
			why = fmt.Sprintf("%s is not in the group %s", quote(q.tool), r.tool)
		}
	case "task":
		near.task = "*"
		why = fmt.Sprintf("the task is %s, not %s", quote(q.task), r.task)
	case "tenant":
		near.tenant = "*"
		why = fmt.Sprintf("the tenant is %s, not %s", quote(q.tenant), r.tenant)
	case "who":
		near.who = "*"
		why = fmt.Sprintf("%s is not %s", quote(q.who), r.who)
		if strings.HasPrefix(r.who, rolePrefix) {
			why = fmt.Sprintf("%s does not hold %s in %s", quote(q.who), r.who, q.tenant)
		}
	}
	if s.misses(&near, near.tool, q) != "" || near.when != nil && !c.list && c.eval(near.when) != yes {
		return "", "", false
	}
	return column, why, false
}

// shown quotes what a condition read.
func (c *call) shown(cond *condition) string {
	var all []string
	for _, name := range cond.vars {
		switch name {
		case "hour", "weekday":
			if c.at.IsZero() {
				all = append(all, name+" is not known")
				continue
			}
			n := clocks[name].read(c.at)
			text := strconv.Itoa(n)
			if name == "weekday" {
				text = days[n]
			}
			all = append(all, name+" is "+text)
		default:
			v, err := c.arg(strings.Split(strings.TrimPrefix(name, "args."), "."))
			switch {
			case err != nil:
				all = append(all, err.Error())
			case v.kind == stringKind:
				all = append(all, name+" is "+quote(v.text))
			case v.kind == numberKind:
				all = append(all, name+" is "+strconv.FormatFloat(v.number, 'f', -1, 64))
			case v.kind == boolKind:
				all = append(all, fmt.Sprintf("%s is %t", name, v.truth))
			default:
				all = append(all, fmt.Sprintf("%s is %s", name, v.kind))
			}
		}
	}
	return strings.Join(all, " and ")
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
		fmt.Fprintf(&b, "  %s (%s:%d)\n", verdict{n: n.N, group: n.Group}.asks(), n.Rule.File, n.Rule.Line)
	}
	for i, n := range x.Near {
		if i == 0 {
			b.WriteString("near misses:\n")
		}
		fmt.Fprintf(&b, "  %s: %s\n", n.File, n.Why)
	}
	return b.String()
}
