#!/usr/bin/env bash
# Lints and tests, from a fresh machine:  scripts/test.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
enter_environment .venv-test requirements-dev.txt

ruff check .
ruff format --check .
exec python -m pytest "$@"
