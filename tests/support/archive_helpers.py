"""An archive that a test writes piece by piece, and contents for it."""

from __future__ import annotations

import gzip
import random
from typing import TYPE_CHECKING

from support.helpers import LSN, TIMELINE

from bbcache.archive.format import HEADER_SIZE_BYTES
from bbcache.archive.writer import ArchiveWriter
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from collections.abc import Callable

TAR = make_tarball(TIMELINE, LSN)
RANDOM = random.Random(7).randbytes(3 << 20)


class Made:
    """A writer, and what it has emitted."""

    def __init__(self, level: int = 2, emit: Callable[[bytes], None] | None = None) -> None:
        self.emitted: list[bytes] = []
        self.writer = ArchiveWriter(emit or self.emitted.append, level)

    def content(self) -> bytes:
        """All that was emitted."""
        return b"".join(self.emitted)

    def finish(self) -> bytes:
        """End the archive and unpack it."""
        seal = self.writer.finish()
        content = self.content()
        assert seal.body_bytes == len(content) - HEADER_SIZE_BYTES
        tar = gzip.decompress(content)
        assert seal.tar_bytes == len(tar)
        return tar
