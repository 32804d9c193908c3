#!/bin/sh
# Train on this machine with a worker for each core: launch/local.sh [RECIPE] [options of zmqrl train]
set -eu
zmqrl=${ZMQRL:-$(dirname "$0")/../.venv/bin/zmqrl}
case " $* " in *" --resume "* | *" --workers"[\ =]*) exec "$zmqrl" train "$@" ;; esac # a resumed run keeps its workers
# nproc obeys these variables, but a run does not.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
exec "$zmqrl" train --workers "$cores" "$@"
