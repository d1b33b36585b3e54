"""A pytest plugin: one line of the results for every test, with its traceback, when it ends."""

from __future__ import annotations

import pytest

from benchmarks.gpu_check.records import Records


class Recorder:
    """Writes what a test's phases report."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        facts: dict[str, object] = {"test": report.nodeid, "outcome": report.outcome}
        facts["seconds"] = round(report.duration, 3)
        if report.failed:
            facts["when"], facts["traceback"] = report.when, report.longreprtext[-6000:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            facts["reason"] = report.longrepr[2]
        self.records.add("test", **facts)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.records.add(
                "test", test=report.nodeid, outcome="failed", when="collect",
                traceback=report.longreprtext[-6000:],
            )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist the controller hears of every test
        config.pluginmanager.register(Recorder(Records.of_this_stage()), "gpu-check-recorder")
