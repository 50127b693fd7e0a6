"""The libraries that our users come from, imported beside a torch without CUDA: import this first, then them."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import torch

# torchvision's wheel is built for CUDA and finds no library here; the fakes of its own ops want their schemas.
_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _op in ("nms", "qnms") if torch.version.cuda is None else ():
    _torchvision.define(f"{_op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# composer logs to a service whose client pulls in a score of packages, and is never called here.
for _module in ("mcli", "mcli.sdk"):
    sys.modules.setdefault(_module, MagicMock())
