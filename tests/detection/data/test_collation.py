"""What a worker cannot send comes out of it as one line, and any error of a dataset ends the loading."""

import threading
from typing import Any

import pytest
from least_dataset import MinimalDataset

from vovnet.detection.data.failures import LoaderError
from vovnet.detection.data.loader import evaluation_loader
from vovnet.errors import InputError


class Raises(MinimalDataset):
    """Raises an error in a worker."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getitem__(self, index: int) -> Any:
        raise self.error


class OfTwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NotRestored(InputError):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("not restored")


def local_error() -> Exception:
    class Local(Exception):
        pass

    return Local("a class that cannot be pickled")


ERRORS = [
    ValueError("a defect"),
    local_error(),
    OfTwoArguments(1, 2),
    NotRestored(1, 2),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid"),
    FileNotFoundError(2, "No such file or directory", "missing.png"),
    MemoryError(),
    RecursionError(),
    StopIteration(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_a_worker_ends_the_loading(error: BaseException) -> None:
    expected: dict[type, type] = {
        FileNotFoundError: FileNotFoundError,
        MemoryError: LoaderError,
        ValueError: ValueError,
        RecursionError: RecursionError,
    }
    if isinstance(error, StopIteration):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(evaluation_loader(Raises(error)))
    with pytest.raises(expected.get(type(error), Exception)) as caught:
        list(evaluation_loader(Raises(error), workers=1))
    if isinstance(error, FileNotFoundError):
        assert caught.value.filename == "missing.png"
    elif not isinstance(error, MemoryError):
        assert type(error).__name__ in str(caught.value)  # with the worker's traceback


class Extra(MinimalDataset):
    """Has a value in its targets that only this process can use."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image, {**target, "polygons": self.value}


@pytest.mark.parametrize(
    "value", [lambda: None, threading.Lock(), (n for n in ())], ids=["function", "lock", "generator"]
)
def test_a_target_that_cannot_be_sent(value: object) -> None:
    with pytest.raises(InputError, match=r"image 10.*'polygons'.*data\.workers=0"):
        list(evaluation_loader(Extra(value), workers=1))
    assert len(list(evaluation_loader(Extra(value)))) == 3
