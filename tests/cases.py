"""The one list of cases that every backend meets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from case import DTYPES, LAYOUTS, MODES, NARROW_LAYOUTS, Case


def _both(case: Case, window: Any = 2) -> Iterator[Case]:
    yield case
    yield replace(case, group=f"max-{case.group}", window=window)


def _generate() -> Iterator[Case]:
    pick = random.Random(1904).choice
    modes, dtypes, layouts = list(MODES), list(DTYPES), list(LAYOUTS)

    for k in (1, 2, 3, 4, 5, 6, 7, 9, 12):
        for s in (1, 2, 3, 4, (2, 1), (1, 3)):
            yield from _both(Case(
                "taps", (2, 3, 13, 18), taps=k, stride=s, padding_mode=pick(modes), dtype=pick(dtypes),
                layout=pick(layouts),
            ))  # fmt: skip
    for width in (1, 2, 7, 14, 15, 16, 17, 28, 31, 32, 33, 56, 57, 63, 64, 65, 112):
        for dtype in dtypes:
            yield from _both(Case(
                "width", (1, 2, pick((3, 4, 6)), width + 1), taps=pick((2, 3, 4, 5)), stride=pick((1, 2, 2, 3)),
                dtype=dtype, padding_mode=pick(modes), layout=pick(layouts), padding=((1, 2), (2, 3)),
            ), (2, 2))  # fmt: skip
            yield Case("width", (3, 5, width), taps=3, dtype=dtype, padding_mode=pick(modes))
    for height, width in ((4, 4), (7, 7), (8, 8), (14, 14), (57, 57)):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last"):
                yield from _both(
                    Case("plane", (2, 5, height, width), dtype=dtype, layout=layout, padding_mode=pick(modes))
                )
    for size in ((2, 8), (4, 8), (3, 5), (3, 11), (5, 13), (7, 9), (9, 7), (8, 4), (6, 6)):  # about 16, 32, 64 elements
        for dtype in dtypes:
            yield from _both(Case(
                "plane", (2, 5, *size), taps=pick((1, 2, 3, 4, 5, (3, 5), "s3")), stride=pick((1, 2, 2, 3, (2, 1))),
                dtype=dtype, padding_mode=pick(modes),
            ), pick((2, (1, 2))))  # fmt: skip
    for dtype in dtypes:  # more than the caches hold of a plane; rows cut into tiles of lanes
        yield from _both(Case("large", (2, 4, 210, 170), dtype=dtype, padding_mode=pick(modes), taps=pick((3, "s2"))))
        yield from _both(
            Case("tiles", (1, 33, 2, 8200), taps=pick((3, "c3")), dtype=dtype, layout="channels_last"),
            pick((2, (1, 3))),
        )
    # Rows and pixels of whole 16-byte vectors, and geometries that the GPU has tiles for.
    for taps in (2, 3, 4, 5):
        for dtype in dtypes:
            for layout, shape in (("contiguous", (2, 2, 22, 32)), ("channels_last", (2, 16, 21, 18))):
                for stride in (1, 2):
                    yield Case(
                        "tile", shape, taps=taps, stride=stride, dtype=dtype, layout=layout, padding_mode=pick(modes)
                    )
                yield Case("tile", shape, taps=taps, dtype=dtype, layout=layout, padding_mode=pick(modes), window=2)
                yield Case("tile", shape, taps=taps, dtype=dtype, layout=layout, padding_mode=pick(modes), window=3)
    for dtype in dtypes:  # maxima of halves are compared two at a time: ties, NaN, narrower rows
        for values in ("random", "ties", "special"):
            for window in (2, 3):
                for layout, shape in (
                    ("contiguous", (2, 2, 27, 48)),
                    ("contiguous", (2, 2, 19, 28)),
                    ("channels_last", (2, 12, 21, 18)),
                ):
                    yield Case(
                        "tile", shape, taps=pick((3, 4)), dtype=dtype, layout=layout, padding_mode=pick(modes),
                        window=window, values=values,
                    )  # fmt: skip
    for channels in (1, 3, 4, 5, 64, 65, 100):
        for dtype in dtypes:
            yield from _both(Case(
                "channels", (2, channels, 6, 7), taps=pick((2, 3, 4, 5)), stride=pick((1, 2, 3)), dtype=dtype,
                padding_mode=pick(modes), layout="channels_last",
            ), pick((2, 3)))  # fmt: skip
    for mode in modes:
        for layout in layouts:
            for size in ((5, 7), (9, 3)):
                yield from _both(
                    Case("odd", (2, 3, *size), padding_mode=mode, layout=layout, dtype=pick(dtypes), taps=pick((3, 5)))
                )
        for size in ((1, 1), (2, 1), (1, 9), (2, 2)):
            yield Case("tiny", (2, 3, *size), taps=5, padding_mode=mode, dtype=pick(dtypes), layout=pick(layouts))
            yield Case("tiny", (2, 3, *size), taps=4, padding_mode=mode, window=2, window_padding=1, dtype=pick(dtypes))
        for padding in (
            0,
            1,
            (2, 0),
            ((0, 3), (2, 1)),
            ((-1, -2), (-2, 1)),
            ((-3, 4), (5, -4)),
            ((13, 20), (19, 8)),
            ((-7, 9), (30, -25)),
        ):
            yield from _both(Case(
                "pads", (2, 2, 6, 5), taps=(2, 3), padding=padding, padding_mode=mode, dtype=pick(dtypes),
                layout=pick(layouts), stride=pick((1, 2, 3)),
            ), (1, 2))  # fmt: skip
        for padding in (((-1, 2), (-3, 1)), ((-2, -1), (-1, -4)), ((3, 0), (5, 98)), ((9, 13), (99, 190))):
            for stride in (1, 2, 3):
                yield from _both(Case(
                    "pads", (1, 2, 9, pick((70, 83, 90))), taps=pick((2, 3, 4, 5)), padding=padding, padding_mode=mode,
                    dtype=pick(dtypes), stride=stride, layout=pick(("contiguous", "contiguous", "channels_last")),
                ))  # fmt: skip
        for layout in ("contiguous", "channels_last", "stepped"):  # few planes: cut into bands
            yield from _both(
                Case(
                    "bands",
                    (1, 1 if layout == "contiguous" else 33, 131, 9),
                    layout=layout,
                    padding_mode=mode,
                    dtype=pick(dtypes),
                )
            )
        yield from _both(Case("bands", (1, 1, 70, 3, 40), rank=3, padding_mode=mode), (2, 1, 2))

    for window in (1, 2, 3, (2, 3), (3, 1), (5, 5), (17, 16)):
        for dtype in dtypes:
            size = (19, 21) if window == (17, 16) else (9, 11)
            for layout in ("contiguous", "channels_last", pick(("transposed", "sliced", "channels_sliced", "stepped"))):
                yield Case("window", (2, 3, *size), window=window, dtype=dtype, layout=layout, padding_mode=pick(modes))
    yield Case("window", (1, 2, 300, 2), window=(257, 1), stride=(7, 1))  # 16-bit codes
    for window, padding, dilation in (
        (2, 1, 1),
        (3, 1, 1),
        (3, 1, 2),
        ((3, 2), (1, 0), (1, 3)),
        ((5, 4), (2, 1), (1, 2)),
        (2, 1, 3),
    ):
        for layout in ("contiguous", "channels_last"):
            for values in ("random", "ties", "special"):
                yield Case(
                    "window", (2, 3, 8, 9), window=window, window_padding=padding, window_dilation=dilation,
                    layout=layout, dtype=pick(dtypes), padding_mode=pick(modes), values=values, stride=pick((1, 2)),
                )  # fmt: skip
    for dtype in dtypes:
        for layout in ("contiguous", "channels_last", "transposed"):
            for values in ("ties", "special"):
                for window in (2, 3):
                    yield Case(
                        "values",
                        (2, 5, 9, 35),
                        window=window,
                        dtype=dtype,
                        layout=layout,
                        values=values,
                        padding_mode=pick(modes),
                    )
            yield Case("values", (2, 5, 9, 35), dtype=dtype, layout=layout, values="special", padding_mode=pick(modes))
        for size in ((5, 7), (8, 8), (3, 20), (2, 64), (1, 40)):
            yield from _both(
                Case("values", (2, 5, *size), dtype=dtype, values="special", padding_mode=pick(modes)), (1, 2)
            )
    for layout in ("contiguous", "channels_last"):
        yield Case("values", (2, 3, 9, 11), window=2, dtype="f64", layout=layout, values="close")

    for mode in modes:
        for layout in NARROW_LAYOUTS:
            yield from _both(
                Case(
                    "1d",
                    (2, 3, pick((9, 16, 33, 70))),
                    rank=1,
                    taps=pick((2, 3, 5)),
                    padding_mode=mode,
                    dtype=pick(dtypes),
                    layout=layout,
                )
            )
        for layout in layouts:
            yield from _both(Case(
                "3d", (2, 3, *pick(((5, 6, 7), (3, 9, 17), (8, 2, 5)))), rank=3, taps=pick((2, 3, 4)),
                stride=pick((1, 2, (1, 2, 3))), padding_mode=mode, dtype=pick(dtypes), layout=layout,
            ), pick((2, (1, 2, 2))))  # fmt: skip
    yield Case("3d", (1, 2, 5, 6, 7), rank=3, window=(3, 2, 3), window_padding=(1, 0, 1), window_dilation=(1, 2, 1))

    for taps in ("s3", "c3", "s4", "c1", ("s3", 2), (1, "c5"), ("c2", "s6"), ("s12", "c9")):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last"):
                yield from _both(Case(
                    "tensor", (2, 5, 7, 9), taps=taps, dtype=dtype, layout=layout, padding_mode=pick(modes),
                    stride=pick((1, 2, (3, 2))),
                ), pick((2, 3)))  # fmt: skip
    for layout in ("transposed", "sliced", "channels_sliced", "stepped", "expanded"):
        yield from _both(
            Case("tensor", (2, 5, 7, 9), taps=("c3", "s4"), layout=layout, padding_mode=pick(modes), dtype=pick(dtypes))
        )
    for dtype, taps_dtype in (
        ("f16", "f32"),
        ("bf16", "f32"),
        ("bf16", "f64"),
        ("f32", "bf16"),
        ("f32", "f64"),
        ("f64", "f32"),
    ):
        yield Case("tensor", (2, 5, 7, 9), taps="c3", dtype=dtype, taps_dtype=taps_dtype)
    for padding in (((-1, 4), (9, -2)), ((11, 8), (3, 14))):
        yield from _both(Case("tensor", (2, 3, 6, 7), taps="s3", padding=padding, padding_mode=pick(modes)))
    for rank, size in ((1, (40,)), (3, (5, 6, 7))):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last")[:rank]:
                for kind in "sc":
                    yield from _both(
                        Case(
                            "tensor",
                            (2, 3, *size),
                            rank=rank,
                            taps=f"{kind}3",
                            dtype=dtype,
                            layout=layout,
                            padding_mode=pick(modes),
                        )
                    )
    for layout in ("contiguous", "channels_last"):
        yield Case("tensor", (3, 33, 67, 5), taps="c3", layout=layout)
        yield Case("tensor", (1, 1, 131, 20), taps="s3", layout=layout)

    for rank in (1, 2, 3):
        for layout in NARROW_LAYOUTS if rank == 1 else LAYOUTS:
            taps = pick((3, "c3", "s4"))
            yield from _both(
                Case(
                    "unbatched",
                    (5, *(7, 6, 9)[:rank]),
                    rank=rank,
                    taps=taps,
                    layout=layout,
                    dtype=pick(dtypes),
                    padding_mode=pick(modes),
                )
            )
        for shape in ((0, 3, *(7, 6, 9)[:rank]), (2, 0, *(7, 6, 9)[:rank]), (0, *(7, 6, 9)[:rank])):
            for layout in ("contiguous", "channels_last")[:rank]:
                yield from _both(
                    Case("empty", shape, rank=rank, taps=pick((3, "s3")), layout=layout, dtype=pick(dtypes))
                )


def _filters() -> Iterator[Case]:
    """A filter for each channel, on so many planes that a GPU's blocks have several."""
    pick, modes = random.Random(2027).choice, list(MODES)
    for planes, side in (((17, 301), 3), ((13, 83), 7), ((3, 367), 14)):
        for dtype in ("f16", "bf16", "f32"):
            for window in (None, 2, 3):
                yield Case(
                    "filters", (*planes, side, side), taps=f"c{pick((3, 4))}", dtype=dtype, padding_mode=pick(modes),
                    layout=pick(("contiguous", "offset")), window=window, window_padding=int(window == 3),
                )  # fmt: skip


