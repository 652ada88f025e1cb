"""What is built and installed equals the tree: sdist, wheel, ``pip install .``, ``pip install -e .``, and no install.

The checkout is copied first, so that nothing is written into it. Nothing is fetched: the environment's own setuptools
builds, and dependencies are found beside it. `VOVNET_DIST` names a folder with a built sdist and wheels to check
instead: only those of `make wheel` have compiled kernels.
"""

import base64
import csv
import email
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("adapters", "detection", "hub")
MANYLINUX = "manylinux_2_28_x86_64"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ANYWHERE = shutil.ignore_patterns("*.egg-info", "__pycache__")
AT_THE_ROOT = shutil.ignore_patterns(".git", ".venv*", "runs", "quickstart", "build", "dist", ".*_cache", ".coverage*")


def litter(folder: str, names: list[str]) -> set[str]:
    """What a checkout holds beside the project's files; ``build`` is a package elsewhere than at the root."""
    return ANYWHERE(folder, names) | (AT_THE_ROOT(folder, names) if Path(folder) == ROOT else set())


def tree() -> dict[str, Path]:
    """Path inside the installed package → file of the checkout, for every file that is shipped."""
    shipped = {}
    for room in ("vovnet", *ROOMS):
        for folder, folders, files in os.walk(ROOT / room):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for file in files:
                path = Path(folder) / file
                below = "vovnet" if room == "vovnet" else f"vovnet/{room}"
                shipped[f"{below}/{path.relative_to(ROOT / room).as_posix()}"] = path
    return shipped


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", code, cwd=python.parent).strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout") / "vovnet"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=litter)
    return copy


@pytest.fixture(scope="module")
def dist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it."""
    if given := os.environ.get("VOVNET_DIST"):
        return ROOT / given
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=checkout)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel without compiled kernels."""
    (path,) = dist.glob("*-none-any.whl")
    return path


def with_kernels(dist: Path, name: str) -> Path:
    found = list(dist.glob(f"{name}-{PROJECT['version']}-*{MANYLINUX}.whl"))
    if not found:
        pytest.skip("make wheel and make wheel-cuda build wheels with kernels")
    (path,) = found
    return path


@pytest.fixture(scope="module")
def kernel_wheel(dist: Path) -> Path:
    """Our wheel with the kernels for the CPU."""
    return with_kernels(dist, "vovnet")


@pytest.fixture(scope="module")
def cuda_wheel(dist: Path) -> Path:
    """The wheel of the second distribution, with the kernels for GPUs."""
    return with_kernels(dist, "vovnet_cuda13")


@pytest.fixture(scope="module")
def unpacked_sdist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = dist.glob("*.tar.gz")
    out = tmp_path_factory.mktemp("sdist")
    with tarfile.open(path) as archive:
        archive.extractall(out, filter="data")
    (folder,) = out.iterdir()
    return folder


