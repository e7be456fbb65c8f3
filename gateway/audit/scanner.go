package audit

import (
	"bytes"
	"encoding/binary"
)

// A scanner recognises lines that are certainly canonical JSON, and picks the
// head out of them on the way: objects with plain ASCII keys in order, strings
// without escapes, whole numbers, no space. Nearly every line is one. Whatever
// else it meets it leaves to jsontext, which has the last word and a fifth of
// the speed; a fuzz test holds the two together.
type scanner struct {
	in    []byte
	at    int
	depth int
	h     *head
}

// section is the object that a member stands in.
type section uint8

const (
	secTop section = iota
	secIntegrity
	secTask
	secCall
	secApproval
	secOther
)

// value reads one value, the one at key in section sec.
func (s *scanner) value(sec section, key []byte) bool {
	if s.at >= len(s.in) || s.depth > 8 {
		return false
	}
	text, number := s.h.field(sec, key)
	switch c := s.in[s.at]; {
	case c == '"' && number == nil:
		got, ok := s.text()
		if ok && text != nil {
			*text = got
		}
		return ok
	case (c == '-' || c >= '0' && c <= '9') && text == nil:
		got, ok := s.number()
		if ok && number != nil {
			*number = got
		}
		return ok
	case text != nil || number != nil:
		return false
	case c == '{':
		return s.object(child(sec, key))
	case c == '[':
		return s.array()
	default:
		for _, word := range [...]string{"true", "false", "null"} {
			if bytes.HasPrefix(s.in[s.at:], []byte(word)) {
				s.at += len(word)
				return true
			}
		}
		return false
	}
}

// child is the section of the object at key. The line itself has no key.
func child(sec section, key []byte) section {
	switch {
	case key == nil:
		return secTop
	case sec != secTop:
		return secOther
	}
	switch string(key) {
	case "integrity":
		return secIntegrity
	case "task":
		return secTask
	case "call":
		return secCall
	case "approval":
		return secApproval
	}
	return secOther
}

// field is where the member at key in section sec belongs, if the head has it.
func (h *head) field(sec section, key []byte) (text *[]byte, number *int64) {
	switch sec {
	case secTop:
		switch string(key) {
		case "id":
			return &h.id, nil
		case "key":
			return &h.key, nil
		case "tenant":
			return &h.tenant, nil
		case "time":
			return &h.time, nil
		case "type":
			return &h.typ, nil
		case "v":
			return nil, &h.version
		}
	case secIntegrity:
		switch string(key) {
		case "idx":
			return nil, &h.index
		case "log":
			return &h.log, nil
		case "prev":
			return &h.prev, nil
		}
	case secTask, secCall, secApproval:
		if string(key) == "id" {
			return [...]*[]byte{secTask: &h.task, secCall: &h.call, secApproval: &h.approval}[sec], nil
		}
	}
	return nil, nil
}

func (s *scanner) object(sec section) bool {
	s.depth++
	s.at++ // {
	if s.next('}') {
		s.depth--
		return true
	}
	var last []byte
	for {
		key, ok := s.text()
		if !ok || last != nil && bytes.Compare(last, key) >= 0 || !s.next(':') || !s.value(sec, key) {
			return false
		}
		last = key
		if s.next('}') {
			s.depth--
			return true
		}
		if !s.next(',') {
			return false
		}
	}
}

func (s *scanner) array() bool {
	s.depth++
	s.at++ // [
	if s.next(']') {
		s.depth--
		return true
	}
	for {
		if !s.value(secOther, []byte{}) {
			return false
		}
		if s.next(']') {
			s.depth--
			return true
		}
		if !s.next(',') {
			return false
		}
	}
}

func (s *scanner) next(c byte) bool {
	if s.at < len(s.in) && s.in[s.at] == c {
		s.at++
		return true
	}
	return false
}

// text reads a string of ASCII without escapes.
func (s *scanner) text() ([]byte, bool) {
	if !s.next('"') {
		return nil, false
	}
	n := bytes.IndexByte(s.in[s.at:], '"')
	if n < 0 {
		return nil, false
	}
	text := s.in[s.at : s.at+n : s.at+n]
	if !plain(text) {
		return nil, false
	}
	s.at += n + 1
	return text, true
}

// plain reports whether text is ASCII without control characters and
// backslashes, eight bytes at a time.
func plain(text []byte) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for len(text) >= 8 {
		w := binary.LittleEndian.Uint64(text)
		slash := w ^ ones*'\\'
		if (w|(w-ones*0x20)|(slash-ones)&^slash)&high != 0 {
			return false
		}
		text = text[8:]
	}
	for _, c := range text {
		if c < 0x20 || c >= 0x80 || c == '\\' {
			return false
		}
	}
	return true
}

// number reads a whole number that a double holds and prints as it stands: at
// most 15 digits before any closing zeros, 18 in all.
func (s *scanner) number() (int64, bool) {
	start, negative := s.at, s.next('-')
	first := s.at
	var n int64
	for s.at < len(s.in) && s.in[s.at] >= '0' && s.in[s.at] <= '9' && s.at-first < 19 {
		n = n*10 + int64(s.in[s.at]-'0')
		s.at++
	}
	digits := s.in[first:s.at]
	switch {
	case len(digits) == 0, len(digits) > 18,
		digits[0] == '0' && s.at-start > 1,
		len(digits) > 15 && len(bytes.TrimRight(digits, "0")) > 15:
		return 0, false
	}
	if s.at < len(s.in) {
		if c := s.in[s.at]; c == '.' || c == 'e' || c == 'E' {
			return 0, false
		}
	}
	if negative {
		n = -n
	}
	return n, true
}
