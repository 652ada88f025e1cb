"""`vovnet.hub.load_detector` hands on what detection reads."""

import pytest

import vovnet.hub
from vovnet.detection.checkpoints import folder
from vovnet.errors import InputError


def test_hands_on_name_and_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(folder, "load_detector", lambda *arguments: asked.append(arguments) or "detector")
    assert vovnet.hub.load_detector("someone/detector", revision="v2") == "detector"
    assert asked == [("someone/detector", "v2")]


def test_the_function_survives_the_import_of_submodules():
    assert callable(vovnet.hub.load_detector)
    assert vovnet.hub.__all__ == ["load_detector"] or "load_detector" in vovnet.hub.__all__


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        vovnet.hub.load_detector(tmp_path)
