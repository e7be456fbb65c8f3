// Package authz answers one question: may this principal, on this task, do
// this to that, and must a human say yes first?
//
// It holds no connection and keeps no record of what it was asked; the gateway
// enforces and remembers.
package authz

import (
	"encoding/json"
	"strconv"
	"time"
)

// Verdict is the short form of a [Decision]. The zero Verdict is Deny.
type Verdict uint8

// The verdicts, strictest first.
const (
	Deny Verdict = iota
	Approve
	Allow
)

func (v Verdict) String() string {
	switch v {
	case Approve:
		return "approve"
	case Allow:
		return "allow"
	}
	return "deny"
}

// Action is what is done to the thing named in a [Request].
type Action string

// The actions of the policy file. A [List] of a tool is granted when some row
// could grant a [Call] of it for some arguments at some time.
const (
	List      Action = "list"
	Call      Action = "call"
	Read      Action = "read"
	Get       Action = "get"
	Complete  Action = "complete"
	Subscribe Action = "subscribe"
	Elicit    Action = "elicit"
	Sample    Action = "sample"
	Roots     Action = "roots"
	Start     Action = "start"
	Delegate  Action = "delegate"
	Escalate  Action = "escalate"
)

// A Subject is who asks.
type Subject struct {
	Principal string // the workload's identity
	Tenant    string
}

// A Request is one question. Its strings are data: none is ever parsed as
// policy.
type Request struct {
	Subject Subject
	Task    string          // the task's kind, never free text from an agent
	Tool    string          // "server/tool"; for Start and Delegate, "task:<kind>"
	Action  Action          // what is to be done to it
	Could   bool            // ask whether some row could grant it for some arguments at some time, as List does
	Args    json.RawMessage // the call's arguments, an object; nil where there are none
	Time    time.Time       // what `hour` and `weekday` in a condition are read from, in UTC
	Scopes  []*Scope        // the task's scope and every ancestor's; each must grant too
}

// A Rule is one row that decided, with the place to find it.
type Rule struct {
	File string `json:"file"` // the policy file, or "scope of <task>" for a row of a scope
	Line int    `json:"line"` // counted from 1; in a scope, the row's number
	Text string `json:"text"` // the row as written
}

// String is the rule as a record cites it.
func (r Rule) String() string { return r.File + ":" + strconv.Itoa(r.Line) + ": " + r.Text }

func cite(rules []Rule) []string {
	all := make([]string, len(rules))
	for i, r := range rules {
		all[i] = r.String()
	}
	return all
}

// A Requirement is someone who must agree before a call runs.
type Requirement struct {
	N     int    `json:"n"`               // how many, at least 1
	Group string `json:"group,omitempty"` // of which operators' group, without "group:"; empty: any operator
	Rule  Rule   `json:"rule"`            // the row that asks
}

// String says whom r asks: "2 of group:sre", "an operator".
func (r Requirement) String() string { return verdict{n: r.N, group: r.Group}.asks() }

// A Decision is the answer. The zero Decision refuses. Its lists may be another
// decision's too: they are to be read, not changed.
type Decision struct {
	Verdict     Verdict       // Deny, Approve or Allow; the zero Verdict is Deny
	Rules       []Rule        // file, line and text of every row that decided
	Cited       []string      // the same as a record cites them: "FILE:LINE: row"
	Need        []Requirement // who must still agree; every one of them, when Verdict is Approve
	Reason      string        // for the log and the operator, in words; never for the agent
	Conditional bool          // some row that was considered read the arguments
	Revision    string        // the policy that answered, "sha256:<hex>"
}