def _narrow() -> Iterator[Case]:
    """Maps so narrow that no output, or hardly one, reads no border."""
    pick, modes, dtypes = random.Random(1906).choice, list(MODES), list(DTYPES)
    for taps in range(2, 8):
        for stride in (1, 2):
            for layout in ("channels_last", pick(LAYOUTS)):
                yield from _both(Case(
                    "narrow", (1, pick((32, 33, 64, 70)), pick((1, 2, 3, 4)), pick((1, 2, 3, 4))), taps=taps,
                    stride=stride, dtype=pick(dtypes), padding_mode=pick(modes), layout=layout,
                    padding=pick(("same", 7)),
                ), pick((1, (1, 1))))  # fmt: skip
    for size, taps, dtype in (((3, 3), 5, "f32"), ((9, 1), 3, "f32"), ((2, 2), 4, "bf16"), ((1, 1), 7, "f64")):
        yield from _both(Case("narrow", (1, 64, *size), taps=taps, stride=1, dtype=dtype, layout="channels_last"), 1)
    for mode in modes:  # all that is read lies in the pads
        yield Case(
            "narrow", (1, 64, 5, 6), stride=1, layout="channels_last", padding=((1, 1), (-70, 80)), padding_mode=mode,
            taps=pick((3, "s3", "c3")),
        )  # fmt: skip
    for size in ((16, 1), (16, 2), (24, 1), (64, 1), (3, 24)):  # of many rows, which threads may share
        for dtype in dtypes:
            yield from _both(Case(
                "narrow", (1, 5, *size), taps=pick((3, 4, 5, "s4")), stride=pick((1, 2)), dtype=dtype,
                padding_mode=pick(modes),
            ), (2, 1))  # fmt: skip
    yield from _both(Case("narrow", (1, 5, 17, 2, 1), rank=3, taps=pick((3, 4)), padding_mode=pick(modes)), (2, 1, 1))


