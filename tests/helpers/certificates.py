"""How far weights are from optimal."""

from __future__ import annotations

import torch
from torch import Tensor


def cagrad_certificate(K: Tensor, weights: Tensor, c: float) -> float:
    """How far weights are from optimal: of max_d min_i g_i . d over the ball, in shares of
    c ||g0|| ||g_i||. Zero if and only if d = g0 + u, ||u|| <= c ||g0||, and some convex combination
    g_w has u = c ||g0|| g_w / ||g_w|| with all its tasks at the minimum."""
    mean = torch.full_like(weights, 1 / len(K))
    k = c * (mean @ K @ mean).clamp_min(0).sqrt()
    v = weights - mean
    radius = (v @ K @ v).clamp_min(0).sqrt()
    share = v / v.sum()
    gain = (K @ weights) / (k * K.diagonal().sqrt())
    lowest = (share @ K @ weights) / (k * K.diagonal().sqrt())
    return max(float((radius / k - 1).abs()), float((lowest - gain).max()), float(-share.min()))
