#!/usr/bin/env python3
"""Takes each guard out once and sees its test fail.

    fence_test.py [--only TEXT] [--json FILE] [--rest FILE] [--scratch DIRECTORY]
    fence_test.py --list
    fence_test.py --check

A guard is what keeps an invariant; `scripts/fences/*.toml` names each with the text that it is and the tests that must fail
without it (docs/fence-test.md). This works on a copy of the tree, in which one guard at a time is replaced: the tests must
pass with all guards in, and each named one must fail with its guard out. A build that fails proves nothing and counts as a
failure of this test; a test that hangs without its guard is one that failed, and is said to.

--check builds nothing: every guard's text is in its file exactly once, and the named tests exist. It ends with a line
"N of M guards fit their sources", since nothing was run; everything else with "N passed, N failed". The exit code is 0 only
when nothing is wrong.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import guards as fences
from guards import ROOT

# The longest build is the first one, of all dependencies.
BUILD_LIMIT_SECONDS = 1800

# One round builds a crate and links a test: quick to build counts for more than quick to run. What nearly every test stands
# on, and hardly any guard is in, is built well all the same.
PROFILE = """
[profile.fence]
inherits = "release"
opt-level = 1
codegen-units = 64
incremental = true
debug = false

[profile.fence.package."*"]
opt-level = 3
codegen-units = 16
incremental = false

[profile.fence.package.kiseki-simulator]
opt-level = 3

[profile.fence.package.kiseki-types]
opt-level = 3
"""

# Longest for all tests of one target together, with every guard in.
TOGETHER_LIMIT_SECONDS = 1200

PASSED = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. ok$", re.MULTILINE)

PANIC = re.compile(r"^thread '.*' (?:\(\d+\) )?panicked at ([^\n]*):\n([^\n]*)", re.MULTILINE)


@dataclass
class Outcome:
    """How one test ended."""

    kind: str  # passed, failed, hung, did not build, or is missing
    detail: str = ""


class Scratch:
    """A copy of the tree that is built and changed, and its builds. Both are kept for the next run."""

    def __init__(self, home):
        self.tree = home / "tree"
        self.builds = home / "build"
        self.known = home / "passed.json"
        self.state = ""

    def fill(self):
        """Makes the copy equal to the checkout; what is equal keeps its times, so that cargo builds it no second time."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout
        wanted = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
        for name in wanted:
            content = self.original(name)
            path = self.tree / name
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod((ROOT / name).stat().st_mode)
        digest = hashlib.sha256()
        for name in sorted(wanted):
            if not name.startswith(("docs/", "scripts/")):
                digest.update(name.encode() + b"\0" + hashlib.sha256(self.original(name)).digest())
        self.state = digest.hexdigest()
        for path in self.tree.rglob("*"):
            if path.is_file() and str(path.relative_to(self.tree)) not in wanted:
                path.unlink()

    def original(self, name):
        content = (ROOT / name).read_bytes()
        if name == "Cargo.toml":
            # Without a guard something may be unused.
            content = content.replace(b'\nwarnings = "deny"', b'\nwarnings = "allow"') + PROFILE.encode()
        return content

    def take_out(self, guard):
        for edit in guard.edits:
            path = self.tree / edit.file
            path.write_text(path.read_text().replace(edit.guard, edit.without, 1))

    def put_back(self, guard):
        for edit in guard.edits:
            (self.tree / edit.file).write_bytes(self.original(edit.file))

    def build(self, package, target):
        """Builds a test target; returns its program and where it is to run, or what the compiler said."""
        kind, _, name = target.partition(":")
        command = ["cargo", "test", "--profile", "fence", "--ignore-rust-version", "--no-run", "--message-format=json",
                   "-p", package, f"--{kind}", *([name] if name else [])]
        environment = {**os.environ, "CARGO_TARGET_DIR": str(self.builds)}
        code, out, err = run(command, self.tree, BUILD_LIMIT_SECONDS, environment)
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if code != 0:
            errors = [m["message"]["message"] for m in messages
                      if m.get("reason") == "compiler-message" and m["message"]["level"] == "error"]
            return None, "; ".join(errors[:2]) or ("it took too long" if code is None else err.strip()[-300:])
        for message in messages:
            if message.get("executable") and message["target"]["kind"] == [kind]:
                return (message["executable"], pathlib.Path(message["manifest_path"]).parent), ""
        return None, "cargo names no program"

    def pass_with_guards(self, tests):
        """How tests end with every guard in: those of one target together, and those that do not pass then once more
        alone. What passed in an earlier run with the very same sources is not run again."""
        known = json.loads(self.known.read_text()) if self.known.is_file() else {}
        passed = set(known.get("tests", [])) if known.get("state") == self.state else set()
        outcomes = {}
        for at in dict.fromkeys((test.package, test.target) for test in tests):
            group = [test for test in tests if (test.package, test.target) == at]
            if left := [test for test in group if str(test) not in passed]:
                program, error = self.build(*at)
                if program is None:
                    outcomes.update({test: Outcome("did not build", error) for test in left})
                    continue
                command = [program[0], "--exact", *(test.path for test in left), "--include-ignored"]
                _, out, _ = run(command, program[1], TOGETHER_LIMIT_SECONDS, surroundings(program[1]))
                ok = set(PASSED.findall(out))
                passed |= {str(test) for test in left if test.path in ok}
                for test in left:
                    if test.path not in ok:
                        outcomes[test] = run_test(program, test.path, fences.TEST_LIMIT_SECONDS)
                self.known.write_text(json.dumps({"state": self.state, "tests": sorted(passed)}))
            outcomes.update({test: Outcome("passed") for test in group if test not in outcomes})
        return outcomes

    def outcomes(self, tests, limit_seconds):
        """Builds what the tests need and runs each on its own."""
        programs, outcomes = {}, {}
        for test in tests:
            at = (test.package, test.target)
            if at not in programs:
                programs[at] = self.build(*at)
            program, error = programs[at]
            if program is None:
                outcomes[test] = Outcome("did not build", error)
            else:
                outcomes[test] = run_test(program, test.path, limit_seconds)
        return outcomes


