#!/usr/bin/env bash
# NVMe drives in an emulated machine: the tests of the devices room on them, and a whole node whose power is cut. Exit code
# 75: the machine can't be set up here, and nothing was tested.
set -uo pipefail
cd "$(dirname "$0")/.."

scripts/nvme-vm.sh setup
status=$?
if [ $status -eq 75 ]; then
    echo 'SKIPPED: nothing was tested on NVMe drives' >&2
    exit 75
fi
[ $status -eq 0 ] || exit $status

program=$(cargo test --release --ignore-rust-version -p kiseki-devices --test nvme --no-run --message-format=json 2>/dev/null |
    grep -o '"executable":"[^"]*/nvme-[^"]*"' | tail -n1 | cut -d'"' -f4)
[ -n "$program" ] || { echo 'the tests for NVMe drives can not be built' >&2; exit 1; }

failed=0
# A transfer limit of 128 KiB, so that larger ones are cut.
DRIVES='256M:512 256M:4096 faulty=64M:512' NVME=,mdts=5 MEM=1024 scripts/nvme-vm.sh exec "
    export KISEKI_NVME_DRIVES='/dev/drive0 /dev/drive1' KISEKI_NVME_FAULTY=/dev/drive2
    /t/$(basename "$program") --ignored --test-threads=1 2>&1" "$program" || failed=1

# What an operator types.
DRIVES='256M:512 256M:4096' MEM=1024 scripts/nvme-vm.sh exec "$(cat scripts/nvme_devctl.sh)" \
    target/release/kiseki-devctl || failed=1

mkdir -p target/tmp
work=$(mktemp -d target/tmp/nvme-test.XXXXXX)
python3 scripts/nvme_node_test.py "$work" || failed=1
[ $failed -ne 0 ] || rm -rf "$work"
exit $failed
