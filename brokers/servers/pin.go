package servers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// Trust says what becomes of definitions that no admin has accepted.
type Trust string

// FirstUse accepts what a server's first catalogue holds, unless it is flagged,
// and nothing that comes after; Review accepts nothing by itself.
const (
	FirstUse Trust = "first_use"
	Review   Trust = "review"
)

// sortInstructions is what a server says at its greeting of how to use it. It is
// pinned like the rest, so that a change is seen, and no agent ever reads it.
const sortInstructions gateway.Sort = "instructions"

// Why a definition is not offered.
const (
	heldUnread  = "what was accepted cannot be read"
	heldChanged = "changed since it was accepted"
	heldNew     = "new: nobody has accepted it"
	heldRenamed = "nobody has accepted it: the same, under another name, as "
	heldFlagged = "nobody has accepted it, and it holds what a reader would not see"
	heldTwice   = "the server offers two of this name"
	heldAlias   = "another server's has the same alias"
)

// pins keep what was accepted of each server's definitions, for each tenant, and
// hold back the rest.
//
// What counts is shared by the replicas, in Redis, and known here within a
// second; without a store it is in this process only. A Redis that forgot it, or
// has an older or a forged one, is told again: what a replica knew is never
// taken for a first look, and a file keeps that over a restart.
type pins struct {
	all   *Servers
	store *redis.Store
	file  string
	pace  time.Duration // between two looks at what other replicas accepted

	mu       sync.RWMutex
	books    map[site]*book    // as last confirmed; none: nothing is known
	unread   map[site]bool     // what a server said came to nothing: its book could not be read
	told     map[string]bool   // what is withheld and on record
	moves    map[string]string // of each tenant, as last seen
	programs map[string]string // digests of children's programs, by server
	refused  map[string]string // and of those that were not started, as they were not the pinned ones

	saving  sync.Mutex
	flagMu  sync.Mutex
	flagged map[string][]string // by hash: flags of definitions seen
}

// A site is one server as one tenant sees it.
type site struct{ tenant, server string }

// A thing is one definition of a server's.
type thing struct {
	sort gateway.Sort
	name string
}

func thingOf(t gateway.Tool) thing { return thing{cmp.Or(t.Sort, gateway.SortTool), t.Name} }

func (t thing) String() string {
	return string(t.sort) + " " + strconv.QuoteToASCII(clip(t.name))
}

// A pin is a definition that was accepted.
type pin struct {
	Sort  gateway.Sort `json:"sort"`
	Name  string       `json:"name"`
	Alias string       `json:"alias"`
	Hash  string       `json:"hash"`
	Print string       `json:"print"`          // of it without its name and title
	Text  string       `json:"text,omitempty"` // as it was; empty where it was too big to keep
	By    string       `json:"by"`
	At    time.Time    `json:"at"`
}

func (p pin) thing() thing { return thing{p.Sort, p.Name} }

// A book is what was accepted of one site. It never changes: each transition
// makes a new one, one Seq higher. That there is one says that the server's first
// catalogue has been.
type book struct {
	Seq  int64 `json:"seq"`
	Pins []pin `json:"pins"`

	byThing map[thing]int
	byPrint map[string]int
}

// What is kept of definitions, so that a change can be shown.
const (
	maxText  = 64 << 10 // of one
	maxTexts = 4 << 20  // of a server's, together
)

func (b *book) index() *book {
	b.byThing, b.byPrint = make(map[thing]int, len(b.Pins)), make(map[string]int, len(b.Pins))
	texts := 0
	for i := range b.Pins {
		p := &b.Pins[i]
		if texts += len(p.Text); len(p.Text) > maxText || texts > maxTexts {
			p.Text = ""
		}
		b.byThing[p.thing()], b.byPrint[p.Print] = i, i
	}
	return b
}

func (b *book) pinned(t thing) (pin, bool) {
	if b == nil {
		return pin{}, false
	}
	i, ok := b.byThing[t]
	if !ok {
		return pin{}, false
	}
	return b.Pins[i], true
}

// with is the next book, with one pin set.
func (b *book) with(p pin) *book {
	next := &book{Seq: b.Seq + 1, Pins: slices.Clone(b.Pins)}
	if i, ok := b.byThing[p.thing()]; ok {
		next.Pins[i] = p
	} else {
		next.Pins = append(next.Pins, p)
	}
	return next.index()
}

// good reports whether agents may see and use what a server defines: it is what
// was accepted. A resource comes and goes like a file in a folder, and its size
// and date with it: at first use it is no definition to accept, unless it is
// flagged.
func (p *pins) good(b *book, t gateway.Tool) bool {
	if b == nil {
		return false
	}
	if k, ok := b.pinned(thingOf(t)); ok && k.Hash == t.Hash {
		return true
	}
	return p.passing(t) && len(p.flagsOf(t)) == 0
}

