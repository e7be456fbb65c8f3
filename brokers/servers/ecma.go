package servers

import (
	"errors"
	"runtime"
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
	makeTime    = 300 * time.Millisecond // for all of a schema's, to be made
	matchQuick  = 10 * time.Millisecond  // of a check, for all its texts and patterns
	matchSlow   = 200 * time.Millisecond // of one that waits for its turn to go on
	matchTick   = 5 * time.Millisecond   // as often the engine looks at its clock
	matchMemory = 50_000                 // places to go back to
)

var (
	errPattern = errors.New("a pattern is too long")
	errMatch   = errors.New("a pattern takes too long")
)

// slowly holds one for each check that is slow at a time.
var slowly = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

func init() { regexp2.SetTimeoutCheckPeriod(matchTick) }

// ecma is a schema's engine of regular expressions: Go's as pattern has it, and where
// that does not know one, another that does. What that one takes is counted for each
// check by itself, so that nobody's text makes another's check fail: see [allowance].
func ecma(pattern jsonschema.RegexpEngine) jsonschema.RegexpEngine {
	left := makeTime
	return func(s string) (jsonschema.Regexp, error) {
		r, err := pattern(s)
		if err == nil {
			return r, nil
		}
		if len(s) > maxPattern {
			return nil, errPattern
		}
		if left <= 0 {
			return nil, errMatch
		}
		began := time.Now()
		defer func() { left -= time.Since(began) }()
		quick, other := compileECMA(s)
		if other != nil {
			return nil, err
		}
		patient, other := compileECMA(s)
		if other != nil {
			return nil, err
		}
		quick.MatchTimeout, patient.MatchTimeout = matchQuick, matchSlow
		return &ecmaPattern{quick: quick, patient: patient, known: map[string]*verdict{}}, nil
	}
}

// Schemas mean Unicode; some are written for what was before, with escapes that it does
// not have.
func compileECMA(s string) (r *regexp2.Regexp, err error) {
	for _, o := range []regexp2.RegexOptions{regexp2.ECMAScript | regexp2.Unicode, regexp2.ECMAScript} {
		if r, err = regexp2.Compile(s, o, regexp2.OptionMaxBacktrackingStackSize(matchMemory), regexp2.OptionMaxCachedRuneBufferLength(0)); err == nil {
			return r, nil
		}
	}
	return nil, err
}

// An ecmaPattern is a pattern that may cost much.
type ecmaPattern struct {
	quick, patient *regexp2.Regexp // the same

	mu    sync.Mutex
	known map[string]*verdict // of texts that checks under way have held against it
}

type verdict struct {
	yes   bool
	users int
}

func (p *ecmaPattern) String() string { return p.quick.String() }

// MatchString says what an allowance was told before: the library asks, and does not say
// for which check. It panics where it cannot say: neither yes nor no would be right, as
// a schema may want either.
func (p *ecmaPattern) MatchString(s string) bool {
	p.mu.Lock()
	v := p.known[s]
	p.mu.Unlock()
	if v != nil {
		return v.yes
	}
	a := newAllowance()
	defer a.close()
	return a.match(p, s)
}

// An allowance is the time that one check's texts and patterns may take. At first nobody
// waits for anybody; a check that takes longer goes on in its turn, so that all slow
// ones together leave time for the rest. What takes too long even so ends the check,
// as a panic that [compiled] recovers: nothing is said of a text then.
type allowance struct {
	left time.Duration
	turn bool
	told map[asked]bool
}

type asked struct {
	p    *ecmaPattern
	text string
}

func newAllowance() *allowance { return &allowance{left: matchQuick} }

// match holds a text against a pattern, and keeps what comes of it for the library.
func (a *allowance) match(p *ecmaPattern, text string) bool {
	q := asked{p, text}
	if yes, ok := a.told[q]; ok {
		return yes
	}
	if len(text) > maxMatched {
		panic(errMatch)
	}
	yes, ok := false, false
	if !a.turn && a.left > 0 {
		yes, ok = a.spend(p.quick, text)
	}
	if !ok {
		if !a.turn {
			slowly <- struct{}{}
			a.turn, a.left = true, matchSlow
		}
		if a.left > 0 {
			yes, ok = a.spend(p.patient, text)
		}
	}
	if !ok {
		panic(errMatch) // the engine's own words quote the text
	}
	if a.told == nil {
		a.told = map[asked]bool{}
	}
	a.told[q] = yes
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.known[text]
	if v == nil {
		v = &verdict{yes: yes}
		p.known[text] = v
	}
	v.users++
	return yes
}

func (a *allowance) spend(r *regexp2.Regexp, text string) (yes, ok bool) {
	began := time.Now()
	yes, err := r.MatchString(text)
	a.left -= time.Since(began)
	return yes, err == nil
}

func (a *allowance) close() {
	if a.turn {
		<-slowly
	}
	for q := range a.told {
		q.p.mu.Lock()
		v := q.p.known[q.text]
		if v.users--; v.users == 0 {
			delete(q.p.known, q.text)
		}
		q.p.mu.Unlock()
	}
}
