package sessions

import (
	"context"
	"errors"
	"slices"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// Most agents never end their sessions: they go away, and come back with a new one.
// So a workload that has as many as it may gets its new one all the same, and the one
// that was not used for longest ends as if its agent had ended it. Which that is
// costs nothing while sessions are used: a session itself says when it was, and the
// list of its workload's only knows a time before; where room is needed, the list is
// brought up to date from its front, until what stands there is as it says.

const (
	atFront   = 64  // sessions that are brought up to date at once
	tries     = 100 // to make room, beyond those that it takes to bring the whole list up to date: others of the workload take it
	whoseLife = 30  // lives of a session, since the last was opened, for which a workload's are listed
)

// used brings some of a workload's list up to date, and returns what is at its front
// then, or nothing where that alone makes room. KEYS: the workload's, sessions. ARGV:
// their digests.
var used = redis.NewScript(`
local room = false
for i = 2, #KEYS do
  local at = redis.call('HGET', KEYS[i], 'used')
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZREM', KEYS[1], ARGV[i-1])
    room = true
  elseif at then
    redis.call('ZADD', KEYS[1], 'XX', at, ARGV[i-1])
  end
end
if room then return {''} end
local front = redis.call('ZRANGE', KEYS[1], 0, 0)
return {front[1] or ''}`)

// makeRoom ends the session of a workload that was not used for longest, if what was
// at the front of its list has that among it.
func (s *Sessions) makeRoom(ctx context.Context, whose redis.Key, front []string) error {
	keys, args := []redis.Key{whose}, []any{}
	for _, digest := range front {
		k, err := s.Store.Key(redis.Shared, redis.AgentSession, digest)
		if err != nil {
			return err
		}
		keys, args = append(keys, k), append(args, digest)
	}
	reply, err := s.Store.Run(ctx, used, keys, args...)
	if err != nil {
		return err
	}
	oldest := slices.Index(front, reply[0])
	if oldest < 0 {
		return nil // there is room, or what is at the front now has to be looked at first
	}
	k := keys[oldest+1]
	r, err := s.read(ctx, k)
	if errors.Is(err, gateway.ErrNotFound) { // as in Close; the list is brought up to date at the next try
		s.shut(k)
		return s.Store.Del(ctx, k)
	}
	if err != nil {
		return err
	}
	return s.finish(ctx, k, reply[0], r)
}
