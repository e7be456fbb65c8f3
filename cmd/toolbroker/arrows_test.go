package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The architecture: imports run downhill. A room is a folder and what lies below
// it, other rooms excepted. It may import the rooms that stand beside it, and its
// tests those that stand under tests as well; nothing else of ours.
var rooms = []struct {
	room    string
	imports []string
	tests   []string
}{
	// 0: nothing of ours
	{"authz", nil, nil},
	{"gateway/audit", nil, nil},

	// 1: decides, records, carries out
	{"gateway", below, house},

	// 2: the doors, and what lies behind the seams
	{"gateway/edge", door, house},
	{"gateway/console", door, house},
	{"gateway/replay", door, house},
	{"gateway/gatewaytest", door, nil},

	{"brokers/identity", broker, append(brokerTests, "brokers/identity/identitytest")},
	{"brokers/identity/identitytest", nil, nil}, // a provider and a SPIRE, for tests
	{"brokers/operators", broker, brokerTests},
	{"brokers/tasks", broker, brokerTests},
	{"brokers/approvals", broker, brokerTests},
	{"brokers/sessions", broker, brokerTests},
	{"brokers/attempts", broker, brokerTests},
	{"brokers/handles", broker, brokerTests},
	{"brokers/secrets", broker, append(brokerTests, "brokers/secrets/standin")},
	{"brokers/secrets/standin", nil, nil},
	{"brokers/servers", broker, append(brokerTests, "examples")},
	{"brokers/internal/redis", []string{"gateway"}, brokerTests},
	{"brokers/internal/redis/redistest", []string{"gateway", "brokers/internal/redis"}, nil},
	{"brokers", []string{"brokers/internal/redis"}, nil}, // opens, for cmd, what the brokers share

	// 3: the program puts it together, and nothing imports it
	{"cmd/toolbroker", append(everything, "cmd/toolbroker/internal/dev"), append(house, "brokers/identity/identitytest")},
	{"cmd/toolbroker/internal/dev", append(everything, "cmd/toolbroker", "brokers/secrets/standin"), house},

	// Beside the house: programs that know us by our protocols only.
	{"examples", nil, nil},
}

// A broker knows the gateway's nouns and seams, and Redis. Of audit it knows the
// names of events, and TestBrokersKnowOnlyNamesOfEvents holds it to that.
var (
	below       = []string{"authz", "gateway/audit"}
	door        = []string{"authz", "gateway/audit", "gateway"}
	broker      = []string{"authz", "gateway/audit", "gateway", "brokers/internal/redis"}
	everything  = []string{"authz", "gateway/audit", "gateway", "gateway/edge", "gateway/console", "gateway/replay", "brokers", "brokers/identity", "brokers/operators", "brokers/tasks", "brokers/approvals", "brokers/sessions", "brokers/attempts", "brokers/handles", "brokers/secrets", "brokers/servers", "examples"}
	house       = []string{"gateway/gatewaytest"}
	brokerTests = []string{"gateway/gatewaytest", "brokers/internal/redis/redistest"}
)