def _shared() -> Iterator[Case]:
    """Rows of no whole vectors, which a GPU's blocks share planes or bands of: several a block and a rest; borders; any
    alignment."""
    pick, modes, dtypes = random.Random(1905).choice, list(MODES), ("f16", "bf16", "f32")
    layouts = ("contiguous", "offset")
    for side in (7, 14, 28, 55, 57, 113):
        planes = {7: (13, 83), 14: (3, 367)}.get(side, (1, 3))
        for taps in (3, pick((2, 4, 5))):
            for dtype in dtypes:
                for window in (None, pick((2, 3))):
                    yield Case(
                        "shared", (*planes, side, side), taps=taps, dtype=dtype, padding_mode=pick(modes),
                        layout=pick(layouts), window=window,
                    )  # fmt: skip
    for size in ((3, 5), (1, 7), (9, 1), (2, 3), (4, 6), (7, 14), (31, 9), (40, 301), (130, 27)):
        for mode in modes:
            for taps in (2, 3, 4, 5):
                yield Case(
                    "shared", (2, 5, *size), taps=pick((taps, f"s{taps}")), stride=pick((1, 2)), padding_mode=mode,
                    dtype=pick(dtypes), layout=pick(layouts),
                    padding=pick(("same", "same", (((taps - 1) // 2, 3), ((taps - 1) // 2, 4)))),
                    values=pick(("random", "special")),
                )  # fmt: skip
                if min(size) > 2:
                    yield Case(
                        "shared", (2, 5, *size), taps=pick((3, 4)), padding_mode=mode, window=pick((2, 3)),
                        dtype=pick(dtypes), layout=pick(layouts),
                        values=pick(("random", "ties", "special")),
                    )  # fmt: skip
    yield from _both(Case("shared", (17, 301, 3, 3), dtype="bf16"))
    yield from _both(Case("shared", (17, 302, 3, 5), dtype="f32", taps=4))
    # Outputs of pads alone, far behind the last maximum.
    for dtype, mode in zip(dtypes, ("zeros", "circular", "replicate"), strict=True):
        yield from _both(Case("behind", (1, 3, 9, 13), dtype=dtype, padding_mode=mode, padding=((1, 1), (1, 6))))
    yield from _both(Case("behind", (1, 1, 211, 170), dtype="bf16", padding_mode="zeros", padding=((1, 16), (1, 1))))


def _pools() -> Iterator[Case]:
    """A max with padding of its own (the pool of every ResNet) and without, that the GPU has fast kernels for: maps and
    channels of every cut, codes of every border."""
    pick, modes, dtypes = random.Random(1512).choice, list(MODES), ("bf16", "f32", "f16")
    layouts = (("contiguous", 3), ("channels_last", 16), ("channels_last", 12), ("offset", 2), ("channels_sliced", 20))
    sizes = ((5, 6), (6, 7), (7, 6), (14, 15), (21, 18), (35, 66), (9, 130), (70, 11))
    for size in sizes:
        for layout, channels in layouts:
            for window, window_padding in ((3, 1), (3, 0), (2, 0), (2, 1)):
                yield Case(
                    "pool", (pick((1, 2)), channels, *size), taps=pick((3, 4, "s3")), window=window,
                    window_padding=window_padding, dtype=pick(dtypes), layout=layout, padding_mode=pick(modes),
                    padding=pick(("same", "same", ((0, 2), (1, 1)), ((2, 0), (1, 3)), ((-1, 2), (1, -1)))),
                    values=pick(("random", "ties", "special")),
                )  # fmt: skip


def _forms() -> Iterator[Case]:
    """Each form that the GPU's fast kernels are compiled for: vectors of channels, half ones and none, planes; of even
    filters those whose reflection reaches further, too."""
    pick, modes = random.Random(1717).choice, ("reflect", "replicate", "zeros")
    for dtype in ("f16", "bf16", "f32"):
        for taps in range(2, 8):
            for mode in ("reflect", "zeros") if taps in (2, 4) else ("zeros",) if taps == 6 else (pick(modes),):
                for stride in (1, 2, 4):
                    for layout, channels in (
                        ("channels_last", 16),
                        ("channels_last", 12),
                        ("channels_last", 6),
                        ("channels_last", 5),
                        ("contiguous", 2),
                    ):
                        yield Case(
                            "form", (1, channels, 13, 18), taps=taps, stride=stride, dtype=dtype, layout=layout,
                            padding_mode=mode,
                        )  # fmt: skip
                        if channels == 2 or (stride < 4 and channels in (16, 5)):
                            yield Case(
                                "form", (1, channels, 13, 18), taps=f"c{taps}", stride=stride, dtype=dtype,
                                layout=layout, padding_mode=mode,
                            )  # fmt: skip
        for taps in (3, 4):
            for mode in ("reflect", "zeros"):
                for window in (2, 3):
                    for layout, channels, width in (
                        ("channels_last", 16, 18),
                        ("channels_last", 12, 18),
                        ("contiguous", 2, 4),
                        ("contiguous", 2, 7),
                        ("contiguous", 2, 8),
                        ("contiguous", 2, 11),
                        ("contiguous", 2, 130),
                    ):
                        yield Case(
                            "form", (1, channels, 13, width), taps=taps, window=window, dtype=dtype, layout=layout,
                            padding_mode=mode,
                        )  # fmt: skip
    yield Case("form", (1, 2, 13, 18), taps="s5", dtype="f64")


def _long() -> Iterator[Case]:
    """Filters of more taps than kernels have as constants, and tables of up to 32 entries a coordinate and beyond."""
    pick, modes, dtypes = random.Random(1213).choice, list(MODES), list(DTYPES)
    for shape, rank, taps in (
        ((1, 2, 70), 1, 25),
        ((1, 2, 41, 38), 2, 13),
        ((1, 3, 23, 45), 2, 20),
        ((1, 2, 36, 37), 2, 32),
        ((1, 2, 40, 35), 2, 33),
        ((1, 2, 17, 16), 2, "c31"),
        ((1, 2, 11, 12, 13), 3, 9),
        ((1, 2, 13, 12, 14), 3, 12),
    ):
        for stride in (1, 2):
            yield from _both(Case(
                "long", shape, rank=rank, taps=taps, stride=stride, padding_mode=pick(modes), dtype=pick(dtypes),
                layout=pick(("contiguous", "channels_last")[: rank]),
            ))  # fmt: skip


def _far() -> Iterator[Case]:
    """Geometries whose numbers need more than 32 bits on the way."""
    pick, modes = random.Random(2031).choice, list(MODES)
    before = 2**31 - 8
    for dtype in DTYPES:
        yield from _both(Case(
            "far", (2, 3, 9, 7), taps=("s2", "s3"), stride=pick((1, 2)), dtype=dtype, padding_mode=pick(modes),
            padding=((before, 9 - before), (before - 3, 11 - before)), layout=pick(("contiguous", "channels_last")),
        ))  # fmt: skip
        for taps in ("s2", "s3", "s4", "s5"):
            yield Case(
                "far", (2, 4, 9, 7), taps=taps, dtype=dtype, padding_mode=pick(modes),
                padding=((before, 9 - before),) * 2, layout=pick(("contiguous", "channels_last")),
            )  # fmt: skip


CASES = list(
    {
        case.id: case
        for case in (*_generate(), *_shared(), *_filters(), *_narrow(), *_pools(), *_forms(), *_long(), *_far())
    }.values()
)
