"""The images that keys name, to draw them: what embedding leaves behind are keys, not images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.images.finding import TAR_SUFFIX
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
        file, suffix, inner = shard.groups()
        try:
            if file not in self._opened:
                images = open_source(file)
                is_tar = suffix == TAR_SUFFIX  # There keys are names; in Parquet the key itself says the place.
                places = {images[place].key: place for place in range(len(images))} if is_tar else {}
                self._opened[file] = images, places
            images, places = self._opened[file]
            return images[places[key] if suffix == TAR_SUFFIX else int(inner)].source
        except (MixsiamError, LookupError, ValueError):
            return b""
