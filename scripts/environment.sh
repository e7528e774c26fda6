# shellcheck shell=bash
# Sourced by the scripts beside it: makes a virtual environment, once, and enters it.
#   enter_environment DIRECTORY REQUIREMENTS
# PYTHON names the interpreter to make it with (python3 by default), VENV another directory.

enter_environment() {
    local directory=${VENV:-$1} requirements=$2 python=${PYTHON:-python3} wanted
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "$python is $("$python" --version 2>&1), expected Python 3.11 or newer: set PYTHON=" >&2
        return 2
    fi
    wanted=$(cat requirements.txt "$requirements" | cksum)
    if [ "$(cat "$directory/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $requirements into $directory" >&2
        "$python" -m venv "$directory"
        "$directory/bin/python" -m pip install --quiet --requirement "$requirements"
        echo "$wanted" >"$directory/installed"
    fi
    # shellcheck disable=SC1091  # it was made just now
    . "$directory/bin/activate"
}
