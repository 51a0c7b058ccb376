"""The command line: each command reads its options, calls the library and prints. Heavy imports wait for a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixsiam_hub import __version__
from mixsiam_hub.errors import MixsiamError, missing_extra

if TYPE_CHECKING:
    from mixsiam_hub.commands import Neighbours

EXIT_SKIPPED = 3
EXIT_COLLAPSED = 4

_PATH = click.Path(path_type=Path)
_MODEL_HELP = "A model folder, or a Hub id org/name[@revision]. Default: the built-in encoder."


class _Group(click.Group):
    """Turns this package's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MixsiamError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="mixsiam")
def main() -> None:
    """Image features from MixSiam encoders."""


def _model_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--model", help=_MODEL_HELP)(command)


@main.command()
@click.argument("inputs", nargs=-1, required=True)
@_model_option
@click.option("--out", type=_PATH, required=True, help="FILE.npz or FILE.parquet.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--backend", default="auto", show_default=True, help="onnx, torch or auto.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, mps or auto.")
@click.option("--threads", type=click.IntRange(1), help="Default: the CPUs this process may use.")
@click.option("--strict", is_flag=True, help="Stop at the first bad file and write nothing.")
def embed(
    inputs: Sequence[str],
    model: str | None,
    out: Path,
    batch_size: int,
    backend: str,
    device: str,
    threads: int | None,
    strict: bool,
) -> None:
    """Embed images: INPUTS are files, folders and globs.

    A bad file is left out and listed, with the reason, in errors.jsonl beside the output; the exit code is then 3.
    """
    from tqdm import tqdm

    from mixsiam_hub import ImageEncoder, commands
    from mixsiam_hub.sources import expand
    from mixsiam_hub.vectors import check_place, write_vectors

    check_place(out)
    paths = expand(inputs)
    encoder = ImageEncoder.from_pretrained(model, backend=backend, device=device, threads=threads)
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        vectors, bad = commands.embed_files(
            encoder, paths, model=model or "built-in", batch_size=batch_size, strict=strict, progress=bar.update
        )
    write_vectors(out, vectors)
    errors = out.with_name(commands.ERRORS_FILE)
    commands.write_errors(errors, bad)
    click.echo(f"{out}: {len(vectors.ids)} vectors of {encoder.dim} ({encoder.backend} on {encoder.device})")
    if bad:
        click.echo(f"{len(bad)} of {len(paths)} files skipped; {errors} says why", err=True)
        sys.exit(EXIT_SKIPPED)


@main.command()
@click.argument("vectors", type=_PATH)
@click.argument("queries", nargs=-1, required=True)
@_model_option
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of each query.")
@click.option("--sheet", type=_PATH, help="Also draw them: a PNG.")
def search(vectors: Path, queries: Sequence[str], model: str | None, k: int, sheet: Path | None) -> None:
    """Find the images nearest to QUERIES in VECTORS, a file written by `mixsiam embed`, by exact cosine."""
    from mixsiam_hub import ImageEncoder, commands
    from mixsiam_hub.sources import expand
    from mixsiam_hub.vectors import read_vectors

    stored = read_vectors(vectors)
    encoder = ImageEncoder.from_pretrained(model)
    rows = commands.search(encoder, stored, expand(queries), k)
    _show(rows, sheet)


@main.command()
@click.argument("model", required=False)
def info(model: str | None) -> None:
    """Print what MODEL says about itself; without MODEL, the built-in encoder."""
    from mixsiam_hub.commands import describe
    from mixsiam_hub.hub import resolve

    facts = describe(resolve(model))
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


@main.command()
@click.argument("model", required=False)
def verify(model: str | None) -> None:
    """Check every file of MODEL and replay its known answers on every backend installed here."""
    from mixsiam_hub.known_answers import verify_folder

    verified = verify_folder(model)
    click.echo(f"{verified.files} files have the sha256 that mixsiam.json lists; fingerprint and preprocessing agree")
    click.echo(f"{'backend':<9}{'known answer':<24}{'cosine':>12}{'max error':>12}")
    for answer in verified.answers:
        click.echo(f"{answer.backend:<9}{answer.file:<24}{answer.cosine:>12.8f}{answer.max_rel_error:>12.1e}")


