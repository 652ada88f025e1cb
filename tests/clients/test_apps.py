"""Programs with a page: the function behind it is a fused classifier."""

import numpy as np
import pytest
import torch
from client_models import small

import vovnet


def test_gradio() -> None:
    gradio = pytest.importorskip("gradio")
    model = vovnet.fuse(small().eval())

    def classify(image: np.ndarray) -> dict[str, float]:
        with torch.no_grad():
            scores = model(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).softmax(1)[0]
        return {str(i): float(score) for i, score in enumerate(scores)}

    page = gradio.Interface(classify, gradio.Image(), gradio.Label())
    assert sum(page.fn(np.zeros((64, 64, 3), np.uint8)).values()) == pytest.approx(1)
    assert {part["type"] for part in page.config["components"]} >= {"image", "label"}


def test_streamlit() -> None:
    testing = pytest.importorskip("streamlit.testing.v1")
    page = """
import streamlit, timm, torch, vovnet

@streamlit.cache_resource
def load():
    return vovnet.fuse(timm.create_model("vovnet27_slim", num_classes=2).eval())

with torch.no_grad():
    streamlit.metric("class", int(load()(torch.rand(1, 3, 64, 64)).argmax()))
"""
    app = testing.AppTest.from_string(page, default_timeout=60).run()
    app.run()  # the second run takes the model out of the cache
    assert not app.exception
    assert app.metric[0].value in ("0", "1")
