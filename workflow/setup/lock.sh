#!/usr/bin/env bash
# lock.sh REQUIREMENT...   writes constraints.txt from pyproject.toml and these pins; needs uv on the PATH
#
# Versions already in constraints.txt stay where they still fit. PyPI alone is asked, whatever index pip is set to,
# so that the CUDA build of torch and what it needs are locked; the CPU build has the same version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

new=$(mktemp constraints.XXXXXX)
trap 'rm -f "$new" "$new.txt"' EXIT
cp constraints.txt "$new"
printf '%s\n' "$@" |
    uv pip compile pyproject.toml - --quiet --universal --all-extras --no-header --annotation-style line \
        --output-file "$new"
{
    cat <<'HEADER'
# Every version that the environment is made of, on Linux x86-64 with Python 3.11 to 3.13.
# Made by `make lock` from pyproject.toml; not edited by hand.
HEADER
    # Every line would repeat the machines that are locked.
    for always in "python_full_version < '3.14'" "platform_machine == 'x86_64'" "sys_platform == 'linux'"; do
        sed -i -E "s/ and $always//; s/$always and //; s/ ; $always//" "$new"
    done
    cat "$new"
} >"$new.txt"
mv "$new.txt" constraints.txt
