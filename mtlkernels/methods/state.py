"""State that takes its size from the first call."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlkernels.methods.base import GramMethod
from mtlkernels.methods.tasks import Kind


class SizedByTasks(GramMethod):
    """A Gram method with buffers that are empty until the first call tells the number of tasks."""

    _sized: ClassVar[dict[str, tuple[Kind, float]]]  # name -> see `register_lazy`

    def __init__(self) -> None:
        super().__init__()
        for name, (kind, fill) in self._sized.items():
            self.register_lazy(name, kind, fill)

    def _first_call(self, gram: Tensor) -> bool:
        """Whether the buffers are to be filled now.

        Raises:
            ValueError: they belong to another number of tasks.
        """
        first = next(iter(self._sized))
        have = len(getattr(self, first))
        if have not in (0, len(gram)):
            raise ValueError(
                f"the state of {type(self).__name__} is for {have} tasks, not {len(gram)}: "
                "use a new method for another set of tasks"
            )
        if have and getattr(self, first).device != gram.device:
            self.to(gram.device)
        return have == 0
