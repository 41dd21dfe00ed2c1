"""The guards of `scripts/fences/*.toml`: what each protects, which text it is, and the tests that must fail without it."""

import pathlib
import re
import sys
from dataclasses import dataclass, field

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit(f"the guards of scripts/fences are read by Python 3.11 or newer (its tomllib); {sys.executable} is "
             f"{sys.version.split()[0]}")

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENTRIES = ROOT / "scripts" / "fences"

# A test that runs longer has hung; the slowest named one takes a few seconds.
TEST_LIMIT_SECONDS = 120

MEMBER = re.compile(r'^name = "([\w-]+)"$', re.MULTILINE)
INVARIANT = re.compile(r"I-[A-Z]+[0-9]+")


@dataclass(frozen=True)
class Test:
    """One test function as cargo finds it: package, `lib`, `test:NAME` or `bin:NAME`, path."""

    package: str
    target: str
    path: str

    def __str__(self):
        return f"{self.package} {self.target} {self.path}"


@dataclass(frozen=True)
class Edit:
    """The guard's text in a file, and the text that takes it out."""

    file: str
    guard: str
    without: str


@dataclass
class Guard:
    """One guard. `edits` has more than one part only where the guard stands in more than one place."""

    name: str
    source: str
    invariants: list[str]
    hurts: str
    edits: list[Edit]
    tests: list[Test]
    limit_seconds: float = TEST_LIMIT_SECONDS
    problems: list[str] = field(default_factory=list)

    def words(self):
        """What it can be found by."""
        return [self.name, *self.invariants, *(edit.file for edit in self.edits), *map(str, self.tests)]


KEYS = {"name", "invariant", "hurts", "file", "guard", "without", "also", "tests", "limit_seconds"}
NEEDED = ("name", "invariant", "hurts", "file", "guard", "without", "tests")


def load():
    """All guards, in the order of their files, with what is wrong with how they are written."""
    guards = []
    for path in sorted(ENTRIES.glob("*.toml")):
        entries = tomllib.loads(path.read_text())
        for number, entry in enumerate(entries.get("guard", []), 1):
            guards.append(_guard(f"{path.name}, entry {number}", entry))
        for other in entries.keys() - {"guard"}:
            guards[-1].problems.append(f"{path.name}: {other} is unknown; entries are [[guard]]")
    names = [guard.name for guard in guards]
    for guard in guards:
        if names.count(guard.name) > 1:
            guard.problems.append("another entry has the same name")
    return guards


def _guard(source, entry):
    problems = [f"{key} is missing" for key in NEEDED if not entry.get(key) and key != "without"]
    problems += [f"{key} is unknown" for key in entry.keys() - KEYS]
    edits = []
    for part in [entry, *entry.get("also", [])]:
        edits.append(Edit(part.get("file", ""), part.get("guard", ""), part.get("without", "")))
    tests = []
    for text in entry.get("tests", []):
        words = text.split()
        if len(words) == 3:
            tests.append(Test(*words))
        else:
            problems.append(f'"{text}" is not "PACKAGE TARGET PATH"')
    invariants = entry.get("invariant", "").replace(",", " ").split()
    problems += [f"{word} is no invariant's id" for word in invariants if not INVARIANT.fullmatch(word)]
    limit = entry.get("limit_seconds", TEST_LIMIT_SECONDS)
    return Guard(entry.get("name", source), source, invariants, entry.get("hurts", ""), edits, tests, limit, problems)


class Sources:
    """What the checks look up: packages, and which files define a test function."""

    def __init__(self, root=ROOT):
        self.root = root
        self.packages = {}
        for manifest in root.glob("*/Cargo.toml"), root.glob("*/*/Cargo.toml"):
            for path in manifest:
                if name := MEMBER.search(path.read_text()):
                    self.packages[name.group(1)] = path.parent
        self.listed = set(MEMBER_IDS.findall((root / "docs" / "invariants.md").read_text()))
        self.texts = {}

    def text(self, path):
        if path not in self.texts:
            self.texts[path] = path.read_text()
        return self.texts[path]

    def problem_of_test(self, test):
        """Why cargo would not find the test, as far as the sources tell."""
        home = self.packages.get(test.package)
        if home is None:
            return f"there is no package {test.package}"
        kind, _, name = test.target.partition(":")
        tops = {"lib": [home / "src"], "bin": [home / "src" / "bin" / f"{name}.rs", home / "src"],
                "test": [home / "tests" / name, home / "tests" / f"{name}.rs"]}.get(kind)
        if tops is None:
            return f"{test.target} is not lib, test:NAME or bin:NAME"
        *modules, function = test.path.split("::")
        defines = re.compile(rf"\bfn {re.escape(function)}\s*\(")
        for top in tops:
            for path in [top] if top.is_file() else sorted(top.rglob("*.rs")):
                if defines.search(self.text(path)) and self._lies_in(path, top, modules):
                    return None
        return f"{test.target} of {test.package} has no test {test.path}"

    def _lies_in(self, path, top, modules):
        """Whether a file, with the modules written inside it, has that module path."""
        own = [] if top.is_file() else list(path.relative_to(top).with_suffix("").parts)
        if own and own[-1] in ("mod", "lib", "main"):
            own.pop()
        inside = modules[len(own):]
        written = all(re.search(rf"\bmod {re.escape(module)} {{", self.text(path)) for module in inside)
        return modules[:len(own)] == own and written


MEMBER_IDS = re.compile(r"^\| \**(I-[A-Z]+[0-9]+)\** \|", re.MULTILINE)


def check(guards):
    """Everything that keeps a guard from being taken out as it is written: one text each."""
    sources = Sources()
    problems = []
    for guard in guards:
        found = list(guard.problems)
        found += [f"{word} is not in docs/invariants.md" for word in guard.invariants if word not in sources.listed]
        for edit in guard.edits:
            path = sources.root / edit.file
            if not edit.file or not path.is_file():
                found.append(f"there is no file {edit.file}")
                continue
            count = sources.text(path).count(edit.guard) if edit.guard else 0
            if count != 1:
                found.append(f"its text is {count} times in {edit.file}, not once")
            if edit.guard == edit.without:
                found.append(f"in {edit.file} it is replaced by itself")
        found += [problem for test in guard.tests if (problem := sources.problem_of_test(test))]
        problems += [f"{guard.name} ({guard.source}): {problem}" for problem in found]
    return problems
