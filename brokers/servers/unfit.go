package servers

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// An unfit is something that a server lists and that nobody can use, or a whole
// list of a sort: then it has no name. Agents never hear of it; admins see why.
type unfit struct {
	sort        gateway.Sort
	name, alias string
	raw         json.RawMessage // nil where nobody may read it, or it is too long to keep
	hash        string
	why         string
}

// heldUnfit stands before why an unfit is withheld.
const heldUnfit = "it cannot be used: "

// unfitOf is what could not be made into t, which holds its name if it has one.
func unfitOf(of gateway.Sort, t gateway.Tool, raw json.RawMessage, why error) unfit {
	u := unfit{sort: of, name: t.Name, alias: t.Alias, hash: digest(raw), why: why.Error()}
	if len(t.Name) > 2*maxURI {
		u.name, u.alias = clip(t.Name), ""
	}
	canonical := jsontext.Value(bytes.Clone(raw))
	if canonical.Canonicalize() == nil {
		u.hash = digest(canonical)
	}
	if len(raw) <= maxText {
		u.raw = raw
	}
	return u
}

// unfitSecret is what was made into t and holds a credential.
func unfitSecret(t gateway.Tool, why string, secrets []gateway.Secret) unfit {
	u := unfit{sort: cmp.Or(t.Sort, gateway.SortTool), name: t.Name, alias: t.Alias, why: why}
	return u.without(secrets, why)
}

// without is u without what holds one of secrets, not even its digest.
func (u unfit) without(secrets []gateway.Secret, why string) unfit {
	if gateway.Holds(u.raw, secrets) || gateway.Holds([]byte(u.name), secrets) || gateway.Holds([]byte(u.why), secrets) {
		u.raw, u.hash, u.why = nil, "", why
	}
	if gateway.Holds([]byte(u.name), secrets) {
		u.name, u.alias = "", ""
	}
	return u
}

func (u unfit) thing() thing { return thing{u.sort, u.name} }

// definition is an unfit as an admin sees it.
func (u unfit) definition(server string, b *book) gateway.Definition {
	d := gateway.Definition{Server: server, Sort: u.sort, Name: u.name, Alias: u.alias, Hash: u.hash, Seen: u.raw, Held: heldUnfit + u.why, Unfit: true}
	if u.raw != nil {
		d.Flags = flags(u.raw)
	}
	if p, ok := b.pinned(u.thing()); ok {
		accepted(&d, p)
	}
	return d
}

// tellUnfit puts on record what cannot be used, once however often it comes and goes.
func (p *pins) tellUnfit(f *feed, all []unfit) {
	for _, tenant := range f.tenants {
		at := site{tenant, f.s.Name}
		var facts []gateway.Fact
		more := 0
		for _, u := range all {
			switch {
			case !p.fresh(at, u.thing(), u.hash, u.why):
			case len(facts) == maxTold:
				more++
			default:
				t := f.s.asTool()
				t.Sort, t.Name, t.Alias, t.Hash = u.sort, u.name, u.alias, u.hash
				facts = append(facts, gateway.Fact{Type: audit.ToolWithheld, Tool: t, Detail: string(u.sort) + ": " + heldUnfit + u.why})
			}
		}
		if more > 0 {
			facts = append(facts, gateway.Fact{Type: audit.ToolWithheld, Tool: f.s.asTool(), Count: int64(more), Detail: fmt.Sprintf("%d more cannot be used", more)})
		}
		p.all.record(tenant, facts...)
	}
}
