"""Where a model aliases, and how much: the report of `audit`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_text
from ..geometry import shown
from . import aliasing
from .circular import Torus
from .example import NOISE, example_for
from .sites import Site, find_sites
from .tape import Node, as_args, record, uncompiled
from .upsampling import Upsampling, find_upsampling

FIELDS = (
    "name", "kind", "source", "stride", "map_size", "out_size", "channels", "filter", "aliasing", "equivariance",
)  # fmt: skip


@dataclass(eq=False)
class Report:
    """What `audit` found: ``sites``, one entry a sampling place, in the order in which the model runs, and likewise
    ``upsampling``.

    ``print(report)`` is a table, ``report.to_json()`` the same as text, ``report.plot(path)`` a picture with bars a
    site and the heat maps of `heatmaps`.
    """

    model: nn.Module
    example_input: tuple[Any, ...]
    sites: list[Site]
    upsampling: list[Upsampling] = field(default_factory=list)  # where images of the spectrum may appear
    about: dict[str, str] = field(default_factory=dict)  # where the weights and the input come from, if that is known

    @property
    def unfiltered(self) -> list[Site]:
        """The sites where nothing keeps the map from aliasing."""
        return [s for s in self.sites if not s.filtered]

    def rows(self) -> list[dict[str, Any]]:
        """One dict a site, of plain values."""
        return [{name: getattr(site, name) for name in FIELDS} for site in self.sites]

    def to_json(self, path: str | Path | None = None) -> str:
        """The sites as JSON text; also written to ``path`` if one is given."""
        text = json.dumps(
            {
                "model": type(self.model).__name__,
                **self.about,
                "sites": self.rows(),
                "upsampling": [asdict(u) for u in self.upsampling],
            },
            indent=1,
        )
        if path is not None:
            write_text(path, text + "\n")
        return text

    def __str__(self) -> str:
        from .show import as_text  # rich if it is there

        return as_text(self)

    def heatmaps(self, shifts: Sequence[int] | None = None, circular: bool = True, progress: bool = False) -> Tensor:
        """The equivariance error of the whole model up to each site, for shifts of its input (Zhang, Fig. 5).

        Args:
            shifts: pixels of the model's input, the same along the height and the width. Default: 0, 1, ... 8.
            circular: run the model with circular padding everywhere, so that the borders play no part.
            progress: show a bar (needs rich; without it there is none): the model runs len(shifts)^2 times. Default
                False.

        Returns:
            (sites, len(shifts), len(shifts)): entry [i, a, b] is `aliasing.equivariance_error` of the map that site i
            puts out, for the input shifted by shifts[a] down and shifts[b] right. A site whose output is no map with
            more than one pixel is NaN.
        """
        steps = list(range(9)) if shifts is None else list(shifts)
        x, *rest = self.example_input
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(f"heatmaps: the model's input must be (batch, channels, height, width), got {shown(x)}")
        from .show import progress_bar

        plain = self._outputs(x, rest, circular)
        found = torch.full((len(self.sites), len(steps), len(steps)), torch.nan)
        with progress_bar(progress, "heat maps", len(steps) ** 2) as advance:
            for (a, down), (b, right) in itertools.product(enumerate(steps), repeat=2):
                moved = self._outputs(x.roll((down, right), (-2, -1)), rest, circular) if down or right else plain
                for i, site in enumerate(self.sites):
                    axes = site.axes
                    sizes = [plain[i].shape[k] for k in axes]
                    if len(axes) == 2 and max(sizes) > 1 and site.gives_a_map:
                        part = [d * n / x.shape[k] for d, n, k in zip((down, right), sizes, (-2, -1), strict=True)]
                        found[i, a, b] = aliasing.distance(moved[i], plain[i], part, axes)
                advance(f"heat maps, shift {down}, {right}")
        return found

    def _outputs(self, x: Tensor, rest: Sequence[Any], circular: bool) -> list[Tensor]:
        kept: dict[Node, Tensor] = {}
        torus = Torus()

        def keep(node: Node) -> Any:
            def run(func: Any, args: Any, kwargs: Any) -> Any:
                out = torus(func, args, kwargs) if circular else func(*args, **kwargs)
                kept[node] = (out[0] if isinstance(out, tuple) else out).clone()
                return out

            return run

        ends = [site.end for site in self.sites]
        record(self.model, (x, *rest), {n: keep(n) for n in ends}, torus if circular else None, stop=True)
        return [kept[n] for n in ends]

    def plot(self, path: str | Path, heatmaps: bool = True) -> None:
        """Writes a picture: bars of both figures a site, and below them a heat map a site. Needs matplotlib."""
        from .show import plot

        plot(self, path, heatmaps)


def audit(model: nn.Module, example_input: Any = None, *, shift: int = 1, measure: bool = True) -> Report:
    """Finds every place where a model samples a map, and measures how much it aliases there.

    1. Run the model on the input, in eval mode, and record every torch function that runs (`tape`).
    2. Read off the record where a map loses pixels (`sites.find_sites`): strided convolutions, pools, slices,
       space-to-depth, interpolation; and whether a low-pass filter comes right before.
    3. Run it again, and at each of these places measure the fraction of the map's spectral energy above the new
       Nyquist limit, and the shift-equivariance error (`aliasing.measure`).

    The model is left as it was: training flags, buffers and random numbers too. Only lazy modules that have seen no
    input see this one, and have their weights afterwards.

    Args:
        model: any module; it need not be traceable. What torch.compile has made of it is looked at uncompiled.
        example_input: a tensor, or a list or dict of them as detectors take; or a tuple of such arguments. Pictures
            of the kind that the model is for, or the figures mean little. Default None: noise with a picture's
            spectrum, of the size that the model asks for.
        shift: pixels by which the map of each site is shifted for the equivariance error. Default 1.
        measure: False leaves ``aliasing`` and ``equivariance`` None, and runs the model once.

    Returns:
        A `Report`; ``report.sites`` has one `sites.Site` a place, ``report.upsampling`` one `Upsampling` a place
        where a map becomes larger by zeros or copies.

    Raises:
        TypeError, ValueError: ``model`` is no module, or it does not run on the input.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (arXiv 1904.11486).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"audit: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(shift, int) or isinstance(shift, bool) or shift < 1:
        raise ValueError(f"audit: shift must be a positive int, got {shown(shift)}")
    model = uncompiled(model)
    args = example_for(model, example_input, "audit")
    tape = record(model, args)
    sites = find_sites(tape, every=True)
    if measure and sites:
        torus = Torus()

        def watch(site: Site) -> Any:
            def run(func: Any, fargs: Any, fkwargs: Any) -> Any:
                aliasing.measure(site, torus, func, fargs, fkwargs, shift)
                return func(*fargs, **fkwargs)

            return run

        record(model, args, {site.node: watch(site) for site in sites}, _noting_pads(torus), stop=True)
    about = {"input": NOISE} if example_input is None else {}
    return Report(model, as_args(args), sites, find_upsampling(tape), about)


def _noting_pads(torus: Torus) -> Any:
    def run(func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        torus.note_pad(func, args, kwargs, out)
        return out

    return run
