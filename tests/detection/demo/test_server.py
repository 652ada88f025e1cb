"""The server of the demo, asked as a program asks: it does what the page needs, and tells no path."""

import contextlib
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from demo_cases import Fixed, empty_png, image_file

from vovnet.detection.demo.bounds import Bounds
from vovnet.detection.demo.content import Content
from vovnet.detection.demo.server import running
from vovnet.errors import InputError, absent_package

if absent_package("gradio"):
    pytest.skip("needs Gradio: pip install 'vovnet[demo]'", allow_module_level=True)

import httpx


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Visitor:
    """Asks the server as the page does.

    Attributes:
        answers: everything that the server has answered.
    """

    def __init__(self, address):
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self.session, self.answers = "visitor", []
        self.config = self.get("/config").json()
        self.functions = self.config["dependencies"]

    def get(self, path):
        answer = self.http.get(path)
        self.answers.append(answer.text)
        return answer

    def upload(self, *files):
        parts = [("files", (name, content, "image/png")) for name, content in files]
        answer = self.http.post("/gradio_api/upload", files=parts)
        self.answers.append(answer.text)
        return answer

    def images(self, answer, names):
        return [
            {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for path, name in zip(answer.json(), names, strict=True)
        ]

    def ask(self, number, *values):
        """Run a function of the page; give the last message of its queue."""
        question = {"fn_index": number, "data": list(values), "session_hash": self.session, "event_data": None}
        joined = self.http.post("/gradio_api/queue/join", json=question)
        self.answers.append(joined.text)
        assert joined.status_code == 200, joined.text
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                self.answers.append(line)
                if line.startswith("data:") and (said := json.loads(line[5:]))["msg"] == "process_completed":
                    return said
        raise AssertionError("the queue has ended")


CONTROLS = (0.5, ["boxes", "masks"])


@pytest.fixture(scope="module")
def served():
    first, second = Fixed(), Fixed(shift=0.35)
    content = Content(
        "Discs", {"first": first.ready(), "second": second.ready()}, [("try.png", image_file())], Bounds(max_size_mb=1)
    )
    with running(content, port=free_port()) as (address,):
        yield address, first, second


@pytest.fixture
def visitor(served):
    served[1].seen.clear()
    served[2].seen.clear()
    return Visitor(served[0])


def test_the_page_finds_redraws_and_compares_without_asking_a_detector_twice(visitor, served):
    files = visitor.images(visitor.upload(("x.png", image_file())), ["x.png"])
    found = visitor.ask(0, files, None, "first", "nothing", *CONTROLS)
    assert found["success"], found
    cleared, state, told, results = found["output"]["data"]
    assert (cleared, state, told) == (None, None, "")
    assert "<strong>2 objects</strong>" in results
    redraw = next(one["id"] for one in visitor.functions if one["targets"][0][1] == "change")
    (results,) = visitor.ask(redraw, None, "first", "nothing", 0.2, ["boxes"])["output"]["data"]
    assert "<strong>3 objects</strong>" in results
    again = next(one["id"] for one in visitor.functions if one["targets"][0][1] == "input")
    _, _, results = visitor.ask(again, None, "first", "second", *CONTROLS)["output"]["data"]
    assert "second: <strong>1 object</strong>" in results
    assert (served[1].seen, served[2].seen) == (["x.png"], ["x.png"])


def test_an_example_is_shown(visitor, served):
    number = next(one["id"] for one in visitor.functions if one["targets"][0][1] == "click")
    found = visitor.ask(number, None, "first", "nothing", *CONTROLS)
    assert "2 objects" in found["output"]["data"][3]
    assert served[1].seen == ["try.png"]


def test_what_cannot_be_used_is_told(visitor):
    files = [("broken.png", image_file()[:300]), ("huge.png", empty_png(20_000, 10_000)), ("a.pdf", b"%PDF-1.7")]
    images = visitor.images(visitor.upload(*files), [name for name, _ in files])
    told = visitor.ask(0, images, None, "first", "nothing", *CONTROLS)["output"]["data"][2]
    assert all(name in told for name, _ in files)


def test_too_large_an_upload_is_refused(visitor):
    assert visitor.upload(("large.png", bytes(10 * 2**20))).status_code == 413
    files = visitor.images(visitor.upload(("large.png", bytes(2**20 + 1))), ["large.png"])
    assert "larger than 1 MB" in visitor.ask(0, files, None, "first", "nothing", *CONTROLS)["output"]["data"][2]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "pyproject.toml", "../../etc/passwd", str(Path(__file__)), "http://127.0.0.1:9/x.png", __file__],
)
def test_no_other_file_is_read(visitor, served, path):
    image = {"path": path, "orig_name": "x.png", "url": None, "meta": {"_type": "gradio.FileData"}}
    said = visitor.ask(0, [image], None, "first", "nothing", *CONTROLS)
    assert not said["success"]
    assert served[1].seen == []
    for route in ("file=", "file/", "proxy="):
        assert visitor.get(f"/gradio_api/{route}{path}").status_code == 404
    _no_paths(visitor)


def test_no_detector_is_run_but_those_that_are_offered(visitor, served):
    files = visitor.images(visitor.upload(("x.png", image_file())), ["x.png"])
    for one, other in (("/etc/passwd", "nothing"), ("first", "org/name")):
        assert not visitor.ask(0, files, None, one, other, *CONTROLS)["success"]
    assert served[1].seen == []


def test_no_answer_has_a_path_of_the_server(visitor):
    visitor.get("/")
    visitor.get("/gradio_api/info")
    files = visitor.images(visitor.upload(("x.png", image_file()), ("b.png", b"no")), ["x.png", "b.png"])
    visitor.ask(0, files, None, "first", "second", *CONTROLS)
    visitor.ask(0, "nonsense", None, "first", "second", *CONTROLS)
    visitor.ask(1, None, None)
    _no_paths(visitor)


def _no_paths(visitor):
    """Check that nothing was answered that tells of the server's folders."""
    own = [Path.home(), Path.cwd(), Path(__file__).parents[3], Path(os.__file__).parent, tempfile.gettempdir()]
    for text in visitor.answers:
        assert not [path for path in own if f"{path}/" in text and str(path) != "/"], text[:2000]


def test_the_port_may_be_taken():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        content = Content("t", {"a": Fixed().ready()})
        with pytest.raises(InputError, match="--port"), running(content, port=one.getsockname()[1]):
            pass


def test_uploads_are_gone_at_the_end_and_variables_as_before(monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with running(Content("t", {"a": Fixed().ready()}), port=free_port()) as (address,):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        Visitor(address).upload(("x.png", image_file()))
        assert list(folder.rglob("x.png"))
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ
    with contextlib.closing(httpx.Client()) as http, pytest.raises(httpx.ConnectError):
        http.get(address)
