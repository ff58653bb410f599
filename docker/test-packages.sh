#!/bin/sh
# Installs the programs that tests and benchmarks use beside Python's packages: a browser, two
# speech synthesisers, recorded human speech, a street's video, a compiler for ARM and an emulator of
# it. Does nothing when all are there; never fails: tests that miss one are skipped with a reason.
#
# POCKETSPHINX_TESTDATA: where the recordings lie (default: Debian's folder).
set -u

recordings=${POCKETSPHINX_TESTDATA:-/usr/share/pocketsphinx/test/data}

missing=""
for pair in chromium:chromium chromedriver:chromium-driver espeak-ng:espeak-ng flite:flite sox:sox \
    aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -d "$recordings" ] || missing="$missing pocketsphinx-testdata"
[ -f /usr/share/doc/opencv-doc/examples/data/vtest.avi ] || missing="$missing opencv-doc"
[ -z "$missing" ] && exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo -n"
fi
if command -v apt-get >/dev/null 2>&1 && $sudo true >/dev/null 2>&1; then
    echo "installing for the tests:$missing"
    install="$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    # shellcheck disable=SC2086 # lists of words, meant to be split
    if $install $missing >/dev/null 2>&1; then
        exit 0
    fi
    # shellcheck disable=SC2086
    if $sudo apt-get update -qq >/dev/null 2>&1 && $install $missing >/dev/null 2>&1; then
        exit 0
    fi
fi
echo "tests that need them are skipped, these packages are not installed:$missing"
