"""Where autograd's graph uses parameters, and which layers those uses are.

The gradient of a layer's parameter follows from what the layer read and from the gradient of what
it returned. Both are in the graph: the first is saved by the layer's node, the second is what the
node is given in a backward pass. So layers are found without hooks, after the forward pass, and
whatever module or function called them.

* "product", of a matrix product such as `Linear`, of n rows A (n, a) that were read and gradients
  D (n, b): the gradient is A^T D or its transpose. A 1 x 1 convolution is one.
* "table", of `Embedding`, of n indices: row i of the gradient is the sum of the rows of D (n, b)
  whose index is i.
* "bias", of `addmm`: the gradient is the sum of the rows of D (n, b).
* "other": everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtlkernels.autograd.cut import reach
from mtlkernels.autograd.joins import kind_of, signed

Kind = Literal["product", "table", "bias", "other"]

_MOVING = {"T", "Transpose", "ToCopy"}  # on a parameter's way to a layer; they keep all numbers
_NUMBERS = (
    *("alpha", "beta", "sparse", "scale_grad_by_freq"),
    *("stride", "padding", "groups", "transposed"),
)
_SAVED = {"Addmm": ("mat1", "mat2"), "Mm": ("self", "mat2")}  # the two factors


@dataclass(frozen=True)
class Use:
    """One place at which the graph uses a parameter.

    Attributes:
        node: the node that reads it.
        kind: see the top of the file.
        swapped: of a product, whether the parameter's gradient is D^T A and not A^T D.
        saved: the name under which the node saved what the layer read.
    """

    node: Node
    kind: Kind = "other"
    swapped: bool = False
    saved: str = ""

    @property
    def edge(self) -> GradientEdge:
        """Where the gradients of what the node returned pass."""
        return GradientEdge(self.node, 0)

    @property
    def numel(self) -> int:
        """How many numbers the node returned."""
        meta = self.node._input_metadata[0]
        return 0 if meta.is_nested_tensor else math.prod(meta.shape)

    @property
    def size(self) -> tuple[int, int, int]:
        """n, a and b of a product; n, 1 and b of a table or a bias."""
        shape = self.node._input_metadata[0].shape
        if self.kind == "product":
            A = self.read()
            return A.shape[0], A.shape[1], self.numel // max(A.shape[0], 1)
        return self.numel // max(shape[-1], 1), 1, shape[-1]

    def read(self) -> Tensor:
        """What the layer read: A (n, a) of a product, n indices of a table; no copy for Linear."""
        saved: Any = self.node
        A: Tensor = getattr(saved, f"_saved_{self.saved}").detach()
        if self.kind == "table":
            return A.reshape(-1)
        if self._is_convolution:
            for dim, step in enumerate(saved._saved_stride, start=2):
                A = A[(slice(None),) * dim + (slice(None, None, step),)]
            return A.movedim(1, -1).flatten(0, -2)
        return A.T if self._reads_columns else A

    def rows(self, grads: Tensor) -> Tensor:
        """D (T, n, b) of T stacked gradients of what the node returned."""
        if self._is_convolution:
            return grads.movedim(2, -1).flatten(1, -2)
        if self._reads_columns:
            return grads.mT
        return grads.flatten(1, -2)

    @property
    def skipped(self) -> int | None:
        """The index of a table whose row gets no gradient, or None."""
        saved: Any = self.node
        index = signed(saved._saved_padding_idx)
        return None if index < 0 else index

    @property
    def adds_bias(self) -> bool:
        """Whether a bias that the same node adds has one number for each column of D."""
        return kind_of(self.node) == "Addmm" and not self._reads_columns

    @property
    def _is_convolution(self) -> bool:
        return kind_of(self.node) == "Convolution"

    @property
    def _reads_columns(self) -> bool:
        """Whether the parameter is the first factor, so that the rows are columns of the second."""
        return self.kind == "product" and self.saved == "mat2"


def uses_of(
    edges: Iterable[GradientEdge], params: Sequence[Tensor], members: Iterable[int]
) -> dict[int, list[Use]]:
    """The places at which what lies below some edges uses parameters.

    Args:
        edges: where backward passes start.
        params: P parameters.
        members: the positions of those to look for.
    """
    place = {id(params[p]): p for p in members}
    found: dict[int, list[Use]] = {p: [] for p in place.values()}
    starts = [(edge.node, edge.output_nr) for edge in edges]
    for node, _ in dict.fromkeys(starts):
        end, _ = _leaf(node)
        if end is not None and id(end) in place:  # the edge is the parameter, or on its way
            found[place[id(end)]].append(Use(node))
    for node in reach(starts):
        if (
            kind_of(node) in _MOVING
            and len(node.next_functions) == 1
            and _leaf(node)[0] is not None
        ):
            continue
        for operand, (source, _) in enumerate(node.next_functions):
            end, turned = (None, False) if source is None else _leaf(source)
            if end is not None and id(end) in place:
                p = place[id(end)]
                found[p].append(_use(node, operand, turned, params[p]))
    return found


def _leaf(node: Node) -> tuple[Tensor | None, bool]:
    """The leaf whose numbers a node returns, and whether it returns them transposed."""
    turned = False
    while (kind := kind_of(node)) in _MOVING:
        source = node.next_functions[0][0]
        if source is None or (kind == "Transpose" and len(node._input_metadata[0].shape) != 2):
            return None, False
        turned ^= kind != "ToCopy"
        node = source
    return (getattr(node, "variable", None), turned) if kind == "AccumulateGrad" else (None, False)


def _use(node: Node, operand: int, turned: bool, param: Tensor) -> Use:
    """What a node does with the parameter that its operand of that number is."""
    kind, saved = kind_of(node), _numbers(node)
    if not param.is_floating_point():
        return Use(node)
    if kind == "Addmm" and operand == 0:
        whole = not turned and [*param.shape] == [*node._input_metadata[0].shape[-1:]]
        return Use(node, "bias") if whole and saved["beta"] == 1 else Use(node)
    if kind in _SAVED and saved.get("alpha", 1) == 1:
        factor = operand - (kind == "Addmm")
        other = _SAVED[kind][1 - factor]
        return _if_kept(Use(node, "product", turned ^ (factor == 0), other))
    if kind == "Embedding" and not (saved["sparse"] or saved["scale_grad_by_freq"] or turned):
        return _if_kept(Use(node, "table", saved="indices"))
    if kind == "Convolution" and operand == 1 and _is_pointwise(saved, param):
        return _if_kept(Use(node, "product", True, "input"))
    return Use(node)


def _numbers(node: Node) -> Mapping[str, Any]:
    """The numbers that a layer's node saved, by name."""
    return {
        name: getattr(node, f"_saved_{name}")
        for name in _NUMBERS
        if hasattr(node, f"_saved_{name}")
    }


def _is_pointwise(saved: Mapping[str, Any], weight: Tensor) -> bool:
    """Whether a convolution multiplies each place by one matrix."""
    return (
        math.prod(weight.shape[2:]) == 1
        and saved["groups"] == 1
        and not saved["transposed"]
        and not any(saved["padding"])
    )


def _if_kept(use: Use) -> Use:
    """The use, or "other" where what the layer read is recomputed, moved or packed by hooks.

    Saved tensor hooks, as of checkpointing and offloading, give each tensor once a pass.
    """
    raw = getattr(use.node, f"_raw_saved_{use.saved}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return Use(use.node)
    read: Tensor = getattr(use.node, f"_saved_{use.saved}")
    return use if isinstance(read, Tensor) and read.layout == torch.strided else Use(use.node)
