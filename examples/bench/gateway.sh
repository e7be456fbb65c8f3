#!/usr/bin/env bash
# gateway.sh DIR HASH: becomes the gateway of the target file beside it. Its Redis
# ends with it.
set -euo pipefail
dir=$1 hash=$2
{
	for i in $(seq 0 989); do
		echo "p, agent:other-$i, acme, bench, other/tool-$((i % 100)), call, , allow"
	done
	for row in "echo" "blob" "*"; do echo "p, agent:bench, acme, bench, bench/$row, call, , allow"; done
	echo "p, agent:bench, acme, bench, task:bench, start, , allow"
	for i in $(seq 6); do echo "p, agent:bench, acme, bench, bench/never-$i, call, , deny"; done
} >"$dir/policy.csv"
cat >"$dir/config.yaml" <<Y
data_dir: data
agent: {listen: "127.0.0.1:9210"}
console: {listen: "127.0.0.1:9211"}
management: {listen: "127.0.0.1:9212"}
redis: {url: "redis://127.0.0.1:9213"}
policy: {file: policy.csv}
tenants: [acme]
identity:
  api_keys: [{id: bench, hash: "$hash", tenant: acme, principal: "agent:bench", owner: alice, expires: 2099-01-01, default_task: bench}]
operators:
  - {name: alice, password_hash: "\$argon2id\$v=19\$m=65536,t=3,p=2\$c2FtcGxlLXNhbHQtMDAwMA\$Hk9Ww6sRkCwq6Xz5TtW2nQe7mB1cV0yLr8uJ4aZ3dXo", roles: [admin], tenants: [acme]}
task_kinds:
  - {name: bench, purpose: "To measure.", self_start: true, scope: [{tool: "bench/**", action: call, verdict: allow}]}
limits: {calls_per_second: 100000, calls_per_tenant_per_day: 1000000000, calls_under_way: 10000, calls_under_way_per_tenant: 10000}
servers:
  - {name: bench, url: "http://127.0.0.1:9100/mcp"}
Y
cd "$dir"
setpriv --pdeathsig TERM redis-server --bind 127.0.0.1 --port 9213 --save '' --appendonly no --dir "$dir" >redis.log 2>&1 </dev/null &
exec "$TOOLBROKER" serve --config config.yaml
