"""The public functions of `vovnet.hub` are those of the modules that define them."""

import pytest

import vovnet.hub
from vovnet.detection.checkpoints import folder
from vovnet.errors import InputError
from vovnet.hub import convert, publishing, verification


def test_the_functions_are_re_exported():
    assert vovnet.hub.load_detector is folder.load_detector
    assert vovnet.hub.convert_checkpoint is convert.convert_checkpoint
    assert vovnet.hub.publish is publishing.publish
    assert vovnet.hub.verify is verification.verify
    assert dir(vovnet.hub) == sorted(vovnet.hub.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = vovnet.hub.other


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        vovnet.hub.load_detector(tmp_path)
