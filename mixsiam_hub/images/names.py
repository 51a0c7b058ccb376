"""Many names in little memory: a string of its own for each of ten million files takes gigabytes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Names:
    """Names in a fixed order, 8 bytes each and what they are long.

    Attributes:
        joined: All of them behind one another, as the file system encodes them.
        ends: (n,) int64: where each one ends in `joined`.
    """

    joined: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Takes names as they come; no more than one is held as a string."""
        joined, ends = bytearray(), array("q")
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        return cls(bytes(joined), np.array(ends, np.int64))

    @classmethod
    def joined_of(cls, parts: Sequence[Names]) -> Names:
        """Returns the names of all parts, one part behind the other."""
        starts = np.cumsum([0, *(len(part.joined) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]  # No part begins at the last.
        return cls(b"".join(part.joined for part in parts), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        return os.fsdecode(self.joined[self.ends[index - 1] if index else 0 : self.ends[index]])
