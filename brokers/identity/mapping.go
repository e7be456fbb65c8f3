package identity

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"toolbroker/gateway"
)

// A Rule says whom a credential stands for. Templates insert claims:
// "agent:{sub}", "{kubernetes.io.namespace}". A rule whose template asks for a
// claim that is not there refuses; a wider rule below it is not tried.
type Rule struct {
	When       map[string]string // claim's path to glob: * stays between slashes, ** does not; all must match
	Principal  string            // template
	Tenant     string            // template; must come to a configured tenant
	Owner      string            // template; must come to a configured operator
	OnBehalfOf string            // template, or empty
	Chain      string            // template over each nested act; default "{sub}"
	Standing   string            // the kind of task it is on where it names none, or empty
	Vouches    []string          // which claims about a task its word proves
	StartsFor  []string          // whom else it may start tasks for, as patterns of policy's
	Bound      bool              // its credential must be bound to a key
}

// A mapping is an issuer's rules, ready to be used.
type mapping struct {
	names         map[string]string // of the issuers, by what their tokens call them
	issuer, authn string
	rules         []rule
	tenants       []string
	owners        []string
	depth         int
	bound         bool
}

type rule struct {
	Rule
	when                                        []condition
	principal, tenant, owner, onBehalfOf, chain template
	actor                                       bool // it looks at who acts, so it may decide on a delegated token
}

type condition struct{ path, pattern string }

// A template alternates text and the paths of claims.
type template []struct{ text, claim string }

const maxValue = 256

var (
	// What a claim may put into a name: nothing that a policy's globs, a log's
	// lines or a reader's eyes could take for something else.
	insert = regexp.MustCompile(`^[A-Za-z0-9._:/@+=-]{1,256}$`)
	hole   = regexp.MustCompile(`\{([^{}]*)\}`)
	// Names of other things than workloads.
	reserved = []string{"operator:", "role:", "group:", "task:"}
	words    = []string{"on_behalf_of", "purpose", "labels", "reference", "approvers"}
)

func insertable(s string) bool { return insert.MatchString(s) }

func vouchable(all []string) error {
	for _, w := range all {
		if !slices.Contains(words, w) {
			return fmt.Errorf("vouches: %q is not one of %s", w, strings.Join(words, ", "))
		}
	}
	return nil
}

func newMapping(is Issuer, c Config) (*mapping, error) {
	m := &mapping{issuer: is.Name, authn: is.Kind, tenants: c.Tenants, owners: c.Owners, depth: c.ActDepth, bound: is.Bound, names: map[string]string{}}
	for _, other := range c.Issuers {
		if other.URL != "" {
			m.names[other.URL] = other.Name
		}
	}
	if len(is.Rules) == 0 {
		return nil, errors.New("it has no rules, so its credentials stand for nobody")
	}
	for n, r := range is.Rules {
		out := rule{Rule: r}
		if r.Principal == "" || r.Tenant == "" || r.Owner == "" {
			return nil, fmt.Errorf("rule %d: principal, tenant and owner are required", n+1)
		}
		if r.Chain == "" {
			r.Chain = "{sub}"
		}
		if err := vouchable(r.Vouches); err != nil {
			return nil, fmt.Errorf("rule %d: %w", n+1, err)
		}
		for _, t := range []struct {
			text string
			to   *template
		}{{r.Principal, &out.principal}, {r.Tenant, &out.tenant}, {r.Owner, &out.owner}, {r.OnBehalfOf, &out.onBehalfOf}, {r.Chain, &out.chain}} {
			var err error
			if *t.to, err = parseTemplate(t.text); err != nil {
				return nil, fmt.Errorf("rule %d: %w", n+1, err)
			}
		}
		for _, path := range slices.Sorted(maps.Keys(r.When)) {
			out.when = append(out.when, condition{path, r.When[path]})
		}
		out.actor = slices.ContainsFunc(out.when, func(w condition) bool { return isActor(w.path) }) || out.principal.names(isActor) || out.onBehalfOf.names(isActor)
		m.rules = append(m.rules, out)
	}
	return m, nil
}

func parseTemplate(s string) (template, error) {
	var t template
	for at := 0; at < len(s); {
		next := hole.FindStringSubmatchIndex(s[at:])
		text, claim := s[at:], ""
		if next != nil {
			text, claim = s[at:at+next[0]], s[at+next[2]:at+next[3]]
			if claim == "" {
				return nil, errors.New("a template names no claim in {}")
			}
		}
		if text != "" && !insertable(text) {
			return nil, errors.New("a template may hold letters, digits, . _ : / @ + = - and {claim}")
		}
		t = append(t, struct{ text, claim string }{text, claim})
		if next == nil {
			break
		}
		at += next[1]
	}
	return t, nil
}

