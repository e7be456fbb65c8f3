package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// A tool is one of the server's.
type tool struct {
	name, about string
	properties  object
	required    []string
	must        bool // it always makes a task: clients that take none are refused
	asks        bool // it asks the human
	call        func(ctx context.Context, j *jobs, c call) (object, error)
}

// A call is what a client wants of a tool, and what it can do itself.
type call struct {
	Name           string
	Arguments      json.RawMessage
	InputResponses map[string]json.RawMessage
	RequestState   string
	tasks          bool // it takes tasks
}

var tools = []tool{
	{
		name: "greet", about: "Says hello at once.", properties: object{"name": object{"type": "string"}}, required: []string{"name"},
		call: func(_ context.Context, _ *jobs, c call) (object, error) {
			var in struct{ Name string }
			if err := json.Unmarshal(c.Arguments, &in); err != nil {
				return nil, badParams("greet wants a name")
			}
			return text("Hello, "+in.Name+"!", false), nil
		},
	},
	{
		name: "slow_compute", about: "Takes as many seconds as it is told.",
		properties: object{"seconds": object{"type": "number", "minimum": 0, "maximum": 3600}, "label": object{"type": "string"}}, required: []string{"seconds"},
		call: func(ctx context.Context, j *jobs, c call) (object, error) {
			var in struct {
				Seconds float64
				Label   string
			}
			if err := json.Unmarshal(c.Arguments, &in); err != nil || in.Seconds < 0 || in.Seconds > 3600 {
				return nil, badParams("slow_compute wants seconds, up to 3600")
			}
			took := time.Duration(in.Seconds * float64(time.Second))
			done := text(fmt.Sprintf("computed %s in %v", in.Label, took), false)
			if c.tasks && took > 0 {
				return j.after(took, done, nil), nil
			}
			return done, wait(ctx, took)
		},
	},
	{
		name: "failing_job", about: "Fails after a moment, as tools do.", must: true,
		call: func(_ context.Context, j *jobs, _ call) (object, error) {
			return j.after(j.Took, text("the job failed, as it always does", true), nil), nil
		},
	},
	{
		name: "protocol_error_job", about: "Fails after a moment, as servers do.", must: true,
		call: func(_ context.Context, j *jobs, _ call) (object, error) {
			return j.after(j.Took, nil, &fault{Code: -32603, Message: "the job broke"}), nil
		},
	},
	{
		name: "confirm_delete", about: "Deletes nothing, once the human agrees.", properties: object{"filename": object{"type": "string"}}, required: []string{"filename"}, must: true, asks: true,
		call: func(_ context.Context, j *jobs, c call) (object, error) {
			var in struct{ Filename string }
			if err := json.Unmarshal(c.Arguments, &in); err != nil {
				return nil, badParams("confirm_delete wants a filename")
			}
			return j.start(&job{
				asks: map[string]object{"confirm": elicit("Delete "+in.Filename+"?", "confirm", "boolean")},
				then: func(a map[string]answer) object {
					if yes, _ := a["confirm"].Content["confirm"].(bool); a["confirm"].Action != "accept" || !yes {
						return text("kept "+in.Filename, false)
					}
					return text("deleted "+in.Filename, false)
				},
			}), nil
		},
	},
	{
		name: "multi_input", about: "Asks two questions at once.", must: true, asks: true,
		call: func(_ context.Context, j *jobs, _ call) (object, error) {
			return j.start(&job{
				asks: map[string]object{"name": elicit("What is your name?", "name", "string"), "color": elicit("Which color?", "color", "string")},
				then: func(a map[string]answer) object {
					return text(fmt.Sprint(a["name"].Content["name"], " likes ", a["color"].Content["color"]), false)
				},
			}), nil
		},
	},
	{
		name: "test_tool_with_task", about: "Asks for a name first, and makes a task of the rest.", must: true, asks: true,
		call: func(_ context.Context, j *jobs, c call) (object, error) {
			const round = "test_tool_with_task/name"
			var a answer
			if raw, ok := c.InputResponses["user_name"]; ok {
				if err := json.Unmarshal(raw, &a); err != nil || a.Action == "" {
					return nil, badParams("user_name is no answer to an elicitation")
				}
				if !j.sealed(c.RequestState, round) {
					return nil, badParams("the state is not what it was")
				}
				return j.after(j.Took, text(fmt.Sprint("Hello, ", a.Content["name"], "!"), false), nil), nil
			}
			return object{
				"resultType": inputRequired, "requestState": j.seal(round),
				"inputRequests": object{"user_name": elicit("What is your name?", "name", "string")},
			}, nil
		},
	},
}

// shown is the tool as tools/list says it.
func (t tool) shown() object {
	schema := object{"type": "object", "properties": object{}}
	if t.properties != nil {
		schema["properties"] = t.properties
	}
	if t.required != nil {
		schema["required"] = t.required
	}
	return object{"name": t.name, "description": t.about, "inputSchema": schema}
}
