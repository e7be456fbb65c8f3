package servers

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway/audit"
)

// A command that fetches what it names names exactly what.
func TestFloatingCommands(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for command, floats := range map[string]bool{
		"npx server":                                  true,
		"npx -y server":                               true,
		"npx -y server@latest":                        true,
		"npx -y server@^1.2.3":                        true,
		"npx -y server@1.2":                           true,
		"npx -y server@1.2.x":                         true,
		"npx -y server@next dir@1.2.3":                true,
		"npx -y server@1.2.3":                         false,
		"npx --yes @scope/server@1.2.3-rc.1 --all /x": false,
		"npx -y @scope/server":                        true,
		"npx -p server@1.2.3 -p other serve":          true,
		"npx --package=server@1.2.3 serve":            false,
		"npx --package=server serve@1.2.3":            true,
		"npx --registry evil@1.0.0 server":            true,
		"npx -c server@1.2.3":                         true,
		"npx github:who/server":                       true,
		"npx https://example.test/server-1.2.3.tgz":   true,
		"npx":                          true,
		"/usr/local/bin/npx -y server": true,
		"npx.cmd -y server":            true,
		"npm exec -- server":           true,
		"npm exec -y -- server@1.2.3":  false,
		"npm x server":                 true,
		"npm start":                    false,
		"pnpm dlx server":              true,
		"yarn dlx server@1.2.3":        false,
		"bunx --bun server@1.2.3":      false,
		"bun x server":                 true,
		"bun run server.ts":            false,
		"node /usr/lib/node_modules/npm/bin/npx-cli.js server": true,
		"node server.js":                              false,
		"uvx server":                                  true,
		"uvx server@1.2.3":                            false,
		"uvx server@latest":                           true,
		"uvx server>=1.2":                             true,
		"uvx server==1.*":                             true,
		"uvx --from server==1.2.3 serve":              false,
		"uvx --from server serve":                     true,
		"uvx --from git+https://example.test/x serve": true,
		"uvx --with other server==1.2.3":              true,
		"uvx --with other==1.0 server==1.2.3":         false,
		"uvx --python 3.12 server[extra]==1.2.3":      false,
		"uvx --index-url https://x server==1.2.3":     true,
		"uv tool run server":                          true,
		"uv tool run server==1.2.3.post1":             false,
		"pipx run server":                             true,
		"pipx run --spec server==1.2.3 serve":         false,
		"python3 -m pipx run server":                  true,
		"python3 -m server":                           false,
		"docker run -i --rm image":                    true,
		"docker run -i --rm image:1.2.3":              true,
		"docker run -i --rm image" + digest:           false,
		"docker run -i --rm image@sha256:abc":         true,
		"docker run --rm -it -e KEY -v /a:/b --name n registry.test/image:1" + digest + " serve": false,
		"docker run --rm -e KEY=v" + digest + " image":                                           true,
		"docker run --network=none -eA=b image":                                                  true,
		"docker run -v image" + digest + " other":                                                true,
		"docker run":                              true,
		"docker container run image":              true,
		"podman --log-level debug run --rm image": true,
		"nerdctl run image" + digest:              false,
		"docker exec -i running serve":            false,
		"env A=b npx server":                      true,
		"env -i A=b npx server@1.2.3":             false,
		"sh -c npx|server":                        true,
		"bash -c exec|docker|run|x":               true,
		"bash -c exec|/srv/server":                false,
		"/srv/server --npx":                       false,
	} {
		argv := strings.Fields(command)
		for i := range argv {
			argv[i] = strings.ReplaceAll(argv[i], "|", " ")
		}
		if why := floating(argv); (why != "") != floats {
			t.Errorf("%s: %q", command, why)
		}
	}
}

func TestFloatingCommandsAreRefusedOrOnRecord(t *testing.T) {
	dir := t.TempDir()
	npx := filepath.Join(dir, "npx")
	if err := os.WriteFile(npx, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	srv := Server{Name: "x", Command: []string{npx, "-y", "server"}}
	if s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{srv}}); err == nil {
		s.Close(t.Context())
		t.Fatal("taken")
	} else if !strings.Contains(err.Error(), `"npx" fetches "server", which is no exact version: write name@1.2.3; or take the risk by `+"`unsafe: floating`") {
		t.Error(err)
	}
	srv.Floating = true
	_, d := start(t, Config{Tenants: []string{"a"}, Servers: []Server{srv}})
	if f := d.await(t, audit.ServerUnsafe, "x", 2); !strings.HasPrefix(f.Detail, "floating: ") {
		t.Errorf("on record is %+v", f)
	}
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Another program than the pinned one is not started, and that is on record.
func TestProgramsArePinned(t *testing.T) {
	good := self("good", "good")
	good.Digest = sumOf(t, good.Command[0])
	bad := self("bad", "good")
	bad.Digest = "sha256:" + strings.Repeat("0", 64)
	s, d := start(t, Config{Servers: []Server{good, bad}})
	r, err := act(t, s, "good", "ok")
	said(t, r, err)
	if f := d.await(t, audit.ProgramSeen, "good", 1); f.Detail != good.Digest {
		t.Errorf("on record is %+v", f)
	}
	if f := d.await(t, audit.ProgramChanged, "bad", 1); !strings.Contains(f.Detail, "not started: it is "+good.Digest) {
		t.Errorf("on record is %+v", f)
	}
	if f := d.await(t, audit.ServerDown, "bad", 1); !strings.Contains(f.Detail, "not the one that the config pins") {
		t.Errorf("on record is %+v", f)
	}
	if got := aliases(s, "a"); got != "good__act" {
		t.Errorf("offered are %s", got)
	}
}

