#!/usr/bin/env bash
# Check lint, format and types, then run the tests, the files on two processes; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
prepare_venv dev

PATH=$PWD/.venv/bin:$PATH
ruff check . && ruff format --check . && pyright && pytest -n 2 --dist loadfile "$@"
