package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
)

// encodes reports whether text holds a secret that is encoded twice, in whatever
// order of hex and base64, or in hex with letters of both cases; what is encoded once
// [forms] knows. Only runs of as many fitting characters as that takes are looked
// into, so that a text without one costs next to nothing.
func encodes(text []byte, s Secret) bool {
	n := len(s.value)
	if n < shortest || len(text) < 16*n/9 {
		return false
	}
	if bytes.IndexByte(text, '\\') >= 0 { // JSON may escape the slash
		text = []byte(unescapeJSON(string(text)))
	}
	return digs(text, []byte(s.value), 2)
}

// digs looks for value in what the runs of text stand for, and in what is found there
// as often as deep says.
func digs(text, value []byte, deep int) bool {
	for _, e := range []struct {
		of     *[256]bool
		least  int // characters of a run that can hold the value
		group  int // of them, that are read together
		decode func(run []byte) []byte
	}{
		{&hexDigits, 2 * len(value), 2, unhex},
		{&base64Digits, len(value) * 4 / 3, 4, unbase64},
	} {
		if deep > 1 && e.group == 4 {
			e.least = len(value) * 16 / 9
		}
		for run, rest := nextRun(text, e.of, e.least); run != nil; run, rest = nextRun(rest, e.of, e.least) {
			for shift := range e.group { // nobody knows where in it the encoding begins
				plain := e.decode(run[shift:])
				if bytes.Contains(plain, value) || deep > 1 && digs(plain, value, deep-1) {
					return true
				}
			}
		}
	}
	return false
}

// nextRun returns the first run of at least so many characters of a set, and what
// follows it; nil where there is none. It looks at few of the others.
func nextRun(text []byte, of *[256]bool, least int) (run, rest []byte) {
	for from := 0; from+least <= len(text); {
		at := from + least - 1
		for at >= from && of[text[at]] {
			at--
		}
		if at >= from {
			from = at + 1 // no run of that length has this in it
			continue
		}
		end := from + least
		for end < len(text) && of[text[end]] {
			end++
		}
		return text[from:end], text[end:]
	}
	return nil, nil
}

var hexDigits, base64Digits = setOf("0123456789abcdefABCDEF"),
	setOf("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")

func setOf(all string) (of [256]bool) {
	for i := range len(all) {
		of[all[i]] = true
	}
	return of
}

func unhex(run []byte) []byte {
	plain := make([]byte, len(run)/2)
	n, _ := hex.Decode(plain, run[:len(run)/2*2]) // a run is of its digits
	return plain[:n]
}

// unbase64 reads both alphabets.
func unbase64(run []byte) []byte {
	if bytes.ContainsAny(run, "-_") {
		run = bytes.ReplaceAll(bytes.ReplaceAll(run, []byte("-"), []byte("+")), []byte("_"), []byte("/"))
	}
	if len(run)%4 == 1 {
		run = run[:len(run)-1]
	}
	plain := make([]byte, base64.RawStdEncoding.DecodedLen(len(run)))
	n, _ := base64.RawStdEncoding.Decode(plain, run)
	return plain[:n]
}
