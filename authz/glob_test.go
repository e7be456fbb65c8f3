package authz

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"**", "a/b", true}, {"**", "", true}, {"", "", true}, {"", "a", false},
		{"a/*", "a/b", true}, {"a/*", "a/", true}, {"a/*", "a", false}, {"a/*", "a/b/c", false}, {"a/**", "a/b/c", true}, {"a/**", "a", false}, {"**/c", "a/b/c", true},
		{"a/*.get", "a/x.get", true}, {"a/*.get", "a/x.delete", false}, {"*/delete", "a/x", false}, {"*/delete", "a/delete", true},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "aXbYcZ", false}, {"a*c", "a/c", false}, {"a**c", "a/b/c", true}, {"**a*b", "x/a/ab", true}, {"a.b", "axb", false}, {"a/?", "a/b", false}, {"a/?", "a/?", true},
		{"a/*", "a/*", true}, {"a", "*", false},
	} {
		if got := glob(c.s, c.pattern); got != c.want {
			t.Errorf("%s covers %s: %v", c.pattern, c.s, got)
		}
	}
}

// naive is the definition.
func naive(s, p string) bool {
	switch {
	case p == "":
		return s == ""
	case len(p) > 1 && p[:2] == "**":
		return naive(s, p[2:]) || s != "" && naive(s[1:], p)
	case p[0] == '*':
		return naive(s, p[1:]) || s != "" && s[0] != '/' && naive(s[1:], p)
	}
	return s != "" && s[0] == p[0] && naive(s[1:], p[1:])
}

func TestGlobIsItsDefinition(t *testing.T) {
	pattern := rapid.StringMatching(`([ab/]|\*|\*\*){0,8}`)
	name := rapid.StringMatching(`[ab/]{0,10}`)
	rapid.Check(t, func(t *rapid.T) {
		p, s := pattern.Draw(t, "pattern"), name.Draw(t, "name")
		if want := p == "*" || naive(s, p); glob(s, p) != want {
			t.Fatalf("%q covers %q: want %v", p, s, want)
		}
	})
}

// What covers claims holds for every name.
func TestCoversIsSound(t *testing.T) {
	pattern := rapid.StringMatching(`(\*|\*\*|[ab/]{1,3}(\*|\*\*)?|[ab/*]{1,5})`)
	name := rapid.StringMatching(`[ab/]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		wide, narrow, s := pattern.Draw(t, "wide"), pattern.Draw(t, "narrow"), name.Draw(t, "name")
		if covers(wide, narrow) && glob(s, narrow) && !glob(s, wide) {
			t.Fatalf("%q is said to cover %q, but not %q", wide, narrow, s)
		}
	})
}

// What one pattern is said to cover it covers, whatever the names.
func FuzzCovers(f *testing.F) {
	f.Add("a/*/*", "a/**", "a/b")
	f.Add("a/*", "a/b*", "a/bc")
	f.Add("**b", "*b", "x/b")
	f.Fuzz(func(t *testing.T, wide, narrow, name string) {
		if strings.ContainsAny(wide+narrow+name, "\x01\x02") || strings.Contains(name, "*") {
			t.Skip()
		}
		if covers(wide, narrow) && glob(name, narrow) && !glob(name, wide) {
			t.Errorf("%q is said to cover %q, but only the latter matches %q", wide, narrow, name)
		}
	})
}
