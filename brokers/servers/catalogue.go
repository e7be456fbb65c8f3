package servers

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// What is read of one sort, and of one definition.
const (
	maxPages      = 100
	maxTools      = 5000
	maxList       = 8 << 20 // bytes of all pages
	maxDefinition = 256 << 10
	maxPlaces     = 1 << 20 // bytes: where its numbers stand that no double holds, written out
)

var toolName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// A catalogue is what one tenant sees of all its servers. It never changes; a
// new listing makes a new one.
type catalogue struct {
	shelves map[gateway.Sort]*shelf
	from    []*listing
}

// A shelf is what there is of one sort.
type shelf struct {
	tools  []gateway.Tool // sorted by alias
	byName map[string]int
}

func (c *catalogue) shelf(of gateway.Sort) *shelf {
	if s := c.shelves[cmp.Or(of, gateway.SortTool)]; s != nil {
		return s
	}
	return &shelf{}
}

// A listing is what one server offers, as last seen. Its tools are good; what
// was wrong with the others stands in dropped.
type listing struct {
	s       *server
	tools   []gateway.Tool
	raw     []json.RawMessage         // of each tool, as the server wrote it
	took    []room                    // that each tool takes
	room    room                      // that is left
	dropped []string                  // why each withheld tool is, in words
	unfit   []unfit                   // the same, for an admin to see
	reads   bool                      // the server says that it has resources
	named   map[string]bool           // aliases of the resources that it lists, good ones or not
	covers  map[string]*regexp.Regexp // what the URIs of its templates look like, by name

	looked       time.Time      // when it was last seen which tools the server has only for some clients
	instructions []gateway.Tool // what the server said at its greeting, if anything
}

