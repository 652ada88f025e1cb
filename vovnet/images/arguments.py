"""What a user may name as images: files, folders, patterns, videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vovnet.errors import InputError
from vovnet.folders.home import expand_home
from vovnet.images.folder import list_images
from vovnet.images.video import is_video


def image_arguments(
    given: Sequence[str], report: Callable[[str], object] | None = None
) -> tuple[list[Path], list[str]]:
    """Return the image files, and the videos, that arguments name.

    Args:
        given: image files; folders, of which all images are taken; patterns such as ``photos/**/*.jpg``, for shells
            that do not expand them; and what :func:`vovnet.images.video.is_video` takes.
        report: as for :func:`vovnet.images.folder.list_images`.

    Raises:
        InputError: a folder has no images, or no file matches a pattern.
    """
    images: list[Path] = []
    videos: list[str] = []
    for text in given:
        path = expand_home(text)
        if is_video(text) and not path.is_dir():
            videos.append(text)
        elif path.is_dir():
            images += list_images(path, report)
        elif glob.has_magic(text) and not os.path.lexists(path):
            found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
            files = [one for one in found if not one.is_dir()]
            if not files:
                raise InputError(f"{text}: no file matches this pattern")
            videos += [str(one) for one in files if is_video(one)]
            images += [one for one in files if not is_video(one)]
        else:
            images.append(path)
    return images, videos
