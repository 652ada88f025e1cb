"""Samples that are made of several: mosaics, and objects that are copied from one image into another.

Both put together samples that have been through the transforms. All random numbers are torch's, so that the seed of a
sample decides them, as it does everything else that is random in :class:`TransformedDataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.protocol import DetectionDataset, Target
from vovnet.detection.data.sampler import BatchStream
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.transforms import TransformedDataset
from vovnet.detection.data.windows import PER_OBJECT, moved, per_object, refitted
from vovnet.errors import InputError

FILL = 114
"""Grey (of 255) where no image of a mosaic lies, as in YOLO's mosaics."""
_MIXED = {"boxes", "labels", "masks", "area", "iscrowd", "image_id"}
"""Keys of targets that can be mixed."""

MixKey = tuple[int, int, bool]
"""An image's index, the seed of the sample, and whether it may become a mosaic."""


def mixes(data: DataRecipe) -> bool:
    """Return True if a recipe makes samples of several images."""
    return data.mosaic > 0 or data.copy_paste > 0


class MixedDataset(TransformedDataset):
    """Transformed samples, some of them made of several by ``data.mosaic`` and ``data.copy_paste``.

    ``mixed[index, seed, may_be_mosaic]`` has the probabilities of the recipe; its image id, and the size of its image,
    are those of sample ``index``.
    """

    def __init__(
        self, dataset: DetectionDataset, transforms: Callable[..., Any] | None, mosaic: float, copy_paste: float
    ) -> None:
        super().__init__(dataset, transforms)
        self.mosaic, self.copy_paste = mosaic, copy_paste
        self._may_be_mosaic = True

    def __getitem__(self, key: int | tuple[int, int] | MixKey) -> Sample:
        """Return a sample; without a third entry in the key, it may be a mosaic."""
        self._may_be_mosaic = key[2] if isinstance(key, tuple) and len(key) == 3 else True
        return super().__getitem__(key[:2] if isinstance(key, tuple) else key)

    def _sample(self, index: int) -> Sample:
        sample = self._checked(index)
        if self.mosaic and float(torch.rand(())) < self.mosaic and self._may_be_mosaic:
            sample = drawn_mosaic([sample, *(self._other() for _ in range(3))])
        if self.copy_paste and float(torch.rand(())) < self.copy_paste:
            source = self._other()
            sample = pasted(sample, source, torch.rand(len(source[1]["boxes"])) < 0.5)
        return sample

    def _other(self) -> Sample:
        return self._checked(int(torch.randint(len(self), ())))

    def _checked(self, index: int) -> Sample:
        image, target = super()._sample(index)
        unknown = sorted(target.keys() - _MIXED)
        if unknown:
            raise InputError(f"data.mosaic, data.copy_paste: they cannot mix {', '.join(unknown)}; set both to 0")
        if self.copy_paste and "masks" not in target:
            raise InputError(
                "data.copy_paste: objects are cut out by their masks, and the data has none here; set it to 0 or train "
                "a detector with masks (model.detector=mask_rcnn)"
            )
        return image, target


class ClosingStream(Sampler[list[MixKey]]):
    """The batches of a stream; from batch ``closes`` of this process on, no sample may be a mosaic.

    The detector then learns from images as they will be (arXiv:2107.08430 closes its mosaics for the last epochs).

    Args:
        stream: The batches.
        closes: A number of batches of this process, counted from the start of the training; None never closes.
    """

    def __init__(self, stream: BatchStream, closes: int | None) -> None:
        self.stream, self.closes = stream, closes

    def __iter__(self) -> Iterator[list[MixKey]]:
        for number, batch in enumerate(self.stream, start=self.stream.start):
            yield [(index, seed, self.closes is None or number < self.closes) for index, seed in batch]


def closing_stream(stream: BatchStream, data: DataRecipe, stop: int | None) -> Sampler[Any]:
    """Return a stream whose mosaics end ``data.mosaic_off`` of the training before its last batch, ``stop``."""
    return ClosingStream(stream, None if stop is None else round(stop * (1 - data.mosaic_off)))


