"""Other people's layers that do not bear several backward passes over one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frameworks import FRAMEWORKS
from torch import Tensor, nn

from mtlkernels import MTLOptimizer, Sum
from mtlkernels.autograd.trial import SelfCheckError

pytestmark = FRAMEWORKS


class Heads(nn.Module):
    """A trunk and two heads of one output each."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))

    def losses(self, z: Tensor) -> list[Tensor]:
        return [(head(z) - t).square().mean() for t, head in enumerate(self.heads)]


def refused_and_right_with_features(model: Heads, features: Any, reads: str) -> None:
    """An error that names hidden parameters, and the numbers of the plain loop with features=."""
    optimizer = MTLOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.1), Sum())
    torch.manual_seed(1)
    with pytest.raises(SelfCheckError, match=rf"wrote to the \.grad.*{reads}.*features="):
        optimizer.backward(model.losses(features()))
    assert all(param.grad is None for param in model.parameters())
    torch.manual_seed(1)
    z = features()
    optimizer.backward(model.losses(z), features=z)
    found = [param.grad for param in model.parameters()]
    optimizer.zero_grad()
    torch.manual_seed(1)
    sum(model.losses(features())).backward()
    expected = [param.grad for param in model.parameters()]
    torch.testing.assert_close(found, expected)


def test_a_reformer() -> None:
    from transformers import ReformerConfig, ReformerModel

    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=30,
        hidden_size=16,
        feed_forward_size=16,
        num_attention_heads=2,
        attention_head_size=8,
        attn_layers=["local", "local"],
        axial_pos_embds=False,
        max_position_embeddings=16,
        local_attn_chunk_length=4,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        is_decoder=False,
    )
    model = Heads(ReformerModel(config).train(), 32)
    ids = torch.arange(16).view(1, 16)
    refused_and_right_with_features(
        model, lambda: model.trunk(ids).last_hidden_state, r"trunk\.encoder\.layers"
    )


def test_revtorch() -> None:
    import revtorch

    torch.manual_seed(0)

    def part() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    blocks = [revtorch.ReversibleBlock(part(), part(), split_along_dim=1) for _ in range(2)]
    reversible = revtorch.ReversibleSequence(nn.ModuleList(blocks))
    model = Heads(nn.Sequential(nn.Linear(8, 8), reversible), 8)
    x = torch.randn(6, 8)
    refused_and_right_with_features(model, lambda: model.trunk(x), r"trunk\.1")