// passing reports whether a thing needs nobody's acceptance.
func (p *pins) passing(t gateway.Tool) bool {
	srv := p.all.servers[t.Server]
	return t.Sort == gateway.SortResource && srv != nil && srv.Trust == FirstUse
}

// why says why a definition is not offered; empty: it is. What it quotes of the
// server's is plain ASCII.
func (p *pins) why(b *book, t gateway.Tool) string {
	switch {
	case b == nil:
		return heldUnread
	case p.good(b, t):
		return ""
	}
	if _, ok := b.pinned(thingOf(t)); ok {
		return heldChanged
	}
	if len(p.flagsOf(t)) > 0 {
		return heldFlagged
	}
	if i, ok := b.byPrint[fingerprint(t)]; ok {
		return heldRenamed + strconv.QuoteToASCII(clip(b.Pins[i].Name))
	}
	return heldNew
}

// flagsOf is flags, remembered.
func (p *pins) flagsOf(t gateway.Tool) []string {
	p.flagMu.Lock()
	defer p.flagMu.Unlock()
	if f, ok := p.flagged[t.Hash]; ok {
		return f
	}
	if len(p.flagged) > 4*maxTools {
		clear(p.flagged)
	}
	f := flags(t.Definition)
	p.flagged[t.Hash] = f
	return f
}

func pinOf(t gateway.Tool, by string) pin {
	k := thingOf(t)
	return pin{Sort: k.sort, Name: k.name, Alias: t.Alias, Hash: t.Hash, Print: fingerprint(t), Text: string(t.Definition), By: by, At: time.Now().UTC()}
}

// fingerprint is a digest of a definition without what it is called, so that
// another name does not make it another thing.
func fingerprint(t gateway.Tool) string {
	called := []string{"name", "title", "uri", "uriTemplate"}
	raw := without(t.Definition, called...)
	all, err := members(raw)
	if err != nil {
		return t.Hash
	}
	for _, m := range all {
		if m.name == "annotations" {
			raw = slices.Concat(raw[:m.at], without(m.value, "title"), raw[m.end:])
		}
	}
	print, err := digestOf(raw)
	if err != nil {
		return t.Hash
	}
	return print
}

// without is an object without some of its members; what is none stays as it is.
func without(object []byte, names ...string) []byte {
	all, err := members(bytesClone(object))
	if err != nil {
		return bytesClone(object)
	}
	out := []byte("{")
	for _, m := range all {
		if slices.Contains(names, m.name) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		quoted, err := jsontext.AppendQuote(out, m.name)
		if err != nil {
			return bytesClone(object)
		}
		out = append(append(quoted, ':'), m.value...)
	}
	return append(out, '}')
}

func bytesClone(b []byte) []byte { return append([]byte(nil), b...) }

// instructions makes a definition out of what a server says of itself; nothing
// where it says nothing.
func (s *server) instructions(text string) []gateway.Tool {
	if text == "" {
		return nil
	}
	quoted, err := jsontext.AppendQuote([]byte(`{"instructions":`), text)
	if err != nil {
		return nil // no JSON can hold it, so none brought it
	}
	definition := append(quoted, '}')
	canonical := jsontext.Value(bytesClone(definition))
	if canonical.Canonicalize() != nil {
		return nil
	}
	sum := sha256.Sum256(canonical)
	return []gateway.Tool{{Sort: sortInstructions, Server: s.Name, Name: "instructions", Definition: json.RawMessage(definition),
		Hash: "sha256:" + hex.EncodeToString(sum[:]), Kind: s.kind, Addr: s.addr}}
}

func newPins(s *Servers) (*pins, error) {
	p := &pins{all: s, store: s.config.Store, file: s.config.Keep, pace: 500 * time.Millisecond, books: map[site]*book{}, unread: map[site]bool{},
		told: map[string]bool{}, moves: map[string]string{}, programs: map[string]string{}, refused: map[string]string{}, flagged: map[string][]string{}}
	return p, p.load()
}

// admits reports whether agents of a tenant may see and use what a server
// defines. It asks nobody.
func (p *pins) admits(tenant string, t gateway.Tool) bool {
	return p.good(p.known(site{tenant, t.Server}), t)
}

// settle brings the pins of each of a feed's tenants up to what its server says
// now: first means that this process has not heard it before. What is withheld,
// and what came between two lives of ours, goes on record.
func (p *pins) settle(f *feed, said []gateway.Tool, first bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, tenant := range f.tenants {
		at := site{tenant, f.s.Name}
		b, fresh, err := p.open(ctx, at, f.s, said)
		if err != nil {
			p.all.log.Error("what was accepted of a server's definitions cannot be read or kept; what is not known here is withheld", "tenant", tenant, "server", f.s.Name, "err", err)
		}
		p.mu.Lock()
		if delete(p.unread, at); err != nil {
			p.unread[at] = true
		}
		p.mu.Unlock()
		p.tell(at, f.s, b, said, first && !fresh)
	}
}

