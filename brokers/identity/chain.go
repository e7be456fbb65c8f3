package identity

import (
	"errors"

	"toolbroker/gateway"
)

// actors returns the actors below a token's current one (RFC 8693, section
// 4.1): the one who acted last before it stands first. The current actor is the
// outermost act, for a rule to name: "{act.sub}" acts for "{sub}".
func actors(c claims, depth int) (nested []claims, err error) {
	for at := c; ; {
		v, there := at["act"]
		if !there {
			break
		}
		act, ok := v.(map[string]any)
		if !ok || claims(act).text("sub") == "" {
			return nil, refuse(gateway.WhyMalformed, errors.New("an act that names nobody"))
		}
		if len(nested) == depth {
			return nil, refuse(gateway.WhyMapping, errors.New("more actors than act_depth allows"))
		}
		at = act
		nested = append(nested, at)
	}
	if len(nested) > 0 {
		nested = nested[1:]
	}
	return nested, nil
}

// mayAct lists who may act for the subject: "sub" of the token's own issuer, or
// "ISSUER|sub" under the config's name for another. An entry that says anything
// more about them names nobody: we could not hold them to it.
func mayAct(c claims, names map[string]string) []string {
	all, ok := c["may_act"].([]any)
	if !ok {
		all = []any{c["may_act"]}
	}
	var out []string
	for _, v := range all {
		o, _ := v.(map[string]any)
		who, want := claims(o).text("sub"), 1
		if !insertable(who) {
			continue
		}
		if iss := claims(o).text("iss"); iss != "" {
			if names[iss] == "" {
				continue
			}
			who, want = names[iss]+"|"+who, 2
		}
		if len(o) == want && len(out) < 16 {
			out = append(out, who)
		}
	}
	return out
}
