package console

import (
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"
)

// A Shown is a text that someone else wrote, made safe to look at: every code
// point that would not be seen, or be seen as something else, stands as
// ⟦U+202E⟧. Joining its parts loses nothing and adds only marks.
type Shown struct {
	Parts  []Part
	Hidden int      // code points that had to be made visible; line breaks are not counted
	Runes  int      // code points in all
	Lines  int      // line breaks
	Notes  []string // what a reader should know, in our words
}

// A Part is a run of a Shown that is displayed in one way.
type Part struct {
	Kind PartKind
	Text string
}

// PartKind says how a Part is displayed.
type PartKind uint8

// The kinds of a Part.
const (
	Plain PartKind = iota
	Mark           // our escape for something hidden
	Odd            // a word worth a second look
	Break          // a line break: our sign for it, then the break
)

// These signs are ours. Where a text brings its own they are escaped too, so
// that nobody can forge a mark or hide one among forgeries.
const (
	markOpen, markClose, breakSign = '⟦', '⟧', '↵'
)

// How many combining marks one letter may carry before the rest is escaped.
const maxMarks = 4

// Reveal makes a text safe to look at.
func Reveal(s string) Shown {
	out := Shown{}
	odd := oddWords(s, &out)
	var b strings.Builder
	kind := Plain
	flush := func(next PartKind) {
		if next == kind && kind != Break {
			return
		}
		if b.Len() > 0 {
			out.Parts = append(out.Parts, Part{kind, b.String()})
			b.Reset()
		}
		kind = next
	}
	marks := maxMarks // so that a text cannot begin with one
	for i, size := 0, 0; i < len(s); i += size {
		var r rune
		r, size = utf8.DecodeRuneInString(s[i:])
		out.Runes++
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		switch {
		case r == utf8.RuneError && size == 1:
			flush(Mark)
			fmt.Fprintf(&b, "⟦byte %02X⟧", s[i])
			out.Hidden++
		case r == '\n':
			flush(Break)
			b.WriteRune(breakSign)
			out.Lines++
			marks = maxMarks
		case hidden(r) || marks > maxMarks:
			flush(Mark)
			fmt.Fprintf(&b, "⟦U+%04X⟧", r)
			out.Hidden++
			marks = maxMarks
		default:
			for len(odd) > 0 && i >= odd[0].end {
				odd = odd[1:]
			}
			if len(odd) > 0 && i >= odd[0].start {
				flush(Odd)
			} else {
				flush(Plain)
			}
			b.WriteString(s[i : i+size])
		}
	}
	flush(Plain)
	if b.Len() > 0 {
		out.Parts = append(out.Parts, Part{kind, b.String()})
	}
	if out.Hidden > 0 {
		out.Notes = append([]string{count(out.Hidden, "hidden character", "hidden characters") + " made visible"}, out.Notes...)
	}
	return out
}

// HTML is the text with its marks as markup, isolated from what stands around
// it. It is the one place where markup is made without a template, because a
// hostile megabyte has half a million parts; only Text comes from outside, and
// it is escaped.
func (s Shown) HTML() template.HTML {
	var b strings.Builder
	b.WriteString("<bdi>")
	for _, p := range s.Parts {
		text := template.HTMLEscapeString(p.Text)
		switch p.Kind {
		case Mark:
			b.WriteString(`<mark class="esc">` + text + `</mark>`)
		case Odd:
			b.WriteString(`<span class="odd">` + text + `</span>`)
		case Break:
			b.WriteString(`<mark class="nl">` + text + "</mark>\n")
		default:
			b.WriteString(text)
		}
	}
	b.WriteString("</bdi>")
	return template.HTML(b.String())
}

