"""One pass over the data: every perturbation of every batch, summed; resumable, and shared among processes."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..geometry import shown
from ..progress import progress_bar
from ..version import __version__
from .batches import Labelled, Source, after
from .classifier import Classifier
from .digest import Digest
from .perturbation import Batch, Perturbation, check_int
from .result import Measurement, Result, Value
from .state import State, state_path
from .suites import standard
from .sums import Sum, merge


def measure(
    model: Callable[[Tensor], Tensor], data: Any, perturbations: Sequence[Perturbation] | None = None, *,
    name: str | None = None, size: int | tuple[int, int] | None = None, mean: Any = None, std: Any = None,
    device: Any = None, channels_last: bool = False, amp: torch.dtype | None = None, batch_size: int = 32,
    images_per_forward: int | None = None, workers: int = 0, limit: int | None = None, seed: int = 0,
    state: str | PathLike[str] | None = None, progress: bool | None = None,
) -> Result:  # fmt: skip
    """Measures how a classifier's answers change when its images do.

    1. Take the images batch by batch, numbered in order; a process of a group takes its share.
    2. For each perturbation, run the model on every view of the batch: in eval and inference mode, views grouped.
    3. Reduce the answers to whole numbers an image, and add them up; save the sums if `state` is given.
    4. Add up over processes; give means over images and their standard errors.

    The random numbers of an image come from the seed and its number, and the sums are exact: the result depends
    neither on the batch size nor on the number of processes, as far as the model's own arithmetic does not.

    Args:
        model: a module or function from (batch, channels, height, width) to logits (batch, classes). It is not
            changed: its modes are put back, and moves are made on a copy.
        data: a map-style dataset of (image, label), or an iterable of batches (images, labels). Images are
            (channels, height, width), uint8 or floating in [0, 1], before normalisation. Without labels, the
            model's answers to the clean images take their place. Items that raise when they are read are skipped
            and counted, with the reason. In a process group every process is given the whole data.
        perturbations: what to measure. Default `standard()`.
        name: of the model, in the result. Default: its class.
        size: (height, width) that the model is given; what of an image lies beyond is context for shifts. Default:
            the images' size, less the largest range of those shifts that crop.
        mean, std: normalisation, one number or one a channel, done after perturbation. Default: none.
        device: where to run. Default: where the model is.
        channels_last: run in channels_last memory format, on a copy of the model. Default False.
        amp: dtype of autocast, as torch.bfloat16. Default None, no autocast.
        batch_size, workers: of loading a dataset. Defaults 32 and 0.
        images_per_forward: most images in one forward pass, whichever views and batches they are of. Default: 256;
            on CPUs 64, or fewer that hold 2**18 pixels (5 of 224 px), which stay in their caches.
        limit: measure this many images at most: spread evenly over a dataset, the first of an iterable. Default: all.
        seed: of all random numbers. Default 0.
        state: a JSON file that holds what is done after each batch, and from which the same run goes on; each
            process of a group has its own, with its rank in the name. Default None.
        progress: show a progress bar (rich). Default: where rich is installed and standard error is a terminal.

    Returns:
        The result. After KeyboardInterrupt it holds what was done, with complete=False and a warning; in a process
        group the interrupt is raised, with the state saved.

    Raises:
        TypeError, ValueError: the model does not return logits, labels out of range, images too small for a
            perturbation, no images at all, a state file of another run or other data.
    """
    chosen = list(standard() if perturbations is None else perturbations)
    _check(chosen, batch_size, images_per_forward, limit, seed)
    classifier = Classifier(
        model, device=device, mean=mean, std=std, channels_last=channels_last, amp=amp,
        images_per_forward=images_per_forward,
    )  # fmt: skip
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    source = Source(data, batch_size, workers, limit, rank, world)
    settings = {
        "perturbations": {p.name: _settings(p) for p in chosen}, "size": _size(size), "mean": _plain(mean),
        "std": _plain(std), "amp": str(amp).removeprefix("torch.") if amp is not None else None, "seed": seed,
        "limit": limit, "rank": rank, "world": world,
    }  # fmt: skip
    path = None if state is None else state_path(state, rank, world)
    fingerprint = {"settings": settings, "model": classifier.fingerprint() if path else None}
    done = State.load(path, fingerprint) if path else State(fingerprint)
    complete = True
    with progress_bar(progress if rank == 0 else False, source.images) as advance:
        try:
            _run(classifier, source, chosen, _size(size), seed, done, path, advance)
        except KeyboardInterrupt:
            if world > 1:
                raise
            complete = False
            warnings.warn(f"measure: interrupted after {done.images} images, which the result holds", stacklevel=2)
    return _result(name or _name(model), chosen, classifier, settings, done, complete, world)


def _check(
    chosen: list[Perturbation], batch_size: int, images_per_forward: int | None, limit: int | None, seed: int
) -> None:
    for p in chosen:
        if not isinstance(p, Perturbation):
            raise TypeError(f"measure: perturbations must hold Perturbation objects, got {shown(p)}")
    names = [p.name for p in chosen]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"measure: perturbations must be one or more, of different names, got {names}")
    check_int("measure", "batch_size", batch_size, 1)
    check_int("measure", "seed", seed, 0)
    for name, value in (("images_per_forward", images_per_forward), ("limit", limit)):
        if value is not None:
            check_int("measure", name, value, 1)


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise ValueError(f"measure: size must be a positive int or (height, width), got {shown(size)}")
    return both


def _run(
    classifier: Classifier, source: Source, chosen: list[Perturbation], size: tuple[int, int] | None, seed: int,
    done: State, path: Path | None, advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Adds to `done` what it lacks, a whole batch at a time."""
    digest, seen, resumed = Digest(), 0, done.images
    source.skipped |= done.skipped
    for whole in source:
        passed, batch = after(whole, max(0, resumed - seen))
        if path:
            digest.update(passed)
        seen += len(passed.images)
        if path and passed.images.numel() and seen == resumed and digest.hexdigest() != done.digest:
            raise ValueError(f"measure: the first {seen} images are not those of the run in {path}")
        advance(len(passed.images))
        if not len(batch.images):
            continue
        start = time.perf_counter()
        with classifier.running():
            counted, views, classes = _measure(classifier, batch, chosen, size, seed)
        seen += len(batch.images)
        vars(done).update(  # at once: an interrupt finds all of a batch in it, or nothing
            sums=merge([done.sums, counted]), images=done.images + len(batch.images), views=done.views + views,
            predicted=done.predicted or batch.labels is None, classes=classes, skipped=dict(source.skipped),
            seconds=done.seconds + time.perf_counter() - start,
        )  # fmt: skip
        if path:
            digest.update(batch)
            done.digest = digest.hexdigest()
            done.save(path)
        advance(len(batch.images))
    if seen < resumed:
        raise ValueError(f"measure: the data have {seen} images, the run in {path} had {resumed}")
    done.skipped = dict(source.skipped)


