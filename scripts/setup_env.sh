# Sourced by the other scripts: enters the repository and offers `prepare_venv`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Print the first Python that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "upsr_jax needs Python 3.11 or newer, as python3 or as python3.11, 3.12 or 3.13;" \
        "python3 is $(python3 --version 2>/dev/null || echo missing). Install one and run this again." >&2
    return 1
}

# prepare_venv [EXTRA]: put the package, editable, and the tested versions of all it needs into
# .venv, unless that was done since pyproject.toml and the constraints last changed.
prepare_venv() {
    local extra=${1:-} done_file=.venv/upsr_jax_installed python state
    # One line for each extra installed. Without an extra it begins all of them: any will do.
    state="$(cat pyproject.toml scripts/constraints.txt | cksum) $extra"
    if grep -qsF "$state" "$done_file"; then
        return
    fi
    if [[ ! -x .venv/bin/pip ]]; then
        python=$(find_python)
        "$python" -m venv .venv
    fi
    echo "Installing upsr_jax into .venv (minutes the first time) ..."
    .venv/bin/pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".${extra:+[$extra]}"
    echo "$state" >>"$done_file"
}
