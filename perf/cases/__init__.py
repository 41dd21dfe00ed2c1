"""The cases of perf/run.py, in the order in which they run.

A case is a module with
- NAME, TITLE, ABOUT: for the page;
- COLUMNS: (heading, figure, digits after the point) of its table;
- RATIO: (figure, what all others are held against: names of contenders, the first that is there), or (figure, None): OURS, "kiseki"
  unless the case says otherwise, is held against each other one; or None;
- experiments(setting): what is measured; raises Absent with the reason where that can't be done here;
- left_out(setting), if there is anything to leave out: what is not there, and why;
- limit(row, medians): one sentence on what limits a row, from the medians of its contenders alone, or None. `medians` is
  {row: {who: {figure: median}}} of the whole case, so that rows can be held against each other.
"""

from cases import device, engine, generators, kernels, pipeline, raft, rpc, s3, s3_memory

ALL = {case.NAME: case for case in (kernels, pipeline, device, engine, raft, rpc, s3, s3_memory, generators)}
