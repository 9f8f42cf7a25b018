#!/usr/bin/env bash
# Installs the clients of retrieval stacks in a throw-away folder and tries each against a running endpoint: the tests
# of embed_pipeline_tests/serving/test_clients.py, which leave out what is not installed.
#
#   deploy/try_clients.sh [FOLDER]
#
# openai, LangChain (OpenAI and NVIDIA) and LlamaIndex in Python; openai, LangChain and the AI SDK in JavaScript where
# node and npm are there; Java's own HttpClient where a JDK is. The project's environment (VENV, default .venv) is not
# changed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/tmp/clients}
venv=${VENV:-$here/.venv}
mkdir --parents "$folder/npm"
folder=$(cd "$folder" && pwd)

if [[ ! -x $folder/venv/bin/python ]]; then
    "$venv/bin/python" -m venv "$folder/venv"
    # What the project has installed is there, too; what the clients want in other versions comes before it.
    "$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
        >"$("$folder/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/project.pth"
fi
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    langchain-openai langchain-nvidia-ai-endpoints llama-index-embeddings-openai-like
if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$folder/npm" \
        openai @langchain/openai @langchain/core ai @ai-sdk/openai-compatible
    export NODE_PACKAGES=$folder/npm
fi
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(openai|langchain|llama)' || true
[[ -z ${NODE_PACKAGES:-} ]] || npm ls --prefix "$folder/npm" --depth 0
cd "$here"
PYTHONPATH=$here exec "$folder/venv/bin/python" -m pytest -rs embed_pipeline_tests/serving/test_clients.py
