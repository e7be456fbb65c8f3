package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"toolbroker/cmd/toolbroker/internal/dev"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"toolbroker": func() { os.Exit(run()) }, "patient": func() { os.Exit(patient()) }})
}

// patient is toolbroker, run again when the gateway could not say whether a task
// still runs: starved for 100 ms it refuses calls, as it promises, and a machine
// that runs tests starves it now and then.
func patient() int {
	for tries := 0; ; tries++ {
		var out, said bytes.Buffer
		cmd := exec.Command("toolbroker", os.Args[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &said
		err := cmd.Run()
		starved := strings.Contains(said.String(), "INTERNAL: ") || strings.Contains(said.String(), "Internal Server Error")
		if err != nil && starved && tries < 50 {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		os.Stdout.Write(out.Bytes())
		os.Stderr.Write(said.Bytes())
		if err != nil {
			return 1
		}
		return 0
	}
}

// The stories: each drives the program as its users do.
func TestStories(t *testing.T) {
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			binary, err := exec.LookPath("toolbroker")
			e.Setenv("TOOLBROKER", binary)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("VAULTDIR", filepath.Dir(vaultBinary()))
			return err
		},
		Condition: real,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"devready": devReady, "readyz": readyz, "ports": ports, "expand": expand, "until": until, "tamper": tamper, "private": private,
		},
	})
}

// oneByOne runs stories in turn, so that they do not starve one another.
type oneByOne struct{ *testing.T }

func (t oneByOne) Run(name string, story func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { story(oneByOne{t}) })
}

func (oneByOne) Parallel() {}

func (oneByOne) Verbose() bool { return testing.Verbose() }

// real says whether a real part is here: "redis" or "vault". Where the
// environment requires real parts, a missing one is a failure.
func real(part string) (bool, error) {
	var found bool
	switch part {
	case "redis":
		_, err := exec.LookPath("redis-server")
		found = err == nil
	case "vault":
		_, err := os.Stat(vaultBinary())
		found = err == nil
	default:
		return false, fmt.Errorf("no condition %q", part)
	}
	if !found && os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
		return false, fmt.Errorf("no %s here, and TOOLBROKER_REQUIRE_REAL=1", part)
	}
	return found, nil
}

var home, _ = os.UserHomeDir() // before scripts get one of their own

func vaultBinary() string {
	if bin := os.Getenv("TOOLBROKER_VAULT_BIN"); bin != "" {
		return bin
	}
	return filepath.Join(home, ".cache/toolbroker/vault-1.21.1/vault")
}

// patience is how long a script waits for what it says will come.
const patience = time.Minute

func await(ts *testscript.TestScript, what string, done func() bool) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	ts.Fatalf("%s: not within %v", what, patience)
}

// devready DIR waits for DIR/dev.json and puts what it says into the environment.
func devReady(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	var f dev.File
	await(ts, "dev.json", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "dev.json"))
		return err == nil && json.Unmarshal(text, &f) == nil
	})
	ts.Setenv("TOOLBROKER_URL", f.MCP)
	ts.Setenv("TOOLBROKER_CONSOLE", f.Console)
	ts.Setenv("TOOLBROKER_TOKEN", f.Tasks["triage"].Token)
	ts.Setenv("READING_TOKEN", f.Tasks["reading"].Token)
	ts.Setenv("TASK", f.Tasks["triage"].ID)
	ts.Setenv("TOOLBROKER_OPERATOR", "bob")
	ts.Setenv("TOOLBROKER_OPERATOR_PASSWORD_FILE", filepath.Join(dir, "bob"))
	for _, o := range f.Operators {
		ts.Check(os.WriteFile(filepath.Join(dir, o.Name), []byte(o.Password+"\n"), 0o600))
	}
}

// readyz ADDRESS waits until the management listener there says that it can serve.
func readyz(ts *testscript.TestScript, neg bool, args []string) {
	await(ts, "readyz", func() bool {
		r, err := http.Get("http://" + args[0] + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// ports NAME... sets each name to a free loopback address.
func ports(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // after all are chosen, so that they differ
		ts.Setenv(name, l.Addr().String())
		_, port, err := net.SplitHostPort(l.Addr().String())
		ts.Check(err)
		ts.Setenv(name+"PORT", port)
	}
}

// expand FILE replaces ${NAME} in a file by the environment's.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	text := regexp.MustCompile(`\$\{[A-Z]+\}`).ReplaceAllStringFunc(ts.ReadFile(args[0]), func(name string) string {
		return ts.Getenv(name[2 : len(name)-1])
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// private FILE makes a file its owner's alone.
func private(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o600))
}

// until REGEXP COMMAND... repeats a command until its output matches; the first
// group, if there is one, becomes $FOUND.
func until(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile(args[0])
	var out string
	defer func() { ts.Logf("%s", out) }()
	await(ts, strings.Join(args, " "), func() bool {
		_ = ts.Exec(args[1], args[2:]...) // a failure is told by its output, too
		out = ts.ReadFile("stdout") + ts.ReadFile("stderr")
		m := want.FindStringSubmatch(out)
		if len(m) > 1 {
			ts.Setenv("FOUND", m[1])
		}
		return m != nil
	})
}

// tamper DIR OLD NEW changes the first OLD in a log's lines.
func tamper(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.jsonl"))
	ts.Check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		ts.Check(err)
		if changed := strings.Replace(string(text), args[1], args[2], 1); changed != string(text) {
			ts.Check(os.WriteFile(file, []byte(changed), 0o600))
			return
		}
	}
	ts.Fatalf("%q stands nowhere in %s", args[1], args[0])
}
