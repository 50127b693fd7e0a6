"""Models repaired: a blur at every place where they alias."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..functional import check_taps_size
from ..geometry import PADDING_MODES
from . import surgery
from .example import example_for
from .places import Plan, apply
from .plan import Planner, Settings
from .repaired import is_repaired
from .sites import Site, find_sites
from .tape import record, uncompiled, undisturbed

if TYPE_CHECKING:
    from .sensitivity import Sensitivity

WHERE = ("after_activation", "before")
POOLS = ("max_pool", "avg_pool", "lp_pool", "adaptive_pool")
_OPTIONS = tuple(f.name for f in fields(Settings))

Layers = str | Iterable[str] | Callable[[Site], bool]


def antialias(
    model: nn.Module,
    example_input: Any = None,
    *,
    taps: int | Mapping[str, int] | Callable[[Site], int | None] | None = None,
    layers: Layers = "all",
    strength: float = 1.0,
    where: str = "after_activation",
    exact: bool = False,
    padding_mode: str = "reflect",
    learnable: bool = False,
    per_channel: bool = False,
    constraints: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    sensitivity: Sensitivity | None = None,
    budget: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    verify: bool | None = None,
) -> nn.Module:
    """Repairs a model in place: every place where it samples gets a low-pass filter, as Zhang puts it.

    1. Run the model once and find where it samples (`aablur.audit`). What a blur filters already is left alone.
    2. Max pool -> max-blur pool. Average pool -> blur pool. Convolution of stride s, norm, activation -> the same at
       stride 1, then blur pool of stride s right after the activation. 1x1 convolution -> blur pool, then the
       convolution at stride 1. Patches that do not overlap (patchify stems, PatchMerging, pixel-unshuffle) -> blur,
       then the layer as it was; with ``exact`` the layer at every pixel, then blur pool. Slices -> blur pool.
       Adaptive pools and interpolations -> blur before them.
    3. Check by a run with the blurs at strength 0 that the model computes what it did, and by one at full strength
       that every output has the shape that it had.

    Modules stay the same objects: weights, names, hooks, dtype, device, padding modes and training flags are kept, and
    a state_dict fits before and after (learnt taps are its only new entries). `aablur.restore` undoes it. A convolution
    blurs right after itself, by whichever path it is called; where torch.fx can trace the forwards that call it, they
    are rewritten to blur after the activation instead, while nothing changes that the trace took for granted. What can
    be reached in no way is left as it is, with a warning. A model whose repaired layers have been replaced raises.

    Args:
        model: any module.
        example_input: a tensor, or a tuple of arguments, on which the model runs. Default: as for `aablur.audit`.
        taps: size of binomial filters: an int; by site name (patterns as "layer2.*"; others get the default); or a
            function of a `sites.Site`. Default None: by the stride (`filters.triangle`): 3 taps, [1, 2, 1], up to
            a stride of 2, and 2 * stride - 1 beyond, which leave as little at the new Nyquist limit.
        layers: which sites: "all", "pool" (pools only), names or patterns of names, or a function of a `sites.Site`.
        strength: from 0 (the model as it was) to 1 (the whole filters): filters are mixed in this proportion with the
            layer's own sampling. A trained model keeps more of its accuracy at 0.25 or so. Default 1.
        where: "after_activation", or "before": the strided convolution stays, and a blur runs before it. Cheaper,
            and `aablur.fold` can fold it into the weights.
        exact: patches by the layer at every pixel, then blur pool. stride^2 times the work there. Default False.
        padding_mode: of the blurs: "zeros", "reflect", "replicate" or "circular". Default "reflect".
        learnable: the taps become parameters, that start from the filters above. Default False.
        per_channel: one learnt filter a channel. Default False: one a site.
        constraints: of learnt taps: "sum_to_one", "symmetric", or both (`aablur.nn.BlurPool2d`).
        overrides: options of single sites by name or pattern, over those above: any of taps, padding_mode, strength,
            where, exact, learnable, per_channel, constraints; and stride (the blur's share of a convolution's stride,
            which keeps the rest) and window (of a max pool, in place of its own).
        sensitivity: what `aablur.sensitivity` found about this model.
        budget: with ``sensitivity``: how much of its score may be lost. Blurs the sites that
            ``sensitivity.within(budget)`` chooses, in place of ``layers``.
        optimizer: whose parameters are the model's. They stay what they are; learnt taps are added, without decay.
        verify: compare the model at strength 0 with what it was. Default: if ``example_input`` is given.

    Returns:
        ``model``. `repairs(model)` tells what was done at each site.

    Raises:
        TypeError, ValueError: an argument is not of the form above, a name fits no site, an output would change its
            shape (the model is then restored), or the model is repaired already.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (arXiv 1904.11486).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"antialias: model must be a torch.nn.Module, got {type(model).__name__}")
    given, model = model, uncompiled(model)
    if any(is_repaired(m) for m in model.modules()):
        raise ValueError("antialias: model is repaired already: aablur.restore(model) undoes it")
    general = Settings(
        None, padding_mode, strength, where, exact, learnable, per_channel,
        (constraints,) if isinstance(constraints, str) else tuple(constraints),
    )  # fmt: skip
    _check(general, "antialias")
    if (sensitivity is None) != (budget is None):
        raise ValueError("antialias: sensitivity and budget must be given together: the scan, and what may be lost")
    if sensitivity is not None and budget is not None:
        layers = sensitivity.within(budget)
    args = example_for(model, example_input, "antialias")
    tape = record(model, args)
    sites = [s for s in find_sites(tape) if s.filter != "blur"]
    chosen = _chosen(sites, layers)
    asked = _settings(chosen, general, taps, overrides or {}, sites)
    planner = Planner(model, args, tape)
    plans = [planner.plan(site, asked[site.name]) for site in chosen]
    before = _run(model, args)
    compare = example_input is not None if verify is None else verify
    compare = compare and all(asked[p.site.name].window is None for p in plans)
    try:
        apply(model, plans)
        model.__dict__["_aablur_repairs"] = [
            Repair(p.site.name, p.site.kind, bool(p.changes), p.how, tuple(dict.fromkeys(c.path for c in p.changes)))
            for p in plans
        ]
        _verify(model, args, before, compare)
        learnt = surgery.build(model)
    except BaseException:
        restore(model)
        raise
    if learnt and optimizer is not None:
        optimizer.add_param_group({"params": learnt, "weight_decay": 0.0})
    _warn(model, plans, max((asked[p.site.name].strength for p in plans if p.changes), default=0))
    return given


