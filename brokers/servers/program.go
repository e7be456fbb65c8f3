package servers

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

var digestShape = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// An errProgram says that a child's program is not the one that is pinned; the
// digest is ours to say.
type errProgram struct{ is string }

func (e errProgram) Error() string {
	return "its program is not the one that the config pins, but " + e.is
}

// program opens a child's program, checks it against what is pinned, and puts its
// digest on record where it is a new one. What the command then runs is what was
// read here, whatever the path leads to by then; the file stays open for that
// long. Whoever can write into the file itself can still change it between: pin
// what only root may write.
func (s *server) program(cmd *exec.Cmd) (*os.File, error) {
	f, err := os.Open(s.argv[0])
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		f.Close()
		return nil, err
	}
	is := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if s.Digest != "" && is != s.Digest {
		f.Close()
		s.sawProgram(is, audit.ProgramChanged, "not started: it is "+is+", and the config pins "+s.Digest)
		return nil, errProgram{is}
	}
	s.sawProgram(is, "", "")
	if s.Digest != "" {
		runOpened(cmd, f)
	}
	return f, nil
}

// sawProgram remembers the digest of a server's program, and records it where it
// is not the one that was remembered. A refused one is recorded once.
func (s *server) sawProgram(is string, as audit.Type, detail string) {
	p := s.pins
	refused := as != ""
	p.mu.Lock()
	was := p.programs[s.Name]
	if refused {
		was = p.refused[s.Name]
		p.refused[s.Name] = is
	} else {
		delete(p.refused, s.Name)
		p.programs[s.Name] = is
	}
	p.mu.Unlock()
	switch {
	case was == is:
		return
	case refused:
	case was == "":
		as, detail = audit.ProgramSeen, is
	default:
		as, detail = audit.ProgramChanged, "was "+was+", is "+is
	}
	if !refused {
		p.save()
	}
	for _, tenant := range s.Tenants {
		p.all.record(tenant, gateway.Fact{Type: as, Tool: s.asTool(), Detail: detail})
	}
}

// unsafe lists what there is less between a server's child and us than there
// could be.
func (s *server) unsafe() (all []string) {
	if s.kind != stdio {
		return nil
	}
	if s.uid == nil {
		all = append(all, "its child runs as our own user: it can read what we can")
	}
	if s.Floating {
		if why := floating(s.argv); why != "" {
			all = append(all, "floating: "+why)
		}
	}
	return all
}

// account finds whom a child runs as.
func account(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return 0, 0, fmt.Errorf("there is no user %q here", name)
		}
	}
	uid, err = strconv.Atoi(u.Uid)
	if err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("user %q has no number", name)
	case uid == 0:
		return 0, 0, errors.New("a child is not run as root")
	case os.Geteuid() != 0:
		return 0, 0, fmt.Errorf("only root can run a child as %q", name)
	}
	return uid, gid, nil
}

// floating says why a command may run another program tomorrow than today,
// though nobody changed it: it fetches what it names, and names no exact version.
// An option that is not known to take no value makes the rest unreadable, and
// counts as floating, too.
func floating(argv []string) string {
	name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(argv[0]), ".exe"), ".cmd")
	args := argv[1:]
	sub := func(names ...string) bool { return len(args) > 0 && slices.Contains(names, args[0]) }
	switch {
	case name == "env":
		for len(args) > 0 && (strings.Contains(args[0], "=") || strings.HasPrefix(args[0], "-")) {
			args = args[1:]
		}
		if len(args) > 0 {
			return floating(args)
		}
	case slices.Contains([]string{"sh", "bash", "dash", "zsh", "ash", "busybox"}, name):
		for _, word := range strings.FieldsFunc(strings.Join(args, " "), func(r rune) bool { return strings.ContainsRune(" \t\n;&|()`'\"$", r) }) {
			if slices.Contains(fetchers, filepath.Base(word)) {
				return "a shell runs " + filepath.Base(word) + ", whose versions cannot be read here: write the command without a shell"
			}
		}
	case strings.HasPrefix(name, "python") && len(args) > 1 && args[0] == "-m":
		return floating(args[1:])
	case name == "node" && len(args) > 0 && slices.Contains([]string{"npx-cli.js", "npm-cli.js"}, filepath.Base(args[0])):
		return floating(append([]string{strings.TrimSuffix(filepath.Base(args[0]), "-cli.js")}, args[1:]...))
	case name == "npx", name == "bunx", name == "pnpx":
		return npm.floating(name, args)
	case name == "npm" && sub("exec", "x"), name == "pnpm" && sub("dlx"), name == "yarn" && sub("dlx"), name == "bun" && sub("x"):
		return npm.floating(name+" "+args[0], args[1:])
	case name == "uvx":
		return pypi.floating(name, args)
	case name == "uv" && len(args) > 1 && args[0] == "tool" && args[1] == "run":
		return pypi.floating("uv tool run", args[2:])
	case name == "pipx" && sub("run"):
		return pypi.floating("pipx run", args[1:])
	case name == "docker", name == "podman", name == "nerdctl":
		if i := slices.Index(args, "run"); i >= 0 {
			return floatingImage(name+" run", args[i+1:])
		}
	}
	return ""
}

