#!/usr/bin/env python3
"""Measures every published figure in one run and records it: `make bench`.

    perf/run.py [--quick] [--only CASE[/ROW] ...] [--peer NAME[=COMMAND] ...] [--into DIRECTORY] [--machine NAME] [--work DIRECTORY]
    perf/run.py --page DIRECTORY         makes the page of a recorded run anew

Cases: kernels, pipeline, device, engine, raft, rpc, s3, s3-memory, generators; each measures its contenders in turn, several rounds, and figures are
medians. Servers are kept to the first processor, clients to the second. What a case needs and this machine lacks (fio, a peer, oha, wrk) is left
out, and the page says so. All of it takes about 25 minutes and another 6 for each peer; with --quick less than five in all, to see that it works.

The record is `perf/runs/DATE-MACHINE/`: `run.json` with manifest and figures, `raw/` with everything that kiseki-bench, fio and the others
printed, `README.md` with tables and what limits each row. --into adds cases to a record of this machine, or measures them anew; `--only
s3/get-1m` those rows of a case whose raw files have that in their names. Ctrl-C ends the run: what was measured
until then is kept and is a record like any other.

--peer is that of s3_compare.py (garage, s3s-fs, kiseki-chunks, NAME=COMMAND). --work is where files to be measured lie, on the disk to be measured
(target/perf). Exit code 1 when a measurement failed, 2 for bad arguments, 130 after Ctrl-C.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import cases
import machine
import page
import s3_compare
from experiment import Absent, Failed, Setting
from node import PROGRAMS, ROOT
from progress import Progress
from record import ABSENT, COMPLETE, INTERRUPTED, Record

RUNS = ROOT / "perf" / "runs"


def arguments(words):
    parser = argparse.ArgumentParser(prog="perf/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds for everything")
    parser.add_argument("--only", action="append", default=[], metavar="CASE[/ROW]", help=f"repeatable; cases: {', '.join(cases.ALL)}")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=COMMAND]", help="another S3 server; repeatable")
    parser.add_argument("--into", type=pathlib.Path, metavar="DIRECTORY", help="a record to add to")
    parser.add_argument("--machine", metavar="NAME", help="how the record names this machine (its processor)")
    parser.add_argument("--runs", type=pathlib.Path, default=RUNS, help="where records lie")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/perf")
    parser.add_argument("--page", type=pathlib.Path, metavar="DIRECTORY", help="measure nothing, make this record's page")
    options = parser.parse_args(words)
    try:
        for peer in options.peer:
            s3_compare.named(peer)
        for only in options.only:
            if only.partition("/")[0] not in cases.ALL:
                raise ValueError(f"--only {only}: cases are {', '.join(cases.ALL)}")
        options.record = Record.open(options.into or options.page) if options.into or options.page else None
    except ValueError as error:
        parser.error(str(error))
    if options.into and (reason := other_machine(options.record.index["manifest"])):
        parser.error(f"--into {options.into}: {reason}")
    if not options.page and not (PROGRAMS / "kiseki-bench").exists():
        parser.error(f"{PROGRAMS / 'kiseki-bench'} is missing: make build kiseki-bench")
    return options


def other_machine(manifest):
    """Why figures from here don't belong into a record; None when they do."""
    for key, here in (("cpu_model", machine.cpu_model()), ("cpu_count", len(os.sched_getaffinity(0)))):
        if manifest[key] != here:
            return f"it is from another machine: its {key} is {manifest[key]}, here it is {here}"
    return None


def setting_of(options, work):
    has_two = len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset")
    pins = [("taskset", "-c", cpu) if has_two else () for cpu in (s3_compare.FIRST_CPU, s3_compare.SECOND_CPU)]
    return Setting(work, options.quick, tuple(options.peer), *pins)


def directory_for(options):
    """A name that is not taken."""
    name = options.machine or machine.slug(machine.cpu_model(), len(os.sched_getaffinity(0)))
    base = f"{time.strftime('%Y-%m-%d', time.gmtime())}-{name}"
    return next(path for number in range(1, 1000) if not (path := options.runs / (base + (f"-{number}" if number > 1 else ""))).exists())


def wanted(only):
    """{case: texts of rows, empty for all of them} of --only, in the order of cases."""
    found = {}
    for word in only or cases.ALL:
        name, _, text = word.partition("/")
        found.setdefault(name, []).append(text)
    return {name: [] if "" in found[name] else found[name] for name in cases.ALL if name in found}


def planned(only, setting, record):
    """(case, its experiments) of what can be measured here; the record says what can't."""
    found = []
    for name, texts in wanted(only).items():
        case, facts = cases.ALL[name], {"begun": machine.now(), "commit": machine.commit(), "load": os.getloadavg()[0], "quick": setting.quick}
        try:
            experiments = [one for one in case.experiments(setting) if not texts or any(text in one.name for text in texts)]
        except Absent as error:
            record.begin(name, **facts)
            record.say(name, "left_out", str(error))
            record.end(name, ABSENT)
            continue
        except Failed as error:
            record.begin(name, **facts)
            record.say(name, "failures", str(error))
            record.end(name, COMPLETE)
            continue
        record.begin(name, [one.name for one in experiments] if texts else None, **facts)
        for text in case.left_out(setting) if hasattr(case, "left_out") else []:
            record.say(name, "left_out", text)
        found.append((case, experiments))
    return found


def perform(case, experiments, record, progress):
    for experiment in experiments:
        left = len(experiment.turns())
        try:
            with experiment.opened() as measure:
                for number, who in experiment.turns():
                    progress.begins(case.NAME, experiment, who, number)
                    document, measured = measure(who)
                    record.add(case.NAME, experiment.name, who, number, document, measured)
                    left -= 1
                    progress.ended(experiment, measured)
        except Failed as error:
            # The rounds that are left of it would fail the same way; the other experiments go on.
            record.say(case.NAME, "failures", f"{experiment.name}: {error}")
            progress.failed(experiment, left, error)


def run(options, record, work):
    setting = setting_of(options, work)
    plan = planned(options.only, setting, record)
    progress = Progress(experiment for _, experiments in plan for experiment in experiments)
    for at, (case, experiments) in enumerate(plan):
        try:
            record.index["cases"][case.NAME].update(begun=machine.now(), load=os.getloadavg()[0])
            perform(case, experiments, record, progress)
        except KeyboardInterrupt:
            for other, _ in plan[at:]:
                record.end(other.NAME, INTERRUPTED)
            raise
        record.end(case.NAME, COMPLETE)


def interrupt(*_):
    raise KeyboardInterrupt


def main(words=None):
    options = arguments(words)
    if options.page:
        page.write(options.record)
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    options.work.mkdir(parents=True, exist_ok=True)
    code = 0
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work.resolve()) as work:
        record = options.record
        if record is None:
            pins = [s3_compare.FIRST_CPU, s3_compare.SECOND_CPU] if setting_of(options, work).server_pin else []
            record = Record.make(directory_for(options), machine.manifest(work, pins))
        try:
            run(options, record, work)
        except KeyboardInterrupt:
            print("ended early: what was measured is kept", file=sys.stderr)
            code = 130
        page.write(record)
    failures = [text for case in record.index["cases"].values() for text in case["failures"]]
    for text in failures:
        print(f"failed: {text}", file=sys.stderr)
    with contextlib.suppress(ValueError):
        record.directory = record.directory.resolve().relative_to(pathlib.Path.cwd())
    print(f"{record.directory / page.PAGE}")
    return code or (1 if failures else 0)


if __name__ == "__main__":
    sys.exit(main())
