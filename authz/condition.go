package authz

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
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
// The language is small on purpose: comparisons of args.NAME, hour and weekday
// with literals, joined by &&, || and !. It has no functions, no arithmetic and
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

// A conditionError is what is wrong with a condition's text.
type conditionError struct{ what, suggestion string }

func (e *conditionError) Error() string {
	return Finding{Text: e.what, Suggestion: e.suggestion}.what()
}

// parseCondition compiles text. Its error is a *conditionError.
func parseCondition(text string) (c *condition, err error) {
	p := &conditionParser{text: text, cond: &condition{text: text}}
	defer func() {
		if r := recover(); r != nil {
			stop, ok := r.(*conditionError)
			if !ok {
				panic(r)
			}
			c, err = nil, stop
		}
	}()
	if len(text) > maxCondition {
		p.fail("", "is longer than %d bytes", maxCondition)
	}
	p.next()
	p.cond.holds = p.or()
	if p.tok.kind != tokEnd {
		p.unexpected()
	}
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

// conditionParser reads one token ahead and fails by panicking with a *conditionError.
type conditionParser struct {
	text  string
	pos   int
	tok   token
	depth int
	cond  *condition
}

func (p *conditionParser) fail(suggestion, format string, a ...any) {
	panic(&conditionError{"condition " + fmt.Sprintf(format, a...), suggestion})
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
	for p.pos < len(p.text) && p.text[p.pos] == ' ' {
		p.pos++
	}
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
		left = func(in *input) (bool, error) {
			if ok, err := l(in); ok || err != nil {
				return ok, err
			}
			return r(in)
		}
	}
	return left
}

func (p *conditionParser) and() test {
	left := p.not()
	for p.op("&&") {
		l, r := left, p.not()
		left = func(in *input) (bool, error) {
			if ok, err := l(in); !ok || err != nil {
				return false, err
			}
			return r(in)
		}
	}
	return left
}

func (p *conditionParser) not() test {
	if p.depth++; p.depth > maxDepth {
		p.fail("", "is nested deeper than %d", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.op("!"):
		if p.tok.kind == tokName {
			v := p.variable()
			if p.tok.kind == tokOp && p.tok.text != ")" && p.tok.text != "&&" && p.tok.text != "||" || p.tok.kind == tokName {
				p.fail("!("+v.name+" ...)", "does not say what ! negates")
			}
			return negate(p.flag(v))
		}
		if p.tok.kind != tokOp {
			p.unexpected()
		}
		return negate(p.not())
	case p.op("("):
		inner := p.or()
		if !p.op(")") {
			p.unexpected()
		}
		return inner
	}
	return p.comparison()
}

func negate(t test) test {
	return func(in *input) (bool, error) {
		ok, err := t(in)
		return !ok && err == nil, err
	}
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
}{
	"hour":    {24, func(t time.Time) int { return t.UTC().Hour() }},
	"weekday": {6, func(t time.Time) int { return int(t.UTC().Weekday()) }},
}

// days may be written where weekday is compared.
var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

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
			instead = nearest(name, []string{"hour", "weekday", "true", "false", "null"})
		}
		p.fail(instead, "has %q; known are args.NAME, hour and weekday", name)
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
func (p *conditionParser) flag(v operand) test {
	if _, clock := clocks[v.name]; clock || v.get == nil {
		p.fail("", "compares nothing")
	}
	return func(in *input) (bool, error) {
		got, err := v.get(in)
		if err == nil && got.kind != boolKind {
			err = fmt.Errorf("%s is %s, not true or false", v.name, got.kind)
		}
		return got.truth, err
	}
}

func (p *conditionParser) comparison() test {
	left := p.operand()
	op := p.tok.text
	switch {
	case p.tok.kind == tokName && op == "in":
		p.next()
		return p.in(left)
	case p.tok.kind != tokOp || op == ")" || op == "&&" || op == "||" || op == ",":
		if left.get == nil {
			p.fail("", "compares nothing")
		}
		return p.flag(left)
	}
	switch op {
	case "=~", "!~":
		p.next()
		return p.match(left, op == "!~")
	case "==", "!=", "<", "<=", ">", ">=":
		p.next()
	default:
		p.unexpected()
	}
	right := p.operand()
	p.comparable(op, left, &right)
	p.comparable(op, right, &left)
	return func(in *input) (bool, error) {
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
	if !ok {
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

func (p *conditionParser) in(left operand) test {
	if p.tok.kind == tokName {
		list := p.variable()
		if left.get != nil || left.lit.kind == nullKind {
			p.fail("", "needs a literal on one side of in")
		}
		if _, clock := clocks[list.name]; clock {
			p.fail("", "looks into %s, which is a number", list.name)
		}
		return func(in *input) (bool, error) {
			got, err := list.get(in)
			if err != nil {
				return false, err
			}
			return got.contains(left.lit, list.name)
		}
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
	return func(in *input) (bool, error) {
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
	}
}

func (p *conditionParser) match(left operand, not bool) test {
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
		p.fail("", "has the pattern '%s': %v", pattern, err)
	}
	if prog, err := syntax.Compile(parsed.Simplify()); err != nil || len(prog.Inst) > maxProgram {
		p.fail("", "has a pattern that is too large")
	}
	re := regexp.MustCompile(pattern)
	if !not && !anchored(parsed) {
		p.cond.loose = append(p.cond.loose, pattern)
	}
	return func(in *input) (bool, error) {
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
