"""The imbalance study: do gradient norms tell which tasks lose, and does scaling by them suffice?

    python -m studies.imbalance run studies/imbalance/study.json --out results
    python -m studies.imbalance report studies/imbalance/study.json --out results --page study.md

`config` says what to run, `specs` lists the runs, `training` is one of them, `runner` does what is
missing, one JSON a run, and `answers`, `tables`, `figures` and `page` take every number from the
JSONs; the data they load only to know which of these are stale. A run that was cut off goes on
from its last checkpoint and ends with the same numbers.

A data set and network of one's own are an entry in `problems.DATA` and one in `problems.ENCODERS`.
"""
