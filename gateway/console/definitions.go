package console

import (
	"errors"
	"net/http"
	"strings"

	"toolbroker/gateway"
)

// tenantTools is what the page of tools shows of one tenant.
type tenantTools struct {
	Name    string
	Many    bool
	Held    []heldDefinition // what agents do not see
	More    int              // that are not shown
	Gone    []gateway.Definition
	Offered int // how many agents see
}

// A heldDefinition is one that is withheld, as one operator sees it.
type heldDefinition struct {
	gateway.Definition
	Tenant    string
	Op        gateway.Operator
	MayAccept bool
	Changes   []Change
	MoreRows  int     // changes that are not shown
	Whole     []Shown // all of it, line by line
}

// What the page shows at most; the command line shows more.
const (
	maxHeld    = 50
	maxGone    = 100
	maxChanges = 100
)

func (s *console) toolsPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	f := frame{Title: "Tools", Here: "tools", Op: op}
	names := s.tenantsOf(op)
	for _, name := range names {
		all, err := s.Gateway.Definitions(r.Context(), op, name)
		if errors.Is(err, gateway.ErrNotFound) {
			continue // the operator's, but no longer one of ours
		}
		if err != nil {
			s.problem(w, r, op, err)
			return
		}
		t := tenantTools{Name: name, Many: len(names) > 1}
		for _, d := range all {
			switch {
			case d.Held == "":
				t.Offered++
			case d.Hash == "" && !d.Unfit:
				if len(t.Gone) < maxGone {
					t.Gone = append(t.Gone, d)
				}
			case len(t.Held) == maxHeld:
				t.More++
			default:
				t.Held = append(t.Held, held(op, name, d))
			}
		}
		f.Tools = append(f.Tools, t)
	}
	s.render(w, http.StatusOK, "tools", f)
}

func held(op gateway.Operator, tenant string, d gateway.Definition) heldDefinition {
	h := heldDefinition{Definition: d, Tenant: tenant, Op: op}
	h.Changes, h.MoreRows = Diff(d.Accepted, d.Seen, maxChanges)
	for line := range strings.SplitSeq(pretty(d.Seen), "\n") { // those are our own: a text's stand as \n
		h.Whole = append(h.Whole, Reveal(line))
	}
	h.MayAccept = op.Can(gateway.MayAccept) && d.Hash != d.Pinned && !d.Unfit // one that is accepted is held back by something else
	return h
}

func (s *console) accept(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, server, sort := r.PostFormValue("tenant"), r.PostFormValue("server"), r.PostFormValue("sort")
	name, hash := r.PostFormValue("name"), r.PostFormValue("hash")
	if !s.ours(w, r, op, "accept", tenant, server, sort, name, hash) {
		return
	}
	if _, err := s.Gateway.AcceptDefinition(r.Context(), op, tenant, server, gateway.Sort(sort), name, hash); err != nil {
		s.problem(w, r, op, err)
		return
	}
	http.Redirect(w, r, "/tools", http.StatusSeeOther)
}

func (s *console) apiDefinitions(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant := r.URL.Query().Get("tenant")
	if !isID(tenant) {
		apiFail(w, http.StatusBadRequest, "bad_request", "Say whose tools: ?tenant=NAME.")
		return
	}
	all, err := s.Gateway.Definitions(r.Context(), op, tenant)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"definitions": orEmpty(all)})
}

func (s *console) apiAccept(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	var in struct {
		Tenant string       `json:"tenant"`
		Server string       `json:"server"`
		Sort   gateway.Sort `json:"sort"`
		Name   string       `json:"name"`
		Hash   string       `json:"hash"`
	}
	if !read(w, r, &in) {
		return
	}
	if in.Server == "" || in.Sort == "" || in.Name == "" || in.Hash == "" {
		apiFail(w, http.StatusBadRequest, "bad_request", "Say what to accept: its server, sort and name, and the hash of what it says now.")
		return
	}
	if !isID(in.Tenant) {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	d, err := s.Gateway.AcceptDefinition(r.Context(), op, in.Tenant, in.Server, in.Sort, in.Name, in.Hash)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, d)
}

// sortWord is what a sort is called on the page; a tool needs no word.
func sortWord(s gateway.Sort) string {
	switch s {
	case gateway.SortTool:
		return ""
	case gateway.SortTemplate:
		return "template of resources"
	}
	return string(s)
}

// acceptedBy is who accepted a definition, as the page says it.
func acceptedBy(by string) string {
	if by == "first_use" {
		return "at first use"
	}
	return "by " + strings.TrimPrefix(by, "operator:")
}