def restore(model: nn.Module) -> nn.Module:
    surgery.restore(model)
    uncompiled(model).__dict__.pop("_aablur_repairs", None)
    return model


restore.__doc__ = surgery.restore.__doc__


@dataclass(frozen=True)
class Repair:
    """What was done about a site: ``how`` in words; where nothing was, ``done`` is False and ``how`` says why.

    ``places`` are the paths of the modules that were changed.
    """

    name: str
    kind: str
    done: bool
    how: str
    places: tuple[str, ...]


def repairs(model: nn.Module) -> list[Repair]:
    """What `aablur.antialias` did to a model: one `Repair` a site, in the order in which the model runs."""
    return list(uncompiled(model).__dict__.get("_aablur_repairs", []))


# ---- arguments -----------------------------------------------------------------------------------------


def _check(settings: Settings, op: str) -> None:
    """Raises unless settings are of the form that `antialias` documents."""
    if settings.taps is not None:
        check_taps_size(op, "taps", settings.taps)
    strength = settings.strength
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not 0 <= strength <= 1:
        raise ValueError(f"{op}: strength must be a number from 0 to 1, got {strength!r}")
    if settings.padding_mode not in PADDING_MODES:
        raise ValueError(f"{op}: padding_mode must be one of {', '.join(PADDING_MODES)}, got {settings.padding_mode!r}")
    if settings.where not in WHERE:
        raise ValueError(f"{op}: where must be one of {', '.join(WHERE)}, got {settings.where!r}")
    for name in ("exact", "learnable", "per_channel"):
        if not isinstance(getattr(settings, name), bool):
            raise TypeError(f"{op}: {name} must be a bool, got {getattr(settings, name)!r}")
    if bad := [c for c in settings.constraints if c not in ("sum_to_one", "symmetric")]:
        raise ValueError(f"{op}: constraints must be of sum_to_one, symmetric, got {bad[0]!r}")
    if settings.constraints and not settings.learnable:
        raise ValueError(f"{op}: constraints {settings.constraints} are for learnable=True")


def _fits(site: Site, pattern: str) -> bool:
    return fnmatchcase(site.name, pattern) or fnmatchcase(site.path, pattern)


