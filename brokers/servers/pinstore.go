package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"toolbroker/brokers/internal/redis"
)

// turn replaces a book by its next, if it is still the one that was read. KEYS:
// book, moves. ARGV: its Seq as read, the next one's, the next one sealed.
var turn = redis.NewScript(`
if (redis.call('HGET', KEYS[1], 'v') or '') ~= ARGV[1] then return {'moved'} end
redis.call('HSET', KEYS[1], 'v', ARGV[2], 'record', ARGV[3])
redis.call('HINCRBY', KEYS[2], 'n', 1)
return {'ok'}`)

var errBusy = errors.New("others change the same pins all the time")

// change makes the next book of a site, here and for every replica, and reports
// whether it is another. Where f returns what it was given, nothing is. With an
// error, it is not known whether it counts; what is known here is returned.
func (p *pins) change(ctx context.Context, at site, f func(*book) *book) (b *book, changed bool, err error) {
	for range 10 {
		old, stored, err := p.read(ctx, at)
		if err != nil {
			return p.known(at), false, err
		}
		next := f(old)
		if next == old {
			return p.remember(at, old), false, nil
		}
		ok, err := p.put(ctx, at, stored, next)
		if err != nil {
			return p.known(at), false, err
		}
		if ok {
			return p.remember(at, next), true, nil
		}
	}
	return p.known(at), false, errBusy
}

// look returns the newest book of a site, or nil where it has none.
func (p *pins) look(ctx context.Context, at site) (*book, error) {
	b, stored, err := p.read(ctx, at)
	if err != nil {
		return nil, err
	}
	if p.store != nil && b != nil && stored != strconv.FormatInt(b.Seq, 10) {
		// The store forgot it, or has another: it is told again. Another replica
		// may be faster.
		again := (&book{Seq: b.Seq + 1, Pins: b.Pins}).index()
		ok, err := p.put(ctx, at, stored, again)
		if err != nil {
			return nil, err
		}
		if ok {
			p.all.log.Error("Redis lost or changed what was accepted of a server's definitions; it was put back", "tenant", at.tenant, "server", at.server)
			b = again
		}
	}
	return p.remember(at, b), nil
}

// read returns the book that counts, and what the store says its Seq is. What we
// know counts more than what the store has, unless that is ours and newer.
func (p *pins) read(ctx context.Context, at site) (b *book, stored string, err error) {
	known := p.known(at)
	if p.store == nil {
		return known, "", nil
	}
	key, err := p.store.Key(at.tenant, redis.Pins, at.server)
	if err != nil {
		return nil, "", err
	}
	found, _, err := p.store.Fields(ctx, []redis.Key{key}, "v", "record")
	if err != nil {
		return nil, "", err
	}
	stored = found[0]["v"]
	if stored == "" && found[0]["record"] == "" {
		return known, stored, nil
	}
	b, err = p.unseal(key, stored, found[0]["record"])
	switch {
	case err != nil && known == nil:
		return nil, stored, err
	case err != nil || known != nil && b.Seq < known.Seq:
		return known, stored, nil
	}
	return b, stored, nil
}

func (p *pins) unseal(key redis.Key, seq, sealed string) (*book, error) {
	text, err := p.store.Unseal(key, "pins "+seq, []byte(sealed))
	if err != nil {
		return nil, err
	}
	b := &book{}
	if err := json.Unmarshal(text, b); err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	if strconv.FormatInt(b.Seq, 10) != seq {
		return nil, redis.ErrSeal
	}
	return b.index(), nil
}

// put stores a book in the place of the one that was read.
func (p *pins) put(ctx context.Context, at site, stored string, next *book) (bool, error) {
	if p.store == nil {
		return true, nil
	}
	key, err := p.store.Key(at.tenant, redis.Pins, at.server)
	if err != nil {
		return false, err
	}
	moves, err := p.store.Key(at.tenant, redis.PinsMoves)
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	seq := strconv.FormatInt(next.Seq, 10)
	reply, err := p.store.Run(ctx, turn, []redis.Key{key, moves}, stored, seq, p.store.Seal(key, "pins "+seq, text))
	return err == nil && reply[0] == "ok", err
}

