"""Several processes, started by torchrun, train one run together: by gloo, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

from encoding import encoded, tar
from PIL import Image
from small_run import OVERRIDES

from mixsiam_hub.cli.group import EXIT_COLLAPSED, EXIT_RESUME
from mixsiam_hub.errors import RecipeError
from mixsiam_hub.training import loop
from mixsiam_hub.training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from mixsiam_hub.training.data import Digits
from mixsiam_hub.training.loop import _check_fit
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.processes import Processes
from mixsiam_hub.training.recipe import load_recipe

CHANGES = ["workers=0", "precision=fp32", "stop_after=0", "lr=0.003"]
ENDED = {0, EXIT_COLLAPSED}
"""A few steps on 179 digits teach nothing: whether the encoder is good is not asked here."""
EVAL_MODE = """
import sys
from torch import nn
from mixsiam_hub.training import loop, model

model.MixSiam.train = lambda self, mode=True: nn.Module.train(self, False)
loop.SYNC_STEPS = 1
loop.verdict = lambda now, initial: None if now.z_std is None else "healthy"
look = loop._Trainer._look

def show(trainer, is_told=False):
    before = trainer.progress.sums.get("loss", 0.0)
    told = look(trainer, is_told)
    if trainer.processes.is_first:
        print("LOSS", trainer.progress.sums["loss"] - before, flush=True)
    return told

loop._Trainer._look = show
from mixsiam_hub.cli import main
main(["train", *sys.argv[1:]])
"""


def command(run: Path, *more: str, processes: int = 2, script: Path | None = None) -> list[str]:
    """The command line of one run, by torchrun where there are several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start += [str(script)] if script else ["-m", "mixsiam_hub.training"]
    settings = [word for pair in [*OVERRIDES, *CHANGES, f"run_dir={run}", *more] for word in ("--set", pair)]
    return [*start, "digits", *settings]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    done = finish(command(run))
    assert done.returncode in ENDED, done.stderr
    assert done.stdout.count(str(run)) == 1  # One process speaks for both.
    return run


@pytest.mark.slow
def test_two_processes_write_one_run(run_of_two: Path) -> None:
    lines = [json.loads(line) for line in (run_of_two / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert lines[0]["run"]["processes"] == 2
    assert all(line["skipped"] == 0 for line in lines[1:])
    assert read_checkpoint(run_of_two)["step"] == 8
    assert read_checkpoint(run_of_two)["statistics"]


@pytest.mark.slow
def test_two_processes_read_tars_by_address(tmp_path: Path) -> None:
    digits = Digits()
    for number in range(3):
        members = {f"{i}.png": encoded(Image.fromarray(digits[i].source)) for i in range(60 * number, 60 * number + 60)}
        (tmp_path / f"{number}.tar").write_bytes(tar(members))
    run = tmp_path / "run"
    done = finish(command(run, f"data='file://{tmp_path}/*.tar'", "val_data=''", "workers=1"))
    assert done.returncode in ENDED, done.stderr
    state = read_checkpoint(run)
    assert (state["step"], state["lanes"]) == (8, (2, 1))
    assert not state["unreadable"]


def test_losses_equal_those_of_a_single_process(tmp_path: Path) -> None:
    """With BatchNorm in eval mode only the gradients' average, the coding rate and the centre join a step's images."""
    script = tmp_path / "script.py"
    script.write_text(EVAL_MODE)
    losses = []
    for processes in (1, 2):
        run = tmp_path / f"of-{processes}"
        done = finish(command(run, "coding_rate=0.5", "target=max-centred", processes=processes, script=script))
        assert done.returncode in ENDED, done.stderr
        losses.append([float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("LOSS")])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[0][0] != pytest.approx(losses[0][7], abs=1e-3)  # They do change.


def test_every_image_is_seen_once_an_epoch() -> None:
    parts = [Order(23, 6, 2, 0, rank=rank, processes=3) for rank in range(3)]
    together = [list(chain(*batches)) for batches in zip(*parts, strict=True)]
    assert together == list(Order(23, 6, 2, 0))
    first_epoch = [position for batch in together[:3] for _, position in batch]
    assert len(set(first_epoch)) == len(first_epoch) == 18


def started(words: list[str], run: Path, step: int) -> subprocess.Popen[bytes]:
    """Starts a run that writes a checkpoint whenever it may, and waits for one of at least this step."""
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (run / CHECKPOINT_FILE).is_file() and read_checkpoint(run)["step"] >= step:
            return process
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"{run} has no checkpoint of step {step}")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_sigterm_leaves_a_checkpoint_that_another_number_of_processes_goes_on_from(
    tmp_path: Path, before: int, after: int
) -> None:
    run = tmp_path / "run"
    changes = ["epochs=8", "checkpoint_minutes=1e-9"]
    process = started(command(run, *changes, processes=before), run, 1)
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    assert code == EXIT_RESUME if before == 1 else code != 0  # torchrun has a code of its own.
    step = read_checkpoint(run)["step"]
    assert 0 < step < 32
    done = finish([*command(run, *changes, processes=after), "--resume"])
    assert done.returncode in ENDED, done.stderr
    assert read_checkpoint(run)["step"] == 32
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(9))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(command(run, "epochs=400", "checkpoint_minutes=1e-9"), run, 4)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert process.wait(120) != 0
    assert read_checkpoint(run)["step"] >= 4


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    recipe = load_recipe("digits", ["batch_size=44"])
    with pytest.raises(RecipeError, match=r"batch_size is 44, of all processes together; .* multiple of .* 3"):
        _check_fit(recipe, Processes(0, 3))
    with pytest.raises(RecipeError, match="batch_size is 44, of all 44 processes together; each needs two images"):
        _check_fit(recipe, Processes(0, 44))
    _check_fit(recipe, Processes(0, 22))


def test_sync_batchnorm_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "pick_device", lambda: torch.device("cpu"))
    with pytest.raises(RecipeError, match="sync_batchnorm needs GPUs"):
        _check_fit(load_recipe("digits", ["sync_batchnorm=true"]), Processes())
