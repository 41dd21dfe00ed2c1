#!/usr/bin/env python3
"""What judges and formats recorded runs: `python3 perf/run_test.py`."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scripts")]
import load_generator_check as check
import machine
import page
import run
from cases import device, kernels, pipeline, s3
from experiment import Experiment, Failed, Measured, job_figures, ready
from progress import Progress
from record import COMPLETE, Record, by_row, medians

MANIFEST = {
    "started": "2026-01-02 03:04 UTC", "cpu_model": "A", "cpu_count": 2, "memory_bytes": 8 << 30, "kernel": "Linux 6", "file_system": "ext4 on /dev/vda",
    "git_commit": "0123456789ab", "kiseki_bench": "", "tools": {"fio": "fio-3.33"}, "pinned": ["0", "1"], "load_average_1m": 0.5,
}


def ring(per_second, cpu_us=5.0, p50_us=10.0):
    return {"per_second": per_second, "mib_per_second": 1.0, "p50_us": p50_us, "p99_us": 20.0, "cpu_us_per_op": cpu_us}


class Scratch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.record = Record.make(self.directory / "2026-01-02-a", MANIFEST)

    def begin(self, case):
        self.record.begin(case, begun="now", commit="c", load=0.1, quick=False)

    def page(self):
        page.write(self.record)
        return (self.record.directory / "README.md").read_text()


class Pages(Scratch):
    def test_ratios_are_medians_of_neighbors_and_not_ratios_of_medians(self):
        self.begin("device")
        # The disk halves its speed between rounds: ratios of neighbors are 0.5, 0.9, 1.0; medians of each side would say 0.5 as well as 1.0.
        for number, (ours, fio) in enumerate([(100, 200), (900, 1000), (50, 50)]):
            for who, value in [("kiseki", ours), ("fio", fio)]:
                self.record.add("device", "x", who, number, {}, [Measured("randread 4k x1", who, ring(value))])
        self.record.end("device", COMPLETE)
        line = next(line for line in self.page().splitlines() if line.startswith("| randread 4k x1 | kiseki |"))
        self.assertIn("| 0.90 (0.70-0.95) |", line)
        self.assertIn("| 100 |", line)
        self.assertIn("| 850% |", line)

    def test_what_is_missing_or_failed_is_told(self):
        self.begin("device")
        self.record.say("device", "left_out", "fio is not installed")
        self.record.add("device", "x", "kiseki", 0, {}, [Measured("read 1m x8", "kiseki", {**ring(7), "errors": 3})])
        self.record.say("device", "failures", "write: it broke")
        self.record.end("device", "interrupted")
        text = self.page()
        for told in ("Left out: fio is not installed", "Failed: write: it broke", "not complete (interrupted)", "kiseki (3 errors)"):
            self.assertIn(told, text)

    def test_a_peer_is_held_against_kiseki_in_its_own_line(self):
        whos = {"kiseki": [{"per_second": 300.0}], "garage": [{"per_second": 100.0}]}
        self.assertEqual(page.ratio(s3, whos, "garage"), "3.00")
        self.assertEqual(page.ratio(s3, whos, "kiseki"), "")

    def test_a_record_is_read_back_with_all_raw_documents(self):
        self.begin("device")
        self.record.add("device", "x", "fio", 2, {"jobs": [1]}, [Measured("r", "fio", ring(1))])
        again = Record.open(self.record.directory)
        one = again.index["cases"]["device"]["measured"][0]
        self.assertEqual((one["round"], one["figures"]["per_second"]), (2, 1))
        self.assertEqual(json.loads((again.directory / one["raw"]).read_text()), {"jobs": [1]})
        again.begin("device")
        self.assertFalse((again.directory / one["raw"]).exists(), "a case that is measured anew keeps nothing old")
        with self.assertRaises(ValueError):
            Record.open(self.directory)


    def test_one_row_of_a_case_is_measured_anew_and_the_others_stay(self):
        self.begin("device")
        for name in ("x", "xy"):
            self.record.add("device", name, "fio", 0, {}, [Measured(name, "fio", ring(1))])
            self.record.say("device", "failures", f"{name}: it broke")
        self.record.begin("device", ["x"])
        case = self.record.index["cases"]["device"]
        self.assertEqual(([one["row"] for one in case["measured"]], case["failures"]), (["xy"], ["xy: it broke"]))
        self.assertEqual([path.name for path in (self.record.directory / "raw/device").iterdir()], ["xy.fio.0.json"])
        self.assertEqual(run.wanted(["s3/get-4k", "device", "s3/put"]), {"device": [], "s3": ["get-4k", "put"]})


class Limits(unittest.TestCase):
    def test_a_busy_processor_is_named_and_an_idle_one_is_not(self):
        busy = {"r": {"kiseki": ring(190_000), "fio": ring(200_000)}}
        self.assertTrue(device.limit("r", busy).startswith("the processor: 5.0 us an operation keep it 95% busy"))
        self.assertIn("fio's median is 1.05 times ours", device.limit("r", busy))
        self.assertTrue(device.limit("r", {"r": {"kiseki": ring(1_000)}}).startswith("not the processor"))

    def test_which_side_of_s3_is_busy(self):
        figures = {"per_second": 10_000, "server_us_per_op": 95, "client_us_per_op": 40, "phase read": 30.0, "phase send": 10.0}
        told = s3.limit_of(figures)
        self.assertTrue(told.startswith("the server's processor, 95% busy"), told)
        self.assertIn("read 75%, send 25% of 40 us", told)
        self.assertTrue(s3.limit_of({**figures, "server_us_per_op": 50, "client_us_per_op": 97}).startswith("the client's processor"))
        self.assertTrue(s3.limit_of({**figures, "server_us_per_op": 50}).startswith("no processor"))

    def test_stages_are_shares_of_the_whole(self):
        speeds = dict.fromkeys(("receive", "cut", "keys", "seal", "encode", "checksum"), 10.0) | {"id-batch": 2.5, "whole": 1.0}
        told = pipeline.limit("whole", {name: {"kiseki": {"gib_per_second": speed}} for name, speed in speeds.items()})
        self.assertIn("id-batch 40%", told)
        self.assertTrue(told.endswith("together 100% of its time"), told)

    def test_kernels_are_held_against_the_plain_one(self):
        one = {"bench": "id/ShaNi/eight", "bytes": 1 << 30, "median_ns": 5e8}
        measured = kernels.measured(one)
        self.assertEqual((measured.row, measured.who, measured.figures["gib_per_second"]), ("id eight", "ShaNi", 2.0))
        told = kernels.limit("id eight", {"id eight": {"ShaNi": {"gib_per_second": 2.0}, "Plain": {"gib_per_second": 0.5}}})
        self.assertIn("4.0 times its twin", told)

    def test_a_job_without_operations_is_a_failure_and_no_zero(self):
        nothing = {"jobname": "x", "read": {"total_ios": 0}, "write": {"total_ios": 0}, "errors": {"messages": ["refused"]}}
        with self.assertRaisesRegex(Failed, "refused"):
            job_figures(nothing)


class Generators(unittest.TestCase):
    TOLD = {"summary": {"total": 2.0}, "statusCodeDistribution": {"200": 100, "503": 7}, "errorDistribution": {"timeout": 1},
            "latencyPercentiles": {"p50": 0.001, "p99": 0.01}}

    def test_only_objects_count_as_requests(self):
        figures = check.oha_figures(self.TOLD)
        self.assertEqual((figures["per_second"], figures["p50_us"], figures["errors"]), (50.0, 1000.0, 8))
        with self.assertRaises(Failed):
            check.oha_figures({**self.TOLD, "statusCodeDistribution": {"403": 100}})

    def test_ratios_are_ours_to_theirs(self):
        found = {check.OURS: {"per_second": 90, "p50_us": 11, "p99_us": 30}, "oha": {"per_second": 100, "p50_us": 10, "p99_us": 20}}
        self.assertEqual(check.compared(found), {"oha": {"per_second": 0.9, "p50_us": 1.1, "p99_us": 1.5}})


class Runs(Scratch):
    def experiment(self, measure, name="e", rounds=2):
        return Experiment(name, ("kiseki", "fio"), ready(measure), rounds, 1.0)

    def test_contenders_alternate(self):
        self.assertEqual(self.experiment(None).turns(), [(0, "kiseki"), (0, "fio"), (1, "fio"), (1, "kiseki")])

    def test_a_failure_costs_its_experiment_only(self):
        def broken(_):
            raise Failed("it broke")

        def works(who):
            return {}, [Measured("works", who, ring(5))]

        experiments = [self.experiment(broken, "broken"), self.experiment(works, "works")]
        self.begin("device")
        progress = Progress(experiments, out=io.StringIO())
        run.perform(device, experiments, self.record, progress)
        case = self.record.index["cases"]["device"]
        self.assertEqual(case["failures"], ["broken: it broke"])
        self.assertEqual([(one["round"], one["who"]) for one in case["measured"]], [(0, "kiseki"), (0, "fio"), (1, "fio"), (1, "kiseki")])
        self.assertEqual((progress.done, progress.left_s), (8, 0.0))

    def test_what_is_left_follows_the_pace_so_far(self):
        now = [0.0]
        experiment = self.experiment(None)
        progress = Progress([experiment], out=io.StringIO(), clock=lambda: now[0])
        self.assertEqual(progress.remaining_s(), 4.0)
        now[0] = 3.0
        progress.ended(experiment, [])
        self.assertEqual(progress.remaining_s(), 9.0)

    def test_medians_and_rows_keep_rounds_in_order(self):
        measured = [{"row": "r", "who": "a", "round": number, "figures": {"x": value}} for number, value in [(1, 9.0), (0, 1.0), (2, 4.0)]]
        rows = by_row(measured)
        self.assertEqual([one["x"] for one in rows["r"]["a"]], [1.0, 9.0, 4.0])
        self.assertEqual(medians(rows)["r"]["a"]["x"], 4.0)

    def test_bad_arguments_end_with_2(self):
        here = {**MANIFEST, "cpu_model": machine.cpu_model(), "cpu_count": 1000}
        Record.make(self.directory / "elsewhere", here)
        for words in (["--only", "nothing"], ["--peer", "nobody"], ["--into", str(self.directory / "none")], ["--into", str(self.directory / "elsewhere")]):
            with self.subTest(words=words), contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
                run.arguments(words)
            self.assertEqual(end.exception.code, 2)
            self.assertIn(words[-1].rsplit("/", 1)[-1], said.getvalue())

    def test_names_of_machines(self):
        for model, cpus, name in (("Intel(R) Xeon(R) Processor", 2, "intel-xeon-2-cpus"), ("AMD EPYC 9654 96-Core Processor", 96, "amd-epyc-9654-96-cpus"),
                                  ("", 1, "machine-1-cpu")):
            self.assertEqual(machine.slug(model, cpus), name)


if __name__ == "__main__":
    unittest.main()