@main.command()
@click.argument("folder", type=_PATH, required=False)
@_model_option
@click.option("--out", type=_PATH, default=Path("mixsiam-demo"), show_default=True, help="Folder for what it writes.")
@click.option("--sheet", type=_PATH, help="The contact sheet. Default: neighbours.png in that folder.")
def demo(folder: Path | None, model: str | None, out: Path, sheet: Path | None) -> None:
    """Embed the images of FOLDER, or samples drawn here, and show the nearest neighbours of one; works offline."""
    from mixsiam_hub import ImageEncoder, commands
    from mixsiam_hub.sources import expand
    from mixsiam_hub.vectors import write_vectors

    encoder = ImageEncoder.from_pretrained(model)
    commands.make_folder(out)
    paths = expand([str(folder)]) if folder else commands.write_samples(out / "samples")
    vectors, bad = commands.embed_files(encoder, paths, model=model or "built-in")
    write_vectors(out / "vectors.npz", vectors)
    click.echo(f"{out / 'vectors.npz'}: {len(vectors.ids)} vectors of {encoder.dim}; {len(bad)} files skipped")
    if vectors.ids:
        _show([commands.neighbours_within(vectors, 0, 5)], sheet or out / "neighbours.png")


@main.command()
@click.argument("recipe")
@click.option("--data", help="Training images: a folder, Parquet files, or digits; DATA::train is a part of a split.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--resume", is_flag=True, help="Go on with the recipe's newest run, or with the one in run_dir.")
@click.option("--preview", is_flag=True, help="Only draw x1, x2 and x_m of eight images, into preview.png.")
def train(recipe: str, data: str | None, overrides: Sequence[str], resume: bool, preview: bool) -> None:
    """Pretrain an encoder as RECIPE says: a TOML file, or the name of a shipped one, such as digits or folder."""
    with _extra("train"):
        from mixsiam_hub.training import loop
        from mixsiam_hub.training import preview as sheet
        from mixsiam_hub.training.config import load_recipe
    _log_to_stderr()
    chosen = load_recipe(recipe, [*overrides, *([f"data={json.dumps(data)}"] if data else [])])
    if preview:
        click.echo(f"{sheet.preview(chosen, Path('preview.png'))}: views and mixtures of eight images")
        return
    outcome = loop.train(chosen, resume=resume)
    click.echo(f"{outcome.run}: {outcome.verdict}{'' if outcome.finished else ', stopped early'}")
    if outcome.verdict == "collapsed":
        sys.exit(EXIT_COLLAPSED)


@main.command()
@click.argument("model", required=False)
@click.option("--train", "train_data", required=True, help="Labelled images: a Parquet set, or a folder a class.")
@click.option("--test", "test_data", required=True, help="Labelled images to classify; nothing is tuned on them.")
@click.option("--out", type=_PATH, help="Folder of report.json and report.png. Default: the run, or here.")
def evaluate(model: str | None, train_data: str, test_data: str, out: Path | None) -> None:
    """Measure MODEL, a run or a model folder: kNN and linear probe, beside raw pixels and random weights."""
    with _extra("train"):
        from mixsiam_hub.training.evaluate import evaluate as run_evaluation
    result = run_evaluation(model or "", train_data, test_data, out)
    click.echo(f"{result['test']}: {result['n_test']} images, {result['n_train']} for training, accuracy in %")
    click.echo(f"{'':<16}{'kNN, k = 20':>14}{'kNN, k = 200':>14}{'linear probe':>14}")
    for name, scores in result["rows"].items():
        click.echo(f"{name:<16}" + "".join(f"{100 * scores[m]:>14.1f}" for m in ("knn20", "knn200", "linear")))
    if not result["clears_raw_pixels"]:
        click.echo("undertrained: kNN (k = 20) is less than 5 points above raw pixels; draw no comparison from it")


@main.command()
@click.argument("run")
@click.argument("folder", type=_PATH)
@click.option("--license", "license_id", required=True, help="SPDX identifier of the weights' licence.")
@click.option("--calibration", metavar="DATA", help="Images, 200 at least, for an int8 graph beside the others.")
@click.option("--force", is_flag=True, help="Write a smaller graph even if its vectors are off by more than allowed.")
@click.option("--compact", is_flag=True, help="Half the size, for shipping inside a package; torch and onnx only.")
def export(run: str, folder: Path, license_id: str, calibration: str | None, force: bool, compact: bool) -> None:
    """Turn RUN into FOLDER, one model folder that every runtime loads, and verify it before it is there.

    RUN may also be a model folder or a Hub id: it is exported again, with an int8 graph, say, or without --compact.
    """
    with _extra("export"):
        from mixsiam_hub.export.bundle import check_request, export_folder
        from mixsiam_hub.export.source import open_encoder
        from mixsiam_hub.export.variants import open_calibration
    check_request(folder, license_id, compact=compact, calibrated=calibration is not None)
    encoder = open_encoder(run)
    images = open_calibration(calibration, encoder.config.preprocessing) if calibration else None
    manifest = export_folder(encoder, folder, license_id, compact=compact, calibration=images, force=force)
    click.echo(f"{folder}: verified, fingerprint {manifest.fingerprint}")
    for name, figures in manifest.parity.get("variants", {}).items():
        state = ", left out: some activations exceed what fp16 holds" if "left_out" in figures else ""
        click.echo(
            f"{name}{state}: {figures['bytes'] / 1e6:.1f} MB, cosine to fp32 {figures['mean_cosine']:.6f} in the mean, "
            f"{figures['min_cosine']:.6f} at least, on {figures['images']} images ({figures['data']})"
        )