// Third parties stay in one room each; tests included. What is in no row is in
// no room: a new dependency gets its row here first.
var homes = []struct {
	modules string // prefix of import paths
	rooms   []string
}{
	{"github.com/casbin/", []string{"authz"}},
	{"github.com/fsnotify/", []string{"authz"}},
	{"github.com/redis/", []string{"brokers/internal/redis", "cmd/toolbroker/e2e"}}, // in e2e: it looks for leftovers
	{"github.com/alicebob/miniredis/", []string{"brokers/internal/redis"}},
	{"github.com/hashicorp/vault/", []string{"brokers/secrets"}},
	{"github.com/go-jose/", []string{"brokers/identity", "brokers/tasks"}},  // task tokens are checked in one, minted in the other
	{"github.com/zitadel/oidc/", []string{"brokers/identity/identitytest"}}, // of tests only: the provider
	{"github.com/spiffe/go-spiffe/", []string{"brokers/identity"}},
	{"google.golang.org/grpc", []string{"brokers/identity"}}, // in tests: a Workload API
	{"github.com/alexedwards/argon2id", []string{"brokers/identity", "brokers/operators"}},
	{"golang.org/x/crypto/argon2", []string{"brokers/identity", "brokers/operators"}},
	{"github.com/mark3labs/mcp-go/", []string{"gateway/edge", "brokers/servers", "examples", "cmd/toolbroker"}},            // in cmd: a client
	{"github.com/modelcontextprotocol/go-sdk/", []string{"gateway/edge", "brokers/servers", "examples", "cmd/toolbroker"}}, // in gateway and brokers: tests
	{"github.com/santhosh-tekuri/jsonschema/", []string{"brokers/servers"}},
	{"github.com/dlclark/regexp2/", []string{"brokers/servers"}}, // patterns of schemas that Go's engine does not know
	{"github.com/yosida95/uritemplate/", []string{"brokers/servers"}},
	{"github.com/oklog/ulid/", []string{"gateway/audit"}},
	{"github.com/gofrs/flock", []string{"gateway/audit"}},
	{"golang.org/x/mod/sumdb/", []string{"gateway/audit"}},
	{"github.com/transparency-dev/", []string{"gateway/audit"}}, // in tests: the third party that checks us
	{"github.com/prometheus/", []string{"cmd/toolbroker"}},
	{"github.com/spf13/", []string{"cmd/toolbroker"}},
	{"go.yaml.in/yaml/", []string{"cmd/toolbroker"}},
	{"golang.org/x/term", []string{"cmd/toolbroker"}},
	{"github.com/tailscale/hujson", []string{"cmd/toolbroker"}}, // import: clients' files have comments
	{"github.com/rogpeppe/go-internal/", []string{"cmd/toolbroker"}},
	{"github.com/chromedp/", []string{"gateway/console", "cmd/toolbroker"}},
	{"github.com/go-json-experiment/json", anywhere},
	{"github.com/gowebpki/jcs", anywhere}, // in tests: another reading of RFC 8785
	{"golang.org/x/", anywhere},
	{"pgregory.net/rapid", anywhere},
}

var anywhere = []string{""}

// What a room must not reach through our own packages, however long the way. What
// a third party needs inside is its own affair.
var never = []struct{ room, reaches string }{
	{"authz", "net/http"},
	{"gateway", "net/http"},
	{"gateway", "os/exec"},
	{"cmd/toolbroker/internal/serve", "brokers/secrets/standin"}, // dev parts stay out of production
	{"brokers/secrets", "brokers/secrets/standin"},
	{"cmd/toolbroker", "brokers/identity/identitytest"}, // nor do the parts of tests get in
}

func TestNever(t *testing.T) {
	all := listPackages(t)
	for _, n := range never {
		seen := map[string]bool{}
		var walk func(path string, way []string)
		walk = func(path string, way []string) {
			if seen[path] {
				return
			}
			seen[path] = true
			for _, to := range all[path].Imports {
				if to == n.reaches {
					t.Errorf("%s reaches %s by %s", n.room, n.reaches, strings.Join(append(way, to), " -> "))
				}
				if _, ours := all[to]; ours {
					walk(to, append(way, to))
				}
			}
		}
		if _, ok := all[n.room]; ok {
			walk(n.room, []string{n.room})
		}
	}
}

func TestArrows(t *testing.T) {
	for path, p := range listPackages(t) {
		home := roomOf(path)
		if home < 0 {
			t.Errorf("%s is in no room", path)
			continue
		}
		check := func(imports []string, tests bool) {
			for _, to := range imports {
				if err := allowed(path, home, to, tests); err != "" {
					t.Errorf("%s imports %s: %s", path, to, err)
				}
			}
		}
		check(p.Imports, false)
		check(p.TestImports, true)
		check(p.XTestImports, true)
		if others := slices.DeleteFunc(p.TestGoFiles, func(f string) bool { return f == "export_test.go" }); path == "gateway" && len(others) > 0 {
			t.Errorf("gateway's tests are package gateway_test: %v", others)
		}
	}
}

