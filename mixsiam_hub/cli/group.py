"""The `mixsiam` command itself, and what its commands share. Heavy imports wait for a command."""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from mixsiam_hub import __version__
from mixsiam_hub.backends.choose import AUTO, BACKENDS, DEVICES, MIN_COSINE, PRECISIONS
from mixsiam_hub.errors import DataError, MixsiamError, missing_extra

if TYPE_CHECKING:
    from mixsiam_hub import ImageEncoder

EXIT_SKIPPED = 3
EXIT_COLLAPSED = 4
EXIT_RESUME = 75
"""Told to stop by SIGTERM, with all work saved: the same command with --resume goes on. sysexits.h's EX_TEMPFAIL."""
_EXIT_SIGNAL = 128
"""Plus the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""


class _Place(click.Path):
    """A path, or an address such as s3://bucket/vectors, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns a Path, or the address."""
        from mixsiam_hub.images.finding import is_address

        return value if is_address(value) else super().convert(value, param, ctx)


PATH = click.Path(path_type=Path)
PLACE = _Place(path_type=Path)
_MODEL_HELP = "A model folder, or a Hub id org/name[@revision]. Default: the built-in encoder."
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FIXES = {
    errno.ENOSPC: "; free some space",
    errno.EACCES: "; change its permissions",
    errno.EMFILE: "; raise the limit of open files: ulimit -n",
    errno.ENAMETOOLONG: "; shorten the name",
}


class _Group(click.Group):
    """Ends each command in one place: an error is one line and exit code 1, a signal cleans up."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        _prepare_streams()
        try:
            with _signals_raised():
                return super().invoke(ctx)
        except MixsiamError as error:
            reason = str(error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(_EXIT_SIGNAL + signal.SIGINT)
        except OSError as error:
            if error.errno == errno.EPIPE:  # The reader of the output went; click leaves silently.
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            reason = f"{where}{error.strerror or error}{_FIXES.get(error.errno or 0, '')}"
        try:
            os.getcwd()
        except FileNotFoundError:
            reason += "; the working directory was removed: change to another"
        click.echo(f"error: {printable(' '.join(reason.split()))}", err=True)
        ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="mixsiam")
def main() -> None:
    """Image features from MixSiam encoders."""


@dataclass(frozen=True)
class EncoderOptions:
    """Which encoder a command uses, and what runs it, in the words of `ImageEncoder.from_pretrained`."""

    model: str | None
    backend: str
    device: str
    precision: str
    min_cosine: float
    decode: str | None
    dim: int | None
    threads: int | None

    def open(self) -> ImageEncoder:
        """Opens the encoder.

        Raises:
            MixsiamError: As `ImageEncoder.from_pretrained`.
        """
        from mixsiam_hub import ImageEncoder

        return ImageEncoder.from_pretrained(
            self.model,
            backend=self.backend,
            device=self.device,
            precision=self.precision,
            min_cosine=self.min_cosine,
            decode=self.decode,
            dim=self.dim,
            threads=self.threads,
        )


def encoder_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that choose an encoder and what runs it; they arrive as one `EncoderOptions`: `encoder`."""

    @functools.wraps(command)
    def gathered(
        model: str | None,
        backend: str,
        device: str,
        precision: str,
        min_cosine: float,
        decode: str | None,
        dim: int | None,
        threads: int | None,
        **others: Any,
    ) -> None:
        command(encoder=EncoderOptions(model, backend, device, precision, min_cosine, decode, dim, threads), **others)

    options = (
        click.option("--model", help=_MODEL_HELP),
        click.option("--backend", default="auto", show_default=True, help=", ".join(BACKENDS)),
        click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES)),
        click.option("--precision", default="fp32", show_default=True, help=", ".join((*PRECISIONS, AUTO))),
        click.option("--min-cosine", type=float, default=MIN_COSINE, show_default=True, help="To fp32, with auto."),
        click.option(
            "--decode", help="exact, or fast for photos as JPEG. Default: exact; with auto, what was measured."
        ),
        click.option(
            "--dim", type=click.IntRange(1), help="Numbers of a vector to keep, from the first. Default: all."
        ),
        click.option("--threads", type=click.IntRange(1), help="Default: the CPUs this process may use."),
    )
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Names the pip command where a command's optional dependency is absent."""
    try:
        yield
    except MixsiamError:
        raise
    except ImportError as error:
        missing_extra(error.name or name, name)


def printable(name: str) -> str:
    """Returns a name with its control characters escaped: names come from files, and a terminal obeys such."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def check_not_replaced(outputs: Iterable[Path], inputs: Iterable[Path | str | None]) -> None:
    """Raises DataError for a file that would be written where an input is."""
    read = [path for path in inputs if path is not None and os.path.exists(path)]
    for out in outputs:
        if out.exists() and any(out.samefile(path) for path in read):
            raise DataError(f"{out} is one of the inputs, which it would replace; give the output another name")


def _prepare_streams() -> None:
    """Makes printing safe: no name fails to be encoded, and no file takes the place of a stream that is closed."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # Then its descriptor is the lowest free one, which the next file would get.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names that are no Unicode are printed as the bytes that they are.
        is_unicode = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Ends the program by an exception where a signal would end it at once, so that temporary files are removed."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    # What is ignored, as SIGHUP under nohup, stays so.
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # A second one does not stop the cleaning up.
    sys.exit(_EXIT_SIGNAL + number)
