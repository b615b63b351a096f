"""A SuperLink that is too busy to do what it is asked is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

T = TypeVar("T")
_TRIES = 6
_FIRST = 0.5  # seconds before the second try; twice as long before each further one


def again(call: Callable[[], T]) -> T:
    """Calls a SuperLink, and calls again when it is too busy to do what it is asked.

    A SuperLink whose database is locked for too long answers with status 500, which Flower takes
    for final.

    Raises:
        httpx.HTTPError: It is something else, or stays so.
    """
    for number in range(_TRIES):
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            if number + 1 == _TRIES:
                raise
            time.sleep(_FIRST * 2**number)
    raise AssertionError
