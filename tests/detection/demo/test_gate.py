"""What reaches Gradio's server, and what does not."""

import asyncio

import pytest

from vovnet.detection.demo.bounds import MEGABYTE, Bounds
from vovnet.detection.demo.gate import Gate

BOUNDS = Bounds(max_size_mb=1, max_images=2, rate=1)


async def page(scope, receive, send):
    headers = [(b"content-type", b"text/html"), (b"Content-Security-Policy", b"default-src *")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"page"})


def ask(method, path, gate=None, length=b"2", client="1.2.3.4", kind="http"):
    sent = []

    async def send(message):
        sent.append(message)

    headers = [] if length is None or method == "GET" else [(b"content-length", length)]
    scope = {"type": kind, "method": method, "path": path, "headers": headers, "client": (client, 1)}

    async def receive():
        return {"type": "http.request", "body": b"{}"}

    asyncio.run((gate or Gate(page, BOUNDS, "/secret/folder"))(scope, receive, send))
    return sent


def status(*arguments, **options):
    return ask(*arguments, **options)[0]["status"]


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index-1.js", "/static/js/a.js", "/favicon.ico", "/gradio_api/queue/data"],
)
def test_the_page_is_answered_and_reaches_no_other_address(path):
    start, body = ask("GET", path)
    assert (start["status"], body["body"]) == (200, b"page")
    policies = [value for name, value in start["headers"] if name.lower() == b"content-security-policy"]
    assert len(policies) == 1
    assert b"default-src 'self'" in policies[0]
    assert b"http" not in policies[0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=http://localhost/"),
        ("HEAD", "/gradio_api/file=pyproject.toml"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://a.hf.space/"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8"),
        ("GET", "//etc/passwd"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
    ],
)
def test_everything_else_is_not_there(method, path):
    assert status(method, path) == 404


def test_uploads_and_questions_are_bounded():
    gate = Gate(page, BOUNDS, "/secret/folder")
    upload, question = "/gradio_api/upload", "/gradio_api/queue/join"
    assert status("POST", upload, gate, str(3 * MEGABYTE).encode()) == 200
    assert status("POST", upload, gate, str(3 * MEGABYTE + 1).encode()) == 413
    assert status("POST", question, gate, str(MEGABYTE).encode()) == 200
    assert status("POST", question, gate, str(MEGABYTE + 1).encode()) == 413
    for length in (None, b"", b"-1", b"1e3"):
        assert status("POST", upload, gate, length) == 411


def test_uploads_have_a_rate_for_each_client():
    gate = Gate(page, BOUNDS, "/secret/folder")
    assert [status("POST", "/gradio_api/upload", gate) for _ in range(6)] == [200] * 4 + [429] * 2
    assert status("POST", "/gradio_api/upload", gate, client="other") == 200
    assert status("GET", "/", gate) == 200


def test_there_are_no_web_sockets():
    assert ask("GET", "/", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_the_folder_of_uploads_is_shown_by_another_name_and_taken_back():
    asked = []

    async def app(scope, receive, send):
        if scope["path"] == "/gradio_api/upload":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
            await send({"type": "http.response.body", "body": b'["/secret/fol', "more_body": True})
            await send({"type": "http.response.body", "body": b'der/ab/x.png"]'})
        else:
            asked.append((await receive())["body"])
            asked.append(dict(scope["headers"])[b"content-length"])

    gate, sent = Gate(app, BOUNDS, "/secret/folder"), []
    parts = [b'{"path":"/upl', b'oads/ab/x.png"}']
    questions = [
        {"type": "http.request", "body": body, "more_body": more}
        for body, more in zip(parts, [True, False], strict=True)
    ]

    async def receive():
        return questions.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"28")], "client": None}
    asyncio.run(gate({**scope, "path": "/gradio_api/upload"}, receive, send))
    asyncio.run(gate({**scope, "path": "/gradio_api/queue/join"}, receive, send))
    assert sent[1]["body"] == b'["/uploads/ab/x.png"]'
    assert (b"content-length", b"21") in sent[0]["headers"]
    assert asked == [b'{"path":"/secret/folder/ab/x.png"}', b"34"]
