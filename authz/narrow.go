package authz

import (
	"fmt"
	"slices"
	"strings"
)

// Narrow returns what of s lies within max, row by row, so that whoever asked
// for s can be told what it got. A granting row of which nothing lies within max
// is an error: asking for it was a mistake or an attempt. Rows that restrict stay.
//
// It never makes a decision: max is asked beside the result all the same, so a
// row kept whole grants no more than max does.
func (s *Scope) Narrow(max *Scope) (*Scope, error) {
	if s == nil || s.rules == nil {
		return s, nil
	}
	var rows []ScopeRow
	changed := false
	for i, r := range s.rules.rows {
		asked := s.rows[i]
		if !r.verdict.grants() {
			rows = append(rows, asked)
			continue
		}
		within, whole := max.within(r, asked)
		switch {
		case whole:
			rows = append(rows, asked)
		case len(within) == 0:
			return nil, fmt.Errorf("row %d: %s of %s is wider than %s", i+1, r.action, r.tool, max.named())
		default:
			rows, changed = append(rows, within...), true
		}
	}
	if !changed {
		return s, nil
	}
	narrow, err := NewScope(rows)
	if err != nil {
		return nil, fmt.Errorf("narrowed to %s: %w", max.named(), err)
	}
	return narrow.Named(s.label), nil
}

// within returns the parts of one granting row that s could grant: the row
// itself where one of s's covers it, else those of s's that it covers.
func (s *Scope) within(r *row, asked ScopeRow) (parts []ScopeRow, whole bool) {
	if s == nil || s.rules == nil {
		return nil, false
	}
	for _, m := range s.rules.rows {
		if !m.verdict.grants() {
			continue
		}
		action, ok := both(r.action, m.action)
		switch {
		case !ok:
		case covers(m.tool, r.tool) && action == r.action:
			return nil, true
		case covers(m.tool, r.tool):
			parts = append(parts, ScopeRow{Tool: asked.Tool, Action: action, When: asked.When, Verdict: asked.Verdict})
		case covers(r.tool, m.tool):
			parts = append(parts, ScopeRow{Tool: m.tool, Action: action, When: asked.When, Verdict: asked.Verdict})
		}
	}
	slices.SortFunc(parts, func(a, b ScopeRow) int { return strings.Compare(a.Tool+"\n"+a.Action, b.Tool+"\n"+b.Action) })
	return slices.Compact(parts), false
}

// Within returns what of s max gives as well, and nothing more: unlike what
// [Scope.Narrow] returns it can stand alone, where max is not asked beside it.
// Granting rows hold under the conditions of both, and whatever either restricts
// stays restricted. A granting row of which nothing lies within max is an error.
func (s *Scope) Within(max *Scope) (*Scope, error) {
	if s == nil || s.rules == nil {
		return s, nil
	}
	var rows []ScopeRow
	for i, r := range s.rules.rows {
		asked := s.rows[i]
		if !r.verdict.grants() {
			rows = append(rows, asked)
			continue
		}
		parts, whole := max.common(r, asked)
		switch {
		case whole:
			parts = []ScopeRow{asked}
		case len(parts) == 0:
			return nil, fmt.Errorf("row %d: %s of %s is wider than %s", i+1, r.action, r.tool, max.named())
		default:
			rows = appendRequired(rows, asked) // also where patterns overlap that no part is of
		}
		rows = append(rows, parts...)
	}
	if max != nil && max.rules != nil {
		for i, m := range max.rules.rows {
			if m.verdict.grants() {
				rows = appendRequired(rows, max.rows[i])
			} else {
				rows = append(rows, max.rows[i])
			}
		}
	}
	narrow, err := NewScope(unique(rows))
	if err != nil {
		return nil, fmt.Errorf("narrowed to %s: %w", max.named(), err)
	}
	return narrow.Named(s.label), nil
}

// common returns the parts of one granting row that s grants too, each under the
// conditions of both; whole is that s grants all of it under no other condition.
func (s *Scope) common(r *row, asked ScopeRow) (parts []ScopeRow, whole bool) {
	if s == nil || s.rules == nil {
		return nil, false
	}
	for i, m := range s.rules.rows {
		action, ok := both(r.action, m.action)
		if !ok || !m.verdict.grants() {
			continue
		}
		tool := asked.Tool
		switch {
		case covers(m.tool, r.tool):
		case covers(r.tool, m.tool):
			tool = m.tool
		default:
			continue
		}
		when := joined(asked.When, s.rows[i].When)
		if tool == asked.Tool && action == r.action && when == asked.When {
			return nil, true
		}
		parts = append(parts, ScopeRow{Tool: tool, Action: action, When: when, Verdict: asked.Verdict})
	}
	slices.SortFunc(parts, func(a, b ScopeRow) int {
		return strings.Compare(a.Tool+"\n"+a.Action+"\n"+a.When, b.Tool+"\n"+b.Action+"\n"+b.When)
	})
	return slices.Compact(parts), false
}

// appendRequired appends what a row that approves asks for, without its grant.
func appendRequired(rows []ScopeRow, r ScopeRow) []ScopeRow {
	if rest, ok := strings.CutPrefix(r.Verdict, "approve"); ok {
		r.Verdict = "require" + rest
		rows = append(rows, r)
	}
	return rows
}

// joined is the condition that two conditions come to together.
func joined(a, b string) string {
	switch {
	case b == "" || a == b:
		return a
	case a == "":
		return b
	}
	return "(" + a + ") && (" + b + ")"
}

// unique keeps the first of rows that are the same.
func unique(rows []ScopeRow) []ScopeRow {
	seen := map[ScopeRow]bool{}
	return slices.DeleteFunc(rows, func(r ScopeRow) bool {
		was := seen[r]
		seen[r] = true
		return was
	})
}

// both is the action that two cells have in common.
func both(a, b string) (string, bool) {
	switch {
	case a == b, b == "*":
		return a, true
	case a == "*":
		return b, true
	}
	return "", false
}

func (s *Scope) named() string { return "the " + s.file() }

// Plus returns a scope that grants what s does and what rows do; a row of s that
// denies still wins.
func (s *Scope) Plus(rows []ScopeRow) (*Scope, error) {
	sum, err := NewScope(append(s.Rows(), rows...))
	if err != nil {
		return nil, err
	}
	if s != nil {
		sum = sum.Named(s.label)
	}
	return sum, nil
}