// open returns the book of a site, and makes it out of a server's first
// catalogue where there is none. It is nil with an error, and where a server
// without a book says nothing.
func (p *pins) open(ctx context.Context, at site, srv *server, said []gateway.Tool) (b *book, fresh bool, err error) {
	if b := p.known(at); b != nil {
		return b, false, nil
	}
	b, fresh, err = p.change(ctx, at, func(old *book) *book {
		if old != nil || len(said) == 0 {
			return old
		}
		return p.firstBook(srv.Trust, said)
	})
	if err != nil || b == nil || !fresh {
		return b, false, err
	}
	if n := len(b.Pins); n > 0 {
		p.all.record(at.tenant, gateway.Fact{Type: audit.ToolPinned, Tool: srv.asTool(), Count: int64(n),
			Detail: fmt.Sprintf("first use: %d of %d definitions", n, len(said))})
	}
	return b, true, nil
}

// firstBook is what a first catalogue is worth.
func (p *pins) firstBook(trust Trust, said []gateway.Tool) *book {
	b := &book{Seq: 1}
	times := map[thing]int{}
	for _, t := range said {
		times[thingOf(t)]++
	}
	for _, t := range said {
		if trust == FirstUse && times[thingOf(t)] == 1 && !p.passing(t) && len(p.flagsOf(t)) == 0 {
			b.Pins = append(b.Pins, pinOf(t, string(FirstUse)))
		}
	}
	return b.index()
}

// tell puts on record what is withheld, once however often it comes and goes,
// and, with late, how what a server says differs from what was accepted in an
// earlier life: what changes while we look is told by whoever looks.
func (p *pins) tell(at site, srv *server, b *book, said []gateway.Tool, late bool) {
	var facts []gateway.Fact
	there := map[thing]bool{}
	for _, t := range said {
		k := thingOf(t)
		there[k] = true
		why := p.why(b, t)
		old, pinned := b.pinned(k)
		if why == "" || !p.fresh(at, k, t.Hash, fmt.Sprint(b == nil, old.Hash)) {
			continue
		}
		if f := p.flagsOf(t); len(f) > 0 {
			why += "; " + strings.Join(f, "; ")
		}
		if pinned {
			why += "; accepted was " + old.Hash
			if late || k.sort == sortInstructions {
				facts = append(facts, gateway.Fact{Type: audit.ToolsChanged, Tool: &t, Detail: "was " + old.Hash})
			}
		}
		facts = append(facts, gateway.Fact{Type: audit.ToolWithheld, Tool: &t, Detail: string(k.sort) + ": " + why})
	}
	if late && b != nil {
		for _, old := range b.Pins {
			if k := old.thing(); !there[k] {
				facts = append(facts, gateway.Fact{Type: audit.ToolsChanged, Detail: k.String() + ": gone; accepted was " + old.Hash,
					Tool: &gateway.Tool{Server: srv.Name, Name: old.Name, Hash: old.Hash, Kind: srv.kind, Addr: srv.addr}})
			}
		}
	}
	for _, f := range facts[:min(len(facts), maxTold)] {
		p.all.log.Warn("definition withheld or changed", "tenant", at.tenant, "server", at.server, "type", string(f.Type), "hash", f.Tool.Hash, "detail", f.Detail)
	}
	if more := len(facts) - maxTold; more > 0 {
		facts = append(facts[:maxTold], gateway.Fact{Type: audit.ToolWithheld, Tool: srv.asTool(), Count: int64(more), Detail: fmt.Sprintf("%d more are withheld or changed", more)})
	}
	p.all.record(at.tenant, facts...)
}

// fresh reports whether a definition, beside what was accepted, has not been told
// of. A server that flaps is told of once; one that never says the same twice is
// told of as often as it is listed.
func (p *pins) fresh(at site, k thing, hash, accepted string) bool {
	id := strings.Join([]string{at.tenant, at.server, string(k.sort), k.name, hash, accepted}, "\x00")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told[id] {
		return false
	}
	if len(p.told) > 4*maxTools {
		clear(p.told)
	}
	p.told[id] = true
	return true
}

func (p *pins) known(at site) *book {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.books[at]
}

// heard is what a feed's server says now, and whether it ever said anything.
func (s *Servers) heard(f *feed) ([]gateway.Tool, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.current == nil {
		return nil, false
	}
	return f.current.all(), true
}

// unfit is what a feed's server lists now and nobody can use.
func (s *Servers) unfit(f *feed) []unfit {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.current == nil {
		return nil
	}
	return f.current.unfit
}

