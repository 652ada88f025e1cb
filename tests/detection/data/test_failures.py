"""torch's messages about loader processes become one line, wherever they appear."""

import pytest

from vovnet.detection.data.failures import LoaderError, loader_failures
from vovnet.errors import InputError

MESSAGES = {
    "DataLoader worker (pid 7) is killed by signal: Killed. ": "SIGKILL.*memory",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …": "SIGBUS.*--shm-size",
    "DataLoader worker (pid(s) 7, 8) exited unexpectedly": "7, 8",
    "DataLoader worker (pid 7) exited unexpectedly with exit code 9. Details are …": "exit code 9",
    "DataLoader timed out after 600 seconds": r"600 s \(data\.timeout",
    "Too many open files. Communication with the workers is no longer possible.": "ulimit",
}


@pytest.mark.parametrize("text", MESSAGES)
@pytest.mark.parametrize("wrapped", ["not", "as a cause", "as a context"])
def test_torch_reports_a_dead_worker_anywhere(text: str, wrapped: str) -> None:
    def fail() -> None:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            if wrapped == "not":
                raise
            raise ValueError("another library's error") from (error if wrapped == "as a cause" else None)

    with pytest.raises(LoaderError, match=MESSAGES[text]), loader_failures():
        fail()


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), loader_failures():
        raise RuntimeError("another")
    with pytest.raises(InputError, match="wrong"), loader_failures():
        raise InputError("wrong")
