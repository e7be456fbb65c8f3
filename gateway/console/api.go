package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// bearer lets only operators with a session token in the Authorization header
// through; a cookie is never one.
func (s *console) bearer(p page) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, raw, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || !isToken(raw) || len(r.Header.Values("Authorization")) != 1 {
			s.apiError(w, r, gateway.ErrLogin)
			return
		}
		token := gateway.NewSecret(raw)
		op, err := s.Gateway.Operator(r.Context(), token)
		if err != nil {
			s.apiError(w, r, err)
			return
		}
		p(w, r, token, op)
	})
}

func (s *console) apiLogin(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name     string `json:"name"`
		Password string `json:"password"`
	}
	if !read(w, r, &in) {
		return
	}
	token, op, err := s.Gateway.Login(r.Context(), in.Name, gateway.NewSecret(in.Password), source(r))
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	type operator struct {
		Name    string   `json:"name"`
		Groups  []string `json:"groups"`
		Roles   []string `json:"roles"`
		Tenants []string `json:"tenants"`
		Worlds  []string `json:"worlds"` // the tenants by name, where tenants is "*"
	}
	s.reply(w, http.StatusOK, struct {
		Token    string   `json:"token"`
		Operator operator `json:"operator"`
	}{token.Reveal(), operator{op.Name, orEmpty(op.Groups), orEmpty(op.Roles), orEmpty(op.Tenants), orEmpty(s.tenantsOf(op))}})
}

func (s *console) apiLogout(w http.ResponseWriter, r *http.Request, token gateway.Secret, _ gateway.Operator) {
	if err := s.Gateway.Logout(r.Context(), token); err != nil {
		s.apiError(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *console) apiApprovals(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	all, err := s.Gateway.ApprovalList(r.Context(), op)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"approvals": orEmpty(all)})
}

func (s *console) apiApproval(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	a, err := s.Gateway.ApprovalShow(r.Context(), op, tenant, id)
	if err == nil && !utf8.Valid(a.Args) {
		err = errors.New("arguments are not UTF-8 and cannot be shown exactly")
	}
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, struct {
		gateway.ApprovalRequest
		Args    string `json:"args"`
		MayVote string `json:"may_vote"`
	}{a, string(a.Args), s.whyNot(op, a)})
}

func (s *console) apiVote(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	var in struct {
		Approve *bool  `json:"approve"`
		Digest  string `json:"digest"`
		Reason  string `json:"reason"`
	}
	if !read(w, r, &in) {
		return
	}
	if in.Approve == nil || in.Digest == "" {
		apiFail(w, http.StatusBadRequest, "bad_request", "A vote says approve, true or false, and the digest that it answers.")
		return
	}
	if !*in.Approve && strings.TrimSpace(in.Reason) == "" {
		apiFail(w, http.StatusBadRequest, "bad_request", "A denial needs a reason.")
		return
	}
	a, err := s.Gateway.Vote(r.Context(), op, tenant, id, *in.Approve, in.Digest, in.Reason)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, a)
}

// A taskWish is what the API takes of a task to be.
type taskWish struct {
	Kind      string           `json:"kind"`
	Purpose   string           `json:"purpose"`
	Principal string           `json:"principal"`
	Also      []string         `json:"principals"`
	TTL       int64            `json:"ttl_seconds"`
	Scope     []authz.ScopeRow `json:"scope"`
	Reference string           `json:"reference"`
	Labels    []string         `json:"labels"`
	Approvers []string         `json:"approvers"`
	Calls     int64            `json:"calls"`
}

// spec is the wish as the gateway takes it; it answers for one that cannot be meant.
func (in taskWish) spec(w http.ResponseWriter, tenant string) (gateway.TaskSpec, bool) {
	const most = int64(10 * 365 * 24 * time.Hour / time.Second) // so that it stays a Duration; kinds say less
	if in.TTL < 0 || in.TTL > most {
		apiFail(w, http.StatusBadRequest, "bad_request", "ttl_seconds is how long the task may run, from 1 up; leave it out for as long as its kind allows.")
		return gateway.TaskSpec{}, false
	}
	if in.Calls < 0 {
		apiFail(w, http.StatusBadRequest, "bad_request", "calls is how many the task may make, from 1 up; leave it out for as many as its kind allows.")
		return gateway.TaskSpec{}, false
	}
	return gateway.TaskSpec{
		Tenant: tenant, Kind: in.Kind, Purpose: in.Purpose, Principal: in.Principal, Principals: in.Also, TTL: time.Duration(in.TTL) * time.Second,
		Scope: in.Scope, Reference: in.Reference, Labels: in.Labels, Approvers: in.Approvers, Calls: in.Calls,
	}, true
}

