"""Which layers of a trained model bear a blur: one at a time, with its accuracy and its consistency."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files import write_text
from ..geometry import shown
from . import show
from .antialias import antialias, restore
from .sites import find_sites
from .tape import record, uncompiled, undisturbed

Metric = Callable[[Any, Any], float]
LARGEST_SHIFT = 32


@dataclass(frozen=True)
class Row:
    """One site blurred (``name`` "" is the model as it is): mean metric, and share of pictures whose class stays."""

    name: str
    kind: str
    score: float
    consistency: float


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found: the ``baseline``, and a `Row` a site in ``rows``. ``print`` shows a table."""

    baseline: Row
    rows: tuple[Row, ...]

    def loss(self, row: Row) -> float:
        return self.baseline.score - row.score

    def gain(self, row: Row) -> float:
        return row.consistency - self.baseline.consistency

    def within(self, budget: float) -> list[str]:
        """Names of the sites to blur so that the losses of score, added up, stay within a budget.

        Sites that gain consistency, the cheapest first. Losses of single layers need not add up when several are
        blurred: measure the repaired model.
        """
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not budget >= 0:
            raise ValueError(f"budget must be a number of at least 0, got {shown(budget)}")
        left, names = float(budget), []
        for row in sorted((r for r in self.rows if self.gain(r) > 0), key=lambda r: (self.loss(r), -self.gain(r))):
            cost = max(self.loss(row), 0.0)
            if cost <= left:
                left -= cost
                names.append(row.name)
        return names

    def to_json(self, path: str | Path | None = None) -> str:
        """As JSON text; also written to ``path`` if one is given."""
        text = json.dumps({"baseline": asdict(self.baseline), "rows": [asdict(r) for r in self.rows]}, indent=1)
        if path is not None:
            write_text(path, text + "\n")
        return text

    def __str__(self) -> str:
        cells = [["(as it is)", "", f"{self.baseline.score:.4f}", "", f"{self.baseline.consistency:.4f}", ""]]
        for r in self.rows:
            figures = (f"{r.score:.4f}", f"{-self.loss(r):+.4f}", f"{r.consistency:.4f}", f"{self.gain(r):+.4f}")
            cells.append([r.name, r.kind, *figures])
        return show.text_table(("blurred", "what", "score", "change", "consistency", "change"), cells, "Sensitivity")


def top1(output: Tensor, target: Tensor) -> float:
    """The share of pictures whose largest output is that of their class."""
    return float((output.argmax(-1) == target).float().mean())


def sensitivity(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Any]],
    metric: Metric = top1,
    *,
    taps: int | None = None,
    strength: float = 1.0,
    where: str = "after_activation",
    sites: Sequence[str] | None = None,
    max_shift: int = LARGEST_SHIFT,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Blurs one layer of a trained model at a time, and measures what it costs and what it brings.

    1. Measure the model as it is: the mean of ``metric`` over the loader, and the consistency: the share of pictures
       whose top-1 class stays when the picture is rolled by random offsets of up to ``max_shift`` pixels.
    2. For each site: `aablur.antialias` it alone, measure, `aablur.restore`.

    So that people with a trained model can choose layers without retraining: pass the result to
    ``antialias(model, x, sensitivity=result, budget=0.01)``. The model is left as it was.

    Args:
        model: a classifier: its output is (batch, classes) logits.
        loader: batches (pictures, targets); read once a site, so it must start again when it is iterated again.
        metric: (output, target) -> the mean over a batch, larger is better. Default: top-1 accuracy.
        taps, strength, where: as for `aablur.antialias`.
        sites: names of the sites to try. Default: all that no blur filters.
        max_shift: pixels. Default 32.
        seed: of the offsets, which are the same for each site.
        resume: a JSON file that is written after each site; a scan that finds its own goes on where it ended.
        progress: show a bar (needs rich; without it there is none).

    Returns:
        A `Sensitivity`.

    Raises:
        TypeError, ValueError: an argument is not of the form above, the loader is empty or cannot be read again, or
            ``resume`` is the file of another scan.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sensitivity: model must be a torch.nn.Module, got {type(model).__name__}")
    if iter(loader) is loader:
        raise TypeError("sensitivity: loader must start again when it is iterated again, got an iterator")
    if not isinstance(max_shift, int) or max_shift < 1:
        raise ValueError(f"sensitivity: max_shift must be a positive int, got {shown(max_shift)}")
    first = next(iter(loader), None)
    if first is None:
        raise ValueError("sensitivity: loader must hold a batch, got none")
    x = _to_device(first[0], model)[:2]
    found = {s.name: s for s in find_sites(record(uncompiled(model), (x,))) if s.filter != "blur"}
    names = list(found) if sites is None else list(sites)
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"sensitivity: sites holds {unknown[0]!r}, there are {', '.join(found)}")
    options = {"taps": taps, "strength": strength, "where": where}
    state = _State(resume, {**options, "max_shift": max_shift, "seed": seed, "model": type(model).__name__})
    with show.progress_bar(progress, "sensitivity", len(names) + 1) as advance:
        for name in ["", *names]:
            if name not in state.rows:
                if name:
                    _blur_one(model, x, name, options)
                try:
                    score, consistency = _measure(model, loader, metric, max_shift, seed)
                finally:
                    restore(model)
                state.add(Row(name, found[name].kind if name else "", score, consistency))
            advance(name or "as it is")
    return Sensitivity(state.rows[""], tuple(state.rows[name] for name in names))


def _blur_one(model: nn.Module, x: Tensor, name: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "antialias: this model may be trained")
        antialias(model, x, layers=lambda site: site.name == name, verify=False, **options)


def _to_device(x: Any, model: nn.Module) -> Any:
    parameter = next(model.parameters(), None)
    return x.to(parameter.device) if isinstance(x, Tensor) and parameter is not None else x


def _measure(model: nn.Module, loader: Iterable[Any], metric: Metric, max_shift: int, seed: int) -> tuple[float, float]:
    offsets = random.Random(seed)
    score = same = pictures = 0.0
    with undisturbed(model):
        for x, target in loader:
            x, target = _to_device(x, model), _to_device(target, model)
            shift = tuple(offsets.choice([-1, 1]) * offsets.randint(1, max_shift) for _ in range(2))
            output, moved = model(x), model(x.roll(shift, (-2, -1)))
            score += float(metric(output, target)) * len(x)
            same += float((output.argmax(-1) == moved.argmax(-1)).sum())
            pictures += len(x)
    return score / pictures, same / pictures


class _State:
    """The rows so far, kept in a file if there is one."""

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.rows = None if path is None else Path(path), settings, {}
        if self.path is not None and self.path.exists():
            try:
                known = json.loads(self.path.read_text())
                theirs, self.rows = known["settings"], {row["name"]: Row(**row) for row in known["rows"]}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"sensitivity: resume: {self.path} is not a scan: {error!r}") from error
            if theirs != settings:
                raise ValueError(f"sensitivity: resume is a scan with {theirs}, this one has {settings}")

    def add(self, row: Row) -> None:
        self.rows[row.name] = row
        if self.path is not None:
            text = json.dumps({"settings": self.settings, "rows": [asdict(r) for r in self.rows.values()]}, indent=1)
            write_text(self.path, text + "\n")
