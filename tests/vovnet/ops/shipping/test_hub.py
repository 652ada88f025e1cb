"""The layout of Hugging Face's ``kernels``: ``kernels`` itself loads it and runs operators."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from vovnet.errors import InputError
from vovnet.ops.build.sources import Targets
from vovnet.ops.shipping import __main__ as command
from vovnet.ops.shipping import hub
from vovnet.ops.shipping.hub import write_variants

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on an x86-64 processor"
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on PATH"),
]


def check_metadata(variant: Path) -> dict:
    """Check what every variant has; return its metadata."""
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["id"].isidentifier()
    assert metadata["name"] == "vovnet"
    assert metadata["license"] == "Apache-2.0"
    files = {path.name for path in variant.iterdir()} - {"metadata.json"}
    assert set(metadata["digest"]["files"]) == files
    for name, digest in metadata["digest"]["files"].items():
        assert base64.b64decode(digest) == hashlib.sha256((variant / name).read_bytes()).digest()
    assert "__init__.py" in files
    return metadata


def test_a_variant_for_the_cpu(standin, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CPU", standin)
    for _ in range(2):  # the second time replaces the first
        (variant,) = write_variants(tmp_path / "out")
        assert variant == tmp_path / "out" / "build" / "torch-stable-abi210-cpu-x86_64-linux"
        assert check_metadata(variant)["backend"] == {"type": "cpu"}
        assert [path.name for path in variant.parent.iterdir()] == [variant.name]


def test_a_variant_for_gpus(standin, tiny, compilers, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CPU", standin)
    monkeypatch.setattr(hub, "CUDA", tiny)
    _, variant = write_variants(tmp_path, Targets(("8.0", "9.0"), "9.0"))
    assert variant.name.startswith("torch-stable-abi210-cu1")
    metadata = check_metadata(variant)
    assert metadata["backend"] == {"type": "cuda", "archs": ["8.0", "9.0+PTX"]}
    assert metadata["id"].startswith("_vovnet_tiny_")


def test_a_build_that_fails_leaves_what_was_there(standin, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CPU", standin)
    (variant,) = write_variants(tmp_path)
    before = {path.name: path.read_bytes() for path in variant.iterdir()}
    (standin.folder / "broken.cpp").write_text("void broken() { undeclared(); }\n")
    with pytest.raises(RuntimeError, match="undeclared"):
        write_variants(tmp_path)
    assert {path.name: path.read_bytes() for path in variant.iterdir()} == before
    assert [path.name for path in variant.parent.iterdir()] == [variant.name]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="--kernels"):
        write_variants(tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [("--kernels", "out", "--wheel", "dist"), ("--kernels", "out", "--arch", "8.0"), ("--kernels", "out", "--report")],
)
def test_arguments_that_exclude_each_other(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert arguments[2] in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real operators for the CPU in the layout."""
    out = tmp_path_factory.mktemp("kernels")
    write_variants(out)
    return out


def as_kernels_does(variant: Path) -> ModuleType:
    """Import a variant by its path, under the name in its metadata."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kernels", "by path"])
def test_the_real_operators_run(real, way):
    if way == "kernels":
        module = pytest.importorskip("kernels").get_local_kernel(real, backend="cpu")
    else:
        (variant,) = (real / "build").iterdir()
        module = as_kernels_does(variant)
    x = torch.randn(2, 32, 21, 17).contiguous(memory_format=torch.channels_last)
    weight, bias, residual = torch.randn(24, 32, 3, 3), torch.randn(24), torch.randn(2, 24, 21, 17)
    residual = residual.contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x, weight, bias, padding=1).relu()
    for method in (0, 1, 2):
        packed = module.pack_conv(weight, method)
        out = module.packed_conv(x, weight, packed, bias, padding=(1, 1), relu=True, method=method)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    out = module.packed_conv(x, weight, module.pack_conv(weight), bias, residual, padding=(1, 1), relu=True)
    torch.testing.assert_close(out, expected + residual, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.pool_max(x, (3, 3), (2, 2), ceil_mode=True), F.max_pool2d(x, 3, 2, 0, 1, True))
    from torchvision.ops import roi_align

    rois = torch.tensor([[0.0, 1, 2, 15, 13], [1.0, 3, 3, 9, 20]])
    pooled = module.roi_align_levels([x], rois, torch.zeros(2, dtype=torch.int64), [1.0], (7, 7))
    torch.testing.assert_close(pooled, roi_align(x, rois, (7, 7), 1.0, 2), rtol=1e-4, atol=1e-4)
    assert module.instruction_set() in ("plain", "avx2", "avx512")
    with pytest.raises(RuntimeError, match="weight"):
        module.pack_conv(weight.half())
    assert module.operators() is not torch.ops.vovnet
