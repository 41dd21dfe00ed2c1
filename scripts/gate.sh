#!/usr/bin/env bash
# The whole gate. Runs every step even if an earlier one fails, and ends with one line: N passed, N failed.
set -uo pipefail
cd "$(dirname "$0")/.."

log=target/gate
mkdir -p "$log"
passed=0
failed=0
skipped=0
failures=()

# step NAME COMMAND...: counts the step itself, or, where it prints test results, each test.
step() {
    local name=$1 out
    shift
    out="$log/$name.log"
    local start=$SECONDS
    "$@" >"$out" 2>&1
    local status=$?
    local tests_passed tests_failed
    # What can't be tested on this machine at all.
    if [ $status -eq 75 ]; then
        skipped=$((skipped + 1))
        printf 'SKIP  %-12s NOTHING OF IT WAS TESTED: %s  (%s)\n' "$name" "$(tail -n 2 "$out" | tr '\n' ' ')" "$out"
        return
    fi
    tests_passed=$(awk '/^test result:/ {n += $4} / (\[ok\]|PASS) / {n += 0} END {print n + 0}' "$out")
    tests_failed=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$out")
    # Steps in other languages end with a line "N passed, N failed".
    if grep -qE '^[0-9]+ passed, [0-9]+ failed' "$out"; then
        tests_passed=$((tests_passed + $(grep -oE '^[0-9]+ passed' "$out" | awk '{n += $1} END {print n + 0}')))
        tests_failed=$((tests_failed + $(grep -oE '^[0-9]+ passed, [0-9]+ failed' "$out" | awk '{n += $3} END {print n + 0}')))
    fi
    if [ $((tests_passed + tests_failed)) -eq 0 ]; then
        if [ $status -eq 0 ]; then tests_passed=1; else tests_failed=1; fi
    elif [ $status -ne 0 ] && [ "$tests_failed" -eq 0 ]; then
        tests_failed=1
    fi
    passed=$((passed + tests_passed))
    failed=$((failed + tests_failed))
    if [ $status -eq 0 ] && [ "$tests_failed" -eq 0 ]; then
        printf 'ok    %-12s %4d checks  %4d s\n' "$name" "$tests_passed" $((SECONDS - start))
    else
        printf 'FAIL  %-12s %4d passed, %d failed, exit %d  %4d s  (%s)\n' \
            "$name" "$tests_passed" "$tests_failed" "$status" $((SECONDS - start)) "$out"
        failures+=("$name")
        # What failed may stand far above the end.
        grep -nE '^(FAIL|test .* FAILED|error|---- .* stdout ----|thread .* panicked)|AssertionError' "$out" | head -40
        tail -40 "$out"
    fi
}

step fmt make -s fmt
step clippy make -s clippy
step unit make -s unit
step docs make -s docs
step tidy make -s tidy
step clients make -s client-test
step cluster make -s cluster-test
step bench make -s bench-smoke
# Not through make, which has one exit code for every failure of a script.
step nvme scripts/nvme-test.sh

[ ${#failures[@]} -eq 0 ] || echo "failed: ${failures[*]}"
[ $skipped -eq 0 ] || echo "$skipped steps skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ ${#failures[@]} -eq 0 ]
