package servers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// maxFlags bounds what is said of one definition.
const maxFlags = 8

// flags lists what in a definition, at any depth, a reader would not see, or
// would see as something else: it may be meant for a model and not for whoever
// reads along. Each flag is ASCII. A definition that cannot be read has one, too.
func flags(definition json.RawMessage) (found []string) {
	d := jsontext.NewDecoder(bytes.NewReader(definition))
	for len(found) < maxFlags {
		t, err := d.ReadToken()
		if err != nil {
			if d.StackDepth() > 0 {
				return append(found, "it cannot be read")
			}
			return found
		}
		if t.Kind() != '"' {
			continue
		}
		if why := strange(t.String()); why != "" {
			at := strconv.QuoteToASCII(clip(string(d.StackPointer())))
			found = append(found, why+" at "+at[1:len(at)-1])
		}
	}
	return found
}

// strange says what is wrong with a text, or nothing.
func strange(s string) string {
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f }); i < 0 {
		return ""
	}
	before := rune(0)
	all := []rune(s)
	for i, r := range all {
		next := rune(0)
		if i+1 < len(all) {
			next = all[i+1]
		}
		if what := unseen(r); what != "" && !joins(before, r, next) {
			return fmt.Sprintf("%s U+%04X", what, r)
		}
		before = r
	}
	foreign := strings.IndexFunc(s, func(r rune) bool {
		return unicode.IsLetter(r) && !unicode.Is(unicode.Latin, r) && !strings.ContainsRune(lookalikes, r)
	}) >= 0
	for word := range strings.FieldsFuncSeq(s, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r) }) {
		if r := lookalike(word, foreign); r != 0 {
			return fmt.Sprintf("lookalike letter U+%04X", r)
		}
	}
	return ""
}

// unseen names what r is, if a reader would not see it.
func unseen(r rune) string {
	switch {
	case r == '\n', r == '\t', r == '\r':
		return ""
	case unicode.IsControl(r): // escape sequences of terminals begin with one
		return "control character"
	case unicode.Is(unicode.Bidi_Control, r):
		return "bidirectional character"
	case 0xe0000 <= r && r <= 0xe007f:
		return "tag character"
	case r == '\u2028', r == '\u2029', r == '\u2800', r == '\ufffc', r == unicode.ReplacementChar,
		unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector):
		return "hidden character"
	case !unicode.IsGraphic(r):
		return "unassigned character"
	}
	return ""
}

// joins reports whether r is one of the two invisible characters that emoji are
// made with, and stands where it makes one.
func joins(before, r, after rune) bool {
	const variation, joiner = '\ufe0f', '\u200d'
	sign := func(r rune) bool { return unicode.In(r, unicode.So, unicode.Sk, unicode.Sm) }
	switch r {
	case variation:
		return sign(before) || strings.ContainsRune("0123456789#*", before) || strings.ContainsRune("‼⁉", before)
	case joiner:
		return (sign(before) || before == variation) && sign(after)
	}
	return false
}

// Letters that look like Latin ones.
const lookalikes = "АВЕЅІЈКМНОРСТУХҮԚԜаеѕіјорсухһԁԛԝ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχ" + "ՕՍօսոհգզ" + "ᎪᎬᎻᏀᎫᏞᎷᏢᎡᏚᎢᏙᎳᏃ"

// lookalike returns a letter of a word that stands for a Latin one, as far as
// the eye can tell: beside Latin letters, or in a word of nothing else in a text
// that is not in its alphabet.
func lookalike(word string, foreign bool) (like rune) {
	latin, letters, alike := 0, 0, 0
	for _, r := range word {
		switch {
		case 0xff21 <= r && r <= 0xff5a, 0x1d400 <= r && r <= 0x1d7ff: // fullwidth, mathematical
			return r
		case strings.ContainsRune(lookalikes, r):
			like = r
			alike++
		case unicode.Is(unicode.Latin, r):
			latin++
		}
		if unicode.IsLetter(r) {
			letters++
		}
	}
	if latin > 0 || !foreign && letters == alike && letters > 2 {
		return like
	}
	return 0
}
