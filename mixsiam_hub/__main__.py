"""`python -m mixsiam_hub` is `mixsiam`."""

from mixsiam_hub.cli import main

main(prog_name="mixsiam")
