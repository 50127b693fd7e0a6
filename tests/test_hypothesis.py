"""Promise: no combination of arguments is special: random ones agree with the oracle, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from case import DTYPES, LAYOUTS, MODES, NARROW_LAYOUTS, Case, call, make_input, make_taps, verdict
from hypothesis import assume, event, given
from hypothesis import strategies as st
from tolerances import assert_close

from aablur.geometry import Geometry

SIZES = {1: st.integers(1, 150), 2: st.integers(1, 24), 3: st.integers(1, 9)}


@st.composite
def cases(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def an_axis(values: st.SearchStrategy[Any]) -> Any:
        """One for all axes, or one each."""
        return draw(st.one_of(values, st.tuples(*[values] * rank)))

    size = draw(st.tuples(*[SIZES[rank]] * rank))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 17, 33]))
    tap = st.one_of(
        st.integers(1, 9), st.builds(lambda kind, k: f"{kind}{k}", st.sampled_from("sc"), st.integers(1, 6))
    )
    pad = st.integers(-4, 4) | st.integers(-10, 40)
    padding = draw(st.just("same") | pad | st.tuples(*[pad] * rank) | st.tuples(*[st.tuples(pad, pad)] * rank))
    case = Case(
        "random", (*batch, channels, *size), rank, an_axis(tap), an_axis(st.integers(1, 5)), padding,
        draw(st.sampled_from(MODES)), dtype=draw(st.sampled_from(list(DTYPES))),
        layout=draw(st.sampled_from(NARROW_LAYOUTS if rank == 1 else LAYOUTS)),
        values=draw(st.sampled_from(["random", "ties"])),
    )  # fmt: skip
    if draw(st.booleans()):
        window = draw(st.tuples(*[st.sampled_from([1, 2, 2, 3, 3, 4, 7])] * rank))
        half = [draw(st.integers(0, w // 2)) for w in window]
        dilation = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, 3])] * rank))
        case = Case(**{**vars(case), "window": window, "window_padding": tuple(half), "window_dilation": dilation})
    return case


def serves(case: Case) -> bool:
    """Whether the arguments are good ones: an output, a window that fits."""
    sizes = [t if isinstance(t, int) else int(t[1:]) for t in case.taps_per_axis]
    window = () if case.window is None else (case.window, case.window_padding, case.window_dilation)
    try:
        Geometry("", sizes, case.stride, case.padding, case.padding_mode, *window).check(case.shape, 0)
    except ValueError:
        return False
    return True


@given(case=cases(), recompute=st.booleans())
def test_any_case(case: Case, recompute: bool) -> None:
    assume(serves(case))
    event(f"rank {case.rank}, {'max' if case.window else 'blur'}, {case.dtype}")
    x, (taps, tensors) = make_input(case).requires_grad_(), make_taps(case)
    for tensor in tensors:
        tensor.requires_grad_()
    y = call(case, x, taps, **({"recompute": recompute} if case.window else {}))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    ours = [y.detach(), *torch.autograd.grad(y, [x, *tensors], grad)]
    for i, (actual, (expected, magnitude)) in enumerate(zip(ours, verdict(case, x, taps, grad), strict=True)):
        assert actual.dtype == x.dtype
        assert_close(actual, expected, magnitude=magnitude, taps=i > 1)


@given(case=cases())
def test_the_blur_is_linear_and_its_backward_adjoint(case: Case) -> None:
    """<blur(x), g> = <x, blur'(g)> and blur(a x + b z) = a blur(x) + b blur(z), in float64."""
    case = Case(**{**vars(case), "window": None, "window_padding": 0, "window_dilation": 1, "dtype": "f64"})
    assume(serves(case))
    x, (taps, _) = make_input(case).requires_grad_(), make_taps(case)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = call(case, x, taps)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (back,) = torch.autograd.grad(y, x, grad)
    norm = float(y.detach().norm() * grad.norm()) + 1e-300
    assert abs(float((y.detach() * grad).sum() - (x.detach() * back).sum())) <= 1e-12 * norm
    assert_close(call(case, 2 * x.detach() - 3 * z, taps), 2 * y.detach() - 3 * call(case, z, taps), taps=True)
