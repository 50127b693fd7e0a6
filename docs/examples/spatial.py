"""One picture, cut into bands of rows over all processes, through a pyramid of blur pools and back.

torchrun --standalone --nproc-per-node 2 docs/examples/spatial.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import aablur.distributed  # from here on aablur's functions and modules take DTensors


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    mesh = init_device_mesh(device, (dist.get_world_size(),))

    torch.manual_seed(0)  # the same picture and parameters in each process
    picture = torch.rand(1, 3, 1027, 515, device=device)
    pyramid = nn.Sequential(
        aablur.nn.BlurPool2d(5, learnable=True),
        aablur.nn.MaxBlurPool2d(3, window_padding=1),
        aablur.nn.BlurPool2d(4, stride=3, padding_mode="circular"),
    ).to(device)

    bands = distribute_tensor(picture, mesh, [Shard(2)]).requires_grad_()
    small = pyramid(bands)
    small.square().sum().backward()  # gradients of parameters are those of the whole picture, on every rank
    learnt = [p.grad.clone() for p in pyramid.parameters()]

    # The same in one process.
    pyramid.zero_grad()
    whole = picture.clone().requires_grad_()
    expected = pyramid(whole)
    expected.square().sum().backward()
    apart = {
        "output": (small.full_tensor() - expected).abs().max().item(),
        "gradient of the picture": (bands.grad.full_tensor() - whole.grad).abs().max().item(),
        "gradient of taps, relative": max(
            ((a - p.grad).abs().max() / p.grad.abs().max()).item()
            for a, p in zip(learnt, pyramid.parameters(), strict=True)
        ),
    }
    rank, rows = dist.get_rank(), (bands.to_local().shape[2], small.to_local().shape[2])
    print(f"rank {rank}: {rows[0]} of {picture.shape[2]} rows in, {rows[1]} of {small.shape[2]} rows out", flush=True)
    if rank == 0:
        print(*(f"largest difference, {name}: {value:.1e}" for name, value in apart.items()), sep="\n", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
