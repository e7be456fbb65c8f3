package edge

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway"
)

const (
	maxTaskBody = 1 << 20
	maxTTL      = 10 * 365 * 24 * time.Hour // what a duration can hold with room to spare; kinds say what is allowed
)

// startTask starts a task for the caller or, where policy lets it, for another
// workload. The token in the answer is the task.
func (e *Edge) startTask(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	body, ok := readBody(w, r, min(maxTaskBody, e.MaxBody))
	if !ok {
		e.Gateway.Malformed(r.Context(), cred)
		return
	}
	var in struct {
		Kind       string           `json:"kind"`
		Purpose    string           `json:"purpose"`
		Principal  string           `json:"principal"`
		OnBehalfOf string           `json:"on_behalf_of"`
		TTL        int64            `json:"ttl_seconds"`
		Scope      []authz.ScopeRow `json:"scope"`
	}
	if tooDeep(body) || strict.Unmarshal(body, &in, strict.RejectUnknownMembers(true)) != nil {
		e.Gateway.Malformed(r.Context(), cred)
		restError(w, http.StatusBadRequest, gateway.BadArguments, "the body must be one JSON object with kind, purpose and, if you like, principal, on_behalf_of, ttl_seconds and scope")
		return
	}
	if in.TTL < 0 || in.TTL > int64(maxTTL/time.Second) {
		restError(w, http.StatusBadRequest, gateway.BadArguments, "ttl_seconds is out of range")
		return
	}
	task, token, err := e.Gateway.StartTask(r.Context(), cred, gateway.TaskSpec{
		Kind: in.Kind, Purpose: in.Purpose, Principal: in.Principal, OnBehalfOf: in.OnBehalfOf,
		TTL: time.Duration(in.TTL) * time.Second, Scope: in.Scope,
	})
	if err != nil {
		e.restRefuse(w, err)
		return
	}
	restWrite(w, http.StatusCreated, struct {
		Task  gateway.Task `json:"task"`
		Token string       `json:"token"`
	}{task, token.Reveal()})
}

func (e *Edge) showTask(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	e.restTask(w, func() (gateway.Task, error) { return e.Gateway.ShowTask(r.Context(), cred, r.PathValue("id")) })
}

func (e *Edge) endTask(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.restCredential(w, r)
	if !ok {
		return
	}
	e.restTask(w, func() (gateway.Task, error) { return e.Gateway.EndTask(r.Context(), cred, r.PathValue("id")) })
}

func (e *Edge) restTask(w http.ResponseWriter, do func() (gateway.Task, error)) {
	task, err := do()
	if err != nil {
		e.restRefuse(w, err)
		return
	}
	restWrite(w, http.StatusOK, task)
}

// restCredential finds out who asks before anything else is read.
func (e *Edge) restCredential(w http.ResponseWriter, r *http.Request) (gateway.Credential, bool) {
	cred, ok := credential(r)
	if !ok {
		restError(w, http.StatusBadRequest, gateway.BadArguments, "a header does not hold an id")
		return cred, false
	}
	if _, err := e.Gateway.Identify(r.Context(), cred); err != nil {
		e.restRefuse(w, err)
		return cred, false
	}
	if id := r.PathValue("id"); id != "" && !isID(id) {
		restError(w, http.StatusNotFound, gateway.NoTask, "no such task")
		return cred, false
	}
	return cred, true
}

func (e *Edge) restRefuse(w http.ResponseWriter, err error) {
	r, ok := errors.AsType[*gateway.Refusal](err)
	if !ok {
		r = &gateway.Refusal{Code: gateway.Internal, Err: err}
	}
	e.logInternal("task", r)
	status, say := statusOf(r.Code), r.Say
	switch r.Code {
	case gateway.NoTask:
		status = http.StatusNotFound
	case gateway.Unidentified:
		w.Header().Set("WWW-Authenticate", "Bearer")
		say = "no valid credential"
	case gateway.TooMany:
		w.Header().Set("Retry-After", "1")
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
	writeJSON(w, status, append(body, '\n'))
}
