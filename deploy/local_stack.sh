#!/usr/bin/env bash
# The processes of docker-compose.yml without containers: Postgres, MLflow, code location, webserver, daemon.
#
#   deploy/local_stack.sh week [FOLDER]         a week of documents in minutes, watched to its end; see deploy/week.py
#   deploy/local_stack.sh workers [FOLDER]      forty batches over four workers, two of them killed; see deploy/workers.py
#   deploy/local_stack.sh up [FOLDER]           start all and leave them running
#   deploy/local_stack.sh start NAME [FOLDER]   start one: postgres, endpoint, mlflow, code, webserver or daemon
#   deploy/local_stack.sh stop NAME [FOLDER]    end one with SIGTERM; `kill` ends it with SIGKILL
#   deploy/local_stack.sh down [FOLDER]         end all
#
# Needs Postgres's server programs (Debian: apt-get install postgresql) and the project's virtual environment. Ports,
# first of six in a row: LOCAL_STACK_PORT, default 15430. Postgres also listens on LOCAL_STACK_ADDRESS, if that is set, to
# its /24 network. Logs: FOLDER/logs.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
action=${1:?week, workers, up, down, start, stop or kill}
shift
scenario=$([[ $action == workers ]] && echo workers || echo week)
name=
if [[ $action =~ ^(start|stop|kill)$ ]]; then
    name=${1:?which process}
    shift
fi
folder=${1:-$here/tmp/local-stack}
mkdir -p "$folder/logs" "$folder/pids" "$folder/home"
folder=$(cd "$folder" && pwd)
bin=${VENV:-$here/.venv}/bin
port=${LOCAL_STACK_PORT:-15430}
address=${LOCAL_STACK_ADDRESS:-}

export DAGSTER_HOME=$folder/home POSTGRES_HOST=127.0.0.1 POSTGRES_USER=pipeline POSTGRES_PASSWORD=local
export LOCAL_STACK_FOLDER=$folder LOCAL_STACK_PORT=$port PYTHONPATH=$here PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_POSTGRES_PASSWORD=local

as_owner() { # Postgres refuses to run as root
    if [[ $(id -u) == 0 ]]; then runuser -u postgres -- "$@"; else "$@"; fi
}

postgres_programs() {
    local found
    found=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1)
    echo "${found:?no Postgres server found; on Debian: apt-get install postgresql}"
}

prepare() {
    [[ -f $folder/environment ]] || (cd "$here" && "$bin/python" "deploy/$scenario.py" prepare "$folder")
    set -a
    # shellcheck disable=SC1091
    source "$folder/environment"
    set +a
}

make_database() {
    local programs=$1
    mkdir -p "$folder/postgres"
    if [[ $(id -u) == 0 ]]; then chown postgres "$folder/postgres"; fi
    as_owner "$programs/initdb" --pgdata="$folder/postgres" --username=pipeline --auth=trust >"$folder/logs/initdb.log"
    [[ -z $address ]] || echo "host all all $address/24 trust" >>"$folder/postgres/pg_hba.conf"
    start_database "$programs"
    "$programs/psql" --host=127.0.0.1 --port="$port" --username=pipeline --dbname=postgres --quiet \
        --command="CREATE DATABASE dagster" --file="$here/deploy/databases.sql"
}

start_database() {
    as_owner "$1/pg_ctl" --pgdata="$folder/postgres" --wait --log="$folder/postgres/server.log" \
        --options="-p $port -k $folder/postgres -h 127.0.0.1${address:+,$address}" start >/dev/null
}

start() {
    local programs
    cd "$folder"
    case $1 in
    postgres)
        programs=$(postgres_programs)
        if [[ ! -f $folder/postgres/PG_VERSION ]]; then
            make_database "$programs"
        else
            start_database "$programs"
        fi
        ;;
    endpoint) launch endpoint "$bin/python" "$here/deploy/week.py" endpoint "$folder" ;;
    mlflow)
        launch mlflow "$bin/mlflow" server --host 127.0.0.1 --port $((port + 2)) --workers 1 \
            --backend-store-uri "postgresql+psycopg2://mlflow:local@127.0.0.1:$port/mlflow" \
            --artifacts-destination "$folder/mlflow" --allowed-hosts "localhost:*,127.0.0.1:*"
        ;;
    code)
        # Its runs are its children: those that had not ended when it did have no process any more.
        "$bin/python" "$here/deploy/week.py" orphans "$folder"
        launch code "$bin/dagster" code-server start --host 127.0.0.1 --port $((port + 3)) \
            --module-name embed_pipeline.definitions
        ;;
    webserver)
        launch webserver "$bin/dagster-webserver" --host 127.0.0.1 --port $((port + 4)) \
            --workspace "$folder/home/workspace.yaml"
        ;;
    daemon) launch daemon "$bin/dagster-daemon" run --workspace "$folder/home/workspace.yaml" ;;
    *) echo "no process is called $1" >&2 && exit 2 ;;
    esac
}

launch() { # in a process group of its own, so that its children end with it
    local what=$1
    shift
    setsid "$@" >>"$folder/logs/$what.log" 2>&1 &
    echo $! >"$folder/pids/$what"
}

stop() {
    local what=$1 signal=$2 pid
    if [[ $what == postgres ]]; then
        [[ ! -f $folder/postgres/postmaster.pid ]] || as_owner "$(postgres_programs)/pg_ctl" \
            --pgdata="$folder/postgres" --mode="$([[ $signal == KILL ]] && echo immediate || echo fast)" stop >/dev/null
        return
    fi
    [[ -f $folder/pids/$what ]] || return 0
    pid=$(cat "$folder/pids/$what")
    kill "-$signal" -- "-$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 -- "-$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm "$folder/pids/$what"
}

await() { # until it answers
    local what=$1
    shift
    for _ in $(seq 240); do
        if "$@" >/dev/null 2>&1; then return; fi
        kill -0 "$(cat "$folder/pids/$what")" 2>/dev/null || break
        sleep 0.5
    done
    echo "$what does not answer; see $folder/logs/$what.log" >&2
    exit 1
}

answers() { "$bin/python" -c "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)" "$1"; }

up() {
    start postgres
    start endpoint
    start mlflow
    await mlflow answers "http://127.0.0.1:$((port + 2))/health"
    start code
    await code "$bin/dagster" api grpc-health-check --port $((port + 3))
    start webserver
    start daemon
    await webserver answers "http://127.0.0.1:$((port + 4))/server_info"
    echo "Dagster http://127.0.0.1:$((port + 4))  MLflow http://127.0.0.1:$((port + 2))  logs $folder/logs"
}

down() {
    for what in daemon webserver code mlflow endpoint postgres; do stop "$what" TERM; done
}

prepare
case $action in
up) up ;;
down) down ;;
start) start "$name" ;;
stop) stop "$name" TERM ;;
kill) stop "$name" KILL ;;
week | workers)
    trap down EXIT
    up
    cd "$here"
    "$bin/python" "deploy/$scenario.py" run "$folder"
    ;;
*) echo "no action is called $action" >&2 && exit 2 ;;
esac
