package gateway_test

import (
	"encoding/json"
	"strings"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// The whole hot path but for HTTP and the server: identify, task, policy and two
// scopes, a durable decision, the outcome. What it costs above its CPU is one
// fsync, shared by all calls under way.
func BenchmarkHandle(b *testing.B) {
	h := gatewaytest.New(b, func(c *gateway.Config) { c.CallsPerSecond = 1e9 })
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := h.Call(b.Context(), "files__read", `{"path":"x"}`); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// What blanking costs a 64 KiB result.
func BenchmarkRedact(b *testing.B) {
	raw, _ := json.Marshal(map[string]string{"x": strings.Repeat("nothing to see here, ", 3000)})
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := gateway.BlankOut(raw, "canary-canary-canary"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadArguments(b *testing.B) {
	const args = `{"path":"some/file","amount":12.5,"to":{"iban":"DE00"},"tags":["a","b","c"]}`
	b.ReportAllocs()
	for b.Loop() {
		if err := gateway.CheckArguments(args); err != nil {
			b.Fatal(err)
		}
	}
}

// What it costs to ask whether a 64 KiB result says that it failed.
func BenchmarkFailed(b *testing.B) {
	raw, _ := json.Marshal(map[string]any{"content": []any{map[string]string{"type": "text", "text": strings.Repeat("nothing to see here, ", 3000)}}})
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if (gateway.Result{Raw: raw}).Failed() {
			b.Fatal("it did not")
		}
	}
}
