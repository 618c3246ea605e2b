#!/usr/bin/env bash
# tex.sh check    status 0 if the paper can be typeset here
# tex.sh install  installs what is missing where it may; otherwise says what to install, with status 0
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=workflow/setup/apt.sh
source "$here/apt.sh"

packages=(latexmk texlive-latex-recommended texlive-fonts-recommended texlive-publishers)
# One file of each package, which report.tex needs.
files=(booktabs.sty ptmr8t.tfm IEEEtran.cls)

complete() {
    command -v latexmk >/dev/null && command -v pdflatex >/dev/null && kpsewhich "${files[@]}" >/dev/null
}

case "${1:-}" in
check)
    complete
    ;;
install)
    complete && exit 0
    if may_install && install_packages "${packages[@]}" && complete; then
        exit 0
    fi
    echo "No PDF without TeX: install it with 'apt-get install --no-install-recommends ${packages[*]}'" \
        "and run make again. Everything else is built." >&2
    ;;
*)
    echo "usage: tex.sh check|install" >&2
    exit 2
    ;;
esac
