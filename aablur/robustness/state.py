"""What a run has done so far, in a file that is whole at every moment: an interrupted run goes on from it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from .sums import Sum, Sums

VERSION = 1


@dataclass
class State:
    """fingerprint: of the model and of every setting that changes a number.
    images: of this process's share that are in the sums. digest: of those images and their labels.
    views: how many were run. seconds: that they took. predicted: the data had no labels. classes: of the model.
    """

    fingerprint: dict[str, Any]
    images: int = 0
    digest: str = ""
    sums: Sums = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    views: int = 0
    seconds: float = 0.0
    predicted: bool = False
    classes: int = 0

    def save(self, path: Path) -> None:
        """Writes the file, which is whole at every moment."""
        write_text(path, json.dumps({"version": VERSION, **asdict(self)}))

    @classmethod
    def load(cls, path: Path, fingerprint: dict[str, Any]) -> State:
        """The state in the file, or a fresh one if there is none.

        Raises:
            ValueError: the file is of another run; says which model or setting differs.
        """
        if not path.exists():
            return cls(fingerprint)
        try:
            stored = json.loads(path.read_text())
            if (version := stored.pop("version")) != VERSION:
                raise ValueError(f"its version is {version}, not {VERSION}")
            stored["sums"] = {p: {s: Sum(**found) for s, found in of.items()} for p, of in stored["sums"].items()}
            stored["skipped"] = {int(i): reason for i, reason in stored["skipped"].items()}
            state = cls(**stored)
            ours, theirs = _flat(json.loads(json.dumps(fingerprint))), _flat(state.fingerprint)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"measure: {path} is not the state of a run: {error!r}") from error
        if changed := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            said = "; ".join(f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}" for key in changed)
            raise ValueError(
                f"measure: {path} is of another run ({said}): give another state file, or remove it "
                "(--fresh in a shell)"
            )
        return state


def state_path(state: str | os.PathLike[str], rank: int, world: int) -> Path:
    """The file of one process: in a group, with its rank in the name."""
    path = Path(state)
    return path if world == 1 else path.with_name(f"{path.stem}.rank{rank}of{world}{path.suffix}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
