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
		case star >= 0 && starTook < len(s) && s[starTook] != '/':
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
func covers(wide, narrow string) bool {
	switch {
	case wide == narrow, wide == "*", wide == "**":
		return true
	case !strings.Contains(narrow, "*"):
		return glob(narrow, wide)
	case strings.Count(wide, "*") == 2 && strings.HasSuffix(wide, "**"):
		return narrow != "*" && strings.HasPrefix(narrow, wide[:len(wide)-2])
	}
	return false
}
