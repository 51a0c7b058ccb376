"""From a training run to one verified model folder: needs the extra `export`."""
