"""The page: tables, and each claim of the paper held against the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from .nets import NETS, VARIANTS
from .sets import RECIPES

Row = dict[str, Any]
Key = tuple[str, str, str, bool]
COLUMNS = ("accuracy", "consistency", "worst case accuracy", "sub-pixel consistency", "variation")


def by_key(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows by (data, net, variant, augmented), each with one row a seed."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r["seed"]):
        found[row["data"], row["net"], row["variant"], row["augmented"]].append(row)
    return found


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * fmean(values):.{digits}f}{deviation}"


def table(rows: dict[Key, list[Row]], data: str, net: str) -> str:
    """One row a variant and way of training; best means in bold, for each way."""
    corrupted = RECIPES[data].corrupted > 0
    lines = ["| Training | Variant | " + " | ".join((*COLUMNS, *(["mCE"] if corrupted else []))) + " |"]
    lines.append("|---|---|" + "---:|" * (len(COLUMNS) + corrupted))
    for augmented in (False, True):
        block = {variant: rows.get((data, net, variant, augmented), []) for variant in VARIANTS}
        best = {
            c: (min if c == "variation" else max)(fmean(r[c] for r in b) for b in block.values() if b) for c in COLUMNS
        }
        for variant, of in block.items():
            if not of:
                continue
            cells = []
            for column in COLUMNS:
                values = [r[column] for r in of]
                text = spread(values)
                cells.append(f"**{text}**" if fmean(values) == best[column] else text)
            if corrupted:
                cells.append(spread(corruption_errors(of, block["baseline"])))
            lines.append(f"| {'shifts' if augmented else 'plain'} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def corruption_errors(of: list[Row], baseline: list[Row]) -> list[float]:
    """mCE of each seed, relative to the baseline's mean errors."""
    kinds = baseline[0]["errors"]
    base = {kind: fmean(r["errors"][kind] for r in baseline) for kind in kinds}
    return [fmean(r["errors"][kind] / max(base[kind], 1e-9) for kind in kinds) for r in of]


# ---- claims ------------------------------------------------------------------------------------------


def paired(better: list[float], worse: list[float]) -> tuple[float, float]:
    """Mean difference over seeds, and its standard error."""
    differences = [a - b for a, b in zip(better, worse, strict=False)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else float("nan")
    return fmean(differences), error


def verdict(difference: float, error: float) -> str:
    """Seen, or its opposite, where the difference is more than twice its standard error."""
    if error != error or abs(difference) <= 2 * error:
        return "not told apart"
    return "seen" if difference > 0 else "the opposite is seen"


Column = Callable[[list[Row], list[Row]], list[float]]  # of the rows of a variant and of the baseline, one a seed
CLAIMS: tuple[tuple[str, Column], ...] = (
    ("Blur raises consistency", lambda of, _: [r["consistency"] for r in of]),
    ("Blur raises accuracy", lambda of, _: [r["accuracy"] for r in of]),
    ("Blur raises accuracy in the worst case of shifts", lambda of, _: [r["worst case accuracy"] for r in of]),
    ("Blur makes the probability of the label vary less", lambda of, _: [-r["variation"] for r in of]),
)  # fmt: skip


def claims(rows: dict[Key, list[Row]], datas: list[str], augmented: bool = False) -> str:
    """For each claim, data set and net the difference of each variant from the baseline, in points, and a verdict."""
    lines = ["| Claim | Data | Net | " + " | ".join(v for v in VARIANTS if v != "baseline") + " |"]
    lines.append("|---|---|---|" + "---|" * (len(VARIANTS) - 1))
    for claim, column in (*CLAIMS, ("Blur lowers errors under corruptions (mCE)", _robustness)):
        for data in datas:
            if column is _robustness and not RECIPES[data].corrupted:
                continue
            for net in NETS:
                base = rows[data, net, "baseline", augmented]
                cells = [_cell(column(rows[data, net, v, augmented], base), column(base, base))
                         for v in VARIANTS if v != "baseline"]  # fmt: skip
                lines.append(f"| {claim} | {data} | {net} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _robustness(of: list[Row], baseline: list[Row]) -> list[float]:
    return [-error for error in corruption_errors(of, baseline)]


def _cell(better: list[float], worse: list[float]) -> str:
    difference, error = paired(better, worse)
    shown = "" if error != error else f" ± {100 * error:.1f}"
    return f"{100 * difference:+.1f}{shown}: {verdict(difference, error)}"


def instead_of_augmentation(rows: dict[Key, list[Row]], datas: list[str]) -> str:
    """What training under shifts gives each variant: little where the net is equivariant by itself."""
    lines = ["| Data | Net | " + " | ".join(VARIANTS) + " |", "|---|---|" + "---|" * len(VARIANTS)]
    for data in datas:
        for net in NETS:
            cells = []
            for variant in VARIANTS:
                plain, shifts = (rows[data, net, variant, a] for a in (False, True))
                gain, error = paired([r["consistency"] for r in shifts], [r["consistency"] for r in plain])
                cells.append(f"{100 * gain:+.1f}" + ("" if error != error else f" ± {100 * error:.1f}"))
            lines.append(f"| {data} | {net} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learned(rows: dict[Key, list[Row]], datas: list[str]) -> str:
    """The gain of learned filters at the Nyquist frequency, before and after training."""
    lines = ["| Data | Net | Training | at the start | at the end | verdict |", "|---|---|---|---:|---:|---|"]
    for data in datas:
        for net in NETS:
            for augmented in (False, True):
                of = rows[data, net, "learned", augmented]
                first, last = ([fmean(r["gains"][i]) for r in of] for i in (0, -1))
                told = verdict(*paired(last, first))
                lines.append(
                    f"| {data} | {net} | {'shifts' if augmented else 'plain'} | {spread(first, 1, 3)} | "
                    f"{spread(last, 1, 3)} | {told} |"
                )
    return "\n".join(lines)
