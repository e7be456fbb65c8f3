package authz

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The bounds of the search for what conditions can come to.
const (
	maxTried = 2000 // arguments tried
	maxTerms = 7    // terms whose outcomes are all gone through
)

// A compared is a difference: an example of it, or why there may be none.
type compared struct {
	example *DiffExample
	perhaps string
}

// A weight is what clauses come to: a verdict, and whom they ask.
type weight struct {
	verdict Verdict
	need    []verdict
}

// weigh does what Casbin does with clauses that match but for their conditions.
// What it finds is told only once the policies have said so themselves.
func weigh(clauses []clause, could bool, came func(*condition) truth) weight {
	granted := false
	var w weight
	for _, c := range clauses {
		grant := c.eft == "allow"
		if c.when != nil && could && !grant {
			continue
		}
		if c.when != nil && !could {
			if t := came(c.when); t == no || t == unknown && grant {
				continue
			}
		}
		switch c.eft {
		case "deny":
			return weight{}
		case "allow":
			granted = true
		default:
			w.need = append(w.need, c.verdict)
		}
	}
	switch {
	case !granted:
		return weight{}
	case could || len(w.need) == 0:
		return weight{verdict: Allow}
	}
	w.verdict = Approve
	return w
}

// looser reports whether w lets through what v does not, or asks fewer: somebody
// whom v asks need not have agreed.
func (w weight) looser(v weight) bool {
	if w.verdict == Deny || v.verdict == Deny {
		return w.verdict != Deny && v.verdict == Deny
	}
	return slices.ContainsFunc(v.need, func(asked verdict) bool {
		return !slices.ContainsFunc(w.need, func(asks verdict) bool {
			return asks.n >= asked.n && (asked.group == "" || asked.group == asks.group)
		})
	})
}

