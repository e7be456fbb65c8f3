package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// What a request presents is what the gateway is asked about.
func TestCredentials(t *testing.T) {
	here := func(d *door, path string) gateway.Proof { return gateway.Proof{Method: "GET", URL: d.url + path} }
	for _, row := range []struct {
		name   string
		header map[string]string
		status int
		token  string
		dpop   bool
		proof  string
	}{
		{"bearer", map[string]string{"Authorization": "Bearer alice"}, 200, "alice", false, ""},
		{"bearer in another case", map[string]string{"Authorization": "bEARER alice"}, 200, "alice", false, ""},
		{"bearer with room", map[string]string{"Authorization": "Bearer   alice  "}, 200, "alice", false, ""},
		{"DPoP", map[string]string{"Authorization": "DPoP alice"}, 200, "alice", true, ""},
		{"DPoP in another case", map[string]string{"Authorization": "dpop alice"}, 200, "alice", true, ""},
		{"DPoP without its proof", map[string]string{"Authorization": "DPoP bound"}, 401, "bound", true, ""},
		{"a proof for another request", map[string]string{"Authorization": "DPoP bound", "DPoP": "k 1 POST http://x"}, 401, "bound", true, "k 1 POST http://x"},
		{"a bound token as a bearer", map[string]string{"Authorization": "Bearer bound", "DPoP": "k 1 GET http://x"}, 401, "bound", false, "k 1 GET http://x"},
		{"no scheme", map[string]string{"Authorization": "alice"}, 401, "", false, ""},
		{"another scheme", map[string]string{"Authorization": "Basic alice"}, 401, "", false, ""},
		{"a scheme that begins like ours", map[string]string{"Authorization": "Bearerx alice"}, 401, "", false, ""},
		{"a tab for a space", map[string]string{"Authorization": "Bearer\talice"}, 401, "", false, ""},
		{"nothing", map[string]string{"Authorization": ""}, 401, "", false, ""},
	} {
		d := open(t)
		got := d.do(req{method: "GET", path: "/v1/tasks/task-a", header: row.header})
		if got.status != row.status {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
		want := here(d, "/v1/tasks/task-a")
		if want.DPoP = row.proof; !row.dpop && row.proof == "" {
			want.URL = "" // nothing is proven with it
		}
		if c := d.seen[0]; c.Bearer.Reveal() != row.token || c.DPoP != row.dpop || !reflect.DeepEqual(c.Proof, want) || c.Source == "" {
			t.Errorf("%s: %+v, token %q", row.name, c, c.Bearer.Reveal())
		}
	}
}

// The URL that a proof is for is the one that agents type, whatever proxy it came
// through; where nobody knows that, no proof fits.
func TestProofURL(t *testing.T) {
	for _, row := range []struct {
		name, public, host, want string
	}{
		{"by our public name", "https://tools.example", "", "https://tools.example/v1/tasks/a%2Fb"},
		{"by our public name, whatever the Host", "https://tools.example:8443/", "localhost", "https://tools.example:8443/v1/tasks/a%2Fb"},
		{"by a loopback name", "", "localhost:7777", "http://localhost:7777/v1/tasks/a%2Fb"},
		{"by a loopback address", "", "[::1]:7777", "http://[::1]:7777/v1/tasks/a%2Fb"},
		{"by a name that a proxy may have", "", "tools.example", ""},
		{"by a port that is none", "", "localhost:x", ""},
		{"by an address without brackets", "", "::1", ""},
	} {
		d := open(t, func(c *Config) { c.PublicURL, c.Hosts = row.public, []string{"tools.example"} })
		r := d.request(req{method: "GET", path: "/v1/tasks/a%2Fb", host: row.host, header: map[string]string{"Authorization": "DPoP alice"}})
		if out, err := http.DefaultClient.Do(r); err == nil {
			out.Body.Close()
		}
		if len(d.seen) == 0 || d.seen[0].Proof.URL != row.want {
			t.Errorf("%s: %+v", row.name, d.seen)
		}
	}
}

// A proof is good for one request, however often the gateway is asked while that
// is served, and for what is left open by it.
func TestProofIsGoodForOneRequest(t *testing.T) {
	d := open(t, discoverable)
	n := 0
	dpop := func(r req) req {
		n++
		if r.method == "" {
			r.method = "POST"
		}
		if r.path == "" {
			r.path = "/mcp"
		}
		return r.with("Authorization", "DPoP bound").with("DPoP", fmt.Sprintf("k %d %s https://tools.example%s", n, r.method, r.path))
	}
	in := d.do(dpop(req{body: rpc(1, "initialize", `"protocolVersion":"2025-11-25"`)}))
	sid := in.header.Get(mcp.HeaderSessionID)
	if in.status != 200 || sid == "" {
		t.Fatalf("initialize: %d %s", in.status, in.body)
	}
	r := d.request(dpop(req{method: "GET"}.with(mcp.HeaderSessionID, sid)))
	stream, err := http.DefaultClient.Do(r)
	if err != nil || stream.StatusCode != 200 {
		t.Fatalf("GET: %+v %v", stream, err)
	}
	defer stream.Body.Close()
	lines := make(chan string, 16)
	go func() {
		b := make([]byte, 4096)
		for {
			k, err := stream.Body.Read(b)
			if lines <- string(b[:k]); err != nil {
				return
			}
		}
	}()
	get(t, "open", lines)
	d.change(gateway.SortTool)
	if got := get(t, "notice", lines); !strings.Contains(got, mcp.MethodNotificationToolsListChanged) {
		t.Errorf("notice %q", got)
	}

	for name, r := range map[string]req{
		"call":       {body: call("echo", "{}")},
		"in session": req{body: call("echo", "{}")}.with(mcp.HeaderSessionID, sid),
		"list":       modernReq("tools/list", "", ""),
		"show":       {method: "GET", path: "/v1/tasks/task-c"},
		"delegate":   {path: "/v1/tasks/task-c/delegate", body: `{"kind":"x"}`},
	} {
		once := dpop(r)
		if got := d.do(once); got.status/100 != 2 || strings.Contains(got.body, "isError") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		again := d.do(once)
		if all := again.header.Values("WWW-Authenticate"); again.status != 401 || len(all) != 2 || !strings.Contains(all[1], "the proof was used before") {
			t.Errorf("%s, again: %d %v %s", name, again.status, all, again.body)
		}
		if got := d.do(once.with("DPoP", "")); got.status != 401 {
			t.Errorf("%s, without a proof: %d", name, got.status)
		}
	}
	for _, c := range d.calls {
		if c.Credential.Proof.DPoP != "" || c.Credential.Proof.Proven != "jkt:k" {
			t.Errorf("handled with %+v", c.Credential.Proof)
		}
	}
	// Only the gateway says what was proven.
	d.do(req{body: call("echo", "{}")})
	if c := d.calls[len(d.calls)-1].Credential; c.Proof.Proven != "" {
		t.Errorf("a token that is bound to nothing proved %q", c.Proof.Proven)
	}
}

// A certificate is a credential where it is the only one.
func TestClientCertificate(t *testing.T) {
	h := newHouse()
	e, err := New(Config{Gateway: h, Sessions: h.kept, Issuers: []string{"https://id.example"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(e.Handler())
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()
	ask := func(authorization string, certs ...tls.Certificate) res {
		c := srv.Client()
		tr := c.Transport.(*http.Transport).Clone()
		tr.TLSClientConfig.Certificates = certs
		defer tr.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/mcp", strings.NewReader(call("echo", "{}")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		out, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Body.Close()
		body, _ := io.ReadAll(out.Body)
		return res{out.StatusCode, out.Header, string(body)}
	}
	own, other := certificate(t, "cert"), certificate(t, "nobody")
	for _, row := range []struct {
		name, authorization string
		certs               []tls.Certificate
		status              int
		peer                string // that the gateway hears of
	}{
		{"a certificate", "", []tls.Certificate{own}, 200, "cert"},
		{"a token and a certificate", "Bearer alice", []tls.Certificate{own}, 200, "cert"},
		{"somebody's certificate", "", []tls.Certificate{other}, 401, "nobody"},
		{"neither", "", nil, 401, ""},
		{"a token that is no good, and a certificate", "Bearer mallory", []tls.Certificate{own}, 401, "cert"},
		{"an Authorization that cannot be read, and a certificate", "Basic alice", []tls.Certificate{own}, 401, ""},
		{"an empty token, and a certificate", "Bearer", []tls.Certificate{own}, 401, ""},
		{"a token with a proof, and a certificate", "DPoP alice", []tls.Certificate{own}, 200, "cert"},
	} {
		h.seen = nil
		got := ask(row.authorization, row.certs...)
		peer := ""
		if all := h.seen[0].Proof.Peer; len(all) > 0 {
			peer = all[0].Subject.CommonName
		}
		if got.status != row.status || peer != row.peer || strings.HasPrefix(row.authorization, "DPoP") && !strings.HasPrefix(h.seen[0].Proof.URL, "https://127.0.0.1:") {
			t.Errorf("%s: %d %s, the gateway saw %q at %q", row.name, got.status, got.body, peer, h.seen[0].Proof.URL)
		}
		// Whose certificate is nobody's here is sent for a token, and told of no error in one.
		challenge := got.header.Get("WWW-Authenticate")
		if strings.Contains(challenge, "resource_metadata") != (got.status == 401) || strings.Contains(challenge, "error") != (row.authorization == "Bearer mallory") {
			t.Errorf("%s: %s", row.name, challenge)
		}
	}
}

func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A token in a URL would be in every log on the way: no route takes one, and none
// says it again.
func TestNoTokenInAURL(t *testing.T) {
	const secret = "s3cret-token"
	for door, r := range everyDoor() {
		for _, query := range []string{"?access_token=" + secret, "?" + secret, "?a=b&DPoP=" + secret} {
			testQuery(t, door, r, query, secret)
		}
	}
	for _, path := range append([]string{"/oauth/token", "/", "/nowhere"}, metadataPaths...) {
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
			testQuery(t, method+" "+path, req{method: method, path: path}, "?access_token="+secret, secret)
		}
	}
}

func testQuery(t *testing.T, door string, r req, query, secret string) {
	t.Helper()
	d := open(t, discoverable)
	if r.path == "" {
		r.path = "/mcp"
	}
	r.path += query
	got := d.do(r)
	if got.status != 400 || strings.Contains(got.body+fmt.Sprint(got.header), secret) || len(d.seen) > 0 {
		t.Errorf("%s%s: %d %v %s", door, query, got.status, got.header, got.body)
	}
}

func inMeta(id string) string { return `"_meta":{"` + TaskMeta + `":` + id + `}` }

// A client that can set no header names its task in _meta, and nobody names two.
func TestTaskInMeta(t *testing.T) {
	echo := func(meta string) string { return rpc(1, "tools/call", meta+`,"name":"echo"`) }
	const clash = "the Toolbroker-Task header and _meta name different tasks; name one"
	for _, row := range []struct {
		name   string
		req    req
		status int
		says   string
	}{
		{"a call", req{token: "key", body: echo(inMeta(`"task-k"`))}, 200, `"content"`},
		{"a list", req{token: "key", body: rpc(1, "tools/list", inMeta(`"task-k"`))}, 200, `"tools"`},
		{"in the modern era", func() req {
			r := modernReq("tools/list", "", "")
			r.body, r.token = rpc(1, "tools/list", modernMeta(`"`+TaskMeta+`":"task-k"`)), "key"
			return r
		}(), 200, `"tools"`},
		{"as the header does", req{token: "key", body: echo(inMeta(`"task-k"`))}.with(TaskHeader, "task-k"), 200, `"content"`},
		{"as the token does", req{body: echo(inMeta(`"task-a"`))}, 200, `"content"`},
		{"escaped", req{body: echo(inMeta(`"t\u0061sk-a"`))}, 200, `"content"`},

		{"another than the header", req{token: "key", body: echo(inMeta(`"task-j"`))}.with(TaskHeader, "task-k"), 200, `NO_TASK: ` + clash},
		{"another than the header, in the modern era", func() req {
			r := modernReq("tools/call", "echo", "")
			r.body, r.token = rpc(1, "tools/call", modernMeta(`"`+TaskMeta+`":"task-j"`)+`,"name":"echo"`), "key"
			return r.with(TaskHeader, "task-k")
		}(), 200, `"resultType":"complete","content":[{"type":"text","text":"NO_TASK: `},
		{"another than the header: list", req{token: "key", body: rpc(1, "tools/list", inMeta(`"task-j"`))}.with(TaskHeader, "task-k"), 403, clash},
		{"another than the header: ping", req{token: "key", body: rpc(1, "ping", inMeta(`"task-j"`))}.with(TaskHeader, "task-k"), 403, clash},
		{"another than the header: initialize", req{token: "key", body: rpc(1, "initialize", inMeta(`"task-j"`))}.with(TaskHeader, "task-k"), 403, clash},
		{"another than the header: a notification", req{token: "key", body: `{"jsonrpc":"2.0","method":"notifications/x","params":{` + inMeta(`"task-j"`) + `}}`}.with(TaskHeader, "task-k"), 403, clash},
		{"another than the token", req{body: echo(inMeta(`"task-b"`))}, 200, "NO_TASK"},
		{"another than the token: list", req{body: rpc(1, "tools/list", inMeta(`"task-b"`))}, 403, "NO_TASK"},
		{"another than the token: initialize", req{body: rpc(1, "initialize", inMeta(`"task-b"`))}, 403, "NO_TASK"},

		{"a number", req{body: echo(inMeta(`1`))}, 400, "-32602"},
		{"a number, and the message's id after it", req{body: `{"jsonrpc":"2.0","method":"tools/list","params":{` + inMeta(`1`) + `},"id":"seven"}`}, 400, `"id":"seven"`},
		{"a number, and the message's id before it", req{body: `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{` + inMeta(`1`) + `}}`}, 400, `"id":7`},
		{"a number, and two ids", req{body: `{"jsonrpc":"2.0","method":"tools/list","params":{` + inMeta(`1`) + `},"id":7,"id":8}`}, 400, `"id":null`},
		{"null", req{body: echo(inMeta(`null`))}, 400, "-32602"},
		{"a list of one", req{body: echo(inMeta(`["task-a"]`))}, 400, "-32602"},
		{"empty", req{body: echo(inMeta(`""`))}, 400, "-32602"},
		{"no id", req{body: echo(inMeta(`"Task A"`))}, 400, "-32602"},
		{"a path", req{body: echo(inMeta(`"../task-a"`))}, 400, "-32602"},
		{"endless", req{body: echo(inMeta(`"` + strings.Repeat("a", 65) + `"`))}, 400, "-32602"},
		{"twice", req{body: echo(`"_meta":{"io.toolbroker/task":"task-a","io.toolbroker/task":"task-b"}`)}, 400, "given twice"},
		{"in another case", req{body: echo(`"_meta":{"io.toolbroker/Task":"task-b"}`)}, 400, "only in case"},
		{"somewhere else", req{token: "key", body: rpc(1, "tools/call", `"name":"echo","io.toolbroker/task":"task-k"`)}, 200, "NO_TASK"},
		{"among the arguments", req{token: "key", body: call("echo", `{"_meta":{"io.toolbroker/task":"task-k"}}`)}, 200, "NO_TASK"},
	} {
		d := open(t)
		got := d.do(row.req)
		if got.status != row.status || !strings.Contains(got.body, row.says) {
			t.Errorf("%s: %d %s\nwant %d ...%s...", row.name, got.status, got.body, row.status, row.says)
		}
		if strings.Contains(row.says, clash) && (len(d.calls) > 0 || d.malformed != 1 || len(d.sessions) > 0) {
			t.Errorf("%s: something was done", row.name)
		}
		if len(row.req.header) > 0 {
			continue
		}
		// Over stdio the same, but that the credential is known beforehand.
		d = open(t)
		var out strings.Builder
		cred := gateway.Credential{Bearer: gateway.NewSecret(row.req.token)}
		if row.req.token == "" {
			cred = alice
		}
		if err := d.edge.ServeStdio(t.Context(), strings.NewReader(row.req.body), &out, cred); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), row.says) {
			t.Errorf("%s over stdio: %s, want %s", row.name, out.String(), row.says)
		}
	}
}

// Over stdio the task can be named beforehand too, as the header would.
func TestTaskInMetaOverStdio(t *testing.T) {
	for _, row := range []struct{ name, line, says string }{
		{"the same", rpc(1, "tools/list", inMeta(`"task-k"`)), `"tools"`},
		{"none", rpc(1, "tools/list", ""), `"tools"`},
		{"another", rpc(1, "tools/list", inMeta(`"task-j"`)), `"code":"no_task"`},
		{"another for a call", rpc(1, "tools/call", inMeta(`"task-j"`)+`,"name":"echo"`), `"isError":true,"_meta":{"io.toolbroker/refusal":{"code":"no_task"`},
		{"another for a session", rpc(1, "initialize", inMeta(`"task-j"`)), `"code":"no_task"`},
	} {
		d := open(t)
		var out strings.Builder
		if err := d.edge.ServeStdio(t.Context(), strings.NewReader(row.line), &out, gateway.Credential{Bearer: gateway.NewSecret("key"), Task: "task-k"}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), row.says) || len(d.sessions) > 0 {
			t.Errorf("%s: %s", row.name, out.String())
		}
	}
	// A session is the task's that it was opened for, and is ended as that.
	d := open(t)
	var out strings.Builder
	lines := []string{
		rpc(1, "initialize", inMeta(`"task-k"`)+`,"protocolVersion":"2025-11-25"`),
		rpc(2, "tools/call", inMeta(`"task-k"`)+`,"name":"echo"`),
		rpc(3, "tools/call", inMeta(`"task-j"`)+`,"name":"echo"`),
		rpc(4, "tools/call", `"name":"echo"`),
	}
	if err := d.edge.ServeStdio(t.Context(), strings.NewReader(strings.Join(lines, "\n")), &out, gateway.Credential{Bearer: gateway.NewSecret("key")}); err != nil {
		t.Fatal(err)
	}
	if len(d.calls) != 1 || d.calls[0].Credential.Task != "task-k" || strings.Count(out.String(), `"isError":true`) != 2 || len(d.closed) != 1 || len(d.sessions) != 0 {
		t.Errorf("%+v %s, closed %v, left %v", d.calls, out.String(), d.closed, d.sessions)
	}
}

