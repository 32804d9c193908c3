#!/bin/sh
# Train on this machine with a worker for each core: launch/local.sh [RECIPE] [options of zmqrl train]
set -eu
zmqrl=${ZMQRL:-$(dirname "$0")/../.venv/bin/zmqrl}
# A resumed run and a scenario have their own number of workers.
case " $* " in *" --resume "* | *" --workers"[\ =]* | *" --scenario"[\ =]*) exec "$zmqrl" train "$@" ;; esac
program=$(command -v "$zmqrl") || { echo "local.sh: $zmqrl cannot be found: run make setup, or set ZMQRL" >&2; exit 2; }
# Unlike the Python of zmqrl, nproc does not know the quota of a container. It obeys two variables that a run ignores.
cores=$("$(dirname "$program")/python" -c 'from zmqrl.process import usable_cores; print(usable_cores())' 2>/dev/null) ||
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
exec "$zmqrl" train --workers "$cores" "$@"
