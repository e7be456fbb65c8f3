package edge

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// The names of RFC 8693, and two of ours.
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	tokenAccess   = "urn:ietf:params:oauth:token-type:access_token"
	tokenJWT      = "urn:ietf:params:oauth:token-type:jwt"
	tokenAPIKey   = "urn:toolbroker:token-type:api-key"
	detailsType   = "toolbroker_task" // of RFC 9396's authorization_details
)

const (
	formType = "application/x-www-form-urlencoded"
	maxForm  = 64 << 10
)

// formNames are the parameters that mean something here. Others are ignored, as
// RFC 6749 has it, client_id among them: the subject token is who asks. scope is
// taken and means nothing: what a task may reach stands in its own scope rows.
var formNames = []string{
	"grant_type", "subject_token", "subject_token_type", "actor_token", "actor_token_type",
	"requested_token_type", "resource", "audience", "scope", "authorization_details",
}

// A tokenError is an error of the token endpoint, in RFC 6749's words.
type tokenError struct {
	Code string `json:"error"`
	Say  string `json:"error_description,omitempty"`
}

func (t *tokenError) Error() string { return t.Code + ": " + t.Say }

func badRequest(say string) error { return &tokenError{"invalid_request", say} }

// exchange trades a token that says who somebody is for one that says what they
// are doing: a task's. Who asks, and whether policy lets them, is the gateway's.
func (e *Edge) exchange(w http.ResponseWriter, r *http.Request) {
	cred, ok := e.credential(r)
	if !ok {
		e.tokenRefuse(w, badRequest("a header does not hold an id"))
		return
	}
	// Nobody has to say who they are but by the subject token. Whoever does so
	// all the same, and not so that we can take it, is refused. A DPoP proof here
	// is about the token to come (RFC 9449, section 5), so it is left for that.
	if presents(r) {
		asks := cred
		asks.Proof.DPoP = ""
		if _, err := e.Gateway.Identify(r.Context(), asks); err != nil {
			e.clientRefuse(w, r, err)
			return
		}
	}
	body, status, why := readKind(w, r, formType, maxForm)
	if why != "" {
		e.Gateway.Malformed(r.Context(), cred)
		writeToken(w, status, &tokenError{"invalid_request", why})
		return
	}
	x, issued, err := decodeExchange(string(body), e.base(r))
	if err != nil {
		e.Gateway.Malformed(r.Context(), cred)
		e.tokenRefuse(w, err)
		return
	}
	task, token, err := e.Gateway.Exchange(r.Context(), cred, x)
	if err != nil {
		e.tokenRefuse(w, err)
		return
	}
	kind := "Bearer"
	if strings.HasPrefix(task.Bound, "jkt:") {
		kind = "DPoP"
	}
	type granted struct {
		Type    string       `json:"type"`
		Task    string       `json:"task"`
		Kind    string       `json:"kind"`
		Scope   *authz.Scope `json:"scope"`
		Expires time.Time    `json:"expires"`
	}
	restWrite(w, http.StatusOK, struct {
		Token   string    `json:"access_token"`
		Issued  string    `json:"issued_token_type"`
		Kind    string    `json:"token_type"`
		Expires int64     `json:"expires_in"`
		Details []granted `json:"authorization_details"`
	}{token.Reveal(), issued, kind, max(0, int64(task.Expires.Sub(e.Now())/time.Second)),
		[]granted{{detailsType, task.ID, task.Kind, task.Scope, task.Expires}}})
}

// decodeExchange reads the form of a token exchange at a server that agents know
// as base, and which type of token its answer is said to be. What it refuses, it
// refuses with a [*tokenError]; no decoder reads differently what it accepts.
func decodeExchange(body, base string) (x gateway.Exchange, issued string, err error) {
	form, err := readForm(body)
	if err != nil {
		return x, "", err
	}
	switch form["grant_type"] {
	case "":
		return x, "", badRequest("grant_type is missing")
	case grantExchange:
	default:
		return x, "", &tokenError{"unsupported_grant_type", "the only grant_type here is " + grantExchange}
	}
	switch issued = form["requested_token_type"]; issued {
	case "":
		issued = tokenJWT
	case tokenJWT, tokenAccess: // it is both
	default:
		return x, "", badRequest("requested_token_type can be " + tokenJWT + " or " + tokenAccess)
	}
	for _, name := range []string{"resource", "audience"} {
		if v := form[name]; v != "" && (base == "" || v != base+"/mcp" && v != base) {
			return x, "", &tokenError{"invalid_target", name + " is not this server"}
		}
	}
	if x.Subject, err = formToken(form, "subject_token"); err != nil {
		return x, "", err
	} else if x.Subject.IsZero() {
		return x, "", badRequest("subject_token is missing")
	}
	if x.Actor, err = formToken(form, "actor_token"); err != nil {
		return x, "", err
	}
	x.Spec, err = readDetails(form["authorization_details"])
	return x, issued, err
}

