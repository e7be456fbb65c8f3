package servers

import (
	"errors"
	"sync"
	"time"

	"github.com/dlclark/regexp2/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// What a pattern of ECMA-262 may cost that Go's engine does not know: it has
// lookaround and back references, and an engine that may try for ever.
const (
	maxPattern  = 2 << 10                // bytes of one
	maxMatched  = 64 << 10               // of what is held against one
	matchTime   = 100 * time.Millisecond // for one text; the engine looks at its clock as often
	matchBurst  = 300 * time.Millisecond // of a schema's patterns and texts together
	matchShare  = 5                      // and a fifth of the time after that
	matchMemory = 50_000                 // places to go back to
)

var (
	errPattern = errors.New("a pattern is too long")
	errMatch   = errors.New("a pattern takes too long")
)

// ecma is a schema's engine of regular expressions: Go's as pattern has it, and where
// that does not know one, another that does. With that a schema's patterns share an
// account of time; once it is empty, or one text alone takes too long, nothing is
// held against the schema, and what was to be is refused ([compiled] recovers).
func ecma(pattern jsonschema.RegexpEngine) jsonschema.RegexpEngine {
	account := &matchAccount{left: matchBurst, at: time.Now()}
	return func(s string) (jsonschema.Regexp, error) {
		r, err := pattern(s)
		if err == nil {
			return r, nil
		}
		if len(s) > maxPattern {
			return nil, errPattern
		}
		// Schemas mean Unicode; some are written for what was before, with escapes that
		// it does not have.
		for _, o := range []regexp2.RegexOptions{regexp2.ECMAScript | regexp2.Unicode, regexp2.ECMAScript} {
			var slow *regexp2.Regexp
			err := account.spend(func() (err error) {
				slow, err = regexp2.Compile(s, o, regexp2.OptionMaxBacktrackingStackSize(matchMemory), regexp2.OptionMaxCachedRuneBufferLength(0))
				return err
			})
			if err == nil {
				slow.MatchTimeout = matchTime
				return &ecmaPattern{slow, account}, nil
			}
		}
		return nil, err
	}
}

// An ecmaPattern is a pattern that may cost much.
type ecmaPattern struct {
	*regexp2.Regexp
	account *matchAccount
}

// MatchString panics where it cannot say: neither yes nor no would be right, as a
// schema may want either.
func (p *ecmaPattern) MatchString(s string) bool {
	if len(s) > maxMatched {
		panic(errMatch)
	}
	var ok bool
	if p.account.spend(func() (err error) { ok, err = p.Regexp.MatchString(s); return err }) != nil {
		panic(errMatch) // the engine's own words quote the text
	}
	return ok
}

// A matchAccount is the time that a schema's patterns may take, to be made and to be
// matched; one does at a time.
type matchAccount struct {
	mu   sync.Mutex
	left time.Duration
	at   time.Time
}

func (a *matchAccount) spend(match func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.left = min(matchBurst, a.left+now.Sub(a.at)/matchShare)
	a.at = now
	if a.left <= 0 {
		return errMatch
	}
	err := match()
	a.at = time.Now()
	a.left -= a.at.Sub(now)
	return err
}
