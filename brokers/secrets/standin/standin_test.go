package standin

import (
	"encoding/json"
	"net/http"
	"testing"
)

func TestStartRefusesWhatIsNotLoopback(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0", "localhost:0", "example.com:80", ""} {
		if s, err := Start(addr); err == nil {
			s.Close()
			t.Errorf("listens on %q", addr)
		}
	}
}

// Nobody can take it for a Vault, and without a token it says nothing else.
func TestSaysWhatItIs(t *testing.T) {
	s, err := Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := http.Get(s.Address() + "/v1/sys/health")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var health struct {
		Version string
		Name    string `json:"cluster_name"`
	}
	if err := json.NewDecoder(r.Body).Decode(&health); err != nil || health.Version != "stand-in" || health.Name != "toolbroker stand-in, not a Vault" {
		t.Errorf("health: %+v %v", health, err)
	}
	s.PutKV("x", map[string]any{"token": "value"})
	r, err = http.Get(s.Address() + "/v1/secret/data/x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("a secret without a token: %s", r.Status)
	}
}
