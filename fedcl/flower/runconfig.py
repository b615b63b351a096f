"""The text `set` of a run config or a node config: KEY=VALUE words, as `fedcl run --set` takes."""

from __future__ import annotations

from typing import Any

from fedcl.__main__ import overrides

_PAIRS = {"[": "]", "{": "}"}


def settings(text: str) -> dict[str, Any]:
    """Returns the overrides in a text.

    Args:
        text: Words, separated by spaces or lines; what stands in quotes or brackets is one word.

    Raises:
        ConfigError: A word is no KEY=VALUE.
    """
    return overrides(words(text))


def words(text: str) -> list[str]:
    """Returns the words of a text, with the quotes and brackets that they hold."""
    found, word, closing = [], "", ""
    for sign in text:
        if sign.isspace() and not closing:
            found.append(word)
            word = ""
            continue
        word += sign
        if closing and sign == closing[-1]:
            closing = closing[:-1]
        elif not closing.endswith(("'", '"')):
            closing += _PAIRS.get(sign, sign if sign in "'\"" else "")
    return [part for part in (*found, word) if part]
