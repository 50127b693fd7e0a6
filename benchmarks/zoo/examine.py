"""What is measured of one model: one row of the CSV."""

from __future__ import annotations

import copy
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import aablur
from aablur.models.sites import UNREPAIRED

from .catalogue import Family

TOLERANCE = 1e-4  # of the largest output
ALREADY = "filtered already"


@dataclass
class Row:
    """One model.

    Attributes:
        status: "ok"; else where it went wrong, and the first line of the exception.
        places: that `aablur.audit` found.
        repaired: by `aablur.antialias`; ``left`` says why the others are not.
        sizes: of the input, that the plain model accepts.
        shapes_kept: at how many of these the repaired model gives the plain model's shapes, at strength 0 and at 1.
        equal: at how many it gives the plain model's values at strength 0, within `TOLERANCE`.
        error: the largest difference there, as a fraction of the largest output.
        export: "same" results by torch.export; "WRONG"; or what was raised.
        left: "why: places" of what is left alone, joined by "; ".
        said: warnings of the repaired model when it ran.
        refused: the sizes that the plain model does not accept, and what it raised there.
        seconds: of processor time.
    """

    family: str
    model: str
    status: str = "ok"
    places: int = 0
    repaired: int = 0
    sizes: int = 0
    shapes_kept: int = 0
    equal: int = 0
    error: float = 0.0
    export: str = ""
    left: str = ""
    said: str = ""
    refused: str = ""
    seconds: float = 0.0


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class OutOfTime(BaseException):
    """No Exception, which what a model or a tracer catches would swallow."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime when the process has used so much time of a processor."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"more than {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)  # and again, if what it ended was a finalizer
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def warm(model: nn.Module, args: Sequence[Any]) -> nn.Module:
    """Gives batch norms the statistics of maps that random weights make, so that no map dies or explodes."""
    norms = {m: m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the mean of all batches
        m.train()
    try:
        with torch.no_grad():
            for given in args:
                model(*given)
    finally:
        for m, momentum in norms.items():
            m.momentum = momentum
    return model.eval()


def _twice(args: Any) -> Any:
    """Inputs of two pictures: a norm of a map of one pixel needs them."""
    return tuple(
        [*a, *(torch.rand_like(t) for t in a)] if isinstance(a, list) else torch.cat([a, torch.randn_like(a)])
        for a in args
    )


def outputs(model: nn.Module, args: Any, watch: str = "") -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that a model puts out, and those of the module ``watch`` in it (by default the model itself)."""
    seen: list[Any] = []
    handle = model.get_submodule(watch).register_forward_hook(lambda m, a, out: seen.append(out))
    try:
        with torch.no_grad():
            out = model(*copy.deepcopy(args))
    finally:
        handle.remove()
    whole, inner = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in (out, seen))
    return whole, inner


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference of outputs, as a fraction of the largest value of that output in b; inf if one is nan."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if y.numel():
            error = float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-12))
            worst = max(worst, error if error == error else float("inf"))
    return worst


def shapes(out: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in out]


def repaired(model: nn.Module, args: Any, strength: float) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "antialias: ")  # `repairs` has the same, and the values are compared here
        return aablur.antialias(copy.deepcopy(model), args, strength=strength)


def examine(family: Family, name: str) -> Row:
    """Measures a model; an exception is a finding of the row."""
    row, start = Row(family.name, name), time.process_time()
    at = ["build"]
    try:
        with limited(family.seconds), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _examine(row, family, at)
            row.said = "; ".join(dict.fromkeys(m for w in caught if (m := str(w.message)).startswith("aablur: ")))[:600]
    except (Exception, OutOfTime) as error:
        row.status = f"{at[0]}: {first_line(error)}"
    row.seconds = round(time.process_time() - start, 1)
    return row


def _examine(row: Row, family: Family, at: list[str]) -> None:
    torch.manual_seed(0)
    plain = family.build(row.model, **family.models[row.model]).eval()
    args = [family.inputs(size) for size in family.sizes]
    at[0] = "plain model"
    warm(plain, [_twice(args[0])])
    expected: list[Any] = [outputs(plain, args[0], family.watch)]
    refused = []
    for size, given in zip(family.sizes[1:], args[1:], strict=True):
        try:
            expected.append(outputs(plain, given, family.watch))
        except Exception as error:  # whatever a model says to a size that it does not take
            expected.append(None)
            refused.append(f"{'x'.join(map(str, size))}: {first_line(error)}")
    row.sizes, row.refused = len(args) - len(refused), "; ".join(refused)
    inner = expected[0][1]
    if not all(bool(t.isfinite().all()) for t in inner):
        raise ValueError("its outputs are not finite")
    if difference(outputs(plain, family.inputs(family.sizes[0]), family.watch)[1], inner) < 1e-3:
        raise ValueError("its outputs hardly depend on its input")

    at[0] = "audit"
    sites = aablur.audit(plain, args[0], measure=False).sites
    row.places = len(sites)
    left = {s.name: f"{s.kind}, for which there is no repair" for s in sites if s.kind in UNREPAIRED}
    left |= {s.name: ALREADY for s in sites if s.filter == "blur"}

    at[0] = "antialias"
    gentle, full = (repaired(plain, args[0], strength) for strength in (0.0, 1.0))
    done = aablur.repairs(full)
    row.repaired = sum(r.done for r in done)
    left |= {r.name: r.how for r in done if not r.done}
    why = {reason: [n for n, r in left.items() if r == reason] for reason in dict.fromkeys(left.values())}
    row.left = "; ".join(f"{reason.replace('; ', ', ')}: {', '.join(names)}" for reason, names in why.items())

    at[0] = "repaired model"
    for given, before in zip(args, expected, strict=True):
        if before is None:
            continue
        soft, hard = (outputs(model, given, family.watch) for model in (gentle, full))
        whole = shapes(soft[0]) == shapes(before[0])
        row.shapes_kept += whole and shapes(hard[1]) == shapes(before[1])
        error = difference(soft[0], before[0]) if whole else float("inf")
        row.equal += error <= TOLERANCE
        row.error = max(row.error, error)
    at[0] = "export"
    row.export = _export(plain, full, args[0])


def _export(plain: nn.Module, model: nn.Module, args: Any) -> str:
    """Whether torch.export of a repaired model gives its results; if not, whether the plain model's does."""
    try:
        exported = torch.export.export(model, copy.deepcopy(args)).module()
        found, expected = (outputs(m, args)[0] for m in (exported, model))
    except Exception as error:
        try:
            torch.export.export(plain, copy.deepcopy(args))
        except Exception:  # whatever an export raises: the repair is not to blame
            return f"nor does the plain model: {first_line(error)}"
        return first_line(error)
    good = shapes(found) == shapes(expected) and difference(found, expected) <= TOLERANCE
    return "same" if good else "WRONG"
