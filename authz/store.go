package authz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// StoreConfig says where the policy is and who hears of it.
type StoreConfig struct {
	File     string // the policy file
	Model    string // model.conf, which must equal [Model]; empty: not looked at
	LastGood string // where a copy of the last accepted file is kept, 0600; empty: nowhere

	// Check says what else is wrong with a file that is good by itself; an error in
	// it refuses the file. Beside are the files that it reads: when one of them
	// changes, a file that was refused is looked at again. nil: nothing.
	Check  func(*Policy) []Finding
	Beside []string

	OnLoad   func(*Policy)   // hears of every policy that came into force, the first one too
	OnReject func([]Finding) // hears of every file that was refused, once per content

	// Poll is how often Watch reads the file when nothing says that it changed;
	// zero means every 2 s.
	Poll time.Duration
	// Settle is how far apart two readings must be equal before the file counts as
	// written; zero means 50 ms.
	Settle time.Duration
}

// A Store holds the policy in force and swaps it for a new one, whole, when the
// file changes for the better. Decisions never wait for a reload. It is safe
// for concurrent use.
type Store struct {
	cfg     StoreConfig
	current atomic.Pointer[Policy]

	mu       sync.Mutex // one reload at a time
	rejected string     // what was refused last, so that polling does not repeat it
	refused  atomic.Pointer[Finding]
	last     *Policy // the one that was in force before the start, if a copy is there
}

// Open reads the policy. Where the file is refused and LastGood is there, the
// Store starts with that copy and tells OnReject about the file; without one it
// returns an error, for there is nothing to decide by.
func Open(cfg StoreConfig) (*Store, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = 2 * time.Second
	}
	if cfg.Settle <= 0 {
		cfg.Settle = 50 * time.Millisecond
	}
	s := &Store{cfg: cfg}
	if cfg.LastGood != "" {
		if text, err := readBounded(cfg.LastGood); err == nil {
			s.last, _ = Parse(cfg.LastGood, text)
		}
	}
	refused := s.load(context.Background(), true)
	if refused == nil {
		return s, nil
	}
	if cfg.LastGood == "" || s.Current() != nil {
		return nil, refused
	}
	if err := s.checkModel(); err != nil {
		return nil, err
	}
	text, err := readBounded(cfg.LastGood)
	if err != nil {
		return nil, errors.Join(refused, fmt.Errorf("the last accepted policy: %w", err))
	}
	p, findings := Parse(cfg.LastGood, text)
	if p == nil {
		return nil, errors.Join(refused, refusal(findings))
	}
	s.put(p)
	return s, nil
}

// Current returns the policy in force. It is never nil.
func (s *Store) Current() *Policy { return s.current.Load() }

// Decide asks the policy in force.
func (s *Store) Decide(r Request) Decision { return s.current.Load().Decide(r) }

// Revision names the policy in force.
func (s *Store) Revision() string { return s.current.Load().Revision() }

// Refused is why the file is not the policy in force, or nil where it is.
func (s *Store) Refused() *Finding { return s.refused.Load() }

// ModelHash is "sha256:<hex>" of the model that decides.
func (s *Store) ModelHash() string { return ModelHash() }

// ModelHash is "sha256:<hex>" of [Model].
func ModelHash() string { return hash([]byte(Model)) }

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Reload reads the file now. When it is refused the policy in force stays, and
// the error and OnReject say why. An unchanged file is no error and changes nothing.
func (s *Store) Reload() error { return s.load(context.Background(), true) }

// Watch reloads whenever the file changes, until ctx ends. It watches the
// folder, so that a file put in place of another is seen, and reads the file
// now and then, in case nothing says that it changed. Refused files are told to
// OnReject; an error means that it could not watch the folder, and it still polls.
func (s *Store) Watch(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var failed error
	if w, err := fsnotify.NewWatcher(); err != nil {
		failed = err
	} else {
		defer w.Close()
		if failed = w.Add(filepath.Dir(s.cfg.File)); failed == nil {
			events = w.Events
			go func() {
				for range w.Errors { // a lost event is made up for by polling
				}
			}()
		}
	}
	poll := time.NewTicker(s.cfg.Poll)
	defer poll.Stop()
	for {
		_ = s.load(ctx, false) // OnReject has heard
		select {
		case <-ctx.Done():
			if failed != nil {
				return fmt.Errorf("watch the policy: %w", failed)
			}
			return nil
		case <-poll.C:
		case <-events:
		}
	}
}

