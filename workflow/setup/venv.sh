#!/usr/bin/env bash
# venv.sh install FOLDER EXTRAS   makes the virtual environment and installs this project in it, at the locked versions
# venv.sh has-python FOLDER       status 0 if it is of the requested interpreter
#
# PYTHON names the interpreter to use; without, it is python3, or whatever an environment that is there was made with.
# A folder left by an interrupted or broken installation, or of another interpreter than named, is made anew.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=workflow/setup/apt.sh
source "$here/apt.sh"

task=${1:-} venv=${2:-} extras=${3:-}
python=${PYTHON:-python3}

fail() {
    echo "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# identity PYTHON: identifies the installation, which an environment shares with the Python that made it.
identity() {
    "$1" -c 'import sys; print(sys.base_prefix, sys.version)' 2>/dev/null
}

has_python() {
    [ -z "${PYTHON:-}" ] || [ "$(identity "$venv/bin/python")" = "$(identity "$python")" ]
}

usable() {
    new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

create() {
    "$python" -m venv --clear "$venv" && usable
}

case "$task" in
has-python)
    has_python
    exit
    ;;
install) ;;
*)
    echo "usage: venv.sh install FOLDER EXTRAS | has-python FOLDER" >&2
    exit 2
    ;;
esac

# Characters special within a shell's double quotes, in which scripts name their Python; and the colon of PATH.
case "$PWD" in
*[\"\\\$\`:]* | *$'\n'*)
    fail "the path of this folder, $PWD, holds a double quote, a backslash, \$, \` or a colon: move it elsewhere"
    ;;
esac

if ! { usable && has_python; }; then
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
