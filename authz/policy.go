package authz

import (
	"fmt"
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

	// Decisions that no argument and no clock can alter.
	decided bounded[asked, Decision]
}

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
	key, few := r.asked()
	if few {
		if d, ok := p.decided.load(key); ok {
			return d
		}
	}
	if why := malformed(r); why != "" {
		return p.refuse(why)
	}
	parts := p.ask(r, &call{input: input{raw: r.Args, at: r.Time}, list: r.Could})
	d = p.decide(r.Could, parts)
	if few && !slices.ContainsFunc(parts, func(t part) bool { return !t.fixed }) {
		d.Rules, d.Cited, d.Need = slices.Clip(d.Rules), slices.Clip(d.Cited), slices.Clip(d.Need) // shared from here on
		p.decided.store(key, d)
	}
	return d
}

// asked is a request without its arguments and its time. Most tasks have few scopes;
// of those that have more nothing is remembered.
type asked struct {
	question
	scopes [4]asOf
	n      int
}

// asOf is a scope's rows and the name by which they are cited.
type asOf struct {
	rules *ruleset
	label string
}

func (r *Request) asked() (a asked, few bool) {
	if len(r.Scopes) > len(a.scopes) {
		return a, false
	}
	a.question = question{r.Subject.Principal, r.Subject.Tenant, r.Task, r.Tool, string(r.Action), r.Could}
	a.n = len(r.Scopes)
	for i, s := range r.Scopes {
		if s != nil {
			a.scopes[i] = asOf{s.rules, s.label}
		}
	}
	return a, true
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
	came map[*condition]truth
}

func (t part) cite(r *row) string { return fmt.Sprintf("%s:%d", t.file, r.line) }

func (p *Policy) ask(r Request, c *call) []part {
	q := question{r.Subject.Principal, r.Subject.Tenant, r.Task, r.Tool, string(r.Action), r.Could}
	parts := []part{{p.rules.answer(q, c), p.file, p.file, c.came}}
	for _, s := range r.Scopes {
		// A scope is its task's alone, so it does not ask who, where or what for.
		parts = append(parts, part{s.answer(question{tool: r.Tool, action: string(r.Action), could: r.Could}, c), s.file(), "the " + s.file(), c.came})
	}
	// Each part may have evaluated more; the map is made by the first that did.
	for i := range parts {
		parts[i].came = c.came
	}
	return parts
}

// decide puts the answers together: the strictest wins, and requirements add up.
func (p *Policy) decide(could bool, parts []part) Decision {
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
