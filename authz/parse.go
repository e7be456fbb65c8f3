package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of a policy file.
const (
	maxFile     = 32 << 20
	maxLine     = 4096
	maxFindings = 200
)

// The columns of a row, after its first word.
var columns = map[string][]string{
	"p":  {"who", "tenant", "task", "tool", "action", "when", "verdict"},
	"g":  {"workload", "role", "tenant"},
	"g2": {"tool", "group"},
}

// Parse reads a policy file. file is its name in findings and rules; text is
// what it holds. Findings stand in the order of their lines. There is a Policy
// only when none of them is an error, so a file is never half loaded.
//
// Casbin's own loader is not used: it knows no line numbers, drops what it does
// not understand, and takes an unknown verdict for no row at all.
func Parse(file string, text []byte) (*Policy, []Finding) {
	p := &parser{file: file, conditions: map[string]*condition{}, sense: &sense{maxEffort}}
	p.read(string(text))
	p.lint()
	findings := p.report()
	if HasErrors(findings) {
		return nil, findings
	}
	sum := sha256.Sum256(text)
	return &Policy{
		rules:    newRuleset(p.rows, p.links, p.members),
		file:     file,
		revision: "sha256:" + hex.EncodeToString(sum[:]),
		rows:     len(p.rows) + len(p.links) + len(p.members),
		warnings: findings,
		links:    p.links,
		replaces: p.replaces,
	}, findings
}

// A link is a g row: whoever the workload glob covers, or holds the role in its
// place, holds role in the tenants that tenant covers.
type link struct {
	line                   int
	workload, role, tenant string
}

// A member is a g2 row: the tools that tool covers are in group.
type member struct {
	line        int
	tool, group string
}

// parser gathers rows and findings. It keeps links and members of lines that
// have an error elsewhere, so that one mistake does not look like ten.
type parser struct {
	file       string
	findings   []Finding
	rows       []*row
	links      []link
	members    []member
	conditions map[string]*condition // by text, so that each is compiled once
	sense      *sense
	replaces   []replaced
	compared   int // names, in search of what was meant
}

// say adds a finding; line 0 is the whole file.
func (p *parser) say(line int, code, suggestion, format string, a ...any) {
	severity, ok := severities[code]
	if !ok {
		severity = SeverityError // a code without a row in the table refuses, too
	}
	p.findings = append(p.findings, Finding{p.file, line, severity, code, fmt.Sprintf(format, a...), suggestion})
}

// report sorts the findings and cuts a flood of them short. Errors go first
// into what is kept, so that cutting never makes a bad file look good.
func (p *parser) report() []Finding {
	slices.SortStableFunc(p.findings, func(a, b Finding) int {
		if a.Severity != b.Severity {
			return strings.Compare(string(a.Severity), string(b.Severity))
		}
		return a.Line - b.Line
	})
	kept := p.findings
	if len(kept) > maxFindings {
		more := len(kept) - maxFindings
		severity := kept[maxFindings].Severity
		kept = append(slices.Clip(kept[:maxFindings]), Finding{File: p.file, Severity: severity, Code: "more", Text: fmt.Sprintf("and %d more", more)})
	}
	slices.SortStableFunc(kept, func(a, b Finding) int { return a.Line - b.Line })
	return kept
}

func (p *parser) read(text string) {
	switch {
	case len(text) > maxFile:
		p.say(0, "too-large", "", "is larger than %d MiB", maxFile>>20)
		return
	case strings.HasPrefix(text, "\ufeff"):
		p.say(1, "byte-order-mark", "", "the file begins with a byte order mark; save it as plain UTF-8")
		text = strings.TrimPrefix(text, "\ufeff")
	}
	seen := map[string]int{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		trimmed := strings.TrimSpace(line)
		if m := replacesLine.FindStringSubmatch(trimmed); m != nil {
			p.replaces = append(p.replaces, replaced{number, m[1]})
		}
		if !p.clean(number, line, strings.HasPrefix(trimmed, "#")) || trimmed == "" || trimmed[0] == '#' {
			continue
		}
		cells, wrong := split(line)
		if wrong != "" {
			p.say(number, "quoting", "", "%s", wrong)
			continue
		}
		want, ok := columns[cells[0]]
		if !ok {
			p.say(number, "unknown-section", nearest(cells[0], []string{"p", "g", "g2"}), "the line starts with %q, want p, g or g2", cells[0])
			continue
		}
		kind, cells := cells[0], cells[1:]
		if len(cells) != len(want) {
			hint := ""
			if kind == "p" && len(cells) > len(want) {
				hint = "; a condition that contains a comma must stand in double quotes"
			}
			p.say(number, "columns", "", "%d columns, want %d: %s%s", len(cells), len(want), strings.Join(want, ", "), hint)
			continue
		}
		key := kind + "\x00" + strings.Join(cells, "\x00")
		if first, ok := seen[key]; ok {
			p.say(number, "duplicate", "", "same as line %d", first)
			continue
		}
		seen[key] = number
		switch kind {
		case "p":
			if r, ok := p.row(number, trimmed, cells); ok {
				p.rows = append(p.rows, r)
			}
		case "g":
			p.link(number, cells)
		case "g2":
			p.member(number, cells)
		}
	}
	if len(p.rows) == 0 && !HasErrors(p.findings) {
		p.say(0, "no-rows", "", "no p row; a policy that grants nothing must still say so, for example: p, *, *, *, *, *, , deny")
	}
}

