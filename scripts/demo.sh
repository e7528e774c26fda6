#!/usr/bin/env bash
# Trains ConViT on the bundled digits, on a fresh machine:  scripts/demo.sh
# and the corresponding DeiT:                               scripts/demo.sh deit
# WORKDIR sets another directory for the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
enter_environment .venv requirements.txt

variant=${1:-convit}
exec python train.py --config "configs/digits.py:$variant" --workdir "${WORKDIR:-runs/digits-$variant}"
