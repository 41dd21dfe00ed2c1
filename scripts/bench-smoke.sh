#!/usr/bin/env bash
# Runs every verb of kiseki-bench for about a second and checks what it prints. Ends with "N passed, M failed".
#
# s3 runs against the node at AWS_ENDPOINT_URL, or, without one, against a node that this script starts in a temporary
# directory on free ports. KISEKI_PROGRAMS names the directory of the programs.
set -uo pipefail
cd "$(dirname "$0")/.."

programs=${KISEKI_PROGRAMS:-target/release}
bench=$programs/kiseki-bench
passed=0
failed=0

# Beside the build: a temporary file system in memory has no direct I/O.
mkdir -p target/tmp
work=$(mktemp -d target/tmp/bench-smoke.XXXXXX)
server_pid=
liar_pid=
cleanup() {
    [ -z "$liar_pid" ] || kill "$liar_pid" 2>/dev/null
    if [ -n "$server_pid" ]; then
        kill "$server_pid" 2>/dev/null
        while kill -0 "$server_pid" 2>/dev/null; do sleep 0.1; done
    fi
    rm -rf "$work"
}
trap cleanup EXIT

# result NAME STATUS: counts a check and says so when it failed.
result() {
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok    %s\n' "$1"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s\n' "$1"
    fi
}

# measures NAME DIRECTIONS ARGUMENTS...: runs the program with --json and checks the document. Each of the directions,
# separated by commas, has to have operations.
measures() {
    local name=$1 directions=$2
    shift 2
    if "$bench" "$@" --json >"$work/out.json" 2>"$work/err" && python3 - "$work/out.json" "$directions" <<'PYTHON'; then
import json
import sys

document = json.load(open(sys.argv[1]))
missing = [key for key in ("program", "version", "git_commit", "kernel", "cpu_model", "cpu_features", "target", "options",
                           "load_average_1m") if key not in document["manifest"]]
assert not missing, f"the manifest lacks {missing}"
assert document["jobs"], "no jobs"
for job in document["jobs"]:
    assert job["error"] == 0, job["errors"]
    for direction in sys.argv[2].split(","):
        side = job[direction]
        for key in ("io_bytes", "bw_bytes", "bw", "iops", "runtime", "total_ios"):
            assert key in side, f"{direction} lacks {key}"
        assert side["total_ios"] > 0 and side["bw_bytes"] > 0, f"{direction}: nothing was done in {job['jobname']}"
        for name in ("slat_ns", "clat_ns", "lat_ns"):
            latency = side[name]
            percentiles = [latency["percentile"][key] for key in ("50.000000", "90.000000", "99.000000", "99.900000",
                                                                  "99.990000")]
            assert percentiles == sorted(percentiles) and percentiles[-1] <= latency["max"], (name, latency)
        assert side["clat_ns"]["N"] > 0 and side["clat_ns"]["min"] > 0, side["clat_ns"]
    if job.get("server_cpu") is not None:
        assert job["server_cpu"]["total_ns"] > 0, job["server_cpu"]
PYTHON
        result "$name" 0
    else
        result "$name" 1
        tail -5 "$work/err"
    fi
}

