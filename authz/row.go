package authz

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A row is one p row of a policy file or one row of a scope, understood.
type row struct {
	line    int
	text    string // as written
	who     string
	tenant  string
	task    string
	tool    string
	action  string
	when    *condition // nil: always
	verdict verdict
}

func (r *row) rule(file string) Rule { return Rule{File: file, Line: r.line, Text: r.text} }

// A verdict is the last column. Its words, and no others, are policy.
type verdict struct {
	word  string // allow, approve, require or deny
	n     int    // of an approve or a require
	group string
}

func (v verdict) grants() bool   { return v.word == "allow" || v.word == "approve" }
func (v verdict) requires() bool { return v.word == "approve" || v.word == "require" }

// String is the verdict as a row has it.
func (v verdict) String() string {
	if v.group == "" {
		return v.word
	}
	return fmt.Sprintf("%s %d of group:%s", v.word, v.n, v.group)
}

// asks says in words whom v asks.
func (v verdict) asks() string {
	switch {
	case v.group != "":
		return fmt.Sprintf("%d of group:%s", v.n, v.group)
	case v.n == 1:
		return "an operator"
	}
	return fmt.Sprintf("%d operators", v.n)
}

const maxQuorum = 16

var (
	verdictGrammar = regexp.MustCompile(`^(approve|require) ([1-9][0-9]?) of group:([a-z0-9-]{1,64})$`)
	looseGrammar   = regexp.MustCompile(`(?i)^\s*(approve|require)\s+([1-9][0-9]?)\s+(?:of\s+)?(?:group:|role:)?([a-z0-9-]{1,64})\s*$`)
	verdictWords   = []string{"allow", "approve", "require", "deny"}
)

const verdictWant = "want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'"

// parseVerdict reads a verdict, or says what is wrong with it.
func parseVerdict(text string) (v verdict, wrong *mistake) {
	switch text {
	case "allow", "deny":
		return verdict{word: text}, nil
	case "approve", "require":
		return verdict{word: text, n: 1}, nil
	case "confirm":
		return v, &mistake{"unknown-verdict", `verdict "confirm" is not in this version yet; a "require" asks an operator instead`, ""}
	case "":
		return v, &mistake{"empty-cell", "column verdict is empty; " + verdictWant, ""}
	}
	if m := verdictGrammar.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[2])
		if n > maxQuorum {
			return v, &mistake{"quorum", fmt.Sprintf("verdict %q asks for more than %d operators", text, maxQuorum), ""}
		}
		return verdict{word: m[1], n: n, group: m[3]}, nil
	}
	if before, _, ok := strings.Cut(text, "#"); ok {
		return v, &mistake{"trailing-comment", fmt.Sprintf("verdict %q: a comment needs a line of its own", text), strings.TrimSpace(before)}
	}
	suggestion := nearest(text, verdictWords)
	if m := looseGrammar.FindStringSubmatch(text); m != nil {
		suggestion = strings.ToLower(fmt.Sprintf("%s %s of group:%s", m[1], m[2], m[3]))
	}
	return v, &mistake{"unknown-verdict", fmt.Sprintf("verdict %q is unknown; %s", text, verdictWant), suggestion}
}

// actions are the words of the action column, beside `*`.
var actions = []string{string(List), string(Call), string(Read), string(Get), string(Complete), string(Subscribe),
	string(Elicit), string(Sample), string(Roots), string(Start), string(Delegate), string(Escalate)}

// labels are the tool groups that say what a tool can do to data. A tool in none
// of them counts as all of them wherever a row restricts.
var labels = []string{"reads:private", "reads:untrusted", "sends:external", "changes:permissions", "destructive"}

const (
	rolePrefix = "role:"
	taskPrefix = "task:" // of the tool of a start or a delegation
)

var (
	roleGrammar  = regexp.MustCompile(`^role:[a-z0-9][a-z0-9._-]{0,63}$`)
	groupGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9:._-]{0,63}$`)
)

const maxName = 256 // bytes of one name or glob
