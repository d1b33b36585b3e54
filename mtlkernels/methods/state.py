"""State that takes its size from the first call."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlkernels.methods.base import GramMethod


class SizedByTasks(GramMethod):
    """A Gram method with buffers that are empty until the first call tells the number of tasks."""

    _sized: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        for name in self._sized:
            self.register_lazy(name)

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
