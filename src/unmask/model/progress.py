"""How a download tells how far it is: one record, given to a function of the caller's.

Nothing is drawn here; the command line turns these records into a bar or into lines.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far one download is, in bytes; `total` is None while it is not known."""

    label: str
    done: int
    total: int | None


Report = Callable[[Progress], None]
"""Called as a download goes on, from whichever thread is downloading."""
