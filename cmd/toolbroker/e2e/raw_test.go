package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A raw client speaks the protocol by hand, for what the libraries do not show or do
// not let one send.
type raw struct {
	url, token, era string
	caps            string // its capabilities, as JSON
	session         string // where the era has sessions
	id              int
	headers         map[string]string // more of them
	meta            string            // more members of _meta, ",..." or empty
}

// An rpcAnswer is what came back, whole.
type rpcAnswer struct {
	Status int
	Result json.RawMessage
	Error  *struct {
		Code    int
		Message string
		Data    json.RawMessage
	}
	Body string
}

func (a rpcAnswer) text() string {
	if a.Error != nil {
		return fmt.Sprintf("error %d: %s", a.Error.Code, a.Error.Message)
	}
	var r struct{ Content []struct{ Text string } }
	if json.Unmarshal(a.Result, &r) == nil && len(r.Content) > 0 {
		return r.Content[0].Text
	}
	return string(a.Result)
}

func newRaw(t *testing.T, url, token, era, caps string) *raw {
	t.Helper()
	c := &raw{url: url, token: token, era: era, caps: caps}
	c.open(t)
	return c
}

// open gets it a session where its era has them.
func (c *raw) open(t *testing.T) {
	t.Helper()
	if c.era >= "2026" {
		return
	}
	for {
		a, err := c.do(t.Context(), "initialize", fmt.Sprintf(`{"protocolVersion":%q,"capabilities":%s,"clientInfo":{"name":"raw","version":"1"}}`, c.era, c.caps))
		if err != nil {
			t.Fatal(err)
		}
		if c.session != "" {
			break
		}
		if !busy(a.Body) {
			t.Fatalf("%s: no session: %s", c.era, a.Body)
		}
	}
	if err := c.notify(t.Context(), "notifications/initialized", ""); err != nil {
		t.Fatal(err)
	}
}

// do makes one request and waits for its answer. params is a JSON object.
func (c *raw) do(ctx context.Context, method, params string) (a rpcAnswer, err error) {
	c.id++
	return c.send(ctx, fmt.Sprint(c.id), method, params)
}

// notify sends what has no answer.
func (c *raw) notify(ctx context.Context, method, params string) error {
	_, err := c.send(ctx, "", method, params)
	return err
}

func (c *raw) send(ctx context.Context, id, method, params string) (a rpcAnswer, err error) {
	resp, err := c.post(ctx, id, method, params)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	a.Status, a.Body = resp.StatusCode, string(text)
	if err != nil || id == "" {
		return a, err
	}
	// Of a stream, the answer is the message that has one.
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("data:")))
		var m rpcAnswer
		if json.Unmarshal(line, &m) == nil && (m.Result != nil || m.Error != nil) {
			a.Result, a.Error = m.Result, m.Error
			return a, nil
		}
	}
	return a, errors.New("no answer: " + resp.Status + " " + a.Body)
}

// post sends one message, a request where it has an id, and returns what comes back
// unread.
func (c *raw) post(ctx context.Context, id, method, params string) (*http.Response, error) {
	if params == "" {
		params = "{}"
	}
	var named struct{ Name, URI, TaskID string }
	if err := json.Unmarshal([]byte(params), &named); err != nil {
		return nil, err
	}
	if c.era >= "2026" {
		meta := fmt.Sprintf(`"_meta":{"io.modelcontextprotocol/protocolVersion":%q,"io.modelcontextprotocol/clientCapabilities":%s,"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"}%s}`, c.era, c.caps, c.meta)
		if inner := strings.TrimSpace(params[1 : len(params)-1]); inner != "" {
			meta += "," + inner
		}
		params = "{" + meta + "}"
	} else if c.meta != "" && method != "initialize" {
		inner := strings.TrimSpace(params[1 : len(params)-1])
		if inner != "" {
			inner = "," + inner
		}
		params = `{"_meta":{` + strings.TrimPrefix(c.meta, ",") + "}" + inner + "}"
	}
	body := fmt.Sprintf(`{"jsonrpc":"2.0","method":%q,"params":%s}`, method, params)
	if id != "" {
		body = fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":%s}`, id, method, params)
	}
	r, err := c.request(ctx, "POST", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if method == "initialize" {
		r.Header.Del("MCP-Protocol-Version")
	}
	if c.era >= "2026" {
		r.Header.Set("Mcp-Method", method)
		for _, name := range []string{named.Name, named.URI, named.TaskID} {
			if name != "" {
				r.Header.Set("Mcp-Name", name)
			}
		}
	}
	for k, v := range c.headers {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
		c.session = s
	}
	return resp, nil
}

// request makes an HTTP request that says who asks, in which session.
func (c *raw) request(ctx context.Context, verb string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, verb, c.url, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json, text/event-stream")
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("MCP-Protocol-Version", c.era)
	if c.session != "" {
		r.Header.Set("Mcp-Session-Id", c.session)
	}
	return r, nil
}

// A stream hands on the messages of an answer as they come. Its channel is closed
// when it ends.
type stream struct {
	status   int
	messages chan string
}

// stream sends a request and does not wait for its answer.
func (c *raw) stream(t *testing.T, ctx context.Context, method, params string) *stream {
	t.Helper()
	c.id++
	resp, err := c.post(ctx, fmt.Sprint(c.id), method, params)
	if err != nil {
		t.Fatal(err)
	}
	return newStream(resp)
}

// notices opens a session's stream of notices.
func (c *raw) notices(t *testing.T, ctx context.Context) *stream {
	t.Helper()
	r, err := c.request(ctx, "GET", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("a stream of notices: %s", resp.Status)
	}
	return newStream(resp)
}

func newStream(resp *http.Response) *stream {
	s := &stream{status: resp.StatusCode, messages: make(chan string, 256)}
	go func() {
		defer close(s.messages)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "data:"))
			if strings.HasPrefix(line, "{") {
				s.messages <- line
			}
		}
	}()
	return s
}

// next is the next message in which text stands, or fails the test where the stream
// ends, or a minute does, before it.
func (s *stream) next(t *testing.T, text string) string {
	t.Helper()
	late := time.After(time.Minute)
	var seen []string
	for {
		select {
		case m, ok := <-s.messages:
			if ok && strings.Contains(m, text) {
				return m
			}
			if !ok {
				t.Fatalf("the stream ended without %s: %s", text, seen)
			}
			seen = append(seen, m)
		case <-late:
			t.Fatalf("no %s within a minute: %s", text, seen)
		}
	}
}

// ends waits for the end of the stream, and returns what came before it.
func (s *stream) ends(t *testing.T) (seen []string) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case m, ok := <-s.messages:
			if !ok {
				return seen
			}
			seen = append(seen, m)
		case <-late:
			t.Fatalf("the stream is open after a minute: %s", seen)
		}
	}
}
