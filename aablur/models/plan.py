"""What is done about each kind of site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blurs import Average, Beyond, Blur, Ceil, Dense, Same, Taps, blur_at, blur_for_average
from .filters import triangle
from .graph import Edit, Untraceable
from .places import Change, Places, Plan
from .sites import Site, per_axis, rank_of
from .tape import Node, undisturbed

_CONVS: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Settings:
    """What was asked for at one site."""

    taps: int | None = None  # None: as the stride asks for
    padding_mode: str = "reflect"
    strength: float = 1.0
    where: str = "after_activation"
    exact: bool = False
    learnable: bool = False
    per_channel: bool = False
    constraints: tuple[str, ...] = ()
    stride: tuple[int, ...] | None = None  # the blur's share of the stride, where the layer keeps a part of it
    window: int | tuple[int, ...] | None = None  # of a max pool, in place of its own

    def filter(self, stride: float, least: int = 1) -> Taps:
        """The taps along an axis; ``least``: how many there are at least."""
        if stride <= 1:
            return max(1, least)
        if self.taps is not None:
            return max(self.taps, least)
        return 3 if stride <= 2 and least <= 3 else triangle(max(stride, (least + 1) / 2))

    def options(self, site: Site, **more: Any) -> dict[str, Any]:
        """Those of a `Blur` that do not depend on the kind of the site."""
        return {
            "padding_mode": self.padding_mode,
            "learnable": self.learnable,
            "per_channel": self.per_channel,
            "constraints": self.constraints,
            "channels": site.channels,
            "strength": float(self.strength),
            **more,
        }


class Refused(Exception):
    pass


class Planner(Places):
    """Plans repairs: one method a kind of site."""

    def plan(self, site: Site, settings: Settings) -> Plan:
        plan = Plan(site)
        try:
            getattr(self, f"_{site.kind}")(site, settings, plan)
        except (Refused, Untraceable) as reason:
            plan.how, plan.changes = str(reason), []
        return plan

    # ---- one rule a kind

    def _conv(self, site: Site, settings: Settings, plan: Plan) -> None:
        node, call, rank = site.node, site.node.call, rank_of(site.node.op)
        options = settings.options(site)
        if all(k == 1 for k in site.kernel) and node.argument(4, "padding", 0) in (0, (0,) * rank, "valid"):
            stride = self._share(site, settings)
            blur = blur_at([settings.filter(s) for s in site.stride], stride, **options)
            if self._is_layer(site) and self._takes_first(site) and self._free(call, "stride", site):
                self._stride_one(site, plan, stride)
            else:
                self._functional_stride(site, plan, stride)
            self._before(site, blur, plan)
            plan.how = "blur pool before the 1x1 convolution"
        elif settings.where == "before" or (site.patches and not settings.exact):
            blur = blur_at([settings.filter(s) for s in site.stride], (1,) * rank, **options)
            self._before(site, blur, plan)
            plan.how = "blur before the convolution"
        else:
            stride = self._share(site, settings)
            options = settings.options(site, channels=node.shape[-rank - 1], rules=self._same(site, stride))
            blur = blur_at([settings.filter(s) for s in stride], stride, **options)
            chain = self._to_activation(node)
            end = next((i for i, at in enumerate(chain) if at.index == call.result), None)
            if end is not None and self._is_layer(site) and self._free(call, "stride", site):
                self._stride_one(site, plan, stride)
                plan.changes.append(Change(call.module, call.path, "blur_after", blur))
                self._taken[(id(call.module), "blur_after")] = call.module
                plan.moved = self._later(call, chain[end:], plan)
            else:
                self._functional_stride(site, plan, stride)
                self._after_activation(node, blur, plan)

    def _max_pool(self, site: Site, settings: Settings, plan: Plan) -> None:
        node, rank = site.node, rank_of(site.node.op)
        if "indices" in node.op:
            raise Refused("its indices are used")
        kernel = per_axis(node.argument(1, "kernel_size"), rank)
        stride = node.argument(2, "stride")
        stride = kernel if stride is None or stride == [] else per_axis(stride, rank)
        padding = per_axis(node.argument(3, "padding", 0), rank)
        dilation = per_axis(node.argument(4, "dilation", 1), rank)
        starts, rules, beyond = [0] * rank, None, None
        if settings.window is not None:
            kernel, padding, dilation = per_axis(settings.window, rank), (0,) * rank, (1,) * rank
        elif node.argument(5, "ceil_mode", False):
            rules = tuple(map(Ceil, kernel, stride, padding, dilation))
            # Windows may begin up to stride - 1 pixels beyond the map's end: a wider padding, whose front is cropped,
            # holds them, if the window is large enough for it.
            if all(2 * (p + s - 1) <= k for p, s, k in zip(padding, stride, kernel, strict=True)):
                starts = [s - 1 for s in stride]
                padding = tuple(p + f for p, f in zip(padding, starts, strict=True))
            else:
                beyond = Beyond(kernel, padding, dilation)
        taps = [settings.filter(s) for s in stride]
        window = None if beyond else (kernel, padding, dilation)
        options = settings.options(site, window=window, beyond=beyond, rules=rules)
        blur = blur_at(taps, stride, starts=starts, **options)
        self._instead(site, blur, plan)
        plan.how = "max-blur pool"

    def _avg_pool(self, site: Site, settings: Settings, plan: Plan) -> None:
        node, rank = site.node, rank_of(site.node.op)
        kernel = per_axis(node.argument(1, "kernel_size"), rank)
        stride = node.argument(2, "stride")
        stride = kernel if stride is None or stride == [] else per_axis(stride, rank)
        padding = per_axis(node.argument(3, "padding", 0), rank)
        divisor = node.argument(6, "divisor_override")
        gain = 1.0 if divisor is None else math.prod(kernel) / divisor
        if gain != 1 and "sum_to_one" in settings.constraints:
            raise Refused(f"its divisor_override makes its taps sum to {gain:g}, against the constraint sum_to_one")
        ceil_mode = bool(node.argument(4, "ceil_mode", False))
        rules = tuple(map(Ceil, kernel, stride, padding)) if ceil_mode else None
        average = Average(
            kernel, stride, padding, ceil_mode, bool(node.argument(5, "count_include_pad", True)), divisor
        )
        taps = [settings.filter(s, own) for s, own in zip(stride, kernel, strict=True)]
        options = settings.options(site, average=average if ceil_mode or any(padding) else None)
        blur = blur_for_average(taps, kernel, stride, padding, rules=rules, gain=gain, **options)
        bare = blur_at([settings.filter(s) for s in stride], (1,) * rank, **settings.options(site))
        self._instead_or_before(site, blur, bare, plan)

    def _instead_or_before(self, site: Site, blur: Blur, bare: Blur, plan: Plan) -> None:
        """``blur`` in the place of a site; where no graph reaches it, ``bare``, of stride 1, before it."""
        try:
            self._instead(site, blur, plan)
            plan.how = "blur pool"
        except Untraceable as reason:
            self._before(site, bare, plan)
            plan.how = f"blur before it ({reason})"

    def _slice(self, site: Site, settings: Settings, plan: Plan) -> None:
        rank = len(site.node.args[0].shape) - 2
        last = self._channels_last(site)
        axes = [a + 1 if last else a for a in site.axes]
        index = site.node.args[1] if isinstance(site.node.args[1], tuple) else (site.node.args[1],)
        pure = all(i is Ellipsis or (isinstance(i, slice) and i.stop is None) for i in index)
        pure = pure and all(i is Ellipsis or i.step is not None or i.start in (None, 0) for i in index)
        steps, starts = dict(zip(axes, site.stride, strict=True)), dict(zip(axes, site.starts, strict=True))
        taps = [settings.filter(steps.get(a, 1)) for a in range(-rank, 0)]
        options = settings.options(site, channels_last=last)
        if pure:
            stride = [int(steps.get(a, 1)) for a in range(-rank, 0)]
            blur = blur_at(taps, stride, starts=[starts.get(a, 0) for a in range(-rank, 0)], **options)
            self._instead_or_before(site, blur, blur_at(taps, (1,) * rank, **options), plan)
        else:
            self._before(site, blur_at(taps, (1,) * rank, **options), plan)
            plan.how = "blur before the slice"

    def _space_to_depth(self, site: Site, settings: Settings, plan: Plan) -> None:
        rank = len(site.node.args[0].shape) - 2
        last = self._channels_last(site)
        axes = [a + 1 if last else a for a in site.axes]
        steps = dict(zip(axes, site.stride, strict=True))
        taps = [settings.filter(steps.get(a, 1)) for a in range(-rank, 0)]
        options = settings.options(site, channels_last=last)
        if settings.exact:
            self._dense(site, settings, last, taps, plan)
            return
        self._before(site, blur_at(taps, (1,) * rank, **options), plan)
        plan.how = "blur before the patches"

    _unfold = _space_to_depth

    def _adaptive_pool(self, site: Site, settings: Settings, plan: Plan) -> None:
        rank = len(site.node.args[0].shape) - 2
        steps = dict(zip(site.axes, site.stride, strict=True))
        taps = [settings.filter(steps.get(a, 1)) for a in range(-rank, 0)]
        self._before(site, blur_at(taps, (1,) * rank, **settings.options(site)), plan)
        plan.how = "blur before it"

    _interpolate = _lp_pool = _adaptive_pool

    def _dense(self, site: Site, settings: Settings, last: bool, taps: list[Taps], plan: Plan) -> None:
        call = site.node.call
        axes_kept = call.result is not None and len(self.tape.nodes[call.result].shape) == 4
        if len(taps) != 2 or not axes_kept or call.inputs[:1] != (self._source(site.node),):
            raise Refused("exact=True needs a module whose forward takes and gives a map of height and width")
        channels = self.tape.nodes[call.result or 0].shape[-1 if last else 1]
        steps = (int(site.stride[0]), int(site.stride[1]))
        blur = blur_at(taps, steps, **settings.options(site, channels=channels, channels_last=last))
        dense = Dense(steps, last, settings.padding_mode)
        plan.changes.append(Change(call.module, call.path, "dense", dense=dense))
        plan.changes.append(Change(call.module, call.path, "blur_after", blur))
        plan.how = "the layer at every pixel, then blur pool"

    # ---- strides

    def _share(self, site: Site, settings: Settings) -> tuple[int, ...]:
        """How much of the stride the blur takes."""
        whole = tuple(int(s) for s in site.stride)
        share = whole if settings.stride is None else per_axis(settings.stride, len(whole))
        if any(w % s for w, s in zip(whole, share, strict=True)):
            raise Refused(f"a blur of stride {share} does not divide the stride {whole}")
        return share

    def _is_layer(self, site: Site) -> bool:
        """Whether a convolution's module has its weight, and an attribute that is its stride."""
        module = site.node.call.module
        own = getattr(module, "stride", None)
        is_own = isinstance(own, (int, tuple, list)) and per_axis(own, len(site.stride)) == site.stride
        return is_own and self._weight_is_of(module, site.node) and self._heeds_stride(site)

    def _heeds_stride(self, site: Site) -> bool:
        """Whether a convolution runs at the stride that its attribute says, by trial where its forward is its own."""
        call, rank = site.node.call, len(site.stride)
        own: Any = type(call.module)
        if any(own.forward is kind.forward and own._conv_forward is kind._conv_forward for kind in _CONVS):
            return True
        args, kwargs = self._arguments(call)
        strided, full = self._at_strides(call.module, args, kwargs, tuple(int(s) for s in site.stride))
        if not isinstance(strided, Tensor) or not isinstance(full, Tensor):
            return True
        sizes = zip(strided.shape[-rank:], full.shape[-rank:], site.stride, strict=True)
        return all(s == 1 or n < m or m == 1 for n, m, s in sizes)

    def _stride_one(self, site: Site, plan: Plan, share: tuple[int, ...]) -> None:
        """The layer's own stride, divided by the blur's share."""
        call = site.node.call
        rest = tuple(int(s) // b for s, b in zip(site.stride, share, strict=True))
        plan.changes.append(Change(call.module, call.path, "stride", stride=rest))

    def _functional_stride(self, site: Site, plan: Plan, share: tuple[int, ...]) -> None:
        """Stride 1 for a convolution that a forward writes as a function."""
        if share != tuple(int(s) for s in site.stride):
            raise Refused("a part of a functional convolution's stride cannot be kept")
        call = site.node.call
        event = self._event(call, site.node)
        edit = Edit(event.fx_node, "stride", target=event.target)
        plan.changes.append(Change(call.module, call.path, "edit", edits=(edit,), pattern=self._pattern(call)))

    def _weight_is_of(self, module: nn.Module, node: Node) -> bool:
        """Whether a module is a convolution: its weight has the shape of the one that runs (it may standardise it)."""
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and weight.shape == node.facts["weight"].shape

    def _same(self, site: Site, share: tuple[int, ...]) -> tuple[Same, ...] | None:
        """For a convolution that pads by the size of its map: its rule along each axis; None for others.

        Found by trial, on the map and on one that is a pixel smaller: what the module gives at stride 1 holds what it
        gave, from its first pixel, or from that where TensorFlow's rule puts it.
        """
        node, call, rank = site.node, site.node.call, len(site.stride)
        has_stride = isinstance(getattr(call.module, "stride", None), (tuple, list, int))
        if self._source(node) == node.args[0].node or not has_stride:
            return None
        (x, *rest), kwargs = self._arguments(call)
        smaller = x[(..., *[slice(0, -1) if n > 1 else slice(None) for n in x.shape[-rank:]])]
        answers = [self._at_strides(call.module, (y, *rest), kwargs, share) for y in (x, smaller)]
        if answers[0][1].shape[-rank:] != x.shape[-rank:]:
            return None  # a fixed padding, which its stride does not move
        dilation = per_axis(node.argument(5, "dilation", 1), rank)
        same = tuple(map(Same, site.kernel, dilation, share))
        for rule in (None, same):
            if all(self._holds(strided, full, share, rule) for strided, full in answers):
                return rule
        raise Refused("at stride 1 it does not give what it gave, at any pixel that is known")

    def _at_strides(self, module: Any, args: Any, kwargs: Any, share: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What a convolution gives at a stride, and at stride 1."""
        own = module.stride
        try:
            with undisturbed(module):
                module.stride = share
                strided = module(*args, **kwargs)
                module.stride = (1,) * len(share)
                return strided, module(*args, **kwargs)
        finally:
            module.stride = own

    def _holds(self, strided: Tensor, full: Tensor, share: tuple[int, ...], rule: Any) -> bool:
        """Whether one map is every ``share``-th pixel of another, from the first or from where a rule puts it."""
        for i, step in enumerate(share):
            axis, size = i - len(share), full.shape[i - len(share)]
            first = rule[i].start(size) if rule else 0
            full = full.index_select(axis, torch.arange(first, size, step, device=full.device))
        if full.is_meta and full.shape == strided.shape:
            raise Refused("a padding that depends on the map's size cannot be told from shapes alone (device meta)")
        return full.shape == strided.shape and full.allclose(strided, rtol=1e-3, atol=1e-4)
