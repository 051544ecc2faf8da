"""Pages as zstd frames: one frame for each page, no dictionary, nothing after it.

python-zstandard is loaded when the first such page is met or written: most processes meet none.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Protocol

from pyrep.errors import LTXError

__all__ = ["DEFAULT_LEVEL", "LEVELS", "ZstdPages"]

DEFAULT_LEVEL = 3
LEVELS = range(1, 23)
_LEAST_WINDOW = 1024  # bytes; a frame may name this much for a smaller page


class _Compressor(Protocol):
    def compress(self, data: bytes) -> bytes: ...


@functools.cache
def _library() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise LTXError(
            f"zstd pages need python-zstandard: {error}",
            op="zstd",
            hint="Install the package zstandard beside pyrep.",
        ) from error
    return zstandard


class ZstdPages:
    """Compress and decompress pages of ``page_size`` bytes; used by one thread at a time.

    :raises LTXError: python-zstandard is missing
    """

    def __init__(self, page_size: int, level: int = DEFAULT_LEVEL) -> None:
        self._zstd = _library()
        self._page_size = page_size
        self._level = level
        self._decompressor = self._zstd.ZstdDecompressor()
        self._compressor: _Compressor | None = None

    def compress(self, page: bytes) -> bytes:
        """Return the frame of a page."""
        if self._compressor is None:
            # Made for the size of a page: the tables for large inputs would take megabytes.
            parameters = self._zstd.ZstdCompressionParameters.from_level(
                self._level, source_size=self._page_size, write_content_size=1
            )
            self._compressor = self._zstd.ZstdCompressor(compression_params=parameters)
        return self._compressor.compress(page)

    def decompress(self, frame: bytes) -> bytes:
        """Return the page that a frame holds.

        What the frame says of itself is checked first, so it cannot ask for more memory than a
        page needs.

        :raises ValueError: it is no frame of exactly one page, or needs a dictionary
        """
        try:
            head = self._zstd.get_frame_parameters(frame)
            if head.content_size != self._page_size:
                raise ValueError("its content is not one page")
            if head.window_size > max(self._page_size, _LEAST_WINDOW):
                raise ValueError(f"it wants a window of {head.window_size} bytes")
            if head.dict_id:
                raise ValueError("it needs a dictionary")
            page: bytes = self._decompressor.decompress(frame, allow_extra_data=False)
        except self._zstd.ZstdError as error:
            raise ValueError(str(error)) from error
        if len(page) != self._page_size:
            raise ValueError("its content is not one page")
        return page