@pytest.fixture
def empty_environment(tmp_path: Path) -> Path:
    """The Python of a fresh environment that sees this one's packages, but not this one's vovnet."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = site_packages(python)
    # A path added by a .pth file is searched, but its own .pth files, an editable install's among them, are not read.
    (site / "neighbours.pth").write_text("\n".join({sysconfig.get_path(p) for p in ("purelib", "platlib")}))
    return python


def install(python: Path, *what: object, cwd: Path) -> None:
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *what, cwd=cwd)


def probe(python: Path, cwd: Path) -> dict[str, Path]:
    """File of each room that this Python imports; the command and torchrun's entry must answer ``--help``, too.

    All in one process, because each would import torch.
    """
    names = ["vovnet", *(f"vovnet.{room}" for room in ROOMS), "vovnet.detection.data", "vovnet.detection.train"]
    names += ["vovnet.ops"]
    code = (
        "import importlib, runpy, sys\n"
        f"for name in {names}: print('FILE', name, importlib.import_module(name).__file__)\n"
        "import vovnet.cli\n"
        "assert callable(vovnet.cli.main)\n"
        "sys.argv = ['train', '--help']\n"
        "runpy.run_module('vovnet.detection.train', run_name='__main__', alter_sys=True)\n"
    )
    out = run(python, "-c", code, cwd=cwd)
    assert "usage" in out.lower()
    return {name: Path(file) for mark, name, file in (line.split(" ", 2) for line in out.splitlines()[: len(names)])}


def test_wheel_holds_exactly_the_tree(wheel: Path) -> None:
    shipped = tree()
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert inside == set(shipped), "list packages and data in pyproject.toml's [tool.setuptools]"
        for name, path in shipped.items():
            assert archive.read(name) == path.read_bytes(), name


def test_wheel_is_pure_and_says_what_pyproject_says(wheel: Path) -> None:
    assert wheel.name == f"vovnet-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"vovnet-{PROJECT['version']}.dist-info"
        tags = email.message_from_bytes(archive.read(f"{info}/WHEEL"))
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        licences = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith(f"{info}/licenses/")}
        assert archive.read(f"{info}/entry_points.txt").decode().split() == [
            "[console_scripts]",
            "vovnet",
            "=",
            "vovnet.cli:main",
        ]
    assert tags["Root-Is-Purelib"] == "true"
    assert tags.get_all("Tag") == ["py3-none-any"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licences == {"LICENSE", "NOTICE"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel; its record must have exactly them, with their hashes."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}
        (record,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    rows = {name: digest for name, digest, _ in csv.reader(record.splitlines()) if digest}
    hashes = {
        name: base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=") for name, body in files.items()
    }
    assert rows == {name: f"sha256={found.decode()}" for name, found in hashes.items()}
    return files


def test_kernel_wheel_is_the_other_one_and_a_library(wheel: Path, kernel_wheel: Path) -> None:
    pure, files = contents(wheel), contents(kernel_wheel)
    added = {name: files[name] for name in files if name not in pure}
    assert {name.rpartition("/")[2] for name in added} == {"vovnet_cpu.so", "build.json"}
    assert all(name.startswith("vovnet/ops/prebuilt/cpu-") for name in added)
    (built,) = (json.loads(body) for name, body in added.items() if name.endswith("/build.json"))
    assert (built["left_out"], built["warnings"]) == ([], [])
    info = f"vovnet-{PROJECT['version']}.dist-info"
    tags = email.message_from_bytes(files.pop(f"{info}/WHEEL"))
    assert tags["Root-Is-Purelib"] == "false"
    assert tags.get_all("Tag") == [f"py3-none-{MANYLINUX}"]
    del pure[f"{info}/WHEEL"]
    assert {name: files[name] for name in pure} == pure


def audited(wheel: Path) -> dict[str, Any]:
    pytest.importorskip("auditwheel")
    said: dict[str, Any] = json.loads(
        run(sys.executable, "-m", "auditwheel", "show", "--json", wheel, cwd=wheel.parent)
    )
    glibc = tuple(map(int, said["sym_tag"].split("_")[1:3]))
    assert glibc <= (2, 28), said
    return said


def test_kernel_wheel_runs_on_older_systems(kernel_wheel: Path) -> None:
    assert set(audited(kernel_wheel)["external_libs"]) == {"libtorch_cpu.so"}


PLAIN_ENVIRONMENT = """
import os, shutil, warnings
warnings.simplefilter("error", UserWarning)
assert shutil.which("g++") is None and shutil.which("c++") is None
import timm, torch, vovnet
from vovnet.environment import environment_report
from vovnet.ops.build import loader
model = timm.create_model("vovnet27_slim").eval()
fused = vovnet.fuse(model)
image = torch.rand(1, 3, 64, 96)
with torch.inference_mode():
    torch.testing.assert_close(fused(image), model(image), rtol=1e-3, atol=1e-4)
assert not os.path.exists(os.environ["TORCH_EXTENSIONS_DIR"]), "something was compiled"
assert "installed, for every x86_64 processor" in environment_report()
print(loader._loaded_cpu.path)
"""


def test_kernel_wheel_needs_no_compiler(kernel_wheel: Path, empty_environment: Path, tmp_path: Path) -> None:
    install(empty_environment, kernel_wheel, cwd=tmp_path)
    variables = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "VOVNET_OPS": "require"}
    out = run(empty_environment, "-c", PLAIN_ENVIRONMENT, cwd=tmp_path, **variables)
    assert Path(out.strip()).is_relative_to(site_packages(empty_environment) / "vovnet" / "ops" / "prebuilt")


def test_cuda_kernels_are_a_wheel_of_their_own(
    kernel_wheel: Path, cuda_wheel: Path, empty_environment: Path, tmp_path: Path
) -> None:
    files = contents(cuda_wheel)
    metadata = email.message_from_bytes(files[f"vovnet_cuda13-{PROJECT['version']}.dist-info/METADATA"])
    assert metadata["Name"] == "vovnet-cuda13"
    assert metadata.get_all("Requires-Dist") == [f"vovnet=={PROJECT['version']}"]
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert set(audited(cuda_wheel)["external_libs"]) <= {"libtorch_cpu.so", "libtorch_cuda.so", "libcudart.so.13"}
    install(empty_environment, kernel_wheel, cuda_wheel, cwd=tmp_path)
    code = "from vovnet.ops.build import loader; print(dict(loader.state())['CUDA operators'])"
    out = run(empty_environment, "-c", code, cwd=tmp_path, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert out.startswith("installed, for 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0 and PTX: ")


def test_sdist_has_the_tests_and_no_links(unpacked_sdist: Path) -> None:
    assert not [path for path in unpacked_sdist.rglob("*") if path.is_symlink()]
    assert not [room for room in ROOMS if (unpacked_sdist / "vovnet" / room).exists()]
    houses = [ROOT / part for part in ("tests", "docs", "benchmarks", ".ci", ".github", *ROOMS)]
    for path in (file for house in houses for file in house.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (unpacked_sdist / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
    at_the_root = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "NOTICE", "README.md")
    for name in (
        *at_the_root,
        "SECURITY.md",
        "mkdocs.yml",
        "pyproject.toml",
        ".git-blame-ignore-revs",
        ".pre-commit-config.yaml",
    ):
        assert (unpacked_sdist / name).is_file(), name


def test_metadata_is_built_without_torch(checkout: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'numpy'): sys.modules[name] = None\n"
        "from setuptools import build_meta\n"
        f"print(build_meta.prepare_metadata_for_build_wheel({str(tmp_path)!r}))\n"
    )
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True, ignore=litter)
    assert run(sys.executable, "-c", code, cwd=copy).split()[-1] == f"vovnet-{PROJECT['version']}.dist-info"


def test_installed_wheel(wheel: Path, empty_environment: Path, tmp_path: Path) -> None:
    install(empty_environment, wheel, cwd=tmp_path)
    site = site_packages(empty_environment)
    # Nothing that could collide with another distribution is installed at the top.
    assert {p.name for p in site.iterdir() if p.suffix not in (".dist-info", ".pth")} == {"vovnet"}
    assert (empty_environment.parent / "vovnet").is_file()
    for name, file in probe(empty_environment, cwd=tmp_path).items():
        assert file == site.joinpath(*name.split("."), "__init__.py")


def test_install_from_the_checkout(checkout: Path, empty_environment: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True, ignore=litter)
    install(empty_environment, copy, cwd=tmp_path)
    for name, file in probe(empty_environment, cwd=tmp_path).items():
        assert file.parts[-3 - name.count(".") :] == ("site-packages", *name.split("."), "__init__.py")


@pytest.mark.parametrize("source", ["checkout", "unpacked_sdist"])
def test_editable_install(source: str, empty_environment: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(source), copy, symlinks=True, ignore=litter)
    install(empty_environment, "--editable", copy, cwd=tmp_path)
    found = probe(empty_environment, cwd=tmp_path)
    assert found["vovnet"].resolve() == copy / "vovnet" / "__init__.py"
    for room in ROOMS:
        assert found[f"vovnet.{room}"].resolve() == copy / room / "__init__.py"


USER_SCRIPT = """
from pathlib import Path

