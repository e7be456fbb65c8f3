package authz

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/casbin/govaluate"
	"pgregory.net/rapid"
)

func TestConditions(t *testing.T) {
	monday := time.Date(2026, 11, 23, 12, 30, 0, 0, time.UTC)
	const args = `{"n":5,"big":12345678901234567890,"f":0.5,"s":"acme/api","t":true,"u":false,"z":null,
		"list":["a","b"],"mixed":["a",1],"empty":[],"o":{"n":7,"s":"x","z":null},"max-rows":3,"snake_case":1,"s'q":1,"multi":"evil\nacme/x"}`
	for _, c := range []struct{ text, want string }{
		{"args.n == 5", "yes"}, {"args.n != 5", "no"}, {"args.n < 5", "no"}, {"args.n <= 5", "yes"}, {"args.n > 4.5", "yes"}, {"args.n >= 6", "no"},
		{"5 == args.n", "yes"}, {"4 < args.n", "yes"}, {"args.n > -1", "yes"}, {"args.n == 5.0", "yes"}, {"args.n == 5e0", "yes"}, {"args.f == 0.5", "yes"},
		{"args.s == 'acme/api'", "yes"}, {`args.s == "acme/api"`, "yes"}, {"args.s < 'b'", "yes"}, {"args.s >= 'b'", "no"},
		{"args.s =~ '^acme/'", "yes"}, {"args.s =~ '^api'", "no"}, {"args.s !~ '^api'", "yes"}, {`args.s =~ '^[a-z]+/\w+$'`, "yes"}, {`args.multi =~ '^acme/'`, "no"},
		{"args.t", "yes"}, {"args.u", "no"}, {"!args.u", "yes"}, {"!args.t", "no"}, {"args.t == true", "yes"}, {"args.u != true", "yes"}, {"args.t && !args.u", "yes"},
		{"args.s in ('x', 'acme/api')", "yes"}, {"args.n in (1, 2)", "no"}, {"'a' in args.list", "yes"}, {"'c' in args.list", "no"}, {"'c' in args.empty", "no"},
		{"args.o.n == 7", "yes"}, {"args.o.s =~ '^x$'", "yes"}, {"args.max-rows == 3", "yes"}, {"args.snake_case == 1", "yes"},
		{"args.n == 5 && args.s == 'x'", "no"}, {"args.n == 5 || args.s == 'x'", "yes"}, {"args.n == 1 || args.n == 5 && args.t", "yes"}, {"(args.n == 5 || args.t) && args.u", "no"},
		{"!(args.n == 5)", "no"}, {"!!(args.n == 5)", "yes"}, {"!(args.n == 5 || args.t) || args.t", "yes"},
		{"hour == 12", "yes"}, {"hour >= 9 && hour < 17", "yes"}, {"hour in (1, 2)", "no"}, {"hour < 24", "yes"},
		{"weekday == 1", "yes"}, {"weekday == 'mon'", "yes"}, {"weekday in ('sat', 'sun')", "no"}, {"weekday != 'sun'", "yes"},
		{"args.z == null", "yes"}, {"args.missing == null", "yes"}, {"args.n == null", "no"}, {"args.n != null", "yes"}, {"args.missing != null", "no"}, {"null == args.z", "yes"},
		{"args.o.missing == null", "yes"}, {"args.z.deeper == null", "yes"}, {"args.list == null", "no"}, {"args.o != null", "yes"},
		{"args.missing != null && args.missing > 3", "no"}, {"args.missing == null || args.missing > 3", "yes"},
		{"args.n == args.o.n", "no"}, {"args.n < args.o.n", "yes"},

		{"date == '2026-11-23'", "yes"}, {"date < '2026-11-23'", "no"}, {"date <= '2026-11-23'", "yes"}, {"'2026-11-22' < date", "yes"}, {"date in ('2026-11-22', '2026-11-23')", "yes"},

		// What cannot be told is not guessed.
		{"args.missing == 5", "unknown"}, {"args.missing != 5", "unknown"}, {"args.z == 5", "unknown"}, {"args.z != 5", "unknown"},
		{"args.s == 5", "unknown"}, {"args.s != 5", "unknown"}, {"args.n == '5'", "unknown"}, {"args.list != 'prod'", "unknown"}, {"args.o != 'prod'", "unknown"},
		{"args.n =~ '5'", "unknown"}, {"args.list =~ 'a'", "unknown"}, {"args.missing !~ 'a'", "unknown"}, {"args.n", "unknown"}, {"!args.n", "unknown"}, {"!args.missing", "unknown"},
		{"args.big > 5", "unknown"}, {"args.n in ('x', 'y')", "unknown"}, {"1 in args.list", "unknown"}, {"'a' in args.mixed", "unknown"}, {"'a' in args.s", "unknown"}, {"'a' in args.missing", "unknown"},
		{"args.n.deeper == 5", "unknown"}, {"args.n.deeper == null", "unknown"}, {"args.list.0 == 'a'", "unknown"}, {"args.missing == args.missing", "unknown"}, {"args.t < args.u", "unknown"},
		{"args.missing == 5 || args.n == 5", "unknown"}, {"args.missing == 5 && args.u", "unknown"}, {"!(args.missing == 5)", "unknown"},
		{"args.n == 5 || args.missing == 5", "yes"}, {"args.u && args.missing == 5", "no"},

		// What is refused.
		{"", "condition ends too early"}, {"args.n ==", "condition ends too early"}, {"(args.n == 5", "condition ends too early"}, {"args.n == 5)", `condition has ")" where it does not belong`},
		{"args.n == 5 args.t", `condition has "args.t" where it does not belong`}, {"args.s == 'x", "condition has a string that does not end"},
		{"true", "condition compares nothing"}, {"1 == 1", "condition compares nothing"}, {"'a' == 'a'", "condition compares nothing"}, {"hour", "condition compares nothing"}, {"5", "condition compares nothing"},
		{"args", "condition has args without the name of an argument"}, {"args. == 5", `condition has "args.", which names no argument`}, {"args..n == 5", `condition has "args..n", which names no argument`},
		{"arg.repo == 'x'", `condition has "arg.repo"; known are args.NAME, date, hour and weekday; did you mean "args.repo"?`},
		{"Args.n == 1", `condition has "Args.n"; known are args.NAME, date, hour and weekday; did you mean "args.n"?`},
		{"hours > 3", `condition has "hours"; known are args.NAME, date, hour and weekday; did you mean "hour"?`}, {"user == 'root'", `condition has "user"; known are args.NAME, date, hour and weekday`},
		{"sqlReadOnly(args.sql)", `condition calls "sqlReadOnly"; there are no functions`}, {"eval(args.s)", `condition calls "eval"; there are no functions`}, {"args.s.String() == 'x'", `condition has "(" where it does not belong`},
		{"args.n = 5", `condition has "=" where it does not belong; did you mean "=="?`}, {"args.n == 5 and args.t", `condition has "and" where it does not belong; did you mean "&&"?`}, {"args.n == 5 & args.t", `condition has "&" where it does not belong; did you mean "&&"?`},
		{"not args.t", `condition has "not"; known are args.NAME, date, hour and weekday; did you mean "!"?`}, {"args.t == True", `condition has "True"; known are args.NAME, date, hour and weekday; did you mean "true"?`},
		{"!args.n == 5", `condition does not say what ! negates; did you mean "!(args.n ...)"?`},
		{"args.n + 1 == 6", `condition cannot calculate ("+")`}, {"args.n % 2 == 1", `condition cannot calculate ("%")`}, {"args.n / 0 > 1", `condition cannot calculate ("/")`}, {"args.t ? args.u : args.t", `condition has "?" where it does not belong`},
		{"args.s =~ args.pattern", "condition needs its pattern as a string"}, {"'acme' =~ args.s", "condition can match only an argument against a pattern"}, {"hour =~ '1'", "condition can match only an argument against a pattern"},
		{"args.s =~ '['", "condition has the pattern '[': error parsing regexp: missing closing ]: `[`"}, {"args.s =~ '.{900}.{900}'", "condition has a pattern that is too large"}, {"args.s =~ '(((.{30}){30}){30}){30}'", "condition has the pattern '(((.{30}){30}){30}){30}': error parsing regexp: invalid repeat count: `{30}`"},
		{"args.t < true", "condition orders true or false (<)"}, {"args.t < null", "condition orders null (<)"}, {"args.n in (1, 'a')", "condition has a list of more than one type"}, {"args.n in ()", `condition has ")" where it does not belong`}, {"args.n in (args.t)", `condition has "args.t" where it does not belong`},
		{"args.s in args.list", "condition needs a literal on one side of in"}, {"null in args.list", "condition needs a literal on one side of in"}, {"1 in hour", "condition looks into hour, which is a number"},
		{"hour == '9'", "condition compares hour with what it never is (it is 0 to 23)"}, {"hour == 25", "condition compares hour with what it never is (it is 0 to 23)"}, {"weekday == 7", "condition compares weekday with what it never is (it is 0 to 6)"}, {"weekday == 'Mon'", "condition has the day 'Mon'; days are sun, mon, tue, wed, thu, fri, sat or 0 to 6; did you mean \"mon\"?"},
		{"date == '2026-02-30'", "condition compares date with what is no day; write it as '2026-12-31'"}, {"date > 20261231", "condition compares date with what is no day; write it as '2026-12-31'"}, {"date > '1969-12-31'", "condition compares date with what is no day; write it as '2026-12-31'"}, {"date", "condition compares nothing"}, {"date =~ '^2026'", "condition can match only an argument against a pattern"}, {"dates > '2026-01-01'", `condition has "dates"; known are args.NAME, date, hour and weekday; did you mean "date"?`},
		{"args.n == 9007199254740993", `condition has "9007199254740993", which is no number that can be read exactly`}, {"args.n == 0x10", `condition has "0x10", which is no number that can be read exactly`}, {"args.n == 05", `condition has "05", which is no number that can be read exactly`}, {"args.n == 1e999", `condition has "1e999", which is no number that can be read exactly`}, {"args.n == 0.1234567890123456789", `condition has "0.1234567890123456789", which is no number that can be read exactly`},
		{"args.n == 5; args.t", "condition has ';' where it does not belong"}, {"[args.n] == 5", "condition has '[' where it does not belong"}, {"args.nаme == 5", "condition has 'а' (U+0430), which is not 'a'"},
		{strings.Repeat("(", 17) + "args.t" + strings.Repeat(")", 17), "condition is nested deeper than 16"}, {strings.Repeat("!", 100) + "args.t", "condition is nested deeper than 16"}, {strings.Repeat("args.t && ", 52) + "args.t", "condition is longer than 512 bytes"},
	} {
		cond, err := parseCondition(c.text)
		var got string
		if err != nil {
			got = err.Error()
		} else {
			got = [...]string{"no", "yes", "unknown"}[cond.eval(&input{raw: json.RawMessage(args), at: monday})]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
	}
}

// A value that is too long to match is not matched at great cost.
func TestLongValuesCannotBeTold(t *testing.T) {
	cond, err := parseCondition("args.s =~ '^x*$'")
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]truth{maxSubject: yes, maxSubject + 1: unknown} {
		if got := cond.eval(&input{raw: json.RawMessage(`{"s":"` + strings.Repeat("x", n) + `"}`)}); got != want {
			t.Errorf("%d bytes: %v", n, got)
		}
	}
}

