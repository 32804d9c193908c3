#!/bin/sh
# Train on this machine with a worker for each core: launch/local.sh [RECIPE] [options of zmqrl train]
set -eu
zmqrl=${ZMQRL:-$(dirname "$0")/../.venv/bin/zmqrl}
case " $* " in *" --resume "*) exec "$zmqrl" train "$@" ;; esac # a resumed run keeps its recipe and workers
case ${1:--} in -*) recipe=breakout ;; *) recipe=$1 && shift ;; esac
case " $* " in *" --workers"[\ =]*) exec "$zmqrl" train "$recipe" "$@" ;; esac
exec "$zmqrl" train "$recipe" --workers "$(nproc)" "$@"
