package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// full returns an event with every field set by fill.
func full(text func() string, number func() int64) Event {
	var e Event
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(text())
		case reflect.Int, reflect.Int64:
			v.SetInt(number())
		case reflect.Bool:
			v.SetBool(number()%2 == 0)
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem())
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			fill(v.Index(0))
			fill(v.Index(1))
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		default:
			panic("an event holds a " + v.Kind().String())
		}
	}
	fill(reflect.ValueOf(&e).Elem())
	return e
}

func canonical(t interface{ Fatalf(string, ...any) }, line []byte) []byte {
	v := jsontext.Value(bytes.Clone(line))
	if err := v.Canonicalize(); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return v
}

// Whatever an event holds, its line is canonical as it comes out of the encoder.
func TestEveryLineIsCanonical(t *testing.T) {
	enc := newEncoder()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
			"", "a<b>&c", "\u2028\u2029", "\xff\xfe", "\ufffd", "\x00\x01\x1f\x7f", `back\slash "quote"`, "é🙂", "\b\f\n\r\t", `\u2028`,
			strings.Repeat("x", 3000), strings.Repeat("é", 2000),
		}))
		number := rapid.Int64Range(-1<<53, 1<<53)
		e := full(func() string { return text.Draw(t, "text") }, func() int64 { return number.Draw(t, "number") })
		e.MonoNS = e.MonoNS / 1000 * 1000
		line, err := enc.line(&e)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if line[len(line)-1] != '\n' || bytes.IndexByte(line, '\n') != len(line)-1 || !utf8.Valid(line) {
			t.Fatalf("not one line: %q", line)
		}
		line = line[:len(line)-1]
		if !bytes.Equal(line, canonical(t, line)) {
			t.Fatalf("not canonical:\n%s\n%s", line, canonical(t, line))
		}
		if short := len(line) <= maxText; short {
			if want := canonical(t, must(json.Marshal(e))); !bytes.Equal(line, want) {
				t.Fatalf("not what encoding/json says:\n%s\n%s", line, want)
			}
		}
	})
}

// Whatever of an event is left out, the encoder says what encoding/json would.
func TestEveryMemberIsWrittenAsJSONHasIt(t *testing.T) {
	same := func(e Event) {
		t.Helper()
		if got, want := bytes.TrimSpace(newEncoder().encode(&e)), canonical(t, must(json.Marshal(e))); !bytes.Equal(got, want) {
			t.Errorf("%s\nwant\n%s", got, want)
		}
	}
	same(Event{})
	e := full(func() string { return "x" }, func() int64 { return 7 })
	same(e)
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() { // without each member, and with an empty one
		was := reflect.New(v.Field(i).Type()).Elem()
		was.Set(v.Field(i))
		v.Field(i).SetZero()
		same(e)
		if v.Field(i).Kind() == reflect.Pointer {
			v.Field(i).Set(reflect.New(v.Field(i).Type().Elem()))
			same(e)
		}
		v.Field(i).Set(was)
	}
}

// What is written without a library is what the library would write.
func TestTimesAndLeavesAreTheLibrarys(t *testing.T) {
	sum := sha256.New()
	var small tree
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMicro(rapid.Int64Range(-1<<55, 1<<58).Draw(t, "time")).UTC()
		if got, want := string(appendTime(nil, at)), at.Format(timeFormat); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		line := rapid.SliceOf(rapid.Byte()).Draw(t, "line")
		leaf := tlog.RecordHash(line)
		if got := appendLeaf(nil, sum, line); !bytes.Equal(got, leaf[:]) {
			t.Fatalf("%x, want %x", got, leaf)
		}
		want := must(tlog.StoredHashesForRecordHash(small.size, leaf, &small))
		if got := small.add(leaf); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

func TestMembersStandInOrderWithoutHelp(t *testing.T) {
	e := full(func() string { return "x" }, func() int64 { return 7 })
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		t.Fatal(err)
	}
	line := bytes.TrimSpace(b.Bytes())
	if want := canonical(t, line); !bytes.Equal(line, want) {
		t.Errorf("fields out of order:\n%s\nwant\n%s", line, want)
	}
}

