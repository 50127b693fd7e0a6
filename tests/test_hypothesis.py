"""Promise: no combination of arguments is special: random ones agree with the oracle, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import torch
from case import Case, assert_right, call, make_input, make_taps, verdict
from hypothesis import event, given
from hypothesis import strategies as st
from random_case import gradients_of, random_case, serves
from tolerances import assert_close

cases = st.randoms(use_true_random=False).map(random_case)
blurs = cases.map(lambda c: replace(c, window=None, dtype="f64", values="random")).filter(serves)


@given(case=cases, recompute=st.booleans())
def test_any_case(case: Case, recompute: bool) -> None:
    event(f"rank {case.rank}, {'max' if case.window else 'blur'}, {case.dtype}")
    x, (taps, tensors) = make_input(case).requires_grad_(), make_taps(case)
    tensors = [t.requires_grad_() for t in gradients_of(case, tensors)]
    y = call(case, x, taps, **({"recompute": recompute} if case.window else {}))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    ours = [y.detach(), *torch.autograd.grad(y, [x, *tensors], grad)]
    assert_right(case, ours, verdict(case, x, taps, grad)[: len(ours)], tensors)


@given(case=blurs)
def test_the_blur_is_linear_and_its_backward_adjoint(case: Case) -> None:
    """<blur(x), g> = <x, blur'(g)> and blur(a x + b z) = a blur(x) + b blur(z), in float64."""
    x, (taps, _) = make_input(case).requires_grad_(), make_taps(case)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = call(case, x, taps)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (back,) = torch.autograd.grad(y, x, grad)
    norm = float(y.detach().norm() * grad.norm()) + 1e-300
    assert abs(float((y.detach() * grad).sum() - (x.detach() * back).sum())) <= 1e-12 * norm
    assert_close(call(case, 2 * x.detach() - 3 * z, taps), 2 * y.detach() - 3 * call(case, z, taps), taps=True)
