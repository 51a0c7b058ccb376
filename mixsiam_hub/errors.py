"""What can go wrong, by whose file is at fault. Every message names the file or field and the fix."""

from __future__ import annotations

from typing import NoReturn


class MixsiamError(Exception):
    """Root of this package's errors: `except MixsiamError` catches what a caller can do something about."""


class ArgumentError(MixsiamError, ValueError):
    """An argument out of its range, said before any work is done."""


class ImageError(MixsiamError):
    """An image that cannot be read, or that is larger than the limits allow.

    Attributes:
        image: Its key in the stream that met it; "" outside one.
    """

    image = ""


class DataError(MixsiamError):
    """A data set, a vector file or an input path that cannot be used."""


class OutputError(MixsiamError):
    """A place that cannot be written."""


class ModelError(MixsiamError):
    """A model folder that breaks the contract: a missing field, a changed file, a weight of the wrong shape."""


class BackendError(MixsiamError):
    """A backend, device or precision that was asked for by name and cannot be had here."""


class HubError(MixsiamError):
    """A repository that cannot be reached, found or read."""


class RecipeError(MixsiamError):
    """A training recipe with an unknown key, a wrong type or a value out of range."""


class TrainingError(MixsiamError):
    """A run that cannot go on: a loss that is not finite, a process that was killed."""


class MissingExtraError(MixsiamError, ImportError):
    """A part that needs an optional dependency that is not installed."""


def missing_extra(module: str, extra: str) -> NoReturn:
    """Raises the error for an optional dependency that is absent.

    Args:
        module: The import that failed, as in `torch`.
        extra: The extra that brings it, as in `train`.

    Raises:
        MissingExtraError: Always; the message holds the pip command.
    """
    raise MissingExtraError(f"{module} is not installed; run: pip install 'mixsiam-hub[{extra}]'")
