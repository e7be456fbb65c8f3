package edge

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	listTTL  = 5 * time.Second
	pageSize = 500 // things in one answer
	listRoom = 64  // before a list, for its envelope
)

// list answers with a page of what the caller may see; its error is a
// [*gateway.Refusal].
func (e *Edge) list(ctx context.Context, r request) (answer, error) {
	s, member := sortOf(r.method)
	after, ok := readCursor(r.cursor, s)
	if !ok {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: "unknown cursor"}), nil
	}
	all, err := e.Gateway.List(ctx, r.cred, s, gateway.CallRef{
		JSONRPCID: string(r.id), Method: r.method, Protocol: r.protocol, Session: r.cred.Session, Source: r.cred.Source,
	})
	if err != nil {
		return answer{}, err
	}
	all, next := page(all, s, after)
	return answer{body: answerList(member, all, next, r.modern), status: http.StatusOK, room: listRoom}, nil
}

// page is the part of a list that follows a name, and the cursor to what follows
// that. A list that changes between two pages loses or repeats nothing that stays
// in it: a cursor is a place in the order of names, not a number.
func page(all []gateway.Tool, s gateway.Sort, after string) (_ []gateway.Tool, next string) {
	if after == "" && len(all) <= pageSize {
		return all, ""
	}
	byAlias := func(a, b gateway.Tool) int { return strings.Compare(a.Alias, b.Alias) }
	if !slices.IsSortedFunc(all, byAlias) {
		all = slices.Clone(all) // it is the gateway's
		slices.SortFunc(all, byAlias)
	}
	if after != "" {
		i, found := slices.BinarySearchFunc(all, after, func(t gateway.Tool, name string) int { return strings.Compare(t.Alias, name) })
		if found {
			i++
		}
		all = all[i:]
	}
	if len(all) <= pageSize {
		return all, ""
	}
	all = all[:pageSize]
	return all, writeCursor(s, all[pageSize-1].Alias)
}

// A cursor says where in which list its page ended. It is no secret and no
// authority: whoever makes one up only begins elsewhere in what they may see.
func writeCursor(s gateway.Sort, after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte("1\n" + string(s) + "\n" + after))
}

// readCursor reads one of ours for this sort of list; there are no two spellings
// of one. No cursor is the beginning.
func readCursor(v jsontext.Value, s gateway.Sort) (after string, ok bool) {
	if v == nil || v.Kind() == 'n' || string(v) == `""` {
		return "", true
	}
	if v.Kind() != '"' || len(v) > 2*maxURI {
		return "", false
	}
	text := unquote(v)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return "", false
	}
	after, ok = strings.CutPrefix(string(raw), "1\n"+string(s)+"\n")
	return after, ok && after != "" && writeCursor(s, after) == text
}

// Lists are long, and each is written once: they share memory.
var listBodies sync.Pool

// spentList takes the body of a list that was written.
func spentList(a answer) {
	if a.room > 0 {
		b := a.body[:0]
		listBodies.Put(&b)
	}
}

// answerList is the result of a list method, after some room. The definitions in
// it are their servers' own bytes, without what would cost an agent the whole list.
func answerList(member string, all []gateway.Tool, next string, modern bool) []byte {
	size := listRoom + 256 + len(next)
	for _, t := range all {
		size += len(t.Listed(modern)) + 1
	}
	var b []byte
	if last, ok := listBodies.Get().(*[]byte); ok && cap(*last) >= size {
		b = *last
	} else {
		b = make([]byte, 0, size)
	}
	b = append(append(append(b[:listRoom], `{"`...), member...), `":[`...)
	for i, t := range all {
		if i > 0 {
			b = append(b, ',')
		}
		def := []byte(t.Listed(modern))
		if mayBeOurs(def) {
			if clean, err := tidy(def); err == nil {
				def = clean
			}
		}
		b = append(b, bytes.TrimSpace(def)...)
	}
	b = append(b, ']')
	if next != "" {
		b = append(append(append(b, `,"nextCursor":"`...), next...), '"')
	}
	if modern {
		b = append(b, `,"resultType":"complete","ttlMs":`...)
		b = strconv.AppendInt(b, listTTL.Milliseconds(), 10)
		b = append(b, `,"cacheScope":"private"`...)
	}
	return append(b, '}')
}
