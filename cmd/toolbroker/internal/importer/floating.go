package importer

import (
	"regexp"
	"slices"
	"strings"
)

var (
	exact  = regexp.MustCompile(`^v?\d+\.\d+(\.\d+)?([-+.][0-9A-Za-z.+-]+)?$`)
	commit = regexp.MustCompile(`[@#][0-9a-f]{40}$`)
)

// floating returns what a command fetches and runs at its newest, or "": a package
// without an exact version, an image without a digest.
func floating(command string, args []string) string {
	switch program(command) {
	case "npx", "bunx", "pnpx":
		return npm(args)
	case "npm", "pnpm", "yarn", "bun":
		if len(args) > 0 && slices.Contains([]string{"exec", "x", "dlx"}, args[0]) {
			return npm(args[1:])
		}
	case "uvx":
		return python(args)
	case "uv":
		if len(args) > 1 && args[0] == "tool" && args[1] == "run" {
			return python(args[2:])
		}
		if len(args) > 0 && args[0] == "run" {
			for i, a := range args[:len(args)-1] {
				if a == "--with" {
					return python(args[i+1 : i+2])
				}
			}
		}
	case "pipx":
		if len(args) > 0 && args[0] == "run" {
			return python(args[1:])
		}
	case "docker", "podman", "nerdctl":
		return image(args)
	}
	return ""
}

// first returns the first argument that is neither a flag nor a flag's value, or
// what one of the flags in names says instead.
func first(args []string, names, valued []string) string {
	for i := 0; i < len(args); i++ {
		name, value, assigned := strings.Cut(args[i], "=")
		switch {
		case slices.Contains(names, name) && assigned:
			return value
		case slices.Contains(names, name) && i+1 < len(args):
			return args[i+1]
		case slices.Contains(valued, args[i]):
			i++
		case !strings.HasPrefix(args[i], "-"):
			return args[i]
		}
	}
	return ""
}

func npm(args []string) string {
	name := first(args, []string{"-p", "--package"}, []string{"-c", "--call", "-w", "--workspace", "--prefix", "--registry", "--cache"})
	if local(name) || commit.MatchString(name) {
		return ""
	}
	if at := strings.LastIndex(name, "@"); at > 0 && exact.MatchString(name[at+1:]) {
		return ""
	}
	return name
}

func python(args []string) string {
	name := first(args, []string{"--from", "--spec"}, []string{"--with", "--python", "-p", "--index-url", "--extra-index-url", "--index", "--default-index", "--directory", "--refresh-package", "--env-file"})
	if local(name) || commit.MatchString(name) {
		return ""
	}
	if i := strings.LastIndexAny(name, "=@"); i > 0 && exact.MatchString(name[i+1:]) && (name[i] == '@' || strings.Contains(name, "==")) {
		return ""
	}
	return name
}

func image(args []string) string {
	if len(args) == 0 || args[0] != "run" && !(len(args) > 1 && args[0] == "container" && args[1] == "run") {
		return ""
	}
	args = args[slices.Index(args, "run")+1:]
	name := first(args, nil, []string{
		"-e", "--env", "--env-file", "-v", "--volume", "--mount", "--name", "--network", "--net", "-p", "--publish", "-w", "--workdir", "-u", "--user",
		"--entrypoint", "--platform", "--add-host", "-l", "--label", "-m", "--memory", "--cpus", "--pull", "-h", "--hostname", "--dns", "--tmpfs", "--cap-add", "--cap-drop", "--security-opt", "--gpus", "--log-driver",
	})
	if strings.Contains(name, "@sha256:") {
		return ""
	}
	return name
}

// local reports whether a package is a folder or a file on this machine, or none.
func local(name string) bool {
	return name == "" || name == removed || strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "~") || strings.HasPrefix(name, "file:")
}
