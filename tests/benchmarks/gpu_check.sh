#!/bin/sh
# Checks ggufreap on a machine with a CUDA card, in one command: makes a virtual environment, builds llama-cpp-python
# for CUDA (some minutes; needs the CUDA toolkit), installs the project, and runs gpu_check.py with the arguments given.
#
#   tests/benchmarks/gpu_check.sh [MODEL.gguf] [--chunks N] ...
#
# VENV is where the environment goes; what it already holds is used. CPU_ONLY=1 builds nothing and runs PYTHON, which
# has the project installed: it shows that the script works, not what a card does.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
if [ "${CPU_ONLY:-}" ]; then
    exec "${PYTHON:-python3}" "$here/gpu_check.py" --cpu-only "$@"
fi
venv=${VENV:-$root/.venv-cuda}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -c "import llama_cpp" 2>/dev/null ||
    CMAKE_ARGS="${CMAKE_ARGS:--DGGML_CUDA=on}" "$venv/bin/pip" install --no-cache-dir --no-binary llama-cpp-python \
        'llama-cpp-python>=0.3.36,<0.4'
"$venv/bin/pip" install --quiet "$root"
exec "$venv/bin/python" "$here/gpu_check.py" "$@"