# refuses NAME WORD ARGUMENTS...: exit code 2, and one line that holds the word.
refuses() {
    local name=$1 word=$2 status
    shift 2
    "$bench" "$@" >"$work/out" 2>"$work/err"
    status=$?
    [ "$status" -eq 2 ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -q -e "$word" "$work/err"
    result "$name" $?
    [ "$status" -eq 2 ] || tail -5 "$work/err"
}

# Whether this machine's figures are spoilt is not judged here: both exit codes are right, and a finding needs a remedy.
status=0
"$bench" doctor --runtime 200ms --dir "$work" --json >"$work/doctor.json" || status=$?
python3 - "$work/doctor.json" "$status" <<'PYTHON'
import json
import sys

document = json.load(open(sys.argv[1]))
findings = document["findings"]
checks = {finding["check"] for finding in findings}
assert checks >= {"processor", "clock source", "other work", "steal", "pauses", "synced writes"}, checks
assert all((finding["severity"] == "ok") == (not finding["remedy"]) for finding in findings), findings
spoilt = any(finding["severity"] == "error" for finding in findings)
assert not document["interrupted"]
assert document["spoils_figures"] == spoilt == (sys.argv[2] == "1"), (document, sys.argv[2])
PYTHON
result "doctor" $?
[ -z "$(find "$work" -name '.kiseki-bench-doctor-*')" ]
result "doctor removes what it wrote" $?
refuses "doctor wants time" --runtime doctor --runtime 0

device=(device "$work/d.img" --size 64m --runtime 1s --warmup 0)
measures "device randread" read "${device[@]}" --rw randread --bs 4k --iodepth 8
measures "device randwrite" write "${device[@]}" --rw randwrite --bs 4k --iodepth 8 --fdatasync 4
measures "device write" write "${device[@]}" --rw write --bs 1m --iodepth 4
measures "device mixed" read,write "${device[@]}" --rw randrw --bs 16k --iodepth 4 --numjobs 2
[ ! -e "$work/d.img" ]
result "device removes the file that it made" $?

truncate -s 16m "$work/fs.img"
printf 'XFSB' | dd of="$work/fs.img" conv=notrunc status=none
refuses "device spares a file system" --destroy device "$work/fs.img" --rw write --runtime 1s
refuses "s3 needs an endpoint" AWS_ENDPOINT_URL s3 --endpoint ''

measures "rpc" write rpc --runtime 200ms --warmup 50ms --bs 256k --links 2
engine=(engine --dir "$work" --devices 3 --device-size 128m --metadata-dirs 1 --lanes 1 --clients 4 --runtime 300ms --warmup 50ms --verify)
measures "engine put" write "${engine[@]}" --op put --size 64k
measures "engine mixed, beside names" read,write "${engine[@]}" --op mixed:50/50 --size 1000 --objects 8
measures "raft" write raft --dir "$work" --groups 2 --writers 8 --runtime 300ms --warmup 50ms
[ -z "$(find "$work" -maxdepth 1 -name 'kiseki-bench-*')" ]
result "engine and raft remove what they made" $?
refuses "engine wants devices enough" --shape "${engine[@]}" --shape 4+2
measures "pipeline" write pipeline --runtime 100ms --size 16m --stage cut --stage id --stage seal --stage encode \
    --stage kernels --stage whole
measures "pipeline read path" read pipeline --runtime 100ms --size 16m --stage open --stage rebuild --data mixed

# A server that loses bytes: takes every PUT, answers every GET with as many zeros.
python3 - "$work/liar.port" <<'PYTHON' &
import http.server
import pathlib
import sys


class Liar(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body=b""):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_DELETE = answer

    def do_GET(self):
        self.answer(bytes(4096))

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
pathlib.Path(sys.argv[1]).write_text(str(server.server_port))
server.serve_forever()
PYTHON
liar_pid=$!
for _ in $(seq 100); do [ -s "$work/liar.port" ] && break; sleep 0.1; done
for op in get put; do
    AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x "$bench" s3 --endpoint "http://127.0.0.1:$(cat "$work/liar.port")" \
        --op "$op" --size 4k --clients 2 --objects 4 --runtime 300ms --warmup 0 --verify >"$work/out" 2>&1
    [ $? -eq 1 ] && grep -q 'the bytes are not those that were stored' "$work/out"
    result "s3 $op --verify finds lost bytes" $?
done

if [ -z "${AWS_ENDPOINT_URL:-}" ]; then
    export KISEKI_PROGRAMS=$programs
    python3 - "$work/node" "$work/pid" "$work/admin" >"$work/node.out" 2>&1 <<'PYTHON'
import pathlib
import sys

sys.path.insert(0, "scripts")
from node import Node

node = Node(sys.argv[1]).start()
pathlib.Path(sys.argv[2]).write_text(str(node.process.pid))
pathlib.Path(sys.argv[3]).write_text(str(node.admin_port))
PYTHON
    if [ $? -eq 0 ]; then
        server_pid=$(cat "$work/pid")
        # shellcheck disable=SC1091
        . "$work/node/env"
    else
        result "a node starts" 1
        tail -5 "$work/node.out"
    fi
fi
if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
    s3=(s3 --runtime 1s --warmup 200ms --clients 4 --cleanup --bucket bench-smoke)
    [ -z "$server_pid" ] || s3+=(--server-pid "$server_pid")
    measures "s3 put" write "${s3[@]}" --op put --size 64k --verify
    measures "s3 put, signed body, same keys" write "${s3[@]}" --op put --size 64k --objects 8 --payload signed --verify
    measures "s3 get" read "${s3[@]}" --op get --size 64k --objects 32 --verify
    measures "s3 mixed at a rate" read,write "${s3[@]}" --op mixed:50/50 --size 4k --objects 16 --rate 50 --verify \
        --hgrm "$work/out.hgrm"
    grep -q '#\[Max' "$work/out.read.hgrm" && grep -q '#\[Max' "$work/out.write.hgrm"
    result "s3 writes distributions" $?
    "$bench" "${s3[@]}" --op get --size 4k --objects 8 --sweep clients=1,2 --runtime 300ms --json >"$work/sweep.json" 2>"$work/err" &&
        python3 -c 'import json, sys; jobs = json.load(open(sys.argv[1]))["jobs"]; assert [job["sweep"]["value"] for job in jobs] == [1, 2]' "$work/sweep.json"
    result "s3 sweeps" $?
    if [ -n "$server_pid" ]; then
        # A server that stops for half a second: in an open loop all who were due meanwhile waited, and none of them is left out. It stops
        # when the run has begun, which is 0.6 s after its start: nodes first tell of what they did before.
        (sleep 1.3; kill -STOP "$server_pid"; sleep 0.5; kill -CONT "$server_pid") &
        "$bench" "${s3[@]}" --op put --size 1k --rate 200 --runtime 1500ms --warmup 0 --server-admin "http://127.0.0.1:$(cat "$work/admin")" \
            --interval-log "$work/intervals.csv" --html "$work/page.html" --json >"$work/stall.json" 2>"$work/err" && python3 - "$work/stall.json" <<'PYTHON'
import json
import sys

job = json.load(open(sys.argv[1]))["jobs"][0]
latency, service = job["write"]["lat_ns"], job["write"]["clat_ns"]
assert latency["N"] == 300, latency["N"]
assert latency["max"] >= 400_000_000 and latency["percentile"]["90.000000"] >= 200_000_000, latency
assert service["percentile"]["50.000000"] < latency["percentile"]["90.000000"], service
# By name: which operation the page shows depends on what else was counted meanwhile.
stages = {stage["name"]: stage for stage in job["waterfall"]["operations"]["PutObject"]}
assert stages["commit"]["count"] > 0, stages
PYTHON
        result "s3 at a rate: a server that stops is seen, and where its time goes" $?
        wait $! 2>/dev/null
        [ "$(wc -l <"$work/intervals.csv")" -ge 3 ] && head -1 "$work/intervals.csv" | grep -q '^job,direction,start_ms'
        result "s3 writes intervals" $?
        "$bench" report "$work/stall.json" "$work/sweep.json" --html "$work/report.html" --svg "$work/svg" >/dev/null 2>"$work/err" &&
            [ -s "$work/page.html" ] && [ -s "$work/report.html" ] && [ -s "$work/svg/latency.svg" ] && [ -s "$work/svg/waterfall-1.svg" ]
        result "report makes a page and plots" $?
        "$bench" compare "$work/stall.json" "$work/stall.json" --json >"$work/compare.json" 2>"$work/err" && python3 -m json.tool "$work/compare.json" >/dev/null
        result "compare" $?
        refuses "compare wants two sides" --with compare "$work/stall.json"
    fi
    mixed=(mixed epochs record-shards checkpoint kv-pages small-files --scale 0.001 --checkpoint-size 1m --clients 2 --verify --cleanup --bucket bench-smoke)
    # Where there is a node of our own it tells what the time went to.
    [ -s "$work/admin" ] && mixed+=(--server-admin "http://127.0.0.1:$(cat "$work/admin")")
    "$bench" "${mixed[@]}" --json >"$work/mixed.json" 2>"$work/err" &&
        python3 -c 'import json, sys; jobs = json.load(open(sys.argv[1]))["jobs"]; assert len(jobs) == 5 and not any(job["error"] for job in jobs), jobs' "$work/mixed.json"
    result "mixed, all profiles" $?
    if [ -s "$work/admin" ]; then
        python3 - "$work/mixed.json" <<'PYTHON'
import json
import sys

jobs = json.load(open(sys.argv[1]))["jobs"]
waterfall = jobs[0]["waterfall"]
assert {"PutObject", "GetObject", "DeleteObject"} <= set(waterfall["operations"]), waterfall["operations"].keys()
assert not any("waterfall" in job for job in jobs[1:]), "all profiles together, beside the first"
work = {piece["name"]: piece for piece in waterfall["work"]}
for name in ("device_read", "device_write", "device_flush", "log_flush"):
    assert work[name]["count"] > 0, work
PYTHON
        result "mixed tells where the time of all profiles went" $?
    fi
    measures "ingest" write ingest docs --clients 2 --cleanup --bucket bench-smoke
    measures "s3 put in parts" write "${s3[@]}" --op put --size 12m --part-size 5m --part-concurrency 2 --clients 2 \
        --runtime 3s --verify
fi

python3 perf/run_test.py >"$work/out" 2>&1
status=$?
result "perf: what judges and formats runs" $status
[ $status -eq 0 ] || tail -30 "$work/out"
KISEKI_PROGRAMS=$programs perf/run.py --quick --only rpc --work "$work/perf" --runs "$work/runs" >"$work/out" 2>&1 &&
    grep -q '^| bulk bytes sent | rustls |' "$work"/runs/*/README.md && [ -s "$(ls "$work"/runs/*/raw/rpc/send.kiseki.0.json)" ]
status=$?
result "perf/run.py records a run" $status
[ $status -eq 0 ] || tail -10 "$work/out"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
