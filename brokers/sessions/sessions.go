// Package sessions remembers which legacy MCP session is whose, so that any
// replica can take a session's next request, and brings what an agent sends in a
// session (an answer, a cancellation) to the replica that waits for it.
//
// A session's id is its agent's secret: Redis has a digest of it, and the id
// itself only in what is sealed.
package sessions

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// Config is what Sessions is made of.
type Config struct {
	Store     *redis.Store
	TTL       time.Duration    // how long a session lives without a request; 0 for 24 h
	MaxAnswer int              // bytes of an answer to an ask; 0 for 4 MiB
	Most      int              // sessions of one workload; 0 for 1,000
	Now       func() time.Time // nil for time.Now
	Log       *slog.Logger     // nil for slog's default
}

// Sessions implements [gateway.Sessions]. It is safe for concurrent use.
// [Sessions.Run] must be running: it wakes and it tells.
//
// What another replica closed or changed is noticed within a second: that long a
// replica takes its own word for whose a session is.
type Sessions struct {
	Config
	mail, topic redis.Key // where letters lie, and where changes are told
	notes       redis.Key // where what is not kept is told

	mu       sync.Mutex
	seen     map[string]seen          // by key
	places   map[string]place         // of those that were seen open, by their ids
	expected map[string]chan struct{} // rung when an ask was answered, by its digest
	watchers map[int]func(gateway.News)
	watched  int
	heard    map[string]time.Time // mail that was delivered, by its nonce
}

// A place is where Redis has a session.
type place struct {
	key    redis.Key
	digest string // of its id
}

// seen is how this replica saw a session last. One that went back to an older
// version, or was closed and is there again, is not believed.
type seen struct {
	session gateway.Session
	seq     int64
	until   time.Time // its own word is taken
	closed  bool
}

// A record is a session as Redis holds it: sealed under its key and its version.
type record struct {
	gateway.Session
	ID  string `json:"id"` // for whoever must be told that it was closed
	seq int64
}

const (
	fresh     = time.Second
	mostSeen  = 50_000    // forgetting them all costs a round trip each
	maxRecord = 256 << 10 // bytes of a session
	timeout   = 2 * time.Second
	topic     = "sessions"
	noteTopic = "sessions-notes"
)

// keep lets a session live on, and its task's index with it. KEYS: session, index.
var keep = redis.NewScript(redis.Clock + `
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return {'gone'} end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'used', string.format('%.0f', now))
return {'ok'}`)

// still is keep for a session whose version is known. ARGV: how long, version.
var still = redis.NewScript(redis.Clock + `
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq then return {'gone'} end
if seq ~= ARGV[2] then return {'moved'} end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'used', string.format('%.0f', now))
return {'ok'}`)

// open keeps a session and lists it with its task. KEYS: session, index, the
// workload's. ARGV: sealed session, how long it lives, digest, how many sessions its
// workload may have, how long is known which it has, and the last place of those at
// the front. Where there is no room, it returns those, and does nothing.
var open = redis.NewScript(redis.Clock + `
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then
  local all = redis.call('ZRANGE', KEYS[3], 0, ARGV[6])
  table.insert(all, 1, 'full')
  return all
end
redis.call('ZADD', KEYS[3], string.format('%.0f', now), ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
redis.call('HSET', KEYS[1], 'seq', '1', 'session', ARGV[1], 'used', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {'ok'}`)

// change takes a session from one version to the next. KEYS: session. ARGV:
// version, next version, sealed session.
var change = redis.NewScript(`
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq then return {'none'} end
if seq ~= ARGV[1] then return {'moved'} end
redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'session', ARGV[3])
return {'ok'}`)

// end forgets sessions and strikes them off their task's index and their workload's,
// tells of each that was there, and counts those. KEYS: index, mail, topic, then each
// session and its workload's, or again the session where nobody knows whose it is.
// ARGV: as for post, then each session's digest and sealed mail, or ”.
var end = redis.NewScript(`
local n, told = 0, false
for i = 4, #KEYS, 2 do
  local digest, letter = ARGV[i-1], ARGV[i]
  redis.call('SREM', KEYS[1], digest)
  local was = redis.call('DEL', KEYS[i])
  redis.call('ZREM', KEYS[i+1], digest)
  if was == 1 then
    n = n + 1
    if letter ~= '' then
      redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'what', letter)
      told = true
    end
  end
end
if told then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  redis.call('PUBLISH', KEYS[3], 'mail')
end
return {n}`)

