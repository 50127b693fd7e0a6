"""How much a map aliases when it is sampled: spectral energy above the new Nyquist limit, and equivariance error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .circular import Torus
from .sites import Site

_CHUNK = 2**17  # values that are looked at at once, so that an audit needs little more memory than a forward
_AS_THEY_ARE = ("adaptive_pool", "interpolate", "lp_pool", "index", "grid_sample", "fractional_pool", "reduce")


def energy_above(x: Tensor, stride: Sequence[float], axes: Sequence[int]) -> float:
    """The fraction of a map's energy that sampling it by ``stride`` folds onto other frequencies.

    1. Take each channel's mean over ``axes`` off: a constant never aliases.
    2. Mirror the map along ``axes``, so that no edge of the frame counts as detail (the basis of the DCT-II).
    3. Sum the power spectrum over all frequencies f with |f| > 1 / (2 * stride) along one axis or more, in
       cycles a pixel, and divide by the whole sum.

    Returns:
        From 0 to 1, over all images and channels together; 0 for a constant map.
    """
    folded = total = 0.0
    for part in _maps(x, axes):
        above, whole = _energies(part, stride)
        folded, total = folded + above, total + whole
    return folded / total if total > 0 else 0.0


def _maps(x: Tensor, axes: Sequence[int]) -> Sequence[Tensor]:
    """Each channel of each picture as a map of its own (maps, along each axis), some at once."""
    x = x.detach().movedim(tuple(axes), tuple(range(-len(axes), 0)))
    x = x.reshape(-1, *x.shape[-len(axes) :])
    return x.split(max(1, _CHUNK // math.prod(x.shape[1:])))


def _energies(maps: Tensor, stride: Sequence[float]) -> tuple[float, float]:
    """The energy of (maps, ...) above the new Nyquist limit, and the whole; see `energy_above`."""
    maps, dims, above = maps.float(), tuple(range(1, maps.ndim)), None
    for dim, s in zip(dims, stride, strict=True):
        n = 2 * maps.shape[dim]
        outside = torch.fft.fftfreq(n, device=maps.device, dtype=torch.float64).abs() > 1 / (2 * s) + 1e-9
        outside = outside.reshape([-1 if d == dim else 1 for d in dims])
        above = outside if above is None else above | outside
    maps = maps - maps.mean(dims, keepdim=True)
    for dim in dims:
        maps = torch.cat([maps, maps.flip(dim)], dim)
    power = torch.fft.fftn(maps, dim=dims).abs().square().sum(0, dtype=torch.float64)
    return float((power * above).sum()), float(power.sum())


def fourier_shift(x: Tensor, shift: Sequence[float], axes: Sequence[int]) -> Tensor:
    """A map moved by ``shift`` pixels along ``axes``, circularly, between pixels by the phase of its spectrum.

    Whole shifts equal torch.roll. At the Nyquist frequency of an even size the phase is cos(pi * shift), which keeps
    the map real.
    """
    x = x if x.dtype == torch.float64 else x.float()
    for axis, d in zip(axes, shift, strict=True):
        n = x.shape[axis]
        if d % n == 0:
            continue
        if float(d).is_integer():
            x = x.roll(int(d), axis)
            continue
        f = torch.fft.rfftfreq(n, device=x.device, dtype=x.dtype)
        phase = torch.polar(torch.ones_like(f), -2 * math.pi * f * d)
        if n % 2 == 0:
            phase[-1] = math.cos(math.pi * d)
        spectrum = torch.fft.rfft(x, dim=axis) * phase.reshape([-1] + [1] * (-axis - 1))
        x = torch.fft.irfft(spectrum, n, dim=axis)
    return x


def distance(moved: Tensor, plain: Tensor, shift: Sequence[float], axes: Sequence[int]) -> float:
    """|moved - plain shifted by ``shift``|^2 over the energy of ``plain`` about each channel's mean."""
    error, energy = _errors(moved, plain, shift, axes)
    return error / energy if energy > 0 else 0.0


def _errors(moved: Tensor, plain: Tensor, shift: Sequence[float], axes: Sequence[int]) -> tuple[float, float]:
    plain = plain if plain.dtype == torch.float64 else plain.float()
    energy = float((plain - plain.mean(tuple(axes), keepdim=True)).square().sum(dtype=torch.float64))
    error = (moved.to(plain.dtype) - fourier_shift(plain, shift, axes)).square().sum(dtype=torch.float64)
    return float(error), energy


