"""The images that keys name, to draw them: what embedding leaves behind are keys, not images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.images.kinds import ImageSource
from mixsiam_hub.images.sources import ImageSet, open_source


@dataclass
class KeyedImages:
    """Finds images by their keys; each Parquet file and tar is opened once."""

    _opened: dict[str, tuple[ImageSet, dict[str, int]]] = field(default_factory=dict)

    def source(self, key: str) -> ImageSource:
        """Returns what `load_image` takes of the image.

        Args:
            key: A path, `FILE.parquet#ROW` of a file whose images are in `image`, or `FILE.tar#NAME`. Where the image
                is gone, loading what is returned says so.
        """
        shard = re.match(r"(.+?(\.parquet|\.tar))#(.+)", key, re.DOTALL)
        if shard is None:
            return key
        try:
            if shard[1] not in self._opened:
                images = open_source(shard[1])
                self._opened[shard[1]] = images, {images[place].key: place for place in self._places(images, shard[2])}
            images, places = self._opened[shard[1]]
            return images[places[key] if places else int(shard[3])].source
        except (MixsiamError, LookupError, ValueError):
            return b""

    @staticmethod
    def _places(images: ImageSet, suffix: str) -> range:
        """Returns the places whose keys must be looked at: those of tars, whose keys are names."""
        return range(len(images) if suffix == ".tar" else 0)
