#!/bin/sh
# Checks ggufreap on "other machines" that are this one, in one command: makes a virtual environment, builds
# llama-cpp-python with llama.cpp's RPC backend (some minutes) and the ggml-rpc-server of the same source, installs the
# project, and runs rpc.py with the arguments given.
#
#   tests/benchmarks/rpc.sh [MODEL.gguf] [--chunks N]
#
# VENV is where the environment goes; what it already holds is used. SDIST is the source of llama-cpp-python, fetched
# where it is not set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
venv=${VENV:-$root/.venv-rpc}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if [ ! -x "$venv/bin/ggml-rpc-server" ]; then
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    [ "${SDIST:-}" ] || "$venv/bin/pip" download --quiet --no-deps --no-binary :all: --dest "$source" \
        'llama-cpp-python>=0.3.36,<0.4'
    tar -xzf "${SDIST:-$(echo "$source"/llama_cpp_python-*.tar.gz)}" -C "$source" --strip-components 1
    "$venv/bin/python" -c "import llama_cpp" 2>/dev/null ||
        CMAKE_ARGS="-DGGML_RPC=ON ${CMAKE_ARGS:-}" "$venv/bin/pip" install --no-cache-dir "$source"
    built=$("$venv/bin/python" -c "import llama_cpp, os; print(os.path.dirname(llama_cpp.__file__))")/lib
    "${CXX:-c++}" -O2 -std=c++17 -I"$source/vendor/llama.cpp/ggml/include" -o "$venv/bin/ggml-rpc-server" \
        "$source/vendor/llama.cpp/tools/rpc/rpc-server.cpp" -L"$built" -lggml -lggml-base -Wl,-rpath,"$built"
fi
"$venv/bin/pip" install --quiet "$root"
exec "$venv/bin/python" "$here/rpc.py" "$@"
