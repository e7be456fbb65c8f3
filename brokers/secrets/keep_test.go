package secrets

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"toolbroker/gateway"
)

// An admin's secret goes where bindings look, once, and nothing says it.
func TestKeep(t *testing.T) {
	b := realVault(t)
	if status, _ := b.ask(t, "POST", "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}}); status != 204 {
		t.Fatal(status)
	}
	k := Keeping{Address: b.address, Token: gateway.NewSecret(b.root)}
	fields := func(v string) map[string]gateway.Secret {
		return map[string]gateway.Secret{"token": gateway.NewSecret(v), "key": gateway.NewSecret("k")}
	}
	if err := k.Keep(t.Context(), "secret", "mcp/github", fields(canary)); err != nil {
		t.Fatal(err)
	}
	status, body := b.ask(t, "GET", "secret/data/mcp/github", nil)
	if said := fmt.Sprint(body); status != 200 || !strings.Contains(said, canary) {
		t.Errorf("%d %s", status, said)
	}
	nobody := k
	nobody.Token = gateway.NewSecret("nobody")
	away := k
	away.Address = "http://127.0.0.1:1"
	for name, c := range map[string]struct {
		k           Keeping
		mount, path string
		want        error
	}{
		"what is there":      {k, "secret", "mcp/github", ErrThere},
		"version 1":          {k, "old", "mcp/github", nil},
		"another engine":     {k, "ssh", "mcp/github", nil},
		"no engine":          {k, "nowhere", "mcp/github", nil},
		"no path":            {k, "secret", "/", nil},
		"nobody":             {nobody, "secret", "mcp/other", nil},
		"no Vault":           {away, "secret", "mcp/other", nil},
		"plain off loopback": {Keeping{Address: "http://vault.example.com"}, "secret", "mcp/other", nil},
	} {
		err := c.k.Keep(t.Context(), c.mount, c.path, fields("another-canary-value"))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), b.root)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, body := b.ask(t, "GET", "secret/data/mcp/github", nil); !strings.Contains(fmt.Sprint(body), canary) {
		t.Error("it was written over")
	}
	if status, _ := b.ask(t, "GET", "old/data/mcp/github", nil); status != 404 {
		t.Errorf("written into version 1: %d", status)
	}
}