// New makes Sessions. It does not wait for Redis.
func New(c Config) (*Sessions, error) {
	if c.Store == nil {
		return nil, errors.New("sessions: no store")
	}
	c.TTL = cmp.Or(c.TTL, 24*time.Hour)
	c.MaxAnswer = cmp.Or(c.MaxAnswer, 4<<20)
	c.Most = cmp.Or(c.Most, 1_000)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Sessions{
		Config: c, seen: map[string]seen{}, places: map[string]place{}, expected: map[string]chan struct{}{},
		watchers: map[int]func(gateway.News){}, heard: map[string]time.Time{},
	}
	var err, terr, nerr error
	s.mail, err = c.Store.Key(redis.Shared, redis.SessionsMail)
	s.topic, terr = c.Store.Topic(redis.Shared, topic)
	s.notes, nerr = c.Store.Topic(redis.Shared, noteTopic)
	return s, errors.Join(err, terr, nerr)
}

func (s *Sessions) key(session string) (k redis.Key, digest string, err error) {
	s.mu.Lock()
	at, known := s.places[session]
	s.mu.Unlock()
	if known {
		return at.key, at.digest, nil
	}
	sum := sha256.Sum256([]byte(session))
	digest = hex.EncodeToString(sum[:])
	k, err = s.Store.Key(redis.Shared, redis.AgentSession, digest)
	return k, digest, err
}

func (s *Sessions) index(tenant, task string) (redis.Key, error) {
	return s.Store.Key(redis.Shared, redis.SessionsTask, tenant, task)
}

// whose returns where a workload's sessions are listed.
func (s *Sessions) whose(one gateway.Session) (redis.Key, error) {
	sum := sha256.Sum256([]byte(one.Principal))
	return s.Store.Key(redis.Shared, redis.SessionsOf, one.Tenant, hex.EncodeToString(sum[:]))
}

func versioned(seq int64) string { return "session " + strconv.FormatInt(seq, 10) }

// seal writes a session down, for its key and its version.
func (s *Sessions) seal(k redis.Key, r record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(text) > maxRecord {
		return nil, fmt.Errorf("a session of %d bytes: %w", len(text), gateway.ErrTooMany)
	}
	return s.Store.Seal(k, versioned(r.seq), text), nil
}

// unseal returns what a session's fields hold, or ErrNotFound.
func (s *Sessions) unseal(k redis.Key, fields map[string]string) (r record, err error) {
	if fields["seq"] == "" && fields["session"] == "" {
		return r, gateway.ErrNotFound
	}
	text, err := s.Store.Unseal(k, "session "+fields["seq"], []byte(fields["session"]))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil {
		r.seq, err = strconv.ParseInt(fields["seq"], 10, 64)
	}
	if err != nil {
		return record{}, fmt.Errorf("session: %w", err)
	}
	return r, nil
}

// read returns a session as Redis has it, or ErrNotFound, also where that is older
// than what this replica saw: its agent opens another one then.
func (s *Sessions) read(ctx context.Context, k redis.Key) (record, error) {
	known := s.known(k) // before the read, which is at least as new
	found, _, err := s.Store.Fields(ctx, []redis.Key{k}, "seq", "session")
	if err != nil {
		return record{}, err
	}
	r, err := s.unseal(k, found[0])
	if errors.Is(err, gateway.ErrNotFound) && known.seq > 0 {
		s.shut(k) // it was there, and stays gone
	}
	if err == nil && (known.closed || r.seq < known.seq) {
		if !known.closed { // else it may be on its way out
			s.Log.ErrorContext(ctx, "a stored session went back to an older state, and is not believed", "tenant", r.Tenant, "task", r.Task)
		}
		return record{}, gateway.ErrNotFound
	}
	return r, err
}

