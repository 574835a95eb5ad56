"""Numbers that stand for "never" and "no end". They are finite, because JSON has no infinity."""

from typing import Final

NEVER_S: Final = -1e12
FOREVER_S: Final = 1e12
NO_LIMIT_W: Final = 1e12
