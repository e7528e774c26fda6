#!/usr/bin/env bash
# What must hold of every change before it is tested; pre-commit and scripts/test.sh run it.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
shellcheck --external-sources scripts/*.sh .ci/run
mypy
