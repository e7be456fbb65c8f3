package console_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/console"
)

// visitor is a browser without a screen: it keeps cookies and follows nothing.
type visitor struct {
	t   *testing.T
	url string
	c   *http.Client
}

func visit(t *testing.T, base string) *visitor {
	jar, _ := cookiejar.New(nil)
	return &visitor{t, base, &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

type answer struct {
	*http.Response
	body string
}

func (v *visitor) send(r *http.Request) answer {
	v.t.Helper()
	resp, err := v.c.Do(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return answer{resp, string(body)}
}

func (v *visitor) get(path string, headers ...string) answer {
	v.t.Helper()
	return v.send(v.request("GET", path, "", headers...))
}

func (v *visitor) request(method, path, body string, headers ...string) *http.Request {
	r, err := http.NewRequestWithContext(v.t.Context(), method, v.url+path, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	return r
}

func (v *visitor) post(path string, form url.Values, headers ...string) answer {
	v.t.Helper()
	return v.send(v.request("POST", path, form.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, headers...)...))
}

func (v *visitor) logIn(name, password string) answer {
	v.t.Helper()
	return v.post("/login", url.Values{"name": {name}, "password": {password}})
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([a-z]+)" value="([^"]*)">`)

// form reads the hidden fields of the form that posts to path.
func (a answer) form(t *testing.T, path string) url.Values {
	t.Helper()
	_, rest, ok := strings.Cut(a.body, `action="`+path+`"`)
	if !ok {
		t.Fatalf("no form for %s in the page", path)
	}
	rest, _, _ = strings.Cut(rest, "</form>")
	f := url.Values{}
	for _, m := range hiddenField.FindAllStringSubmatch(rest, -1) {
		f.Set(m[1], m[2])
	}
	return f
}

func TestWithoutALoginThereIsNothingToSee(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	v := visit(t, serve(t, h))
	for path, want := range map[string]string{
		"/": "/login", "/tasks": "/login?next=%2Ftasks", "/stops": "/login?next=%2Fstops", "/tools": "/login?next=%2Ftools", "/tasks/acme/task-1": "/login?next=%2Ftasks%2Facme%2Ftask-1", "/approvals/acme/apr-1": "/login?next=%2Fapprovals%2Facme%2Fapr-1",
		"/approvals/acme/apr-1/status": "/login",
	} {
		if a := v.get(path); a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != want {
			t.Errorf("GET %s: %d to %q, want %q", path, a.StatusCode, a.Header.Get("Location"), want)
		}
	}
	if a := v.get("/events"); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("GET /events: %d", a.StatusCode)
	}
	if a := v.post("/approvals/acme/apr-1/vote", url.Values{"answer": {"approve"}}); a.StatusCode != http.StatusSeeOther || len(h.requests[0].Votes) > 0 {
		t.Errorf("a vote without a login: %d", a.StatusCode)
	}
}

func TestLogin(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h))
	if a := v.logIn("alice", "wrong"); a.StatusCode != http.StatusUnauthorized || !strings.Contains(a.body, "wrong.") || len(a.Cookies()) > 0 {
		t.Errorf("wrong password: %d", a.StatusCode)
	}
	for next, want := range map[string]string{
		"/approvals/acme/apr-1": "/approvals/acme/apr-1", "/tasks": "/tasks", "/stops": "/stops", "/tools": "/tools", "/tools/accept": "/", "/tasks/acme/task-1": "/tasks/acme/task-1", "/stops/everything": "/", "": "/",
		"//evil.test": "/", "https://evil.test/": "/", `/\evil.test`: "/", "/approvals/../../x": "/", "/api/v1/approvals": "/", "/tasks\r\nX: y": "/",
	} {
		h.tries = 0
		v := visit(t, v.url)
		a := v.post("/login", url.Values{"name": {"alice"}, "password": {"correct horse"}, "next": {next}})
		if a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != want {
			t.Errorf("next=%q: %d to %q, want %q", next, a.StatusCode, a.Header.Get("Location"), want)
		}
	}
	h.tries = 100
	if a := v.logIn("alice", "correct horse"); a.StatusCode != http.StatusTooManyRequests {
		t.Errorf("too many tries: %d", a.StatusCode)
	}
}

func TestCookie(t *testing.T) {
	for _, c := range []struct {
		name   string
		edit   func(*console.Config)
		cookie string
		secure bool
	}{
		{"plain loopback", func(*console.Config) {}, "toolbroker", false},
		{"Secure", func(c *console.Config) { c.Secure = true }, "__Host-toolbroker", true},
		{"a public https address", func(c *console.Config) {
			c.PublicURL, c.Hosts = "https://approve.example.test", []string{"127.0.0.1"}
		}, "__Host-toolbroker", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := visit(t, serve(t, newHouse(t), c.edit)).logIn("alice", "correct horse")
			got := a.Cookies()
			if len(got) != 1 || got[0].Name != c.cookie || got[0].Secure != c.secure || !got[0].HttpOnly || got[0].SameSite != http.SameSiteStrictMode || got[0].Path != "/" || got[0].Domain != "" {
				t.Errorf("cookie %+v", got)
			}
			if strings.Contains(a.Header.Get("Location"), got[0].Value) {
				t.Error("the session token is in a URL")
			}
		})
	}
}

func TestEveryAnswerIsGuarded(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	for _, path := range []string{"/", "/login", "/tasks", "/tasks/acme/task-1", "/stops", "/api/v1/stops", "/tools", "/api/v1/definitions", "/approvals/acme/apr-1", "/approvals/acme/apr-1/status", "/static/console.js", "/nowhere", "/api/v1/approvals", "/api/nowhere"} {
		a := v.get(path)
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
			"Cache-Control":           "no-store",
			"X-Content-Type-Options":  "nosniff",
			"Referrer-Policy":         "no-referrer",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if strings.HasPrefix(path, "/static") {
			continue
		}
		if regexp.MustCompile(`(?i)<script(?: [^>]*)?>[^<]|\son[a-z]+=|\sstyle=|<style`).MatchString(a.body) {
			t.Errorf("%s has inline script or style", path)
		}
		if a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s answers other origins", path)
		}
	}
}

func TestOnlyOurHostsAreAnswered(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h, func(c *console.Config) {
		c.PublicURL, c.Hosts = "http://approve.example.test:8443", []string{"127.0.0.1", "[::1]"}
	}))
	for host, want := range map[string]int{
		"approve.example.test:8443": 200, "APPROVE.example.test:8443": 200, "127.0.0.1:9": 200, "[::1]:9": 200, "::1": 200,
		"approve.example.test": 421, "approve.example.test:80": 421, "evil.test": 421, "127.0.0.1.evil.test": 421, "localhost": 421,
	} {
		if a := v.get("/login", "Host", host); a.StatusCode != want {
			t.Errorf("Host %s: %d, want %d", host, a.StatusCode, want)
		}
	}
	v = visit(t, serve(t, h))
	if a := v.get("/login", "Host", "localhost:1"); a.StatusCode != 200 {
		t.Errorf("with nothing configured localhost gets %d", a.StatusCode)
	}
	if a := v.get("/login", "Host", "evil.test"); a.StatusCode != 421 {
		t.Errorf("with nothing configured evil.test gets %d", a.StatusCode)
	}
}

func TestVoteInThePage(t *testing.T) {
	const page = "/approvals/acme/apr-1"
	for _, c := range []struct {
		name   string
		edit   func(url.Values)
		header []string
		status int
		state  gateway.ApprovalState
	}{
		{"approve", func(f url.Values) { f.Set("answer", "approve") }, nil, 303, gateway.ApprovalGranted},
		{"deny with a reason", func(f url.Values) { f.Set("answer", "deny"); f.Set("reason", "no") }, nil, 303, gateway.ApprovalDenied},
		{"deny without a reason", func(f url.Values) { f.Set("answer", "deny"); f.Set("reason", " \r\n") }, nil, 422, gateway.ApprovalPending},
		{"neither", func(f url.Values) {}, nil, 400, gateway.ApprovalPending},
		{"no token", func(f url.Values) { f.Set("answer", "approve"); f.Del("token") }, nil, 403, gateway.ApprovalPending},
		{"forged token", func(f url.Values) { f.Set("answer", "approve"); f.Set("token", strings.Repeat("A", 43)) }, nil, 403, gateway.ApprovalPending},
		{"another digest", func(f url.Values) { f.Set("answer", "approve"); f.Set("digest", "sha256:00") }, nil, 403, gateway.ApprovalPending},
		{"from another site", func(f url.Values) { f.Set("answer", "approve") }, []string{"Sec-Fetch-Site", "cross-site"}, 403, gateway.ApprovalPending},
		{"from another origin", func(f url.Values) { f.Set("answer", "approve") }, []string{"Origin", "https://evil.test"}, 403, gateway.ApprovalPending},
		{"a body too long", func(f url.Values) { f.Set("answer", "approve"); f.Set("reason", strings.Repeat("x", 1<<20)) }, nil, 403, gateway.ApprovalPending},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			h.ask("apr-1")
			v := visit(t, serve(t, h))
			v.logIn("alice", "correct horse")
			f := v.get(page).form(t, page+"/vote")
			c.edit(f)
			a := v.post(page+"/vote", f, c.header...)
			if a.StatusCode != c.status || h.requests[0].State != c.state {
				t.Errorf("%d and %s, want %d and %s", a.StatusCode, h.requests[0].State, c.status, c.state)
			}
			if c.status == 303 && a.Header.Get("Location") != page {
				t.Errorf("sent to %q", a.Header.Get("Location"))
			}
		})
	}
}

// A form token is good for one session, one request and one act.
func TestFormTokensAreBound(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	h.ask("apr-2")
	base := serve(t, h)
	one, two := visit(t, base), visit(t, base)
	one.logIn("alice", "correct horse")
	two.logIn("alice", "correct horse")
	f := one.get("/approvals/acme/apr-1").form(t, "/approvals/acme/apr-1/vote")
	f.Set("answer", "approve")
	if a := one.post("/approvals/acme/apr-2/vote", f); a.StatusCode != 403 {
		t.Errorf("on another request: %d", a.StatusCode)
	}
	if a := two.post("/approvals/acme/apr-1/vote", f); a.StatusCode != 403 {
		t.Errorf("in another session: %d", a.StatusCode)
	}
	out := one.get("/").form(t, "/logout")
	f.Set("token", out.Get("token"))
	if a := one.post("/approvals/acme/apr-1/vote", f); a.StatusCode != 403 {
		t.Errorf("the log out form's: %d", a.StatusCode)
	}
	if len(h.requests[0].Votes)+len(h.requests[1].Votes) > 0 {
		t.Error("a vote was counted")
	}
	if a := one.post("/logout", url.Values{}); a.StatusCode != 403 {
		t.Errorf("log out without a token: %d", a.StatusCode)
	}
	if a := one.post("/logout", out); a.StatusCode != 303 {
		t.Errorf("log out: %d", a.StatusCode)
	}
	if a := one.get("/"); a.StatusCode != 303 {
		t.Errorf("after log out: %d", a.StatusCode)
	}
	if a := two.get("/"); a.StatusCode != 200 {
		t.Errorf("the other session after log out: %d", a.StatusCode)
	}
}

func TestWhoMayNotVoteSeesWhy(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1", func(r *gateway.ApprovalRequest) { r.TaskOwner = "alice" })
	base := serve(t, h)
	for name, why := range map[string]string{"alice": "You own this task.", "vera": "Your roles do not let you vote"} {
		v := visit(t, base)
		v.logIn(name, h.passwords[name])
		a := v.get("/approvals/acme/apr-1")
		if !strings.Contains(a.body, why) || strings.Contains(a.body, "data-vote") {
			t.Errorf("%s does not see why, or sees a form", name)
		}
		if a := v.get("/"); !strings.Contains(a.body, "Nothing waits for you") || !strings.Contains(a.body, why) {
			t.Errorf("%s: the list does not say that this is for others, and why", name)
		}
	}
}

func TestOutcomeIsShown(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	f := v.get("/approvals/acme/apr-1").form(t, "/approvals/acme/apr-1/vote")
	f.Set("answer", "deny")
	f.Set("reason", "Wrong <b>issue</b>\u202e")
	v.post("/approvals/acme/apr-1/vote", f)
	a := v.get("/approvals/acme/apr-1")
	for _, want := range []string{"You denied this", "The agent is told no", "Wrong &lt;b&gt;issue&lt;/b&gt;<mark class=\"esc\">⟦U+202E⟧</mark>", "arguments were deleted"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(a.body, "data-vote") {
		t.Error("a final request still has a form")
	}
	f.Set("answer", "approve")
	if a := v.post("/approvals/acme/apr-1/vote", f); a.StatusCode != 403 && a.StatusCode != 409 {
		t.Errorf("a second answer: %d", a.StatusCode)
	}
}

func TestExpiredRequestCannotBeAnswered(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	v := visit(t, serve(t, h, func(c *console.Config) { c.Now = func() time.Time { return time.Now().Add(time.Hour) } }))
	v.logIn("alice", "correct horse")
	a := v.get("/approvals/acme/apr-1")
	if strings.Contains(a.body, "data-vote") || !strings.Contains(a.body, "Nobody answered in time") {
		t.Error("an expired request still has a form")
	}
}

func TestRequestIsShownWhole(t *testing.T) {
	h := newHouse(t)
	r := h.ask("apr-1", func(r *gateway.ApprovalRequest) {
		r.Chain = []string{"agent:root", "agent:planner"}
		r.Meta = []byte(`{"ticket":"T-99"}`)
		r.TaskFor = "dora"
		r.Args = []byte("{ \"b\":1.0, \"a\":12345678901234567890123, \"b2\":{\"z\":[true,null,\"\"]} }\n")
	})
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	a := v.get("/approvals/acme/apr-1")
	text := visible(a.body)
	for _, want := range []string{
		r.Principal, r.OnBehalfOf, r.Owner, r.TaskID, r.TaskKind, r.TaskOwner, r.TaskFor, r.StartedBy, r.Purpose, "Nobody has checked it", r.Server, r.Tool, r.Alias,
		r.Digest, r.ArgsDigest, r.Definition, r.Revision, r.Class, "agent:root → agent:planner", "T-99",
		"policy.csv:14", r.Rules[0].Text, "0 of 1", "group sre", "1.0", "12345678901234567890123", "empty text",
		`{ "b":1.0, "a":12345678901234567890123, "b2":{"z":[true,null,""]} }` + "↵",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if b, a := strings.Index(text, "1.0"), strings.Index(text, "12345678901234567890123"); b > a {
		t.Error("arguments were reordered")
	}
	if n := len(h.viewed); n != 1 {
		t.Errorf("one look counted as %d", n)
	}
	if a := v.get("/approvals/acme/apr-1/status"); a.StatusCode != 200 || !strings.Contains(a.body, "Waiting") {
		t.Errorf("status part: %d", a.StatusCode)
	}
	if n := len(h.viewed); n != 1 {
		t.Error("keeping a page fresh counted as another look at the bytes")
	}
}

// Whoever agrees to answers reads what was asked, as harmless as any argument, and
// that it is the server's word; and where nobody knows it any more, they read that.
func TestQuestionIsShownBesideTheAnswers(t *testing.T) {
	h := newHouse(t)
	answers := func(asked string) func(*gateway.ApprovalRequest) {
		return func(r *gateway.ApprovalRequest) {
			r.Answers = "sha256:" + strings.Repeat("cd", 32)
			r.Args = []byte(`{"arguments":{"number":7},"inputRequests":` + asked + `,"inputResponses":{"k":{"action":"accept"}}}`)
		}
	}
	h.ask("apr-1", answers(`{"k":{"method":"elicitation/create","params":{"message":"Delete <b>all</b>\u202e?"}}}`))
	h.ask("apr-2", answers(`null`))
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	for id, lines := range map[string][]string{
		"apr-1": {"in its own words, which nobody has checked", "elicitation/create", "Delete <b>all</b>", "U+202E", "inputResponses", "accept", "what will be sent, and what was asked"},
		"apr-2": {"nobody here knows", "inputRequests", "null", "accept"},
	} {
		a := v.get("/approvals/acme/" + id)
		text := visible(a.body)
		for _, want := range lines {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the page lacks %q", id, want)
			}
		}
		if strings.Contains(a.body, "<b>all") || strings.Contains(a.body, "\u202e") {
			t.Errorf("%s: the question is not escaped", id)
		}
	}
}

func TestTenantsDoNotMeet(t *testing.T) {
	h := newHouse(t)
	h.ask("apr-1")
	h.tasks = append(h.tasks, &gateway.Task{ID: "task-1", Tenant: "acme", Kind: "triage", Purpose: "acme's own", State: gateway.TaskRunning})
	v := visit(t, serve(t, h))
	v.logIn("bob", "battery staple")
	token := api(t, v, "POST", "/api/v1/login", `{"name":"bob","password":"battery staple"}`, "").str("token")
	for _, path := range []string{"/approvals/acme/apr-1", "/approvals/acme/apr-1/status", "/approvals/globex/apr-1", "/approvals/ACME/apr-1", "/approvals/acme/" + strings.Repeat("a", 65)} {
		if a := v.get(path); a.StatusCode != 404 {
			t.Errorf("GET %s: %d", path, a.StatusCode)
		}
	}
	for _, path := range []string{"/api/v1/approvals/acme/apr-1", "/api/v1/tasks/acme/task-1", "/api/v1/tasks?tenant=acme"} {
		if a := api(t, v, "GET", path, "", token); a.StatusCode != 404 {
			t.Errorf("GET %s: %d", path, a.StatusCode)
		}
	}
	for _, asked := range h.asked {
		if !regexp.MustCompile(`^[a-z0-9-]{1,64}/[a-z0-9-]{1,64}$`).MatchString(asked) {
			t.Errorf("the gateway was asked for %q", asked)
		}
	}
	for _, path := range []string{"/", "/tasks"} {
		if a := v.get(path); strings.Contains(a.body, "apr-1") || strings.Contains(a.body, "acme") {
			t.Errorf("GET %s shows a neighbour's", path)
		}
	}
}

func TestTasksPage(t *testing.T) {
	h := newHouse(t)
	h.tasks = append(h.tasks, &gateway.Task{
		ID: "task-1", Tenant: "acme", Kind: "triage", Purpose: "<i>x</i>\u200b", Owner: "oscar", Principal: "agent:triage", StartedBy: "agent:planner", State: gateway.TaskRunning,
		Expires: time.Now().Add(time.Hour),
	})
	base := serve(t, h)
	vera := visit(t, base)
	vera.logIn("vera", "look only")
	if a := vera.get("/tasks"); strings.Contains(a.body, "End this task") || !strings.Contains(a.body, `&lt;i&gt;x&lt;/i&gt;<mark class="esc">⟦U+200B⟧</mark>`) {
		t.Error("a viewer sees a button to end a task, or not the task")
	}
	h.operators["bob"] = gateway.Operator{Name: "bob", Roles: []string{"approver"}, Tenants: []string{"acme"}}
	bob := visit(t, base)
	bob.logIn("bob", "battery staple")
	for _, path := range []string{"/tasks", "/tasks/acme/task-1"} {
		if a := bob.get(path); a.StatusCode != 200 || strings.Contains(a.body, "End this task") || strings.Contains(a.body, "/task-1/end") {
			t.Errorf("%s offers an approver to end the task", path)
		}
	}
	alice := visit(t, base)
	alice.logIn("alice", "correct horse")
	f := alice.get("/tasks").form(t, "/tasks/acme/task-1/end")
	if a := alice.post("/tasks/acme/task-1/end", url.Values{}); a.StatusCode != 403 || h.tasks[0].State != gateway.TaskRunning {
		t.Errorf("ending without a token: %d", a.StatusCode)
	}
	if a := alice.post("/tasks/acme/task-1/end", f); a.StatusCode != 303 || h.tasks[0].State != gateway.TaskEnded {
		t.Errorf("ending: %d, %s", a.StatusCode, h.tasks[0].State)
	}
	if a := alice.get("/tasks"); !strings.Contains(a.body, "Ended") || strings.Contains(a.body, "End this task") {
		t.Error("an ended task does not look ended")
	}
}

func TestEventsSayOnlyThatSomethingChanged(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	resp, err := v.c.Do(v.request("GET", "/events", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return data
			}
		}
		return "end"
	}
	if got := next(); got != "changed" {
		t.Fatalf("first %q", got)
	}
	h.ask("apr-1")
	if got := next(); got != "changed" {
		t.Fatalf("after a request: %q", got)
	}
	clear(h.sessions) // logged out elsewhere
	h.ask("apr-2")
	if got := next(); got != "end" {
		t.Errorf("the stream of a dead session says %q", got)
	}
}

// A link in a chat leads here from another site, so the strict cookie is not
// sent; one hop on our own site brings it.
func TestLinkFromElsewhereFindsItsSession(t *testing.T) {
	v := visit(t, serve(t, newHouse(t)))
	a := v.get("/approvals/acme/apr-1", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")
	if a.StatusCode != 200 || !strings.Contains(a.body, `content="0; url=/approvals/acme/apr-1"`) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestInnerErrorsStayInside(t *testing.T) {
	var log bytes.Buffer
	h := newHouse(t)
	v := visit(t, serve(t, h, func(c *console.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }))
	v.logIn("alice", "correct horse")
	token := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":"correct horse"}`, "").str("token")
	h.broken = errors.New("dial redis 10.1.2.3")
	a := v.get("/")
	b := api(t, v, "GET", "/api/v1/approvals", "", token)
	if a.StatusCode != 500 || b.StatusCode != 500 || strings.Contains(a.body+b.body, "redis") {
		t.Errorf("%d %d %s", a.StatusCode, b.StatusCode, a.body+b.body)
	}
	if !strings.Contains(log.String(), "dial redis") || strings.Contains(log.String(), token) || strings.Contains(log.String(), "horse") {
		t.Errorf("log: %s", log.String())
	}
}

// api

type apiAnswer struct {
	answer
	v map[string]any
}

func (a apiAnswer) str(name string) string { s, _ := a.v[name].(string); return s }

func (a apiAnswer) code() string {
	e, _ := a.v["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

func api(t *testing.T, v *visitor, method, path, body, token string) apiAnswer {
	t.Helper()
	r := v.request(method, path, body, "Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	a := apiAnswer{answer: v.send(r)}
	if len(a.body) > 0 {
		if err := json.Unmarshal([]byte(a.body), &a.v); err != nil {
			t.Fatalf("%s %s: %v in %q", method, path, err, a.body)
		}
	}
	return a
}

func TestAPI(t *testing.T) {
	h := newHouse(t)
	r := h.ask("apr-1", func(r *gateway.ApprovalRequest) { r.Args = []byte("{\"n\":1.0, \"s\":\"\u202e<\"}") })
	v := visit(t, serve(t, h))
	in := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":"correct horse"}`, "")
	op, _ := in.v["operator"].(map[string]any)
	if in.StatusCode != 200 || in.str("token") == "" || op["name"] != "alice" || len(op) != 5 || fmt.Sprint(op["worlds"]) != "[acme]" || len(in.Cookies()) > 0 {
		t.Fatalf("login: %d %v", in.StatusCode, in.v)
	}
	token := in.str("token")

	list := api(t, v, "GET", "/api/v1/approvals", "", token)
	if all, _ := list.v["approvals"].([]any); len(all) != 1 || strings.Contains(list.body, "may_vote") || strings.Contains(list.body, `"args"`) {
		t.Errorf("list: %s", list.body)
	}
	one := api(t, v, "GET", "/api/v1/approvals/acme/apr-1", "", token)
	if one.str("args") != string(r.Args) || one.str("digest") != r.Digest || one.v["may_vote"] != "" || one.str("state") != "pending" {
		t.Errorf("show: %s", one.body)
	}
	for name, body := range map[string]string{
		"no digest":        `{"approve":true}`,
		"no answer":        `{"digest":"` + r.Digest + `"}`,
		"null answer":      `{"approve":null,"digest":"` + r.Digest + `"}`,
		"unknown member":   `{"approve":true,"digest":"` + r.Digest + `","force":true}`,
		"member twice":     `{"approve":false,"approve":true,"digest":"` + r.Digest + `","reason":"x"}`,
		"other case":       `{"Approve":true,"digest":"` + r.Digest + `"}`,
		"two values":       `{"approve":true,"digest":"` + r.Digest + `"} {}`,
		"wrong type":       `{"approve":"true","digest":"` + r.Digest + `"}`,
		"not JSON":         `approve=true`,
		"deny, no reason":  `{"approve":false,"digest":"` + r.Digest + `","reason":" "}`,
		"invalid UTF-8":    "{\"approve\":true,\"digest\":\"\xff\"}",
		"longer than ours": `{"approve":true,"digest":"` + r.Digest + `","reason":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		if a := api(t, v, "POST", "/api/v1/approvals/acme/apr-1/vote", body, token); a.StatusCode != 400 || a.code() != "bad_request" {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
		}
	}
	if a := api(t, v, "POST", "/api/v1/approvals/acme/apr-1/vote", `{"approve":true,"digest":"sha256:00"}`, token); a.StatusCode != 409 || a.code() != "not_now" {
		t.Errorf("stale digest: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "POST", "/api/v1/approvals/acme/apr-1/vote", `{"approve":true,"digest":"`+r.Digest+`","reason":""}`, token); a.StatusCode != 200 || a.str("state") != "granted" {
		t.Errorf("vote: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "POST", "/api/v1/approvals/acme/apr-1/vote", `{"approve":true,"digest":"`+r.Digest+`"}`, token); a.StatusCode != 403 || a.code() != "forbidden" {
		t.Errorf("second vote: %d %s", a.StatusCode, a.body)
	}

	task := api(t, v, "POST", "/api/v1/tasks", `{"tenant":"acme","kind":"triage","purpose":"x","principal":"agent:a","on_behalf_of":"","ttl_seconds":60,"scope":[{"tool":"issues/*","action":"call","verdict":"allow"}]}`, token)
	body, _ := task.v["task"].(map[string]any)
	if task.StatusCode != 201 || task.str("token") == "" || body["kind"] != "triage" {
		t.Fatalf("start: %d %s", task.StatusCode, task.body)
	}
	id, _ := body["id"].(string)
	for name, c := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"unknown kind":   {`{"tenant":"acme","kind":"nope","purpose":"x"}`, 400, "bad_request"},
		"negative ttl":   {`{"tenant":"acme","kind":"triage","purpose":"x","ttl_seconds":-1}`, 400, "bad_request"},
		"endless ttl":    {`{"tenant":"acme","kind":"triage","purpose":"x","ttl_seconds":9223372036854775807}`, 400, "bad_request"},
		"other tenant":   {`{"tenant":"globex","kind":"triage","purpose":"x"}`, 404, "not_found"},
		"no tenant":      {`{"kind":"triage","purpose":"x"}`, 404, "not_found"},
		"unknown in row": {`{"tenant":"acme","kind":"triage","purpose":"x","scope":[{"who":"*"}]}`, 400, "bad_request"},
	} {
		if a := api(t, v, "POST", "/api/v1/tasks", c.body, token); a.StatusCode != c.status || a.code() != c.code {
			t.Errorf("start, %s: %d %s", name, a.StatusCode, a.body)
		}
	}
	if a := api(t, v, "GET", "/api/v1/tasks?tenant=acme", "", token); a.StatusCode != 200 || !strings.Contains(a.body, id) {
		t.Errorf("tasks: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "GET", "/api/v1/tasks", "", token); a.StatusCode != 400 {
		t.Errorf("tasks of nobody: %d", a.StatusCode)
	}
	if a := api(t, v, "GET", "/api/v1/tasks/acme/"+id, "", token); a.StatusCode != 200 || a.str("id") != id {
		t.Errorf("task: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "POST", "/api/v1/tasks/acme/"+id+"/end", "", token); a.StatusCode != 200 || a.str("state") != "ended" {
		t.Errorf("end: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "GET", "/api/v1/tasks/acme/nope", "", token); a.StatusCode != 404 || a.code() != "not_found" {
		t.Errorf("no task: %d %s", a.StatusCode, a.body)
	}
	if a := api(t, v, "POST", "/api/v1/logout", "", token); a.StatusCode != 204 || a.body != "" {
		t.Errorf("logout: %d", a.StatusCode)
	}
	if a := api(t, v, "GET", "/api/v1/approvals", "", token); a.StatusCode != 401 || a.code() != "login" {
		t.Errorf("after logout: %d %s", a.StatusCode, a.body)
	}
}

func TestAPILogin(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h))
	if a := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":"wrong"}`, ""); a.StatusCode != 401 || a.code() != "login" {
		t.Errorf("wrong password: %d %s", a.StatusCode, a.body)
	}
	a := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":["hunter2-secret"]}`, "")
	if a.StatusCode != 400 || strings.Contains(a.body, "hunter2") {
		t.Errorf("wrong type: %d %s", a.StatusCode, a.body)
	}
	h.tries = 100
	if a := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":"correct horse"}`, ""); a.StatusCode != 429 || a.code() != "too_many" {
		t.Errorf("too many: %d %s", a.StatusCode, a.body)
	}
}

// A cookie opens pages and a bearer token the API; neither opens the other.
func TestCookieAndBearerDoNotMix(t *testing.T) {
	h := newHouse(t)
	v := visit(t, serve(t, h))
	v.logIn("alice", "correct horse")
	if a := v.get("/"); a.StatusCode != 200 {
		t.Fatalf("cookie on a page: %d", a.StatusCode)
	}
	if a := v.get("/api/v1/approvals"); a.StatusCode != 401 {
		t.Errorf("cookie on the API: %d", a.StatusCode)
	}
	token := api(t, v, "POST", "/api/v1/login", `{"name":"alice","password":"correct horse"}`, "").str("token")
	stranger := visit(t, v.url)
	if a := stranger.get("/", "Authorization", "Bearer "+token); a.StatusCode != 303 {
		t.Errorf("bearer on a page: %d", a.StatusCode)
	}
	if a := stranger.get("/api/v1/approvals", "Authorization", "Bearer "+token); a.StatusCode != 200 {
		t.Errorf("bearer on the API: %d", a.StatusCode)
	}
	for _, bad := range []string{"Basic " + token, token, "Bearer", "Bearer ", "Bearer " + token + " x", "Bearer " + strings.Repeat("a", 600)} {
		if a := stranger.get("/api/v1/approvals", "Authorization", bad); a.StatusCode != 401 {
			t.Errorf("Authorization %.20q: %d", bad, a.StatusCode)
		}
	}
	if a := stranger.send(stranger.request("OPTIONS", "/api/v1/approvals", "", "Origin", "https://evil.test", "Access-Control-Request-Method", "GET")); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("CORS is answered")
	}
}

func BenchmarkHostilePage(b *testing.B) {
	raw := []byte(`{"a":"` + strings.Repeat("a\u202e", 250_000) + `"}`)
	h := newHouse(b)
	h.ask("apr-1", func(r *gateway.ApprovalRequest) { r.Args = raw })
	handler := console.New(console.Config{Gateway: h})
	token, _, _ := h.Login(b.Context(), "alice", gateway.NewSecret("correct horse"), "")
	for b.Loop() {
		r := httptest.NewRequest("GET", "http://localhost/approvals/acme/apr-1", nil)
		r.AddCookie(&http.Cookie{Name: "toolbroker", Value: token.Reveal()})
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		b.SetBytes(int64(w.Body.Len()))
	}
}