def _measure(
    classifier: Classifier, labelled: Labelled, chosen: list[Perturbation], size: tuple[int, int] | None, seed: int
) -> tuple[dict[str, dict[str, Sum]], int, int]:
    """The sums of one batch, the number of views that were run, and the model's of classes."""
    images = labelled.images.to(classifier.device)
    dtype = torch.promote_types(classifier.dtype, torch.float32)  # what perturbs them need not know halves
    images = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
    full = (images.shape[-2], images.shape[-1])
    size = size or _default_size(chosen, full)
    if any(have < want for have, want in zip(full, size, strict=True)):
        raise ValueError(f"measure: images of {full[0]}x{full[1]} are smaller than size, {size[0]}x{size[1]}")
    batch = Batch(images, labelled.index, size, seed)
    for p in chosen:
        p.check(full, size)
    labels = classifier.answers(batch.centre()) if labelled.labels is None else labelled.labels
    sums: dict[str, dict[str, Sum]] = {}
    views = classes = 0
    for p in chosen:
        outcomes = classifier.outcomes(p.views(batch), labels)
        views, classes = views + outcomes.top1.numel(), outcomes.classes
        for statistic in p.statistics:
            counted = statistic(outcomes)
            sums.setdefault(p.name, {})[statistic.value] = total = Sum(counted[1])
            total.add(counted)
    return sums, views, classes


def _default_size(chosen: list[Perturbation], full: tuple[int, int]) -> tuple[int, int]:
    ranges = [getattr(p, "range", 0) for p in chosen if getattr(p, "padding", None) == "crop"]
    size = tuple(n - max(ranges, default=0) for n in full)
    if min(size) < 1:
        raise ValueError(
            f"measure: images of {full[0]}x{full[1]} are smaller than the shift range, {max(ranges)} px: give a "
            "smaller range, or shifts with another padding than 'crop'"
        )
    return size[0], size[1]


def _result(
    name: str, chosen: list[Perturbation], classifier: Classifier, settings: dict[str, Any], done: State,
    complete: bool, world: int,
) -> Result:  # fmt: skip
    parts = [done]
    if world > 1:
        parts = [done] * world
        dist.all_gather_object(parts, done)
    images = sum(part.images for part in parts)
    skipped = dict(sorted((i, reason) for part in parts for i, reason in part.skipped.items()))
    if not images and complete:
        said = f"all {len(skipped)} of them could not be read, as {next(iter(skipped.values()))}" if skipped else "none"
        raise ValueError(f"measure: data gave no images: {said}")
    sums = merge(part.sums for part in parts)
    return Result(
        model=name, images=images, complete=complete, skipped=skipped,
        labels="predicted" if any(part.predicted for part in parts) else "given",
        measurements={
            p.name: Measurement(
                p.name, _settings(p), p.labels,
                {s: [Value(*v) for v in total.values()] for s, total in sums[p.name].items()},
            )
            for p in chosen if p.name in sums
        },
        settings={key: value for key, value in settings.items() if key not in ("perturbations", "rank")},
        environment={
            "aablur": __version__, "torch": torch.__version__, "python": platform.python_version(),
            "device": _device_name(classifier.device),
            "channels_last": classifier.memory_format == torch.channels_last, "threads": torch.get_num_threads(),
        },
        views=sum(part.views for part in parts), seconds=max(part.seconds for part in parts),
        classes=max(part.classes for part in parts),
    )  # fmt: skip


def _device_name(device: torch.device) -> str:
    named = getattr(torch.get_device_module(device), "get_device_name", None) if device.type != "cpu" else None
    return f"{device.type} {named(device)}" if named else device.type


def _settings(p: Perturbation) -> dict[str, Any]:
    of = {f.name: getattr(p, f.name) for f in fields(p)} if is_dataclass(p) else {}
    plain = {k: _plain(v) for k, v in of.items() if k not in ("name", "statistics")}
    return {"family": type(p).__name__, **plain, "statistics": [s.value for s in p.statistics]}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, (tuple, list)) else value


def _name(model: Any) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", str(model))
