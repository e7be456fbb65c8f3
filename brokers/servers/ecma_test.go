package servers

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Patterns that MCP's other SDKs write for common types, and what else ECMA-262 has
// and Go has not.
func TestECMA(t *testing.T) {
	for pattern, c := range map[string]struct{ yes, no string }{
		`^(?!x).*$`: {"ab", "xab"}, `^(a)\1$`: {"aa", "ab"}, `(?<=a)b`: {"ab", "cb"}, `^[\w-]+\/\d+$`: {"a-b/1", "a/b"},
		`^\cA[^]$`: {"\x01\n", "A"}, `^\u{1F600}$`: {"😀", "a"}, `^(?<y>\d)-\k<y>$`: {"1-1", "1-2"}, `^\p{L}+$`: {"aé", "1"},
		// z.iso.duration(), z.emoji(), z.hostname(), z.email()
		`^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$`:                          {"P1Y2M", "P1Y2W"},
		`^(\p{Extended_Pictographic}|\p{Emoji_Component})+$`:                                                                     {"😀", "a"},
		`^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$`: {"a.example", "-a"},
		`^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$`:                       {"a.b@c.example", "a..b@c.example"},
	} {
		schema, err := json.Marshal(map[string]any{"type": "object", "properties": map[string]any{"a": map[string]any{"pattern": pattern}}})
		if err != nil {
			t.Fatal(err)
		}
		check, err := compile(schema, newRoom())
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
			continue
		}
		for text, good := range map[string]bool{c.yes: true, c.no: false} {
			args, _ := json.Marshal(map[string]string{"a": text})
			if err := check(args); (err == nil) != good {
				t.Errorf("%s: %q is %v", pattern, text, err)
			}
		}
	}
	for _, pattern := range []string{`(`, `\`, `(?=`, `[z-a](?=a)`, "(?=a)" + strings.Repeat("x", maxPattern)} {
		if _, err := ecma(goPattern)(pattern); err == nil {
			t.Errorf("%.20s compiles", pattern)
		}
	}
}

func goPattern(s string) (jsonschema.Regexp, error) { return regexp.Compile(s) }

// A pattern that would run for ever ends its check, as a no whatever the schema wants,
// and all that a schema's patterns may take has an end, too: 4,000 such texts would
// take this test beyond its own.
func TestECMAThatTakesLong(t *testing.T) {
	evil := `{"pattern":"^(a+)+(?!b)$"}`
	for _, property := range []string{evil, `{"not":` + evil + `}`, `{"anyOf":[` + evil + `,{}]}`, `{"if":` + evil + `,"then":{}}`} {
		check, err := compile(json.RawMessage(`{"type":"object","additionalProperties":`+property+`}`), newRoom())
		if err != nil {
			t.Fatal(err)
		}
		var args []string
		for i := range 1000 {
			args = append(args, fmt.Sprintf(`"%d":"%s!"`, i, strings.Repeat("a", 60)))
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				err := check(json.RawMessage("{" + strings.Join(args, ",") + "}"))
				if err == nil || strings.Contains(err.Error(), "aaa") {
					t.Errorf("%s: %v", property, err)
				}
			})
		}
		all.Wait()
	}
	check, err := compile(json.RawMessage(`{"type":"object","properties":{"a":{"pattern":"^(?!x)"}}}`), newRoom())
	if err != nil {
		t.Fatal(err)
	}
	if check(json.RawMessage(`{"a":"`+strings.Repeat("a", maxMatched)+`"}`)) != nil || check(json.RawMessage(`{"a":"`+strings.Repeat("a", maxMatched+1)+`"}`)) == nil {
		t.Error("a text has another bound")
	}
}

// What one caller's text takes of a tool's pattern is not missing for another's.
func TestAPatternThatAnotherUsesUp(t *testing.T) {
	check, err := compile(json.RawMessage(`{"type":"object","properties":{"a":{"pattern":"^(?!admin)(([a-z])+.)+[A-Z]([a-z])+$"}},"required":["a"]}`), newRoom())
	if err != nil {
		t.Fatal(err)
	}
	evil, good, bad := json.RawMessage(`{"a":"`+strings.Repeat("a", 300)+`"}`), json.RawMessage(`{"a":"ab.Cd"}`), json.RawMessage(`{"a":"admin"}`)
	for range 20 {
		if err := check(evil); err == nil || !strings.Contains(err.Error(), "cannot be checked") {
			t.Fatal(err)
		}
		if err := check(good); err != nil {
			t.Fatalf("a good one: %v", err)
		}
		if err := check(bad); err == nil || strings.Contains(err.Error(), "cannot be checked") {
			t.Fatalf("a bad one: %v", err)
		}
	}
	// Nor does a good one wait for those that take long.
	for range cap(slowly) {
		slowly <- struct{}{}
	}
	waits := make(chan error)
	go func() { waits <- check(evil) }()
	if err := check(good); err != nil {
		t.Error(err)
	}
	for range cap(slowly) {
		<-slowly
	}
	if <-waits == nil {
		t.Error("it was checked")
	}
}

// What checks keep for the library they keep no longer than they last.
func TestWhatAPatternKeeps(t *testing.T) {
	r, err := ecma(goPattern)("^(?!x)")
	if err != nil {
		t.Fatal(err)
	}
	p := r.(*ecmaPattern)
	one, two := newAllowance(), newAllowance()
	for _, a := range []*allowance{one, two, one} {
		if !a.match(p, "a") || a.match(p, "x") {
			t.Error("it says something else")
		}
	}
	one.close()
	if !p.MatchString("a") || p.MatchString("x") || !p.MatchString("b") || len(p.known) != 2 {
		t.Errorf("%d are known", len(p.known))
	}
	two.close()
	if len(p.known) != 0 {
		t.Errorf("%d are known when nobody asks", len(p.known))
	}
}

// No pattern brings the gateway down, or keeps it busy.
func FuzzECMA(f *testing.F) {
	for _, s := range []string{`^(a+)+(?!b)$`, `(?<=(a|b)*)c\1`, strings.Repeat("(", 500) + "(?=a)" + strings.Repeat(")*", 500), `[` + strings.Repeat(`\p{L}`, 100) + `](?=a)`, `(?=(a{2147483647}){2147483647})`, `\k<a>(?<a>)`} {
		f.Add(s, "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!")
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		defer func() {
			if p := recover(); p != nil && p != any(errMatch) {
				panic(p)
			}
		}()
		if r, err := ecma(goPattern)(pattern); err == nil {
			r.MatchString(text)
		}
	})
}
