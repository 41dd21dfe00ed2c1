"""Is what clients saw of one key what a single register could have shown them?

The search is Lowe's ("Testing for linearizability", 2017): through the history in the order of time, keeping every
configuration that may be true: the register's value, and which of the operations that are under way have taken effect. At the answer of
an operation it must have; where no configuration is left the history is not linearizable, and that answer is where it shows.

Three things keep the configurations few, and change no verdict:
- What changes nothing (a read, a refusal) takes effect as soon as the value fits: that can only help.
- An operation whose outcome nobody knows may take effect at any later time, or never. Of two configurations that differ in
  nothing but such operations the one that has used fewer of them can do whatever the other can.
- Values that nobody ever saw again are one and the same.

No published checker fits: porcupine is a Go module, which neither pip, cargo nor apt
bring, and stateright's tester, on crates.io, tries all orders without remembering any, which operations of unknown outcome make
hopeless. `check_self` compares this one with one that tries all orders.
"""

import itertools
import random
from dataclasses import dataclass

NEVER = float("inf")
# What nobody saw again.
UNSEEN = "(unseen)"
# More at once would be a history that this search is not made for.
CONFIGURATIONS_MAX = 200_000


class Undecided(Exception):
    """The history has too many operations of unknown outcome at once."""


@dataclass(frozen=True)
class Step:
    """One operation on one key.

    kind: put, create (if the key is absent), swap (if its value is `expect`), delete, read (`value` was seen), and of those that were
    refused: taken (create: the key was there), other (swap: its value was not `expect`).
    `value` is None for an absent key. `end` is NEVER when the outcome is unknown."""

    kind: str
    value: object
    begin: float
    end: float
    expect: object = None
    who: str = ""

    def is_known(self):
        return self.end != NEVER

    def changes(self):
        return self.kind in ("put", "create", "swap", "delete")


def fits(step, value):
    """Whether a step that changes nothing can happen at a value."""
    if step.kind == "read":
        return value == step.value
    if step.kind == "taken":
        return value is not None
    return value != step.expect  # other


def after(step, value):
    """(can it take effect, the value then)"""
    if step.kind == "put":
        return True, step.value
    if step.kind == "delete":
        return True, None
    if step.kind == "create":
        return value is None, step.value
    return value == step.expect, step.value  # swap


def simplified(steps):
    """Without the values that nobody saw, and without reads of unknown outcome."""
    seen = {step.value for step in steps if step.kind == "read"} | {step.expect for step in steps if step.kind in ("swap", "other")}
    for step in steps:
        if not step.is_known() and not step.changes():
            continue
        if step.changes() and step.value is not None and step.value not in seen:
            step = Step(step.kind, UNSEEN, step.begin, step.end, step.expect, step.who)
        yield step


class Search:
    """Configurations: value -> set of (bits of known operations under way that took effect, bits of unknown ones)."""

    def __init__(self, steps, initial):
        self.steps = steps
        self.known, self.unknown = [], []  # numbers of those under way
        self.configurations = {(initial, 0, 0)}

    def run(self):
        """None, or the step whose answer fits nothing."""
        events = []
        for number, step in enumerate(self.steps):
            # At the same instant beginnings come first: that allows more.
            events.append((step.begin, 0, number))
            if step.is_known():
                events.append((step.end, 1, number))
        for _, is_end, number in sorted(events):
            if not is_end:
                self.begin(number)
            elif not self.end(number):
                return self.steps[number]
        return None

    def settle(self, value, done):
        """Lets everything take effect that changes nothing and fits."""
        for number in self.known:
            if not done >> number & 1 and not self.steps[number].changes() and fits(self.steps[number], value):
                done |= 1 << number
        return done

    def begin(self, number):
        step = self.steps[number]
        if not step.is_known():
            self.unknown.append(number)
            return
        self.known.append(number)
        if not step.changes():
            self.configurations = {
                (value, done | 1 << number if fits(step, value) else done, used) for value, done, used in self.configurations
            }

    def end(self, number):
        bit = 1 << number
        held, seen = set(), set(self.configurations)
        left = list(self.configurations)
        while left:
            value, done, used = left.pop()
            if done & bit:
                held.add((value, done & ~bit, used))
                continue
            for further in self.moves(value, done, used):
                if further not in seen:
                    seen.add(further)
                    left.append(further)
            if len(seen) > CONFIGURATIONS_MAX:
                raise Undecided(f"{len(self.unknown)} operations of unknown outcome, {len(self.known)} under way")
        self.known.remove(number)
        self.configurations = fewest(held)
        return bool(held)

    def moves(self, value, done, used):
        for number in self.known:
            step = self.steps[number]
            if not done >> number & 1 and step.changes():
                can, then = after(step, value)
                if can:
                    yield then, self.settle(then, done | 1 << number), used
        tried = set()
        for number in self.unknown:
            step = self.steps[number]
            if used >> number & 1:
                continue
            # Of several that do the same the oldest will do.
            what = (step.kind, step.value, step.expect)
            if what in tried:
                continue
            tried.add(what)
            can, then = after(step, value)
            if can and then != value:
                yield then, self.settle(then, done), used | 1 << number