// all is what a listing defines.
func (l *listing) all() []gateway.Tool { return slices.Concat(l.tools, l.instructions) }

// admitted is what a tenant may see of a listing.
func (p *pins) admitted(tenant string, l *listing) *listing {
	seen := *l
	seen.tools = slices.DeleteFunc(slices.Clone(l.tools), func(t gateway.Tool) bool { return !p.admits(tenant, t) })
	return &seen
}

// Definitions implements [gateway.Definitions].
func (s *Servers) Definitions(ctx context.Context, tenant string) ([]gateway.Definition, error) {
	all := []gateway.Definition{}
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		for _, f := range s.servers[name].feeds {
			if !slices.Contains(f.tenants, tenant) {
				continue
			}
			b, err := s.pins.look(ctx, site{tenant, name})
			if err != nil {
				return nil, fmt.Errorf("server %s: %w", name, err)
			}
			said, heard := s.heard(f)
			all = append(all, s.beside(tenant, name, b, said, s.unfit(f), heard)...)
		}
	}
	return all, nil
}

// beside puts what a server says beside what was accepted of it.
func (s *Servers) beside(tenant, server string, b *book, said []gateway.Tool, unfit []unfit, heard bool) []gateway.Definition {
	times := map[thing]int{}
	var all []gateway.Definition
	for _, t := range said {
		k := thingOf(t)
		times[k]++
		d := gateway.Definition{Tool: t, Server: server, Sort: k.sort, Name: t.Name, Alias: t.Alias, Hash: t.Hash, Seen: t.Definition,
			Held: s.pins.why(b, t), Flags: s.pins.flagsOf(t)}
		if p, ok := b.pinned(k); ok {
			accepted(&d, p)
		}
		all = append(all, d)
	}
	for i, d := range all {
		if d.Held == "" && d.Sort != sortInstructions {
			if times[thing{d.Sort, d.Name}] > 1 {
				all[i].Held = heldTwice
			} else if _, ok := s.Resolve(tenant, d.Sort, d.Alias); !ok {
				all[i].Held = heldAlias
			}
		}
	}
	for _, u := range unfit {
		times[u.thing()]++
		all = append(all, u.definition(server, b))
	}
	if b != nil {
		for _, p := range b.Pins {
			if times[p.thing()] > 0 {
				continue
			}
			d := gateway.Definition{Server: server, Sort: p.Sort, Name: p.Name, Alias: p.Alias, Held: "the server offers it no longer"}
			if !heard {
				d.Held = "the server has not been reached"
			}
			accepted(&d, p)
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b gateway.Definition) int {
		return cmp.Or(cmp.Compare(a.Sort, b.Sort), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Hash, b.Hash))
	})
	return all
}

func accepted(d *gateway.Definition, p pin) {
	d.Pinned, d.By, d.At = p.Hash, p.By, p.At
	if p.Text != "" {
		d.Accepted = json.RawMessage(p.Text)
	}
}

// Accept implements [gateway.Definitions].
func (s *Servers) Accept(ctx context.Context, tenant, server string, sort gateway.Sort, name, hash, by string) (gateway.Definition, error) {
	none := gateway.Definition{}
	srv := s.servers[server]
	if srv == nil || !slices.Contains(srv.Tenants, tenant) {
		return none, gateway.ErrNotFound
	}
	at, want := site{tenant, server}, thing{sort, name}
	for _, f := range srv.feeds {
		if !slices.Contains(f.tenants, tenant) {
			continue
		}
		said, heard := s.heard(f)
		found := slices.DeleteFunc(slices.Clone(said), func(t gateway.Tool) bool { return thingOf(t) != want })
		i := slices.IndexFunc(found, func(t gateway.Tool) bool { return t.Hash == hash })
		switch {
		case len(found) == 0:
			return none, gateway.ErrNotFound
		case i < 0, len(found) > 1:
			return none, gateway.ErrNotNow
		}
		b, _, err := s.pins.change(ctx, at, func(old *book) *book {
			if old == nil { // its first catalogue was not taken yet: that an admin was faster changes nothing
				old = s.pins.firstBook(srv.Trust, said)
			}
			return old.with(pinOf(found[i], by))
		})
		if err != nil {
			return none, fmt.Errorf("server %s: accept a definition: %w", server, err)
		}
		s.pins.tell(at, srv, b, said, false)
		s.again(tenant)
		for _, d := range s.beside(tenant, server, b, said, nil, heard) {
			if d.Sort == sort && d.Name == name {
				return d, nil
			}
		}
	}
	return none, gateway.ErrNotFound
}

// again makes a tenant's catalogue anew out of what is known.
func (s *Servers) again(tenant string) {
	s.mu.Lock()
	s.rebuild(tenant)
	s.mu.Unlock()
	if s.config.Changed != nil {
		s.config.Changed()
	}
}