def run(command, directory, limit_seconds, environment=None):
    """(exit code or None after the limit, output, errors). Whatever was started ends with it."""
    process = subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_seconds)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out, err
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def surroundings(directory):
    return {**os.environ, "CARGO_MANIFEST_DIR": str(directory), "RUST_BACKTRACE": "0"}


def run_test(program, path, limit_seconds):
    executable, directory = program
    command = [executable, "--exact", path, "--test-threads=1", "--include-ignored"]
    code, out, err = run(command, directory, limit_seconds, surroundings(directory))
    if code is None:
        return Outcome("hung", f"it did not end in {limit_seconds} s")
    if "running 1 test" not in out:
        return Outcome("is missing", "the program has no test of that name")
    if code == 0:
        return Outcome("passed")
    panic = PANIC.search(out + "\n" + err)
    said = f"{panic.group(2)} ({panic.group(1)})" if panic else f"it ended with {code}"
    return Outcome("failed", said)


def cut(text, length):
    return text if len(text) <= length else text[: length - 1] + "…"


class Progress:
    """One line that says what is being done, where somebody looks."""

    def __init__(self):
        self.is_shown = sys.stderr.isatty()

    def show(self, text):
        if self.is_shown:
            print("\r\033[K" + cut(text, shutil.get_terminal_size().columns - 1), end="", file=sys.stderr, flush=True)

    def clear(self):
        self.show("")


