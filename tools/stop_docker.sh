#!/usr/bin/env bash
# Ends the Docker engine that tools/start_docker.sh started, if it did, and its containers with it. Images stay.
set -euo pipefail
pidfile=/run/quire-dockerd.pid

[[ -e $pidfile ]] || exit 0
pid=$(cat "$pidfile")
if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]]; then
  kill "$pid"
  timeout 120 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
fi
rm -f "$pidfile"
