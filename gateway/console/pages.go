package console

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// A frame is what every page is made from; a template takes what it needs.
type frame struct {
	Title string
	Op    gateway.Operator // the zero one before login
	Here  string           // which part of the menu this is
	Say   string           // one sentence on top, in our words
	Mode  string
	Now   time.Time

	Next string // after login
	Name string // as typed at login

	Mine, Others, Ended []item // the list
	Tasks               []tenantTasks
	T                   *task
	Stops               []tenantStops
	Everything          []gateway.Stop // those of every tenant
	Global              *globalStop    // nil for who may not stop everything
	Tools               []tenantTools
	A                   *approval
	Problem             string
}

// An item is an approval request in the list.
type item struct {
	gateway.ApprovalRequest
	WhyNot string // why this operator may not vote; empty when it may
	Many   bool   // the operator sees more than one tenant
}

// An approval is one request whole.
type approval struct {
	item
	Arguments Arguments
	Wish      *wish // of an escalation that is open
	Meta      *Arguments
	Mine      *gateway.Vote // this operator's, if there is one
	Needs     []needed
	Reason    string // as typed, when the form comes back
	Complain  string // what was wrong with the form
}

// needed is a requirement and how far it is met.
type needed struct {
	What string
	Have int
	N    int
}

var templates = parse()

func parse() *template.Template {
	funcs := template.FuncMap{
		"show":       Reveal,
		"token":      formToken,
		"until":      func(now, t time.Time) string { return words(t.Sub(now)) },
		"stamp":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"machine":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"state":      stateWord,
		"tone":       tone,
		"needs":      needsOf,
		"thousands":  thousands,
		"role":       func(op gateway.Operator) string { return strings.Join(op.Roles, ", ") },
		"count":      count,
		"open":       func(s gateway.ApprovalState) bool { return s == gateway.ApprovalPending },
		"final":      gateway.ApprovalState.Final,
		"running":    func(t gateway.Task) bool { return t.State == gateway.TaskRunning },
		"life":       lifeOf,
		"endOf":      func(op gateway.Operator, t gateway.Task) endForm { return endForm{op, t} },
		"worth":      worthOf,
		"chain":      chainOf,
		"lapsed":     lapsed,
		"tools":      toolsOf,
		"rows":       func(s *authz.Scope) []authz.ScopeRow { return s.Rows() },
		"has":        slices.Contains[[]string, string],
		"held":       heldOf,
		"mayLift":    mayLift,
		"heldFor":    func(op gateway.Operator, s gateway.Stop) heldStop { return heldStop{op, s} },
		"asserted":   assertedWords,
		"sortWord":   sortWord,
		"acceptedBy": acceptedBy,
		"wants":      func(a gateway.ApprovalRequest) bool { return a.Kind == kindEscalation },
	}
	return template.Must(template.New("").Funcs(funcs).ParseFS(assets, "assets/*.html"))
}