def drawn_mosaic(samples: Sequence[Sample]) -> Sample:
    """Return a mosaic of four samples: its centre, and the part of each image in it, are drawn evenly.

    The mosaic is as large as the first image. Its centre lies in the middle half of both sides.
    """
    height, width = samples[0][0].shape[-2:]
    centre = _drawn(height // 4, height - height // 4), _drawn(width // 4, width - width // 4)
    corners = []
    for (image, _), (_, _, rows, columns) in zip(samples, _parts((height, width), centre), strict=True):
        corners.append((_drawn(0, image.shape[-2] - rows), _drawn(0, image.shape[-1] - columns)))
    return mosaic(samples, centre, corners)


def mosaic(samples: Sequence[Sample], centre: tuple[int, int], corners: Sequence[tuple[int, int]]) -> Sample:
    """Put windows of four images around a point; objects keep their size (YOLOv4's mosaic, arXiv:2004.10934).

    Args:
        samples: Four samples, for the parts at the upper left, upper right, lower left and lower right. The mosaic has
            the size of the first image.
        centre: Row and column, in pixels, where the parts meet.
        corners: Row and column of the upper left pixel of the window that is taken from each image.

    Returns:
        The mosaic. Where an image is smaller than its part, it touches the centre and the rest is grey. Objects are cut
        and left out by the rules of :func:`vovnet.detection.data.windows.moved`.
    """
    image = samples[0][0].as_subclass(Tensor)
    height, width = image.shape[-2:]
    grey = FILL if image.dtype == torch.uint8 else FILL / 255
    canvas = torch.full_like(image, grey)
    found: list[Target] = []
    parts = _parts((height, width), centre)
    for (pixels, target), (top, left, rows, columns), (y, x) in zip(samples, parts, corners, strict=True):
        window = pixels.as_subclass(Tensor)[:, y : y + rows, x : x + columns]
        shown = window.shape[-2], window.shape[-1]
        # What is too small for its part lies at the centre.
        to_y = top if top else rows - shown[0]
        to_x = left if left else columns - shown[1]
        canvas[:, to_y : to_y + shown[0], to_x : to_x + shown[1]] = functional.to_dtype(window, image.dtype, scale=True)
        found.append(moved(target, (y, x), (to_y, to_x), shown, (height, width)))
    return tv_tensors.Image(canvas), _joined(samples[0][1], found, (height, width))


def pasted(base: Sample, source: Sample, chosen: Tensor) -> Sample:
    """Copy objects of one sample into another ("Simple Copy-Paste", arXiv:2012.07177, without blending).

    Args:
        base: The image that is pasted into; the result has its size.
        source: The image of the objects, which keep their places; what lies outside of the base is cut off.
        chosen: (N,) of bool: which objects of the source are copied.

    Returns:
        The base with the objects. What they cover is removed from the masks of the base's objects, whose boxes then fit
        the rest; objects that are covered entirely are removed.
    """
    image, target = base
    height, width = image.shape[-2:]
    window = source[0].as_subclass(Tensor)[:, :height, :width]
    rows, columns = window.shape[-2:]
    picked = {key: tv_tensors.wrap(source[1][key][chosen], like=source[1][key]) for key in per_object(source[1])}
    objects = moved({**source[1], **picked}, (0, 0), (0, 0), (rows, columns), (height, width))
    if not len(objects["boxes"]):
        return base
    covered = objects["masks"].any(dim=0).bool()
    pixels = image.as_subclass(Tensor).clone()
    seen = covered[:rows, :columns]
    pixels[:, :rows, :columns][:, seen] = functional.to_dtype(window, pixels.dtype, scale=True)[:, seen]
    masks = target["masks"].as_subclass(Tensor)
    left = masks * ~covered
    kept = refitted({**target, "masks": left}, (left != masks).flatten(1).any(dim=1))
    return tv_tensors.Image(pixels), _joined(target, [kept, objects], (height, width))


def _parts(size: tuple[int, int], centre: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return top, left, height and width of the four parts of a mosaic."""
    rows, columns = ((0, centre[0]), (centre[0], size[0])), ((0, centre[1]), (centre[1], size[1]))
    return [(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]


def _drawn(low: int, high: int) -> int:
    """Return an integer from low to high, or low if that is more."""
    return low + int(torch.randint(max(0, high - low) + 1, ()))


def _joined(base: Target, parts: Sequence[Target], size: tuple[int, int]) -> Target:
    """Return the objects of several targets as one, with the keys that all have and the base's other keys."""
    keys = [key for key in PER_OBJECT if all(key in part for part in parts)]
    joined = {key: value for key, value in base.items() if key not in PER_OBJECT}
    joined |= {key: torch.cat([part[key] for part in parts]) for key in keys}
    joined["boxes"] = tv_tensors.BoundingBoxes(joined["boxes"], format="XYXY", canvas_size=size)
    if "masks" in joined:
        joined["masks"] = tv_tensors.Mask(joined["masks"])
    return joined
