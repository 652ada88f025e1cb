"""Stand-ins for the published ImageNet files: made-up weights under the publishers' names, and another address."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from timm.models import _registry
from torch import nn

from vovnet.checkpoints import sources
from vovnet.vovnet import VoVNet, pytorchcv_keys


def pytorchcv_file(model: nn.Module) -> bytes:
    """Return a file of a VoVNet's weights as pytorchcv publishes it, before it is zipped."""
    assert isinstance(model, VoVNet)
    state, file = model.state_dict(), io.BytesIO()
    torch.save({theirs: state[ours] for theirs, ours in pytorchcv_keys(model).items()}, file)
    return file.getvalue()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, url: str, sha1: str | None) -> None:
    """Give a source another address and checksum, in the table and in timm's registry."""
    old = sources.source_named(name)
    assert old is not None
    new = dataclasses.replace(old, url=url, sha1=sha1)
    table = tuple(new if source is old else source for source in sources.IMAGENET_SOURCES)
    monkeypatch.setattr(sources, "IMAGENET_SOURCES", table)
    registered = _registry._model_pretrained_cfgs
    for key in (name, old.network):  # without a tag it is the default source
        if registered[key].url == old.url:
            monkeypatch.setitem(registered, key, dataclasses.replace(registered[key], url=url))
