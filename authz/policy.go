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
// A [List] is allowed or denied, nothing else: allowed where a row could grant
// it or a [Call] for some arguments at some time, in the policy and in every
// scope, and no row denies either whatever the arguments.
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
	if why := malformed(r); why != "" {
		return p.refuse(why)
	}
	parts := p.ask(r, &call{input: input{raw: r.Args, at: r.Time}, list: r.Action == List})
	return p.decide(r.Action, parts)
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
	q := question{r.Subject.Principal, r.Subject.Tenant, r.Task, r.Tool, string(r.Action)}
	parts := []part{{p.rules.answer(q, c), p.file, p.file, c.came}}
	for _, s := range r.Scopes {
		// A scope is its task's alone, so it does not ask who, where or what for.
		parts = append(parts, part{s.answer(question{tool: r.Tool, action: string(r.Action)}, c), s.file(), "the " + s.file(), c.came})
	}
	// Each part may have evaluated more; the map is made by the first that did.
	for i := range parts {
		parts[i].came = c.came
	}
	return parts
}

// decide puts the answers together: the strictest wins, and requirements add up.
func (p *Policy) decide(action Action, parts []part) Decision {
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
	if action == List && d.Verdict == Approve {
		d.Verdict = Allow
	}
	for _, t := range parts {
		for _, r := range t.rows {
			if r.decides(d.Verdict, action) {
				d.Rules = append(d.Rules, r.rule(t.file))
			}
			if d.Verdict == Approve && r.verdict.requires() {
				d.Need = append(d.Need, Requirement{r.verdict.n, r.verdict.group, r.rule(t.file)})
			}
		}
	}
	if d.Verdict == Approve && len(d.Need) == 0 {
		return Decision{Reason: "the decision failed", Revision: p.revision, Conditional: d.Conditional}
	}
	d.Reason = reason(d.Verdict, parts)
	return d
}

// decides reports whether a row that matched had a part in a verdict.
func (r *row) decides(v Verdict, action Action) bool {
	switch v {
	case Allow:
		return r.verdict.grants()
	case Approve:
		return r.verdict.word != "deny"
	}
	return r.verdict.word == "deny"
}

// maxCited bounds how many rows a reason names; Rules holds them all.
const maxCited = 8

// reason says in words why. It names rows and whom they ask, and nothing of what
// the arguments were.
func reason(v Verdict, parts []part) string {
	switch v {
	case Allow:
		return "granted by " + cite(parts, func(_ part, r *row) string { return "" }, func(r *row) bool { return r.verdict.grants() })
	case Approve:
		return "needs approval: " + cite(parts, func(t part, r *row) string {
			return r.verdict.asks() + " by " + t.cite(r) + t.unevaluated(r)
		}, func(r *row) bool { return r.verdict.requires() })
	}
	if denies := cite(parts, func(t part, r *row) string { return t.cite(r) + t.unevaluated(r) }, func(r *row) bool { return r.verdict.word == "deny" }); denies != "" {
		return "denied by " + denies
	}
	var lacks []string
	for _, t := range parts {
		if t.verdict != Deny {
			continue
		}
		if len(t.grants) == 0 {
			lacks = append(lacks, "no row of "+t.name+" grants this")
			continue
		}
		lacks = append(lacks, "no row of "+t.name+" grants this call: "+cite([]part{{answer: &answer{rows: t.grants}, file: t.file, came: t.came}}, func(t part, r *row) string {
			why := " does not hold"
			if r.when != nil && t.came[r.when] == unknown {
				why = " could not be evaluated"
			}
			return "the condition of " + t.cite(r) + why
		}, func(*row) bool { return true }))
	}
	return strings.Join(lacks, "; ")
}

func (t part) unevaluated(r *row) string {
	if came, asked := t.came[r.when]; r.when != nil && asked && came == unknown {
		return " (its condition could not be evaluated)"
	}
	return ""
}

// cite names the rows that are wanted, in the words of say, or else by place.
func cite(parts []part, say func(part, *row) string, wanted func(*row) bool) string {
	var said []string
	more := 0
	for _, t := range parts {
		for _, r := range t.rows {
			if !wanted(r) {
				continue
			}
			if len(said) == maxCited {
				more++
				continue
			}
			words := say(t, r)
			if words == "" {
				words = t.cite(r)
			}
			said = append(said, words)
		}
	}
	if more > 0 {
		said = append(said, fmt.Sprintf("%d more", more))
	}
	return strings.Join(said, ", ")
}
