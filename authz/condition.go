package authz

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The bounds of one condition. They keep a row's cost small whoever wrote it.
const (
	maxCondition = 512  // bytes
	maxDepth     = 16   // parentheses and negations inside one another
	maxProgram   = 1000 // instructions of one regular expression
	maxSubject   = 1 << 16
)

// A condition is a compiled `when`. It never changes.
//
// The language is small on purpose: comparisons of args.NAME, date, hour and
// weekday with literals, joined by &&, || and !. It has no functions, no arithmetic and
// no way to call into Go, and it is typed: where a general evaluator would find
// ["prod"] different from 'prod' and go on, this one says that it cannot tell,
// and a grant does not match. Nothing out of a request is ever parsed as code;
// a regular expression is always the policy's own.
type condition struct {
	text  string
	vars  []string // what it reads, each once, as written
	args  bool     // it reads arguments
	loose []string // patterns tied to neither end of the value
	holds func(*input) (bool, error)
	shape *shape // what it is made of, for those who look at it rather than evaluate it
}

// A shape is a term, or shapes joined by && or ||, or one under !.
type shape struct {
	op    string // && || ! or empty
	of    []*shape
	holds test
	*term
}

// A term is one test of one value.
type term struct {
	name  string  // the variable
	op    string  // == != < <= > >= =~ !~, "in" for a list of literals, "has" for a literal in the variable, "is" for a flag
	among []value // the literals that it is held against
	with  string  // the other variable, where there is one
	re    *regexp.Regexp
	text  string // as written
	holds test
}

// truth is what a condition came to.
type truth uint8

const (
	no truth = iota
	yes
	unknown // it could not be evaluated
)

func (c *condition) eval(in *input) truth {
	ok, err := c.holds(in)
	switch {
	case err != nil:
		return unknown
	case ok:
		return yes
	}
	return no
}

// parseCondition compiles text. Its error is a *mistake.
func parseCondition(text string) (c *condition, err error) {
	p := &conditionParser{text: text, cond: &condition{text: text}}
	defer func() {
		if r := recover(); r != nil {
			stop, ok := r.(*mistake)
			if !ok {
				panic(r)
			}
			c, err = nil, stop
		}
	}()
	if len(text) > maxCondition {
		p.failAs("condition-limits", "", "is longer than %d bytes", maxCondition)
	}
	p.next()
	p.cond.holds = p.or()
	if p.tok.kind != tokEnd {
		p.unexpected()
	}
	p.cond.shape = p.shapes[0]
	return p.cond, nil
}

type tokenKind uint8

const (
	tokEnd tokenKind = iota
	tokName
	tokString
	tokNumber
	tokOp
)

type token struct {
	kind tokenKind
	text string // a name or operator as written; a string's content
}

// conditionParser reads one token ahead and fails by panicking with a *mistake.
type conditionParser struct {
	text  string
	pos   int
	tok   token
	from  int // where tok begins
	end   int // where the token before it ends
	depth int
	cond  *condition
	// What has been read and not yet joined, as a postfix notation would have it.
	shapes []*shape
}

func (p *conditionParser) fail(suggestion, format string, a ...any) {
	p.failAs("condition", suggestion, format, a...)
}

func (p *conditionParser) failAs(code, suggestion, format string, a ...any) {
	panic(&mistake{code, "condition " + fmt.Sprintf(format, a...), suggestion})
}

// fold joins the last shapes, one under ! and else two, under the test that does.
func (p *conditionParser) fold(op string, t test) test {
	n := 2
	if op == "!" {
		n = 1
	}
	at := len(p.shapes) - n
	p.shapes = append(p.shapes[:at], &shape{op: op, of: slices.Clone(p.shapes[at:]), holds: t})
	return t
}

// leaf notes a term whose text began at from, and returns its test.
func (p *conditionParser) leaf(from int, t term) test {
	t.text = p.text[from:p.end]
	p.shapes = append(p.shapes, &shape{holds: t.holds, term: &t})
	return t.holds
}

// otherWords are other languages' words for ours.
var otherWords = map[string]string{
	"and": "&&", "AND": "&&", "&": "&&", "or": "||", "OR": "||", "|": "||", "not": "!", "NOT": "!",
	"=": "==", "===": "==", "<>": "!=", "~": "=~", "matches": "=~", "IN": "in",
	"True": "true", "False": "false", "nil": "null", "None": "null",
}

func (p *conditionParser) unexpected() {
	switch {
	case p.tok.kind == tokEnd:
		p.fail("", "ends too early")
	case p.tok.kind == tokString:
		p.fail("", "has the string '%s' where none belongs", p.tok.text)
	case len(p.tok.text) == 1 && strings.Contains("+-*/%^", p.tok.text):
		p.fail("", "cannot calculate (%q)", p.tok.text)
	}
	p.fail(otherWords[p.tok.text], "has %q where it does not belong", p.tok.text)
}

