"""preprocess.onnx in onnxruntime, and how far it is from our own preprocessing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.backends.graph import Graph
from mixsiam_hub.backends.signature import INPUT, preprocess_signature
from mixsiam_hub.images.preprocess import resize_and_crop
from mixsiam_hub.model.files import PREPROCESS_FILE
from mixsiam_hub.model.folder import ModelFolder

SIZES = ((1, 1), (2, 7), (31, 33), (97, 101), (301, 97), (225, 640), (641, 479), (1001, 1500))
"""(height, width) of the images that the graph is tried on; of the fifth, Pillow shrinks the height first."""


class PreprocessGraph:
    """A folder's preprocess.onnx, on the CPU."""

    def __init__(self, folder: ModelFolder, threads: int) -> None:
        """Opens it.

        Args:
            folder: A full folder.
            threads: CPU threads that one call uses.

        Raises:
            ModelError: The file is missing, was changed, is no graph, or takes or gives something else.
        """
        self._pre = folder.config.preprocessing
        self._graph = Graph(folder, PREPROCESS_FILE, preprocess_signature(folder.config), "cpu", threads)

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the network's input, (1, 3, S, S) float32 normalised, for an upright RGB image, (H, W, 3).

        Raises:
            ModelError: The graph cannot be run, or gives something else.
        """
        return self._graph.run(INPUT, image[None])

    def levels_off(self) -> tuple[int, float]:
        """Compares it with our own preprocessing on noise, the hardest picture for rounding, of every one of SIZES.

        Returns:
            The largest difference in grey levels, and the share of values that differ at all.
        """
        pre = self._pre
        rng = np.random.default_rng(0)
        differences = []
        for height, width in SIZES:
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            expected = resize_and_crop(Image.fromarray(image), pre).astype(np.int64)
            pixel_values = self.run(image)[0].transpose(1, 2, 0)  # (S, S, 3)
            got = np.rint((pixel_values * np.array(pre.std) + np.array(pre.mean)) * 255)
            differences.append(np.nan_to_num(np.abs(got - expected), nan=255, posinf=255).ravel())
        all_differences = np.concatenate(differences)
        return int(all_differences.max()), float((all_differences > 0).mean())
