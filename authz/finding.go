package authz

import (
	"fmt"
	"slices"
	"strings"
)

// Severity says whether a finding refuses the file.
type Severity string

// A file with an error is refused; a warning is for the admin to weigh.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// severities holds every code that a finding can have. What a code means never
// changes, and docs/policy.md says it.
var severities = map[string]Severity{
	// The file and its lines.
	"too-large":       SeverityError,
	"unreadable":      SeverityError,
	"no-rows":         SeverityError,
	"shrunk":          SeverityError,
	"shrunk-meant":    SeverityWarning,
	"case":            SeverityError,
	"byte-order-mark": SeverityError,
	"line-too-long":   SeverityError,
	"not-utf8":        SeverityError,
	"tab":             SeverityError,
	"invisible":       SeverityError,
	"quoting":         SeverityError,
	"unknown-section": SeverityError,
	"columns":         SeverityError,
	"duplicate":       SeverityError,

	// Cells.
	"empty-cell":       SeverityError,
	"cell-too-long":    SeverityError,
	"not-ascii":        SeverityError,
	"cell-characters":  SeverityError,
	"three-stars":      SeverityError,
	"foreign-wildcard": SeverityWarning,
	"unknown-action":   SeverityError,
	"not-a-role":       SeverityError,
	"operators-group":  SeverityError,
	"unknown-group":    SeverityError,
	"nested-group":     SeverityError,
	"group-name":       SeverityError,
	"scope-tool":       SeverityError,
	"unknown-verdict":  SeverityError,
	"trailing-comment": SeverityError,
	"quorum":           SeverityError,

	// Conditions.
	"condition":        SeverityError,
	"unknown-variable": SeverityError,
	"pattern":          SeverityError,
	"condition-limits": SeverityError,
	"look-alike":       SeverityWarning,
	"loose-pattern":    SeverityWarning,
	"never-holds":      SeverityWarning,
	"always-holds":     SeverityWarning,
	"expired":          SeverityWarning,

	// Rows together.
	"role-cycle":    SeverityError,
	"nobody-holds":  SeverityWarning,
	"unused-role":   SeverityWarning,
	"unused-group":  SeverityWarning,
	"unused-label":  SeverityWarning,
	"wide-grant":    SeverityWarning,
	"cannot-wait":   SeverityWarning,
	"list-waits":    SeverityWarning,
	"never-matches": SeverityWarning,
	"shadowed":      SeverityWarning,
	"redundant":     SeverityWarning,
	"no-grant":      SeverityWarning,

	// Beside the tools there are.
	"unknown-tool":     SeverityWarning,
	"unlabelled":       SeverityWarning,
	"unknown-argument": SeverityWarning,
	"wrong-type":       SeverityWarning,
	"always-restricts": SeverityWarning,
}

// A Finding is something wrong with a policy file. It prints as
//
//	policy.csv:5: error: verdict "Deny" is unknown; did you mean "deny"? [unknown-verdict]
type Finding struct {
	File       string   `json:"file"`
	Line       int      `json:"line,omitempty"` // counted from 1; 0 when it is about the whole file
	Severity   Severity `json:"severity"`
	Code       string   `json:"code"` // which finding this is, for scripts; docs/policy.md lists them
	Text       string   `json:"text"`
	Suggestion string   `json:"suggestion,omitempty"` // what may have been meant
}

func (f Finding) String() string {
	where := f.File
	if f.Line > 0 {
		where = fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	code := ""
	if f.Code != "" {
		code = " [" + f.Code + "]"
	}
	return fmt.Sprintf("%s: %s: %s%s", where, f.Severity, f.what(), code)
}

// A mistake is what is wrong with one cell.
type mistake struct{ code, what, suggestion string }

func (m *mistake) Error() string { return Finding{Text: m.what, Suggestion: m.suggestion}.what() }

func (f Finding) what() string {
	if f.Suggestion == "" {
		return f.Text
	}
	return fmt.Sprintf("%s; did you mean %q?", f.Text, f.Suggestion)
}

// HasErrors reports whether any finding is an error.
func HasErrors(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == SeverityError })
}

// nearest returns the known word that is closest to word, or "" when none is close.
func nearest(word string, known []string) string {
	if word == "" {
		return ""
	}
	best, limit := "", 1+len(word)/3
	for _, k := range known {
		if k == word {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(k), limit); d < limit || d == limit && best == "" {
			best, limit = k, d
		}
	}
	return best
}

// distance counts the edits, swaps of neighbours among them, from a to b; it
// gives up above limit.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// lookAlikes are characters that pass for an ASCII one in an editor.
var lookAlikes = map[rune]rune{
	'‘': '\'', '’': '\'', '“': '"', '”': '"', '′': '\'', '–': '-', '—': '-', '−': '-', '‐': '-', '‑': '-',
	'∗': '*', '＊': '*', '：': ':', '，': ',', '／': '/', '∕': '/', '⁄': '/', '．': '.', '․': '.', '＝': '=', '｜': '|',
	'а': 'a', 'с': 'c', 'ԁ': 'd', 'е': 'e', 'һ': 'h', 'і': 'i', 'ј': 'j', 'ӏ': 'l', 'о': 'o', 'р': 'p', 'ѕ': 's', 'у': 'y', 'х': 'x', 'ѵ': 'v', 'ԝ': 'w',
	'А': 'A', 'В': 'B', 'С': 'C', 'Е': 'E', 'Н': 'H', 'І': 'I', 'К': 'K', 'М': 'M', 'О': 'O', 'Р': 'P', 'Ѕ': 'S', 'Т': 'T', 'Х': 'X',
	'α': 'a', 'ο': 'o', 'ν': 'v', 'ι': 'i', 'ρ': 'p', 'κ': 'k',
}

// plain writes s with every look-alike replaced, or returns "" when that does
// not make it ASCII.
func plain(s string) string {
	out := strings.Map(func(r rune) rune {
		if ascii, ok := lookAlikes[r]; ok {
			return ascii
		}
		return r
	}, s)
	for _, r := range out {
		if r > 127 {
			return ""
		}
	}
	return out
}