// Session implements [gateway.Sessions].
func (s *Sessions) Session(ctx context.Context, session string) (gateway.Session, error) {
	k, digest, err := s.key(session)
	if err != nil {
		return gateway.Session{}, err
	}
	now := s.Now()
	known := s.known(k)
	switch {
	case known.closed:
		s.forget(session)
		return gateway.Session{}, gateway.ErrNotFound
	case now.Before(known.until):
		return known.session, nil
	}
	if known.seq > 0 {
		// Under its key a version is one record, and that was read before.
		switch as, err := s.still(ctx, k, known); {
		case err != nil:
			return gateway.Session{}, err
		case as == "gone":
			s.shut(k) // it was there, and stays gone
			return gateway.Session{}, gateway.ErrNotFound
		case as == "ok" && !s.remember(session, place{k, digest}, record{Session: known.session, seq: known.seq}, now):
			return gateway.Session{}, gateway.ErrNotFound
		case as == "ok":
			return known.session, nil
		}
	}
	r, err := s.read(ctx, k)
	if err != nil {
		return gateway.Session{}, err
	}
	index, err := s.index(r.Tenant, r.Task)
	if err != nil {
		return gateway.Session{}, err
	}
	// A request keeps its session alive; at most once a second, that is. One
	// that was closed since we looked stays closed.
	kept, err := s.Store.Run(ctx, keep, []redis.Key{k, index}, s.TTL.Milliseconds())
	if err != nil {
		return gateway.Session{}, err
	}
	if kept[0] != "ok" {
		s.shut(k)
		return gateway.Session{}, gateway.ErrNotFound
	}
	if !s.remember(session, place{k, digest}, r, now) {
		return gateway.Session{}, gateway.ErrNotFound
	}
	return r.Session, nil
}

// still asks whether a session is as it was known, keeps it alive if it is, and
// returns "ok", "gone" or "moved".
func (s *Sessions) still(ctx context.Context, k redis.Key, known seen) (string, error) {
	index, err := s.index(known.session.Tenant, known.session.Task)
	if err != nil {
		return "", err
	}
	reply, err := s.Store.Run(ctx, still, []redis.Key{k, index}, s.TTL.Milliseconds(), known.seq)
	if err != nil {
		return "", err
	}
	return reply[0], nil
}

// Open implements [gateway.Sessions]. A crash between the end of the session that
// makes room and the beginning of the new one leaves the workload one less.
func (s *Sessions) Open(ctx context.Context, session string, one gateway.Session) error {
	k, digest, err := s.key(session)
	if err != nil {
		return err
	}
	index, err := s.index(one.Tenant, one.Task)
	if err != nil {
		return err
	}
	sealed, err := s.seal(k, record{ID: session, Session: one, seq: 1})
	if err != nil {
		return err
	}
	whose, err := s.whose(one)
	if err != nil {
		return err
	}
	for range tries + s.Most/atFront {
		reply, err := s.Store.Run(ctx, open, []redis.Key{k, index, whose}, sealed, s.TTL.Milliseconds(), digest, s.Most, whoseLife*s.TTL.Milliseconds(), atFront-1)
		if err != nil || reply[0] == "ok" {
			return err
		}
		if err := s.makeRoom(ctx, whose, reply[1:]); err != nil {
			return err
		}
	}
	return fmt.Errorf("sessions of one workload: %w", gateway.ErrTooMany)
}

// Change implements [gateway.Sessions]. f is called again where another replica
// was quicker.
func (s *Sessions) Change(ctx context.Context, session string, f func(*gateway.Session)) (gateway.Session, error) {
	k, digest, err := s.key(session)
	if err != nil {
		return gateway.Session{}, err
	}
	for ctx.Err() == nil {
		now := s.Now()
		r, err := s.read(ctx, k)
		if err != nil {
			return gateway.Session{}, err
		}
		changed := r.Session
		changed.Follows, changed.Awaits = slices.Clone(changed.Follows), slices.Clone(changed.Awaits)
		f(&changed)
		was := r.seq
		r.LogLevel, r.Follows, r.Awaits, r.seq = changed.LogLevel, changed.Follows, changed.Awaits, was+1
		sealed, err := s.seal(k, r)
		if err != nil {
			return gateway.Session{}, err
		}
		reply, err := s.Store.Run(ctx, change, []redis.Key{k}, was, r.seq, sealed)
		switch {
		case err != nil:
			return gateway.Session{}, err
		case reply[0] == "none":
			return gateway.Session{}, gateway.ErrNotFound
		case reply[0] == "ok":
			if !s.remember(session, place{k, digest}, r, now) {
				return gateway.Session{}, gateway.ErrNotFound
			}
			return r.Session, nil
		}
	}
	return gateway.Session{}, ctx.Err()
}

