package authz

import "strings"

// glob reports whether pattern covers s. `*` is any run without a `/`, `**` any
// run, and a pattern that is only `*` covers everything. Nothing else is special.
//
// Casbin's own keyMatch ignores what follows the first star, so it is not used.
func glob(s, pattern string) bool {
	if pattern == "*" {
		return true
	}
	var si, pi int
	// Where to go on after the last * and the last **, and what they have taken so far.
	star, starTook, deep, deepTook := -1, 0, -1, 0
	for {
		switch {
		case strings.HasPrefix(pattern[pi:], "**"):
			pi += 2
			deep, deepTook, star = pi, si, -1
			continue
		case pi < len(pattern) && pattern[pi] == '*':
			pi++
			star, starTook = pi, si
			continue
		case pi < len(pattern) && si < len(s) && pattern[pi] == s[si]:
			pi++
			si++
			continue
		case pi == len(pattern) && si == len(s):
			return true
		}
		switch {
		case star >= 0 && starTook < len(s) && s[starTook] != '/' && s[starTook] != deepRun[0]:
			starTook++
			pi, si = star, starTook
		case deep >= 0 && deepTook < len(s):
			deepTook++
			pi, si, star = deep, deepTook, -1
		default:
			return false
		}
	}
}

// covers reports whether wide matches everything that narrow matches. It may
// miss a case; it never claims one that is not.
//
// A wildcard of narrow's stands for any run, so it is put to wide as a sign that
// no name holds: only a wildcard of wide's, at least as far-reaching, takes it.
func covers(wide, narrow string) bool {
	switch {
	case wide == narrow, wide == "*", wide == "**":
		return true
	case narrow == "*":
		return false
	}
	return glob(anyRun.Replace(narrow), wide)
}

const (
	oneRun  = "\x01" // within a segment
	deepRun = "\x02" // across segments; `*` does not take it
)

var anyRun = strings.NewReplacer("**", deepRun, "*", oneRun)
