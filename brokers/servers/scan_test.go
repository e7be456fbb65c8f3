package servers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// alike fails where in is read otherwise than it was by slower readers: another
// thing is taken, found, or made of it.
func alike(t testing.TB, in []byte) {
	before := bytes.Clone(in)
	defer func() {
		if !bytes.Equal(in, before) {
			t.Errorf("the reader changed %.500q", before)
		}
	}()
	for _, split := range []struct {
		now, was func([]byte) ([]member, error)
	}{{members, slowMembers}, {elements, slowElements}} {
		now, err := split.now(in)
		was, want := split.was(in)
		if (err == nil) != (want == nil) || len(now) != len(was) || len(now) > 0 && !reflect.DeepEqual(now, was) {
			t.Fatalf("%.500q was\n%v, %v, and is\n%v, %v", in, was, want, now, err)
		}
	}
	if now, was := object(in), jsontext.Value(in).Kind() == '{' && jsontext.Value(in).IsValid(); now != was {
		t.Fatalf("%.500q is an object: was %v, is %v", in, was, now)
	}
	if jsontext.Value(in).IsValid() {
		if now, was := depth(in), slowDepth(in); now != was {
			t.Fatalf("%.500q was %d deep, is %d", in, was, now)
		}
	}
	now, err := parse(in)
	was, want := slowParse(in)
	now.tree, now.at = tree{}, 0
	if !reflect.DeepEqual(now, was) || !reflect.DeepEqual(err, want) {
		t.Fatalf("the message %.500q was\n%+v, %v, and is\n%+v, %v", in, was, want, now, err)
	}
}

