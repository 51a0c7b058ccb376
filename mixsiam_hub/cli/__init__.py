"""The command line: each command reads its options, calls the library and prints."""

from mixsiam_hub.cli import embedding, models, training, vectors
from mixsiam_hub.cli.group import main

__all__ = ["embedding", "main", "models", "training", "vectors"]
