package serve

import (
	"strings"
	"testing"
	"time"

	"toolbroker/cmd/toolbroker/internal/config"
)

func TestTaskKindsAreWhatTheConfigSays(t *testing.T) {
	c, problems := config.Load("../../../../config.example.yaml")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	c.TaskKinds = append(c.TaskKinds, config.TaskKind{Name: "bare", Scope: c.TaskKinds[0].Scope, Bound: true, Parallel: true}, config.TaskKind{Name: "empty", Scope: c.TaskKinds[0].Scope, Initial: []config.ScopeRow{}})
	kinds, err := taskKinds(c)
	if err != nil {
		t.Fatal(err)
	}
	if k := kinds[0]; !k.Own || k.Parallel || k.Bound || !k.Plain || k.Budget.Calls != 500 || k.Budget.PerDay != 2000 || k.Limits.Depth != 2 || k.Limits.FanOut != 8 ||
		k.Escalate != 30*time.Minute || len(k.Initial.Rows()) != 1 || k.Initial.Rows()[0].Tool != "tracker/get_*" || k.Scope.Rows()[0].Tool != "tracker/*" {
		t.Errorf("%+v", k)
	}
	if k := kinds[1]; k.Initial != nil || k.Own || !k.Bound || !k.Parallel || k.Plain || k.Budget.Calls != 0 || k.Limits.Depth != 0 || k.Escalate != 0 {
		t.Errorf("what is left out is not left out: %+v", k)
	}
	if k := kinds[2]; k.Initial == nil || len(k.Initial.Rows()) != 0 {
		t.Errorf("nothing to begin with became the whole scope: %+v", k)
	}
	c.TaskKinds[0].Initial[0].Verdict = "alow"
	if _, err := taskKinds(c); err == nil || !strings.Contains(err.Error(), "task kind triage: initial: scope: row 1:") {
		t.Errorf("a bad initial row: %v", err)
	}
}
