"""A tensor of the CPU that says it lies on a CUDA device, for what asks a tensor where it is."""

from __future__ import annotations

import torch
from torch import Tensor


class Elsewhere(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl
    card: int

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.card)

    @property
    def is_cuda(self) -> bool:
        return True

    def get_device(self) -> int:
        return self.card


def on_card(x: Tensor, card: int) -> Elsewhere:
    moved = x.as_subclass(Elsewhere)
    moved.card = card
    return moved