// subject returns whom verified claims stand for.
func (m *mapping) subject(c claims) (subject, error) {
	nested, err := actors(c, m.depth)
	if err != nil {
		return subject{}, err
	}
	r, ok := m.match(c)
	if !ok {
		return subject{}, refuse(gateway.WhyMapping, errors.New("no rule matches"))
	}
	if _, delegated := c["act"]; delegated && !r.actor {
		return subject{}, refuse(gateway.WhyMapping, errors.New("somebody acts for its subject, and the rule does not say who"))
	}
	p := gateway.Principal{Authn: m.authn, Issuer: m.issuer, Standing: r.Standing, Vouches: r.Vouches, StartsFor: r.StartsFor, MayAct: mayAct(c, m.names)}
	for _, f := range []struct {
		what string
		t    template
		to   *string
	}{{"principal", r.principal, &p.ID}, {"tenant", r.tenant, &p.Tenant}, {"owner", r.owner, &p.Owner}, {"on_behalf_of", r.onBehalfOf, &p.OnBehalfOf}} {
		if len(f.t) == 0 {
			continue
		}
		if *f.to, err = f.t.fill(c); err != nil {
			return subject{}, refuse(gateway.WhyMapping, fmt.Errorf("%s: %w", f.what, err))
		}
	}
	if !slices.Contains(m.tenants, p.Tenant) {
		return subject{}, refuse(gateway.WhyMapping, errors.New("tenant: not one that is configured"))
	}
	if !slices.Contains(m.owners, p.Owner) {
		return subject{}, refuse(gateway.WhyMapping, errors.New("owner: not an operator"))
	}
	for _, a := range nested {
		name, err := r.chain.fill(a)
		if err != nil {
			return subject{}, refuse(gateway.WhyMapping, fmt.Errorf("chain: %w", err))
		}
		p.Chain = append(p.Chain, name)
	}
	slices.Reverse(p.Chain) // the first to delegate first
	p.Chain, p.MayAct = slices.Clip(p.Chain), slices.Clip(p.MayAct)
	if _, delegated := c["act"]; !delegated && insertable(c.text("sub")) {
		p.Subject = c.text("sub")
	}
	for _, name := range []string{"azp", "client_id"} {
		if id := c.text(name); p.Client == "" && insertable(id) {
			p.Client = id
		}
	}
	b, err := confirmation(c)
	if err != nil {
		return subject{}, err
	}
	return subject{Principal: p, bound: b, require: m.bound || r.Bound}, nil
}

func (m *mapping) match(c claims) (rule, bool) {
	for _, r := range m.rules {
		if !slices.ContainsFunc(r.when, func(w condition) bool { return !w.holds(c) }) {
			return r, true
		}
	}
	return rule{}, false
}

// holds asks one condition; of a list any element will do. What is not there
// matches nothing.
func (w condition) holds(c claims) bool {
	v, ok := c.at(w.path)
	if !ok {
		return false
	}
	all, ok := v.([]any)
	if !ok {
		all = []any{v}
	}
	return slices.ContainsFunc(all, func(v any) bool {
		s, ok := scalar(v)
		return ok && glob(s, w.pattern)
	})
}

// names reports whether the template inserts a claim that is such.
func (t template) names(such func(claim string) bool) bool {
	for _, part := range t {
		if part.claim != "" && such(part.claim) {
			return true
		}
	}
	return false
}

func isActor(path string) bool { return strings.HasPrefix(path, "act.") }

// fill writes a name, or says why there is none.
func (t template) fill(c claims) (string, error) {
	var b strings.Builder
	for _, part := range t {
		b.WriteString(part.text)
		if part.claim == "" {
			continue
		}
		v, ok := c.at(part.claim)
		if !ok {
			return "", errors.New("a claim that the rule inserts is not there")
		}
		if list, ok := v.([]any); ok && len(list) == 1 {
			v = list[0]
		}
		s, ok := scalar(v)
		if !ok || !insertable(s) {
			return "", errors.New("a claim that the rule inserts is none that can stand in a name")
		}
		b.WriteString(s)
	}
	s := b.String()
	if len(s) > maxValue || s == "" {
		return "", errors.New("empty, or longer than a name may be")
	}
	lower := strings.ToLower(s)
	if slices.ContainsFunc(reserved, func(r string) bool { return strings.HasPrefix(lower, r) }) {
		return "", errors.New("the name of something that is no workload")
	}
	return s, nil
}

// glob is the policy's: `*` is any run without a slash, `**` any run, and a
// pattern that is only `*` covers everything.
func glob(s, pattern string) bool {
	if pattern == "*" {
		return true
	}
	// reach[i] reports whether the pattern so far covers s[:i].
	reach := make([]bool, len(s)+1)
	reach[0] = true
	for p := 0; p < len(pattern); p++ {
		switch deep := strings.HasPrefix(pattern[p:], "**"); {
		case pattern[p] == '*':
			for i := 1; i <= len(s); i++ {
				reach[i] = reach[i] || reach[i-1] && (deep || s[i-1] != '/')
			}
			if deep {
				p++
			}
		default:
			for i := len(s); i > 0; i-- {
				reach[i] = reach[i-1] && s[i-1] == pattern[p]
			}
			reach[0] = false
		}
	}
	return reach[len(s)]
}
