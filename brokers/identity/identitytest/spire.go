package identitytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A SPIRE is a server and an agent of SPIRE, of the trust domain example.org, until
// their test ends. This process is registered as a workload.
type SPIRE struct {
	WorkloadAPI string // "unix:///...", for SPIFFE_ENDPOINT_SOCKET and go-spiffe
	TrustDomain string
	ID          string // of this process: spiffe://example.org/agent/test

	t      testing.TB
	server func(args ...string) ([]byte, error) // the server's own command line
	fetch  func(id string) error                // asks the agent for an SVID
	agent  *process
	parent string // the agent's SPIFFE ID, of which entries are children
}

// StartSPIRE starts SPIRE as built in TOOLBROKER_SPIRE_DIR. Where there is none the
// test is skipped, or fails if TOOLBROKER_REQUIRE_REAL is 1.
func StartSPIRE(t testing.TB) *SPIRE {
	t.Helper()
	bin := os.Getenv("TOOLBROKER_SPIRE_DIR")
	serverBin, agentBin := filepath.Join(bin, "spire-server"), filepath.Join(bin, "spire-agent")
	if _, err := os.Stat(agentBin); bin == "" || err != nil {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
			t.Fatal("no SPIRE here, and TOOLBROKER_REQUIRE_REAL asks for it")
		}
		t.Skip("no SPIRE here")
	}
	// A socket's path has at most 107 bytes, which the name of a test can use up.
	dir, err := os.MkdirTemp("", "spire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()

	s := &SPIRE{t: t, TrustDomain: "example.org", ID: "spiffe://example.org/agent/test", WorkloadAPI: "unix://" + filepath.Join(dir, "agent.sock")}
	serverSocket := filepath.Join(dir, "server.sock")
	s.server = func(args ...string) ([]byte, error) {
		return exec.Command(serverBin, append(args, "-socketPath", serverSocket)...).Output()
	}
	s.fetch = func(id string) error {
		return exec.Command(agentBin, "api", "fetch", "jwt", "-audience", "ready", "-spiffeID", id, "-socketPath", strings.TrimPrefix(s.WorkloadAPI, "unix://")).Run()
	}
	config := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	server := s.run(serverBin, "run", "-config", config("server.conf", fmt.Sprintf(`
server {
	bind_address = "127.0.0.1"
	bind_port = "%d"
	socket_path = %q
	trust_domain = "example.org"
	data_dir = %q
	log_level = "INFO"
	experimental { cache_reload_interval = "1s" }
}
plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = %q } }
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "memory" { plugin_data {} }
}
`, port, serverSocket, dir, filepath.Join(dir, "server.sqlite3"))))
	s.await(server, "the server", func() bool { _, err := s.server("healthcheck"); return err == nil })

	bundle, err := s.server("bundle", "show")
	if err != nil {
		t.Fatal(err)
	}
	var joined struct{ Value string }
	s.ask(&joined, "token", "generate", "-output", "json")
	s.parent = "spiffe://example.org/spire/agent/join_token/" + joined.Value
	s.agent = s.run(agentBin, "run", "-joinToken", joined.Value, "-config", config("agent.conf", fmt.Sprintf(`
agent {
	data_dir = %q
	log_level = "INFO"
	server_address = "127.0.0.1"
	server_port = "%d"
	socket_path = %q
	trust_bundle_path = %q
	trust_domain = "example.org"
	experimental { sync_interval = "1s" }
}
plugins {
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, filepath.Join(dir, "agent"), port, strings.TrimPrefix(s.WorkloadAPI, "unix://"), config("bundle.pem", string(bundle)))))
	s.Register(s.ID)
	return s
}

// Register gives whoever runs as this process's user the SPIFFE ID, and returns
// when the agent hands out SVIDs for it.
func (s *SPIRE) Register(id string) {
	s.t.Helper()
	s.ask(nil, "entry", "create", "-parentID", s.parent, "-spiffeID", id, "-selector", "unix:uid:"+strconv.Itoa(os.Getuid()), "-output", "json")
	s.await(s.agent, "an SVID for "+id, func() bool { return s.fetch(id) == nil })
}

// Bundle returns the trust domain's bundle in SPIFFE's JSON, its X.509 authorities
// and its keys for JWTs, as a config can name a file of it.
func (s *SPIRE) Bundle() []byte {
	s.t.Helper()
	out, err := s.server("bundle", "show", "-format", "spiffe")
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// ask runs the server's command line and decodes what it prints.
func (s *SPIRE) ask(out any, args ...string) {
	s.t.Helper()
	text, err := s.server(args...)
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		s.t.Fatalf("spire-server %s: %v\n%s", strings.Join(args[:2], " "), err, text)
	}
}

// A process dies with the test, and with this process.
type process struct {
	done chan struct{}
	mu   sync.Mutex
	said bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

func (s *SPIRE) run(name string, args ...string) *process {
	s.t.Helper()
	p := &process{done: make(chan struct{})}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = p, p
	cmd.SysProcAttr = dies()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { cmd.Wait(); close(p.done) }()
	s.t.Cleanup(func() { cmd.Process.Signal(syscall.SIGKILL); <-p.done })
	return p
}

// await polls what is outside of this process and cannot be awaited.
func (s *SPIRE) await(p *process, what string, ready func() bool) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.done:
			s.t.Fatalf("%s: ended\n%s", what, p.log())
		default:
		}
		if ready() {
			return
		}
	}
	s.t.Fatalf("%s: not within a minute\n%s", what, p.log())
}