// hash names the whole of a listing.
func (l *listing) hash() string {
	h := sha256.New()
	for _, t := range l.tools {
		if t.Sort != "" {
			fmt.Fprintf(h, "%s ", t.Sort)
		}
		fmt.Fprintf(h, "%s %s\n", t.Name, t.Hash)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// counts says in words what a listing holds.
func (l *listing) counts() string {
	n := map[gateway.Sort]int{}
	for _, t := range l.tools {
		n[cmp.Or(t.Sort, gateway.SortTool)]++
	}
	words := []string{fmt.Sprintf("%d tools", n[gateway.SortTool])}
	for _, k := range kinds[1:] {
		if n[k.sort] > 0 {
			words = append(words, fmt.Sprintf("%d %s", n[k.sort], k.words))
		}
	}
	return strings.Join(words, ", ")
}

// kinds is what servers list, and how.
var kinds = []struct {
	sort                gateway.Sort
	method, member, key string
	words               string
}{
	{gateway.SortTool, "tools/list", "tools", "name", "tools"},
	{gateway.SortResource, "resources/list", "resources", "uri", "resources"},
	{gateway.SortTemplate, "resources/templates/list", "resourceTemplates", "uriTemplate", "templates"},
	{gateway.SortPrompt, "prompts/list", "prompts", "name", "prompts"},
}

// lists reports whether a server says that it has things of a sort. One that says
// of nothing has tools.
func (c capabilities) lists(of gateway.Sort) bool {
	switch of {
	case gateway.SortResource, gateway.SortTemplate:
		return c.Resources != nil
	case gateway.SortPrompt:
		return c.Prompts != nil
	}
	return c.Tools != nil || c.Resources == nil && c.Prompts == nil
}

// list asks a server what it offers, all pages of every sort that it says it has.
// What is in prev with the same bytes is taken from there. A list of tools that is
// no good fails the whole; another is left out, and said to be.
func (s *server) list(ctx context.Context, l link, g greeting, prev *listing) (*listing, error) {
	found := &listing{s: s, room: *newRoom(), reads: g.can.Resources != nil, named: map[string]bool{}, covers: map[string]*regexp.Regexp{}}
	before := earlierThan(prev)
	for i, k := range kinds {
		if !g.can.lists(k.sort) {
			continue
		}
		n := len(found.tools)
		err := s.pages(ctx, l, g.era, i, func(raw json.RawMessage) { found.add(k.sort, raw, before) })
		switch bad, ok := errors.AsType[errList](err); {
		case err == nil:
		case !ok || k.sort == gateway.SortTool:
			return nil, err
		case bad.code == codeMethod: // it has none of this sort after all
		default:
			found.tools, found.raw, found.took = found.tools[:n], found.raw[:n], found.took[:n]
			found.dropped = append(found.dropped, err.Error())
			found.unfit = append(found.unfit, unfit{sort: k.sort, why: err.Error()})
		}
	}
	return found, nil
}

// codeMethod is what a server says that does not know a method.
const codeMethod = -32601

// An errList says what is wrong with a list that a server answered.
type errList struct {
	what string
	code int64 // the server's, where it refused
}

func (e errList) Error() string { return e.what }

// pages asks for one list, and hands on each definition in it.
func (s *server) pages(ctx context.Context, l link, e era, of int, add func(json.RawMessage)) error {
	k := kinds[of]
	cursors := map[string]bool{}
	n, size := 0, 0
	for cursor := ""; ; {
		var b builder
		if cursor != "" {
			b.text("cursor", cursor)
		}
		if e == modernEra {
			b.raw("_meta", slices.Concat([]byte("{"), modernMeta(s.version, listingCaps, ""), []byte("}")))
		}
		if b.err != nil {
			return errRubbish
		}
		m, err := l.do(ctx, call{method: k.method, params: b.done()})
		if err != nil {
			return err
		}
		if m.fault != nil {
			code := faultCode(m.fault)
			return errList{fmt.Sprintf("the server refused to list its %s, with error %d", k.words, code), code}
		}
		if size += len(m.result); size > maxList {
			return errList{what: fmt.Sprintf("the server's list of %s is more than %d MiB", k.words, maxList>>20)}
		}
		var page map[string]jsontext.Value
		if err := jsonv2.Unmarshal(m.result, &page); err != nil {
			return errList{what: "the server's list of " + k.words + " is not one"}
		}
		all, err := elements(page[k.member])
		if err != nil {
			return errList{what: "the server's list of " + k.words + " is not one"}
		}
		for _, raw := range all {
			if n++; n > maxTools {
				return errList{what: "the server lists too many " + k.words}
			}
			add(json.RawMessage(raw.value))
		}
		next, ok := "", true
		if v, there := page["nextCursor"]; there && v.Kind() != 'n' {
			next, ok = word(json.RawMessage(v))
		}
		if !ok {
			return errList{what: "the server's list of " + k.words + " is not one"}
		}
		if next == "" {
			return nil
		}
		if cursor = next; cursors[cursor] || len(cursors) >= maxPages {
			return errList{what: "the server's list of " + k.words + " does not end"}
		}
		cursors[cursor] = true
	}
}

// withhold takes out what repeats the credential that it was listed with: a
// definition is read by every agent that may list it.
func (l *listing) withhold(secrets []gateway.Secret) {
	const why = "a definition holds the server's credential"
	var clean listing
	for i, raw := range l.raw {
		if gateway.Holds(raw, secrets) {
			clean.dropped = append(clean.dropped, why)
			clean.unfit = append(clean.unfit, unfitSecret(l.tools[i], why, secrets))
			continue
		}
		clean.tools, clean.raw, clean.took = append(clean.tools, l.tools[i]), append(clean.raw, raw), append(clean.took, l.took[i])
	}
	for _, other := range l.dropped {
		if gateway.Holds([]byte(other), secrets) {
			other = why
		}
		clean.dropped = append(clean.dropped, other)
	}
	for _, u := range l.unfit {
		clean.unfit = append(clean.unfit, u.without(secrets, why))
	}
	l.tools, l.raw, l.took, l.dropped, l.unfit = clean.tools, clean.raw, clean.took, clean.dropped, clean.unfit
}

// add takes one definition, or the reason why it is withheld.
func (l *listing) add(of gateway.Sort, raw json.RawMessage, prev *earlier) {
	if i, ok := prev.place(raw); ok && cmp.Or(prev.tools[i].Sort, gateway.SortTool) == of && l.room.has(prev.took[i]) {
		l.take(prev.tools[i], raw, prev.took[i], prev.covers[prev.tools[i].Name])
		return
	}
	var t gateway.Tool
	var covers *regexp.Regexp
	var err error
	left := l.room
	if of == gateway.SortTool {
		t, err = l.s.define(raw, &left)
	} else {
		t, covers, err = l.s.defineOther(of, raw, &left)
	}
	took := room{l.room.parts - left.parts, l.room.patterns - left.patterns}
	if err != nil {
		l.room = left                                                                // the work was done
		if of == gateway.SortResource && (l.s.space != "" || !l.s.foreign(t.Name)) { // what is another's it cannot withhold
			l.named[t.Alias] = true
		}
		l.dropped = append(l.dropped, fmt.Sprintf("%s: %v", strconv.QuoteToASCII(clip(t.Name)), err))
		l.unfit = append(l.unfit, unfitOf(of, t, raw, err))
		return
	}
	l.take(t, raw, took, covers)
}

func (l *listing) take(t gateway.Tool, raw json.RawMessage, took room, covers *regexp.Regexp) {
	l.tools, l.raw, l.took = append(l.tools, t), append(l.raw, raw), append(l.took, took)
	l.room.parts, l.room.patterns = l.room.parts-took.parts, l.room.patterns-took.patterns
	switch t.Sort {
	case gateway.SortResource:
		l.named[t.Alias] = true
	case gateway.SortTemplate:
		l.covers[t.Name] = covers
	}
}

// An earlier listing is where definitions are taken from that are there already.
type earlier struct {
	*listing
	places map[uint64]int // in raw, by what is there
}

func earlierThan(l *listing) *earlier {
	if l == nil {
		return nil
	}
	e := &earlier{l, make(map[uint64]int, len(l.raw))}
	for i, raw := range l.raw {
		e.places[maphash.Bytes(placing, raw)] = i
	}
	return e
}

// place finds a definition with the same bytes.
func (e *earlier) place(raw json.RawMessage) (int, bool) {
	if e == nil {
		return 0, false
	}
	i, ok := e.places[maphash.Bytes(placing, raw)]
	return i, ok && bytes.Equal(e.raw[i], raw)
}

var placing = maphash.MakeSeed()

var errTooLong = fmt.Errorf("its definition is more than %d KiB", maxDefinition>>10)

// define makes a tool out of a definition. When it cannot, the tool holds the
// name alone, if there is one.
func (s *server) define(raw json.RawMessage, r *room) (gateway.Tool, error) {
	raw = scrub(bytes.Clone(raw), "_meta")
	all, err := members(raw)
	if err != nil {
		return gateway.Tool{}, errors.New("its definition is not an object")
	}
	var name, schema, output *member
	t := gateway.Tool{}
	for i := range all {
		switch all[i].name {
		case "name":
			name = &all[i]
		case "inputSchema":
			schema = &all[i]
		case "outputSchema":
			output = &all[i]
		}
	}
	if name == nil || jsontext.Value(name.value).Kind() != '"' {
		return gateway.Tool{}, errors.New("it has no name")
	}
	unquoted, err := jsontext.AppendUnquote(nil, name.value)
	if err != nil {
		return gateway.Tool{}, errors.New("it has no name")
	}
	t.Name = string(unquoted)
	none := gateway.Tool{Name: t.Name}
	if !toolName.MatchString(t.Name) {
		return none, errors.New("its name is not made of 1 to 128 of A-Z a-z 0-9 _ . -")
	}
	if t.Alias = s.prefix + t.Name; len(t.Alias) > 128 {
		return none, errors.New("its name is too long with the server's prefix")
	}
	if s.anothers(t.Alias) {
		return none, errAnothers
	}
	if depth(raw) > maxResultDepth {
		return none, errTooDeep
	}
	if len(raw) > maxDefinition {
		return none, errTooLong
	}
	if schema == nil {
		return none, errors.New("it has no inputSchema")
	}
	if output != nil {
		t.Promise = promise(output.value, r)
	}
	if t.Check, err = compile(schema.value, r); err != nil {
		return none, err
	}
	if err := mcp.ValidateParamHeaderAnnotations(&mcp.Tool{Name: t.Name, RawInputSchema: schema.value}); err != nil {
		return none, errors.New("its x-mcp-header is not valid")
	}
	if err := fits(gateway.SortTool, raw); err != nil {
		return none, err
	}
	if t.Hash, err = digestOf(raw); err != nil {
		return none, err
	}
	t.Schema = schema.value
	t.Definition = s.renameUI(slices.Concat(raw[:name.at], []byte(`"`+t.Alias+`"`), raw[name.at+len(name.value):]))
	t.Server, t.Kind, t.Addr = s.Name, s.kind, s.addr
	t.Meta, t.Class, t.Target = s.Meta, s.Class, s.TargetArg
	show(&t)
	return t, nil
}

// defineOther makes a resource, a template or a prompt out of a definition. When it
// cannot, what it returns holds the name alone, if there is one.
func (s *server) defineOther(of gateway.Sort, raw json.RawMessage, r *room) (gateway.Tool, *regexp.Regexp, error) {
	key := "name"
	for _, k := range kinds {
		if k.sort == of {
			key = k.key
		}
	}
	raw = scrub(bytes.Clone(raw), "_meta")
	all, err := members(raw)
	if err != nil {
		return gateway.Tool{}, nil, errors.New("its definition is not an object")
	}
	i := slices.IndexFunc(all, func(m member) bool { return m.name == key })
	if i < 0 {
		return gateway.Tool{}, nil, fmt.Errorf("it has no %s", key)
	}
	name, ok := word(all[i].value)
	if !ok {
		return gateway.Tool{}, nil, fmt.Errorf("it has no %s", key)
	}
	t := gateway.Tool{Sort: of, Name: name, Alias: s.alias(name)}
	if of == gateway.SortPrompt {
		t.Alias = s.prefix + name
	}
	none := gateway.Tool{Name: t.Name, Alias: t.Alias}
	var covers *regexp.Regexp
	switch of {
	case gateway.SortPrompt:
		if !toolName.MatchString(name) || len(t.Alias) > 128 {
			err = errors.New("its name is not made of 1 to 128 of A-Z a-z 0-9 _ . -, with the server's prefix")
		} else if s.anothers(t.Alias) {
			err = errAnothers
		}
	case gateway.SortResource:
		err = listable(name)
	case gateway.SortTemplate:
		covers, err = goodTemplate(name, r)
	}
	if err == nil && of != gateway.SortPrompt && s.space == "" && s.foreign(name) {
		err = errors.New("its URI is in the name space of another server")
	}
	switch {
	case err != nil:
	case len(raw) > maxDefinition:
		err = errTooLong
	case depth(raw) > maxResultDepth:
		err = errTooDeep
	default:
		err = fits(of, raw)
	}
	if err != nil {
		return none, nil, err
	}
	if t.Hash, err = digestOf(raw); err != nil {
		return none, nil, err
	}
	quoted, err := jsontext.AppendQuote(nil, t.Alias)
	if err != nil {
		return none, nil, errors.New("its name is not text")
	}
	t.Definition = slices.Concat(raw[:all[i].at], quoted, raw[all[i].end:])
	s.fill(&t)
	show(&t)
	return t, covers, nil
}

func digest(canonical []byte) string {
	sum := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// digestOf names a definition: by its canonical form (RFC 8785), in which numbers
// are float64s, and by the digits of each number that those do not hold.
func digestOf(raw json.RawMessage) (string, error) {
	canonical := jsontext.Value(bytes.Clone(raw))
	if err := canonical.Canonicalize(); err != nil {
		return "", errors.New("its definition has no canonical form")
	}
	var numbers []string
	left := maxPlaces
	for d := jsontext.NewDecoder(bytes.NewReader(raw)); ; {
		t, err := d.ReadToken()
		if err != nil {
			break // its end: it has a canonical form
		}
		if t.Kind() == '0' && !gateway.Exact(t.String()) {
			n := strconv.Quote(string(d.StackPointer())) + " " + t.String()
			if left -= len(n); left < 0 {
				return "", errors.New("its definition holds too many numbers that no double holds")
			}
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers) // by where they stand, whatever the order of members
	for _, n := range numbers {
		canonical = append(append(canonical, '\n'), n...)
	}
	return digest(canonical), nil
}

// fill says of a thing what its server says of all.
func (s *server) fill(t *gateway.Tool) {
	t.Server, t.Kind, t.Addr = s.Name, s.kind, s.addr
	t.Meta, t.Class = s.Meta, s.Class
}

var (
	errAnothers = errors.New("its name is in the name space of another server")
	errTooDeep  = errors.New("its definition is nested too deep")
)

// anothers reports whether a name that this server gives to a tool or prompt is for
// another one to give: whose prefix says more of it than this one's does.
func (s *server) anothers(alias string) bool {
	for prefix := range s.prefixes {
		if len(prefix) > len(s.prefix) && strings.HasPrefix(alias, prefix) {
			return true
		}
	}
	return false
}

// foreign reports whether a URI is in the name space of any server.
func (s *server) foreign(uri string) bool {
	space, _, ok := strings.Cut(strings.TrimPrefix(uri, uiScheme), "+")
	return ok && s.spaces[space+"+"] != ""
}

// find finds a thing by the name agents see.
func (c *catalogue) find(of gateway.Sort, alias string) (gateway.Tool, bool) {
	s := c.shelf(of)
	if i, ok := s.byName[alias]; ok {
		return s.tools[i], true
	}
	if of != gateway.SortResource || len(alias) > 2*maxURI {
		return gateway.Tool{}, false
	}
	return c.unlisted(alias)
}

// unlisted finds a resource that no server lists: in a server's name space, or by
// one server's templates where it has none. One that a server lists and that is
// withheld is not found this way either.
func (c *catalogue) unlisted(alias string) (found gateway.Tool, ok bool) {
	for _, l := range c.from {
		if l.s == nil || !l.reads || l.named[alias] {
			if l.named[alias] {
				return gateway.Tool{}, false
			}
			continue
		}
		uri, ours := l.s.bare(alias)
		template, covered := l.template(uri)
		if !ours || l.s.space == "" && !covered || goodURI(uri) != nil {
			continue
		}
		if ok {
			return gateway.Tool{}, false // two claim it
		}
		found, ok = gateway.Tool{Sort: gateway.SortResource, Name: uri, Alias: alias, Hash: template.Hash}, true
		if !covered {
			found.Hash = digest([]byte(uri))
		}
		l.s.fill(&found)
	}
	return found, ok
}

// template is the first of a listing's that covers a URI.
func (l *listing) template(uri string) (gateway.Tool, bool) {
	for _, t := range l.tools {
		if t.Sort == gateway.SortTemplate && l.covers[t.Name].MatchString(uri) {
			return t, true
		}
	}
	return gateway.Tool{}, false
}

// merge makes a tenant's catalogue out of its servers' listings, and names the
// things that are withheld because two of a sort claim one alias.
func merge(listings []*listing) (*catalogue, []gateway.Tool) {
	type claim struct {
		sort  gateway.Sort
		alias string
	}
	of := func(t gateway.Tool) claim { return claim{cmp.Or(t.Sort, gateway.SortTool), t.Alias} }
	claims := map[claim]int{}
	for _, l := range listings {
		for _, t := range l.tools {
			claims[of(t)]++
		}
	}
	c := &catalogue{shelves: map[gateway.Sort]*shelf{}, from: listings}
	var withheld []gateway.Tool
	for _, l := range listings {
		for _, t := range l.tools {
			k := of(t)
			if claims[k] > 1 {
				withheld = append(withheld, t)
				continue
			}
			s := c.shelves[k.sort]
			if s == nil {
				s = &shelf{byName: map[string]int{}}
				c.shelves[k.sort] = s
			}
			s.tools = append(s.tools, plainly(t))
		}
	}
	for _, s := range c.shelves {
		slices.SortFunc(s.tools, func(a, b gateway.Tool) int { return strings.Compare(a.Alias, b.Alias) })
		for i, t := range s.tools {
			s.byName[t.Alias] = i
		}
	}
	return c, withheld
}