// The table itself can fail.
func TestArrowsBite(t *testing.T) {
	for _, c := range []struct {
		from, to string
		tests    bool
		fine     bool
	}{
		{"authz", "gateway", false, false}, {"authz", "strings", false, true}, {"authz", "github.com/casbin/casbin/v2", false, true},
		{"gateway", "github.com/casbin/casbin/v2", false, false}, {"gateway", "brokers/tasks", true, false}, {"gateway", "gateway/edge", true, false},
		{"gateway", "gateway/gatewaytest", false, false}, {"gateway", "gateway/gatewaytest", true, true},
		{"brokers/tasks", "brokers/approvals", true, false}, {"brokers/tasks", "brokers/internal/redis", false, true}, {"brokers/tasks", "brokers/internal/redis/redistest", true, true}, {"brokers/tasks", "brokers/internal/redis/redistest", false, false},
		{"brokers/tasks", "github.com/redis/go-redis/v9", true, false}, {"brokers/secrets", "brokers/secrets/standin", false, false}, {"brokers/secrets", "brokers/secrets/standin", true, true},
		{"gateway/edge", "brokers/servers", true, false}, {"gateway/console", "github.com/mark3labs/mcp-go/mcp", true, false},
		{"cmd/toolbroker/internal/serve", "brokers/secrets/standin", false, false}, {"cmd/toolbroker/internal/dev", "brokers/secrets/standin", false, true},
		{"brokers/identity", "brokers/identity/identitytest", false, false}, {"brokers/identity", "brokers/identity/identitytest", true, true}, {"cmd/toolbroker/e2e", "brokers/identity/identitytest", true, true},
		{"cmd/toolbroker/internal/serve", "brokers/identity/identitytest", false, false}, {"brokers/identity", "github.com/zitadel/oidc/v3/pkg/op", true, false},
		{"brokers/tasks", "cmd/toolbroker/internal/config", false, false}, {"examples/servers/notes", "gateway", true, false}, {"gateway", "example.com/new", false, false},
	} {
		if err := allowed(c.from, roomOf(c.from), c.to, c.tests); (err == "") != c.fine {
			t.Errorf("%s imports %s (in tests: %v): %q", c.from, c.to, c.tests, err)
		}
	}
	if roomOf("attic") >= 0 {
		t.Error("a package without a room has one")
	}
}

// Brokers write events through the gateway's Recorder; of audit they may say
// which type, and nothing else.
func TestBrokersKnowOnlyNamesOfEvents(t *testing.T) {
	files := token.NewFileSet()
	catalogue, err := parser.ParseFile(files, filepath.FromSlash("../../gateway/audit/types.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"Type"}
	ast.Inspect(catalogue, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			for _, s := range d.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					known = append(known, name.Name)
				}
			}
		}
		return true
	})
	for path, p := range listPackages(t) {
		if !strings.HasPrefix(path, "brokers/") || !slices.Contains(p.Imports, "gateway/audit") {
			continue
		}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"toolbroker/gateway/audit"` }) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "audit" && x.Obj == nil && !slices.Contains(known, s.Sel.Name) {
						t.Errorf("%s: audit.%s", files.Position(s.Pos()), s.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// roomOf returns the place in rooms of the innermost room that path lies in.
func roomOf(path string) int {
	best := -1
	for i, r := range rooms {
		if within(path, r.room) && (best < 0 || len(r.room) > len(rooms[best].room)) {
			best = i
		}
	}
	return best
}

// allowed says what is wrong with an import, or "". Paths of ours are without the module's name.
func allowed(from string, home int, to string, tests bool) string {
	if strings.Contains(strings.Split(to, "/")[0], ".") {
		for _, h := range homes {
			if strings.HasPrefix(to, h.modules) {
				if slices.ContainsFunc(h.rooms, func(r string) bool { return within(from, r) }) {
					return ""
				}
				return "it belongs to " + strings.Join(h.rooms, ", ")
			}
		}
		return "it has no home; give it one in homes"
	}
	there := roomOf(to)
	if there < 0 {
		return "" // the standard library
	}
	r, room := rooms[home], rooms[there].room
	if room == r.room || slices.Contains(r.imports, room) || tests && slices.Contains(r.tests, room) {
		return ""
	}
	return "that arrow is not in rooms"
}

type listed struct {
	ImportPath, Dir                                          string
	GoFiles, TestGoFiles, Imports, TestImports, XTestImports []string
}

// listPackages asks the go command; the module's name is cut off our paths.
func listPackages(t *testing.T) map[string]listed {
	t.Helper()
	gocmd, err := exec.LookPath("go")
	if err != nil {
		t.Skip("skipped: no go command to list imports with")
	}
	cmd := exec.Command(gocmd, "list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = filepath.FromSlash("../..")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, problems.String())
	}
	cut := func(paths []string) {
		for i := range paths {
			paths[i] = strings.TrimPrefix(paths[i], "toolbroker/")
		}
	}
	all := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath == "toolbroker" {
			continue // the module's root holds no code
		}
		cut(p.Imports)
		cut(p.TestImports)
		cut(p.XTestImports)
		all[strings.TrimPrefix(p.ImportPath, "toolbroker/")] = p
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages", len(all))
	}
	return all
}