@main.command("import")
@click.argument("checkpoint", type=_PATH)
@click.argument("folder", type=_PATH)
@click.option("--from", "source", required=True, help="simsiam, lightly, solo-learn, torchvision or timm.")
@click.option("--license", "license_id", required=True, help="SPDX identifier of the weights' licence.")
@click.option(
    "--weights", metavar="NAME", help="Of torchvision, as in ResNet18_Weights.IMAGENET1K_V1; says the preprocessing."
)
@click.option("--input-size", type=int, metavar="PX", help="Edge of the square that the network takes.")
@click.option("--crop-pct", type=float, help="Share of the resized short edge that the crop keeps.")
@click.option("--interpolation", help="bilinear, bicubic, lanczos, box, hamming or nearest.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Subtracted from values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Divided by after that.")
@click.option("--base-model", metavar="ORG/NAME", help="The checkpoint's own repository on the Hub, for the card.")
def import_(
    checkpoint: Path, folder: Path, source: str, license_id: str, base_model: str | None, **preprocessing: Any
) -> None:
    """Turn CHECKPOINT, a ResNet-18, 34 or 50 that another project trained, into FOLDER, and verify it.

    The preprocessing is known where CHECKPOINT is a folder that timm saved; else say --weights, or all that follow it.
    """
    with _extra("export"):
        from mixsiam_hub.export.bundle import export_folder
        from mixsiam_hub.export.import_preprocessing import Given
        from mixsiam_hub.export.importers import import_encoder
    encoder = import_encoder(checkpoint, source, Given(**preprocessing), base_model)
    click.echo(f"dropped, as heads of {source}: {', '.join(encoder.provenance['dropped']) or 'nothing'}")
    manifest = export_folder(encoder, folder, license_id)
    click.echo(f"{folder}: verified, fingerprint {manifest.fingerprint}")


@main.command()
@click.argument("folder", type=_PATH)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--revision", metavar="BRANCH", help="Commit there; made from main if need be. Default: main.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--tag", metavar="T", help="Give the commit this tag once it has been pulled back and checked.")
@click.option("--message", metavar="M", help="The commit's. Default: the encoder's fingerprint.")
@click.option("--dry-run", is_flag=True, help="Only check everything and show the plan.")
@click.option("--overwrite-card", is_flag=True, help="Replace a README.md that the repository has.")
def push(folder: Path, repo: str, message: str | None, dry_run: bool, **where: Any) -> None:
    """Push FOLDER to the Hub in one commit, pull it back, and replay its known answers."""
    with _extra("export"):
        from mixsiam_hub.export import push as pushing
    plan = pushing.plan_push(folder, repo, **where)
    click.echo(plan.describe())
    if dry_run:
        return
    done = pushing.push(plan, message)
    state = "" if done.is_new else "there already, no commit made; "
    click.echo(f"commit {done.commit}: {state}pulled back, its known answers replayed")
    if done.pull_request:
        click.echo(f"pull request {done.pull_request}")
    click.echo(f'load it: ImageEncoder.from_pretrained("{repo}", revision="{done.commit}")')


def _show(rows: Sequence[Neighbours], sheet: Path | None) -> None:
    from mixsiam_hub.commands import write_sheet

    for row in rows:
        click.echo(row.query)
        for file, cosine in row.found:
            click.echo(f"  {cosine:>6.3f}  {file}")
    if sheet:
        write_sheet(sheet, rows)
        click.echo(f"{sheet}: contact sheet")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Names the pip command where a command's optional dependency is absent."""
    try:
        yield
    except MixsiamError:
        raise
    except ImportError as error:
        missing_extra(error.name or name, name)


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
