"""Raw gradients as autograd hands them out: what layout and aggregate make of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import Mean, Sum, aggregate, ops
from mtlkernels.aggregation.layout import group_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

Rows = list[list[Tensor | None]]
CHANNELS_LAST = torch.channels_last


class Ramp(mtlkernels.GramMethod):
    """Weights 1, -2, 3, ...: tells the tasks apart and leaves nothing out."""

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        T = len(gram)
        return torch.arange(1.0, T + 1, dtype=torch.float64) * (-1.0) ** torch.arange(T)


def oracle(rows: Rows) -> tuple[Tensor, list[Tensor | None]]:
    """K and the Ramp direction in float64, element by element."""
    T = len(rows)
    K = torch.zeros(T, T, dtype=torch.float64)
    direction: list[Tensor | None] = []
    for column in zip(*rows, strict=True):
        model = next((grad for grad in column if grad is not None), None)
        if model is None:
            direction.append(None)
            continue
        dense = torch.stack(
            [torch.zeros(model.shape) if grad is None else grad.clone() for grad in column]
        ).double()
        G = dense.reshape(T, model.numel())
        K += G @ G.T
        direction.append((Ramp()(K).reshape(-1, *[1] * model.dim()) * dense).sum(dim=0))
    return K, direction


def check(rows: Rows, params: list[Tensor] | None = None) -> list[Tensor | None]:
    """Aggregates, compares values, shapes and strides, and asserts that nothing was written to."""
    given_grads = [grad for row in rows for grad in row if grad is not None]
    before = [(grad, grad.clone(), grad._version) for grad in given_grads]
    K, expected = oracle(rows)
    direction, report = aggregate(rows, Ramp(), params=params)
    for grad, copy, version in before:
        assert torch.equal(grad, copy)
        assert grad._version == version
    norms = K.diagonal().sqrt()
    assert ((report.gram - K).abs() <= 1e-6 * torch.outer(norms, norms)).all()
    for p, (got, value) in enumerate(zip(direction, expected, strict=True)):
        if value is None:
            assert got is None
            continue
        first = next(row[p] for row in rows if row[p] is not None)
        model = first if params is None else params[p]
        assert got.shape == model.shape
        assert got.dtype == first.dtype
        rounding = 2 * torch.finfo(got.dtype).eps
        torch.testing.assert_close(got.double(), value, rtol=rounding, atol=40 * rounding)
        if model.is_contiguous() or model.is_contiguous(memory_format=CHANNELS_LAST):
            assert got.stride() == model.stride()
    return direction


def image() -> Tensor:
    return torch.randn(4, 3, 2, 5)


LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 6),
    "stride_zero": lambda: torch.randn(()).expand(4, 6),
    "stride_zero_rows": lambda: torch.randn(6).expand(4, 6),
    "stride_zero_columns": lambda: torch.randn(4, 1).expand(4, 6),
    "overlapping": lambda: torch.randn(9).unfold(0, 6, 1),
    "transposed": lambda: torch.randn(6, 4).t(),
    "misaligned": lambda: torch.randn(25)[1:].view(4, 6),
    "every_second": lambda: torch.randn(4, 12)[:, ::2],
    "one_column": lambda: torch.randn(4, 3)[:, 1:2].expand(4, 6),
    "flipped_sign": lambda: torch._neg_view(torch.randn(4, 6)),
    "transposed_in_slice": lambda: torch.randn(9, 8)[2:8, 1:5].t(),
}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts_in_pairs(first: str, second: str) -> None:
    check([[LAYOUTS[first]()], [LAYOUTS[second]()]])
    check([[LAYOUTS[first]()], [LAYOUTS[second]()]], params=[torch.randn(4, 6)])
    direction = check([[LAYOUTS[first]()], [LAYOUTS[second]()]], params=[torch.randn(6, 4).t()])
    assert direction[0].stride() == (1, 4)


def test_one_dimensional_layouts() -> None:
    rows = [
        [torch.randn(37), torch.randn(()), torch.randn(1)],
        [torch.randn(1).expand(37), torch.randn(2)[1], torch.randn(3)[1:2]],
        [torch.randn(74)[::2], torch.randn(1).squeeze(), torch.randn(1, 1)[0]],
    ]
    check(rows)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 1, 2, 5), (4, 3, 1, 1), (1, 1, 1, 1)])
def test_channels_last(shape: tuple[int, ...]) -> None:
    plain, last = torch.randn(shape), torch.randn(shape).to(memory_format=CHANNELS_LAST)
    for param in (plain, last):
        direction = check([[plain], [last], [plain.clone()]], params=[param])
        assert direction[0].stride() == param.stride()
    assert check([[last], [plain]])[0].stride() == last.stride()


def test_params_decide_the_strides_among_many() -> None:
    params = [image().to(memory_format=CHANNELS_LAST), torch.randn(5, 3).t(), torch.randn(7)]
    rows = [[torch.randn_like(p).contiguous() for p in params] for _ in range(3)]
    direction = check(rows, params=params)
    assert [d.stride() for d in direction] == [p.stride() for p in params]
    flat = direction[0].untyped_storage().data_ptr()
    assert all(d.untyped_storage().data_ptr() == flat for d in direction)
    assert all(d.storage_offset() % 16 == 0 for d in direction)


def test_gradients_that_share_storage() -> None:
    base = torch.randn(40)
    rows = [[base[:24], base[24:]], [base[10:34], base[:16]], [base[16:], base[:16]]]
    check(rows)
    tied = torch.randn(4, 6)
    check([[tied, tied], [tied, tied.t().reshape(4, 6)]])


def test_none_and_zero_size() -> None:
    x = torch.randn
    rows = [
        [None, x(3), None, x(0, 4), x(5), None, x(2, 0)],
        [None, None, x(2, 2), x(0, 4), x(5), None, None],
        [None, x(3), None, None, x(1).expand(5), None, None],
    ]
    direction = check(rows)
    assert [d is None for d in direction] == [True, False, False, False, False, True, False]
    assert direction[3].shape == (0, 4)


def test_a_task_that_reaches_nothing() -> None:
    _, report = aggregate([[torch.ones(3)], [None]], Sum())
    assert report.gram.tolist() == [[3, 0], [0, 0]]
    assert report.status.tolist() == [0, mtlkernels.Status.ZERO_GRADIENT]


def test_nothing_at_all_is_an_error() -> None:
    for rows in ([[None, None], [None, None]], [[], []]):
        with pytest.raises(ValueError, match="no task reaches any parameter"):
            aggregate(rows, Mean())


def test_dtypes_mixed_over_parameters() -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.float16]
    rows = [[torch.randn(3, 7).to(dtype) for dtype in dtypes] for _ in range(4)]
    rows[1][1] = None
    direction, report = aggregate(rows, Ramp())
    groups = group_gradients(rows)
    assert [group.params for group in groups] == [[0, 3], [1], [2], [4]]
    assert torch.equal(report.gram, sum(ops.gram(group.grads, 4) for group in groups))
    assert [d.dtype for d in direction] == dtypes
    check(rows)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[X], [X.to_sparse()]], TypeError, r"task 1 for parameter 0 is sparse: use dense"),
        ([[X.cfloat()]], TypeError, r"task 0 for parameter 0 is complex: balance torch.view_as"),
        ([[X, X.int()]], TypeError, r"task 0 for parameter 1 is torch.int32: expected float32"),
        ([[X.bool()]], TypeError, r"task 0 for parameter 0 is torch.bool: expected float32"),
        ([[X], [X.double()]], ValueError, r"gradients must share one dtype"),
        ([[X], [X.t()]], ValueError, r"task 1 for parameter 0 has shape \(3, 2\), not \(2, 3\)"),
        ([[X, X], [X]], ValueError, r"task 1 has 1 gradients for 2 parameters"),
        ([X, X], ValueError, r"task 0 has a tensor for 2 parameters"),
        ([], ValueError, r"task_grads must be T lists of P tensors"),
        (torch.ones(2, 3), ValueError, r"task_grads must be T lists of P tensors"),
    ],
)
def test_errors(rows: Rows, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aggregate(rows, Mean())


def test_params_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"task 0 has 1 gradients for 2 parameters"):
        aggregate([[X]], Mean(), params=[X, X])
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), not \(6,\)"):
        aggregate([[X]], Mean(), params=[torch.ones(6)])


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A tensor of that shape in any strides: permuted, sliced, stepped, shifted, expanded."""
    order = draw(st.permutations(range(len(shape))))
    grown, cuts, spread = [], [], list(shape)
    for dim in order:
        before, step = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        expanded = draw(st.booleans()) and draw(st.booleans())
        n = 1 if expanded else shape[dim]
        grown.append(before + n * step)
        cuts.append(slice(before, before + n * step, step))
        spread[dim] = shape[dim]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    tensor = torch.randn(grown, generator=generator)[tuple(cuts)]
    back = [list(order).index(dim) for dim in range(len(shape))]
    return tensor.permute(back).expand(spread)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    shape = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    shapes = data.draw(st.lists(shape, min_size=1, max_size=3))
    tasks = data.draw(st.integers(1, 3))
    rows = [[data.draw(layouts(shape)) for shape in shapes] for _ in range(tasks)]
    for t in range(1, tasks):
        if data.draw(st.booleans()):
            rows[t][0] = None
    params = [torch.randn(shape) for shape in shapes]
    for p, param in enumerate(params):
        if param.dim() == 4 and data.draw(st.booleans()):
            params[p] = param.to(memory_format=CHANNELS_LAST)
    check(rows)
    check(rows, params=params)
