"""A run as JSON: everything the table and the figure show, step by step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from examples.demo.problem import Problem
from examples.demo.table import CONVENTION, problem_delta
from examples.demo.training import Run


def write_run(folder: Path, problem: Problem, run: Run, single: dict[str, float]) -> Path:
    """Write `<data set>-<method>.json` and return its path; lists follow the order of `tasks`."""
    return _write(
        folder / f"{problem.name}-{run.method}.json",
        _setting(problem, len(run.losses))
        | {
            "method": run.method,
            "metrics": run.metrics,
            "delta_m": problem_delta(problem, run.metrics, single),
            "delta_m_convention": CONVENTION,
            "norm_ratio_median": run.norm_ratio,
            "conflict_rate": run.conflict_rate,
            "milliseconds": asdict(run.split),
            "steps_log": {
                "losses": run.losses.tolist(),
                "norms": run.norms.tolist(),
                "weights": run.weights.tolist(),
                "cosines": run.cosines.tolist(),
            },
        },
    )


def write_single(folder: Path, problem: Problem, single: dict[str, float], steps: int) -> Path:
    """Write the baselines' metrics by task to `<data set>-single-task.json` and return its path."""
    setting = _setting(problem, steps) | {"method": "single-task", "metrics": single}
    return _write(folder / f"{problem.name}-single-task.json", setting)


def log_path(folder: Path, problem: Problem, method: str) -> Path:
    """Where a run's monitor writes, for `python -m mtlkernels report`."""
    return folder / f"{problem.name}-{method}.jsonl"


def _setting(problem: Problem, steps: int) -> dict[str, object]:
    return {
        "dataset": problem.name,
        "caption": problem.caption,
        "tasks": [task.name for task in problem.tasks],
        "units": {task.name: f"{task.metric} {task.unit}".strip() for task in problem.tasks},
        "steps": steps,
        "torch": torch.__version__,
        "device": str(problem.test.inputs.device),
        "threads": torch.get_num_threads(),
    }


def _write(path: Path, content: dict[str, object]) -> Path:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
