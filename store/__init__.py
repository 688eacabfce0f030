"""The one door to Feast: guarded online writes, the offline log, reads.

Feast decorates its classes with typeguard, which parses and compiles each of them again: 4.0 of the 8.6 s of CPU time
that its import takes. Here, where every module that uses Feast comes by first, it is imported without.
"""

from __future__ import annotations

import sys
from typing import Any


def _import_feast_quickly() -> None:
    import typeguard

    original = typeguard.typechecked
    typeguard.typechecked = _unchecked
    try:
        import feast  # noqa: F401
    finally:
        typeguard.typechecked = original


def _unchecked(target: Any = None, **_: Any) -> Any:
    return _unchecked if target is None else target


if "feast" not in sys.modules:
    _import_feast_quickly()
