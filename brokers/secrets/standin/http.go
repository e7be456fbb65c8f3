package standin

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A request is one call of the API, with the token that makes it.
type request struct {
	id, path string
	token    *token
	body     map[string]any
	now      time.Time
}

// An answer is what Vault would say: data, a lease or an auth; or errors.
type answer struct {
	status   int
	errors   []string
	data     map[string]any
	auth     map[string]any
	lease    string
	duration time.Duration
	renew    bool
	warning  string
}

func fail(status int, words string) answer { return answer{status: status, errors: []string{words}} }

func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
		if !ok {
			http.NotFound(w, r)
			return
		}
		q := request{id: rand.Text(), path: path, now: time.Now()}
		if body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20)); err != nil || (len(body) > 0 && json.Unmarshal(body, &q.body) != nil) {
			write(w, q.id, fail(http.StatusBadRequest, "failed to parse JSON input"))
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sweep(q.now)
		if path == "sys/health" {
			s.health(w, r)
			return
		}
		write(w, q.id, s.answer(r.Method, r.Header.Get("X-Vault-Token"), q))
	})
}

// health answers with the status the asker wants for a sealed server, as Vault does.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	if s.sealed {
		status = http.StatusServiceUnavailable
		if n, err := strconv.Atoi(r.URL.Query().Get("sealedcode")); err == nil && n >= 200 && n < 600 {
			status = n
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"initialized": true, "sealed": s.sealed, "standby": false, "enterprise": false,
		"version": Version, "cluster_name": "toolbroker stand-in, not a Vault", "server_time_utc": time.Now().Unix(),
	})
}

func (s *Server) answer(method, bearer string, q request) answer {
	if s.sealed {
		return fail(http.StatusServiceUnavailable, "Vault is sealed")
	}
	what := map[string]string{"GET": "read", "PUT": "update", "POST": "update"}[method]
	if q.path == "auth/approle/login" && what == "update" {
		return s.login(q)
	}
	t, known := s.tokens[bearer]
	switch {
	case what == "":
		return fail(http.StatusMethodNotAllowed, "unsupported operation")
	case !known:
		return fail(http.StatusForbidden, "permission denied: invalid token")
	case !s.may(t, what, q.path):
		return fail(http.StatusForbidden, "permission denied")
	}
	q.token = t
	return s.route(what, q)
}

