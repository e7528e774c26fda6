#!/usr/bin/env bash
# Checks the released weights in this port against published facts: scripts/check_port.sh --help
# It uses python3 (or $PYTHON), which must have requirements.txt, and huggingface_hub or PyTorch.
set -euo pipefail
repository=$(realpath "$(dirname "$0")/..")
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$repository/scripts/check_port.py" "$@"
