package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	goredis "github.com/redis/go-redis/v9"
)

// A Script is a transition: a Lua constant that Redis runs as one step. Data
// comes in ARGV, every key it touches in KEYS; no text is ever put together
// into a script. It returns a flat list of strings and integers, of which the
// first says how it went. Scripts begin with [Clock] when time matters.
type Script struct{ lua *goredis.Script }

// NewScript wraps a constant.
func NewScript(lua string) *Script { return &Script{goredis.NewScript(lua)} }

// Clock is how a script begins that needs the time: now, in milliseconds.
const Clock = `local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

// Run runs a script on the keys of one tenant. An error leaves open whether it
// ran. The script is sent whole only to a Redis that does not have it yet.
func (s *Store) Run(ctx context.Context, sc *Script, keys []Key, args ...any) ([]string, error) {
	for _, k := range keys {
		if k.name == "" || k.tenant != keys[0].tenant {
			return nil, fmt.Errorf("%w: a script's keys must be one tenant's", ErrKey)
		}
	}
	reply, err := s.run(ctx, sc, keys, args)
	if err != nil {
		return nil, fmt.Errorf("redis: script: %w", err)
	}
	if len(reply) == 0 {
		return nil, errors.New("redis: script: empty reply")
	}
	out := make([]string, len(reply))
	for i, v := range reply {
		switch v := v.(type) {
		case string:
			out[i] = v
		case int64:
			out[i] = strconv.FormatInt(v, 10)
		case nil:
		default:
			return nil, fmt.Errorf("redis: script: a reply of %T", v)
		}
	}
	return out, nil
}

// run is the client's own Run with less memory: a key is handed over where it is.
func (s *Store) run(ctx context.Context, sc *Script, keys []Key, args []any) ([]any, error) {
	call := make([]any, 3, 3+len(keys)+len(args))
	call[0], call[1], call[2] = "evalsha", sc.lua.Hash(), len(keys)
	for i := range keys {
		call = append(call, &keys[i].name)
	}
	cmd := goredis.NewSliceCmd(ctx, append(call, args...)...)
	err := s.client.Process(ctx, cmd)
	if goredis.HasErrorPrefix(err, "NOSCRIPT") {
		return sc.lua.Eval(ctx, s.client, names(keys), args...).Slice()
	}
	return cmd.Val(), err
}
