"""The figures of the page."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from .nets import NETS, VARIANTS
from .tables import Key, Row

COLOURS = dict(zip(VARIANTS, ("#222222", "#d95f02", "#1b9e77", "#7570b3", "#e7298a"), strict=True))


def _error(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def accuracy_against_consistency(rows: dict[Key, list[Row]], datas: list[str], path: Path) -> None:
    """A cross for each variant, hollow without and filled with shift augmentation: means and deviations over seeds."""
    figure = Figure(figsize=(4.6 * len(NETS), 3.8 * len(datas)), layout="constrained")
    axes = figure.subplots(len(datas), len(NETS), squeeze=False)
    for i, data in enumerate(datas):
        for j, net in enumerate(NETS):
            ax = axes[i][j]
            for variant in VARIANTS:
                for augmented in (False, True):
                    of = rows[data, net, variant, augmented]
                    x, y = ([100 * r[c] for r in of] for c in ("consistency", "accuracy"))
                    ax.errorbar(
                        fmean(x), fmean(y), _error(y), _error(x), "o", color=COLOURS[variant], capsize=2,
                        mfc=COLOURS[variant] if augmented else "white", label=None if augmented else variant,
                    )  # fmt: skip
            ax.set_title(f"{data}, {net}", fontsize=10)
            ax.set_xlabel("consistency, %")
            ax.set_ylabel("accuracy, %")
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8, title="filled: trained\nunder shifts", title_fontsize=8)
    figure.savefig(path, dpi=110)


def curves(rows: dict[Key, list[Row]], datas: list[str], path: Path) -> None:
    """Mean probability of the label along the diagonal, without shift augmentation."""
    figure = Figure(figsize=(4.6 * len(NETS), 3.2 * len(datas)), layout="constrained")
    axes = figure.subplots(len(datas), len(NETS), squeeze=False)
    for i, data in enumerate(datas):
        for j, net in enumerate(NETS):
            ax = axes[i][j]
            for variant in VARIANTS:
                of = [r["curve"] for r in rows[data, net, variant, False]]
                shifts = [k - (len(of[0]) - 1) / 2 for k in range(len(of[0]))]
                ax.plot(shifts, [fmean(v) for v in zip(*of, strict=True)], ".-", color=COLOURS[variant], label=variant)
            ax.set_title(f"{data}, {net}", fontsize=10)
            ax.set_xlabel("diagonal shift, px")
            ax.set_ylabel("probability of the label")
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def learned(rows: dict[Key, list[Row]], datas: list[str], path: Path) -> None:
    """Gain at the Nyquist frequency of each learned blur over the epochs, mean over seeds."""
    figure = Figure(figsize=(4.6 * len(NETS), 3.2 * len(datas)), layout="constrained")
    axes = figure.subplots(len(datas), len(NETS), squeeze=False)
    for i, data in enumerate(datas):
        for j, net in enumerate(NETS):
            ax = axes[i][j]
            for augmented, style in ((False, "-"), (True, "--")):
                runs = [r["gains"] for r in rows[data, net, "learned", augmented]]
                for k in range(len(runs[0][0])):
                    mean = [fmean(run[epoch][k] for run in runs) for epoch in range(len(runs[0]))]
                    label = None if augmented else f"blur {k + 1}"
                    ax.plot(mean, style, color=f"C{k}", label=label)
            ax.set_title(f"{data}, {net}", fontsize=10)
            ax.set_xlabel("epochs")
            ax.set_ylabel("gain at Nyquist / gain at 0")
            ax.set_ylim(bottom=0)
            ax.grid(alpha=0.3)
            ax.legend(fontsize=7, title="dashed: under shifts", title_fontsize=7)
    figure.savefig(path, dpi=110)
