"""Exported files in their runtimes: equal outputs, one line for what cannot be opened or run, threads and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from exported_files import CLASSIFIER, DETECTOR, changed, expected, grid, write_onnx, write_openvino
from hypothesis import given
from hypothesis import strategies as st

from vovnet.errors import InputError, install_advice
from vovnet.export.runtime import FORMATS, is_exported, open_exported

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)


def test_every_format_returns_the_same(file: Path) -> None:
    model = open_exported(file, threads=1)
    assert model.metadata == DETECTOR
    for image in (IMAGE, np.ascontiguousarray(IMAGE[:, :33, 20:]), IMAGE[:, ::-1]):
        found = model.run(image)
        for name, values in expected(image).items():
            assert np.allclose(found[name], values, atol=1e-5), name
        assert np.array_equal(found["masks"], grid())


@pytest.mark.parametrize("write", [write_onnx, write_openvino])
def test_other_inputs(tmp_path: Path, write: object) -> None:
    fixed = open_exported(write_onnx(tmp_path / "f.onnx", changed(size=(40, 60), dtype="float32", masks=None)))
    assert set(fixed.run(IMAGE)) == {"boxes", "scores", "labels", "count"}
    floats = IMAGE.astype(np.float32) / 255
    assert np.allclose(fixed.run(floats)["scores"], fixed.run(IMAGE)["scores"])


def test_batches_of_a_classifier(tmp_path: Path) -> None:
    model = open_exported(write_onnx(tmp_path / "c.onnx", changed(CLASSIFIER, batch=2, size=(40, 60))))
    images = [IMAGE, IMAGE // 2, IMAGE // 4]
    found = [one["probabilities"] for one in model.run_each(images)]
    assert len(found) == 3
    for image, one in zip(images, found, strict=True):
        assert np.allclose(one, image.mean(axis=(1, 2)) / 255, atol=1e-6)


@pytest.mark.parametrize(
    "image", [IMAGE[0], IMAGE[:1], IMAGE[:, :0], IMAGE[None], IMAGE.astype(np.float32), IMAGE.astype(np.int64)]
)
def test_an_image_of_another_shape_or_type_is_refused(files: dict[str, Path], image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match="image"):
        open_exported(files[".onnx"]).run(image)


def test_names_of_exported_files(tmp_path: Path, files: dict[str, Path]) -> None:
    assert all(is_exported(path) for path in files.values())
    assert is_exported("not/there.ONNX")
    for other in ("vovnet39", "runs/mine", "org/name@v1.onnx/x", "model.safetensors"):
        assert not is_exported(other)
    (tmp_path / "run.onnx").mkdir()
    assert not is_exported(tmp_path / "run.onnx")
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(b"no archive")
    assert not is_exported(checkpoint)
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("best/data.pkl", b"")
    assert not is_exported(checkpoint)
    assert not is_exported(tmp_path / "absent.pt")


def test_what_is_no_exported_file(tmp_path: Path) -> None:
    for name, says in (("model.tflite", "suffix"), ("absent.onnx", "no such file"), ("absent.pt", "no such file")):
        with pytest.raises(InputError, match=says):
            open_exported(tmp_path / name)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="not a file"):
        open_exported(tmp_path / "folder.onnx")


@pytest.mark.parametrize("threads", [0, -1, True])
def test_threads_are_counted_from_one(files: dict[str, Path], threads: int) -> None:
    with pytest.raises(InputError, match="threads"):
        open_exported(files[".onnx"], threads=threads)


def test_a_truncated_file_is_one_line(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()
    broken = tmp_path / file.name
    if file.suffix == ".xml":
        broken.with_suffix(".bin").write_bytes(file.with_suffix(".bin").read_bytes())
    for size in (0, 20, len(content) // 2, len(content) - 30):
        broken.write_bytes(content[:size])
        with pytest.raises(InputError, match=file.name.replace(".", r"\.")) as caught:
            open_exported(broken)
        assert "\n" not in str(caught.value)


def test_weights_of_openvino_that_are_missing_or_short(tmp_path: Path) -> None:
    path = write_openvino(tmp_path / "d.xml")
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"d\.xml"):
        open_exported(path)
    weights.unlink()
    with pytest.raises(InputError, match=r"d\.bin"):
        open_exported(path)


def test_files_without_metadata_or_of_another_version(tmp_path: Path) -> None:
    from exported_torch import write_torchscript

    for write in (write_onnx, write_openvino, write_torchscript):
        path = tmp_path / {"write_onnx": "a.onnx", "write_openvino": "a.xml"}.get(write.__name__, "a.torchscript")
        with pytest.raises(InputError, match="metadata"):
            open_exported(write(path, None))
        newer = DETECTOR.to_json().replace('"format_version": 1', '"format_version": 2')
        with pytest.raises(InputError, match="format_version"):
            open_exported(write(path, newer))


def test_a_graph_that_contradicts_its_metadata(tmp_path: Path) -> None:
    cases = {
        "probabilities": changed(kind="classifier"),
        "float32": changed(dtype="float32", masks=None),
        "masks": changed(masks="box"),
    }
    for says, metadata in cases.items():
        written = write_onnx(tmp_path / "a.onnx", changed(masks=None))
        import onnx

        model = onnx.load(written)
        onnx.helper.set_model_props(model, {"vovnet": metadata.to_json()})
        onnx.save(model, written)
        with pytest.raises(InputError, match=says):
            open_exported(written)


def test_a_foreign_operator_is_one_line(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write_onnx(tmp_path / "a.onnx"))
    model.graph.node[2].domain = "com.somebody"
    model.opset_import.append(onnx.helper.make_opsetid("com.somebody", 1))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(InputError, match="ONNX Runtime"):
        open_exported(tmp_path / "a.onnx")


@given(st.integers(0, 100_000), st.integers(0, 255))
def test_a_damaged_file_opens_or_is_one_line(files: dict[str, Path], position: int, value: int) -> None:
    content = bytearray(files[".onnx"].read_bytes())
    content[position % len(content)] = value
    broken = files[".onnx"].with_name("broken.onnx")
    broken.write_bytes(content)
    try:
        open_exported(broken, threads=1)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("suffix", "module", "extra"), [(".onnx", "onnxruntime", "onnx"), (".xml", "openvino", "openvino")]
)
def test_a_missing_runtime_is_one_line_with_the_command(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=module) as caught:
        open_exported(files[suffix])
    assert install_advice(extra) in str(caught.value)


def test_several_threads(file: Path) -> None:
    model = open_exported(file, threads=1)
    images = [IMAGE // divisor for divisor in range(1, 9)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.run, images))
    for image, one in zip(images, found, strict=True):
        assert one["scores"][0] == pytest.approx(image.mean() / 255, abs=1e-5)


def test_float32_is_computed_in_float32(tmp_path: Path) -> None:
    """OpenVINO's own default is bfloat16 where the processor has it, which would round the boxes to 8 bits."""
    image = np.full((3, 1001, 1003), 77, np.uint8)
    found = open_exported(write_openvino(tmp_path / "d.xml")).run(image)
    assert found["boxes"][:2].tolist() == [[0, 0, 501.5, 1001], [0, 0, 1003, 1001]]
    assert found["scores"][0] == pytest.approx(77 / 255, abs=1e-4)


FORKING = """
import os, sys, threading
import numpy as np
from vovnet.export.runtime import open_exported

image = np.full((3, 200, 300), 51, np.uint8)
models = [open_exported(file, threads=2) for file in sys.argv[1:]]
def use():
    for model in models:
        assert round(float(model.run(image)["scores"][0]), 4) == 0.2
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(7)  # with all that an interpreter does at its end
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def use_and_fork():
    use()
    assert child(use) == 7
    use()
def in_threads():
    threads = [threading.Thread(target=use) for _ in range(3)]
    for one in threads: one.start()
    for one in threads: one.join()
use()
for work in (use, lambda: None, use_and_fork, in_threads):
    assert child(work) == 7, work
    use()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_a_process_that_used_the_files(files: dict[str, Path]) -> None:
    paths = [str(path) for suffix, path in files.items() if suffix != ".pt"]
    done = subprocess.run(
        [sys.executable, "-c", FORKING, *paths], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_formats_have_suffixes() -> None:
    assert set(FORMATS.values()) == {"onnx", "openvino", "pt2", "torchscript"}