func (s *Server) route(what string, q request) answer {
	if path, ok := strings.CutPrefix(q.path, "secret/data/"); ok {
		return s.kv2(what, path, q)
	}
	if role, ok := strings.CutPrefix(q.path, "creds/"); ok && what == "read" {
		return s.issue(role, q)
	}
	if role, ok := strings.CutPrefix(q.path, "auth/token/create/"); ok && what == "update" {
		return s.create(role, q)
	}
	switch what + " " + q.path {
	case "read auth/token/lookup-self":
		return answer{data: q.token.describe(q.now)}
	case "update auth/token/renew-self":
		return s.renewSelf(q)
	case "update auth/token/revoke-self":
		delete(s.tokens, q.token.value)
		s.sweep(q.now)
		return answer{}
	case "update auth/token/create":
		return s.create("", q)
	case "update auth/token/lookup-accessor", "update auth/token/revoke-accessor":
		return s.accessor(q)
	case "update sys/leases/lookup":
		l, ok := s.leases[q.text("lease_id")]
		if !ok {
			return fail(http.StatusBadRequest, "invalid lease")
		}
		return answer{data: map[string]any{
			"id": l.id, "issue_time": l.issued.Format(time.RFC3339Nano), "expire_time": l.expires.Format(time.RFC3339Nano),
			"ttl": int(l.expires.Sub(q.now).Seconds()), "renewable": true,
		}}
	case "update sys/leases/revoke": // of an unknown one too, as Vault does
		delete(s.leases, q.text("lease_id"))
		return answer{}
	case "update sys/leases/renew":
		l, ok := s.leases[q.text("lease_id")]
		if !ok {
			return fail(http.StatusBadRequest, "lease not found")
		}
		l.expires = s.capped(q.now.Add(l.ttl), s.tokens[l.token])
		return answer{lease: l.id, duration: l.expires.Sub(q.now), renew: true}
	}
	return fail(http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", q.path))
}

func (s *Server) login(q request) answer {
	l, ok := s.logins[q.text("role_id")]
	if !ok || subtle.ConstantTimeCompare([]byte(l.secret), []byte(q.text("secret_id"))) != 1 {
		return fail(http.StatusBadRequest, "invalid role or secret ID")
	}
	t := &token{policies: l.policies, display: "approle", expires: q.now.Add(l.ttl)}
	if l.periodic {
		t.period = l.ttl
	} else {
		t.max = t.expires
	}
	return s.add(t).answer(q.now)
}

// create makes a child: it falls with its parent, and has no policy that the
// role, or without one the parent, does not have.
func (s *Server) create(role string, q request) answer {
	allowed := q.token.policies
	if role != "" {
		var ok bool
		if allowed, ok = s.roles[role]; !ok {
			return fail(http.StatusBadRequest, "unknown role "+role)
		}
	}
	t := &token{parent: q.token.value, role: role, display: "token-" + q.text("display_name"), meta: map[string]string{}}
	if meta, ok := q.body["meta"].(map[string]any); ok {
		for k, v := range meta {
			t.meta[k] = fmt.Sprint(v)
		}
	}
	if list, ok := q.body["policies"].([]any); ok {
		for _, p := range list {
			t.policies = append(t.policies, fmt.Sprint(p))
		}
	}
	if len(t.policies) == 0 {
		t.policies = allowed
	}
	for _, p := range t.policies {
		if !slices.Contains(allowed, p) && !slices.Contains(allowed, "root") {
			return fail(http.StatusBadRequest, "child policies must be subset of parent")
		}
	}
	ttl, err := q.seconds("ttl")
	most, err2 := q.seconds("explicit_max_ttl")
	if err != nil || err2 != nil || ttl <= 0 {
		return fail(http.StatusBadRequest, "ttl is not a duration")
	}
	if most > 0 {
		t.max, ttl = q.now.Add(most), min(ttl, most)
	}
	t.expires = q.now.Add(ttl)
	return s.add(t).answer(q.now)
}

func (s *Server) accessor(q request) answer {
	for v, t := range s.tokens {
		if t.accessor != q.text("accessor") {
			continue
		}
		if strings.HasSuffix(q.path, "/lookup-accessor") {
			return answer{data: t.describe(q.now)}
		}
		delete(s.tokens, v)
		s.sweep(q.now)
		return answer{}
	}
	if strings.HasSuffix(q.path, "/lookup-accessor") {
		return fail(http.StatusBadRequest, "invalid accessor")
	}
	return answer{warning: "No token found with this accessor"}
}

func (s *Server) renewSelf(q request) answer {
	t := q.token
	switch {
	case t.expires.IsZero():
		return fail(http.StatusBadRequest, "lease is not renewable")
	case t.period > 0:
		t.expires = q.now.Add(t.period)
	case t.max.IsZero():
		t.expires = q.now.Add(t.expires.Sub(t.issued))
	}
	return t.answer(q.now)
}

func (s *Server) kv2(what, path string, q request) answer {
	if what == "update" {
		data, ok := q.body["data"].(map[string]any)
		if !ok {
			return fail(http.StatusBadRequest, "no data provided")
		}
		s.kv[path] = append(s.kv[path], version{data, q.now})
		return answer{data: map[string]any{"version": len(s.kv[path]), "created_time": q.now.Format(time.RFC3339Nano)}}
	}
	all := s.kv[path]
	if len(all) == 0 {
		return answer{status: http.StatusNotFound, errors: []string{}}
	}
	v := all[len(all)-1]
	return answer{data: map[string]any{
		"data":     v.data,
		"metadata": map[string]any{"version": len(all), "created_time": v.at.Format(time.RFC3339Nano), "destroyed": false, "deletion_time": ""},
	}}
}

// issue makes a credential; whichever of its role and its token ends first ends it.
func (s *Server) issue(role string, q request) answer {
	ttl, ok := s.creds[role]
	if !ok {
		return fail(http.StatusBadRequest, "unknown role: "+role)
	}
	l := &lease{
		id: "creds/" + role + "/" + rand.Text(), token: q.token.value, value: "sample-" + rand.Text(),
		issued: q.now, expires: s.capped(q.now.Add(ttl), q.token), ttl: ttl,
	}
	s.leases[l.id] = l
	return answer{lease: l.id, duration: ttl, renew: true, data: map[string]any{"token": l.value, "username": "v-" + role + "-" + l.id[len(l.id)-6:]}}
}

func (s *Server) capped(at time.Time, t *token) time.Time {
	if !t.expires.IsZero() && t.expires.Before(at) {
		return t.expires
	}
	return at
}

func (t *token) describe(now time.Time) map[string]any {
	d := map[string]any{
		"accessor": t.accessor, "policies": t.policies, "display_name": t.display, "meta": t.meta, "role": t.role,
		"creation_time": t.issued.Unix(), "orphan": t.parent == "", "type": "service", "path": "auth/token/create",
		"ttl": 0, "expire_time": nil, "explicit_max_ttl": 0, "renewable": !t.expires.IsZero(),
	}
	if !t.expires.IsZero() {
		d["ttl"], d["expire_time"] = int(t.expires.Sub(now).Seconds()), t.expires.Format(time.RFC3339Nano)
	}
	if !t.max.IsZero() {
		d["explicit_max_ttl"] = int(t.max.Sub(t.issued).Seconds())
	}
	if t.period > 0 {
		d["period"] = int(t.period.Seconds())
	}
	return d
}

func (t *token) answer(now time.Time) answer {
	left := time.Duration(0)
	if !t.expires.IsZero() {
		left = t.expires.Sub(now)
	}
	return answer{auth: map[string]any{
		"client_token": t.value, "accessor": t.accessor, "policies": t.policies, "token_policies": t.policies, "metadata": maps.Clone(t.meta),
		"lease_duration": int(left.Round(time.Second).Seconds()), "renewable": !t.expires.IsZero(), "token_type": "service", "orphan": t.parent == "",
	}}
}

func (q request) text(key string) string {
	s, _ := q.body[key].(string)
	return s
}

// seconds reads a duration as Vault does: a number of seconds or a Go duration.
func (q request) seconds(key string) (time.Duration, error) {
	switch v := q.body[key].(type) {
	case nil:
		return 0, nil
	case float64:
		return time.Duration(v) * time.Second, nil
	case string:
		if n, err := strconv.Atoi(v); err == nil {
			return time.Duration(n) * time.Second, nil
		}
		return time.ParseDuration(v)
	}
	return 0, fmt.Errorf("%s is no duration", key)
}

func write(w http.ResponseWriter, id string, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if a.errors != nil {
		w.WriteHeader(a.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": a.errors})
		return
	}
	if a.data == nil && a.auth == nil && a.lease == "" && a.warning == "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body := map[string]any{
		"request_id": id, "lease_id": a.lease, "renewable": a.renew, "lease_duration": int(a.duration.Seconds()),
		"data": a.data, "auth": a.auth, "warnings": nil, "wrap_info": nil,
	}
	if a.warning != "" {
		body["warnings"] = []string{a.warning}
	}
	_ = json.NewEncoder(w).Encode(body)
}
