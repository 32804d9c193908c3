#!/bin/sh
# Show what would run where, then train there: launch/ssh.sh HOSTS [RECIPE] [options of zmqrl launch and zmqrl train]
# HOSTS is a list (one,node[01-04]:8), a hostfile or a .toml file. launch/hosts has examples.
set -eu
zmqrl=${ZMQRL:-$(dirname "$0")/../.venv/bin/zmqrl}
if [ $# -eq 0 ]; then
	sed -n '2,3s/^# //p' "$0" >&2
	exit 2
fi
hosts=$1 && shift
if [ -p "$hosts" ]; then
	echo "ssh.sh: $hosts is a pipe, which can be read only once: write the hosts to a file." >&2
	exit 2
fi
"$zmqrl" launch -H "$hosts" --dry-run "$@"
exec "$zmqrl" launch -H "$hosts" "$@"
