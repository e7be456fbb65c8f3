package servers

import (
	"maps"
	"slices"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// maxNulls bounds how many arguments are looked at in this way.
const maxNulls = 32

// given is arguments as they are held against a schema: without those that are null,
// where they may be left out and their own schema knows no null. Clients that write
// every argument write so one that they leave out; what is sent stays as it is.
func given(s *jsonschema.Schema, v any) (held any) {
	args, ok := v.(map[string]any)
	if !ok {
		return v
	}
	defer func() {
		if recover() != nil {
			held = args // the check itself says that it cannot be made
		}
	}()
	for range 8 { // what names itself ends too
		if s.Ref == nil || s.Properties != nil {
			break
		}
		s = s.Ref
	}
	var left map[string]any
	n := 0
	for name, of := range s.Properties {
		value, there := args[name]
		if !there || value != nil || slices.Contains(s.Required, name) {
			continue
		}
		if n++; n > maxNulls {
			break
		}
		if of.Validate(nil) == nil {
			continue
		}
		if left == nil {
			left = maps.Clone(args)
		}
		delete(left, name)
	}
	if left == nil {
		return args
	}
	return left
}