def test_all(chosen, scratch, progress):
    """Yields (guard, whether its tests saw it, what happened, seconds). The order keeps what is built last warm."""
    order = sorted(chosen, key=lambda guard: [str(test) for test in guard.tests])
    tests = sorted({test for guard in order for test in guard.tests}, key=str)
    progress.show(f"building, and running {len(tests)} tests with every guard in")
    started = time.monotonic()
    baselines = scratch.pass_with_guards(tests)
    print(f"      {len(tests)} tests with every guard in: {time.monotonic() - started:.0f} s", flush=True)
    for number, guard in enumerate(order, 1):
        progress.show(f"{number}/{len(order)} {guard.name}")
        started = time.monotonic()
        broken = [test for test in guard.tests if baselines[test].kind != "passed"]
        if broken:
            outcome = baselines[broken[0]]
            yield guard, False, f"with the guard in, {broken[0].path} {outcome.kind}: {outcome.detail}", 0.0
            continue
        try:
            scratch.take_out(guard)
            outcomes = scratch.outcomes(guard.tests, guard.limit_seconds)
        finally:
            scratch.put_back(guard)
        unseen = [(test, o) for test, o in outcomes.items() if o.kind not in ("failed", "hung")]
        if unseen:
            test, outcome = unseen[0]
            text = "still passes" if outcome.kind == "passed" else outcome.kind
            detail = f"{test.path} {text}" + (f": {outcome.detail}" if outcome.detail else "")
        else:
            detail = "; ".join(("hung: " if o.kind == "hung" else "") + o.detail for o in outcomes.values())
        yield guard, not unseen, detail, time.monotonic() - started


def report(guard, is_seen, detail, seconds):
    return {
        "name": guard.name, "invariants": guard.invariants, "files": [edit.file for edit in guard.edits],
        "tests": [str(test) for test in guard.tests], "seen": is_seen, "detail": detail, "seconds": round(seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="TEXT",
                        help="guards whose name, file, invariant or test contains this; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the guards and run nothing")
    parser.add_argument("--check", action="store_true", help="look whether the entries fit the sources; build nothing")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write the results to this file too")
    parser.add_argument("--rest", metavar="FILE", type=pathlib.Path,
                        help="only guards that this file, of an earlier --json, does not have as seen")
    parser.add_argument("--scratch", metavar="DIRECTORY", type=pathlib.Path, default=ROOT / "target" / "fence",
                        help="where the copy and its builds lie (default: target/fence)")
    options = parser.parse_args()
    chosen = fences.load()
    problems = fences.check(chosen)
    for problem in problems:
        print(f"FAIL  {problem}")
    if options.check or problems:
        wrong = {problem.split(" (")[0] for problem in problems}
        print(f"{len(chosen) - len(wrong)} of {len(chosen)} guards fit their sources")
        return 1 if problems else 0
    if options.only:
        chosen = [guard for guard in chosen if any(text in word for text in options.only for word in guard.words())]
    if options.rest:
        seen = {result["name"] for result in json.loads(options.rest.read_text()) if result["seen"]}
        chosen = [guard for guard in chosen if guard.name not in seen]
    if options.list:
        for guard in chosen:
            print(f"{guard.name}  {' '.join(guard.invariants)}  {guard.edits[0].file}\n      {guard.hurts}")
        return 0
    if not chosen:
        print("no guard is called so; --list names them", file=sys.stderr)
        return 2
    scratch, progress, results = Scratch(options.scratch.resolve()), Progress(), []
    # So that what was started ends with this, and no guard stays out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch.fill()
    started = time.monotonic()
    for guard, is_seen, detail, seconds in test_all(chosen, scratch, progress):
        progress.clear()
        print(f"{'ok  ' if is_seen else 'FAIL'}  {guard.name:<52} {seconds:5.0f} s  {cut(detail, 200)}", flush=True)
        results.append(report(guard, is_seen, detail, seconds))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    seen = sum(result["seen"] for result in results)
    print(f"{time.monotonic() - started:.0f} s in all")
    print(f"{seen} passed, {len(results) - seen} failed")
    return 0 if seen == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
