"""kiseki-bench's figures beside those of load generators that others wrote."""

import contextlib
import functools

import load_generator_check as check
import s3_compare
from cases import s3
from experiment import Absent, Experiment, Measured

NAME = "generators"
TITLE = "kiseki-bench beside other load generators"
ABOUT = ("`perf/load_generator_check.py`: the same GETs of 4 KiB on the same endpoint by kiseki-bench, oha and wrk, in turn, on one processor; the "
         "server runs on the other, through all rounds of a row. oha signs each request, wrk signed them before and corrects its p99. Ratios are "
         "kiseki-bench's requests a second divided by the other's.")
COLUMNS = (("requests/s", "per_second", 0), ("p50 us", "p50_us", 0), ("p99 us", "p99_us", 0))
RATIO = ("per_second", None)
# Whose table this is: ratios are of this one to the others.
OURS = check.OURS

SIZE = "4k"


def experiments(setting):
    tools = check.generators()
    if not tools:
        raise Absent(f"neither oha nor wrk is installed: {check.HOW}")
    seconds = setting.either(1, 3)

    @contextlib.contextmanager
    def opened(server, clients):
        with check.serving(server, setting.peers, setting.work, setting.server_pin) as target:
            target.store(check.bytes_of(SIZE))

            def measure(who):
                told, figures = check.measure(who, target, SIZE, clients, seconds, list(setting.client_pin))
                return told, [Measured(f"{server}, {clients} connection{'s' if clients > 1 else ''}", who, figures)]

            yield measure

    return [
        Experiment(f"{server}-x{clients}", (check.OURS, *tools), functools.partial(opened, server, clients), setting.either(1, 5), seconds + 0.8)
        for server in ("kiseki", *(s3_compare.named(peer)[0] for peer in s3.present(setting))) for clients in (1, 16)
    ]


def left_out(setting):
    return [f"{name} is not installed" for name in ("oha", "wrk") if name not in check.generators()] + s3.left_out(setting)


def limit(row, medians):
    ours = medians[row].get(check.OURS)
    if not ours:
        return None
    busy = ours["cpu_us_per_op"] * ours["per_second"] / 1e6
    told = [f"kiseki-bench keeps its processor {busy:.0%} busy"]
    told += [f"its p50 is {one['p50_us']:.2f} and its p99 {one['p99_us']:.2f} of {who}'s" for who, one in check.compared(medians[row]).items()]
    return "; ".join(told)
