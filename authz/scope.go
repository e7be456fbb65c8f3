package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// A ScopeRow is one row of a task's scope, as JSON carries it. It names neither
// who nor tenant: a scope can only be its task's.
type ScopeRow struct {
	Tool    string `json:"tool"`
	Action  string `json:"action"`
	When    string `json:"when,omitempty"`
	Verdict string `json:"verdict"`
}

// A Scope is the widest reach of a task. It never changes. Its JSON is its rows.
//
// Its rows mean what a policy's mean, except that its tools are named, with or
// without wildcards, and never by a group. A nil, zero or empty Scope reaches
// nothing.
type Scope struct {
	rows  []ScopeRow
	hash  string
	label string // of its task, for rules and reasons
	rules *ruleset
	id    uint64 // tells it, under this label, from every other
}

var scopes atomic.Uint64

// The bounds of a scope, which may come from whoever starts a task.
const (
	maxScopeRows  = 256
	maxScopeBytes = 64 << 10
)

// NewScope checks and compiles rows. Its error names every row that is wrong,
// counted from 1.
func NewScope(rows []ScopeRow) (*Scope, error) {
	if len(rows) > maxScopeRows {
		return nil, fmt.Errorf("a scope has at most %d rows, not %d", maxScopeRows, len(rows))
	}
	s := &Scope{rows: slices.Clone(rows)}
	text, err := canonical(s.rows)
	if err != nil {
		return nil, fmt.Errorf("scope: %w", err)
	}
	if len(text) > maxScopeBytes {
		return nil, fmt.Errorf("a scope has at most %d bytes, not %d", maxScopeBytes, len(text))
	}
	p := &parser{conditions: map[string]*condition{}}
	for i, sr := range s.rows {
		one, err := canonical(sr)
		if err != nil {
			return nil, fmt.Errorf("scope: %w", err)
		}
		for _, cell := range []string{sr.Tool, sr.Action, sr.When, sr.Verdict} {
			p.clean(i+1, cell, false)
		}
		r := &row{line: i + 1, text: string(one), who: "*", tenant: "*", task: "*", tool: sr.Tool, action: sr.Action}
		if p.finish(r, sr.When, sr.Verdict); sr.Tool != "" && !isToolGlob(sr.Tool) {
			p.say(i+1, "scope-tool", "", "tool %q is not server/tool; a scope names no groups", sr.Tool)
		}
		p.rows = append(p.rows, r)
	}
	var wrong []error
	for _, f := range p.report() {
		if f.Severity == SeverityError {
			wrong = append(wrong, fmt.Errorf("row %d: %s", f.Line, f.what()))
		}
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("scope: %w", errors.Join(wrong...))
	}
	sum := sha256.Sum256(text)
	s.hash = "sha256:" + hex.EncodeToString(sum[:])
	s.rules = newRuleset(p.rows, nil, nil)
	s.rules.keeps = scopeKeeps
	s.id = scopes.Add(1)
	return s, nil
}

func canonical(v any) ([]byte, error) {
	text, err := strict.Marshal(v)
	if err != nil {
		return nil, err
	}
	err = (*jsontext.Value)(&text).Canonicalize()
	return text, err
}

// Rows returns a copy of the rows.
func (s *Scope) Rows() []ScopeRow {
	if s == nil {
		return nil
	}
	return slices.Clone(s.rows)
}

// Hash is "sha256:<hex>" of the scope's JSON in RFC 8785 form.
func (s *Scope) Hash() string {
	if s == nil || s.hash == "" {
		sum := sha256.Sum256([]byte("[]"))
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	return s.hash
}

// Named returns the same scope under the name of its task, by which its rules
// and reasons call it: "scope of <label>". It compiles nothing.
func (s *Scope) Named(label string) *Scope {
	if s == nil {
		return nil
	}
	named := *s
	named.label, named.id = label, scopes.Add(1)
	return &named
}

func (s *Scope) file() string {
	if s == nil || s.label == "" {
		return "scope of a task"
	}
	return "scope of " + s.label
}

// MarshalJSON writes the rows.
func (s *Scope) MarshalJSON() ([]byte, error) {
	if s == nil {
		return []byte("null"), nil
	}
	if len(s.rows) == 0 {
		return []byte("[]"), nil
	}
	return json.Marshal(s.rows)
}

// UnmarshalJSON reads rows as [NewScope] takes them. Unknown and repeated names
// are errors, so that nothing which looks like a limit is ignored.
func (s *Scope) UnmarshalJSON(text []byte) error {
	if len(text) > 2*maxScopeBytes {
		return fmt.Errorf("scope: larger than %d bytes", maxScopeBytes)
	}
	if jsontext.Value(text).Kind() != '[' {
		return errors.New("scope: want a list of rows")
	}
	var rows []ScopeRow
	if err := strict.Unmarshal(text, &rows, strict.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("scope: %w", err)
	}
	scope, err := NewScope(rows)
	if err != nil {
		return err
	}
	*s = *scope
	return nil
}
