#!/bin/sh
# Sets up .venv for `make serve` or `make test`, and for the tests the programs they are held against.
# Usage: tools/setup.sh serve|test
set -eu
cd "$(dirname "$0")/.."
what=${1:?serve or test}
venv=.venv

# Debian's packages: The real clients and the peers that the tests talk to, and the Java that TLC runs on. Tests that lack one say which.
# nbdinfo asks file(1) what a disk holds, and without it says whatever its memory holds.
peers="file nbdkit libnbd-bin python3-libnbd qemu-utils nbd-server nbd-client fio mtools dosfstools default-jre-headless"

say() { printf 'setup: %s\n' "$*" >&2; }

missing() { # packages of the list that are not installed
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || printf '%s ' "$package"
    done
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

install_packages() {
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 && return
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends "$@" >/dev/null
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { say "no $python here: install Python 3.11 or newer"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$("$python" --version) is too old: Python 3.11 or newer is needed (PYTHON=/path/to/it make $what)"
    exit 1
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if can_install; then
        install_packages python3-venv
    else
        say "this Python cannot make a virtual environment; type: sudo apt-get install python3-venv"
        exit 1
    fi
fi

extras=
[ "$what" = test ] && extras='[test]'
stamp=$venv/.installed-$what
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    say "setting up $venv"
    [ -x $venv/bin/python ] || "$python" -m venv $venv
    $venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras"
    touch "$stamp"
fi

if [ "$what" = test ] && command -v dpkg-query >/dev/null 2>&1; then
    lacking=$(missing $peers)
    if [ -n "$lacking" ]; then
        if can_install; then
            install_packages $lacking
        else
            say "without these, some tests are skipped; type: sudo apt-get install $lacking"
        fi
    fi
fi
