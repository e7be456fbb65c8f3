package servers

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// maxToldHour bounds what one server can write into a tenant's record within an
// hour, whatever it does. What is more is counted.
const maxToldHour = 120

// A ration is what is left of that for each site.
type ration struct {
	now func() time.Time

	mu    sync.Mutex
	hours map[site]*hour
}

type hour struct {
	ends    time.Time
	told    int
	more    int64        // that were not written
	subject gateway.Tool // the server, where a fact wants a tool
}

func newRation() *ration { return &ration{now: time.Now, hours: map[site]*hour{}} }

// rationed reports whether a server decides how often a fact of this type comes.
func rationed(t audit.Type) bool {
	return strings.HasPrefix(string(t), "tool.") || t == audit.ServerDown || t == audit.ServerUp
}

// cut takes out what is too much.
func (r *ration) cut(tenant string, facts []gateway.Fact) (some []gateway.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range facts {
		if f.Tool == nil || !rationed(f.Type) {
			some = append(some, f)
			continue
		}
		at, now := site{tenant, f.Tool.Server}, r.now()
		h := r.hours[at]
		if h == nil || !now.Before(h.ends) {
			some = append(some, h.rest()...)
			h = &hour{ends: now.Add(time.Hour), subject: gateway.Tool{Server: f.Tool.Server, Kind: f.Tool.Kind, Addr: f.Tool.Addr}}
			r.hours[at] = h
		}
		if h.told++; h.told <= maxToldHour {
			some = append(some, f)
			continue
		}
		if h.more++; h.more == 1 {
			some = append(some, gateway.Fact{Type: audit.ToolsChanged, Tool: &h.subject,
				Detail: fmt.Sprintf("the server caused %d events within an hour; until %s what comes is counted and not written", maxToldHour, h.ends.UTC().Format(time.TimeOnly))})
		}
	}
	return some
}

// rest says how many facts of an hour were not written.
func (h *hour) rest() []gateway.Fact {
	if h == nil || h.more == 0 {
		return nil
	}
	f := gateway.Fact{Type: audit.ToolsChanged, Tool: &h.subject, Count: h.more, Detail: fmt.Sprintf("%d more events about the server were not written", h.more)}
	h.more = 0
	return []gateway.Fact{f}
}

// over lists, by tenant, what is to be said of hours that are over; with all, of
// every hour.
func (r *ration) over(all bool) map[string][]gateway.Fact {
	r.mu.Lock()
	defer r.mu.Unlock()
	facts := map[string][]gateway.Fact{}
	for at, h := range r.hours {
		if all || !r.now().Before(h.ends) {
			if rest := h.rest(); rest != nil {
				facts[at.tenant] = append(facts[at.tenant], rest...)
			}
			delete(r.hours, at)
		}
	}
	return facts
}