func (s *console) render(w http.ResponseWriter, status int, name string, f frame) {
	f.Mode, f.Now = s.Mode, s.Now()
	var body bytes.Buffer
	if err := templates.ExecuteTemplate(&body, name, f); err != nil {
		s.Logger.Error("page not rendered", "page", name, "err", err)
		http.Error(w, "Something went wrong here.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes())
}

// show is a page that says one thing.
func (s *console) show(w http.ResponseWriter, status int, op gateway.Operator, title, text string) {
	s.render(w, status, "problem", frame{Title: title, Op: op, Problem: text})
}

// A trouble is an error as a caller may read it.
type trouble struct {
	Status    int
	Code, Say string
}

// explain turns an error of the gateway into words for an operator. What has
// none is logged, and only said to be internal.
func (s *console) explain(r *http.Request, err error) trouble {
	if forbidden, ok := errors.AsType[*gateway.Forbidden](err); ok {
		return trouble{http.StatusForbidden, "forbidden", forbidden.Why}
	}
	if refusal, ok := errors.AsType[*gateway.Refusal](err); ok {
		switch refusal.Code {
		case gateway.Denied:
			return trouble{http.StatusForbidden, "forbidden", sentence(refusal.Say)}
		case gateway.BadArguments:
			return trouble{http.StatusBadRequest, "bad_request", sentence(refusal.Say)}
		case gateway.TooMany:
			return trouble{http.StatusConflict, "not_now", sentence(refusal.Say)}
		}
	}
	switch {
	case errors.Is(err, gateway.ErrStopped):
		return trouble{http.StatusConflict, "stopped", "A stop is about this, so nothing was done. It is on the page of stops, where an admin can lift it."}
	case errors.Is(err, gateway.ErrBusy):
		return trouble{http.StatusConflict, "not_now", "The workload is on another task that still runs, and its kind does not let it be on two."}
	case errors.Is(err, gateway.ErrLogin):
		return trouble{http.StatusUnauthorized, "login", "Log in: the name, password or session is not valid."}
	case errors.Is(err, gateway.ErrTooMany):
		return trouble{http.StatusTooManyRequests, "too_many", "There were too many tries. Wait a quarter of an hour, then try again."}
	case errors.Is(err, gateway.ErrNotFound), errors.Is(err, gateway.ErrNoTask):
		return trouble{http.StatusNotFound, "not_found", "There is nothing here, or nothing that you may see."}
	case errors.Is(err, gateway.ErrNotNow):
		return trouble{http.StatusConflict, "not_now", "This has changed or ended meanwhile, so nothing was done. Look at it again."}
	}
	if r.Context().Err() == nil {
		s.Logger.Error("request failed", "method", r.Method, "route", r.Pattern, "err", err)
	}
	return trouble{http.StatusInternalServerError, "internal", "Something went wrong here. Try again; if it stays, tell whoever runs the gateway."}
}

func sentence(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return "That was refused."
	}
	return strings.ToUpper(string(r)) + strings.TrimSuffix(s[size:], ".") + "."
}

func (s *console) problem(w http.ResponseWriter, r *http.Request, op gateway.Operator, err error) {
	t := s.explain(r, err)
	title := map[string]string{
		"forbidden": "You may not do that", "bad_request": "That could not be done", "not_found": "Nothing here",
		"not_now": "Not any more", "stopped": "That is stopped", "login": "Log in first", "too_many": "Too many tries",
	}[t.Code]
	s.show(w, t.Status, op, cmp.Or(title, "Something went wrong"), t.Say)
}

func (s *console) whyNot(op gateway.Operator, a gateway.ApprovalRequest) string {
	err := s.Gateway.MayVote(op, a)
	if forbidden, ok := errors.AsType[*gateway.Forbidden](err); ok {
		return forbidden.Why
	}
	if err != nil {
		return "You may not vote on this request."
	}
	return ""
}

func (s *console) item(op gateway.Operator, a gateway.ApprovalRequest) item {
	return item{ApprovalRequest: a, WhyNot: s.whyNot(op, a), Many: len(s.tenantsOf(op)) > 1}
}

func (s *console) listPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	all, err := s.Gateway.ApprovalList(r.Context(), op)
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	f := frame{Title: "Approvals", Here: "approvals", Op: op}
	for _, a := range all {
		i := s.item(op, a)
		switch {
		case a.State == gateway.ApprovalPending && !a.Expires.After(s.Now()):
			i.State = gateway.ApprovalExpired // its end is not on record yet, but no vote can count
			f.Ended = append(f.Ended, i)
		case a.State != gateway.ApprovalPending:
			f.Ended = append(f.Ended, i)
		case i.WhyNot == "":
			f.Mine = append(f.Mine, i)
		default:
			f.Others = append(f.Others, i)
		}
	}
	slices.Reverse(f.Ended) // newest first: it is a look back
	s.render(w, http.StatusOK, "list", f)
}

func (s *console) approvalPage(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	s.showApproval(w, r, op, http.StatusOK, "", "")
}

