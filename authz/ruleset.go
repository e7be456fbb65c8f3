package authz

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// A ruleset is rows ready to be asked about. It never changes; what it
// remembers are answers that hold as long as it does.
//
// A question goes to the few rows that can match it, found by the cells that
// cover who asks and what for, however many rows there are. Casbin decides among
// them, once for all questions that have the same rows to go by and whose
// conditions came to the same.
type ruleset struct {
	rows       []*row
	members    []member
	clauses    []clause
	conditions map[string]*condition
	*holders
	*groups

	whos, tenants, things patterns           // the cells of these columns, each once
	pairs                 map[[2]int32]int32 // of a who and a tenant
	places                []int32            // of clauses, those of the same pair and thing side by side
	spans                 map[[2]int32]span  // where in places, by pair and thing

	keeps    int // how many of each it remembers
	subjects cache[[2]string, []int32]
	tools    cache[string, []int32]
	sets     cache[setKey, *set]
	answers  cache[outcome, *answer]
}

type span struct{ from, to int32 }

// How many answers, and the like, are remembered of a policy and of a scope. There
// are many scopes.
const (
	policyKeeps = 1 << 14
	scopeKeeps  = 1 << 5
)

func newRuleset(rows []*row, links []link, members []member) *ruleset {
	s := &ruleset{
		rows: rows, members: members, conditions: map[string]*condition{},
		holders: newHolders(links), groups: newGroups(members),
		pairs: map[[2]int32]int32{}, keeps: policyKeeps,
	}
	for _, r := range rows {
		if r.when != nil {
			s.conditions[r.when.text] = r.when
		}
		s.clauses = append(s.clauses, clauses(r)...)
	}
	s.clauses = slices.Clip(s.clauses)
	s.index()
	return s
}

func (s *ruleset) index() {
	at := make([][2]int32, len(s.clauses))
	s.places = make([]int32, len(s.clauses))
	for i, c := range s.clauses {
		pair := [2]int32{s.whos.add(c.who), s.tenants.add(c.tenant)}
		id, ok := s.pairs[pair]
		if !ok {
			id = int32(len(s.pairs))
			s.pairs[pair] = id
		}
		at[i] = [2]int32{id, s.things.add(c.tool)}
		s.places[i] = int32(i)
	}
	slices.SortFunc(s.places, func(a, b int32) int {
		return cmp.Or(cmp.Compare(at[a][0], at[b][0]), cmp.Compare(at[a][1], at[b][1]), cmp.Compare(a, b))
	})
	s.spans = make(map[[2]int32]span, len(s.pairs))
	for i := range s.places {
		key := at[s.places[i]]
		was, ok := s.spans[key]
		if !ok {
			was.from = int32(i)
		}
		s.spans[key] = span{was.from, int32(i + 1)}
	}
}

// A question is a request without what may differ from call to call.
type question struct {
	who, tenant, task, tool, action string
	could                           bool
}

// subject returns the pairs of cells that cover a principal in a tenant.
func (s *ruleset) subject(who, tenant string) []int32 {
	key := [2]string{who, tenant}
	pairs, ok := s.subjects.load(key)
	if ok {
		return pairs
	}
	var room, more [16]int32
	whos := slices.DeleteFunc(s.whos.covering(who, room[:0]), func(id int32) bool { return strings.HasPrefix(s.whos.cells[id], rolePrefix) })
	for role := range s.roles(who, tenant) {
		if id, ok := s.whos.ids[role]; ok {
			whos = append(whos, id)
		}
	}
	tenants := s.tenants.covering(tenant, more[:0])
	for _, w := range whos {
		for _, t := range tenants {
			if id, ok := s.pairs[[2]int32{w, t}]; ok {
				pairs = append(pairs, id)
			}
		}
	}
	s.subjects.store(key, pairs, s.keeps)
	return pairs
}

