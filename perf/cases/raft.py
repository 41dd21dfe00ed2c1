"""Raft groups: `kiseki-bench raft`, and `benches/benches/raft_groups` beside openraft alone and one flush."""

import functools
import json

import cargo_bench
from experiment import Experiment, Failed, Measured, document, job_figures, output, ready
from node import PROGRAMS

NAME = "raft"
TITLE = "Commits of Raft groups"
ABOUT = ("Three members, journals on the disk, commands of 256 bytes. *Executors*: `kiseki-bench raft`, a member a thread, TLS between them. "
         "*One executor*: `benches/benches/raft_groups`, links in the process, beside openraft with no log at all and one flush alone, in turns.")
COLUMNS = (("commits/s", "per_second", 0), ("p50 us", "p50_us", 0), ("p99 us", "p99_us", 0), ("CPU us/commit", "cpu_us_per_op", 1),
           ("flushes/commit", "flushes_per_commit", 2))
RATIO = ("p50_us", ("openraft and a flush",))

LOADS = [(1, 1), (1, 16), (1, 256), (16, 256)]


def experiments(setting):
    times = ["--runtime", setting.either("300ms", "3s"), "--warmup", setting.either("100ms", "1s")]
    bench = cargo_bench.program("raft_groups")
    rounds = setting.either(1, 3)

    def members(groups, writers, _):
        words = ["--dir", setting.work, "--groups", groups, "--writers", writers, *times]
        told = document([PROGRAMS / "kiseki-bench", "raft", "--json", *words])
        job = told["jobs"][0]
        figures = {**job_figures(job), "cpu_us_per_op": job["client_cpu"]["ns_per_op"] / 1e3, "flushes_per_commit": job["flushes_per_commit"]}
        return told, [Measured(name("executors", groups, writers), "kiseki", figures)]

    def together(_):
        words = ["--dir", str(setting.work), "--seconds", setting.either("0.2", "1"), "--rounds", "1"]
        words += ["--groups", "1,16", "--writers", "1,16,256"] if not setting.quick else ["--groups", "1", "--writers", "1,16"]
        lines = output([*setting.client_pin, bench, "--bench", "--json", *words]).splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        if not told:
            raise Failed("raft_groups told nothing")
        return {"lines": told}, [one for line in told for one in beside_openraft(line)]

    each = setting.either(1, 5)
    found = [Experiment(f"executors-{groups}-x{writers}", ("kiseki",), ready(functools.partial(members, groups, writers)), rounds, each)
             for groups, writers in LOADS]
    return [*found, Experiment("one-executor", ("raft_groups",), ready(together), rounds, setting.either(2, 16))]


def name(where, groups, writers):
    return f"{where}: {groups} group{'s' if groups > 1 else ''}, {writers} writer{'s' if writers > 1 else ''}"


def beside_openraft(line):
    row = name("one executor", line["groups"], line["writers"])
    ours = {"per_second": line["ops_per_second"], "p50_us": line["p50_us"], "p99_us": line["p99_us"], "cpu_us_per_op": line["cpu_us_per_op"]}
    alone = {"per_second": line["floor_ops_per_second"], "p50_us": line["floor_p50_us"], "cpu_us_per_op": line["floor_cpu_us_per_op"]}
    both = {"p50_us": line["floor_p50_us"] + line["flush_p50_us"]}
    flush = {"p50_us": line["flush_p50_us"]}
    return [Measured(row, "kiseki", ours), Measured(row, "openraft alone", alone), Measured(row, "one flush", flush),
            Measured(row, "openraft and a flush", both)]


def limit(row, medians):
    ours = medians[row]["kiseki"]
    busy = ours["cpu_us_per_op"] * ours["per_second"] / 1e6
    if "one flush" not in medians[row]:
        return f"three executors use {busy:.2f} processors, {ours['cpu_us_per_op']:.0f} us and {ours['flushes_per_commit']:.2f} flushes a commit"
    flush, both = medians[row]["one flush"]["p50_us"], medians[row]["openraft and a flush"]["p50_us"]
    alone = medians[row]["openraft alone"]["cpu_us_per_op"]
    return (f"the processor is {busy:.0%} busy with {ours['cpu_us_per_op']:.1f} us a commit (openraft alone: {alone:.1f}); one flush is "
            f"{flush / ours['p50_us']:.0%} of p50, which is {ours['p50_us'] / both:.2f} times openraft and a flush")
