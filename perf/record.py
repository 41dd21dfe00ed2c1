"""The directory of a run: what was measured, and all raw documents. Written after every measurement, so that what is there is
whole whenever the run ends."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import statistics

INDEX = "run.json"
PAGE = "README.md"
# How a case stands.
RUNNING, COMPLETE, INTERRUPTED, ABSENT = "running", "complete", "interrupted", "absent"


class Record:
    """`run.json`: manifest, and by case its state, what is missing, its measurements. `raw/CASE/*.json`: what programs printed."""

    def __init__(self, directory, index):
        self.directory, self.index = pathlib.Path(directory), index

    @classmethod
    def make(cls, directory, manifest):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True)
        record = cls(directory, {"manifest": manifest, "cases": {}})
        record.write()
        return record

    @classmethod
    def open(cls, directory):
        """A run that is there; ValueError when it is none."""
        path = pathlib.Path(directory) / INDEX
        try:
            index = json.loads(path.read_text())
            index["manifest"], index["cases"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of a run: {error}") from error
        return cls(directory, index)

    def write(self):
        beside = self.directory / f"{INDEX}.new"
        beside.write_text(json.dumps(self.index, indent=1) + "\n")
        os.replace(beside, self.directory / INDEX)

    def begin(self, case, names=None, **facts):
        """A case that was there already is measured anew; with `names` only these experiments of it are, and the others stay."""
        old = self.index["cases"].get(case)
        if names is None or old is None:
            shutil.rmtree(self.directory / "raw" / case, ignore_errors=True)
            old = {"left_out": [], "failures": [], "measured": []}
        else:
            again = lambda text: any(text.startswith(mark) for name in names for mark in (f"raw/{case}/{name}.", f"{name}: "))
            for one in {one["raw"] for one in old["measured"] if again(one["raw"])}:
                (self.directory / one).unlink(missing_ok=True)
            old["measured"] = [one for one in old["measured"] if not again(one["raw"])]
            old["failures"] = [text for text in old["failures"] if not again(text)]
        self.index["cases"][case] = {**old, "left_out": [], "state": RUNNING, **facts}
        self.write()

    def end(self, case, state):
        self.index["cases"][case]["state"] = state
        self.write()

    def say(self, case, kind, text):
        """`kind`: left_out or failures."""
        self.index["cases"][case][kind].append(text)
        self.write()

    def add(self, case, experiment, who, number, document, measured):
        path = pathlib.Path("raw") / case / f"{experiment}.{who}.{number}.json"
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).write_text(json.dumps(document, separators=(",", ":")) + "\n")
        for one in measured:
            figures = {key: round(value, 4) for key, value in one.figures.items()}
            self.index["cases"][case]["measured"].append({**dataclasses.asdict(one), "figures": figures, "round": number, "raw": str(path)})
        self.write()


def by_row(measured):
    """{row: {who: [figures of each round]}} in the order in which they were measured."""
    rows = collections.OrderedDict()
    for one in measured:
        rows.setdefault(one["row"], collections.OrderedDict()).setdefault(one["who"], []).append((one["round"], one["figures"]))
    return {row: {who: [figures for _, figures in sorted(rounds, key=lambda one: one[0])] for who, rounds in whos.items()}
            for row, whos in rows.items()}


def medians(rows):
    """The same with the median of each figure; a figure that only some rounds have is of those."""
    def middle(rounds):
        keys = dict.fromkeys(key for figures in rounds for key in figures)
        return {key: statistics.median(figures[key] for figures in rounds if key in figures) for key in keys}

    return {row: {who: middle(rounds) for who, rounds in whos.items()} for row, whos in rows.items()}
