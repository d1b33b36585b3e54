"""State that takes its size from the first call."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlkernels.methods.base import GramMethod


class SizedByTasks(GramMethod):
    """A Gram method with buffers that are empty until the first call tells the number of tasks.

    They go through `state_dict` into a fresh object too.
    """

    _sized: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        for name in self._sized:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def _first_call(self, gram: Tensor) -> bool:
        """Whether the buffers are to be filled now.

        Raises:
            ValueError: they belong to another number of tasks.
        """
        have = len(getattr(self, self._sized[0]))
        if have not in (0, len(gram)):
            raise ValueError(
                f"the state of {type(self).__name__} is for {have} tasks, not {len(gram)}: "
                "use a new method for another set of tasks"
            )
        if have and getattr(self, self._sized[0]).device != gram.device:
            self.to(gram.device)
        return have == 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self._sized:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
