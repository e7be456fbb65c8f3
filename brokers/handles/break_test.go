package handles_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/handles"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

const records = "tb:{acme}:handle:"

func handle(id string) gateway.Handle { return gatewaytest.AHandle("acme", "task-1", id, time.Now()) }

func keep(t *testing.T, h *handles.Handles, one gateway.Handle) {
	t.Helper()
	if err := h.Keep(t.Context(), one); err != nil {
		t.Fatal(err)
	}
}

// Somebody with full access to Redis can take handles away, but make none, move
// none, and give none to another.
func TestForgedHandles(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, forge := range map[string]func(t *testing.T, s *redistest.Server){
			"a flipped byte": func(t *testing.T, s *redistest.Server) {
				b := []byte(s.Do(t, "HGET", records+"h1", "handle").(string))
				b[len(b)-1] ^= 1
				s.Do(t, "HSET", records+"h1", "handle", b)
			},
			"in the clear": func(t *testing.T, s *redistest.Server) {
				text, _ := json.Marshal(map[string]any{"handle": handle("h1"), "bytes": make([][]byte, 6)})
				s.Do(t, "HSET", records+"h1", "handle", text)
			},
			"another handle": func(t *testing.T, s *redistest.Server) {
				s.Do(t, "HSET", records+"h1", "handle", s.Do(t, "HGET", records+"h2", "handle"))
			},
			"another tenant's of that id": func(t *testing.T, s *redistest.Server) {
				s.Do(t, "HSET", records+"h1", "handle", s.Do(t, "HGET", "tb:{globex}:handle:h1", "handle"))
			},
			"another version": func(t *testing.T, s *redistest.Server) { s.Do(t, "HINCRBY", records+"h1", "seq", 1) },
			"no version":      func(t *testing.T, s *redistest.Server) { s.Do(t, "HDEL", records+"h1", "seq") },
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				a := replica(t, s)
				one := handle("h1")
				keep(t, a, one)
				keep(t, a, handle("h2"))
				theirs := one
				theirs.Tenant, theirs.Binding = "globex", "mallory"
				keep(t, a, theirs)
				forge(t, s)
				for _, h := range []*handles.Handles{a, replica(t, s)} {
					if got, err := h.Handle(t.Context(), "acme", "h1"); err == nil {
						t.Errorf("it is %+v", got)
					}
					if got, err := h.Move(t.Context(), one); err == nil {
						t.Errorf("it moved to %+v", got)
					}
				}
				// What is nobody's does not keep the others of its task alive.
				if n, err := a.EndTask(t.Context(), "acme", "task-1"); err != nil || n != 1 {
					t.Errorf("ended %d, %v", n, err)
				}
			})
		}
	})
}

// What a replica saw move does not go back, whoever puts an old record there.
func TestAnOldHandlePutBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, b := replica(t, s), replica(t, s)
		one := handle("h1")
		keep(t, a, one)
		seq, old := s.Do(t, "HGET", records+"h1", "seq"), s.Do(t, "HGET", records+"h1", "handle")
		next := one
		next.Run = "call-1"
		if _, err := a.Move(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Handle(t.Context(), "acme", "h1"); err != nil {
			t.Fatal(err)
		}
		s.Do(t, "HSET", records+"h1", "seq", seq, "handle", old)
		for _, h := range []*handles.Handles{a, b} {
			if got, err := h.Handle(t.Context(), "acme", "h1"); err == nil || errors.Is(err, gateway.ErrNotFound) {
				t.Errorf("it is %+v, %v", got, err)
			}
			if got, err := h.Move(t.Context(), one); err == nil {
				t.Errorf("it runs twice: %+v", got)
			}
		}
	})
}

// One that is put back after its time is gone all the same.
func TestAnExpiredHandlePutBack(t *testing.T) {
	s := redistest.Embedded(t)
	s.Advance(0)
	a := replica(t, s)
	keep(t, a, gatewaytest.AHandle("acme", "task-1", "h1", s.Now()))
	old := s.Do(t, "HGET", records+"h1", "handle")
	s.Advance(time.Hour)
	s.Do(t, "HSET", records+"h1", "seq", 1, "handle", old)
	if got, err := a.Handle(t.Context(), "acme", "h1"); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("it is %+v, %v", got, err)
	}
}

func TestNothingInTheClear(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s)
		one := handle("h1")
		one.Call.Args, one.Call.Name, one.Message, one.Binding = json.RawMessage(`"canary-args"`), "canary-name", "canary-message", "canary-binding"
		keep(t, a, one)
		one.Result.Raw, one.Status = json.RawMessage(`"canary-result"`), gateway.HandleCompleted
		if _, err := a.Move(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		if all := s.All(t); strings.Contains(all, "canary") || !strings.Contains(all, records+"h1") {
			t.Errorf("Redis holds %q", all)
		}
	})
}

// Every part of a handle that is somebody's own bytes comes back as it was, also
// parts that nobody has thought of yet.
func TestEveryByteComesBack(t *testing.T) {
	s := redistest.Embedded(t)
	a := replica(t, s)
	one := handle("h1")
	n := 0
	fill(reflect.ValueOf(&one).Elem(), &n)
	keep(t, a, one)
	got, err := a.Handle(t.Context(), "acme", "h1")
	if err != nil || !reflect.DeepEqual(got, one) || n < 6 {
		t.Errorf("%d parts came back as\n%+v, %v\nwant\n%+v", n, got, err, one)
	}
}

func fill(v reflect.Value, n *int) {
	if v.Type() == reflect.TypeFor[json.RawMessage]() {
		*n++
		v.SetBytes(fmt.Appendf(nil, " {\"<%d>\" : 1e2 }\n", *n))
		return
	}
	if v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]() {
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	}
}

func TestBounds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s)
		for i := range 8 {
			one := handle(fmt.Sprint("h", i))
			one.Expires = time.Now().Add(time.Duration(i+1) * time.Hour)
			keep(t, a, one)
		}
		if err := a.Keep(t.Context(), handle("many")); !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("one more than a task may have: %v", err)
		}
		other := handle("other")
		other.Task = "task-2"
		keep(t, a, other)
		other.Result.Raw = bytes.Repeat([]byte("1"), 65<<10)
		if _, err := a.Move(t.Context(), other); !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("one that grew too large: %v", err)
		}
		if got, err := a.Handle(t.Context(), "acme", "other"); err != nil || got.Seq != 1 {
			t.Errorf("it is %+v, %v", got, err)
		}
		other.ID, other.Seq = "large", 0
		if err := a.Keep(t.Context(), other); !errors.Is(err, gateway.ErrTooMany) {
			t.Errorf("a large one: %v", err)
		}
		nested := handle("nested")
		nested.Task, nested.Result.Handle = "task-2", &other
		if err := a.Keep(t.Context(), nested); err == nil {
			t.Error("a handle within a handle is kept")
		}
		if _, err := a.Handle(t.Context(), "acme", "not:an:id"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("what cannot be an id: %v", err)
		}
		if !s.Advance(90 * time.Minute) {
			return
		}
		keep(t, a, gatewaytest.AHandle("acme", "task-1", "room", s.Now())) // one of them has expired
	})
}
