"""Limits of settings; errors name a setting as the settings file does."""

from __future__ import annotations

from spoor.base.errors import UsageError


def require_at_least(section: str, settings: object, minimum: int, *names: str) -> None:
    """Raises UsageError for the first of these settings that is smaller."""
    for name in names:
        if (value := getattr(settings, name)) < minimum:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be at least {minimum}")


def require_at_most(section: str, settings: object, maximum: int, *names: str) -> None:
    """Raises UsageError for the first of these settings that is larger."""
    for name in names:
        if (value := getattr(settings, name)) > maximum:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be at most {maximum}")


def require_port(section: str, settings: object, *names: str, lowest: int = 1) -> None:
    """Raises UsageError for the first of these settings that is not a TCP port."""
    for name in names:
        if not lowest <= (value := getattr(settings, name)) <= 65_535:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be {lowest} to 65535")