// load reads the file and, if it is new and good, puts it in force. loud says
// that whoever asked wants to hear of a file that was refused before.
func (s *Store) load(ctx context.Context, loud bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := s.settled(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	sum := hash(text)
	if err == nil {
		err = s.checkModel()
	}
	if err == nil {
		if now := s.current.Load(); now != nil && now.Revision() == sum && now.File() == s.cfg.File {
			s.rejected = ""
			s.refused.Store(nil)
			return nil
		}
	} else {
		sum = err.Error()
	}
	for _, name := range s.cfg.Beside {
		text, err := readBounded(name)
		sum += fmt.Sprint(" ", hash(text), err)
	}
	if s.rejected == sum && !loud {
		return errors.New("the policy file is still refused")
	}
	var p *Policy
	var findings []Finding
	if err != nil {
		findings = []Finding{{File: s.cfg.File, Severity: SeverityError, Code: "unreadable", Text: err.Error()}}
	} else {
		p, findings = Parse(s.cfg.File, text)
	}
	if p != nil {
		if findings = s.beside(p); HasErrors(findings) {
			p = nil
		} else {
			p.warnings = slices.Concat(findings, p.warnings)
		}
	}
	if p == nil {
		s.rejected = sum
		for _, f := range findings {
			if f.Severity == SeverityError {
				s.refused.Store(&f)
				break
			}
		}
		if s.cfg.OnReject != nil {
			s.cfg.OnReject(findings)
		}
		return refusal(findings)
	}
	s.rejected = ""
	s.refused.Store(nil)
	s.put(p)
	// A crash before this is done leaves the copy before: older, and whole.
	if s.cfg.LastGood != "" {
		if err := keep(s.cfg.LastGood, text); err != nil {
			return fmt.Errorf("the policy is in force, but no copy of it is kept: %w", err)
		}
	}
	return nil
}

// beside is what is found by holding a policy against the one that it would
// replace, and by Check.
func (s *Store) beside(p *Policy) []Finding {
	before := s.current.Load()
	if before == nil {
		before = s.last
	}
	var all []Finding
	if f := p.shrunk(before); f != nil {
		all = append(all, *f)
	}
	if s.cfg.Check != nil {
		all = append(all, s.cfg.Check(p)...)
	}
	return all
}

func (s *Store) put(p *Policy) {
	s.current.Store(p)
	s.last = nil
	if s.cfg.OnLoad != nil {
		s.cfg.OnLoad(p)
	}
}

// settled reads the file until two readings agree, for an editor may be halfway
// through writing it.
func (s *Store) settled(ctx context.Context) ([]byte, error) {
	before, err := readBounded(s.cfg.File)
	for range 100 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(s.cfg.Settle):
		}
		again, errAgain := readBounded(s.cfg.File)
		if bytes.Equal(before, again) && (err == nil) == (errAgain == nil) {
			return again, errAgain
		}
		before, err = again, errAgain
	}
	return nil, errors.New("the policy file does not stop changing")
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1)) // one byte more is refused by Parse
}

func (s *Store) checkModel() error {
	if s.cfg.Model == "" {
		return nil
	}
	text, err := readBounded(s.cfg.Model)
	if err != nil {
		return err
	}
	if string(text) != Model {
		return fmt.Errorf("%s is not the model that this engine is built for (%s, want %s)", s.cfg.Model, hash(text), ModelHash())
	}
	return nil
}

// keep puts a copy of the file in place whole, or not at all.
func keep(name string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".policy-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// refusal is findings as an error: the first few that refuse the file.
func refusal(findings []Finding) error {
	const most = 5
	var all []error
	more := 0
	for _, f := range findings {
		if f.Severity != SeverityError {
			continue
		}
		if len(all) == most {
			more++
			continue
		}
		all = append(all, errors.New(f.String()))
	}
	if more > 0 {
		all = append(all, fmt.Errorf("and %d more", more))
	}
	return fmt.Errorf("policy refused:\n%w", errors.Join(all...))
}
