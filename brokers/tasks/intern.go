package tasks

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"runtime"
	"sync"
	"weak"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// An interner reads records so that what many tasks have in common is in memory
// once: scopes are compiled once each, and names kept once. Scopes that no task
// has any more are forgotten.
type interner struct {
	mu     *sync.Mutex
	scopes map[[32]byte]weak.Pointer[authz.Scope] // by their JSON, which is the same for the same rows
	names  map[string]string
}

const mostNames = 100_000

func newInterner() interner {
	return interner{new(sync.Mutex), map[[32]byte]weak.Pointer[authz.Scope]{}, map[string]string{}}
}

// A stored task is a task whose scopes are not compiled yet.
type stored struct {
	gateway.Task
	Scope     json.RawMessage  `json:"scope"`
	Ancestors []storedAncestor `json:"ancestors"`
}

type storedAncestor struct {
	gateway.Ancestor
	Scope json.RawMessage `json:"scope"`
}

// task reads a task's JSON.
func (w interner) task(text []byte) (gateway.Task, error) {
	var s stored
	if err := json.Unmarshal(text, &s); err != nil {
		return gateway.Task{}, err
	}
	t, err := s.Task, error(nil)
	if t.Scope, err = w.scope(s.Scope); err != nil {
		return gateway.Task{}, err
	}
	for _, a := range s.Ancestors {
		if a.Ancestor.Scope, err = w.scope(a.Scope); err != nil {
			return gateway.Task{}, err
		}
		w.share(&a.Kind, &a.Principal, &a.ID, &a.Owner, &a.OnBehalfOf)
		t.Ancestors = append(t.Ancestors, a.Ancestor)
	}
	w.share(&t.Tenant, &t.Kind, &t.Owner, &t.OnBehalfOf, &t.Principal, &t.StartedBy, &t.Parent, (*string)(&t.State))
	return t, nil
}

func (w interner) scope(text []byte) (*authz.Scope, error) {
	if len(text) == 0 || bytes.Equal(text, []byte("null")) {
		return nil, nil
	}
	sum := sha256.Sum256(text)
	w.mu.Lock()
	known := w.scopes[sum].Value()
	w.mu.Unlock()
	if known != nil {
		return known, nil
	}
	s := new(authz.Scope)
	if err := s.UnmarshalJSON(text); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.scopes[sum].Value(); known != nil {
		return known, nil
	}
	w.scopes[sum] = weak.Make(s)
	runtime.AddCleanup(s, func(sum [32]byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.scopes[sum].Value() == nil {
			delete(w.scopes, sum)
		}
	}, sum)
	return s, nil
}

func (w interner) share(names ...*string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		if known, ok := w.names[*n]; ok {
			*n = known
			continue
		}
		if len(w.names) >= mostNames {
			clear(w.names)
		}
		w.names[*n] = *n
	}
}
