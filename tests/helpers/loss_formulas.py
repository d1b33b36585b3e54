"""The loss methods' papers' formulas, written out in plain Python and float64, sharing no code.

Each takes the losses of all steps up to now, one list a step, and returns value and weights, the
value's derivatives in the last losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Numbers = list[float]


def mean_of(rows: list[Numbers]) -> Numbers:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def softmax(x: Numbers) -> Numbers:
    e = [math.exp(v - max(x)) for v in x]
    return [v / math.fsum(e) for v in e]


def weighted(w: Numbers, L: Numbers) -> tuple[float, Numbers]:
    return math.fsum(a * b for a, b in zip(w, L, strict=True)), w


def formula_uw(L: Numbers, s: float, k: float) -> tuple[float, Numbers]:
    value = math.fsum(k * x / math.exp(s) + s / 2 for x in L)
    return value, [k / math.exp(s)] * len(L)


def formula_gls(L: Numbers) -> tuple[float, Numbers]:
    value = math.prod(L) ** (1 / len(L))
    return value, [value / (len(L) * x) for x in L]


def formula_dwa(rows: list[Numbers], temp: float, window: int, total: float):
    past, T = rows[:-1], len(rows[0])
    blocks = [past[i : i + window] for i in range(0, len(past) - window + 1, window)]
    r = [1.0] * T
    if len(blocks) >= 2:
        last, before = mean_of(blocks[-1]), mean_of(blocks[-2])
        r = [a / b for a, b in zip(last, before, strict=True)]
    return weighted([total * w for w in softmax([x / temp for x in r])], rows[-1])


def formula_slaw(rows: list[Numbers], beta: float):
    """Deviations of the history weighted by beta^age: the bias-corrected EMA(L^2) - EMA(L)^2."""
    T, ages = len(rows[0]), [beta ** (len(rows) - 1 - k) for k in range(len(rows))]
    inverse = []
    for t in range(T):
        m = math.fsum(a * row[t] for a, row in zip(ages, rows, strict=True)) / math.fsum(ages)
        v = math.fsum(a * (row[t] - m) ** 2 for a, row in zip(ages, rows, strict=True))
        inverse.append(1 / max(1e-5, math.sqrt(v / math.fsum(ages))))
    return weighted([T * x / math.fsum(inverse) for x in inverse], rows[-1])


def formula_log_sum(L: Numbers) -> tuple[float, Numbers]:
    return math.fsum(map(math.log, L)), [1 / x for x in L]


def formula_stch(rows: list[Numbers], mu: float, z: Numbers | None) -> tuple[float, Numbers]:
    L, T = rows[-1], len(rows[0])
    if z is None:
        return formula_log_sum(L)
    terms = [(x / b) ** (1 / mu) for x, b in zip(L, z, strict=True)]
    value = mu * T * math.log(math.fsum(terms))
    return value, [T * e / math.fsum(terms) / x for e, x in zip(terms, L, strict=True)]


def formula_linear(L: Numbers, mu: float, z: float) -> tuple[float, Numbers]:
    T = len(L)
    gap = [(x - z) / (T * mu) for x in L]
    top = max(gap)
    value = mu * (top + math.log(math.fsum(math.exp(g - top) for g in gap)))
    return value, [w / T for w in softmax(gap)]


def formula_igb(rows: list[Numbers], warmup: int, average: int) -> tuple[float, Numbers]:
    L, T = rows[-1], len(rows[0])
    if len(rows) <= warmup:
        return formula_log_sum(L)
    base = mean_of(rows[warmup - average : warmup])
    w = [T * x for x in softmax([x / b for x, b in zip(L, base, strict=True)])]
    value = math.fsum(a * math.log(x) for a, x in zip(w, L, strict=True))
    return value, [a / x for a, x in zip(w, L, strict=True)]


def formula_famo(rows: list[Numbers], lr: float, gamma: float, least: float):
    """torch's own Adam on xi, the gradient by autograd, as published."""
    T = len(rows[0])
    xi = torch.zeros(T, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=lr, weight_decay=gamma)
    D = torch.tensor(rows, dtype=torch.float64) - least + 1e-8
    for before, after in pairwise(D):
        delta = before.log() - after.log()
        adam.zero_grad()
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, grad_outputs=delta)
        adam.step()
    z = xi.detach().softmax(0)
    c = 1 / (z / D[-1]).sum()
    return float(c * (z * D[-1].log()).sum()), (c * z / D[-1]).tolist()


def formula_go4align(rows: list[Numbers], eta: float, groups: int) -> tuple[float, Numbers]:
    L, T = rows[-1], len(rows[0])
    p = softmax([-eta * math.fsum(column) for column in zip(*rows, strict=True)])
    v = torch.tensor([a * math.fsum(L) / x for a, x in zip(p, L, strict=True)])
    order = v.argsort().tolist()
    cuts = range(1, T) if min(groups, T) == 2 else [T]
    best = min(cuts, key=lambda cut: spread(v[order[:cut]]) + spread(v[order[cut:]]))
    w = [0.0] * T
    for part in (order[:best], order[best:]):
        for t in part:
            w[t] = float(v[part].double().mean())
    return weighted(w, L)


