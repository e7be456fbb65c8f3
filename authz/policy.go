package authz

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Policy is a policy file in force. It never changes; a new file makes a new
// Policy. It is safe for concurrent use.
type Policy struct {
	rules    *ruleset
	file     string
	revision string
	rows     int
	warnings []Finding
	links    []link // the g rows, for questions about who holds what
	replaces []replaced

	// What there is to ask about for a question, and what is decided where policy
	// and scopes answer the same again.
	asked   cache[asked, matter]
	decided cache[answers, *Decision]
}

// How many questions a policy remembers, and how many decisions.
const (
	maxAsked   = 1 << 16
	maxDecided = 1 << 14
)

// Revision names the content of the file: "sha256:<hex>".
func (p *Policy) Revision() string { return p.revision }

// File is the name of the file as it was given to [Parse].
func (p *Policy) File() string { return p.file }

// Rows counts the rows of the file: p, g and g2.
func (p *Policy) Rows() int { return p.rows }

// Warnings are the findings that did not refuse the file.
func (p *Policy) Warnings() []Finding { return slices.Clone(p.warnings) }

// Decide answers r. It never panics and has no error: whatever goes wrong is a
// Deny that says so.
//
// Any matching deny, of the policy or of a scope, denies. So does the lack of a
// matching grant in the policy, or in any one scope; a scope that is nil or
// empty grants nothing. Otherwise every matching approve and require, of the
// policy and of every scope, is in Need. A condition that cannot be evaluated
// does not make a row grant and does make it deny or ask; an approve row then
// does not grant, and asks. The order of rows never matters.
//
// A [List], and whatever asks what Could be, is allowed or denied, nothing else: allowed where a row could grant
// it (or, for a List, a [Call]) for some arguments at some time, in the policy
// and in every scope, and no row denies it whatever the arguments.
func (p *Policy) Decide(r Request) (d Decision) {
	defer func() {
		// What panicked may quote the request, so the reason does not say.
		if recover() != nil {
			d = p.refuse("the decision failed")
		}
	}()
	if p == nil {
		return p.refuse("there is no policy")
	}
	r.Could = r.Could || r.Action == List
	var key asked
	few := key.of(&r)
	var hash uint64
	var m matter
	known := false
	if few {
		hash = key.hash()
		m, known = p.asked.loadBy(hash, &key)
	}
	if !known {
		if why := malformed(r); why != "" {
			return p.refuse(why)
		}
		m, known = p.matter(&r)
		if few && known {
			p.asked.storeBy(hash, &key, m, maxAsked)
		}
	}
	if m.fixed != nil {
		return *m.fixed
	}
	fresh, _ := p.decide(m.sets, &r)
	return *fresh
}

// asked is a request without its arguments and its time. Most tasks have few scopes;
// of those that have more nothing is remembered.
type asked struct {
	question
	scopes [8]uint64
	n      int
}

// of reports whether r has so few scopes.
func (a *asked) of(r *Request) bool {
	if len(r.Scopes) > len(a.scopes) {
		return false
	}
	a.question = r.question()
	a.n = len(r.Scopes)
	for i, s := range r.Scopes {
		if s != nil {
			a.scopes[i] = s.id
		}
	}
	return true
}

// hash is of what tells most questions apart; the rest need not be looked at to
// find them.
func (a *asked) hash() uint64 {
	const spread = 0x9e3779b97f4a7c15
	h := maphash.String(seed, a.who)*spread ^ maphash.String(seed, a.tenant)
	h = h*spread ^ maphash.String(seed, a.tool)
	h = h*spread ^ maphash.String(seed, a.task) ^ uint64(len(a.action))
	if a.could {
		h++
	}
	for i := range a.n {
		h = h*spread ^ a.scopes[i]
	}
	return h ^ h>>32
}

func (r *Request) question() question {
	return question{r.Subject.Principal, r.Subject.Tenant, r.Task, r.Tool, string(r.Action), r.Could}
}

// A matter is what there is to ask about for one question: of the policy and of
// each scope the rows that can match it. Where no argument and no clock can alter
// the decision it is the decision.
type matter struct {
	fixed *Decision
	sets  []*set
}

// matter reports whether what it returns may be remembered.
func (p *Policy) matter(r *Request) (m matter, lasts bool) {
	var room [9]*set
	sets := room[:0]
	asks := false
	for i := range 1 + len(r.Scopes) {
		rules, q := p.asks(r, i)
		var s *set
		if i == 0 || rules != nil {
			s = rules.set(q)
		}
		sets = append(sets, s)
		asks = asks || s != nil && len(s.conditions) > 0
	}
	if asks && !r.Could {
		return matter{sets: slices.Clone(sets)}, true
	}
	d, lasts := p.decide(sets, r)
	return matter{fixed: d}, lasts
}

// asks returns the rules that r is put to, and what they are asked: first the
// policy, then each scope, which has no rules where it reaches nothing.
func (p *Policy) asks(r *Request, i int) (*ruleset, question) {
	q := r.question()
	if i == 0 {
		return p.rules, q
	}
	// A scope is its task's alone, so it does not ask who, where or what for.
	q.who, q.tenant, q.task = "", "", ""
	if s := r.Scopes[i-1]; s != nil {
		return s.rules, q
	}
	return nil, q
}

func (p *Policy) refuse(reason string) Decision {
	d := Decision{Reason: reason}
	if p != nil {
		d.Revision = p.revision
	}
	return d
}