// remember takes a book into use here, unless a newer one is; it returns the one
// that is.
func (p *pins) remember(at site, b *book) *book {
	if b == nil {
		return nil
	}
	p.mu.Lock()
	known := p.books[at]
	if known != nil && known.Seq >= b.Seq {
		p.mu.Unlock()
		return known
	}
	p.books[at] = b
	p.mu.Unlock()
	p.save()
	return b
}

// watch takes over what other replicas accept, until ctx ends, and tries again
// what could not be read.
func (p *pins) watch(ctx context.Context) {
	if p.store == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(redis.Jitter(p.pace)):
		}
		p.poll(ctx)
	}
}

func (p *pins) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var keys []redis.Key
	for _, t := range p.all.config.Tenants {
		k, err := p.store.Key(t, redis.PinsMoves)
		if err != nil {
			return
		}
		keys = append(keys, k)
	}
	found, _, err := p.store.Fields(ctx, keys, "n")
	if err != nil {
		return // what is known here goes on counting, and nothing more
	}
	for i, tenant := range p.all.config.Tenants {
		n := found[i]["n"]
		p.mu.RLock()
		seen, known := p.moves[tenant]
		p.mu.RUnlock()
		if known && seen == n && !p.waits(tenant) {
			continue
		}
		if p.follow(ctx, tenant) {
			p.mu.Lock()
			p.moves[tenant] = n
			p.mu.Unlock()
		}
	}
}

// waits reports whether something of a tenant could not be read.
func (p *pins) waits(tenant string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for at := range p.unread {
		if at.tenant == tenant {
			return true
		}
	}
	return false
}

// follow reads a tenant's books again and reports whether it could. What that
// changes takes effect.
func (p *pins) follow(ctx context.Context, tenant string) (all bool) {
	all = true
	changed := false
	for _, f := range p.all.feeds {
		if !slices.Contains(f.tenants, tenant) {
			continue
		}
		at := site{tenant, f.s.Name}
		before := p.known(at)
		b, err := p.look(ctx, at)
		if err != nil {
			all = false
			continue
		}
		said, heard := p.all.heard(f)
		if !heard {
			continue
		}
		if b == nil { // its first catalogue came to nothing
			p.settle(f, said, true)
			changed = true
		} else if b != before {
			p.mu.Lock()
			delete(p.unread, at)
			p.mu.Unlock()
			p.tell(at, f.s, b, said, before == nil)
			changed = true
		}
	}
	if changed {
		p.all.again(tenant)
	}
	return all
}

// kept is what lies in the file.
type kept struct {
	Books    map[string]*book  `json:"books"`    // by "tenant/server"
	Programs map[string]string `json:"programs"` // digests, by server
}

// load reads the file, if there is one.
func (p *pins) load() error {
	if p.file == "" {
		return nil
	}
	text, err := os.ReadFile(p.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		return fmt.Errorf("what was accepted of servers' definitions: %w", err)
	}
	for name, b := range k.Books {
		tenant, server, _ := strings.Cut(name, "/")
		if b != nil {
			p.books[site{tenant, server}] = b.index()
		}
	}
	if k.Programs != nil {
		p.programs = k.Programs
	}
	return nil
}

// save writes the file anew. That it cannot be written is said, and stops nothing:
// it is a second memory.
func (p *pins) save() {
	if p.file == "" {
		return
	}
	p.saving.Lock()
	defer p.saving.Unlock()
	k := kept{Books: map[string]*book{}}
	p.mu.RLock()
	for at, b := range p.books {
		k.Books[at.tenant+"/"+at.server] = b
	}
	k.Programs = maps.Clone(p.programs)
	p.mu.RUnlock()
	if err := replace(p.file, k); err != nil {
		p.all.log.Error("what was accepted of servers' definitions is not in its file", "err", err)
	}
}

// replace writes a file so that a crash leaves the old one or the new one.
func replace(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already, unless something failed
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
