# shellcheck shell=bash
# Sourced by the other scripts: creates a virtual environment if needed, and activates it. The
# package is installed in it as a link to this checkout.
#   enter_environment DIRECTORY REQUIREMENTS
# PYTHON sets the interpreter to create it with (default python3), VENV another directory.

enter_environment() {
    local directory=${VENV:-$1} requirements=$2 python=${PYTHON:-python3} checksum
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "$python is $("$python" --version 2>&1), expected Python 3.11 or newer: set PYTHON=" >&2
        return 2
    fi
    checksum=$(cat requirements.txt "$requirements" | cksum)
    if [ "$(cat "$directory/installed" 2>/dev/null)" != "$checksum" ]; then
        echo "installing $requirements into $directory" >&2
        "$python" -m venv "$directory"
        "$directory/bin/python" -m pip install --quiet --requirement "$requirements" --editable .
        echo "$checksum" >"$directory/installed"
    fi
    # shellcheck disable=SC1091  # created above
    . "$directory/bin/activate"
}
