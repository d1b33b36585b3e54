"""Hard sharing: all tasks on the features of one encoder."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional

from examples.demo.models import MultiTask
from studies.imbalance.networks.heads import SampleHead, dense_head
from studies.imbalance.tasks import Task


class HardSharing(MultiTask):
    """Inputs -> a prediction a task; a dense one (B, C, h, w) is enlarged to the inputs' H x W."""

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {
            task: _enlarged(prediction, inputs) if prediction.ndim == 4 else prediction
            for task, prediction in super().forward(inputs).items()
        }


def hard_sharing(encoder: nn.Module, channels: int, tasks: Iterable[Task]) -> HardSharing:
    """`encoder`, whose features have `channels` channels, with the plain head of each task."""
    return HardSharing(
        encoder,
        {
            task.name: (dense_head if task.dense else SampleHead)(channels, task.channels)
            for task in tasks
        },
    )


def _enlarged(prediction: Tensor, inputs: Tensor) -> Tensor:
    size = inputs.shape[-2:]
    if prediction.shape[-2:] == size:
        return prediction
    return functional.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