// answersAlike does the same for a whole answer, to each method, in each era.
func answersAlike(t testing.TB, in []byte) {
	frame := append(append([]byte(`{"jsonrpc":"2.0","id":1,"result":`), in...), '}')
	for _, method := range []string{"", gateway.MethodRead, gateway.MethodGet, gateway.MethodComplete, gateway.MethodTaskGet} {
		for _, e := range []era{legacyEra, modernEra} {
			for _, space := range []string{"", "x+"} {
				f := gateway.Forward{Method: method, Caps: json.RawMessage(`{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)}
				m, err := answerTo(1, frame)
				var now gateway.Result
				if err == nil {
					now, err = (&server{space: space}).answer(f, e, m)
				}
				was, want := slowAnswer(space, f, e, 1, frame)
				if !reflect.DeepEqual(now, was) || fmt.Sprint(err) != fmt.Sprint(want) {
					t.Fatalf("to %q, era %d, %q was\n%+v, %v, and is\n%+v, %v", method, e, in, was, want, now, err)
				}
			}
		}
	}
}

// What there is about strings, numbers, names and nesting, and near misses of it.
var oddities = []string{
	``, ` `, `{}`, ` { } `, `[]`, `[ ]`, `{} {}`, `{}x`, `[]x`, `{}` + "\x00", `{"a":1,}`, `[1,]`, `[,1]`, `{,}`, `{"a"}`, `{"a":}`, `{"a" 1}`, `{"a":1 "b":2}`, `{a:1}`, `[1 2]`, "\ufeff{}", "\v{}", `{`, `[`, `{"a":1`, `[1`, `{"`, `{"a`, `{"a\`,
	`{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":1,"A":2}`, `{"":1,"":2}`, `{"x":{"a":1,"a":2}}`, `{"x":[{"a":1,"a":2}]}`, `{"a":{"a":{"a":1}},"b":{"a":1}}`, "{\"\xff\":1,\"\xfe\":2}",
	`[0]`, `[-0]`, `[00]`, `[01]`, `[-]`, `[-01]`, `[1.]`, `[.1]`, `[1.0]`, `[1e]`, `[1e+]`, `[1e-9]`, `[1E+99999]`, `[+1]`, `[1.e1]`, `[0x1]`, `[0e0]`, `[1e1.5]`, `[NaN]`, `[--1]`, `[1-1]`,
	`[true,false,null]`, `[tru]`, `[truee]`, `[nul`, `[True]`, `[t]`,
	`["\"\\\/\b\f\n\r\t\u00e9"]`, `["\x"]`, `["\u12"]`, `["\u12g4"]`, `["\U0041"]`, `["\ud83d\ude00"]`, `["\ud83d"]`, `["\ude00"]`, `["\ud83d\ud83d"]`, `["\ud83d\u0041"]`, `["\ud83dx"]`, `["\ud83d\ude0"]`, `["\uD83D\uDE00"]`, `["\u0000"]`, `{"\ud800":1}`, `["\ud83d\n"]`, `["\ud83d`, `["\u`,
	"[\"\x00\"]", "[\"\x1f\"]", "[\"\x7f\"]", "[\"a\nb\"]", "[\"\xff\"]", "[\"\xc3\"]", "[\"\xc3\xa9\"]", "[\"\xed\xa0\x80\"]", "[\"\xf4\x90\x80\x80\"]", "[\"\xc0\x80\"]", "[\"日本語\"]", "[\"\xe6\x97\"]", "\xa0[]", "[\u00a0]", "[1\u2028]", "[\"a\"] \xff", "{} \xff",
	`{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","id":-1,"result":{}}`, `{"jsonrpc":"2.0","id":null,"result":{}}`, `{"jsonrpc":"2.0","id":true,"result":{}}`, `{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}`, `{"jsonrpc":"2.0","id":1,"result":[]}`, `{"jsonrpc":"2.0","method":"a\u0062","params":[1]}`, `{"jsonrpc":"2.0","method":""}`, `{"jsonrpc":"2.0","id":1,"method":"m","result":{}}`, `{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":"m"}}`, `{"jsonrpc":"2.\u0030","id":1,"result":{}}`, `{"jsonrpc":"2.0","result":{}}`, `{"jsonrpc":"2.0","id":1,"r\u0065sult":{}}`, `{"jsonrpc":"2.0","id":1,"error":{"code":1.5,"message":"m"}}`, `{"jsonrpc":"2.0","id":1,"error":7}`,
}

// Results, good and bad.
var odder = []string{
	`{"content":[]}`, `{"content":[{"type":"text","text":"x"}],"isError":true}`, `{"content":[{}]}`, `{"content":[null]}`, `{"content":[{"type":null}]}`, `{"content":[{"type":7}]}`, `{"content":[{"Type":"x"}]}`, `{"content":[{"type":"x","TYPE":null}]}`, `{"content":[{"TYPE":null,"type":"x"}]}`, `{"content":[{"type":"x","tYpe":[]}]}`, `{"content":[{"TYPE":7,"type":"x"}]}`, `{"content":[{"\u0074ype":"x"}]}`, `{"content":{}}`, `{"content":null}`, `{"content":[[]]}`, `{"content":"x"}`,
	`{"content":[],"isError":null}`, `{"content":[],"isError":"x"}`, `{"task":{}}`, `{"task":{},"content":[]}`, `{}`, `{"resultType":"complete"}`, `{"resultType":7}`, `{"resultType":"c\u006fmplete"}`, `{"resultType":"x"}`, `{"resultType":"input_required","requestState":"s"}`, `{"resultType":"input_required","inputRequests":[]}`, `{"resultType":"input_required"}`, `{"resultType":"task","taskId":"t"}`, `{"resultType":"task","taskId":7}`, `{"resultType":"task"}`,
	`{"contents":[{"uri":"a:b"},{"uri":"c\u003ad"},{"uri":7},{"URI":"e:f"}]}`, `{"contents":{}}`, `{"contents":[7]}`, `{"c\u006fntents":[{"u\u0072i":"a:b"}]}`,
	`{"content":[{"type":"resource_link","uri":"a:b"},{"type":"resource","resource":{"uri":"a:b"}},{"type":"resource","resource":[{"uri":"a:b"}]},{"type":"text","uri":"a:b"},{"uri":"z:z","type":"resource_l\u0069nk"}]}`, `{"content":{"type":"resource_link","uri":"a:b"}}`, `{"contents":[],"content":[{"type":"resource_link","uri":"\ud83d\ude00\u0000"}]}`,
	`{"messages":[{"role":"user","content":{"type":"resource_link","uri":"a:b"}},{"content":[{"type":"resource","resource":{"uri":"q:r"}}]},7]}`, `{"messages":[{"content":[{"type":"resource_link","uri":"a:b","content":[{"type":"resource_link","uri":"n:n"}]}]}]}`,
	`{"status":"working"}`, `{"status":"completed","result":{"content":[{"type":"resource_link","uri":"a:b"}],"result":{"contents":[{"uri":"a:b"}]}}}`, `{"status":"x","result":[{"contents":[{"uri":"a:b"}]}]}`, `{"status":1}`, `{"completion":{}}`, `{"completion":[]}`,
	`{"_meta":{"io.toolbroker/x":1,"a" : 2 , "b":{"io.toolbroker/y":1}},"contents":[{"uri":"a:b","_meta":{"io.toolbroker/z":1}}]}`, `{"_meta":{"io.\u0074oolbroker/x":1}}`, `{"_meta":{"a":1}}`, `{"_meta":[{"io.toolbroker/x":1}]}`, `{"_meta":"io.toolbroker/x"}`, `{"\u005fmeta":{"io.toolbroker/":1}}`,
	`{"structuredContent":{"content":[{"type":"resource_link","uri":"a:b"}],"a":{"a":1,"a":2}}}`, `{"structuredContent":{"contents":[{"uri":"a:b"}]},"contents":[]}`,
}

func TestReadsWhatItRead(t *testing.T) {
	for _, s := range oddities {
		for pad := range 9 { // so that everything falls on each place in a word
			alike(t, []byte(strings.Repeat(" ", pad)+s))
			alike(t, []byte(`{"`+strings.Repeat("p", pad)+`":`+s+`}`))
			alike(t, []byte(`["`+strings.Repeat("p", pad)+`",`+s+`]`))
		}
	}
	for _, s := range odder {
		answersAlike(t, []byte(s))
	}
	for _, n := range []int{255, 256, 257, maxNested - 1, maxNested, maxNested + 1, maxNested + 2} {
		for _, ends := range [][2]string{{"[", "]"}, {`{"a":`, "}"}} {
			for _, middle := range []string{"1", "[]", "{}"} {
				deep := strings.Repeat(ends[0], n) + middle + strings.Repeat(ends[1], n)
				alike(t, []byte(deep))
				answersAlike(t, []byte(`{"content":[],"structuredContent":`+deep+`}`))
				if n < 300 {
					answersAlike(t, []byte(`{"result":`+deep+`,"status":"x"}`))
				}
			}
		}
	}
	// Names, few and many, with one that stands twice or does not.
	for n := range 3 * fewNames {
		for _, last := range []string{"n0", fmt.Sprintf("n%d", n/2), `\u006e0`, "other"} {
			var b strings.Builder
			for i := range n {
				fmt.Fprintf(&b, `"n%d":{"n%d":1,"n0":[{"n0":1}]},`, i, i+1)
			}
			alike(t, []byte(`{`+b.String()+`"`+last+`":1}`))
		}
	}
}

// FuzzRead holds the reader of replies to slower ones, which it took the place of.
func FuzzRead(f *testing.F) {
	for _, s := range append(oddities, odder...) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		alike(t, in)
		answersAlike(t, in)
	})
}

// TestReadsWhatItReadOfAnything puts results together out of their parts, and breaks
// some of them.
func TestReadsWhatItReadOfAnything(t *testing.T) {
	parts := []string{`"`, `\`, `\u`, `{`, `}`, `[`, `]`, `,`, `:`, ` `, "\n", `""`, `"type"`, `"uri":"a:b"`, `"content":[`, `"contents":[{`, `"messages":[{`, `"resource":{`, `"_meta":{"io.toolbroker/x":1,`, `"result":{`, `"resultType":`, `null`, `true`, `1`, `-`, `e`, `.`, "\xff", "é", "\x01", `\ud83d\ude00`, `12345678`}
	r := rand.New(rand.NewPCG(1, 2))
	for range 60_000 {
		b := []byte(odder[r.IntN(len(odder))])
		for range r.IntN(4) {
			part := parts[r.IntN(len(parts))]
			if r.IntN(3) == 0 {
				part = odder[r.IntN(len(odder))]
			}
			at := r.IntN(len(b) + 1)
			end := min(len(b), at+r.IntN(3)*r.IntN(6))
			b = append(b[:at:at], append([]byte(part), b[end:]...)...)
		}
		alike(t, b)
		if r.IntN(4) == 0 {
			answersAlike(t, b)
		}
	}
}
