"""What a caller may change of a detector for one run, without writing into its ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

from vovnet.errors import InputError, shown
from vovnet.results.merging import MergeRule
from vovnet.results.tiling import Tiling

_LARGEST = 1_000_000


class RunOptions(TypedDict, total=False):
    """Options of one run of a detector; None, as if it were absent, leaves what the detector has."""

    size: int | None
    """An image is resized so that its short side has this many pixels, …"""
    max_size: int | None
    """… but its long side at most this many. With ``size`` alone it grows in proportion."""
    max_detections: int | None
    """The largest number of detections of an image, or of a tile. A two-stage detector looks at proposals in
    proportion."""
    score: float | None
    """Detections with this score or less are dropped, from 0 to 1."""
    nms: float | None
    """Detections of a class with a higher IoU are one, from 0 to 1."""
    tile: int | None
    """Images are cut into tiles with sides of this many pixels."""
    overlap: float
    """Share of a tile's side that it has in common with the next one; 0.2."""
    tile_full_image: bool
    """True detects in the whole image, too, for objects larger than the overlap."""
    merge: MergeRule
    """The rule of :mod:`vovnet.results.merging` for objects in several tiles; ``auto``."""


@dataclass(frozen=True)
class RunSettings:
    """Checked :class:`RunOptions`.

    Raises:
        InputError: a value is out of its bounds; the message begins with its name.
    """

    size: int | None = None
    max_size: int | None = None
    max_detections: int | None = None
    score: float | None = None
    nms: float | None = None
    tile: int | None = None
    overlap: float = 0.2
    tile_full_image: bool = False
    merge: MergeRule = "auto"

    def __post_init__(self) -> None:
        for name in ("size", "max_size", "max_detections"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= _LARGEST):
                raise InputError(f"{name}: expected a whole number from 1 to {_LARGEST}, got {shown(value)}")
        for name in ("score", "nms"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 <= value <= 1):
                raise InputError(f"{name}: expected a number from 0 to 1, got {shown(value)}")
        if self.size is not None and self.max_size is not None and self.max_size < self.size:
            raise InputError(f"max_size: expected at least size, {self.size}, got {self.max_size}")
        if self.tile is None and (self.overlap != 0.2 or self.tile_full_image or self.merge != "auto"):
            raise InputError("tile: expected a number of pixels with overlap, tile_full_image or merge, got none")
        self.tiling  # noqa: B018 (checks its own values)

    def check_exported(self) -> None:
        """Refuse options that an exported file has built in.

        Raises:
            InputError: one is given.
        """
        if names := self.of_detector:
            raise InputError(
                f"{names[0]}: an exported file has its sizes and thresholds built in; export the detector with others, "
                "or give the detector's folder"
            )

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut; None leaves them whole."""
        return None if self.tile is None else Tiling(self.tile, self.overlap, self.tile_full_image, self.merge)

    @property
    def arguments(self) -> list[str]:
        """Return these settings as options of the command line, without those that have their default."""
        found: list[str] = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default:
                found += [f"--{one.name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return found

    @property
    def of_detector(self) -> list[str]:
        """Return the names of the options that change the detector."""
        return [name for name in _OF_DETECTOR if getattr(self, name) is not None]


_OF_DETECTOR = ("size", "max_size", "max_detections", "score", "nms")
