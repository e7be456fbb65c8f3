package authz

// Severities is every code that a finding can have.
var Severities = severities

// OneOf is a name out of n.
func OneOf(n Names) (string, bool) { return n.one() }
