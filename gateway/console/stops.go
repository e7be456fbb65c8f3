package console

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"

	"toolbroker/gateway"
)

// tenantStops is what the page of stops shows of one tenant.
type tenantStops struct {
	Name    string
	Many    bool
	MayStop bool
	Stops   []gateway.Stop
	Forms   []stopForm
}

// A stopForm stops something of one tenant.
type stopForm struct {
	Tenant                    string
	Kind                      gateway.StopKind
	Title, Label, Hint, Means string
	Name, Reason, Complain    string // as typed, when the form comes back
}

// A heldStop is a stop as one operator sees it.
type heldStop struct {
	Op   gateway.Operator
	Stop gateway.Stop
}

// A globalStop is the form that stops every tenant.
type globalStop struct{ Reason, Complain string }

// everyTenant is whom a global stop is about.
const everyTenant = "*"

// confirmation is what is typed to stop everything.
const confirmation = "STOP"

// What can be stopped by hand; a standing task is stopped by ending it.
var stopForms = []stopForm{
	{Kind: gateway.StopPrincipal, Title: "Stop a workload", Label: "Workload", Hint: "as its tasks name it, such as agent:triage", Means: "Its tasks are revoked and it can start no other until the stop is lifted."},
	{Kind: gateway.StopOwner, Title: "Stop what an owner is accountable for", Label: "Owner", Hint: "an operator’s name", Means: "Every task that this operator owns is revoked, and none can start, until the stop is lifted."},
	{Kind: gateway.StopHuman, Title: "Stop what acts for a human", Label: "Human", Hint: "as tasks name whom they act for", Means: "Every task on this human’s behalf is revoked, and none can start, until the stop is lifted."},
	{Kind: gateway.StopTenant, Title: "Stop this tenant", Means: "Every task of this tenant is revoked, and nothing of it can start, until the stop is lifted."},
}

func (s *console) stopsPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	s.showStops(w, r, op, http.StatusOK, stopForm{})
}

// showStops shows the page, and on it the form that came back, if one did.
func (s *console) showStops(w http.ResponseWriter, r *http.Request, op gateway.Operator, status int, back stopForm) {
	f := frame{Title: "Stops", Here: "stops", Op: op}
	may := op.Can(gateway.MayStop)
	names := s.tenantsOf(op)
	for _, name := range names {
		all, err := s.Gateway.StopList(r.Context(), op, name)
		if errors.Is(err, gateway.ErrNotFound) {
			continue
		}
		if err != nil {
			s.problem(w, r, op, err)
			return
		}
		t := tenantStops{Name: name, Many: len(names) > 1, MayStop: may}
		for _, s := range all {
			switch {
			case s.Tenant != everyTenant:
				t.Stops = append(t.Stops, s)
			case !slices.Contains(f.Everything, s):
				f.Everything = append(f.Everything, s)
			}
		}
		slices.SortStableFunc(t.Stops, func(a, b gateway.Stop) int { return b.At.Compare(a.At) })
		for _, form := range stopForms {
			if form.Tenant = name; back.Tenant == name && back.Kind == form.Kind {
				form.Name, form.Reason, form.Complain = back.Name, back.Reason, back.Complain
			}
			t.Forms = append(t.Forms, form)
		}
		f.Stops = append(f.Stops, t)
	}
	if may && slices.Contains(op.Tenants, everyTenant) {
		f.Global = &globalStop{}
		if back.Tenant == everyTenant {
			f.Global.Reason, f.Global.Complain = back.Reason, back.Complain
		}
	}
	s.render(w, status, "stops", f)
}

