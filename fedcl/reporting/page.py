"""Renders the page of a report and writes it with its figures, each file whole or not at all."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedcl.core.errors import ConfigError
from fedcl.reporting import text
from fedcl.reporting.reconstructions import decibels
from fedcl.reporting.style import DPI

_NUMBERS = (text.percent, text.points, text.volume, text.duration, text.count)


def render(images: Mapping[str, bytes], **context: Any) -> str:
    """Returns the page as HTML that needs no other file: figures are data, text is escaped.

    Args:
        images: Figures as PNG bytes by name.
        context: What else the template shows.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {show.__name__: partial(_unbroken, show) for show in _NUMBERS}
    environment.filters["decibels"] = decibels
    template = files("fedcl").joinpath("report.html.jinja").read_text(encoding="utf-8")
    figures = {name: _embed(image) for name, image in images.items()}
    return environment.from_string(template).render(figures=figures, **context)


def _unbroken(show: Callable[[float | None], str], number: float | None) -> str:
    """Returns a number as text that no line ends within: its unit stays with it."""
    return show(number).replace(" ", "\N{NO-BREAK SPACE}")


def write(
    folder: Path, name: str, html: str, images: Mapping[str, bytes], known: Sequence[str]
) -> Path:
    """Writes the figures and then the page; returns the path of the page.

    Args:
        folder: Where the page goes; figures go into its `figures/`.
        name: Name of the page.
        html: The page.
        images: PNG bytes by name.
        known: All names that an earlier report may have left here: those not in `images` go.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for image in known:
            path = folder / "figures" / f"{image}.png"
            if image in images:
                _replace(path, images[image])
            else:
                path.unlink(missing_ok=True)
        _replace(folder / name, html.encode())
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {folder}: {error.strerror} ({error.filename}). "
            "Name a folder that can be written to, or free some space."
        ) from error
    return folder / name


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _embed(image: bytes) -> dict[str, Any]:
    """Returns the address of an image that is its own data, and its size in CSS pixels."""
    width, height = (round(side * 100 / DPI) for side in struct.unpack(">II", image[16:24]))
    data = base64.b64encode(image).decode("ascii")
    return {"src": f"data:image/png;base64,{data}", "width": width, "height": height}