func (s *console) apiTaskStart(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	var in struct {
		Tenant     string `json:"tenant"`
		OnBehalfOf string `json:"on_behalf_of"`
		taskWish
	}
	if !read(w, r, &in) {
		return
	}
	spec, ok := in.spec(w, in.Tenant)
	if !ok {
		return
	}
	if !isID(in.Tenant) {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	spec.OnBehalfOf = in.OnBehalfOf
	t, token, err := s.Gateway.TaskStart(r.Context(), op, spec)
	s.replyStarted(w, r, t, token, err)
}

// apiTaskDelegate starts a task below another, for the human whom that one is for.
func (s *console) apiTaskDelegate(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, parent, ok := named(r)
	if !ok {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	var in taskWish
	if !read(w, r, &in) {
		return
	}
	spec, ok := in.spec(w, tenant)
	if !ok {
		return
	}
	t, token, err := s.Gateway.TaskDelegate(r.Context(), op, tenant, parent, spec)
	s.replyStarted(w, r, t, token, err)
}

func (s *console) replyStarted(w http.ResponseWriter, r *http.Request, t gateway.Task, token gateway.Secret, err error) {
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusCreated, struct {
		Task  gateway.Task `json:"task"`
		Token string       `json:"token"`
	}{t, token.Reveal()})
}

func (s *console) apiTasks(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant := r.URL.Query().Get("tenant")
	if !isID(tenant) {
		apiFail(w, http.StatusBadRequest, "bad_request", "Say whose tasks: ?tenant=NAME, of "+strings.Join(s.tenantsOf(op), ", ")+".")
		return
	}
	all, err := s.Gateway.TaskList(r.Context(), op, tenant)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"tasks": orEmpty(all)})
}

func (s *console) apiTask(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	t, err := s.Gateway.TaskShow(r.Context(), op, tenant, id)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, t)
}

func (s *console) apiTaskEnd(w http.ResponseWriter, r *http.Request, _ gateway.Secret, op gateway.Operator) {
	tenant, id, ok := named(r)
	if !ok {
		s.apiError(w, r, gateway.ErrNotFound)
		return
	}
	t, err := s.Gateway.TaskEnd(r.Context(), op, tenant, id)
	if err != nil {
		s.apiError(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, t)
}

// read decodes a body once and strictly: one JSON value, no unknown or double
// names, no invalid UTF-8.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		apiFail(w, http.StatusBadRequest, "bad_request", "The body is JSON, with Content-Type: application/json.")
		return false
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		apiFail(w, http.StatusBadRequest, "bad_request", "The body is too long or broke off.")
		return false
	}
	if err := strict.Unmarshal(body, into, strict.RejectUnknownMembers(true)); err != nil {
		apiFail(w, http.StatusBadRequest, "bad_request", "The body is not the JSON object that belongs here: "+whereIn(err))
		return false
	}
	return true
}

// whereIn says what is wrong with a body without repeating a value from it,
// which may be a password.
func whereIn(err error) string {
	if e, ok := errors.AsType[*strict.SemanticError](err); ok {
		if errors.Is(err, strict.ErrUnknownName) {
			return "unknown member at " + Reveal(string(e.JSONPointer)).String()
		}
		return "wrong type at " + Reveal(string(e.JSONPointer)).String()
	}
	return "it is not strict JSON."
}

// apiError answers with one of the fixed codes; what is none of them is ours to
// read in the log.
func (s *console) apiError(w http.ResponseWriter, r *http.Request, err error) {
	p := s.explain(r, err)
	apiFail(w, p.Status, p.Code, p.Say)
}

func apiFail(w http.ResponseWriter, status int, code, message string) {
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(map[string]problem{"error": {code, message}})
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

func (s *console) reply(w http.ResponseWriter, status int, v any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(v); err != nil {
		s.Logger.Error("reply not encoded", "err", fmt.Errorf("%T: %w", v, err))
		apiFail(w, http.StatusInternalServerError, "internal", "Something went wrong here.")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes())
}

func orEmpty[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}
