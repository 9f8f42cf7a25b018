#!/usr/bin/env bash
# What is too long for each change, and is to pass before a release: known holes in the dependencies, real clients, the
# wheel from an empty folder, the containers. Each part runs whatever came of the others; the last lines say which failed.
#
#   deploy/nightly.sh
#
# deploy/try_containers.sh says what can be told it by the environment.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=()

part() {
    echo "== $*"
    "$@" || failed+=("$* (status $?)")
}

make install || exit 1
part deploy/dependencies.sh audit
part deploy/try_clients.sh
part deploy/try_wheel.sh
part deploy/try_containers.sh
part deploy/try_machines.sh
part deploy/dependencies.sh sbom
part .venv/bin/python benchmarks/endurance.py
printf 'failed: %s\n' "${failed[@]:-nothing}"
exit $((${#failed[@]} > 0))
