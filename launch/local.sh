#!/bin/sh
# Train on this machine with a worker for each core: launch/local.sh [RECIPE] [options of zmqrl train]
set -eu
zmqrl=${ZMQRL:-$(dirname "$0")/../.venv/bin/zmqrl}
# A resumed run and a scenario have their own number of workers.
case " $* " in *" --resume "* | *" --workers"[\ =]* | *" --scenario"[\ =]*) exec "$zmqrl" train "$@" ;; esac
# nproc does not know the quota of a container.
cores=$("$(dirname "$(command -v "$zmqrl")")/python" -c 'from zmqrl.process import usable_cores; print(usable_cores())')
exec "$zmqrl" train --workers "$cores" "$@"