// A replaced is a comment that names the revision of the file that this one takes
// the place of, though it has lost half of its rows.
type replaced struct {
	line     int
	revision string // or how it begins
}

var replacesLine = regexp.MustCompile(`^# *toolbroker: replaces (sha256:[0-9a-f]{12,64})$`)

// shrunk is the finding that p has lost half of the rows of the policy before, or
// nil: an error, unless p says that it is meant to.
func (p *Policy) shrunk(before *Policy) *Finding {
	if before == nil || p.rows*2 > before.rows {
		return nil
	}
	for _, r := range p.replaces {
		if strings.HasPrefix(before.revision, r.revision) {
			return &Finding{File: p.file, Line: r.line, Severity: severities["shrunk-meant"], Code: "shrunk-meant",
				Text: fmt.Sprintf("the file has %d rows, the one before has %d, and this line says that it is meant", p.rows, before.rows)}
		}
	}
	return &Finding{File: p.file, Severity: severities["shrunk"], Code: "shrunk",
		Text: fmt.Sprintf("the file has %d rows, the one before has %d; is it whole? Where it is meant, the line \"# toolbroker: replaces %.23s\" in it says so", p.rows, before.rows, before.revision)}
}

// clean reports whether a line holds nothing that an editor does not show.
func (p *parser) clean(number int, line string, comment bool) bool {
	if len(line) > maxLine {
		p.say(number, "line-too-long", "", "the line is longer than %d bytes", maxLine)
		return false
	}
	if !utf8.ValidString(line) {
		p.say(number, "not-utf8", "", "the line is not UTF-8")
		return false
	}
	for _, r := range line {
		switch {
		case r == '\t' && comment:
		case r == '\t':
			p.say(number, "tab", "", "the line has a tab; write spaces")
			return false
		case r != ' ' && !unicode.IsPrint(r):
			p.say(number, "invisible", "", "the line has the invisible character U+%04X", r)
			return false
		}
	}
	return true
}

// split cuts a line into cells. A cell in double quotes may hold commas, and a
// double quote written twice; what stands around cells is spaces.
func split(line string) (cells []string, wrong string) {
	for rest, more := line, true; more; {
		rest = strings.TrimLeft(rest, " ")
		if !strings.HasPrefix(rest, `"`) {
			var cell string
			cell, rest, more = strings.Cut(rest, ",")
			cells = append(cells, strings.TrimRight(cell, " "))
			continue
		}
		var cell strings.Builder
		for rest = rest[1:]; ; {
			text, after, closed := strings.Cut(rest, `"`)
			if !closed {
				return nil, "a double quote is not closed on its line"
			}
			cell.WriteString(text)
			if rest = after; !strings.HasPrefix(rest, `"`) {
				break
			}
			cell.WriteByte('"')
			rest = rest[1:]
		}
		cells = append(cells, cell.String())
		rest = strings.TrimLeft(rest, " ")
		if more = rest != ""; more && rest[0] != ',' {
			return nil, "text follows a closing double quote"
		}
		rest = strings.TrimPrefix(rest, ",")
	}
	return cells, ""
}

// name checks one cell that names something: printable ASCII, no spaces, and no
// sign that a reader could take for another language's wildcard.
func (p *parser) name(line int, column, cell string) bool {
	switch {
	case cell == "":
		p.say(line, "empty-cell", "", "column %s is empty; write * for any", column)
	case len(cell) > maxName:
		p.say(line, "cell-too-long", "", "column %s is longer than %d bytes", column, maxName)
	case strings.IndexFunc(cell, func(r rune) bool { return r > 127 }) >= 0:
		at := strings.IndexFunc(cell, func(r rune) bool { return r > 127 })
		r, _ := utf8.DecodeRuneInString(cell[at:])
		p.say(line, "not-ascii", plain(cell), "column %s has the character %q (U+%04X), which is not ASCII", column, r, r)
	case strings.ContainsAny(cell, " \"'`\\,;"):
		p.say(line, "cell-characters", "", "column %s: %q holds a space, a quote, a backslash, a comma or a semicolon", column, cell)
	case strings.Contains(cell, "***"):
		p.say(line, "three-stars", strings.ReplaceAll(cell, "***", "**"), "column %s: %q has three stars in a row", column, cell)
	default:
		if strings.ContainsAny(cell, "?[]{}^$") {
			p.say(line, "foreign-wildcard", "", "column %s: in %q only * and ** are wildcards; other signs stand for themselves", column, cell)
		}
		return true
	}
	return false
}

