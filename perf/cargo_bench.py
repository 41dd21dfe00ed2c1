"""Programs of `benches/`: where cargo put them."""

import json
import subprocess

from experiment import Absent, Failed
from node import ROOT


def program(name):
    """The compiled bench of that name; compiles it when it is not there."""
    command = ["cargo", "bench", "--no-run", "--ignore-rust-version", "-q", "-p", "kiseki-benches", "--bench", name, "--message-format=json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Absent("cargo is not installed, and benches/ are found through it") from error
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == name and message.get("executable"):
            return message["executable"]
    raise Failed(f"`{' '.join(command)}` gave no program: {done.stderr[-500:]}")
