package authz

import (
	"slices"
	"strings"
)

// Names are those that every pattern of In covers, and none of But.
type Names struct {
	In  []string `json:"in"`
	But []string `json:"but,omitempty"`
}

// Have reports whether a name is among them.
func (n Names) Have(name string) bool {
	covers := func(pattern string) bool { return glob(name, pattern) }
	return !slices.ContainsFunc(n.In, func(p string) bool { return !covers(p) }) && !slices.ContainsFunc(n.But, covers)
}

// String is for a reader: "a* but for ab, abc".
func (n Names) String() string {
	text := strings.Join(n.In, " and ")
	if len(n.But) > 0 {
		text += " but for " + list(n.But)
	}
	return text
}

// about reports whether a pattern covers some of the names, and whether all. It
// may call a whole a part, and what is none a part, and errs in nothing else.
func (n Names) about(pattern string) (some, whole bool) {
	for _, in := range n.In {
		if apart(in, pattern) {
			return false, false
		}
	}
	for _, in := range n.In {
		if covers(pattern, in) {
			return true, true
		}
	}
	for _, in := range n.In {
		if !overlap(in, pattern) {
			return false, false
		}
	}
	return !slices.ContainsFunc(n.But, func(but string) bool { return covers(but, pattern) }), false
}

// apart reports, soon, that two patterns cover nothing in common. It may miss a case.
func apart(a, b string) bool {
	short, long := literal(a), literal(b)
	if len(short) > len(long) {
		short, long, a, b = long, short, b, a
	}
	return !strings.HasPrefix(long, short) || len(short) == len(a) && len(long) > len(short)
}

// with leaves the names that a pattern covers too.
func (n Names) with(pattern string) Names {
	if _, whole := n.about(pattern); whole {
		return n
	}
	in := slices.DeleteFunc(slices.Clone(n.In), func(in string) bool { return covers(in, pattern) })
	but := slices.DeleteFunc(slices.Clone(n.But), func(but string) bool { return !overlap(but, pattern) })
	return Names{append(in, pattern), but}
}

// without leaves the names that it does not cover.
func (n Names) without(pattern string) Names {
	but := slices.DeleteFunc(slices.Clone(n.But), func(but string) bool { return covers(pattern, but) })
	return Names{n.In, append(but, pattern)}
}

// within reports whether all of them are among m. It may miss a case.
func (n Names) within(m Names) bool {
	for _, in := range m.In {
		if _, whole := n.about(in); !whole {
			return false
		}
	}
	for _, but := range m.But {
		if some, _ := n.about(but); some {
			return false
		}
	}
	return true
}

// maxStates bounds the search for a name.
const maxStates = 1 << 12

// one returns a name, the shortest but for such as read well. Where there is
// none it is empty; sure is false where that could not be found out.
func (n Names) one() (name string, sure bool) {
	for _, in := range n.In {
		if strings.IndexByte(in, '*') < 0 {
			if n.Have(in) {
				return in, true
			}
			return "", true
		}
	}
	for i := range n.In {
		for _, word := range []string{"any", "other", "1", ""} {
			if name := strings.ReplaceAll(strings.ReplaceAll(n.In[len(n.In)-1-i], "**", "*"), "*", word); name != "" && n.Have(name) {
				return name, true
			}
		}
	}
	return n.search()
}

// search walks all patterns at once, each as the places in it that a beginning of
// a name can have come to, until a name has been through all of In and none of But.
func (n Names) search() (name string, sure bool) {
	type at struct {
		name   string
		places [][]bool
	}
	patterns := slices.Concat(n.In, n.But)
	letters := []byte{'/'}
	for _, p := range patterns {
		for i := range len(p) {
			if p[i] != '*' && !slices.Contains(letters, p[i]) {
				letters = append(letters, p[i])
			}
		}
	}
	for c := byte('a'); c <= 'z'; c++ { // one that no pattern names stands for all
		if !slices.Contains(letters, c) {
			letters = append(letters, c)
			break
		}
	}
	start := at{places: make([][]bool, len(patterns))}
	for i, p := range patterns {
		start.places[i] = make([]bool, len(p)+1)
		reach(p, start.places[i], 0)
	}
	seen := map[string]bool{}
	for todo := []at{start}; len(todo) > 0; todo = todo[1:] {
		for _, c := range letters {
			next := at{todo[0].name + string(c), make([][]bool, len(patterns))}
			var key strings.Builder
			fits := true
			for i, p := range patterns {
				next.places[i] = step(p, todo[0].places[i], c)
				fits = fits && next.places[i][len(p)] == (i < len(n.In))
				for _, on := range next.places[i] {
					key.WriteByte(map[bool]byte{true: '1', false: '0'}[on])
				}
			}
			if fits {
				return next.name, true
			}
			if !seen[key.String()] {
				if len(seen) == maxStates {
					return "", false
				}
				seen[key.String()] = true
				todo = append(todo, next)
			}
		}
	}
	return "", true
}

// reach marks a place, and those that follow it past wildcards that take nothing.
func reach(pattern string, places []bool, i int) {
	places[i] = true
	if _, n := wildcard(pattern[i:]); n > 0 {
		reach(pattern, places, i+n)
	}
}

// step returns the places after one more letter.
func step(pattern string, places []bool, c byte) []bool {
	next := make([]bool, len(places))
	for i, on := range places {
		if !on || i == len(pattern) {
			continue
		}
		crosses, n := wildcard(pattern[i:])
		switch {
		case n > 0 && (crosses || pattern == "*" || c != '/'):
			reach(pattern, next, i)
		case n == 0 && pattern[i] == c:
			reach(pattern, next, i+1)
		}
	}
	return next
}

// A prefixes finds those of many patterns that may have a name in common with
// another one: what stands before its first star and theirs is the same, so far
// as both go.
type prefixes[T any] struct {
	sorted []string
	by     map[string][]T
}

func (p *prefixes[T]) add(pattern string, item T) {
	if p.by == nil {
		p.by = map[string][]T{}
	}
	prefix := literal(pattern)
	if p.by[prefix] == nil {
		p.sorted = append(p.sorted, prefix)
	}
	p.by[prefix] = append(p.by[prefix], item)
}

func literal(pattern string) string {
	before, _, _ := strings.Cut(pattern, "*")
	return before
}

// near calls see with the items of all patterns that may. What was added must
// have been sorted.
func (p *prefixes[T]) near(pattern string, see func(T)) {
	prefix := literal(pattern)
	for n := range len(prefix) {
		for _, item := range p.by[prefix[:n]] {
			see(item)
		}
	}
	from, _ := slices.BinarySearch(p.sorted, prefix)
	for _, other := range p.sorted[from:] {
		if !strings.HasPrefix(other, prefix) || len(prefix) == len(pattern) && other != prefix {
			break
		}
		for _, item := range p.by[other] {
			see(item)
		}
	}
}
