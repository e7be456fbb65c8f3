package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"toolbroker/authz"
)

// BenchmarkDecide asks a policy of so many rows: roles, tenants and tools as an
// organisation has them, a quarter of the rows under a condition.
func BenchmarkDecide(b *testing.B) {
	for _, rows := range []int{10, 1_000, 10_000} {
		var text strings.Builder
		text.WriteString("p, *, *, *, s0/t3, call, args.n > 100, deny\np, *, *, *, shell/*, *, , deny\n")
		for i := range rows / 8 {
			fmt.Fprintf(&text, "g, spiffe://corp/agent/a%d-*, role:r%d, acme\n", i, i)
		}
		for i := range rows {
			when := ""
			if i%4 == 3 {
				when = fmt.Sprintf("args.n <= %d && args.repo =~ '^acme/'", i)
			}
			fmt.Fprintf(&text, "p, role:r%d, acme, k, s%d/t%d, call, %s, allow\n", i/8, i/64, i%64, when)
		}
		text.WriteString("g, spiffe://corp/agent/a0-*, role:r0, *\np, role:r0, *, k, s0/t1, read, , allow\n")
		p := parse(b, text.String())
		small := scope(b, authz.ScopeRow{Tool: "s0/*", Action: "call", Verdict: "allow"})
		for _, c := range []struct {
			name string
			r    authz.Request
		}{
			{"unconditional", ask("spiffe://corp/agent/a0-1", "k", "s0/t1", `{"n":3,"repo":"acme/x"}`)},
			{"conditional", ask("spiffe://corp/agent/a0-1", "k", "s0/t3", `{"n":3,"repo":"acme/x"}`)},
		} {
			if d := p.Decide(c.r); d.Verdict != authz.Allow {
				b.Fatal(d)
			}
			b.Run(fmt.Sprintf("%s/%d", c.name, rows), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(c.r)
				}
			})
			c.r.Scopes = []*authz.Scope{small}
			b.Run(fmt.Sprintf("%s+scope/%d", c.name, rows), func(b *testing.B) {
				for b.Loop() {
					p.Decide(c.r)
				}
			})
		}
		b.Run(fmt.Sprintf("new/%d", rows), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				p.Decide(ask(fmt.Sprintf("spiffe://corp/agent/a0-%d", i), "k", "s0/t1", ""))
			}
		})
		b.Run(fmt.Sprintf("parse/%d", rows), func(b *testing.B) {
			for b.Loop() {
				parse(b, text.String())
			}
		})
	}
}