// Close implements [gateway.Sessions]. A session is as it was where Redis cannot be
// asked, and whoever wanted it closed can ask again; where its reply is lost, the
// letter says on every replica that it is closed.
func (s *Sessions) Close(ctx context.Context, session string) error {
	k, digest, err := s.key(session)
	if err != nil {
		return err
	}
	r, err := s.read(ctx, k)
	if errors.Is(err, gateway.ErrNotFound) { // or an older one was put back
		s.shut(k)
		s.forget(session)
		return s.Store.Del(ctx, k)
	}
	if err != nil {
		return err
	}
	return s.finish(ctx, k, digest, r)
}

// finish ends a session that was read, and tells of it. It is as it was until Redis
// has said so.
func (s *Sessions) finish(ctx context.Context, k redis.Key, digest string, r record) error {
	index, err := s.index(r.Tenant, r.Task)
	if err != nil {
		return err
	}
	whose, err := s.whose(r.Session)
	if err != nil {
		return err
	}
	letter, err := s.write(s.mail, letter{Session: r.ID, Closed: true})
	if err != nil {
		return err
	}
	if _, err = s.Store.Run(ctx, end, []redis.Key{index, s.mail, s.topic, k, whose}, mostMail, mailLife.Milliseconds(), digest, letter); err == nil {
		s.shut(k)
		s.forget(r.ID)
	}
	return err
}

// EndTask implements [gateway.Sessions]. One that is opened meanwhile may stay;
// it opens nothing, because its task is over.
func (s *Sessions) EndTask(ctx context.Context, tenant, task string) (int, error) {
	index, err := s.index(tenant, task)
	if err != nil {
		return 0, err
	}
	digests, err := s.Store.Members(ctx, index)
	if err != nil {
		return 0, err
	}
	total := 0
	for part := range slices.Chunk(digests, 500) {
		n, err := s.endAll(ctx, index, part)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (s *Sessions) endAll(ctx context.Context, index redis.Key, digests []string) (int, error) {
	keys, args := []redis.Key{index, s.mail, s.topic}, []any{mostMail, mailLife.Milliseconds()}
	var sessions []redis.Key
	for _, d := range digests {
		k, err := s.Store.Key(redis.Shared, redis.AgentSession, d)
		if err != nil {
			continue // nothing that we put there
		}
		sessions, args = append(sessions, k), append(args, d, "")
	}
	found, _, err := s.Store.Fields(ctx, sessions, "seq", "session")
	if err != nil {
		return 0, err
	}
	for i, k := range sessions {
		s.shut(k)
		keys = append(keys, k, k)
		r, err := s.unseal(k, found[i])
		if err != nil {
			continue // it goes, but nobody knows what to tell
		}
		if keys[len(keys)-1], err = s.whose(r.Session); err != nil {
			return 0, err
		}
		if args[2*i+3], err = s.write(s.mail, letter{Session: r.ID, Closed: true, WithTask: true}); err != nil {
			return 0, err
		}
	}
	reply, err := s.Store.Run(ctx, end, keys, args...)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(reply[0])
}

func (s *Sessions) known(k redis.Key) seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[k.String()]
}

// remember takes our own word for a session from here on; false means that it was
// closed meanwhile.
func (s *Sessions) remember(session string, at place, r record, now time.Time) bool {
	name := at.key.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.seen[name]
	if r.seq >= was.seq && !was.closed {
		s.bound()
		s.places[strings.Clone(session)] = at
		s.seen[name] = seen{session: r.Session, seq: r.seq, until: now.Add(fresh)}
	}
	return !was.closed
}

// shut remembers that a session was closed.
func (s *Sessions) shut(k redis.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound()
	s.seen[k.String()] = seen{closed: true}
}

// forget lets go of the id of a session that is closed.
func (s *Sessions) forget(session string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.places, session)
}

// bound keeps the memory of sessions small. Under s.mu.
func (s *Sessions) bound() {
	if len(s.seen) >= mostSeen {
		clear(s.seen)
		clear(s.places)
	}
}
