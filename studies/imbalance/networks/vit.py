"""Vision transformers of several sizes, without their classifier.

A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, with the sizes Ti and S of DeiT.
Names are those of timm, so its checkpoints for the same image size load once the head is taken out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Tokens (B, N, width) -> (B, N, width), each a mean over all, one mean a head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return result


class Perceptron(nn.Module):
    """Two linear layers with four times the width between, token by token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return result


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class Patches(nn.Module):
    """Image (B, 3, H, W) -> a vector a patch (B, H/patch * W/patch, width)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        vectors: Tensor = self.proj(image)
        return vectors.flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Image (B, 3, H, W) of the given size -> features.

    output="map" gives the patches' (B, width, H/patch, W/patch), for dense heads; "token" the
    class token's (B, width).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        size: tuple[int, int] = (224, 224),
        patch: int = 16,
        output: Literal["map", "token"] = "map",
    ) -> None:
        super().__init__()
        if size[0] % patch or size[1] % patch or width % heads:
            raise ValueError(
                f"patches of {patch} must divide {size}, and {heads} heads the width {width}"
            )
        self.channels = width
        self.size = tuple(size)
        self.grid = (size[0] // patch, size[1] // patch)
        self.output = output
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.patch_embed = Patches(width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        if tuple(image.shape[-2:]) != self.size:
            raise ValueError(
                f"positions are those of {self.size} pixels, not of {tuple(image.shape[-2:])}: "
                "resize the images or pass size="
            )
        first = self.cls_token.expand(len(image), -1, -1)
        tokens = torch.cat((first, self.patch_embed(image)), dim=1) + self.pos_embed
        tokens = self.norm(self.blocks(tokens))
        if self.output == "token":
            return tokens[:, 0]
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)

    def last_layer(self) -> nn.Module:
        """The last block's second linear layer."""
        return self.blocks.get_submodule(f"{len(self.blocks) - 1}.mlp.fc2")


def vit_tiny(size: tuple[int, int] = (224, 224), output: Literal["map", "token"] = "map") -> ViT:
    """192 channels, 12 blocks; 5 524 416 parameters at 224 x 224."""
    return ViT(192, 12, 3, size, output=output)


def vit_small(size: tuple[int, int] = (224, 224), output: Literal["map", "token"] = "map") -> ViT:
    """384 channels, 12 blocks; 21 665 664 parameters at 224 x 224."""
    return ViT(384, 12, 6, size, output=output)
