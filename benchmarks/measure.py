"""One workload -> its measurements: judge every provider, then time those that are right."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .check import Verdict, judge, reference
from .photos import feature_map
from .providers import COMPILE, COPY, OURS, PROVIDERS, copy_step, provider, step
from .record import NOT_COMPILED, OK, WRONG, Measurement
from .timing import Others, Times, interleave
from .workloads import Workload


@dataclass(frozen=True)
class Settings:
    """How long to measure, and whether to compile."""

    rounds: int = 15
    compile: bool = True

    def budget_s(self, workload: Workload) -> float:
        return 1.5 if workload.regime == "memory" else 0.4


def inputs_of(workload: Workload) -> tuple[list[Tensor], Tensor]:
    """The inputs to rotate over, and the output's gradient, in the row's layout and dtype.

    Beyond the cache there are two: while one is read, the other leaves the cache.
    """
    x = feature_map(workload.shape).to(workload.dtype)
    x = x.contiguous(memory_format=workload.memory_format)
    copies = 2 if workload.regime == "memory" else 1
    inputs = [x.clone().requires_grad_(workload.backward) for _ in range(copies)]
    dy = reference(workload).dy.contiguous(memory_format=workload.memory_format)
    return inputs, dy


def reason(failure: Exception) -> str:
    """The first line of an error, short enough for a cell of the CSV."""
    first = str(failure).strip().partition("\n")[0]
    return f"{type(failure).__name__}: {first}"[:160]


def measure(workload: Workload, settings: Settings) -> list[Measurement]:
    """All providers of one row, in the order of PROVIDERS."""
    inputs, dy = inputs_of(workload)
    compiled = settings.compile and workload.regime == "memory"
    status = dict.fromkeys(PROVIDERS, OK)
    verdicts: dict[str, Verdict] = {}
    steps: dict[str, Callable[[], object]] = {COPY: copy_step(inputs)}
    for name in PROVIDERS[1:]:
        if name == COMPILE and not compiled:
            status[name] = NOT_COMPILED
            continue
        try:
            who = provider(name, workload)
            verdicts[name] = judge(who, workload, inputs[0], dy)
        except Exception as failure:  # no C++ compiler, no memory: the other providers go on
            status[name] = reason(failure)
            continue
        if verdicts[name].ok:
            steps[name] = step(who, workload, inputs, dy)
        else:
            status[name] = WRONG

    others = Others()
    right = status[OURS] == OK
    times = (
        interleave(
            steps,
            rounds=settings.rounds,
            budget_s=settings.budget_s(workload),
        )
        if right
        else {}
    )
    busy = others.cores() if right else None
    return [measurement(workload, name, status[name], times, verdicts.get(name), busy) for name in PROVIDERS]


def measurement(
    workload: Workload,
    name: str,
    status: str,
    times: dict[str, Times],
    verdict: Verdict | None,
    busy: float | None,
) -> Measurement:
    """Times, ratios, errors and saved bytes of one provider; what is unknown stays empty."""
    row: dict[str, float | int | None] = {}
    if name in times:
        mine, copy, best = times[name].median, times[COPY].median, times[OURS].median
        moved = 2 * workload.input_bytes if name == COPY else workload.minimal_bytes
        floor_ms = copy * workload.minimal_bytes / (2 * workload.input_bytes)
        row |= {
            "ms": mine,
            "ms_p20": times[name].p20,
            "ms_p80": times[name].p80,
            "gbytes_per_s": moved / mine / 1e6,
            "ratio_to_copy": mine / copy,
            "speedup_of_ours": mine / best,
            "floor_ratio": mine / floor_ms,
        }
    if verdict:
        row |= {"max_abs_error": verdict.y.absolute, "relative_error": verdict.y.relative}
        if verdict.dx:
            row["grad_max_abs_error"] = verdict.dx.absolute
            row["grad_relative_error"] = verdict.dx.relative
        if verdict.saved_bytes is not None:
            row["saved_bytes"] = verdict.saved_bytes
            row["saved_of_input"] = verdict.saved_bytes / workload.input_bytes
    return Measurement(
        name=workload.name,
        op=workload.op,
        direction=workload.direction,
        layout=workload.layout,
        dtype=workload.dtype_name,
        regime=workload.regime,
        shape="x".join(map(str, workload.shape)),
        provider=name,
        status=status,
        others_cores=busy,
        **row,  # pyright: ignore[reportArgumentType]
    )