// A session is claimed with the task it was opened for, wherever that is named.
func TestSessionOfATaskInMeta(t *testing.T) {
	d := open(t)
	in := d.do(req{token: "key", body: rpc(1, "initialize", inMeta(`"task-k"`)+`,"protocolVersion":"2025-11-25"`)})
	sid := in.header.Get(mcp.HeaderSessionID)
	if in.status != 200 || sid == "" {
		t.Fatalf("initialize: %d %s", in.status, in.body)
	}
	claim := func(token, body string) req { return req{token: token, body: body}.with(mcp.HeaderSessionID, sid) }
	for _, row := range []struct {
		name   string
		req    req
		status int
	}{
		{"its task in _meta", claim("key", rpc(1, "tools/call", inMeta(`"task-k"`)+`,"name":"echo"`)), 200},
		{"its task in the header", claim("key", call("echo", "{}")).with(TaskHeader, "task-k"), 200},
		{"ping", claim("key", rpc(1, "ping", inMeta(`"task-k"`))), 200},
		{"another task", claim("key", rpc(1, "tools/call", inMeta(`"task-j"`)+`,"name":"echo"`)), 404},
		{"another task: ping", claim("key", rpc(1, "ping", inMeta(`"task-j"`))), 404},
		{"another task: a cancellation", claim("key", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,`+inMeta(`"task-j"`)+`}}`), 404},
		{"no task", claim("key", call("echo", "{}")), 404},
		{"its task, by another", claim("alice", rpc(1, "ping", inMeta(`"task-k"`))), 404},
		{"its task, by nobody", claim("mallory", rpc(1, "ping", inMeta(`"task-k"`))), 401},
		{"its stream, with the header", req{token: "key", method: "GET"}.with(mcp.HeaderSessionID, sid).with(TaskHeader, "task-j"), 404},
		{"its end, without the header", req{token: "key", method: "DELETE"}.with(mcp.HeaderSessionID, sid), 404},
		{"its end", req{token: "key", method: "DELETE"}.with(mcp.HeaderSessionID, sid).with(TaskHeader, "task-k"), 200},
	} {
		if got := d.do(row.req); got.status != row.status {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
	}
	if len(d.calls) != 2 {
		t.Errorf("calls %+v", d.calls)
	}
}

// The name of the task is for us: no server hears it, not even one whose config
// would let it through. A real gateway takes what the door hands it.
func TestTaskInMetaGoesNoFurther(t *testing.T) {
	server := &listening{meta: make(chan json.RawMessage, 1)}
	h := gatewaytest.New(t, func(c *gateway.Config) { server.Servers, c.Servers = c.Servers, server })
	e, err := New(Config{Gateway: h.Gateway, Sessions: h.Sessions})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(e.Handler())
	defer srv.Close()
	body := rpc(1, "tools/call", `"name":"files__read","arguments":{},"_meta":{"io.toolbroker/task":"task-a","io.toolbroker/x":1,"example.com/y":2}`)
	r, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/mcp", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer key")
	r.Header.Set("Content-Type", "application/json")
	out, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	answer, _ := io.ReadAll(out.Body)
	if out.StatusCode != 200 || strings.Contains(string(answer), "isError\":true") || strings.Contains(string(answer), `"error"`) {
		t.Fatalf("%d %s", out.StatusCode, answer)
	}
	if got := string(get(t, "what the server heard", server.meta)); got != `{"example.com/y":2}` {
		t.Errorf("the server heard %s", got)
	}
}

// listening lets every _meta key through and keeps what came.
type listening struct {
	gateway.Servers
	meta chan json.RawMessage
}

func (l *listening) Resolve(tenant string, of gateway.Sort, alias string) (gateway.Tool, bool) {
	t, ok := l.Servers.Resolve(tenant, of, alias)
	t.Meta = []string{TaskMeta, ours + "x", "example.com/y"}
	return t, ok
}

func (l *listening) Forward(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
	l.meta <- f.Meta
	return l.Servers.Forward(ctx, f, s)
}