// A program that is put in place of the pinned one after it was looked at is not
// what runs.
func TestASwappedProgramDoesNotRun(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("only Linux runs what is open")
	}
	echo, err := exec.LookPath("echo")
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(echo)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{"a binary": binary, "a script": []byte("#!/bin/sh\necho \"$@\"\n")} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, body, 0o755); err != nil {
				t.Fatal(err)
			}
			s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", Command: []string{path, "good"}, Digest: sumOf(t, path)}}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(t.Context())
			srv := s.servers["x"]
			cmd := &exec.Cmd{Path: srv.argv[0], Args: srv.argv, SysProcAttr: ownGroup()}
			f, err := srv.program(cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			evil := path + ".evil"
			if err := os.WriteFile(evil, []byte("#!/bin/sh\necho evil\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(evil, path); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.launcher.start(&child{cmd: cmd}); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(out)
			if err := cmd.Wait(); err != nil || string(got) != "good\n" {
				t.Errorf("it said %q, %v", got, err)
			}
			if _, err := srv.program(&exec.Cmd{}); err == nil {
				t.Error("the next look finds nothing wrong")
			}
		})
	}
}

// That a program is another one is on record, over a restart too.
func TestAnotherProgramIsOnRecord(t *testing.T) {
	keep := filepath.Join(t.TempDir(), "pins.json")
	path := filepath.Join(t.TempDir(), "program")
	life := func(body string) *diary {
		if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
		s, d := start(t, Config{Tenants: []string{"a"}, Keep: keep, Servers: []Server{{Name: "x", Command: []string{path}, Timeout: 5 * time.Second}}})
		d.await(t, audit.ServerDown, "x", 1)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := life("#!/bin/sh\nexit 1\n")
	first := d.await(t, audit.ProgramSeen, "x", 1).Detail
	if all := strings.Join(life("#!/bin/sh\nexit 1\n").types(), " "); strings.Contains(all, "server.program") {
		t.Errorf("the same program again: %s", all)
	}
	if f := life("#!/bin/sh\nexit 2\n").await(t, audit.ProgramChanged, "x", 1); f.Detail != "was "+first+", is "+sumOf(t, path) {
		t.Errorf("on record is %+v", f)
	}
}

func statusOf(t *testing.T, s *Servers, server string) map[string]string {
	t.Helper()
	r, err := act(t, s, server, "status")
	all := map[string]string{}
	for line := range strings.Lines(said(t, r, err)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		all[name] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

// A child cannot become more than it is by running a set-user-ID program.
func TestAChildGainsNoPrivileges(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc here")
	}
	s, d := start(t, Config{Servers: []Server{self("c", "good")}})
	if got := statusOf(t, s, "c")["NoNewPrivs"]; got != "1" {
		t.Errorf("NoNewPrivs is %q", got)
	}
	free := 0 // only the thread that starts children gives its own up
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, thread := range threads {
		if got, _ := os.ReadFile(thread); strings.Contains(string(got), "NoNewPrivs:\t0") {
			free++
		}
	}
	if free == 0 {
		t.Error("we gave up our own privileges")
	}
	if f := d.await(t, audit.ServerUnsafe, "c", 1); !strings.Contains(f.Detail, "our own user") {
		t.Errorf("on record is %+v", f)
	}
}

// A child of another user is nobody to us: it reads no file of ours, and nothing
// of our process.
func TestAChildOfItsOwnUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: only root can run a child as another user")
	}
	c := self("c", "good")
	c.User, c.Digest = "nobody", sumOf(t, c.Command[0]) // what is open runs, even from a folder that nobody may enter
	s, d := start(t, Config{Servers: []Server{c}})
	status := statusOf(t, s, "c")
	if status["Uid"] != "65534 65534 65534 65534" || strings.Contains(status["Gid"], "0 ") || status["Groups"] != "" || status["CapEff"] != "0000000000000000" || status["NoNewPrivs"] != "1" {
		t.Errorf("it runs as %s, in %s and %q, with %s", status["Uid"], status["Gid"], status["Groups"], status["CapEff"])
	}
	key := filepath.Join(t.TempDir(), "task.key")
	if err := os.WriteFile(key, []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{key, fmt.Sprintf("/proc/%d/environ", os.Getpid()), fmt.Sprintf("/proc/%d/mem", os.Getpid())} {
		r, err := forward(t, s, "c__act", `{"do":"read","path":`+strconv.Quote(path)+`}`)
		if got := said(t, r, err); !strings.Contains(got, "permission denied") {
			t.Errorf("%s: it reads %q", path, got)
		}
	}
	r, err := act(t, s, "c", "cwd")
	if got := said(t, r, err); got != s.servers["c"].dir {
		t.Errorf("it works in %s", got)
	}
	for _, line := range d.types() {
		if strings.Contains(line, "server.unsafe") {
			t.Error(line)
		}
	}
	// It ends with its task, though it is somebody else's.
	pid, _ := strconv.Atoi(status["Pid"])
	if ends := s.EndTask(t.Context(), "a", "t1"); len(ends.Open) > 0 || alive(pid) {
		t.Errorf("alive %v, %+v", alive(pid), ends)
	}
}

func TestUsersThatAreRefused(t *testing.T) {
	for _, name := range []string{"root", "0", "no-such-user", "4294967295999"} {
		c := self("c", "good")
		c.User = name
		if s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{c}}); err == nil {
			s.Close(t.Context())
			t.Errorf("%s was taken", name)
		}
	}
}