// String is the text with its marks, for places that take no markup.
func (s Shown) String() string {
	var b strings.Builder
	for _, p := range s.Parts {
		b.WriteString(p.Text)
		if p.Kind == Break {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// hidden reports whether r would not be seen for what it is: controls, formats
// (bidi, zero-width, tags), private and unassigned code points, every space but
// the ordinary one, separators, variation selectors, fillers, blanks, and our
// own signs.
func hidden(r rune) bool {
	if r < 0x7f {
		return r < ' '
	}
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		r == markOpen || r == markClose || r == breakSign ||
		r == '\u2800' || r == '\uFFFC' || r == '\uFFFD' || r == '\U0001D159'
}

type span struct{ start, end int }

// oddWords finds the words that may not say what they seem to say, and notes why.
func oddWords(s string, out *Shown) []span {
	if isASCII(s) {
		return nil
	}
	var (
		odd    []span
		mixed  []string
		alike  []string
		forms  bool
		rtl    bool
		signs  = map[rune]bool{}
		lookup = scripts{}
	)
	word := func(start, end int) {
		w := s[start:end]
		if isASCII(w) {
			return
		}
		in := map[string]bool{}
		latinLike, letters, compat := true, 0, false
		for _, r := range w {
			if !unicode.IsLetter(r) {
				compat = compat || r > 0x7f && unicode.IsDigit(r) && compatibility(r)
				continue
			}
			letters++
			if name := lookup.of(r); name != "Common" && name != "Inherited" {
				in[name] = true
			}
			latinLike = latinLike && strings.ContainsRune(latinLookAlikes, r)
			compat = compat || r > 0x7f && compatibility(r)
		}
		shown := "“" + brief(w) + "”"
		switch {
		case mixes(in):
			mixed = append(mixed, shown+" mixes "+list(in)+" letters")
		case letters > 0 && latinLike:
			alike = append(alike, shown+" looks Latin but is "+list(in))
		case compat:
			forms = true
		default:
			return
		}
		odd = append(odd, span{start, end})
	}
	start := -1
	for i, r := range s {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), unicode.Is(unicode.M, r):
			if start < 0 {
				start = i
			}
			if r > 0x590 && !rtl {
				p, _ := bidi.LookupRune(r)
				rtl = p.Class() == bidi.R || p.Class() == bidi.AL
			}
			continue
		case hidden(r):
			continue // an invisible character does not end a word
		case strings.ContainsRune(signLookAlikes, r):
			signs[r] = true
			odd = append(odd, span{i, i + utf8.RuneLen(r)})
		}
		if start >= 0 {
			word(start, i)
			start = -1
		}
	}
	if start >= 0 {
		word(start, len(s))
	}
	slices.SortFunc(odd, func(a, b span) int { return a.start - b.start })

	note := func(format string, args ...any) { out.Notes = append(out.Notes, fmt.Sprintf(format, args...)) }
	for _, words := range [][]string{mixed, alike} {
		for i, w := range words {
			if i == 3 {
				note("%d more such words are marked", len(words)-i)
				break
			}
			note("%s", w)
		}
	}
	if forms {
		note("has letters or digits in a special form that looks like an ordinary one")
	}
	for _, r := range slices.Sorted(maps.Keys(signs)) {
		note("has %c (U+%04X), which looks like an ordinary sign", r, r)
	}
	if rtl {
		note("has right-to-left letters: parts of a line may stand in another order than they are sent")
	}
	if !norm.NFC.IsNormalString(s) {
		note("has letters that are composed in an unusual way (not in normal form NFC)")
	}
	return odd
}

// brief is a word as it may stand in a note: nothing hidden, and not too long.
// The text itself is shown whole.
func brief(w string) string {
	var b strings.Builder
	for i, r := range []rune(w) {
		if i == 40 {
			return b.String() + "…"
		}
		if hidden(r) {
			fmt.Fprintf(&b, "⟦U+%04X⟧", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// compatibility reports whether r is an ASCII letter or digit in disguise:
// fullwidth, mathematical, circled.
func compatibility(r rune) bool {
	plain := norm.NFKC.String(string(r))
	return plain != string(r) && isASCII(plain)
}

// Letters of other scripts that cannot be told from Latin ones, and signs that
// cannot be told from those that structure paths, hosts and addresses. Neither
// list is all of UTS #39; words of mixed script are found without them.
const (
	latinLookAlikes = "АВЕЗІЈКМНОРСТУХЅԌԚԜѴаеорсухѕіјһԁԛԝѵӏґгпкв" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυικτ" + "ոսօցհԼՕՏ" + "ᎠᎡᎢᎪᎬᎳᎷᏀᏂᏃᏏᏔᏞᏟᏢ"
	signLookAlikes  = "⁄∕⧸／․．。｡։：∶꞉＠﹫﹒﹕＼∖⧵ǃ！＂＇＆＝？＃％；"
)

// mixes reports whether a word's scripts are not ones that are written together.
func mixes(in map[string]bool) bool {
	if len(in) < 2 {
		return false
	}
	for name := range in {
		switch name {
		case "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo":
		default:
			return true
		}
	}
	return false
}

// scripts remembers which script a letter is of; the tables are slow to search.
type scripts map[rune]string

func (m scripts) of(r rune) string {
	if r < 0x7f {
		return "Latin"
	}
	if name, ok := m[r]; ok {
		return name
	}
	m[r] = "unknown"
	for name, table := range unicode.Scripts {
		if unicode.Is(table, r) {
			m[r] = name
			break
		}
	}
	return m[r]
}

func list(in map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(in)), " and ")
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + many
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