func (s *console) showApproval(w http.ResponseWriter, r *http.Request, op gateway.Operator, status int, reason, complain string) {
	tenant, id, ok := named(r)
	if !ok {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	a, err := s.Gateway.ApprovalShow(r.Context(), op, tenant, id)
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	v := s.approval(op, a)
	v.Arguments = ShowArguments(a.Args)
	v.Arguments.Answers = a.Answers != ""
	if len(a.Meta) > 0 {
		m := ShowArguments(a.Meta)
		v.Meta = &m
	}
	title := a.Server + "/" + a.Tool
	if a.Kind == kindEscalation {
		title = "More scope for " + a.TaskKind
		v.Wish, v.Arguments.Asked = wishOf(v.Arguments), true
	}
	v.Reason, v.Complain = reason, complain
	s.render(w, status, "approval", frame{Title: Reveal(title).String(), Here: "approvals", Op: op, A: v})
}

func (s *console) approval(op gateway.Operator, a gateway.ApprovalRequest) *approval {
	if a.State == gateway.ApprovalPending && !a.Expires.After(s.Now()) {
		a.State = gateway.ApprovalExpired
	}
	v := &approval{item: s.item(op, a)}
	for i, vote := range a.Votes {
		if vote.By == op.Name {
			v.Mine = &a.Votes[i]
		}
	}
	for _, n := range a.Need {
		row := needed{What: "any operator", N: n.N}
		if n.Group != "" {
			row.What = "group " + n.Group
		}
		for _, vote := range a.Votes {
			if vote.Approve && (n.Group == "" || slices.Contains(vote.Groups, n.Group)) {
				row.Have++
			}
		}
		v.Needs = append(v.Needs, row)
	}
	return v
}

// statusPart is the part of a request's page that changes while it is open. It
// is read from the list: looking at it again is not another look at the bytes.
func (s *console) statusPart(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	all, err := s.Gateway.ApprovalList(r.Context(), op)
	if err != nil {
		s.problem(w, r, op, err)
		return
	}
	for _, a := range all {
		if a.Tenant == tenant && a.ID == id {
			s.render(w, http.StatusOK, "status", frame{Op: op, A: s.approval(op, a)})
			return
		}
	}
	s.problem(w, r, op, gateway.ErrNotFound)
}

func (s *console) vote(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.problem(w, r, op, gateway.ErrNotFound)
		return
	}
	digest := r.PostFormValue("digest")
	if !s.ours(w, r, op, "vote", tenant, id, digest) {
		return
	}
	reason := strings.TrimSpace(strings.ReplaceAll(r.PostForm.Get("reason"), "\r\n", "\n"))
	answer := r.PostForm.Get("answer")
	if answer != "approve" && answer != "deny" {
		s.show(w, http.StatusBadRequest, op, "That form could not be read", "Nothing was done. Go back and try again.")
		return
	}
	if answer == "deny" && reason == "" {
		s.showApproval(w, r, op, http.StatusUnprocessableEntity, "", "Say why: a denial needs a reason. Nothing was sent.")
		return
	}
	if _, err := s.Gateway.Vote(r.Context(), op, tenant, id, answer == "approve", digest, reason); err != nil {
		t := s.explain(r, err)
		if t.Status == http.StatusForbidden || t.Status == http.StatusConflict {
			s.showApproval(w, r, op, t.Status, reason, t.Say)
			return
		}
		s.problem(w, r, op, err)
		return
	}
	http.Redirect(w, r, "/approvals/"+tenant+"/"+id, http.StatusSeeOther)
}

// words is a span of time as people say it. What is over is "now".
func words(d time.Duration) string {
	d = d.Round(time.Second)
	minus := d < 0
	if minus {
		d = -d
	}
	s := int(d / time.Second)
	var out string
	switch {
	case s == 0:
		return "now"
	case s < 60:
		out = fmt.Sprintf("%d s", s)
	case s < 3600:
		out = fmt.Sprintf("%d min %02d s", s/60, s%60)
	case s < 48*3600:
		out = fmt.Sprintf("%d h %02d min", s/3600, s%3600/60)
	default:
		out = fmt.Sprintf("%d days", s/86400)
	}
	if minus {
		return out + " ago"
	}
	return "in " + out
}

func stateWord(s gateway.ApprovalState) string {
	return map[gateway.ApprovalState]string{
		gateway.ApprovalPending:   "Waiting",
		gateway.ApprovalGranted:   "Approved",
		gateway.ApprovalReserved:  "Approved, being used",
		gateway.ApprovalConsumed:  "Approved and used",
		gateway.ApprovalDenied:    "Denied",
		gateway.ApprovalExpired:   "Expired",
		gateway.ApprovalCancelled: "Cancelled",
		gateway.ApprovalVoided:    "Void",
	}[s]
}

func tone(s gateway.ApprovalState) string {
	switch s {
	case gateway.ApprovalPending:
		return "wait"
	case gateway.ApprovalGranted, gateway.ApprovalReserved, gateway.ApprovalConsumed:
		return "good"
	case gateway.ApprovalDenied:
		return "bad"
	}
	return "over"
}

// needsOf says in a line how far a request is.
func needsOf(a gateway.ApprovalRequest) string {
	var parts []string
	for _, n := range a.Need {
		have := 0
		for _, v := range a.Votes {
			if v.Approve && (n.Group == "" || slices.Contains(v.Groups, n.Group)) {
				have++
			}
		}
		parts = append(parts, fmt.Sprintf("%d of %d approvals from %s", have, n.N, cmp.Or(n.Group, "any operator")))
	}
	return strings.Join(parts, ", ")
}
