"""Parameters that live on several ranks: this rank's part of each, and how often it counts.

K is a sum over disjoint pieces of the parameters. Along a mesh dimension that shards a parameter,
the ranks' inner products add up; along one that replicates it, each rank has the same, and K would
count it as often as there are ranks: so it is divided by their number, and all of K is summed over
all dimensions of the mesh. A gradient that is a pending sum is reduced first, as a product of parts
of a sum is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.autograd.backwards import Row
from mtlkernels.distributed.collectives import Group


class Held:
    """P parameters as this rank holds them.

    Attributes:
        params: as the person has them.
        tensors: P plain tensors with a .grad of their own: the parameter itself, or its local part.
        copies: on how many of the mesh's ranks each of them stands.
        groups: of each dimension of the mesh; none where all parameters are plain.
        ranks: of the mesh; 1 without one.

    Raises:
        NotImplementedError: parameters lie on meshes of which none holds all others, or are pending
            sums.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        meshes = [param.device_mesh for param in params if isinstance(param, DTensor)]
        mesh: Any = max(meshes, key=lambda mesh: (mesh.size(), mesh.ndim), default=None)
        self.ranks: int = 1 if mesh is None else mesh.size()
        self.groups: list[Group] = [] if mesh is None else mesh.get_all_groups()
        if mesh is not None:
            members = set(mesh.mesh.flatten().tolist())
            for other in meshes:
                if other is not mesh and not members.issuperset(other.mesh.flatten().tolist()):
                    raise NotImplementedError(
                        f"parameters lie on {mesh} and on {other}, neither of which holds the "
                        "other: lay them out on one mesh and parts of it"
                    )
        self.tensors = [_local(param) for param in params]
        self.copies = [self.ranks // _pieces(param) for param in params]

    @property
    def sharded(self) -> bool:
        """Whether some parameter is a DTensor."""
        return bool(self.groups)

    def row(self, row: Sequence[Tensor | None]) -> Row:
        """This rank's part of P gradients, which are reduced first where they are pending sums."""
        found: Row = []
        for grad, param in zip(row, self.params, strict=True):
            if isinstance(grad, DTensor):
                assert isinstance(param, DTensor)
                if grad.placements != param.placements or grad.device_mesh != param.device_mesh:
                    grad = grad.redistribute(param.device_mesh, param.placements)
                grad = grad.to_local()
            found.append(grad)
        return found

    def hand_back(self) -> None:
        """The .grad that local parts have got, as their parameters' .grad."""
        for param, tensor in zip(self.params, self.tensors, strict=True):
            if isinstance(param, DTensor) and param.grad is None and tensor.grad is not None:
                param.grad = DTensor.from_local(
                    tensor.grad,
                    param.device_mesh,
                    param.placements,
                    run_check=False,
                    shape=param.shape,
                    stride=param.stride(),
                )


@torch.no_grad()
def _local(param: Tensor) -> Tensor:
    """A parameter's part, with what has been added up in .grad already: changed in place there."""
    if not isinstance(param, DTensor):
        return param
    own = param.to_local().detach()  # a .grad of its own
    if isinstance(param.grad, DTensor):
        if param.grad.placements != param.placements:
            param.grad = param.grad.redistribute(param.device_mesh, param.placements)
        own.grad = param.grad.to_local()
    return own


def _pieces(param: Tensor) -> int:
    """How many pieces a parameter is cut into."""
    if not isinstance(param, DTensor):
        return 1
    if any(placement.is_partial() for placement in param.placements):
        raise NotImplementedError(
            "a parameter is a pending sum over ranks (Partial): redistribute it first"
        )
    return math.prod(
        param.device_mesh.size(dim)
        for dim, placement in enumerate(param.placements)
        if not placement.is_replicate()
    )
