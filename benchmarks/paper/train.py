"""Training: AdamW and one cycle of the learning rate, the same for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, RATE, DECAY = 64, 5e-3, 1e-2


def train(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, shift: int, seed: int,
    after_epoch: Callable[[nn.Module], None],
) -> None:  # fmt: skip
    """Trains in place; `shift` > 0 moves each image of each batch by up to that many pixels, black where empty."""
    draw = torch.Generator().manual_seed(seed)
    images = images.contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps)
    model.train()
    after_epoch(model)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=draw)[: steps * BATCH].split(BATCH):
            x = shifted(images[chosen], shift, draw) if shift else images[chosen]
            loss = F.cross_entropy(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        after_epoch(model)
    model.eval()


def shifted(images: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Each image moved by its own whole shift, uniform in [-most, most] along both axes."""
    size = images.shape[-1]
    padded = F.pad(images, (most, most, most, most))
    starts = torch.randint(2 * most + 1, (len(images), 2), generator=draw).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, starts, strict=True)])
