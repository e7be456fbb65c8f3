package authz

import (
	"testing"

	"pgregory.net/rapid"
)

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"*", "a/b", true}, {"a*", "*b", true}, {"a*", "b*", false}, {"a/*", "a/b", true}, {"a/*", "a/b/c", false},
		{"a/**", "a/b/c", true}, {"a*c", "a/c", false}, {"a**c", "a/c", true}, {"*/x", "s/*", true}, {"*x*", "*y*", true}, {"*x", "*y", false}, {"a*", "a", true}, {"", "a*", false}, {"**", "", true},
	} {
		if got := overlap(c.a, c.b); got != c.want || overlap(c.b, c.a) != c.want {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
	}
}

// A name that both patterns cover proves that they overlap.
func TestOverlapIsNeverMissed(t *testing.T) {
	pattern := rapid.StringMatching(`(a|b|/|\*|\*\*){0,5}`)
	name := rapid.StringMatching(`[ab/]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := pattern.Draw(t, "a"), pattern.Draw(t, "b")
		if s := name.Draw(t, "name"); glob(s, a) && glob(s, b) && !overlap(a, b) {
			t.Fatalf("%q is in %q and %q", s, a, b)
		}
		if covers(a, b) && !overlap(a, b) {
			t.Fatalf("%q covers %q", a, b)
		}
	})
}