def _known(patterns: Iterable[str], sites: Sequence[Site], argument: str) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"antialias: {argument} must hold names of sites, got {pattern!r}")
        if not any(_fits(site, pattern) for site in sites):
            names = ", ".join(site.name for site in sites)
            raise ValueError(f"antialias: {argument} holds {pattern!r}, which fits no site; there are {names}")


def _chosen(sites: list[Site], layers: Any) -> list[Site]:
    if isinstance(layers, str) and layers in ("all", "pool"):
        return [s for s in sites if layers == "all" or s.kind in POOLS]
    if callable(layers):
        return [s for s in sites if layers(s)]
    if not isinstance(layers, (str, Iterable)):
        raise TypeError(f"antialias: layers must be 'all', 'pool', names or a function of a site, got {layers!r}")
    patterns = [layers] if isinstance(layers, str) else list(layers)
    _known(patterns, sites, "layers")
    return [s for s in sites if any(_fits(s, p) for p in patterns)]


def _settings(
    chosen: list[Site], general: Settings, taps: Any, overrides: Mapping[str, Mapping[str, Any]], sites: list[Site]
) -> dict[str, Settings]:
    """The settings of each site, by its name."""
    if isinstance(taps, Mapping):
        _known(taps, sites, "taps")
    _known(overrides, sites, "overrides")
    found = {}
    for site in chosen:
        if isinstance(taps, Mapping):
            k: Any = next((v for pattern, v in taps.items() if _fits(site, pattern)), None)
        else:
            k = taps(site) if callable(taps) else taps
        settings = replace(general, taps=k)
        for pattern, options in overrides.items():
            if unknown := set(options) - set(_OPTIONS):
                raise ValueError(f"antialias: overrides may hold {', '.join(_OPTIONS)}, got {sorted(unknown)[0]!r}")
            if _fits(site, pattern):
                settings = replace(settings, **options)
        _check(settings, "antialias")
        found[site.name] = settings
    return found


# ---- checks of the result ------------------------------------------------------------------------------


def _run(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    with undisturbed(model):
        return [t.clone() for t in tree_leaves(model(*args)) if isinstance(t, Tensor)]


def _verify(model: nn.Module, args: tuple[Any, ...], before: list[Tensor], compare: bool) -> None:
    """Raises ValueError where an output has another shape, warns where strength 0 is not the model as it was."""
    surgery.build(model, 0.0)
    try:
        after = _run(model, args)
    except Exception as error:
        raise ValueError(f"antialias: the repaired model does not run: {error}") from error
    shapes = [tuple(t.shape) for t in before], [tuple(t.shape) for t in after]
    if shapes[0] != shapes[1]:
        raise ValueError(f"antialias: outputs would have shapes {shapes[1]}, they had {shapes[0]}")
    if not compare:
        return
    worst = max((_difference(a, b) for a, b in zip(after, before, strict=True) if not b.is_meta), default=0.0)
    if worst > 1e-2 if any(t.dtype in (torch.float16, torch.bfloat16) for t in before) else worst > 1e-4:
        warnings.warn(
            f"antialias: with its blurs taken out the model's output differs by {worst:.1e} of its size from what it "
            "was: a norm over the map may see another map, or a pool's padding is not that of its learnt taps",
            stacklevel=4,
        )


def _difference(a: Tensor, b: Tensor) -> float:
    if not b.is_floating_point() or b.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def _warn(model: nn.Module, plans: list[Plan], strength: float) -> None:
    for plan in plans:
        if not plan.changes:
            warnings.warn(f"antialias: {plan.site.name} is left as it was: {plan.how}", stacklevel=3)
    if strength > 0.5 and _looks_trained(model):
        warnings.warn(
            "antialias: this model may be trained, and its layers have never seen blurred maps: without fine-tuning "
            "its accuracy can collapse (EfficientNet-Lite0 on ImageNet, 3 taps everywhere: top-1 from 0.90 to 0.15). "
            "Fine-tune it, or pass strength=0.25 (which kept 0.85), or choose layers by aablur.sensitivity",
            stacklevel=3,
        )


def _looks_trained(model: nn.Module) -> bool:
    """Whether norms have seen data or learnt; True for a model without norms, of which nothing can be told."""
    norms = [
        m for m in model.modules() if "Norm" in type(m).__name__ and isinstance(getattr(m, "weight", None), Tensor)
    ]
    for m in norms:
        if m.weight.is_meta:  # type: ignore - it has no values yet
            continue
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            if bool(m.running_mean.any()):
                return True
        elif isinstance(m.bias, Tensor) and bool(m.bias.any()):
            return True
    return not norms
