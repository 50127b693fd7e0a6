"""A model as it is measured: in eval mode, without gradients, on its device, in its memory format and precision."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import shown
from ..models.tape import uninitialised
from .digest import digest_of
from .statistics import Outcomes


class Classifier:
    """Runs a model on views of a batch.

    The caller's model is not changed: what moves it (another device, channels_last) is done to a copy, and modes are
    put back.

    model: a module or function from (batch, channels, height, width) to logits (batch, classes).
    mean, std: of normalisation, one number a channel or one for all; None leaves images as they are.
    amp: the dtype of autocast, or None.
    images_per_forward: most images that run at once, whichever views and batches they are of. None is 256, and on CPUs
        64, or fewer that hold 2**18 pixels, since larger maps leave the caches (at 224 px: 5 images; MobileNetV2 ran
        79 images a second in batches of 4 and 42 in batches of 16).
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], *, device: Any = None, mean: Any = None, std: Any = None,
        channels_last: bool = False, amp: torch.dtype | None = None, images_per_forward: int | None = None,
    ) -> None:  # fmt: skip
        if not callable(model):
            raise TypeError(f"measure: model must be a module or a function, got {type(model).__name__}")
        if amp not in (None, torch.bfloat16, torch.float16):
            raise TypeError(f"measure: amp must be torch.bfloat16, torch.float16 or None, got {shown(amp)}")
        tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        here = tensors[0].device if tensors else torch.device("cpu")
        self.device = here if device is None else torch.device(device)
        if isinstance(model, nn.Module) and (channels_last or any(t.device != self.device for t in tensors)):
            model = copy.deepcopy(model).to(self.device)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        floating = [t.dtype for t in tensors if t.is_floating_point()]
        self.dtype = floating[0] if floating else torch.float32
        if (mean is None) != (std is None):
            raise ValueError("measure: mean and std must be given together")
        self.model, self.amp = model, amp
        self.images_per_forward = images_per_forward
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)

    def _per_channel(self, name: str, values: Any) -> Tensor | None:
        if values is None:
            return None
        tensor = torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
        if not tensor.isfinite().all() or (name == "std" and not (tensor > 0).all()):
            raise ValueError(
                f"measure: {name} must be finite{' and above 0' if name == 'std' else ''}, got {shown(values)}"
            )
        return tensor.to(self.device, self.dtype)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Eval mode, inference mode and autocast; the modes of the modules are as before afterwards."""
        modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
        modes = [m.training for m in modules]
        if isinstance(self.model, nn.Module):
            self.model.eval()
        try:
            # parameters that a lazy module makes in inference mode could never be trained
            lazy = isinstance(self.model, nn.Module) and uninitialised(self.model)
            with (
                torch.no_grad(),
                torch.inference_mode(not lazy),
                torch.autocast(self.device.type, self.amp, enabled=self.amp is not None),
            ):
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    def outcomes(self, views: Iterable[Tensor], labels: Tensor) -> Outcomes:
        """What the model says of each view, in order."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        classes, images, done = 0, len(labels), 0
        for some in self._portions(views):
            logits = self.logits(some)
            classes = logits.shape[1]
            if labels.numel() and not (labels.amin() >= 0 and labels.amax() < classes):
                wrong = labels[(labels < 0) | (labels >= classes)]
                raise ValueError(
                    f"measure: labels must be from 0 to {classes - 1} for a model of {classes} classes, got "
                    f"{wrong[0].item()}"
                )
            whose = torch.arange(done, done + len(logits)) % images
            found.append(_seen(logits, labels[whose].to(self.device)))
            done += len(logits)
        top1, true, wrong = (torch.cat(parts).view(-1, images).T.cpu() for parts in zip(*found, strict=True))
        true, wrong = true.double(), wrong.double()
        if true.isnan().any():
            which = true.isnan().any(1).nonzero()[:, 0].tolist()
            raise ValueError(f"measure: the model gave NaN for images {which} of a batch")
        return Outcomes(top1, true, wrong, labels, classes)

    def answers(self, images: Tensor) -> Tensor:
        """(batch,): the top-1 of each image."""
        return torch.cat([self.logits(some).argmax(1).cpu() for some in self._portions([images])])

    def _portions(self, views: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of all views in order, as many at once as one forward pass may hold."""
        held: list[Tensor] = []
        for view in views:
            most = self.images_per_forward or self._most(view)
            for part in view.split(most):
                if held and sum(map(len, held)) + len(part) > most:
                    yield torch.cat(held) if len(held) > 1 else held[0]
                    held = []
                held.append(part)
        if held:
            yield torch.cat(held) if len(held) > 1 else held[0]

    def _most(self, view: Tensor) -> int:
        if self.device.type != "cpu":
            return 256
        return min(64, max(1, 2**18 // max(view.shape[-2] * view.shape[-1], 1)))

    def logits(self, images: Tensor) -> Tensor:
        """(batch, classes) in float32 or more, of images before normalisation."""
        x = images.to(self.device, self.dtype, non_blocking=True)
        if self.mean is not None and self.std is not None:
            if len(self.mean) not in (1, x.shape[1]) or len(self.std) not in (1, x.shape[1]):
                raise ValueError(f"measure: mean and std must have 1 or {x.shape[1]} values, one a channel")
            x = (x - self.mean) / self.std
        logits = self.model(x.contiguous(memory_format=self.memory_format))
        if not isinstance(logits, Tensor):
            raise TypeError(
                "measure: the model must return a tensor of logits (batch, classes), got "
                f"{type(logits).__name__}; wrap it in a function that picks them out"
            )
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            raise ValueError(
                f"measure: the model must return logits ({len(x)}, classes) of 2 classes or more, got shape "
                f"{tuple(logits.shape)}"
            )
        return logits if logits.dtype == torch.float64 else logits.float()

    def fingerprint(self) -> str:
        """Of what the model computes: its structure and every number in it.

        Raises:
            ValueError: it has lazy modules, whose numbers are not there yet.
        """
        if isinstance(self.model, nn.Module) and uninitialised(self.model):
            raise ValueError("measure: state needs a model whose weights are there: run its lazy modules once before")
        state = self.model.state_dict() if isinstance(self.model, nn.Module) else {}
        tensors = ((name, value) for name, value in state.items() if isinstance(value, Tensor))
        return digest_of(re.sub(r"0x[0-9a-f]+", "", repr(self.model)), tensors)


def _seen(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top-1, probability of the label, and largest probability of another class."""
    probability = logits.softmax(1)
    index = labels[:, None]
    others = probability.scatter(1, index, -1.0)
    return logits.argmax(1), probability.gather(1, index)[:, 0], others.amax(1)
