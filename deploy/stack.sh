#!/usr/bin/env bash
# What docker compose does not do by itself, because the containers of runs are not its own. In the project's folder:
#
#   deploy/stack.sh stop [--volumes]     end runs, then everything; with --volumes all that is stored is deleted, too
#   deploy/stack.sh prune [AGE]          remove containers of runs and steps that ended (default: made over 72h ago)
#   deploy/stack.sh backup FOLDER        both databases, the store and MLflow's artifacts, while nothing is at work
#   deploy/stack.sh restore FOLDER       the same back into a stack whose volumes are empty, which it starts
#   deploy/stack.sh upgrade              after a new version was built: bring both databases to its form
#
# docker compose's own variables hold (COMPOSE_PROFILES, COMPOSE_FILE); the rest is read from .env.
set -euo pipefail
cd "$(dirname "$0")/.."

stack=$(docker compose config | sed -n 's/^name: //p')
label=embed_pipeline.stack=$stack
# All of the list is read: compose ends with status 255 where its reader stops early.
code=$(docker compose config --services | awk '/^code/ && !seen++')

containers() { docker ps --quiet --filter "label=$label" "$@"; }

end_runs() {
    local left
    # Nothing may start one meanwhile. Runs are ended as the UI ends them; those of commands end with their commands.
    docker compose stop daemon
    [[ -z $(docker compose ps --quiet --status running webserver) ]] || docker compose exec --no-TTY webserver python -c '
import dagster as dg
from embed_pipeline.orchestration.store_lock import COMMAND_TAG, UNFINISHED
with dg.DagsterInstance.get() as instance:
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if COMMAND_TAG not in run.tags:
            instance.run_coordinator.cancel_run(run.run_id)
            print("ended", run.job_name, run.run_id)'
    left=$(containers --all)
    # shellcheck disable=SC2086
    [[ -z $left ]] || docker rm --force $left >/dev/null
}

in_volume() { # NAME FOLDER COMMAND...: a command with a volume of the stack and a folder of this machine
    local volume=$stack-$1 folder=$2
    shift 2
    docker run --rm --interactive --network none --user 0:0 --volume "$volume:/volume" --volume "$folder:/backup" \
        embed-pipeline:control "$@"
}

backup() {
    local folder=$1
    if [[ -n $(containers) ]]; then
        echo "runs are in progress: $(docker ps --filter "label=$label" --format '{{.Names}}' | tr '\n' ' '); wait for them, or end them in the UI" >&2
        exit 1
    fi
    mkdir --parents "$folder"
    folder=$(cd "$folder" && pwd)
    # What may write stops; the endpoint goes on.
    docker compose stop daemon webserver "$code" mlflow
    for database in dagster mlflow; do
        docker compose exec --no-TTY postgres pg_dump --username=pipeline --format=custom "$database" >"$folder/$database.dump"
    done
    in_volume store "$folder" tar --create --file=/backup/store.tar --directory=/volume .
    in_volume mlflow "$folder" tar --create --file=/backup/artifacts.tar --directory=/volume .
    docker compose start mlflow "$code" webserver daemon
    (cd "$folder" && sha256sum dagster.dump mlflow.dump store.tar artifacts.tar >SHA256SUMS)
    echo "backed up to $folder"
}

restore() {
    local folder
    folder=$(cd "$1" && pwd)
    (cd "$folder" && sha256sum --check --quiet SHA256SUMS)
    docker compose up --no-start
    if [[ $(in_volume store "$folder" sh -c 'ls -A /volume | wc -l') != 0 ]]; then
        echo "the volume $stack-store is not empty; nothing was restored. deploy/stack.sh stop --volumes empties it" >&2
        exit 1
    fi
    docker compose up --detach --wait postgres
    # Databases and their users are made by the first start.
    for database in dagster mlflow; do
        docker compose exec --no-TTY postgres pg_restore --username=pipeline --exit-on-error --clean --if-exists \
            --no-owner --role="$([[ $database == mlflow ]] && echo mlflow || echo pipeline)" \
            --dbname="$database" <"$folder/$database.dump"
    done
    in_volume store "$folder" tar --extract --file=/backup/store.tar --directory=/volume
    in_volume mlflow "$folder" tar --extract --file=/backup/artifacts.tar --directory=/volume
    docker compose up --detach
    echo "restored from $folder"
}

upgrade() {
    docker compose stop daemon webserver mlflow
    docker compose run --rm --no-deps "$code" embed-pipeline store upgrade
    docker compose run --rm --no-deps mlflow mlflow db upgrade postgresql+psycopg2:///mlflow
    docker compose up --detach
}

case ${1:-} in
stop)
    end_runs
    docker compose down "${@:2}"
    ;;
prune) docker container prune --force --filter "label=$label" --filter "until=${2:-72h}" ;;
backup) backup "${2:?the folder to write to}" ;;
restore) restore "${2:?the folder that a backup was written to}" ;;
upgrade) upgrade ;;
*) sed -n '2,10s/^# \?//p' "$0" >&2 && exit 2 ;;
esac
