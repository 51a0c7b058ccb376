"""Commands about model folders: info, verify, export, import, push."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mixsiam_hub.cli.group import PATH, extra, main, printable


@main.command()
@click.argument("model", required=False)
def info(model: str | None) -> None:
    """Print what MODEL says about itself; without MODEL, the built-in encoder."""
    from mixsiam_hub.model.facts import facts_of
    from mixsiam_hub.model.hub import resolve

    facts = facts_of(resolve(model))
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


@main.command()
@click.argument("model", required=False)
@click.option("--accept-forced", is_flag=True, help="Let a graph pass that fails its bar, if export was forced so.")
def verify(model: str | None, accept_forced: bool) -> None:
    """Check every file of MODEL and replay its known answers by each of its graphs, and by torch where installed."""
    from mixsiam_hub.model.known_answers import verify_folder

    verified = verify_folder(model, accept_forced=accept_forced)
    click.echo(f"{verified.files} files have the sha256 that mixsiam.json lists; fingerprint and preprocessing agree")
    for check in (*verified.vectors, *filter(None, [verified.pixels])):
        click.echo(str(check))


@main.command()
@click.argument("run")
@click.argument("folder", type=PATH)
@click.option("--license", "license_id", required=True, help="SPDX identifier of the weights' licence.")
@click.option("--calibration", metavar="DATA", help="Images, 200 at least, for an int8 graph beside the others.")
@click.option("--whiten", metavar="DATA", help="Images to fit the head on, in place of the one there is.")
@click.option("--report", type=PATH, metavar="DIR", help="Folder of `mixsiam evaluate`'s report, for the card.")
@click.option("--force", is_flag=True, help="Write a smaller graph even if its vectors are off by more than allowed.")
@click.option("--compact", is_flag=True, help="Half the size, for shipping inside a package; torch and onnx only.")
def export(
    run: str,
    folder: Path,
    license_id: str,
    calibration: str | None,
    whiten: str | None,
    report: Path | None,
    force: bool,
    compact: bool,
) -> None:
    """Turn RUN into FOLDER, one model folder that every runtime loads, and verify it before it is there.

    RUN may also be a model folder, a Hub id or `builtin`: it is exported again, with an int8 graph, say, or with a head
    that is fitted on your own images.
    """
    with extra("export"):
        from mixsiam_hub.export.bundle import check_request, export_folder
        from mixsiam_hub.export.source import open_encoder, with_report
        from mixsiam_hub.export.variants import open_calibration
        from mixsiam_hub.training.checkpoint import whiten_on
    check_request(folder, license_id, compact=compact, calibrated=calibration is not None)
    encoder = open_encoder(run)
    if whiten:
        encoder = whiten_on(encoder, whiten)
    if report:
        encoder = with_report(encoder, report)
    images = open_calibration(calibration, encoder.config.preprocessing) if calibration else None
    manifest = export_folder(encoder, folder, license_id, compact=compact, calibration=images, force=force)
    click.echo(f"{folder}: verified, fingerprint {manifest.fingerprint}")
    for precision, variant in (manifest.parity.variants if manifest.parity else {}).items():
        state = ", left out: some activations exceed what fp16 holds" if variant.left_out else ""
        fidelity = variant.fidelity
        click.echo(
            f"{precision}{state}: {variant.bytes / 1e6:.1f} MB, cosine to fp32 {fidelity.mean_cosine:.6f} in the mean, "
            f"{fidelity.min_cosine:.6f} at least, on {fidelity.images} images ({variant.data})"
        )


@main.command("import")
@click.argument("checkpoint", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--from", "source", required=True, help="simsiam, lightly, solo-learn, torchvision or timm.")
@click.option("--license", "license_id", required=True, help="SPDX identifier of the weights' licence.")
@click.option(
    "--weights", metavar="NAME", help="Of torchvision, as in ResNet18_Weights.IMAGENET1K_V1; says the preprocessing."
)
@click.option("--input-size", type=int, metavar="PX", help="Edge of the square that the network takes.")
@click.option("--crop-pct", type=float, help="Share of the resized short edge that the crop keeps.")
@click.option("--interpolation", help="bilinear, bicubic or lanczos.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Subtracted from values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Divided by after that.")
@click.option("--base-model", metavar="ORG/NAME", help="The checkpoint's own repository on the Hub, for the card.")
def import_(
    checkpoint: Path, folder: Path, source: str, license_id: str, base_model: str | None, **preprocessing: Any
) -> None:
    """Turn CHECKPOINT, a ResNet-18, 34 or 50 that another project trained, into FOLDER, and verify it.

    The preprocessing is known where CHECKPOINT is a folder that timm saved; else say --weights, or all that follow it.
    """
    with extra("export"):
        from mixsiam_hub.export.bundle import check_request, export_folder
        from mixsiam_hub.export.import_preprocessing import Given
        from mixsiam_hub.export.importers import import_encoder
    check_request(folder, license_id)
    encoder = import_encoder(checkpoint, source, Given(**preprocessing), base_model)
    click.echo(printable(f"unwrapped: {'; '.join(encoder.provenance['unwrapped']) or 'nothing'}"))
    click.echo(printable(f"dropped, as heads of {source}: {', '.join(encoder.provenance['dropped']) or 'nothing'}"))
    manifest = export_folder(encoder, folder, license_id)
    click.echo(f"{folder}: verified, fingerprint {manifest.fingerprint}")


@main.command()
@click.argument("folder", type=PATH)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--revision", metavar="BRANCH", help="Commit there; made from main if need be. Default: main.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--tag", metavar="T", help="Give the commit this tag once it has been pulled back and checked.")
@click.option("--message", metavar="M", help="The commit's. Default: the encoder's fingerprint.")
@click.option("--dry-run", is_flag=True, help="Only check everything and show the plan.")
@click.option("--overwrite-card", is_flag=True, help="Replace a README.md that was edited on the Hub.")
def push(folder: Path, repo: str, message: str | None, dry_run: bool, **where: Any) -> None:
    """Push FOLDER to the Hub in one commit, pull it back, and replay its known answers."""
    with extra("export"):
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
