#!/usr/bin/env bash
# venv.sh FOLDER EXTRAS   makes the virtual environment and installs this project in it, at the locked versions
#
# PYTHON names the interpreter to use. A folder left by an interrupted or broken installation is made anew.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=workflow/setup/apt.sh
source "$here/apt.sh"

venv=$1 extras=$2
python=${PYTHON:-python3}

fail() {
    echo "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

usable() {
    new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

create() {
    "$python" -m venv --clear "$venv" && usable
}

if ! usable; then
    command -v "$python" >/dev/null || fail "$python not found: install Python 3.11 or newer, or name it: make PYTHON=..."
    new_enough "$python" ||
        fail "$python is $("$python" -V 2>&1), and Python 3.11 or newer is needed: name one with make PYTHON=..."
    # Debian keeps ensurepip, without which there is no venv, in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        { may_install && install_packages "$package"; } ||
            fail "$python cannot make virtual environments: install $package (apt-get install $package) and run make again"
    fi
    create || fail "cannot make a virtual environment in $venv with $python"
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet -c constraints.txt setuptools
"${pip[@]}" install -c constraints.txt --no-build-isolation -e ".[$extras]"
