package console

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Arguments are a call's argument bytes as a page shows them: once as rows, read
// token by token from those bytes so that nothing is reordered, rounded or
// dropped, and once exactly as they are.
type Arguments struct {
	Rows    []Row
	Raw     Shown
	Bytes   int
	Hidden  int    // hidden characters in all rows, or in Raw where there are no rows
	Odd     int    // values and names with a note
	Problem string // why there are no rows; then Raw is all there is to look at
	Asked   bool   // of an escalation: they are decided on, and sent nowhere
	Answers bool   // they hold what a server asked, and the answers, beside the arguments
	Unclear bool   // nobody can say what the bytes mean, so nobody can approve them
}

// A Row is a name with its value, or an opening of an object or list.
type Row struct {
	Depth int    // 0 for the members of the outermost object
	Deep  int    // Depth as far as it is indented
	Name  *Shown // of an object's member
	Index int    // of a list's item, from 1, when Name is nil
	Kind  string // text, number, true/false, nothing, object, list
	Size  string // how long a text is, or how much an object or list holds
	Value *Shown // nil for objects and lists
	Fold  bool   // too long to be read at a glance
}

// A page of more rows than this would not be read, and could be made to choke a
// browser; then the exact bytes are shown instead.
const maxRows = 2000

const maxIndent = 6

// Texts longer than this are folded.
const (
	foldRunes = 600
	foldLines = 12
)

// ShowArguments reads a call's arguments for the page.
func ShowArguments(raw []byte) Arguments {
	a := Arguments{Raw: Reveal(string(raw)), Bytes: len(raw)}
	rows, err := rowsOf(raw)
	switch {
	case errors.Is(err, errTooMany):
		a.Problem = "There are more than " + thousands(maxRows) + " values, too many to list. Below are the exact bytes, all of them."
	case err != nil:
		a.Unclear = true
		a.Problem = "These bytes are not strict JSON and could mean different things to different readers. Below are the exact bytes, all of them."
	}
	if a.Problem != "" {
		a.Hidden = a.Raw.Hidden
		a.Odd = len(a.Raw.Notes)
		return a
	}
	a.Rows = rows
	for _, r := range rows {
		for _, s := range []*Shown{r.Name, r.Value} {
			if s == nil {
				continue
			}
			a.Hidden += s.Hidden
			if len(s.Notes) > 0 {
				a.Odd++
			}
		}
	}
	return a
}

var errTooMany = errors.New("too many values")

func rowsOf(raw []byte) ([]Row, error) {
	var (
		rows  []Row
		name  *Shown
		open  []int // the rows of the objects and lists we are in; -1 for the outermost
		begun bool
		dec   = jsontext.NewDecoder(bytes.NewReader(raw))
	)
	for {
		inside, at := dec.StackIndex(dec.StackDepth())
		token, err := dec.ReadToken()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		kind := token.Kind()
		if len(open) == 0 {
			if begun {
				return nil, errors.New("more than one value")
			}
			begun = true
		}
		if kind == '}' || kind == ']' {
			if row := open[len(open)-1]; row >= 0 {
				rows[row].Size = sizeOf(inside, int(at))
			}
			open = open[:len(open)-1]
			continue
		}
		if inside == '{' && at%2 == 0 {
			s := Reveal(token.String())
			name = &s
			continue
		}
		if kind == '{' && len(open) == 0 {
			open = append(open, -1) // the outermost object needs no row of its own
			continue
		}
		if len(rows) == maxRows {
			return nil, errTooMany
		}
		row := Row{Depth: max(len(open)-1, 0), Name: name}
		name = nil
		row.Deep = min(row.Depth, maxIndent)
		if inside == '[' {
			row.Index = int(at) + 1
		}
		switch kind {
		case '{':
			row.Kind = "object"
			open = append(open, len(rows))
		case '[':
			row.Kind = "list"
			open = append(open, len(rows))
		case '"':
			row.Kind = "text"
			s := Reveal(token.String())
			row.Value = &s
			row.Fold = s.Runes > foldRunes || s.Lines >= foldLines
			switch {
			case s.Runes == 0:
				row.Kind = "empty text"
			case s.Runes > 60 || s.Lines > 0:
				row.Size = count(s.Runes, "character", "characters")
			}
		default:
			row.Kind = map[jsontext.Kind]string{'0': "number", 't': "true/false", 'f': "true/false", 'n': "null"}[kind]
			s := Reveal(token.String())
			row.Value = &s
			row.Fold = s.Runes > foldRunes
		}
		rows = append(rows, row)
	}
}

func sizeOf(kind jsontext.Kind, tokens int) string {
	switch {
	case kind == '{' && tokens == 0, kind == '[' && tokens == 0:
		return "empty"
	case kind == '{':
		return count(tokens/2, "member", "members")
	}
	return count(tokens, "item", "items")
}

// NameNote and ValueNote are what a reader should know of a row, in our words.
func (r Row) NameNote() string { return notes(r.Name) }

// ValueNote is the like for the value.
func (r Row) ValueNote() string { return notes(r.Value) }

func notes(s *Shown) string {
	if s == nil {
		return ""
	}
	return strings.Join(s.Notes, "; ")
}
