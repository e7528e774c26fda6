#!/usr/bin/env bash
# Lints and tests, on a fresh machine:  scripts/test.sh [pytest's arguments]
# WITH_TORCH=1 also installs PyTorch: without it the tests of PyTorch files are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
enter_environment .venv-test requirements-dev.txt
if [ -n "${WITH_TORCH:-}" ]; then
    python -m pip install --quiet torch==2.13.0
fi

scripts/lint.sh
# Two processes; the tests of a file run in one, because they share fixtures.
exec python -m pytest -n 2 --dist loadfile "$@"
