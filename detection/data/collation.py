"""Batches of samples: made in the process that uses them, or in a worker that sends them with its errors."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from vovnet.detection.data.failures import NO_MEMORY, NO_WORKERS, LoaderError
from vovnet.detection.data.protocol import Target
from vovnet.detection.data.sampler import SampleKey
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.transforms import TransformedDataset
from vovnet.detection.data.transport import Parcel, pack
from vovnet.errors import InputError, StoppedError, reason

Batch = tuple[list[Tensor], list[Target]]
"""Images, uint8 or float32 in [0, 1], (C, H, W), each with its own size, and their targets as plain tensors."""


class InWorker(Dataset[Any]):
    """The samples as a worker loads them: errors that need no traceback become values, and all can be pickled."""

    def __init__(self, samples: TransformedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Sample | Exception:
        try:
            return self.samples[key]
        except MemoryError:
            return LoaderError(NO_MEMORY)
        except BaseException as error:
            if isinstance(error, (InputError, StoppedError, OSError)) and _survives(error):
                return error  # torch would put the worker's traceback into the message
            if isinstance(error, Exception) and _survives(type(error)):
                raise
            # torch pickles the class in another thread, or takes the error for the end of the worker.
            raise RuntimeError(f"the dataset raised {type(error).__name__}") from error


def _survives(value: Any) -> bool:
    """Return True if a value can be pickled and restored."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # whatever its methods raise
        return False
    return True


def packed(samples: Sequence[Sample | Exception]) -> Parcel | Exception:
    """Return a packed batch, or the error of one of its samples."""
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    batch = collated(samples)
    try:
        return pack(batch)
    except MemoryError:
        return LoaderError(NO_MEMORY)
    except Exception as error:  # whatever the values' own methods raise
        return InputError(
            f"{_unsendable(batch)} cannot be sent by a loader process ({reason(error)[:200]}); expected tensors, "
            f"numbers, text, and lists and dictionaries of them; {NO_WORKERS}"
        )


def _unsendable(batch: Batch) -> str:
    """Name the value of a batch that cannot be pickled."""
    for target in batch[1]:
        for key, value in target.items():
            if not _survives(value):
                return f"image {target.get('image_id')}: the target's '{key}' of type {type(value).__name__}"
    return "dataset: a target"


def collated(samples: Sequence[Any]) -> Batch:
    """Return lists of images and targets, with plain tensors."""
    images, targets = zip(*samples, strict=True)
    return [_plain(image) for image in images], [
        {key: _plain(value) for key, value in target.items()} for target in targets
    ]


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value
