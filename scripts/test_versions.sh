#!/usr/bin/env bash
# Tests with other versions than scripts/test.sh, by most of the tests, without the longest:
#   scripts/test_versions.sh newest   the newest Python up to 3.13 that is here, if newer than PYTHON
#   scripts/test_versions.sh oldest   PYTHON, with the oldest versions that requirements.txt allows
# PYTHON (default python3) is what scripts/test.sh uses. It says what it tested.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
end=${1:-} python=${PYTHON:-python3}
TESTS=(tests/data tests/field tests/kernels tests/models/test_gpsa.py tests/system tests/weights
    tests/training/test_checkpoints.py tests/training/test_thirty_steps.py
    --ignore=tests/field/test_runs.py)

# The version of a Python, such as 3.13, or nothing where it does not run.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || :; }

# The newest Python that runs and is newer than $python, or nothing.
newest_python() {
    local version candidate
    for version in 3.13 3.12; do
        [ "$(version_of "$python")" != $version ] || return 0
        for candidate in "python$version" "$(pyenv prefix $version 2>/dev/null)/bin/python"; do
            if [ "$(version_of "$candidate")" = $version ]; then
                echo "$candidate"
                return
            fi
        done
    done
}

VENV=$(mktemp -d)
export VENV
trap 'rm -rf "$VENV"' EXIT
case $end in
    newest)
        PYTHON=$(newest_python)
        if [ -z "$PYTHON" ]; then
            echo "versions: no Python newer than $("$python" --version), up to 3.13, is here: not tested"
            exit
        fi
        export PYTHON
        enter_environment .venv-newest requirements-dev.txt
        ;;
    oldest)
        "$python" -m venv "$VENV"
        "$VENV/bin/python" -m pip install --quiet 'uv<1'
        "$VENV/bin/uv" pip compile --quiet --resolution lowest-direct --python "$VENV/bin/python" \
            requirements-dev.txt --output-file "$VENV/oldest.txt"
        "$VENV/bin/python" -m pip install --quiet --requirement "$VENV/oldest.txt" --editable .
        # shellcheck disable=SC1091  # created above
        . "$VENV/bin/activate"
        ;;
    *)
        echo "test_versions.sh: expected newest or oldest, not '$end'" >&2
        exit 2
        ;;
esac
python -c 'import sys
from importlib.metadata import version
names = "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "safetensors"
print("versions: Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names))'
python -m pytest -n 2 --dist loadfile "${TESTS[@]}"
