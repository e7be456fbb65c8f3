package authz

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Case is a question, and the answer that an admin expects of the policy.
type Case struct {
	Name    string
	Line    int // where it stands in its file
	Request Request
	Verdict Verdict
	Need    []string // who must agree, as in a verdict: "2 of group:sre", or "an operator"; nil: not looked at
	Rules   []string // rows that must be among those that decide, each by its line or by a part of its text; empty but not nil: no row decides; nil: not looked at
}

// A CaseResult is what became of one case. It passed when nothing is wrong.
type CaseResult struct {
	Name  string      `json:"name"`
	Line  int         `json:"line"`
	Wrong []string    `json:"wrong"`
	Said  Explanation `json:"said"`
}

// Results are what became of all cases, and which rows none of them made match.
type Results struct {
	Cases     []CaseResult `json:"cases"`
	Failed    int          `json:"failed"`
	Rows      int          `json:"rows"`      // p rows of the policy
	Uncovered []Rule       `json:"uncovered"` // those that no case made match
}

// Test asks the policy every case. A case covers a row that matched, whether or
// not it was the one that decided.
func (p *Policy) Test(cases []Case) Results {
	all := Results{Cases: []CaseResult{}, Uncovered: []Rule{}, Rows: len(p.rules.rows)}
	covered := map[int]bool{}
	for _, c := range cases {
		r := CaseResult{Name: c.Name, Line: c.Line, Said: p.Explain(c.Request)}
		if r.Wrong = c.wrong(r.Said); len(r.Wrong) > 0 {
			all.Failed++
		}
		all.Cases = append(all.Cases, r)
		for _, rule := range slices.Concat(r.Said.Rules, r.Said.Overruled) {
			if rule.File == p.file {
				covered[rule.Line] = true
			}
		}
	}
	for _, r := range p.rules.rows {
		if !covered[r.line] {
			all.Uncovered = append(all.Uncovered, r.rule(p.file))
		}
	}
	return all
}

// wrong says in what an answer is not the one that was expected.
func (c Case) wrong(x Explanation) []string {
	wrong := []string{}
	add := func(format string, a ...any) { wrong = append(wrong, fmt.Sprintf(format, a...)) }
	if x.Verdict != c.Verdict {
		add("want %s, got %s: %s", c.Verdict, x.Verdict, x.Reason)
	}
	if c.Need != nil {
		var need, got []string
		for _, n := range c.Need {
			if v, mistake := parseVerdict("require " + n); mistake == nil {
				n = v.asks()
			}
			need = append(need, n)
		}
		for _, n := range x.Need {
			got = append(got, n.String())
		}
		slices.Sort(need)
		slices.Sort(got)
		if need, got := slices.Compact(need), slices.Compact(got); !slices.Equal(need, got) {
			add("want %s to agree, got %s", orNobody(need), orNobody(got))
		}
	}
	if c.Rules != nil && len(c.Rules) == 0 && len(x.Rules) > 0 {
		add("want no row to decide")
	}
	for _, want := range c.Rules {
		if !slices.ContainsFunc(x.Rules, func(r Rule) bool { return r.is(want) }) {
			add("want the row %q to decide, and it does not", want)
		}
	}
	return wrong
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, " and ")
}

// is reports whether want is the rule's line, or a part of its text however that
// is spaced.
func (r Rule) is(want string) bool {
	if n, err := strconv.Atoi(want); err == nil {
		return r.Line == n && !strings.HasPrefix(r.File, "scope of ")
	}
	return strings.Contains(spaced(r.Text), spaced(want))
}

// spaced is a row's text with its cells one comma and one space apart.
func spaced(row string) string {
	cells := strings.Split(row, ",")
	for i := range cells {
		cells[i] = strings.Join(strings.Fields(cells[i]), " ")
	}
	return strings.TrimSpace(strings.Join(cells, ", "))
}