// fetchers are the programs that fetch what they run.
var fetchers = []string{"npx", "npm", "bunx", "bun", "pnpx", "pnpm", "yarn", "uvx", "uv", "pipx", "docker", "podman", "nerdctl"}

// A registry is where packages come from, and how a command line names them.
type registry struct {
	exact    *regexp.Regexp // a package at a version that does not move
	packages []string       // options that name a package
	bare     []string       // options that take no value
	valued   []string       // options that take one, and name no package
	hint     string
}

var (
	npm = registry{
		exact:    regexp.MustCompile(`^(@[\w.-]+/)?[\w.-]+@\d+\.\d+\.\d+(-[\w.-]+)?(\+[\w.-]+)?$`),
		packages: []string{"-p", "--package"},
		bare:     []string{"-y", "--yes", "--no", "-q", "--quiet", "-s", "--silent", "--offline", "--prefer-offline", "--prefer-online", "--bun", "--ignore-scripts"},
		hint:     "name@1.2.3",
	}
	pypi = registry{
		exact:    regexp.MustCompile(`^[\w.-]+(\[[\w.,-]+\])?(==|@)\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?$`),
		packages: []string{"--from", "--spec", "--with"},
		bare:     []string{"-q", "--quiet", "--offline", "--isolated", "--no-cache", "-n", "--no-config", "--no-env-file"},
		valued:   []string{"--python", "-p"},
		hint:     "name==1.2.3",
	}
)

func (r registry) floating(command string, args []string) string {
	var named []string
	command = strconv.QuoteToASCII(command)
	first := ""
	for i := 0; i < len(args) && first == ""; i++ {
		option, value, joined := strings.Cut(args[i], "=")
		switch {
		case args[i] == "--":
		case !strings.HasPrefix(args[i], "-"):
			first = args[i]
		case slices.Contains(r.packages, option) || slices.Contains(r.valued, option):
			if !joined {
				if i++; i == len(args) {
					return fmt.Sprintf("%s: %s lacks its value", command, option)
				}
				value = args[i]
			}
			if slices.Contains(r.packages, option) {
				named = append(named, value)
			}
		case !slices.Contains(r.bare, args[i]):
			return fmt.Sprintf("%s: what %s means is not known here, so its versions cannot be read", command, strconv.QuoteToASCII(clip(option)))
		}
	}
	// --with adds to what runs; the others say what runs, and then the first is a
	// command of it.
	if !slices.ContainsFunc(args, func(a string) bool {
		option, _, _ := strings.Cut(a, "=")
		return slices.Contains(r.packages, option) && option != "--with"
	}) {
		named = append(named, first)
	}
	for _, p := range named {
		if !r.exact.MatchString(p) {
			return fmt.Sprintf("%s fetches %s, which is no exact version: write %s", command, strconv.QuoteToASCII(clip(p)), r.hint)
		}
	}
	return ""
}

var (
	imageDigest = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	// What takes no value of a container's options; the others take one.
	bareFlags = []string{"--rm", "--init", "--interactive", "--tty", "--detach", "--read-only", "--privileged", "--no-healthcheck",
		"--oom-kill-disable", "--publish-all", "--quiet", "--sig-proxy", "--replace", "--rmi"}
	bareLetters = "itdPq"
)

func floatingImage(command string, args []string) string {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case !strings.HasPrefix(a, "-"):
			if !imageDigest.MatchString(a) {
				return fmt.Sprintf("%s fetches %s, which has no digest: write image@sha256:…", command, strconv.QuoteToASCII(clip(a)))
			}
			return ""
		case strings.HasPrefix(a, "--"):
			if !strings.Contains(a, "=") && !slices.Contains(bareFlags, a) {
				i++
			}
		case strings.Trim(a[1:], bareLetters) == "":
		case len(a) == 2:
			i++
		}
	}
	return command + " names no image"
}
