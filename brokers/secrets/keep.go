package secrets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/api"

	"toolbroker/gateway"
)

// A Keeping is an admin's own way to Vault, to put secrets there that the gateway
// later hands out. The gateway itself never writes one.
type Keeping struct {
	Address   string
	CAFile    string // PEM; empty for the system's
	Namespace string
	Token     gateway.Secret
}

// ErrThere says that a secret lies at a path already; nothing was written over it.
var ErrThere = errors.New("a secret is there already")

// Keep puts a new secret into a KV version 2 engine. Its errors hold no value.
func (k Keeping) Keep(ctx context.Context, mount, path string, fields map[string]gateway.Secret) error {
	if strings.Trim(mount, "/") == "" || strings.Trim(path, "/") == "" || len(fields) == 0 {
		return errors.New("keep a secret: no mount, no path or no field")
	}
	client, err := dial(k.Address, k.CAFile, k.Namespace)
	if err != nil {
		return err
	}
	client.SetToken(k.Token.Reveal())
	// Version 1 would take the same request, and keep it where nobody looks.
	about := "sys/internal/ui/mounts/" + mount
	s, err := client.Logical().ReadWithContext(ctx, about)
	if err != nil {
		return worded(about, err)
	}
	if version := kvVersion(s); version != "2" {
		return fmt.Errorf("keep a secret: %s is no KV engine of version 2", mount)
	}
	data := map[string]any{}
	for name, value := range fields {
		data[name] = value.Reveal()
	}
	to := mount + "/data/" + path
	_, err = client.Logical().WriteWithContext(ctx, to, map[string]any{"data": data, "options": map[string]any{"cas": 0}})
	if r, ok := errors.AsType[*api.ResponseError](err); ok && strings.Contains(strings.Join(r.Errors, "\n"), "check-and-set parameter did not match") {
		return fmt.Errorf("%s: %w", to, ErrThere)
	}
	return worded(to, err)
}

func kvVersion(s *api.Secret) string {
	if s == nil || s.Data["type"] != "kv" {
		return ""
	}
	options, _ := s.Data["options"].(map[string]any)
	version, _ := options["version"].(string)
	return version
}