// compare asks what both policies say where all that speak have a say: a
// difference that is wider, one that is narrower; nil where there is none.
func (d *differ) compare(r region, here []*speaker, could bool) (found [2]*compared) {
	var sides [2][]clause
	conds := map[string]*condition{}
	for _, s := range here {
		sides[s.side] = append(sides[s.side], s.clause)
		if s.when != nil && !could {
			conds[s.when.text] = s.when
		}
	}
	var texts []string
	for text := range conds {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	differs := func(came map[string]truth) [2]bool {
		read := func(c *condition) truth { return came[c.text] }
		old, now := weigh(sides[0], could, read), weigh(sides[1], could, read)
		wider := now.looser(old)
		return [2]bool{wider, !wider && old.looser(now)}
	}
	d.effort -= 10 * len(here)
	tries := d.tries(texts, conds)
	for in := range tries.all {
		came := map[string]truth{}
		for _, text := range texts {
			came[text] = conds[text].eval(&in)
		}
		for i, is := range differs(came) {
			if is && found[i] == nil {
				found[i] = d.example(r, in, texts, conds)
			}
		}
		if found[0] != nil && found[1] != nil {
			return found
		}
	}
	if tries.whole {
		return found
	}
	wider, narrower := toward(here)
	if len(tries.terms) > maxTerms {
		for i, may := range []bool{wider, narrower} {
			if found[i] == nil && may {
				found[i] = &compared{perhaps: "the conditions have too many terms to go through"}
			}
		}
		return found
	}
	// No example, which proves nothing: so whatever the terms could come to.
	of := map[string]truth{}
	var from func(int)
	from = func(n int) {
		if found[0] != nil && found[1] != nil {
			return
		}
		if n < len(tries.terms) {
			for _, t := range []truth{yes, no, unknown} {
				of[tries.terms[n].text] = t
				from(n + 1)
			}
			return
		}
		came := map[string]truth{}
		for _, text := range texts {
			came[text] = conds[text].shape.came(of)
		}
		for i, is := range differs(came) {
			if is && found[i] == nil && d.feasible(tries.terms, of) {
				found[i] = &compared{perhaps: "it depends on conditions, and no example was found"}
			}
		}
	}
	from(0)
	return found
}

// came is what a shape comes to where its terms come to what is given.
func (s *shape) came(of map[string]truth) truth {
	switch s.op {
	case "":
		return of[s.text]
	case "!":
		return map[truth]truth{yes: no, no: yes, unknown: unknown}[s.of[0].came(of)]
	}
	goesOn := yes
	if s.op == "||" {
		goesOn = no
	}
	if left := s.of[0].came(of); left != goesOn {
		return left
	}
	return s.of[1].came(of)
}

// feasible reports whether terms could come to what is given, all at once. It may
// miss that they cannot.
func (d *differ) feasible(terms []*term, of map[string]truth) bool {
	var facts []fact
	matched := map[string]truth{} // whether patterns could be held against a variable
	for _, t := range terms {
		is := of[t.text]
		if _, clock := clocks[t.name]; clock && t.with == "" && is == unknown { // the time is always known
			return false
		}
		if t.re != nil {
			can := map[bool]truth{true: no, false: yes}[is == unknown]
			if was, ok := matched[t.name]; ok && was != can {
				return false
			}
			matched[t.name] = can
		}
		if is != unknown {
			facts = append(facts, fact{t, is == no})
		}
	}
	d.effort -= len(facts) * len(facts)
	ok, _ := d.sense.fits(facts, nil)
	return ok || d.sense.effort < 0
}

// tries are inputs that make a difference to conditions, by the literals in them.
type tries struct {
	terms []*term // of all conditions, each once
	whole bool    // whatever the conditions can come to, they come to it for one of the inputs
	all   func(func(input) bool)
}

func (d *differ) tries(texts []string, conds map[string]*condition) (t tries) {
	about := map[string][]fact{}
	var names []string
	for _, text := range texts {
		for _, one := range terms(conds[text].shape, nil) {
			if slices.ContainsFunc(t.terms, func(o *term) bool { return o.text == one.text }) {
				continue
			}
			t.terms = append(t.terms, one)
			for _, name := range []string{one.name, one.with} {
				if name != "" && about[name] == nil {
					names = append(names, name)
				}
				if name != "" {
					about[name] = append(about[name], fact{one, false})
				}
			}
		}
	}
	values := make([][]value, len(names))
	count := 1
	t.whole = !(slices.Contains(names, "date") && slices.Contains(names, "weekday"))
	for i, name := range names {
		values[i] = tried(name, about[name])
		count = min(count*len(values[i]), maxTried+1)
		t.whole = t.whole && !slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+".") }) &&
			!slices.ContainsFunc(about[name], func(f fact) bool { return !f.plain() }) && !slices.ContainsFunc(values[i], value.inexact)
	}
	t.whole = t.whole && count <= maxTried
	t.all = func(yield func(input) bool) {
		at := make([]int, len(names))
		for range maxTried {
			in := input{at: time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)} // a Monday
			args := map[string]any{}
			for i, name := range names {
				put(&in, args, name, values[i][at[i]])
			}
			in.raw, _ = json.Marshal(args)
			if d.effort -= 20; !yield(in) {
				return
			}
			i := 0
			for i < len(at) {
				if at[i]++; at[i] < len(values[i]) {
					break
				}
				at[i] = 0
				i++
			}
			if i == len(at) {
				return
			}
		}
	}
	return t
}

// plain reports whether the literals of a term, and values between and beside
// them, are all that makes a difference to it.
func (t *term) plain() bool {
	switch {
	case t.op == "has" || t.re != nil || t.with != "":
		return false
	case t.op == "is" || t.op == "in" || t.op == "==" || t.op == "!=":
		return true
	}
	return len(t.among) == 1 && t.among[0].kind == numberKind
}

// inexact reports whether a number that was calculated is none that can be read.
func (v value) inexact() bool {
	text, _ := json.Marshal(v.number)
	_, err := parseNumber(string(text))
	return v.kind == numberKind && v.raw == nil && err != nil
}