def spread(v: Tensor) -> float:
    return float((v - v.mean()).square().sum()) if len(v) else 0.0


# For the methods of the same names in test_loss_methods.MAKE.
def formula_softadapt(rows: list[Numbers]) -> tuple[float, Numbers]:
    now, T = rows[-1], len(rows[-1])
    before = rows[-2] if len(rows) > 1 else now
    return weighted(
        [T * w for w in softmax([a / b for a, b in zip(now, before, strict=True)])], now
    )


def formula_resnorm(rows: list[Numbers], alpha: float) -> tuple[float, Numbers]:
    """Before anything is learned: all weights are 1."""
    now, T = rows[-1], len(rows[-1])
    rate = [a / b for a, b in zip(now, rows[0], strict=True)]
    m, r = math.fsum(now) / T, math.fsum(rate) / T
    apart = [abs(x - m * (q / r) ** alpha) for x, q in zip(now, rate, strict=True)]
    return math.fsum(now) + math.fsum(apart), [1.0] * T


def formula_cosmos(L: Numbers, lam: float, preference: Numbers) -> tuple[float, Numbers]:
    r = [p / math.fsum(preference) for p in preference]
    dot, length, size = (
        math.fsum(map(math.prod, zip(r, L, strict=True))),
        math.hypot(*L),
        math.hypot(*r),
    )
    value = dot - lam * dot / (size * length)
    grad = [p - lam * (p / length - dot * x / length**3) / size for p, x in zip(r, L, strict=True)]
    return value, grad


def formula_pbi(L: Numbers, theta: float, preference: Numbers, z: float):
    """By Pythagoras: d_2^2 = ||L - z||^2 - d_1^2."""
    ray = [p / math.hypot(*preference) for p in preference]
    away = [x - z for x in L]
    along = math.fsum(map(math.prod, zip(ray, away, strict=True)))
    rest = [a - along * u for a, u in zip(away, ray, strict=True)]
    apart = math.hypot(*rest) if len(L) > 1 else 0.0
    share = theta / apart if apart else 0.0
    return along + theta * apart, [u + share * x for u, x in zip(ray, rest, strict=True)]


FORMULAS: dict[str, Callable[[list[Numbers]], tuple[float, Numbers]]] = {
    "si": lambda rows: formula_log_sum(rows[-1]),
    "si-log1p": lambda rows: (
        math.fsum(map(math.log1p, rows[-1])),
        [1 / (1 + x) for x in rows[-1]],
    ),
    "gls": lambda rows: formula_gls(rows[-1]),
    "uw": lambda rows: formula_uw(rows[-1], 0.0, 0.5),
    "uw-libmtl": lambda rows: formula_uw(rows[-1], -0.5, 0.5),
    "uw-samsung": lambda rows: formula_uw(rows[-1], 0.0, 1.0),
    "imtll": lambda rows: (
        math.fsum(math.exp(0.25) * x - 0.25 for x in rows[-1]),
        [math.exp(0.25)] * len(rows[-1]),
    ),
    "uwso": lambda rows: weighted(softmax([1 / x / 3 for x in rows[-1]]), rows[-1]),
    "dwa": lambda rows: formula_dwa(rows, 2.0, 2, len(rows[0])),
    "dwa-mean": lambda rows: formula_dwa(rows, 1.0, 1, 1.0),
    "slaw": lambda rows: formula_slaw(rows, 0.9),
    "stch": lambda rows: formula_stch(rows, 1.0, mean_of(rows[1:3]) if len(rows) > 3 else None),
    "stch-0.3": lambda rows: formula_stch(rows, 0.3, rows[0] if len(rows) > 1 else None),
    "stch-nadir": lambda rows: formula_stch(rows, 0.5, [1.0 + t for t in range(len(rows[0]))]),
    "stch-linear": lambda rows: formula_linear(rows[-1], 0.5, 0.25),
    "igb": lambda rows: formula_igb(rows, 4, 1),
    "famo": lambda rows: formula_famo(rows, 0.025, 1e-3, 0.0),
    "famo-least": lambda rows: formula_famo(rows, 0.1, 0.01, -1.0),
    "softadapt": formula_softadapt,
    "resnorm": lambda rows: formula_resnorm(rows, 0.5),
    "cosmos": lambda rows: formula_cosmos(rows[-1], 0.3, [1.0] * len(rows[-1])),
    "cosmos-preferred": lambda rows: formula_cosmos(
        rows[-1], 0.3, [1.0 + t for t in range(len(rows[-1]))]
    ),
    "pbi": lambda rows: formula_pbi(rows[-1], 5.0, [1.0] * len(rows[-1]), 0.0),
    "pbi-preferred": lambda rows: formula_pbi(
        rows[-1], 0.5, [1.0 + t for t in range(len(rows[-1]))], -0.5
    ),
    "gated": lambda rows: (math.fsum(rows[-1]), [1.0] * len(rows[-1])),
    "go4align": lambda rows: formula_go4align(rows, 0.05, 2),
    "go4align-1": lambda rows: formula_go4align(rows, 1e-4, 1),
}