func isNameByte(c byte) bool {
	return c == '_' || c == '-' || c == '.' || '0' <= c && c <= '9' || isLetter(c)
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// next reads a token. A string ends at its own kind of quote and knows no
// escapes, so a regular expression stands as it is written.
func (p *conditionParser) next() {
	p.end = p.pos
	for p.pos < len(p.text) && p.text[p.pos] == ' ' {
		p.pos++
	}
	p.from = p.pos
	rest := p.text[p.pos:]
	if rest == "" {
		p.tok = token{}
		return
	}
	take := func(kind tokenKind, n int) {
		p.tok = token{kind, rest[:n]}
		p.pos += n
	}
	run := func(ok func(byte) bool) (n int) {
		for n = 1; n < len(rest) && ok(rest[n]); n++ {
		}
		return n
	}
	switch c := rest[0]; {
	case c == '\'' || c == '"':
		end := strings.IndexByte(rest[1:], c)
		if end < 0 {
			p.fail("", "has a string that does not end")
		}
		take(tokString, end+2)
		p.tok.text = rest[1 : end+1]
	case isLetter(c) || c == '_':
		take(tokName, run(isNameByte))
	case '0' <= c && c <= '9', c == '-' && len(rest) > 1 && '0' <= rest[1] && rest[1] <= '9':
		take(tokNumber, run(isNameByte))
	case strings.IndexByte("(),", c) >= 0:
		take(tokOp, 1)
	case strings.IndexByte("=!<>&|~+-*/%^?:", c) >= 0:
		n := run(func(c byte) bool { return strings.IndexByte("=&|~>", c) >= 0 })
		if c == '!' && !strings.HasPrefix(rest, "!=") && !strings.HasPrefix(rest, "!~") {
			n = 1
		}
		take(tokOp, n)
	default:
		r := []rune(rest)[0]
		if ascii, ok := lookAlikes[r]; ok {
			p.fail("", "has %q (U+%04X), which is not %q", r, r, ascii)
		}
		p.fail("", "has %q where it does not belong", r)
	}
}

func (p *conditionParser) op(text string) bool {
	if p.tok.kind == tokOp && p.tok.text == text {
		p.next()
		return true
	}
	return false
}

type test = func(*input) (bool, error)

// or and and evaluate from left to right and stop as soon as they know.
func (p *conditionParser) or() test {
	left := p.and()
	for p.op("||") {
		l, r := left, p.and()
		left = p.fold("||", func(in *input) (bool, error) {
			if ok, err := l(in); ok || err != nil {
				return ok, err
			}
			return r(in)
		})
	}
	return left
}

func (p *conditionParser) and() test {
	left := p.not()
	for p.op("&&") {
		l, r := left, p.not()
		left = p.fold("&&", func(in *input) (bool, error) {
			if ok, err := l(in); !ok || err != nil {
				return false, err
			}
			return r(in)
		})
	}
	return left
}

func (p *conditionParser) not() test {
	if p.depth++; p.depth > maxDepth {
		p.failAs("condition-limits", "", "is nested deeper than %d", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.op("!"):
		if p.tok.kind == tokName {
			from := p.from
			v := p.variable()
			if p.tok.kind == tokOp && p.tok.text != ")" && p.tok.text != "&&" && p.tok.text != "||" || p.tok.kind == tokName {
				p.fail("!("+v.name+" ...)", "does not say what ! negates")
			}
			return p.negate(p.flag(from, v))
		}
		if p.tok.kind != tokOp {
			p.unexpected()
		}
		return p.negate(p.not())
	case p.op("("):
		inner := p.or()
		if !p.op(")") {
			p.unexpected()
		}
		return inner
	}
	return p.comparison()
}

func (p *conditionParser) negate(t test) test {
	return p.fold("!", func(in *input) (bool, error) {
		ok, err := t(in)
		return !ok && err == nil, err
	})
}

// An operand is a variable, when it has a name, or a literal.
type operand struct {
	name string
	get  func(*input) (value, error)
	lit  value
}

func (o operand) value(in *input) (value, error) {
	if o.get == nil {
		return o.lit, nil
	}
	return o.get(in)
}

// clocks are the variables that are read from a request's time, and the bound
// of what they can be.
var clocks = map[string]struct {
	limit float64
	read  func(time.Time) int
	show  func(int) string
}{
	"hour":    {24, func(t time.Time) int { return t.UTC().Hour() }, strconv.Itoa},
	"weekday": {6, func(t time.Time) int { return int(t.UTC().Weekday()) }, func(n int) string { return days[n] }},
	// Days since 1970, and written as '2026-12-31'.
	"date": {lastDay, dayOf, func(n int) string { return "'" + time.Unix(int64(n)*86400, 0).UTC().Format(time.DateOnly) + "'" }},
}

// days may be written where weekday is compared.
var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

const lastDay = 2932896 // 9999-12-31

func dayOf(t time.Time) int { return int(t.Unix() / 86400) }

func (p *conditionParser) variable() operand {
	name := p.tok.text
	v := operand{name: name}
	if path, ok := strings.CutPrefix(name, "args."); ok {
		parts := strings.Split(path, ".")
		if slices.Contains(parts, "") {
			p.fail("", "has %q, which names no argument", name)
		}
		p.cond.args = true
		v.get = func(in *input) (value, error) { return in.arg(parts) }
	} else if clock, ok := clocks[name]; ok {
		v.get = func(in *input) (value, error) {
			if in.at.IsZero() {
				return value{}, errors.New("the time is not known")
			}
			return value{kind: numberKind, number: float64(clock.read(in.at))}, nil
		}
	} else {
		p.next()
		switch {
		case p.tok.kind == tokOp && p.tok.text == "(":
			p.fail("", "calls %q; there are no functions", name)
		case name == "args":
			p.fail("", "has args without the name of an argument")
		}
		instead := otherWords[name]
		if root, path, ok := strings.Cut(name, "."); ok && nearest(root, []string{"args"}) != "" {
			instead = "args." + path
		} else if instead == "" {
			instead = nearest(name, []string{"hour", "weekday", "date", "true", "false", "null"})
		}
		p.failAs("unknown-variable", instead, "has %q; known are args.NAME, date, hour and weekday", name)
	}
	if !slices.Contains(p.cond.vars, name) {
		p.cond.vars = append(p.cond.vars, name)
	}
	p.next()
	return v
}

func (p *conditionParser) literal() operand {
	tok := p.tok
	var lit value
	switch {
	case tok.kind == tokString:
		lit = value{kind: stringKind, text: tok.text}
	case tok.kind == tokNumber:
		n, err := parseNumber(tok.text)
		if err != nil || !jsontext.Value(tok.text).IsValid() {
			p.fail("", "has %q, which is no number that can be read exactly", tok.text)
		}
		lit = value{kind: numberKind, number: n}
	case tok.text == "true" || tok.text == "false":
		lit = value{kind: boolKind, truth: tok.text == "true"}
	case tok.text == "null":
		lit = value{kind: nullKind}
	default:
		p.unexpected()
	}
	p.next()
	return operand{lit: lit}
}

func (p *conditionParser) operand() operand {
	switch p.tok.text {
	case "true", "false", "null":
		return p.literal()
	}
	if p.tok.kind == tokName {
		return p.variable()
	}
	return p.literal()
}

// flag is a variable that stands alone: an argument that is true or false.
func (p *conditionParser) flag(from int, v operand) test {
	if _, clock := clocks[v.name]; clock || v.get == nil {
		p.fail("", "compares nothing")
	}
	return p.leaf(from, term{name: v.name, op: "is", holds: func(in *input) (bool, error) {
		got, err := v.get(in)
		if err == nil && got.kind != boolKind {
			err = fmt.Errorf("%s is %s, not true or false", v.name, got.kind)
		}
		return got.truth, err
	}})
}

func (p *conditionParser) comparison() test {
	from := p.from
	left := p.operand()
	op := p.tok.text
	switch {
	case p.tok.kind == tokName && op == "in":
		p.next()
		return p.in(from, left)
	case p.tok.kind != tokOp || op == ")" || op == "&&" || op == "||" || op == ",":
		if left.get == nil {
			p.fail("", "compares nothing")
		}
		return p.flag(from, left)
	}
	switch op {
	case "=~", "!~":
		p.next()
		return p.match(from, left, op == "!~")
	case "==", "!=", "<", "<=", ">", ">=":
		p.next()
	default:
		p.unexpected()
	}
	right := p.operand()
	p.comparable(op, left, &right)
	p.comparable(op, right, &left)
	seen := term{name: left.name, op: op, among: []value{right.lit}, with: right.name}
	switch {
	case left.get == nil:
		seen = term{name: right.name, op: turned(op), among: []value{left.lit}}
	case right.get != nil:
		seen.among = nil
	}
	seen.holds = func(in *input) (bool, error) {
		l, err := left.value(in)
		if err != nil {
			return false, err
		}
		r, err := right.value(in)
		if err != nil {
			return false, err
		}
		return compare(op, l, r, left.name, right.name)
	}
	return p.leaf(from, seen)
}

// turned is the comparison that says the same with its sides swapped.
func turned(op string) string {
	switch op[0] {
	case '<':
		return ">" + op[1:]
	case '>':
		return "<" + op[1:]
	}
	return op
}

// comparable refuses a comparison that could never be evaluated, and turns a
// day's name into its number.
func (p *conditionParser) comparable(op string, v operand, lit *operand) {
	if lit.get != nil {
		return
	}
	if v.get == nil {
		p.fail("", "compares nothing")
	}
	if ordered := op != "==" && op != "!="; ordered && lit.lit.kind != numberKind && lit.lit.kind != stringKind {
		p.fail("", "orders %s (%s)", lit.lit.kind, op)
	}
	clock, ok := clocks[v.name]
	switch {
	case !ok:
		return
	case v.name == "date":
		day, err := time.Parse(time.DateOnly, lit.lit.text)
		if lit.lit.kind != stringKind || err != nil || day.Year() < 1970 {
			p.fail("", "compares date with what is no day; write it as '2026-12-31'")
		}
		lit.lit = value{kind: numberKind, number: float64(dayOf(day))}
		return
	}
	if lit.lit.kind == stringKind && v.name == "weekday" {
		day := slices.Index(days, lit.lit.text)
		if day < 0 {
			short := strings.ToLower(lit.lit.text)
			short = short[:min(3, len(short))]
			if !slices.Contains(days, short) {
				short = ""
			}
			p.fail(short, "has the day '%s'; days are sun, mon, tue, wed, thu, fri, sat or 0 to 6", lit.lit.text)
		}
		lit.lit = value{kind: numberKind, number: float64(day)}
	}
	if n := lit.lit; n.kind != numberKind || n.number < 0 || n.number > clock.limit {
		p.fail("", "compares %s with what it never is (it is 0 to %d)", v.name, map[string]int{"hour": 23, "weekday": 6}[v.name])
	}
}

func (p *conditionParser) in(from int, left operand) test {
	if p.tok.kind == tokName {
		list := p.variable()
		if left.get != nil || left.lit.kind == nullKind {
			p.fail("", "needs a literal on one side of in")
		}
		if _, clock := clocks[list.name]; clock {
			p.fail("", "looks into %s, which is a number", list.name)
		}
		return p.leaf(from, term{name: list.name, op: "has", among: []value{left.lit}, holds: func(in *input) (bool, error) {
			got, err := list.get(in)
			if err != nil {
				return false, err
			}
			return got.contains(left.lit, list.name)
		}})
	}
	if !p.op("(") {
		p.unexpected()
	}
	if left.get == nil {
		p.fail("", "compares nothing")
	}
	var among []value
	for {
		lit := p.literal()
		p.comparable("==", left, &lit)
		if lit.lit.kind == nullKind || len(among) > 0 && among[0].kind != lit.lit.kind {
			p.fail("", "has a list of more than one type")
		}
		among = append(among, lit.lit)
		if !p.op(",") {
			break
		}
	}
	if !p.op(")") {
		p.unexpected()
	}
	return p.leaf(from, term{name: left.name, op: "in", among: among, holds: func(in *input) (bool, error) {
		got, err := left.get(in)
		if err != nil {
			return false, err
		}
		for _, v := range among {
			if ok, err := compare("==", got, v, left.name, ""); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	}})
}

func (p *conditionParser) match(from int, left operand, not bool) test {
	if _, clock := clocks[left.name]; clock || left.get == nil {
		p.fail("", "can match only an argument against a pattern")
	}
	if p.tok.kind != tokString {
		p.fail("", "needs its pattern as a string")
	}
	pattern := p.tok.text
	p.next()
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		p.failAs("pattern", "", "has the pattern '%s': %v", pattern, err)
	}
	if prog, err := syntax.Compile(parsed.Simplify()); err != nil || len(prog.Inst) > maxProgram {
		p.failAs("pattern", "", "has a pattern that is too large")
	}
	re := regexp.MustCompile(pattern)
	if !not && !anchored(parsed) {
		p.cond.loose = append(p.cond.loose, pattern)
	}
	seen := term{name: left.name, op: "=~", re: re}
	if not {
		seen.op = "!~"
	}
	seen.holds = func(in *input) (bool, error) {
		got, err := left.get(in)
		switch {
		case err != nil:
			return false, err
		case got.kind != stringKind:
			return false, fmt.Errorf("%s is %s, not a string", left.name, got.kind)
		case len(got.text) > maxSubject:
			return false, fmt.Errorf("%s is too long to match", left.name)
		}
		return re.MatchString(got.text) != not, nil
	}
	return p.leaf(from, seen)
}

// anchored reports whether every match of re is tied to an end of the value.
func anchored(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpBeginText, syntax.OpEndText:
		return true
	case syntax.OpCapture:
		return anchored(re.Sub[0])
	case syntax.OpConcat:
		return anchored(re.Sub[0]) || anchored(re.Sub[len(re.Sub)-1])
	case syntax.OpAlternate:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !anchored(sub) })
	}
	return false
}
