"""The `mixsiam` command itself, and what its commands share. Heavy imports wait for a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mixsiam_hub import __version__
from mixsiam_hub.errors import MixsiamError, missing_extra

EXIT_SKIPPED = 3
EXIT_COLLAPSED = 4

PATH = click.Path(path_type=Path)
_MODEL_HELP = "A model folder, or a Hub id org/name[@revision]. Default: the built-in encoder."


class _Group(click.Group):
    """Turns this package's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except MixsiamError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="mixsiam")
def main() -> None:
    """Image features from MixSiam encoders."""


def model_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --model to a command."""
    return click.option("--model", help=_MODEL_HELP)(command)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Names the pip command where a command's optional dependency is absent."""
    try:
        yield
    except MixsiamError:
        raise
    except ImportError as error:
        missing_extra(error.name or name, name)
