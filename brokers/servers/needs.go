package servers

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"toolbroker/gateway"
)

// Some servers of before 2026-07-28 have tools only for clients that said, when their
// session opened, that they can be asked for something. The listing says that it can
// be asked everything (listingCaps); these say less, to learn what each such tool needs.
var lesser = []struct{ need, caps string }{
	{"elicitation.form", `{"elicitation":{"form":{}}}`},
	{"elicitation.url", `{"elicitation":{"url":{}}}`},
	{"sampling", `{"sampling":{}}`},
	{"roots", `{"roots":{}}`},
}

const (
	looksAgain = 10 * time.Minute // while it is taken for granted what tools need that have not changed
	lookTime   = 10 * time.Second // for a look: what was listed waits for it
)

var errModern = errors.New("the server speaks 2026-07-28")

// sort says of each tool in a listing what its client needs to be. What cannot be seen
// now is taken as it was, and looked at with the next listing.
func (f *feed) sort(ctx context.Context, found *listing, lease gateway.Lease) {
	if prev := f.current; prev != nil && time.Since(prev.looked) < looksAgain && sameTools(prev, found) {
		found.looked = prev.looked // its tools were taken from there
		return
	}
	if !slices.ContainsFunc(found.tools, isTool) {
		return
	}
	if f.bare == nil {
		f.bare = f.lookBare(ctx, lease)
	}
	bare, err := f.bare()
	f.bare = nil
	var more []int
	for i := range found.tools {
		if t := &found.tools[i]; err == nil && isTool(*t) {
			if t.Needs = nil; !bare[t.Name] {
				more = append(more, i)
			}
		}
	}
	if len(more) > 0 {
		err = f.sortMore(ctx, found, more, lease)
	}
	if err != nil {
		f.all.log.Debug("what a server shows to other clients could not be seen", "server", f.s.Name, "err", err)
		return
	}
	found.looked = time.Now()
}

// sortMore finds out which single ability is enough for each of some tools, and takes
// any of them to be where none is.
func (f *feed) sortMore(ctx context.Context, found *listing, more []int, lease gateway.Lease) error {
	var all sync.WaitGroup
	shown, errs := make([]map[string]bool, len(lesser)), make([]error, len(lesser))
	for i, c := range lesser {
		all.Go(func() { shown[i], errs[i] = f.names(ctx, lease, json.RawMessage(c.caps)) })
	}
	all.Wait()
	for _, i := range more {
		t := &found.tools[i]
		for k, c := range lesser {
			if shown[k][t.Name] {
				t.Needs = append(t.Needs, c.need)
			}
		}
		if len(t.Needs) == 0 {
			for _, c := range lesser {
				t.Needs = append(t.Needs, c.need)
			}
		}
	}
	return errors.Join(errs...)
}

// lookBare begins to list what the server has for everybody, and returns what waits for
// that.
func (f *feed) lookBare(ctx context.Context, lease gateway.Lease) func() (map[string]bool, error) {
	var found map[string]bool
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		found, err = f.names(ctx, lease, nil)
	}()
	return func() (map[string]bool, error) {
		<-done
		return found, err
	}
}

// names lists the tools that the server has for a client that can be asked what caps
// says, in a session of its own.
func (f *feed) names(ctx context.Context, lease gateway.Lease, caps json.RawMessage) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, min(f.s.Timeout, lookTime))
	defer cancel()
	var l link
	var g greeting
	var err error
	switch e := era(f.s.era.Load()); e {
	case modernEra:
		return nil, errModern
	case unknownEra:
		l, g, err = f.all.greet(ctx, f.s, lease, client{caps: caps})
	default:
		l, g, err = f.all.session(ctx, f.s, lease, client{caps: caps}, e)
	}
	if err != nil {
		return nil, err
	}
	defer l.close(context.WithoutCancel(ctx))
	if g.era == modernEra {
		return nil, errModern
	}
	names := map[string]bool{}
	if !g.can.lists(gateway.SortTool) {
		return names, nil
	}
	err = f.s.pages(ctx, l, g.era, 0, func(raw json.RawMessage) {
		if m, found := memberOf(raw, "name"); found {
			if name, ok := word(m.value); ok {
				names[name] = true
			}
		}
	})
	if bad, ok := errors.AsType[errList](err); ok && bad.code == codeMethod {
		err = nil // it has none
	}
	return names, err
}

func isTool(t gateway.Tool) bool { return t.Sort == "" || t.Sort == gateway.SortTool }

// sameTools reports whether two listings hold the same tools, in whatever order.
func sameTools(a, b *listing) bool { return maps.Equal(toolsIn(a), toolsIn(b)) }

func toolsIn(l *listing) map[string]string {
	tools := map[string]string{}
	for _, t := range l.tools {
		if isTool(t) {
			tools[t.Name] = t.Hash
		}
	}
	return tools
}