def fewest(configurations):
    """Without those that have used more operations of unknown outcome than another one that is the same otherwise."""
    groups = {}
    for value, done, used in configurations:
        groups.setdefault((value, done), []).append(used)
    kept = set()
    for (value, done), all_used in groups.items():
        least = []
        for used in sorted(all_used, key=int.bit_count):
            if not any(other & used == other for other in least):
                least.append(used)
        kept.update((value, done, used) for used in least)
    return kept


def contradiction(steps, initial=None):
    """The step at which the history of one key shows that it is not linearizable, or None."""
    return Search(list(simplified(steps)), initial).run()


def tries_all_orders(steps, initial=None):
    """The slow and obvious way, for few steps."""
    steps = [step for step in steps if step.is_known() or step.changes()]

    def goes_on(value, left):
        if not any(step.is_known() for step in left):
            return True
        for step in left:
            others = [other for other in left if other is not step]
            if any(other.end < step.begin for other in others):
                continue
            can, then = after(step, value) if step.changes() else (fits(step, value), value)
            if can and goes_on(then, others):
                return True
            if not step.is_known() and goes_on(value, others):
                return True  # it never happened
        return False

    return goes_on(initial, steps)


def check_self(check, rounds=3_000, seed=1):
    """Histories whose verdict is known, and random ones against the slow way."""
    put = lambda value, begin, end: Step("put", value, begin, end)
    read = lambda value, begin, end: Step("read", value, begin, end)
    good = {
        "reads beside a write may see either": [put(1, 0, 9), read(None, 1, 3), read(1, 4, 6)],
        "a write without an answer may come late": [put(1, 0, NEVER), read(None, 1, 2), read(1, 3, 4)],
        "or never": [put(1, 0, NEVER), read(None, 1, 2), read(None, 3, 4)],
        "one of two creations wins": [Step("create", 1, 0, 5), Step("taken", None, 1, 6), read(1, 7, 8)],
        "a swap of what is there": [put(1, 0, 1), Step("swap", 2, 2, 3, 1), read(2, 4, 5)],
        "a swap is refused behind another": [put(1, 0, 1), Step("swap", 2, 2, 5, 1), Step("other", None, 3, 6, 1), read(2, 7, 8)],
    }
    bad = {
        "an acknowledged write is lost": [put(1, 0, 1), put(2, 2, 3), read(1, 4, 5)],
        "an acknowledged write is gone": [put(1, 0, 1), read(None, 2, 3)],
        "a read goes back behind another": [put(1, 0, 1), put(2, 2, NEVER), read(2, 3, 4), read(1, 5, 6)],
        "what was deleted comes back": [put(1, 0, 1), Step("delete", None, 2, 3), read(1, 4, 5)],
        "two creations win": [Step("create", 1, 0, 5), Step("create", 2, 1, 6)],
        "two swaps of the same value win": [put(1, 0, 1), Step("swap", 2, 2, 5, 1), Step("swap", 3, 3, 6, 1)],
        "a value out of nowhere": [put(1, 0, 1), read(3, 2, 3)],
        "a swap is refused for nothing": [put(1, 0, 1), Step("other", None, 2, 3, 1)],
        "an unknown write happens twice": [put(1, 0, NEVER), read(1, 1, 2), put(2, 3, 4), read(2, 5, 6), read(1, 7, 8)],
    }
    for what, steps in good.items():
        check(contradiction(steps) is None, f"checker: {what}")
    for what, steps in bad.items():
        check(contradiction(steps) is not None, f"checker refuses: {what}")
    rng, verdicts, differ = random.Random(seed), [0, 0], 0
    for _ in range(rounds):
        steps = random_steps(rng)
        slow = tries_all_orders(steps)
        verdicts[slow] += 1
        differ += (contradiction(steps) is None) != slow
    check(differ == 0 and min(verdicts) > rounds // 20, f"checker: as one that tries all orders, of {rounds} histories ({verdicts} bad and good)")


def random_steps(rng):
    """A few steps at random times, of few values, so that many histories are good and many bad."""
    steps, values = [], itertools.count(1)
    for _ in range(rng.randrange(3, 8)):
        kind = rng.choice(["put", "put", "read", "read", "create", "taken", "swap", "other", "delete"])
        begin = rng.randrange(0, 12)
        end = begin + rng.randrange(1, 8) + 0.5
        if kind in ("put", "create", "swap", "delete") and rng.random() < 0.3:
            end = NEVER
        value = next(values) if kind in ("put", "create", "swap") else rng.choice([None, 1, 2]) if kind == "read" else None
        expect = rng.choice([1, 2]) if kind in ("swap", "other") else None
        steps.append(Step(kind, value, begin, end, expect))
    return steps


if __name__ == "__main__":
    failed = []
    check_self(lambda ok, what: (print("ok  " if ok else "FAIL", what), failed.append(what) if not ok else None))
    raise SystemExit(bool(failed))
