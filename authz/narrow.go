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
