"""A model's parameters by layer or module, for `parts=`."""

from __future__ import annotations

from torch import nn


def named_parts(model: nn.Module, depth: int | None = None) -> dict[str, list[nn.Parameter]]:
    """Returns the parameters of each layer, or of each module down to some depth, by its name.

        layers = named_parts(model.encoder)
        optimizer = MTLOptimizer(base, PCGrad(), parts=list(layers.values()))
        monitor = Monitor(JSONL("run.jsonl"), parts=layers)

    Args:
        model: the module to divide.
        depth: names are cut behind so many modules: 1 for the model's children, 0 for all in one;
            None for every module that holds parameters of its own.

    Returns:
        Name -> parameters, in the model's order; a parameter that several modules share is listed
        with the first. Parameters of the model itself are under the name of its class.

    Raises:
        ValueError: depth is below 0.
    """
    if depth is not None and depth < 0:
        raise ValueError(f"depth={depth}: it must be a number of modules, or None")
    parts: dict[str, list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        path = name.split(".")[:-1][:depth]
        parts.setdefault(".".join(path) or type(model).__name__, []).append(param)
    return parts
