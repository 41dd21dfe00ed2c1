#!/usr/bin/env bash
# Real clients against real nodes in a temporary directory on free ports: boto3, rclone, s3cmd, kill -9, a lost index, administration from elsewhere,
# lost disks, a full pool. With `cluster`: several nodes, of which some and all are killed, and the short form of `faults`: faults under
# clients whose history is checked (docs/faults.md).
# The Python packages live in a virtual environment below target/, made once.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/client-test-venv
if ! "$venv/bin/python" -c 'import boto3' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check 'boto3>=1.36'
fi
for program in rclone s3cmd; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install $program" >&2; exit 1; }
done

# Beside the build: a temporary file system in memory has no direct I/O.
mkdir -p target/client-test
work=$(mktemp -d target/client-test/run.XXXXXX)
trap 'rm -rf "$work"' EXIT

# What fails here is kept: it may take long to come again.
faults() {
    local kept
    kept=$(mktemp -d -u target/client-test/faults.XXXXXX)
    "$venv/bin/python" scripts/history_test.py "$kept" "$@" || return 1
    rm -rf "$kept"
}

status=0
case "${1:-}" in
cluster)
    "$venv/bin/python" scripts/cluster_test.py "$work/cluster" "${@:2}" || status=1
    rm -rf "$work/cluster"
    "$venv/bin/python" scripts/learner_test.py "$work/learner" || status=1
    rm -rf "$work/learner"
    faults || status=1
    exit $status
    ;;
faults)
    faults "${@:2}"
    exit
    ;;
esac

"$venv/bin/python" scripts/clients_test.py "$work/clients" --conformance gateway/tests/conformance.py || status=1
rm -rf "$work/clients"
"$venv/bin/python" scripts/kill_test.py "$work/kill" || status=1
rm -rf "$work/kill"
"$venv/bin/python" scripts/rebuild_test.py "$work/rebuild" || status=1
rm -rf "$work/rebuild"
"$venv/bin/python" scripts/peer_test.py "$work/peer" || status=1
rm -rf "$work/peer"
"$venv/bin/python" scripts/fault_test.py "$work/faults" || status=1
"$venv/bin/python" scripts/metadata_fill_test.py "$work/fill" || status=1
exit $status