func (s *console) stop(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, kind := r.PathValue("tenant"), gateway.StopKind(r.PathValue("kind"))
	at := slices.IndexFunc(stopForms, func(f stopForm) bool { return f.Kind == kind })
	if !isID(tenant) || at < 0 {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	if !s.ours(w, r, op, "stop", tenant, string(kind)) {
		return
	}
	form := stopForms[at]
	form.Tenant, form.Name, form.Reason = tenant, strings.TrimSpace(r.PostForm.Get("name")), typed(r)
	switch {
	case kind == gateway.StopTenant:
		form.Name = ""
	case form.Name == "":
		form.Complain = "Say what to stop. Nothing was stopped."
	}
	s.setStop(w, r, op, form)
}

func (s *console) stopEverything(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	if !s.ours(w, r, op, "stop", everyTenant) {
		return
	}
	form := stopForm{Tenant: everyTenant, Kind: gateway.StopTenant, Reason: typed(r)}
	if r.PostForm.Get("confirm") != confirmation {
		form.Complain = "Type " + confirmation + " to say that you mean it. Nothing was stopped."
	}
	s.setStop(w, r, op, form)
}

// setStop sets the stop that a form asks for, or shows the form again.
func (s *console) setStop(w http.ResponseWriter, r *http.Request, op gateway.Operator, form stopForm) {
	if form.Reason == "" {
		form.Complain = cmp.Or(form.Complain, "Say why: a stop needs a reason. Nothing was stopped.")
	}
	if form.Complain != "" {
		s.showStops(w, r, op, http.StatusUnprocessableEntity, form)
		return
	}
	err := s.Gateway.StopSet(r.Context(), op, gateway.Stop{Tenant: form.Tenant, Kind: form.Kind, Name: form.Name, Reason: form.Reason})
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	http.Redirect(w, r, "/stops", http.StatusSeeOther)
}

func (s *console) lift(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, kind, name := r.PostFormValue("tenant"), r.PostFormValue("kind"), r.PostFormValue("name")
	if !s.ours(w, r, op, "lift", tenant, kind, name) {
		return
	}
	if err := s.Gateway.StopLift(r.Context(), op, tenant, gateway.StopKind(kind), name); err != nil {
		if say := s.noStop(op, tenant, gateway.StopKind(kind), name); say != "" && errors.Is(err, gateway.ErrNotFound) {
			s.show(w, http.StatusNotFound, op, "Nothing was lifted", say)
			return
		}
		s.problem(w, r, op, err)
		return
	}
	http.Redirect(w, r, "/stops", http.StatusSeeOther)
}

// noStop says which stop there is none of, to whom the tenant is theirs to know;
// to others, nothing.
func (s *console) noStop(op gateway.Operator, tenant string, kind gateway.StopKind, name string) string {
	all := s.tenantsOf(op)
	switch {
	case tenant == everyTenant && slices.Contains(op.Tenants, everyTenant):
		return "Nothing stops everything, so nothing was lifted."
	case !slices.Contains(all, tenant) || !slices.Contains(s.Tenants, tenant):
		return ""
	case name == "":
		return "There is no stop of the tenant " + tenant + ", so nothing was lifted."
	}
	return "There is no stop of " + Reveal(string(kind)+" "+name).String() + " in " + tenant + ", so nothing was lifted."
}

func typed(r *http.Request) string {
	return strings.TrimSpace(strings.ReplaceAll(r.PostForm.Get("reason"), "\r\n", "\n"))
}

// mayLift reports whether a stop is shown with its way out.
func mayLift(op gateway.Operator, s gateway.Stop) bool {
	return op.Can(gateway.MayStop) && (s.Tenant != everyTenant || slices.Contains(op.Tenants, everyTenant))
}

// heldOf says what a stop holds; its name, if it has one, is said beside it.
func heldOf(s gateway.Stop) string {
	switch s.Kind {
	case gateway.StopPrincipal:
		return "Workload"
	case gateway.StopOwner:
		return "What is owned by"
	case gateway.StopHuman:
		return "What acts for"
	case gateway.StopStanding:
		return "Implicit task of"
	case gateway.StopTenant:
		if s.Tenant == everyTenant {
			return "Everything, of every tenant"
		}
		return "Everything of this tenant"
	}
	return string(s.Kind)
}

func (s *console) apiStops(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant := r.URL.Query().Get("tenant")
	if !isID(tenant) {
		apiFail(w, http.StatusBadRequest, "bad_request", "Say whose stops: ?tenant=NAME, of "+strings.Join(s.tenantsOf(op), ", ")+".")
		return
	}
	all, err := s.Gateway.StopList(r.Context(), op, tenant)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"stops": orEmpty(all)})
}

// apiStop sets a stop. Every tenant is "*", with kind tenant.
func (s *console) apiStop(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	var in struct {
		Tenant string           `json:"tenant"`
		Kind   gateway.StopKind `json:"kind"`
		Name   string           `json:"name"`
		Reason string           `json:"reason"`
	}
	if !read(w, r, &in) {
		return
	}
	if !slices.ContainsFunc(stopForms, func(f stopForm) bool { return f.Kind == in.Kind }) || (in.Kind == gateway.StopTenant) != (in.Name == "") {
		apiFail(w, http.StatusBadRequest, "bad_request", "A stop is of kind principal, owner or human with a name, or of kind tenant without one.")
		return
	}
	if strings.TrimSpace(in.Reason) == "" {
		apiFail(w, http.StatusBadRequest, "bad_request", "A stop needs a reason.")
		return
	}
	if !isID(in.Tenant) && !(in.Tenant == everyTenant && in.Kind == gateway.StopTenant) {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	if err := s.Gateway.StopSet(r.Context(), op, gateway.Stop{Tenant: in.Tenant, Kind: in.Kind, Name: in.Name, Reason: in.Reason}); err != nil {
		s.apiError(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *console) apiLift(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	var in struct {
		Tenant string           `json:"tenant"`
		Kind   gateway.StopKind `json:"kind"`
		Name   string           `json:"name"`
	}
	if !read(w, r, &in) {
		return
	}
	if !isID(in.Tenant) && in.Tenant != everyTenant {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	if err := s.Gateway.StopLift(r.Context(), op, in.Tenant, in.Kind, in.Name); err != nil {
		if say := s.noStop(op, in.Tenant, in.Kind, in.Name); say != "" && errors.Is(err, gateway.ErrNotFound) {
			apiFail(w, http.StatusNotFound, "not_found", say)
			return
		}
		s.apiError(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