// tried are values for a variable; what an agent would send comes first.
func tried(name string, facts []fact) (all []value) {
	_, clock := clocks[name]
	likely := stringKind
	for _, f := range facts {
		switch {
		case f.op == "has":
			for _, lit := range f.among {
				all = append(all, value{kind: arrayKind, text: lit.text, number: lit.number, truth: lit.truth})
			}
		case f.re != nil:
			all = append(all, value{kind: stringKind, text: literalPrefix(f.re.String()) + "x"})
		case !clock:
			all = append(all, f.among...)
		}
	}
	if len(all) > 0 {
		likely = all[0].kind
	}
	var more []value
	for _, c := range candidates(name, facts, nil) {
		v := c.value
		v.text = strings.ReplaceAll(v.text, someString, "~")
		more = append(more, v)
	}
	if clock {
		return more
	}
	more = append(more, value{kind: numberKind, raw: unreadable})
	slices.SortStableFunc(more, func(a, b value) int {
		as := func(k kind) int {
			if k == likely {
				return -1
			}
			return slices.Index(usual, k)
		}
		return as(a.kind) - as(b.kind)
	})
	return append(all, more...)
}

// unreadable is a number that two readers could take for different ones.
var unreadable = jsontext.Value("12345678901234567890")

var usual = []kind{stringKind, numberKind, boolKind, arrayKind, absentKind, nullKind, objectKind}

// put sets a variable of an input.
func put(in *input, args map[string]any, name string, v value) {
	switch name {
	case "hour":
		in.at = time.Date(in.at.Year(), in.at.Month(), in.at.Day(), int(v.number), 0, 0, 0, time.UTC)
		return
	case "weekday":
		in.at = in.at.AddDate(0, 0, int(v.number)-int(in.at.Weekday()))
		return
	case "date":
		in.at = time.Unix(int64(v.number)*86400+int64(in.at.Hour())*3600, 0).UTC()
		return
	}
	parts := strings.Split(strings.TrimPrefix(name, "args."), ".")
	if v.kind == absentKind {
		return
	}
	for _, part := range parts[:len(parts)-1] {
		below, ok := args[part].(map[string]any)
		if !ok {
			below = map[string]any{}
			args[part] = below
		}
		args = below
	}
	var is any
	switch v.kind {
	case boolKind:
		is = v.truth
	case numberKind:
		is = v.number
		if v.raw != nil {
			is = json.RawMessage(v.raw)
		}
	case stringKind:
		is = v.text
	case arrayKind:
		switch {
		case v.text != "":
			is = []any{v.text}
		case v.number != 0:
			is = []any{v.number}
		default:
			is = []any{}
		}
	case objectKind:
		is = map[string]any{}
	}
	args[parts[len(parts)-1]] = is
}

// example is a request out of a region, with what both policies say to it.
func (d *differ) example(r region, in input, texts []string, conds map[string]*condition) *compared {
	who, _ := r.who.one()
	tenant, _ := r.tenant.one()
	task, _ := r.task.one()
	tool, _ := r.tool.one()
	if d.tools != nil {
		tool = d.known(r.tool)[0]
	}
	if who == "" || tenant == "" || task == "" || tool == "" {
		return &compared{perhaps: "nobody may be whom it is about"}
	}
	x := &DiffExample{Principal: who, Tenant: tenant, Task: task, Tool: tool, Action: Action(r.actions[0])}
	if slices.Contains(r.actions, string(Call)) {
		x.Action = Call
	}
	clock := false
	for _, text := range texts {
		if conds[text].args {
			x.Args = in.raw
		}
		clock = clock || slices.ContainsFunc(conds[text].vars, func(name string) bool { return !strings.HasPrefix(name, "args.") })
	}
	if clock {
		x.Time = &in.at
	}
	for i, s := range d.sides {
		said := s.Decide(Request{Subject: Subject{who, tenant}, Task: task, Tool: tool, Action: x.Action, Args: in.raw, Time: in.at})
		var need []string
		for _, n := range said.Need {
			need = append(need, n.String())
		}
		if i == 0 {
			x.Before, x.NeedThen = said.Verdict, need
		} else {
			x.After, x.NeedNow = said.Verdict, need
		}
	}
	return &compared{example: x}
}
