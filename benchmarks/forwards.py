"""What a step could gain by one pass of all three views at once, or by torch.compile: forward and backward alone.

One pass of all gives each BatchNorm the statistics of all views together, which is not the method: it is the bound of
what a pass with the statistics of each could reach.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from machine import command_and_machine

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.convolution import use_matmul
from mixsiam_hub.training.machine import memory_format, pick_precision
from mixsiam_hub.training.recipe import load_recipe
from mixsiam_hub.training.step import make_model

CPU = torch.device("cpu")


def network(precision: str) -> Backbone:
    """Returns a backbone as a step trains it."""
    backbone = make_model(load_recipe("tiny-imagenet")).backbone.train()
    backbone.to(memory_format=memory_format(precision, CPU))
    if precision == "bf16":
        use_matmul(backbone)
    return backbone


def rates(precision: str, batch: int, size_px: int, rounds: int) -> dict[str, float]:
    """Returns the images/s of each way, medians of rounds that take turns."""
    views = [torch.randn(batch, 3, size_px, size_px) for _ in range(3)]
    layout = memory_format(precision, CPU)
    views = [view.contiguous(memory_format=layout) for view in views]
    plain, compiled = network(precision), torch.compile(network(precision))

    def passes(forward: Callable[[torch.Tensor], torch.Tensor], inputs: Sequence[torch.Tensor]) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outs = [forward(x) for x in inputs]
        torch.autograd.backward(sum((out.float().square().mean() for out in outs), start=torch.zeros(())))
        return time.perf_counter() - start

    ways = {
        "three passes": lambda: passes(plain, views),
        "one of all views": lambda: passes(plain, [torch.cat(views).contiguous(memory_format=layout)]),
        "three, compiled": lambda: passes(compiled, views),
    }
    seconds = {name: [way() for _ in range(2)][2:] for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: batch / statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=48, help="of the views, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{command_and_machine()}\n\n| precision, batch | three passes | one of all views | three, compiled |")
    print("|---|---|---|---|")
    for precision in dict.fromkeys(("fp32", pick_precision("auto", CPU))):
        for batch in (64, 256):
            found = rates(precision, batch, arguments.size, arguments.rounds)
            print(
                f"| {precision}, {batch} | " + " | ".join(f"{rate:.1f}" for rate in found.values()) + " |", flush=True
            )


if __name__ == "__main__":
    main()
