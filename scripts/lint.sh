#!/usr/bin/env bash
# The linters that every change must pass; run by pre-commit and scripts/test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
shellcheck --external-sources scripts/*.sh .ci/run
mypy
