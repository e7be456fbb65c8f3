package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"toolbroker/gateway"
)

// The cookie holds an operator's session token, for pages only: the API never
// reads it. The __Host- prefix keeps neighbours on other names from setting it.
func (s *console) cookieName() string {
	if s.Secure {
		return "__Host-toolbroker"
	}
	return "toolbroker"
}

func (s *console) setCookie(w http.ResponseWriter, token gateway.Secret) {
	c := &http.Cookie{
		Name: s.cookieName(), Value: token.Reveal(), Path: "/", Secure: s.Secure, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	if token.IsZero() {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// session returns the operator behind a page's cookie.
func (s *console) session(r *http.Request) (gateway.Secret, gateway.Operator, error) {
	c, err := r.Cookie(s.cookieName())
	if err != nil || !isToken(c.Value) {
		return gateway.Secret{}, gateway.Operator{}, gateway.ErrLogin
	}
	token := gateway.NewSecret(c.Value)
	op, err := s.Gateway.Operator(r.Context(), token)
	return token, op, err
}

func isToken(s string) bool {
	return len(s) >= 16 && len(s) <= 512 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// A page is a handler for an operator who has logged in.
type page func(w http.ResponseWriter, r *http.Request, token gateway.Secret, op gateway.Operator)

// with lets only operators through, and sends the others to log in.
func (s *console) with(p page) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, op, err := s.session(r)
		switch {
		case errors.Is(err, gateway.ErrLogin):
			// A strict cookie does not come along when a link on another site
			// leads here. Asking again from our own page brings it.
			if r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") == "navigate" {
				s.render(w, http.StatusOK, "again", frame{Title: "One moment", Next: localPath(r.URL.Path)})
				return
			}
			if r.URL.Path == "/events" {
				http.Error(w, "Log in first.", http.StatusUnauthorized)
				return
			}
			to := "/login"
			if next := localPath(r.URL.Path); r.Method == http.MethodGet && next != "/" {
				to += "?next=" + url.QueryEscape(next)
			}
			http.Redirect(w, r, to, http.StatusSeeOther)
		case err != nil:
			s.problem(w, r, gateway.Operator{}, err)
		default:
			p(w, r, token, op)
		}
	})
}

var ownPath = regexp.MustCompile(`^/(stops|tasks|tools|(tasks|approvals)/[a-z0-9-]{1,64}/[a-z0-9-]{1,64})?$`)

// localPath returns a path if it is one of our pages, and the list otherwise, so
// that nobody is sent elsewhere after logging in.
func localPath(p string) string {
	if ownPath.MatchString(p) {
		return p
	}
	return "/"
}

// formToken binds a form to a session and to what the form is about. A form
// copied to another object, another digest or another session does nothing.
func formToken(op gateway.Operator, about ...string) string {
	mac := hmac.New(sha256.New, []byte(op.CSRF.Reveal()))
	mac.Write([]byte(strings.Join(about, "\x00")))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// ours reports whether a posted form was made by us for this session and object.
func (s *console) ours(w http.ResponseWriter, r *http.Request, op gateway.Operator, about ...string) bool {
	if err := r.ParseForm(); err != nil {
		s.show(w, http.StatusBadRequest, op, "That form could not be read", "Nothing was done. Go back and try again.")
		return false
	}
	if op.CSRF.IsZero() || !hmac.Equal([]byte(r.PostForm.Get("token")), []byte(formToken(op, about...))) {
		s.show(w, http.StatusForbidden, op, "That form is not valid any more", "Nothing was done. Open the page again and repeat what you wanted to do.")
		return false
	}
	return true
}

func (s *console) loginPage(w http.ResponseWriter, r *http.Request) {
	next := localPath(r.URL.Query().Get("next"))
	if _, _, err := s.session(r); err == nil {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	s.render(w, http.StatusOK, "login", frame{Title: "Log in", Next: next})
}

func (s *console) login(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		s.show(w, http.StatusBadRequest, gateway.Operator{}, "That form could not be read", "Go back and try again.")
		return
	}
	name, next := r.PostForm.Get("name"), localPath(r.PostForm.Get("next"))
	token, _, err := s.Gateway.Login(r.Context(), name, gateway.NewSecret(r.PostForm.Get("password")), source(r))
	f := frame{Title: "Log in", Next: next, Name: name}
	switch {
	case errors.Is(err, gateway.ErrLogin):
		f.Say = "The name or the password is wrong."
		s.render(w, http.StatusUnauthorized, "login", f)
	case errors.Is(err, gateway.ErrTooMany):
		f.Say = "There were too many tries. Wait a quarter of an hour, then try again."
		s.render(w, http.StatusTooManyRequests, "login", f)
	case err != nil:
		s.problem(w, r, gateway.Operator{}, err)
	default:
		s.setCookie(w, token)
		http.Redirect(w, r, next, http.StatusSeeOther)
	}
}

func (s *console) logout(w http.ResponseWriter, r *http.Request, token gateway.Secret, op gateway.Operator) {
	if !s.ours(w, r, op, "logout") {
		return
	}
	if err := s.Gateway.Logout(r.Context(), token); err != nil && !errors.Is(err, gateway.ErrLogin) {
		s.problem(w, r, op, err)
		return
	}
	s.setCookie(w, gateway.Secret{})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
