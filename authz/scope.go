package authz

// A ScopeRow is one row of a task's scope, as JSON carries it. It names neither
// who nor tenant: a scope can only be its task's.
type ScopeRow struct {
	Tool    string `json:"tool"`
	Action  string `json:"action"`
	When    string `json:"when,omitempty"`
	Verdict string `json:"verdict"`
}

// A Scope is the widest reach of a task. It never changes. Its JSON is its rows.
type Scope struct {
	rows []ScopeRow
}