def equivariance_error(
    layer: Callable[[Tensor], Tensor], x: Tensor, shift: int | Sequence[int], axes: Sequence[int] = (-2, -1),
    out_axes: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """How far a layer is from commuting with a shift (Zhang, Fig. 5).

    1. A = layer(x shifted by ``shift`` pixels, circularly).
    2. B = layer(x), shifted by ``shift`` times its share of the size of x, between pixels by Fourier phase.
    3. |A - B|^2 over the energy of layer(x) about each channel's mean.

    Args:
        layer: a map to a map; strides are read off the sizes.
        x: (..., H, W) or what ``axes`` say.
        shift: pixels, along every axis or one for each.
        axes, out_axes: the spatial axes of x and of the output, from the end.

    Returns:
        0 for a layer that is equivariant to this shift; about 2 where A and B have nothing in common.
    """
    shifts = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    out_axes = axes if out_axes is None else out_axes
    with torch.no_grad():
        moved, plain = layer(x.roll(shifts, tuple(axes))), layer(x)
    scale = [d * plain.shape[o] / x.shape[a] for d, a, o in zip(shifts, axes, out_axes, strict=True)]
    return distance(moved, plain, scale, out_axes)


def _sampled(x: Tensor, stride: Sequence[int], axes: Sequence[int]) -> Tensor:
    for axis, s in zip(axes, stride, strict=True):
        x = x.narrow(axis, 0, x.shape[axis] // s * s).unflatten(axis, (-1, s)).select(axis, 0)
    return x


def measure(site: Site, torus: Torus, func: Any, args: Any, kwargs: Any, shift: int) -> None:
    """Fills in a site's ``aliasing`` and ``equivariance`` while its function is called.

    The map that is sampled is the layer's answer at stride 1 with circular padding (the stride-1 convolution, max or
    blur; the map itself for slices and space-to-depth), so that both figures are about the sampling and nothing
    else: its energy above the new Nyquist limit, and `equivariance_error` of keeping every stride-th pixel of it,
    which is that of the strided layer, as the stride-1 layer commutes with circular shifts. It is cropped to a
    multiple of the stride. Pools to given sizes, interpolations and the like are measured as they are. A map of one
    pixel has no equivariance error: it stays None.
    """
    axes, stride = site.axes, site.stride
    if site.kind in _AS_THEY_ARE:
        x = args[0].reshape(site.unsplit) if site.unsplit else args[0]
        site.aliasing = energy_above(x, stride, axes)

        def layer(x: Tensor) -> Tensor:
            return _first(func(x.reshape(args[0].shape) if site.unsplit else x, *args[1:], **kwargs))

        if site.gives_a_map and max(site.out_size) > 1:
            site.equivariance = equivariance_error(layer, x, shift, axes)
        return
    window = torus.window(func, args, kwargs)
    x: Tensor = args[0] if window is None else window.x
    steps, kept = [int(s) for s in stride], range(-len(axes), 0)
    folded = total = error = energy = 0.0
    for pictures in _pictures(x, len(axes), axes):
        if window is None:
            full = pictures.roll([-s for s in site.starts], axes) if site.starts else pictures
        else:
            full = _first(replace(window, x=pictures).on_torus((1,) * len(window.stride)))
        if any(full.shape[a] < s for a, s in zip(axes, steps, strict=True)):
            return
        for a, s in zip(axes, steps, strict=True):
            full = full.narrow(a, 0, full.shape[a] // s * s)
        for part in _maps(full, axes):
            above, whole = _energies(part, stride)
            moved = _sampled(part.roll([shift] * len(axes), tuple(kept)), steps, kept)
            off, about = _errors(moved, _sampled(part, steps, kept), [shift / s for s in steps], kept)
            folded, total, error, energy = folded + above, total + whole, error + off, energy + about
        pixels = [full.shape[a] // s for a, s in zip(axes, steps, strict=True)]
    site.aliasing = folded / total if total > 0 else 0.0
    if max(pixels) > 1:  # of one pixel, every shift is the same
        site.equivariance = error / energy if energy > 0 else 0.0


def _pictures(x: Tensor, rank: int, axes: Sequence[int]) -> Sequence[Tensor]:
    """Some pictures of a batch at once; all of x, if it is none."""
    if x.ndim < rank + 2 or -min(axes) >= x.ndim or not len(x):
        return [x]
    return x.split(max(1, _CHUNK // max(1, x[0].numel())))


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