func (p *parser) row(line int, text string, cells []string) (*row, bool) {
	r := &row{line: line, text: text, who: cells[0], tenant: cells[1], task: cells[2], tool: cells[3], action: cells[4]}
	ok := p.name(line, "tenant", r.tenant)
	ok = p.name(line, "task", r.task) && ok
	ok = p.who(line, r.who) && ok
	return r, p.finish(r, cells[5], cells[6]) && ok
}

// finish reads the columns that a policy's row and a scope's have in common.
func (p *parser) finish(r *row, when, verdict string) bool {
	ok := p.name(r.line, "tool", r.tool)
	ok = p.action(r.line, r.action) && ok
	if when != "" {
		c, err := p.condition(when)
		if err != nil {
			p.say(r.line, err.code, err.suggestion, "%s", err.what)
			ok = false
		}
		r.when = c
		for _, ch := range when {
			if ascii, found := lookAlikes[ch]; found && err == nil {
				p.say(r.line, "look-alike", "", "condition has %q (U+%04X), which looks like %q", ch, ch, ascii)
				break
			}
		}
	}
	v, wrong := parseVerdict(verdict)
	if wrong != nil {
		p.say(r.line, wrong.code, wrong.suggestion, "%s", wrong.what)
		return false
	}
	r.verdict = v
	return ok
}

func (p *parser) condition(text string) (*condition, *mistake) {
	if c, ok := p.conditions[text]; ok {
		return c, nil
	}
	c, err := parseCondition(text)
	if err != nil {
		return nil, err.(*mistake)
	}
	p.conditions[text] = c
	return c, nil
}

func (p *parser) who(line int, who string) bool {
	if !p.name(line, "who", who) {
		return false
	}
	switch {
	case strings.HasPrefix(who, rolePrefix):
		return p.role(line, "who", who)
	case strings.HasPrefix(who, "group:"):
		p.say(line, "operators-group", rolePrefix+strings.TrimPrefix(who, "group:"), "column who: group: names operators, not workloads")
		return false
	case strings.HasPrefix(strings.ToLower(who), rolePrefix):
		p.say(line, "not-a-role", strings.ToLower(who), "column who: %q is no role; role: is written in small letters", who)
		return false
	}
	return true
}

func (p *parser) role(line int, column, role string) bool {
	if roleGrammar.MatchString(role) {
		return true
	}
	suggestion := strings.ToLower(role)
	if !strings.HasPrefix(suggestion, rolePrefix) {
		suggestion = rolePrefix + suggestion
	}
	if !roleGrammar.MatchString(suggestion) {
		suggestion = ""
	}
	p.say(line, "not-a-role", suggestion, "column %s: %q is no role; a role is role:NAME, of small letters, digits, '.', '_' and '-', without wildcards", column, role)
	return false
}

func (p *parser) action(line int, action string) bool {
	switch {
	case action == "":
		p.say(line, "empty-cell", "", "column action is empty; write * for any")
	case action != "*" && !slices.Contains(actions, action):
		p.say(line, "unknown-action", nearest(action, actions), "action %q is unknown; want * or one of %s", action, strings.Join(actions, ", "))
	default:
		return true
	}
	return false
}

func (p *parser) link(line int, cells []string) {
	l := link{line, cells[0], cells[1], cells[2]}
	if p.name(line, "workload", l.workload) {
		switch {
		case strings.HasPrefix(l.workload, rolePrefix):
			p.role(line, "workload", l.workload)
		case strings.HasPrefix(l.workload, "group:"):
			p.say(line, "operators-group", "", "column workload: group: names operators, not workloads")
		}
	}
	p.name(line, "tenant", l.tenant)
	if p.name(line, "role", l.role) && p.role(line, "role", l.role) {
		p.links = append(p.links, l)
	}
}

func (p *parser) member(line int, cells []string) {
	m := member{line, cells[0], cells[1]}
	if p.name(line, "tool", m.tool) && !isToolGlob(m.tool) {
		p.say(line, "nested-group", "", "column tool: %q is not server/tool; groups do not nest", m.tool)
	}
	if !p.name(line, "group", m.group) {
		return
	}
	if !groupGrammar.MatchString(m.group) || strings.HasPrefix(m.group, taskPrefix) || strings.HasPrefix(m.group, rolePrefix) || strings.HasPrefix(m.group, "group:") {
		p.say(line, "group-name", "", "column group: %q cannot name a tool group; use small letters, digits and ':._-', and no task:, role: or group:", m.group)
		return
	}
	p.members = append(p.members, m)
}

// isToolGlob reports whether a cell can cover a server/tool or a task:<kind> by
// itself, rather than being the name of a group.
func isToolGlob(cell string) bool {
	return cell == "*" || strings.Contains(cell, "**") || strings.Contains(cell, "/") || strings.HasPrefix(cell, taskPrefix)
}