// thing returns the tool cells that cover a tool, in room where there is enough.
func (s *ruleset) thing(tool string, room []int32) []int32 {
	if s.keeps == scopeKeeps { // found sooner than remembered
		return s.things.covering(tool, room)
	}
	ids, ok := s.tools.load(tool)
	if ok {
		return ids
	}
	ids = slices.DeleteFunc(s.things.covering(tool, nil), func(id int32) bool { return !s.inGroup(tool, s.things.cells[id]) })
	named := s.of(tool)
	if s.unlabelled(tool) {
		named = append(named, noLabel)
	}
	for _, group := range named {
		if id, ok := s.things.ids[group]; ok && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	s.tools.store(tool, ids, s.keeps)
	return ids
}

// candidates appends the places of the clauses that match q, conditions aside,
// in the order of the file.
func (s *ruleset) candidates(q question, to []int32) []int32 {
	var room [16]int32
	things := s.thing(q.tool, room[:0])
	for _, pair := range s.subject(q.who, q.tenant) {
		for _, thing := range things {
			at, ok := s.spans[[2]int32{pair, thing}]
			if !ok {
				continue
			}
			for _, i := range s.places[at.from:at.to] {
				if c := &s.clauses[i]; does(q.action, c.action) && glob(q.task, c.task) {
					to = append(to, i)
				}
			}
		}
	}
	slices.Sort(to)
	return to
}

// A set is the clauses that one question can match, and many others too. Rows do
// not remember who asked, so neither does it.
type set struct {
	clauses    []clause
	conditions []*condition // each once
	reads      bool         // one of them reads arguments
}

// A setKey tells sets apart by the places of their clauses.
type setKey struct {
	n    int32
	few  [9]int32
	rest string // of those that are more
}

// set returns what there is to ask about, or nil where no row could match.
func (s *ruleset) set(q question) *set {
	var room [32]int32
	places := s.candidates(q, room[:0])
	if len(places) == 0 {
		return nil
	}
	var key setKey
	n := copy(key.few[:], places)
	if n < len(places) {
		var rest []byte
		for _, i := range places[n:] {
			rest = binary.AppendUvarint(rest, uint64(i))
		}
		key.rest = string(rest)
	}
	key.n = int32(len(places))
	if e, ok := s.sets.load(key); ok {
		return e
	}
	e := &set{clauses: make([]clause, len(places))}
	for i, at := range places {
		c := s.clauses[at]
		e.clauses[i] = c
		if c.when != nil && !slices.Contains(e.conditions, c.when) {
			e.conditions = append(e.conditions, c.when)
			e.reads = e.reads || c.when.args
		}
	}
	s.sets.store(key, e, s.keeps)
	return e
}

// An outcome is all that an answer depends on: the rows, and what their conditions
// came to.
type outcome struct {
	set   *set
	could bool
	came  truths
}

// truths is what conditions came to, two bits each.
type truths uint64

const maxTruths = 32

func (t truths) of(i int) truth { return truth(t >> (2 * i) & 3) }

// An answer is what one ruleset says of one request. It is shared and never changes.
type answer struct {
	verdict Verdict
	hits    []hit // in the order of the file
	reads   bool
	grants  []*row // of the rows that could grant this, whatever their condition came to
	came    map[*condition]truth
	err     error
}

// nothing is the answer where no row could match.
var nothing = &answer{}

// A hit is a row that matched. An approve row may match without granting.
type hit struct {
	*row
	granted bool
}

// answer asks about the rows of e. Where there are none there is nothing to ask
// Casbin about, and its answer for no rows at all is not to be trusted. It reports
// whether the same will come again by the same answer.
func (s *ruleset) answer(e *set, q question, in *input) (a *answer, kept bool) {
	if e == nil {
		return nothing, true
	}
	if len(e.conditions) > maxTruths && !q.could { // too many to tell outcomes apart
		return s.decide(e, q, &call{input: *in}), false
	}
	o := outcome{set: e, could: q.could}
	if !q.could {
		for i, cond := range e.conditions {
			o.came |= truths(cond.eval(in)) << (2 * i)
		}
	}
	if a, ok := s.answers.load(o); ok {
		return a, true
	}
	c := &call{list: q.could, came: make(map[*condition]truth, len(e.conditions))}
	if !q.could {
		for i, cond := range e.conditions {
			c.came[cond] = o.came.of(i)
		}
	}
	if a = s.decide(e, q, c); a.err != nil {
		return a, false // it may pass
	}
	s.answers.store(o, a, s.keeps)
	return a, true
}

func (s *ruleset) decide(e *set, q question, c *call) *answer {
	a := &answer{reads: e.reads && !q.could}
	var matched []int
	a.verdict, matched, a.err = s.enforce(e.clauses, q, c)
	a.came = c.came
	for _, i := range matched {
		cl := e.clauses[i]
		if n := len(a.hits); n == 0 || a.hits[n-1].row != cl.row {
			a.hits = append(a.hits, hit{row: cl.row})
		}
		if cl.eft == "allow" {
			a.hits[len(a.hits)-1].granted = true
		}
	}
	for _, cl := range e.clauses {
		if cl.eft == "allow" {
			a.grants = append(a.grants, cl.row)
		}
	}
	return a
}
