#!/usr/bin/env bash
# Two machines with nothing in common but Postgres, object storage and the code; see deploy/try_machines.py.
#
#   deploy/try_machines.sh [FOLDER]
#
# Needs root (networks and machines are Linux namespaces), iproute2, util-linux, Postgres's server programs (Debian:
# apt-get install postgresql) and the project's virtual environment. Ports: LOCAL_STACK_PORT and the next three, default
# 15430, on a network of its own, 10.231.87.0/24. MACHINES_BATCHES sets the number of batches.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
[[ $(id -u) == 0 ]] || { echo "networks and machines are made by root: run it with sudo" >&2; exit 1; }
for program in ip unshare nsenter hostname; do
    command -v "$program" >/dev/null || { echo "$program is missing; on Debian: apt-get install iproute2 util-linux hostname" >&2; exit 1; }
done

export VENV=${VENV:-$here/.venv} LOCAL_STACK_PORT=${LOCAL_STACK_PORT:-15430} LOCAL_STACK_ADDRESS=10.231.87.1
export POSTGRES_HOST=$LOCAL_STACK_ADDRESS POSTGRES_USER=pipeline POSTGRES_PASSWORD=local
export PYTHONPATH=$here PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true
exec "$VENV/bin/python" "$here/deploy/try_machines.py" "${1:-$here/tmp/machines}"
