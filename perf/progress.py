"""What runs, what came out, and how long it still takes: a line for each measurement."""

import sys
import time


class Progress:
    """What is left is what was estimated, corrected by how well the estimates were so far."""

    def __init__(self, experiments, out=sys.stderr, clock=time.monotonic):
        experiments = list(experiments)
        self.total = sum(len(one.turns()) for one in experiments)
        self.left_s = sum(len(one.turns()) * one.seconds for one in experiments)
        self.done, self.done_s = 0, 0.0
        self.out, self.clock, self.start = out, clock, clock()

    def remaining_s(self):
        pace = (self.clock() - self.start) / self.done_s if self.done_s else 1.0
        return self.left_s * pace

    def begins(self, case, experiment, who, number):
        remaining = self.remaining_s()
        left = f"{remaining / 60:.0f} min" if remaining >= 90 else f"{remaining:.0f} s"
        round_of = f", round {number + 1} of {experiment.rounds}" if experiment.rounds > 1 else ""
        print(f"[{self.done + 1}/{self.total}, about {left} left] {case} {experiment.name}: {who}{round_of}", end="", file=self.out, flush=True)

    def ended(self, experiment, measured):
        self.pass_by(experiment, 1)
        said = [f"{one.figures['per_second']:,.0f}/s" for one in measured[:1] if "per_second" in one.figures]
        print("".join(f"  {text}" for text in said), file=self.out, flush=True)

    def failed(self, experiment, left, error):
        self.pass_by(experiment, left)
        print(f"  FAILED: {error}", file=self.out, flush=True)

    def pass_by(self, experiment, count):
        self.done += count
        self.done_s += count * experiment.seconds
        self.left_s -= count * experiment.seconds
