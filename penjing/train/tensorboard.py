"""Curves of training for TensorBoard, if asked for: `penjing[tensorboard]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError


def check(where: Path) -> Any:
    """What writes event files. Raises PenjingError where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PenjingError(
            "TensorBoard is not installed", where=str(where), attempt="pip install 'penjing[tensorboard]'"
        ) from error
    return SummaryWriter


def write_curves(folder: Path, curve: Sequence[Mapping[str, float]], validation: Sequence[Mapping[str, float]]) -> None:
    """Write what `Trained` holds as one event file. Raises PenjingError where the package is not installed."""
    writer: Any = check(folder)(str(folder))
    try:
        for point in curve:
            for name, value in point.items():
                if name != "step":
                    writer.add_scalar(f"train/{name}", value, int(point["step"]))
        for point in validation:
            writer.add_scalar("validation/loss", point["loss"], int(point["step"]))
    finally:
        writer.close()
