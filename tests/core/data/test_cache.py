"""A cache that keeps what was used last, up to a number of bytes."""

from fedcl.core.data.cache import Cache


def test_what_was_used_last_is_kept() -> None:
    cache, made = Cache(10), []

    def get(key: str, size: int = 4) -> str:
        def make() -> str:
            made.append(key)
            return key * 2

        return cache.get(key, make, lambda value: size)

    assert [get(key) for key in "abab"] == ["aa", "bb", "aa", "bb"]
    assert made == ["a", "b"]
    assert cache.used == 8
    get("a")
    get("c")  # there is no room for three: b goes, which was used least recently
    assert cache.used == 8
    get("a")
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]


def test_what_is_too_large_is_made_each_time_and_moves_nothing_out() -> None:
    cache = Cache(10)
    kept = cache.get("small", lambda: [1], lambda value: 10)
    first = cache.get("large", lambda: [2], lambda value: 11)
    assert cache.get("large", lambda: [2], lambda value: 11) is not first
    assert cache.get("small", lambda: [3], lambda value: 10) is kept
    assert cache.used == 10