// malformed says why a request cannot be asked about at all.
func malformed(r Request) string {
	known := false
	for _, a := range actions {
		known = known || a == string(r.Action)
	}
	if !known {
		return "the action is unknown"
	}
	for _, s := range []struct {
		what, text string
		optional   bool
	}{{"principal", r.Subject.Principal, false}, {"tenant", r.Subject.Tenant, false}, {"tool", r.Tool, false}, {"task", r.Task, true}} {
		switch {
		case s.text == "" && !s.optional:
			return "there is no " + s.what
		case len(s.text) > 2*maxName:
			return "the " + s.what + " is too long"
		case !utf8.ValidString(s.text) || strings.IndexFunc(s.text, func(c rune) bool { return c < ' ' || c == 0x7f }) >= 0:
			return "the " + s.what + " holds control characters"
		}
	}
	return ""
}

// A part is the answer of the policy or of one scope, and how to cite its rows.
type part struct {
	*answer
	file string // of its rules
	name string // in a reason
}

func (t part) cite(r *row) string { return fmt.Sprintf("%s:%d", t.file, r.line) }

// answers is what the policy and the scopes said. The same from all of them is
// the same decision.
type answers struct {
	of     [9]*answer
	scopes [8]uint64
}

// decide reports whether its decision was one to remember.
func (p *Policy) decide(sets []*set, r *Request) (d *Decision, lasts bool) {
	var key answers
	lasts = len(sets) <= len(key.of)
	var in *input // read once, where a condition reads it
	if !r.Could {
		in = &input{raw: r.Args, at: r.Time}
	}
	var room [len(key.of)]*answer
	all := room[:0]
	for i, set := range sets {
		rules, q := p.asks(r, i)
		said, kept := rules.answer(set, q, in)
		all = append(all, said)
		if lasts = lasts && kept; lasts {
			key.of[i] = said
			if i > 0 && r.Scopes[i-1] != nil {
				key.scopes[i-1] = r.Scopes[i-1].id
			}
		}
	}
	if lasts {
		if d, ok := p.decided.load(key); ok {
			return d, true
		}
	}
	parts := make([]part, len(all))
	for i, a := range all {
		parts[i] = part{a, p.file, p.file}
		if i > 0 {
			file := r.Scopes[i-1].file()
			parts[i] = part{a, file, "the " + file}
		}
	}
	sum := p.sum(r.Could, parts)
	sum.Rules, sum.Cited, sum.Need = slices.Clip(sum.Rules), slices.Clip(sum.Cited), slices.Clip(sum.Need) // shared from here on
	if lasts {
		p.decided.store(key, &sum, maxDecided)
	}
	return &sum, lasts
}

// sum puts the answers together: the strictest wins, and requirements add up.
func (p *Policy) sum(could bool, parts []part) Decision {
	d := Decision{Verdict: Allow, Revision: p.revision}
	for _, t := range parts {
		d.Verdict = min(d.Verdict, t.verdict)
		d.Conditional = d.Conditional || t.reads
		if t.err != nil {
			d.Verdict = Deny
			d.Reason = t.err.Error()
		}
	}
	if d.Reason != "" {
		return d
	}
	if could && d.Verdict == Approve {
		d.Verdict = Allow
	}
	for _, t := range parts {
		for _, h := range t.hits {
			if h.decides(d.Verdict) {
				d.Rules = append(d.Rules, h.rule(t.file))
			}
			if d.Verdict == Approve && h.verdict.requires() {
				d.Need = append(d.Need, Requirement{h.verdict.n, h.verdict.group, h.rule(t.file)})
			}
		}
	}
	if d.Verdict == Approve && len(d.Need) == 0 {
		return Decision{Reason: "the decision failed", Revision: p.revision, Conditional: d.Conditional}
	}
	d.Reason, d.Cited = reason(d.Verdict, parts), cite(d.Rules)
	return d
}

// decides reports whether a row that matched had a part in a verdict.
func (h hit) decides(v Verdict) bool {
	switch v {
	case Allow:
		return h.granted
	case Approve:
		return h.granted || h.verdict.requires()
	}
	return h.verdict.word == "deny"
}

// reason says in words why. It names rows and whom they ask, and nothing of what
// the arguments were.
func reason(v Verdict, parts []part) string {
	var said, lacks []string
	for _, t := range parts {
		for _, h := range t.hits {
			switch {
			case v == Approve && h.verdict.requires():
				said = append(said, h.verdict.asks()+" by "+t.cite(h.row)+t.unevaluated(h.row))
			case v != Approve && h.decides(v):
				said = append(said, t.cite(h.row)+t.unevaluated(h.row))
			}
		}
		if t.verdict != Deny {
			continue
		}
		lack := "no row of " + t.name + " grants this"
		var failed []string
		for _, r := range t.grants {
			if t.came[r.when] == unknown {
				failed = append(failed, "the condition of "+t.cite(r)+" could not be evaluated")
			} else {
				failed = append(failed, "the condition of "+t.cite(r)+" does not hold")
			}
		}
		if len(failed) > 0 {
			lack += " call: " + list(failed)
		}
		lacks = append(lacks, lack)
	}
	switch {
	case v == Allow:
		return "granted by " + list(said)
	case v == Approve:
		return "needs approval: " + list(said)
	case len(said) > 0:
		return "denied by " + list(said)
	}
	return strings.Join(lacks, "; ")
}

// unevaluated marks a row that counts because nobody can tell.
func (t part) unevaluated(r *row) string {
	if r.when != nil && t.came[r.when] == unknown {
		return " (its condition could not be evaluated)"
	}
	return ""
}

// list names so many things and counts the rest; Rules holds them all.
func list(words []string) string {
	const most = 8
	if more := len(words) - most; more > 0 {
		words = append(slices.Clip(words[:most]), fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}
