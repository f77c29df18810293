"""Decode every image below a folder once, to find damaged images before a run does."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from largebatch._cores import usable_cores
from largebatch._errors import UserError
from largebatch.data.decode import Photograph, UnreadableImage
from largebatch.data.files import printable
from largebatch.data.scan import find_images

_AHEAD = 64


def check_images(
    root: Path | str, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Decode every image file below a folder, on all cores.

    Args:
        root: the folder.
        progress: called with (files checked, files in all) after each file.

    Yields:
        (path, reason why the image cannot be read, or None), in the order of the paths.

    Raises:
        UserError: the folder is absent or holds no image file.
    """
    if not Path(root).is_dir():
        raise UserError(f"--data {str(root)!r}: no such folder")
    paths = find_images(root)
    if not paths:
        raise UserError(f"--data {str(root)!r}: no image file in it")
    with ThreadPoolExecutor(usable_cores()) as pool:
        remaining = iter(paths)
        # A few files ahead of the caller, in order; the decoders run without Python's lock.
        waiting: deque[tuple[str, Future[str | None]]] = deque(
            (path, pool.submit(_reason, path)) for path in islice(remaining, _AHEAD)
        )
        for number in range(len(paths)):
            path, result = waiting.popleft()
            following = next(remaining, None)
            if following is not None:
                waiting.append((following, pool.submit(_reason, following)))
            reason = result.result()
            if progress is not None:
                progress(number + 1, len(paths))
            yield path, reason


def report_images(root: Path | str) -> int:
    """Print the unreadable images below a folder; return 0 if there are none, else 1.

    Raises:
        UserError: the folder is absent or holds no image file.
    """
    count = bad = 0
    for path, reason in check_images(root):
        count += 1
        if reason is not None:
            bad += 1
            line = printable(f"{path}: {reason}")
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding))
    print(f"{count} images checked, {bad} unreadable")
    return 1 if bad else 0


def _reason(path: str) -> str | None:
    """Decode a file at full size; return why that fails, in one line, or None."""
    try:
        image = Photograph.read(path)
        image.pixels((0, 0, image.height, image.width))
    except UnreadableImage as error:
        return str(error)
    return None
