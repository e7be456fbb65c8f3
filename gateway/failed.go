package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/bits"
)

// Failed reports whether the tool says of itself that it failed, or says nothing
// that can be read.
func (r Result) Failed() bool {
	if r.Error != nil {
		return true
	}
	if failed, sure := skim(r.Raw); sure {
		return failed
	}
	var body struct {
		IsError bool `json:"isError"`
	}
	return json.Unmarshal(r.Raw, &body) != nil || body.IsError
}

// skim answers that for the results that tools give: it passes over long texts
// eight bytes at a time. Of what is not JSON, or is but could be read in two ways, it
// is not sure; encoding/json has the word there.
func skim(b []byte) (failed, sure bool) {
	i := gap(b, 0)
	if at(b, i) != '{' {
		return false, false
	}
	if i = gap(b, i+1); at(b, i) == '}' {
		return false, gap(b, i+1) == len(b)
	}
	for {
		end, plain := quoted(b, i)
		colon := gap(b, end)
		if !plain || at(b, colon) != ':' {
			return false, false
		}
		named := bytes.EqualFold(b[i+1:end-1], []byte("isError")) // as encoding/json takes names
		start := gap(b, colon+1)
		if i = skip(b, start, 1); i < 0 {
			return false, false
		}
		if named {
			if failed = at(b, start) == 't'; !failed && at(b, start) != 'f' {
				return false, false
			}
		}
		switch i = gap(b, i); at(b, i) {
		case ',':
			i = gap(b, i+1)
		case '}':
			return failed, gap(b, i+1) == len(b)
		default:
			return false, false
		}
	}
}

// skip returns where the value at i ends, or -1 where it is not sure.
func skip(b []byte, i, level int) int {
	const deepest = 256
	switch open := at(b, i); open {
	case '"':
		end, _ := quoted(b, i)
		return end
	case 't':
		return literal(b, i, "true")
	case 'f':
		return literal(b, i, "false")
	case 'n':
		return literal(b, i, "null")
	case '{', '[':
		closes := open + 2
		if i = gap(b, i+1); at(b, i) == closes {
			return i + 1
		}
		for level < deepest {
			if open == '{' {
				end, _ := quoted(b, i)
				if i = gap(b, end); end < 0 || at(b, i) != ':' {
					return -1
				}
				i = gap(b, i+1)
			}
			if i = skip(b, i, level+1); i < 0 {
				return -1
			}
			switch i = gap(b, i); at(b, i) {
			case ',':
				i = gap(b, i+1)
			case closes:
				return i + 1
			default:
				return -1
			}
		}
		return -1
	}
	return number(b, i)
}

// quoted returns where the string at i ends, or -1, and whether it is ASCII as it is
// written.
func quoted(b []byte, i int) (end int, plain bool) {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	if at(b, i) != '"' {
		return -1, false
	}
	var seen uint64
	plain = true
	for i++; ; {
		// In each byte that is below a space, a quote or a backslash, the highest bit is
		// set; the lowest that is set is right.
		for i+8 <= len(b) {
			w := binary.LittleEndian.Uint64(b[i:])
			q, e := w^'"'*ones, w^'\\'*ones
			stop := ((w-' '*ones)&^w | (q-ones)&^q | (e-ones)&^e) & highs
			if stop != 0 {
				n := bits.TrailingZeros64(stop) / 8
				seen |= w & (1<<(8*n) - 1)
				i += n
				break
			}
			seen |= w
			i += 8
		}
		for c := at(b, i); c >= ' ' && c != '"' && c != '\\'; c = at(b, i) {
			seen |= uint64(c)
			i++
		}
		switch at(b, i) {
		case '"':
			return i + 1, plain && seen&highs == 0
		case '\\':
			plain = false
			switch at(b, i+1) {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				i += 2
			case 'u':
				for _, c := range []byte{at(b, i+2), at(b, i+3), at(b, i+4), at(b, i+5)} {
					if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
						return -1, false
					}
				}
				i += 6
			default:
				return -1, false
			}
		default:
			return -1, false
		}
	}
}

func number(b []byte, i int) int {
	if at(b, i) == '-' {
		i++
	}
	whole := digits(b, i)
	if whole == i || at(b, i) == '0' && whole > i+1 {
		return -1
	}
	if i = whole; at(b, i) == '.' {
		if whole = digits(b, i+1); whole == i+1 {
			return -1
		}
		i = whole
	}
	if c := at(b, i); c == 'e' || c == 'E' {
		if i++; at(b, i) == '+' || at(b, i) == '-' {
			i++
		}
		if whole = digits(b, i); whole == i {
			return -1
		}
		i = whole
	}
	return i
}

func digits(b []byte, i int) int {
	for c := at(b, i); c >= '0' && c <= '9'; c = at(b, i) {
		i++
	}
	return i
}

func literal(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

// gap returns where what is not a space begins.
func gap(b []byte, i int) int {
	for c := at(b, i); c == ' ' || c == '\n' || c == '\r' || c == '\t'; c = at(b, i) {
		i++
	}
	return i
}

// at is the byte at i, or 0, which stands nowhere in JSON.
func at(b []byte, i int) byte {
	if i < 0 || i >= len(b) {
		return 0
	}
	return b[i]
}