import timm
from PIL import Image

import vovnet
from vovnet.adapters import fpn_backbone
from vovnet.detection import build_detector, evaluate, load_recipe, predict, train
from vovnet.hub import load_detector

classifier = vovnet.fuse(timm.create_model("vovnet39", pretrained=True).eval())
backbone = fpn_backbone("vovnet39", pretrained=False, norm="frozen_bn", extra_level="pool")
print(classifier, backbone.out_channels, backbone.strides)

recipe = load_recipe("quickstart", ["solver.max_iterations=10"])
detector = vovnet.memory_efficient(build_detector(recipe), memory="low")
metrics = train(recipe, Path("run"), overwrite=True)
trained = load_detector("run")
print(trained.categories[0]["name"], trained.recipe.backbone)
fast = vovnet.fuse(trained, precision="bf16")
for detections in predict(fast, [Image.open("image.png")], device="cpu"):
    print([(entry["category"], entry["score"]) for entry in detections], metrics)
"""
MISTAKES = """
import timm
import vovnet
from vovnet.adapters import fpn_backbone

vovnet.fuse(timm.create_model("vovnet39"), precision="fp33")
vovnet.memory_efficient(timm.create_model("vovnet39"), memory="lowest")
fpn_backbone("vovnet39", pretrained=False, norm="frozenbn")
fpn_backbone("vovnet39", pretrained=False, extra_level="p7")
"""


def pyright(python: Path, script: str, cwd: Path) -> list[dict[str, Any]]:
    """What pyright, which is installed with its Node.js, reports of a script that a user runs with this Python."""
    (cwd / "script.py").write_text(script)
    variables = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python, "script.py"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return [entry for entry in json.loads(done.stdout)["generalDiagnostics"] if entry["severity"] == "error"]


@pytest.mark.parametrize("way", ["pip install --editable", "make"])
def test_an_editor_sees_the_package(way: str, checkout: Path, empty_environment: Path, tmp_path: Path) -> None:
    if way == "make":
        python = Path(sys.executable)
        found = run(python, "-c", "import vovnet; print(vovnet.__file__)", cwd=tmp_path)
        if Path(found.strip()) != ROOT / "vovnet" / "__init__.py":
            pytest.skip("this environment was not made by this checkout's Makefile")
    else:
        python = empty_environment
        install(python, "--editable", checkout, cwd=tmp_path)
    assert not pyright(python, USER_SCRIPT, tmp_path)
    assert [entry["range"]["start"]["line"] for entry in pyright(python, MISTAKES, tmp_path)] == [5, 6, 7, 8]


def test_checkout_without_an_install(checkout: Path, empty_environment: Path) -> None:
    if not (ROOT / "vovnet" / "adapters").is_symlink():
        pytest.skip("an unpacked sdist has no links: it must be installed")
    for name, file in probe(empty_environment, cwd=checkout).items():
        assert file.resolve().is_relative_to(checkout), name
