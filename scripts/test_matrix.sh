#!/usr/bin/env bash
# Run the fast tests, or the files given, on each of Python 3.11 to 3.13 that is installed, in an
# environment that is removed again, with the versions of scripts/constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=("$@")
if ((!$#)); then
    tests=(tests/test_{diffusion,sampler,ops,prior,project}.py tests/cluster/test_compiler.py
        tests/models/test_{layers,attention}.py tests/upscale/test_tiles.py
        tests/weights/test_model_folder.py
        tests/train/test_{config,optimizer,sharding,checkpoints}.py)
fi

# Print a Python of that version: one on the PATH, or the newest of pyenv or uv.
find_python() {
    local found wrong="import sys; sys.exit(sys.version_info[:2] != (${1/./, }))"
    for found in "$(command -v "python$1")" \
        $(ls -dr "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python 2>/dev/null) \
        "$(uv python find --no-project "$1" 2>/dev/null)"; do
        # A shim of pyenv is there for versions that are not chosen, too, and fails.
        if [[ -n $found ]] && "$found" -c "$wrong" 2>/dev/null; then
            echo "$found"
            return
        fi
    done
}

# Test with a Python in a folder; what is compiled only when it is imported need not be beforehand.
test_with() {
    "$1" -m venv "$2" &&
        "$2/bin/pip" install --quiet --disable-pip-version-check --no-compile \
            --constraint scripts/constraints.txt --editable ".[test]" &&
        "$2/bin/python" -m pytest -q "${tests[@]}"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary=() failed=0
for version in 3.11 3.12 3.13; do
    python=$(find_python "$version")
    if [[ -z $python ]]; then
        summary+=("Python $version: not installed")
    elif test_with "$python" "$work/$version"; then
        jax=$("$work/$version/bin/python" -c "import jax; print(jax.__version__)")
        summary+=("Python $version, JAX $jax: passed")
    else
        summary+=("Python $version: FAILED") failed=1
    fi
    rm -rf "${work:?}/$version"
done
printf '%s\n' "${summary[@]}"
exit "$failed"