func TestLongStringsAreCutAndSaySo(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	shared := &Task{ID: "t-1", Purpose: strings.Repeat("ü", 5000)}
	e := Event{Type: TaskStarted, Tenant: "acme", Task: shared, Detail: strings.Repeat("d", 1<<20)}
	if err := l.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	rules := Event{Type: CallDenied, Decision: &Decision{}}
	for range 1000 {
		rules.Decision.Rules = append(rules.Decision.Rules, strings.Repeat("r", 100))
	}
	if err := l.Append(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if len(shared.Purpose) != 10000 || len(rules.Decision.Rules) != 1000 {
		t.Error("the caller's event was changed")
	}
	var got []Event
	for line := range Read(cfg.Dir, 1) {
		got = append(got, line.Event)
	}
	if p := got[0].Task.Purpose; len(p) > maxText || !strings.HasSuffix(p, "ü…") {
		t.Errorf("purpose: %d bytes", len(p))
	}
	if d := got[0].Detail; len(d) != maxText || !strings.HasSuffix(d, "d…") {
		t.Errorf("detail: %d bytes", len(d))
	}
	if r := got[1].Decision.Rules; len(r) != tightList || r[tightList-1] != "… and 969 more" {
		t.Errorf("rules: %d, %q", len(r), r[len(r)-1])
	}
	whole(t, cfg)
}

func TestALineThatStaysTooLongIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	big := Event{Type: ApprovalVote, Approval: &Approval{Votes: make([]Vote, 2000)}}
	exact := Event{Type: RateLimited, Count: 1<<53 + 1}
	for _, bad := range []Event{big, exact} {
		if err := l.Append(t.Context(), call("c1", CallAllowed), bad); err == nil {
			t.Errorf("%s was taken", bad.Type)
		}
	}
	if got := types(t, cfg.Dir); got != "audit.started" {
		t.Errorf("log: %s", got)
	}
	if err := l.Append(t.Context(), call("c1", CallAllowed)); err != nil {
		t.Error(err)
	}
	whole(t, cfg)
}

// The scanner only ever takes what the library takes too, and reads the same.
func FuzzReadLine(f *testing.F) {
	f.Add([]byte(`{"integrity":{"idx":1,"log":"a","prev":"b"},"time":"2026-11-23T07:43:38.123456Z","type":"x","v":1}`))
	f.Add([]byte(`{"a":[1,-0,01,1e3,1.5],"b":"\u2028"}`))
	f.Add([]byte(`{"b":1,"a":1}`))
	f.Add([]byte(`[[[[[[[[[[[[[]]]]]]]]]]]]]`))
	f.Add([]byte(`{"v":900719925474099300}`))
	f.Add([]byte(`{"v":123456789012345678}`))
	f.Add([]byte(`"`))
	enc := newEncoder()
	e := full(func() string { return "x" }, func() int64 { return 5 })
	f.Add(bytes.TrimSpace(must(enc.line(&e))))
	f.Fuzz(func(t *testing.T, line []byte) {
		var fast, slow head
		if s := (scanner{in: line, h: &fast}); !s.value(secTop, nil) || s.at != len(line) {
			_ = fast.parse(line)
			return
		}
		if want := canonical(t, line); !bytes.Equal(want, line) {
			t.Fatalf("taken, but not canonical:\n%s\n%s", line, want)
		}
		if line[0] != '{' {
			return
		}
		if err := slow.parseSlow(line); err != nil {
			return // its members have other types than ours; no line of ours then
		}
		if fast.index != slow.index || fast.version != slow.version {
			t.Fatalf("%s: %+v, %+v", line, fast, slow)
		}
		for _, p := range [][2][]byte{{fast.log, slow.log}, {fast.prev, slow.prev}, {fast.id, slow.id}, {fast.time, slow.time},
			{fast.key, slow.key}, {fast.typ, slow.typ}, {fast.tenant, slow.tenant}, {fast.task, slow.task}, {fast.call, slow.call}, {fast.approval, slow.approval}} {
			if !bytes.Equal(p[0], p[1]) {
				t.Fatalf("%s: %q, %q", line, p[0], p[1])
			}
		}
	})
}
