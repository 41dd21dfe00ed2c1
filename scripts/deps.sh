#!/usr/bin/env bash
# Installs the Debian packages that are missing. As root it installs and says what; otherwise it prints the one line
# that does, and goes on if the programs are there all the same.
#   deps.sh build        what a build and its checks need
#   deps.sh build test   and the clients that the tests use
set -euo pipefail

declare -A packages=(
    [build]='nasm autoconf automake libtool libclang-dev clang make pkg-config cmake capnproto python3'
    [test]='rclone s3cmd python3-venv curl e2fsprogs iproute2 nftables libfaketime'
)
missing=()
for kind in "$@"; do
    for package in ${packages[$kind]}; do
        if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
            # A program of that name from elsewhere will do.
            command -v "$package" >/dev/null 2>&1 || missing+=("$package")
        fi
    done
done

if ! command -v cargo >/dev/null 2>&1; then
    echo 'cargo is missing. Install Rust:  curl https://sh.rustup.rs -sSf | sh -s -- -y && . ~/.cargo/env' >&2
    exit 1
fi
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/tmp/kiseki-apt.log 2>&1 ||
        { apt-get update -q >>/tmp/kiseki-apt.log 2>&1 &&
            apt-get install -y -q --no-install-recommends "${missing[@]}" >>/tmp/kiseki-apt.log 2>&1; } ||
        { echo 'apt-get failed:' >&2; tail -5 /tmp/kiseki-apt.log >&2; exit 1; }
else
    echo "not installed (going on without): sudo apt-get install -y ${missing[*]}" >&2
fi
