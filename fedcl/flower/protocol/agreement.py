"""Whether both sides of a federation have one config: all that decides what a client answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fedcl import __version__

# What each side decides for itself: it changes no client's answer.
_OWN_AFFAIRS = ("audit", "engine", "checkpoint", "evaluation", "memory", "replies")
_OWN_KEYS = {"dataset": ("root",)}
_SHOWN = 6  # differences that a message names


def shared(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without each side's own affairs.

    Args:
        resolved: The config with every default filled in.
    """
    found = {name: table for name, table in resolved.items() if name not in _OWN_AFFAIRS}
    for name, keys in _OWN_KEYS.items():
        if isinstance(found.get(name), Mapping):
            found[name] = {key: value for key, value in found[name].items() if key not in keys}
    return found


def fingerprints(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Returns a short hash of every table that decides what a client answers, and the version.

    Args:
        resolved: The config with every default filled in.
    """
    found = {"version": __version__}
    for name, table in sorted(shared(resolved).items()):
        text = json.dumps(table, sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def differences(own: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Returns what two configs differ in, key by key with both values; nothing when they agree.

    Args:
        own: The config here, with every default filled in.
        asked: The other side's.
    """
    here, there = (dict(_leaves("", shared(config))) for config in (own, asked))
    keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    found = [
        f"{key}: {here.get(key, 'nothing')} here, {there.get(key, 'nothing')} asked for"
        for key in keys[:_SHOWN]
    ]
    if len(keys) > _SHOWN:
        found.append(f"and {len(keys) - _SHOWN} more")
    return ", ".join(found)


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields every value of a config as JSON, with its dotted key."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(f"{place}.{key}" if place else str(key), part)
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        for index, part in enumerate(value):
            yield from _leaves(f"{place}[{index}]", part)
    else:
        yield place, json.dumps(value)
