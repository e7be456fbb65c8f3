package edge

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"time"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway"
)

const (
	maxTaskBody = 1 << 20
	maxTTL      = 10 * 365 * 24 * time.Hour // what a duration can hold with room to spare; kinds say what is allowed
)

// A wish is what a caller says that a task should be, by REST and in a token
// exchange.
type wish struct {
	Kind       string           `json:"kind"`
	Purpose    string           `json:"purpose"`
	Reference  string           `json:"reference"`
	OnBehalfOf string           `json:"on_behalf_of"`
	Principal  string           `json:"principal"`
	Principals []string         `json:"principals"`
	Labels     []string         `json:"labels"`
	Approvers  []string         `json:"approvers"`
	TTL        int64            `json:"ttl_seconds"`
	Calls      int64            `json:"calls"`
	Scope      []authz.ScopeRow `json:"scope"`
}

const wishes = "kind, purpose and, if you like, reference, on_behalf_of, principal, principals, labels, approvers, ttl_seconds, calls and scope"

// readWish reads strictly what was asked for, and says which member it is where
// one is to blame. It repeats no value, and no name that is no plain word.
func readWish(text []byte, into any) (wrong string) {
	if why := tooMuch(text); why != "" {
		return "; it " + why
	}
	err := strict.Unmarshal(text, into, strict.RejectUnknownMembers(true))
	if err == nil {
		return ""
	}
	bad, ok := errors.AsType[*strict.SemanticError](err)
	if !ok {
		return "; it is not strict JSON"
	}
	member := string(bad.JSONPointer)
	if !plainMember.MatchString(member) {
		member = "a member"
	}
	if errors.Is(err, strict.ErrUnknownName) {
		return "; " + member + " is none of these"
	}
	return "; " + member + " is of the wrong type"
}

var plainMember = regexp.MustCompile(`^(/[A-Za-z0-9_-]{1,64})+$`)

// spec is the wish as the gateway takes it, which knows what may be wished for;
// or why it cannot even be asked.
func (w wish) spec() (spec gateway.TaskSpec, wrong string) {
	switch {
	case w.TTL < 0 || w.TTL > int64(maxTTL/time.Second):
		return gateway.TaskSpec{}, "ttl_seconds is out of range"
	case w.Calls < 0:
		return gateway.TaskSpec{}, "calls is out of range"
	}
	return gateway.TaskSpec{
		Kind: w.Kind, Purpose: w.Purpose, Reference: w.Reference, OnBehalfOf: w.OnBehalfOf, Principal: w.Principal, Principals: w.Principals,
		Labels: w.Labels, Approvers: w.Approvers, TTL: time.Duration(w.TTL) * time.Second, Calls: w.Calls, Scope: w.Scope,
	}, ""
}

// startTask starts a task for the caller or, where policy lets it, for another
// workload. The token in the answer is the task.
func (e *Edge) startTask(w http.ResponseWriter, r *http.Request) {
	e.restStart(w, r, e.Gateway.StartTask)
}

// delegateTask starts a child of a running task, for whoever is on that task or
// another workload.
func (e *Edge) delegateTask(w http.ResponseWriter, r *http.Request) {
	e.restStart(w, r, func(ctx context.Context, cred gateway.Credential, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error) {
		return e.Gateway.Delegate(ctx, cred, r.PathValue("id"), spec)
	})
}

type starter func(context.Context, gateway.Credential, gateway.TaskSpec) (gateway.Task, gateway.Secret, error)

func (e *Edge) restStart(w http.ResponseWriter, r *http.Request, start starter) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	body, ok := readBody(w, r, min(maxTaskBody, e.MaxBody))
	if !ok {
		e.Gateway.Malformed(r.Context(), cred)
		return
	}
	var in wish
	if why := readWish(body, &in); why != "" {
		e.Gateway.Malformed(r.Context(), cred)
		restError(w, http.StatusBadRequest, gateway.BadArguments, "the body must be one JSON object with "+wishes+why)
		return
	}
	spec, wrong := in.spec()
	if wrong != "" {
		restError(w, http.StatusBadRequest, gateway.BadArguments, wrong)
		return
	}
	task, token, err := start(r.Context(), cred, spec)
	if err != nil {
		e.restRefuse(w, r, err)
		return
	}
	restWrite(w, http.StatusCreated, struct {
		Task  gateway.Task `json:"task"`
		Token string       `json:"token"`
	}{task.Shown(), token.Reveal()})
}

func (e *Edge) showTask(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	e.restTask(w, r, func() (gateway.Task, error) { return e.Gateway.ShowTask(r.Context(), cred, r.PathValue("id")) })
}

func (e *Edge) endTask(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	e.restTask(w, r, func() (gateway.Task, error) { return e.Gateway.EndTask(r.Context(), cred, r.PathValue("id")) })
}

func (e *Edge) restTask(w http.ResponseWriter, r *http.Request, do func() (gateway.Task, error)) {
	task, err := do()
	if err != nil {
		e.restRefuse(w, r, err)
		return
	}
	restWrite(w, http.StatusOK, task.Shown())
}

// restCredential finds out who asks before anything else is read.
func (e *Edge) restCredential(w http.ResponseWriter, r *http.Request) (gateway.Credential, bool) {
	cred, ok := e.credential(r)
	if !ok {
		restError(w, http.StatusBadRequest, gateway.BadArguments, "a header does not hold an id")
		return cred, false
	}
	if _, err := e.identify(r.Context(), &cred); err != nil {
		e.restRefuse(w, r, err)
		return cred, false
	}
	if id := r.PathValue("id"); id != "" && !isID(id) {
		restError(w, http.StatusNotFound, gateway.NoTask, "no such task")
		return cred, false
	}
	return cred, true
}

func (e *Edge) restRefuse(w http.ResponseWriter, hr *http.Request, err error) {
	r := refusalOf(err)
	e.logInternal("task", r)
	status, say := e.statusOf(w.Header(), hr, r), r.Say
	switch r.Code {
	case gateway.NoTask:
		status = http.StatusNotFound
	case gateway.Unidentified:
		if say = "no valid credential"; status != http.StatusUnauthorized {
			say = said(whyNot(err))
		}
	}
	restError(w, status, r.Code, say)
}

func restError(w http.ResponseWriter, status int, code gateway.Code, message string) {
	type body struct {
		Code    gateway.Code `json:"code"`
		Message string       `json:"message"`
	}
	restWrite(w, status, struct {
		Error body `json:"error"`
	}{body{code, message}})
}

func restWrite(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer could not be written"}}`)
	}
	_ = writeJSON(w, status, append(body, '\n'))
}