func TestNumbersAreExact(t *testing.T) {
	for text, want := range map[string]bool{
		"0": true, "-0": true, "5": true, "-5": true, "0.1": true, "1e3": true, "9007199254740992": true, "-9007199254740992": true, "123456789.12345": true, "1.50000000000000000000": true,
		"9007199254740993": false, "-9007199254740993": false, "18446744073709551616": false, "0.1234567890123456": false, "500.00000000000000001": false, "1e400": false, "1e-400": false, "1234567890123456e5": false,
	} {
		if _, err := parseNumber(text); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// For values of the right types, conditions mean what govaluate makes of them:
// the language Casbin's users know.
func TestConditionsAgreeWithGovaluate(t *testing.T) {
	args := map[string]any{"n": 5.0, "m": -2.5, "s": "abc", "r": "b", "t": true, "u": false}
	raw, _ := json.Marshal(args)
	var gen func(t *rapid.T, depth int) string
	gen = func(t *rapid.T, depth int) string {
		if depth > 0 {
			switch rapid.IntRange(0, 3).Draw(t, "shape") {
			case 0:
				return gen(t, depth-1) + " && " + gen(t, depth-1)
			case 1:
				return gen(t, depth-1) + " || " + gen(t, depth-1)
			case 2:
				return "!(" + gen(t, depth-1) + ")"
			case 3:
				return "(" + gen(t, depth-1) + ")"
			}
		}
		op := rapid.SampledFrom([]string{"==", "!=", "<", "<=", ">", ">="})
		switch rapid.IntRange(0, 4).Draw(t, "leaf") {
		case 0:
			return fmt.Sprintf("args.%s %s %d", rapid.SampledFrom([]string{"n", "m"}).Draw(t, "number"), op.Draw(t, "op"), rapid.IntRange(-3, 6).Draw(t, "literal"))
		case 1:
			return fmt.Sprintf("args.%s %s '%s'", rapid.SampledFrom([]string{"s", "r"}).Draw(t, "string"), op.Draw(t, "op"), rapid.StringMatching("[a-c]{0,3}").Draw(t, "literal"))
		case 2:
			return fmt.Sprintf("args.s %s '%s'", rapid.SampledFrom([]string{"=~", "!~"}).Draw(t, "op"), rapid.SampledFrom([]string{"^a", "c$", "^b$", "[bc]+", "x|b"}).Draw(t, "pattern"))
		case 3:
			return fmt.Sprintf("args.s in ('%s', '%s')", rapid.StringMatching("[a-c]{1,3}").Draw(t, "one"), rapid.SampledFrom([]string{"abc", "zzz"}).Draw(t, "two"))
		}
		return rapid.SampledFrom([]string{"args.t", "args.u", "!args.t", "args.t == true", "args.u != true"}).Draw(t, "flag")
	}
	rapid.Check(t, func(t *rapid.T) {
		text := gen(t, 3)
		if len(text) > maxCondition {
			t.Skip("too long")
		}
		cond, err := parseCondition(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		theirs, err := govaluate.NewEvaluableExpression(strings.ReplaceAll(text, "args.", "args_"))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		parameters := map[string]any{}
		for k, v := range args {
			parameters["args_"+k] = v
		}
		want, err := theirs.Evaluate(parameters)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := cond.eval(&input{raw: raw}); (got == yes) != want.(bool) || got == unknown {
			t.Fatalf("%s: %v, govaluate says %v", text, got, want)
		}
	})
}

func FuzzCondition(f *testing.F) {
	f.Add("args.a.b == 'x' && !(hour in (1, 2) || args.c =~ '^[a-z]+$')", `{"a":{"b":"x"},"c":"y"}`)
	f.Add(`"a" in args.list || args.n >= -1.5e2 || weekday != 'sun'`, `{"list":["a"],"n":1}`)
	f.Add("args.x == null", `{"x":1,"x":null}`)
	f.Fuzz(func(t *testing.T, text, args string) {
		cond, err := parseCondition(text)
		if err != nil {
			return
		}
		if len(cond.vars) == 0 {
			t.Fatalf("%q reads nothing", text)
		}
		in := &input{raw: json.RawMessage(args), at: time.Unix(0, 0)}
		first := cond.eval(in)
		if again := cond.eval(in); again != first {
			t.Fatalf("%q came to %v, then %v", text, first, again)
		}
		if cond.args && !json.Valid([]byte(args)) && args != "" && first != unknown && !strings.ContainsAny(text, "|&") {
			t.Fatalf("%q came to %v of what is no JSON", text, first)
		}
	})
}
