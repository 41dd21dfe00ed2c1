#!/usr/bin/env bash
# NVMe drives in an emulated machine: the tests of the devices room on them, what an operator types, a node that runs while its
# drives change, and a node whose power is cut. Exit code 75: the machine can't be set up here, and nothing was tested.
#
#   nvme-test.sh [--long]     --long: the tests of the devices room on four processors and on one too, with other
#                             transfer limits
set -uo pipefail
cd "$(dirname "$0")/.."
# mke2fs, where an ordinary user does not have it at hand.
PATH=$PATH:/usr/sbin:/sbin

case ${1:-} in
'') long=no ;;
--long) long=yes ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

scripts/nvme-vm.sh setup
status=$?
if [ $status -eq 75 ]; then
    echo 'SKIPPED: nothing was tested on NVMe drives' >&2
    exit 75
fi
[ $status -eq 0 ] || exit $status

program=$(cargo test --release --ignore-rust-version -p kiseki-devices --test nvme --no-run --message-format=json 2>/dev/null |
    grep -o '"executable":"[^"]*/nvme-[^"]*"' | tail -n1 | cut -d'"' -f4)
[ -n "$program" ] || { echo 'the tests for NVMe drives can not be built: cargo test -p kiseki-devices --test nvme --no-run' >&2; exit 1; }

mkdir -p target/tmp
work=$(mktemp -d target/tmp/nvme-test.XXXXXX)
passed=0
failed=0
failures=()
echo "run by $(scripts/nvme-vm.sh accel)"

# part NAME COMMAND...: runs it, and adds up what it counts; one that ends badly without a count is a failure itself.
part() {
    local name=$1 log=$work/$1.log status good bad start=$SECONDS
    shift
    "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    read -r good bad < <(awk '/^test result:/ {good += $4; bad += $6} /^[0-9]+ passed, [0-9]+ failed/ {good += $1; bad += $3}
        END {print good + 0, bad + 0}' "$log")
    if [ "$bad" -gt 0 ] || [ "$status" -ne 0 ] || [ "$good" -eq 0 ]; then
        failures+=("FAIL  part $name: exit code $status, $good passed, $bad failed; look at $log")
        [ "$bad" -gt 0 ] || bad=1
    fi
    echo "part $name: $((SECONDS - start)) s"
    passed=$((passed + good)) failed=$((failed + bad))
}

# devices POLL_QUEUES PROCESSORS MDTS: the tests of the devices room. A transfer limit of 128 KiB (5) cuts what is larger.
devices() {
    DRIVES='256M:512 256M:4096 faulty=64M:512 slow=64M:512;vwc=0 64M:512;noiob=64 slow=64M:4096' NVME=,mdts=$3 MEM=1280 SMP=$2 \
        APPEND=nvme.poll_queues=$1 scripts/nvme-vm.sh exec "
        export KISEKI_NVME_DRIVES='/dev/drive0 /dev/drive1' KISEKI_NVME_FAULTY=/dev/drive2
        export KISEKI_NVME_CACHELESS=/dev/drive3 KISEKI_NVME_BOUNDARY=/dev/drive4 KISEKI_NVME_SLOW=/dev/drive5
        /t/$(basename "$program") --ignored --test-threads=1 2>&1" "$program"
}

devctl() {
    DRIVES='256M:512 256M:4096 64M:512+64M:512;fna=1 64M:512+64M:512' MEM=1024 \
        scripts/nvme-vm.sh exec "$(cat scripts/nvme_devctl.sh)" target/release/kiseki-devctl
}

part polled devices 2 2 5
part interrupts devices 0 2 5
if [ $long = yes ]; then
    part four-processors devices 4 4 7
    part one-processor devices 1 1 0
fi
part operator devctl
part running python3 scripts/nvme_running_test.py "$work"
part power python3 scripts/nvme_node_test.py "$work"

if [ $failed -eq 0 ]; then
    rm -rf "$work"
else
    grep -hE '^FAIL |^test .* FAILED|panicked at' "$work"/* | sort -u | head -n 20
    printf '%s\n' "${failures[@]}" "what the machines said: $work/*.console"
fi
echo "NVMe drives: $passed passed, $failed failed"
[ $failed -eq 0 ]
