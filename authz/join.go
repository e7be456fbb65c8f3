package authz

import "slices"

// And returns the decision that holds where both d and e must: the stricter
// verdict, and whoever must agree to either. It is how a task keeps to what the
// tasks above it may do: the same policy is asked about each.
func (d Decision) And(e Decision, about string) Decision {
	switch {
	case e.Verdict == Deny && d.Verdict != Deny:
		e.Reason = about + ": " + e.Reason
		e.Conditional = e.Conditional || d.Conditional
		return e
	case d.Verdict == Deny:
		d.Conditional = d.Conditional || e.Conditional
		return d
	}
	sum := Decision{Verdict: min(d.Verdict, e.Verdict), Reason: d.Reason, Conditional: d.Conditional || e.Conditional, Revision: d.Revision}
	if d.Revision != e.Revision { // the policy changed in between; what was asked first is asked again
		return Decision{Reason: "the policy changed while it was asked", Conditional: sum.Conditional, Revision: e.Revision}
	}
	sum.Rules = append(slices.Clone(d.Rules), e.Rules...)
	sum.Cited = append(slices.Clone(d.Cited), e.Cited...)
	sum.Need = slices.Clone(d.Need)
	for _, n := range e.Need {
		if !slices.Contains(sum.Need, n) {
			sum.Need = append(sum.Need, n)
		}
	}
	if len(e.Need) > 0 {
		sum.Reason += "; " + about + ": " + e.Reason
	}
	return sum
}

// Match reports whether a name is one that a pattern of policy's covers: `*` is any
// run without a `/`, `**` any run, and a pattern that is only `*` covers everything.
func Match(name, pattern string) bool { return glob(name, pattern) }
