#!/bin/sh
# Sets up .venv for `make serve` or `make test`, and what Debian has for each: the clients that `make serve` tells
# people to try, the programs that the tests are held against. Where it may not install, it says in one line what to.
# Usage: tools/setup.sh serve|test
set -eu
cd "$(dirname "$0")/.."
what=${1:?serve or test}
venv=.venv

clients="libnbd-bin qemu-utils"
# The real clients and the peers that the tests talk to, the Java that TLC runs on, and the browser that pages are tried
# in; openssl is for the rows of the benchmark with TLS, and strace shows whether a server syncs. Tests that lack one say
# which. nbdinfo asks file(1) what a disk holds, and without it says whatever its memory holds.
peers="file nbdkit libnbd-bin python3-libnbd qemu-utils nbd-server nbd-client fio mtools dosfstools default-jre-headless \
chromium chromium-driver openssl strace"

say() { printf 'setup: %s\n' "$*" >&2; }

missing() { # packages of the list that are not installed; none where there is no Debian to ask
    command -v dpkg-query >/dev/null 2>&1 || return 0
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

# First find out all that is missing, so that it is named, or installed, at once.
python=${PYTHON:-python3}
needed=
if ! command -v "$python" >/dev/null 2>&1; then
    [ "$python" = python3 ] || { say "there is no $python"; exit 1; }
    needed="python3 python3-venv "
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$("$python" --version) is too old: Python 3.11 or newer is needed (PYTHON=/path/to/it make $what)"
    exit 1
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    needed="python3-venv "
fi
stamp=$venv/.installed-$what
case $what in
    # Only the first time: who has no network can still serve, and has not to wait for apt-get's patience each time.
    serve) [ -e $stamp ] && wanted= || wanted=$(missing $clients) ;;
    test) wanted=$(missing $peers) ;;
    *) say "$what: expected serve or test"; exit 2 ;;
esac

if [ -n "$needed$wanted" ]; then
    if can_install; then
        # Without what is only wanted there is less to try, or to test, but something.
        install_packages $needed$wanted || { say "not all of that could be installed"; [ -z "$needed" ] || exit 1; }
    elif [ -n "$needed" ]; then
        say "a virtual environment cannot be made here; type: sudo apt-get install $needed$wanted"
        exit 1
    elif [ "$what" = test ]; then
        say "without these, some tests are skipped; type: sudo apt-get install $wanted"
    fi # the server itself says which of the clients are missing
fi

extras=
[ "$what" = test ] && extras='[test]'
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    say "setting up $venv"
    [ -x $venv/bin/python ] || "$python" -m venv $venv
    $venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras"
    touch "$stamp"
fi
