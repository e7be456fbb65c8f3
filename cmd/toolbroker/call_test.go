package main

import (
	"encoding/json"
	"testing"
)

func TestArguments(t *testing.T) {
	var schema struct {
		Properties map[string]struct{ Type any }
	}
	if err := json.Unmarshal([]byte(`{"properties":{"id":{"type":"integer"},"title":{"type":"string"},"odd":{"type":["string","null"]}}}`), &schema); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		whole string
		pairs []string
		want  string // empty: a wrong command line
	}{
		{"", nil, `{}`},
		{"", []string{"id=7"}, `{"id":7}`},
		{"", []string{"title=7"}, `{"title":"7"}`},
		{"", []string{"title=a=b"}, `{"title":"a=b"}`},
		{"", []string{"unknown=true"}, `{"unknown":true}`},
		{"", []string{"unknown=yes it is"}, `{"unknown":"yes it is"}`},
		{"", []string{`unknown={"a":[1]}`}, `{"unknown":{"a":[1]}}`},
		{"", []string{"odd=null"}, `{"odd":null}`},
		{`{"id": 9007199254740993}`, nil, `{"id": 9007199254740993}`},
		{`{"id":7}`, []string{"id=7"}, ""},
		{`[1]`, nil, ""},
		{`{`, nil, ""},
		{"", []string{"id"}, ""},
		{"", []string{"=7"}, ""},
		{"", []string{"id=7", "id=8"}, ""},
	} {
		got, err := arguments(tt.whole, tt.pairs, schema)
		if _, wrong := err.(usageError); string(got) != tt.want || wrong != (tt.want == "") {
			t.Errorf("%q %q: %s, %v; want %s", tt.whole, tt.pairs, got, err, tt.want)
		}
	}
}
