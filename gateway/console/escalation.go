package console

import "strings"

// kindEscalation marks an approval request by which an agent asks for more scope.
const kindEscalation = "escalation"

// A wish is what an escalation asks for, read from its arguments. It is there to
// be understood quickly; the arguments stand below it, whole.
type wish struct {
	Tools  []Shown
	Reason *Shown
	Rest   []Row // such as how long
}

// wishOf returns nil where the arguments do not say which tools are meant.
func wishOf(a Arguments) *wish {
	var w wish
	inside := "" // the member whose items come next
	for _, r := range a.Rows {
		if r.Depth > 0 {
			if inside == "tools" && r.Depth == 1 && r.Value != nil {
				w.Tools = append(w.Tools, *r.Value)
			}
			continue
		}
		if inside = ""; r.Name == nil {
			continue
		}
		switch name := r.Name.String(); {
		case name == "tools":
			if inside = name; r.Value != nil {
				w.Tools = append(w.Tools, *r.Value)
			}
		case name == "reason" && r.Value != nil:
			w.Reason = r.Value
		case r.Value != nil:
			w.Rest = append(w.Rest, r)
		}
	}
	if len(w.Tools) == 0 {
		return nil
	}
	return &w
}

// assertedWords names claims as the page calls them.
func assertedWords(names []string) string {
	words := map[string]string{"on_behalf_of": "on whose behalf it is", "owner": "who owns it", "purpose": "what it is for", "reference": "its reference", "labels": "its labels", "approvers": "who may approve"}
	var out []string
	for _, n := range names {
		if w, ok := words[n]; ok {
			n = w
		}
		out = append(out, n)
	}
	return strings.Join(out, ", ")
}
