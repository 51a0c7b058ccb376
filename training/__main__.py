"""`torchrun ... -m mixsiam_hub.training RECIPE` is `mixsiam train RECIPE`, in every process that torchrun starts."""

import sys

from mixsiam_hub.cli import main

main(["train", *sys.argv[1:]], prog_name="mixsiam")
