"""Numbers as a reader wants them: percentages with one decimal, bytes and times with a unit."""

from __future__ import annotations

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
MISSING = "n/a"


def decimal(value: float, digits: int = 1) -> str:
    """Returns a rounded number with a true minus sign, and no minus before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Returns a fraction as a percentage."""
    return MISSING if value is None else f"{decimal(100 * value)} %"


def points(value: float | None) -> str:
    """Returns a difference of fractions in percentage points."""
    return MISSING if value is None else f"{decimal(100 * value)} pp"


def unit(size: float) -> tuple[int, str]:
    """Returns the decimal unit of bytes that leaves one to three digits before the point."""
    return next((u for u in UNITS if round(size / u[0], 3) >= 1), UNITS[-1])


def volume(size: float | None) -> str:
    """Returns a number of bytes with three significant digits and a decimal unit."""
    if size is None:
        return MISSING
    factor, name = unit(size)
    scaled = size / factor
    digits = 0 if name == "B" or scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {name}"


def duration(seconds: float | None) -> str:
    """Returns a time with the two units that matter."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 10 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float | None) -> str:
    """Returns a whole number with thin spaces between thousands."""
    return MISSING if number is None else f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