// readForm reads a form in which every parameter has one value. Bytes that need
// escaping and are not, bad escapes, and semicolons, which were separators once,
// are not read at all. A parameter without a value is as good as absent.
func readForm(body string) (map[string]string, error) {
	all, err := url.ParseQuery(body)
	if err != nil || strings.IndexFunc(body, func(c rune) bool { return c <= ' ' || c > '~' }) >= 0 {
		return nil, badRequest("the body is not a form that can be read in one way") // err would quote it
	}
	form := make(map[string]string, len(all))
	for name, values := range all {
		if len(values) > 1 {
			return nil, badRequest("a parameter is given more than once")
		}
		for _, known := range formNames {
			if name != known && strings.EqualFold(name, known) {
				return nil, badRequest("a parameter differs from " + known + " only in case")
			}
		}
		form[name] = values[0]
	}
	return form, nil
}

// formToken is a token and its type, of which there are both or neither. What it
// is in truth is found out by whoever verifies it.
func formToken(form map[string]string, name string) (gateway.Secret, error) {
	token, kind := form[name], form[name+"_type"]
	switch kind {
	case tokenAccess, tokenJWT, tokenAPIKey:
		if token == "" {
			return gateway.Secret{}, badRequest(name + "_type without " + name)
		}
	case "":
		if token != "" {
			return gateway.Secret{}, badRequest(name + "_type is missing")
		}
	default:
		return gateway.Secret{}, badRequest(name + "_type can be " + tokenJWT + ", " + tokenAccess + " or " + tokenAPIKey)
	}
	if strings.IndexFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) >= 0 {
		return gateway.Secret{}, badRequest(name + " is not a token")
	}
	return gateway.NewSecret(token), nil
}

// readDetails reads authorization_details (RFC 9396): one object, of our type.
// A member that we do not know could be a limit that its writer relies on, so it
// is not ignored.
func readDetails(text string) (gateway.TaskSpec, error) {
	no := func(say string) (gateway.TaskSpec, error) {
		return gateway.TaskSpec{}, &tokenError{"invalid_authorization_details", say}
	}
	if text == "" {
		return gateway.TaskSpec{}, badRequest("authorization_details is missing: it says what the task is")
	}
	var in []struct {
		Type string `json:"type"`
		wish
	}
	why := readWish([]byte(text), &in)
	if why != "" || len(in) != 1 || in[0].Type != detailsType {
		return no("authorization_details is an array of one object with type " + detailsType + ", " + wishes + why)
	}
	spec, wrong := in[0].spec()
	if wrong != "" {
		return no(wrong)
	}
	return spec, nil
}

// clientRefuse says no to whoever's Authorization was not taken. That header is
// how an OAuth client would authenticate, so RFC 6749's word for it is
// invalid_client; only what passes by itself is said as everywhere here.
func (e *Edge) clientRefuse(w http.ResponseWriter, r *http.Request, err error) {
	refusal := refusalOf(err)
	if refusal.Code != gateway.Unidentified {
		e.tokenRefuse(w, err)
		return
	}
	switch status := e.challenge(w.Header(), r, err); status {
	case http.StatusUnauthorized, http.StatusForbidden:
		writeToken(w, status, &tokenError{"invalid_client", "the Authorization header holds no credential that is taken here; it can be left out"})
	default:
		w.Header().Del("WWW-Authenticate")
		e.tokenRefuse(w, err)
	}
}

// tokenRefuse writes the refusal of an exchange in RFC 6749's form. RFC 8693
// wants invalid_request for a subject or actor token that is no good, whatever
// it is that is wrong with it. A no of policy's is access_denied (RFC 8628's
// word at this endpoint), and never anything about OAuth scopes: more of those
// would not help.
func (e *Edge) tokenRefuse(w http.ResponseWriter, err error) {
	if t, ok := errors.AsType[*tokenError](err); ok {
		writeToken(w, http.StatusBadRequest, t)
		return
	}
	r := refusalOf(err)
	e.logInternal("exchange", r)
	status, out := http.StatusBadRequest, &tokenError{"invalid_request", plain(r.Say)}
	switch r.Code {
	case gateway.Unidentified:
		why := whyNot(err)
		out.Say = "the subject_token or actor_token was not accepted: " + said(why)
		switch why {
		case gateway.WhyProof, gateway.WhyReplay:
			out.Code = "invalid_dpop_proof"
		case gateway.WhyKeys:
			status, out.Code = http.StatusServiceUnavailable, "temporarily_unavailable"
			w.Header().Set("Retry-After", later)
		case gateway.WhyBusy:
			status, out.Code = http.StatusTooManyRequests, "slow_down"
			w.Header().Set("Retry-After", soon)
		}
	case gateway.NoTask: // a task token's, which is over
	case gateway.BadArguments:
		out.Code = "invalid_authorization_details"
	case gateway.TooMany:
		status, out.Code = http.StatusTooManyRequests, "slow_down"
		w.Header().Set("Retry-After", soon)
	case gateway.Denied, gateway.OverBudget:
		out.Code = "access_denied"
	default:
		status, out = http.StatusInternalServerError, &tokenError{"server_error", "the gateway could not do its part; try again"}
	}
	writeToken(w, status, out)
}

func writeToken(w http.ResponseWriter, status int, t *tokenError) { restWrite(w, status, t) }

// plain makes a sentence of the gateway's fit for error_description, which has
// no quotes, backslashes or anything that is not ASCII.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '"' || c == '\\':
			return '\''
		case c < ' ' || c > '~':
			return '?'
		}
		return c
	}, s)
}
