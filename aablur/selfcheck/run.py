"""Runs the cases on each backend of each device, measures, and says what was found."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import backends, ops
from ..progress import progress_bar
from ..version import __version__
from .cases import Case, cases, count_families, difference
from .speed import Speed, measure, shapes


@dataclass(frozen=True)
class Wrong:
    """A case whose result is not right, or that raised."""

    case: str
    what: str


@dataclass(frozen=True)
class Served:
    """What one backend did on one device."""

    device: str
    backend: str
    cases: int  # that were run
    wrong: list[Wrong]
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `check` found: print it, or read its fields."""

    machine: dict[str, str]
    served: list[Served]
    speeds: dict[str, list[Speed]] = field(
        default_factory=dict
    )  # device -> of three shapes, by the backend that serves it

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(s.wrong for s in self.served)

    def to_json(self) -> str:
        """All of it, as JSON."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1)

    def __str__(self) -> str:
        lines = [self.machine["info"]]
        for s in self.served:
            verdict = f"{len(s.wrong)} WRONG" if s.wrong else "all right"
            lines.append(f"{s.device}, {s.backend}: {s.cases} cases in {s.seconds:.0f} s, {verdict}")
        for device, speeds in self.speeds.items():
            lines += [
                f"{device}, {v.name}: {v.of_copy:.0%} of a copy's bandwidth; {v.faster:.1f}x as fast as eager, "
                f"forward and backward {v.training_faster:.1f}x"
                for v in speeds
            ]
        if not self.ok:
            lines += [
                "",
                "aablur computes WRONG results on this machine. Please report all of this:",
                *self._bug_report(),
            ]
        return "\n".join(lines)

    def _bug_report(self) -> list[str]:
        lines = [f"  {k}: {v}" for k, v in self.machine.items() if k != "info"]
        for s in self.served:
            for wrong in s.wrong[:5]:
                lines.append(f"  {s.device}, {s.backend}: {wrong.case}: {wrong.what}")
        first = next(s for s in self.served if s.wrong)
        again = re.escape(first.wrong[0].case).replace("\\ ", " ")
        lines.append(f"  again: python -m aablur check --no-speed --only '{again}'")
        able = [s.backend for s in self.served if s.device == first.device and not s.wrong]
        other = able[0] if able else "reference"
        lines.append(f"Until it is mended, AABLUR_BACKEND={other} takes what is right here.")
        return lines


def _machine() -> dict[str, str]:
    found = {
        "aablur": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "platform": platform.platform(),
    }  # fmt: skip
    if backends.has_native():
        found |= {"cpu_isa": backends.cpu_isa(), "cuda_archs": backends.cuda_archs() or "none"}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            found[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)} (sm_{major}{minor})"
    return found | {"info": str(backends.info())}


def _servings() -> list[tuple[str, str]]:
    """The devices, each with every backend that can serve it, first the one that does, but for the reference."""
    found = [("cpu", "cpu")] if backends.why_not("cpu") is None else []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found += [(f"cuda:{i}", b) for b in ("cuda", "triton") if backends.why_not(b, i) is None]
    elif backends.why_not("triton") is None:  # its interpreter
        found.append(("cpu", "triton"))
    return [(device, b) for device, b in found if backends.forced in (None, b)]


def _run_cases(
    device: str, backend: str, chosen: list[Case], least: int, seconds: float, advance: Callable[[int], None]
) -> Served:
    start, wrong, done = time.monotonic(), [], 0
    with ops.backend(backend):
        for case in chosen:
            if done >= least and time.monotonic() - start > seconds:
                break
            try:
                found = case.results(device)
                expected = case.expected()
                told = [
                    f"{name}: {what}"
                    for (name, value), right in zip(found, expected, strict=True)
                    if (what := difference(value, right))
                ]
            except Exception as error:  # a launch that failed, say: the others tell more
                told = [f"{type(error).__name__}: {error}"]
            wrong += [Wrong(case.id, what) for what in told]
            done += 1
            advance(1)
    return Served(device, backend, done, wrong, time.monotonic() - start)


def check(only: str | None = None, seconds: float = 10.0, speed: bool = True, progress: bool | None = False) -> Report:
    """Whether aablur is right on this machine, and how fast: what to run first after an install.

    1. The backend that serves a device runs some hundred calls, forward and backward, that between them reach every
       family of kernels; others that could serve it run as many as fit into ``seconds``, at least one. Each result is
       compared with the reference's in float64.
    2. On each device three maps of a ResNet-50 are timed: the bandwidth of a forward over that of a copy, and how many
       times as fast as the usual chain of torch's own ops it is.

    Args:
        only: a regular expression that the names of cases must match. Default None, all.
        seconds: of the cases on one backend of one device. The backend that serves there runs all cases that reach a
            family, however long they take; another stops at this limit (Triton compiles for minutes). Default 10.
        speed: whether to measure too, some 20 seconds a device. Default True.
        progress: show a bar on standard error: None is on a terminal, if rich is installed. Default False.

    Returns:
        a report: print it, ask ``ok``, or ``to_json()``.

    Raises:
        ValueError: no case matches ``only``.
    """
    chosen = [case for case in cases() if only is None or re.search(only, case.id)]
    if not chosen:
        raise ValueError(f"check: no case matches only={only!r}")
    servings = _servings()
    timed = list(dict.fromkeys(device for device, _ in servings)) if speed else []
    served, speeds = [], {}
    total = len(servings) * len(chosen) + sum(len(shapes(device)) for device in timed)
    with progress_bar(progress, total, "cases", "models") as advance:
        for device, backend in servings:
            serves = device not in {s.device for s in served}
            served.append(_run_cases(device, backend, chosen, count_families() if serves else 1, seconds, advance))
            advance(len(chosen) - served[-1].cases)
        for device in timed:
            speeds[device] = []
            for found in measure(device):
                speeds[device].append(found)
                advance(1)
    return Report(_machine(), served, speeds)


def add_arguments(parser: Any) -> None:
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="JSON in place of the text, or to a file")
    parser.add_argument("--only", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the cases of one backend on one device (10)")
    parser.add_argument("--no-speed", action="store_true", help="whether it is right, not how fast")


def run(args: Any) -> int:
    """The command; 1 where something is wrong."""
    from ..files import write_text

    report = check(args.only, args.seconds, not args.no_speed, progress=None)
    print(report.to_json() if args.json == "-" else report)
    if args.json not in (None, "-"):
        write_text(args.json, report.to_json() + "\n")
    return 0 if report.ok else 1
