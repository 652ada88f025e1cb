"""``python -m vovnet.ops.build``: its arguments, and the report and library of the real sources."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from vovnet.errors import InputError
from vovnet.ops.build import __main__ as command
from vovnet.ops.build import sources
from vovnet.ops.build.cache import find_builds, find_exact
from vovnet.ops.build.compiler import usable_cores
from vovnet.ops.build.sources import ARCHITECTURES, CUDA, Targets, parse_targets

SOME = ("7.5", "8.0", "12.0")


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["build", *map(str, arguments)])
    code = 0
    try:
        command.main()
    except SystemExit as stop:
        code = stop.code
    done = capsys.readouterr()
    return code, done.out, done.err


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """Run the command, which must fail; return its one line of error."""
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code != 0
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def build_real(folder: Path, arch: str) -> dict:
    """Compile the real sources; return the report, with the library's path as ``library``."""
    if not (shutil.which("nvcc") and shutil.which("g++") and torch.version.cuda):
        pytest.skip("needs nvcc and g++ on PATH and a PyTorch with CUDA")
    folder.mkdir(exist_ok=True)
    report = folder / f"report-{os.getpid()}.json"
    done = subprocess.run(
        [sys.executable, "-m", "vovnet.ops.build", "--cuda", *(("--arch", arch) if arch else ()), "--report", report],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    library = done.stdout.splitlines()[-1].rpartition(" s: ")[2]
    return {**json.loads(report.read_text()), "library": library, "said": done.stdout}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The real sources for three GPUs, compiled once by the first of the test processes."""
    base = tmp_path_factory.getbasetemp()
    return build_real((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "extensions", ",".join(SOME))


def check_report(report: dict, archs: tuple[str, ...]) -> None:
    assert report["warnings"] == 0
    kernels = report["kernels"]
    assert all(set(k) == {"name", "arch", "registers", "spill_bytes", "shared_bytes", "occupancy"} for k in kernels)
    by_arch = defaultdict(list)
    for kernel in kernels:
        assert kernel["spill_bytes"] == 0, kernel
        assert 0 < kernel["registers"] <= 255, kernel
        assert 0 < kernel["occupancy"] <= 1, kernel
        by_arch[kernel["arch"]].append(kernel["name"])
    assert tuple(by_arch) == archs
    for names in by_arch.values():
        assert sorted(names) == sorted(set(names))
        assert sorted(names) == sorted(by_arch[archs[0]])
    for wanted in ("aggregate", "relu_backward"):
        assert any(wanted in name for name in by_arch[archs[0]])


def test_the_real_report(real):
    check_report(real, SOME)
    for name in ("7.5, 8.0, 12.0", "0 warnings", "occupancy"):
        assert name in real["said"]


@pytest.mark.slow
def test_every_architecture(tmp_path, capsys):
    report = build_real(tmp_path / "extensions", "")
    check_report(report, ARCHITECTURES)
    check_instructions(report["library"], ARCHITECTURES)
    with capsys.disabled():
        print(f"\n{report['said']}")


def disassemble(library: str) -> dict[tuple[str, str], set[str]]:
    """Return (architecture, mangled kernel) → the instructions that matter, by Triton's cuobjdump."""
    beside_triton = Path(torch.__file__).parent.parent / "triton" / "backends" / "nvidia" / "bin"
    path = f"{beside_triton}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which("cuobjdump", path=path):
        pytest.skip("needs cuobjdump")
    done = subprocess.run(
        ["cuobjdump", "-sass", library], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    arch = kernel = ""
    for line in done.stdout.splitlines():
        if match := re.search(r"arch = sm_(\d+)(\d)", line):
            arch = f"{match[1]}.{match[2]}"
        elif match := re.search(r"Function : (\S+)", line):
            kernel = match[1]
        elif match := re.search(r"\b(HMMA|LDGSTS|LDSM|FFMA)\b", line):
            found[arch, kernel].add(match[1])
    return found


def check_instructions(library: str, archs: tuple[str, ...]) -> None:
    """16-bit types and TF32 use tensor cores, and kernels from 8.0 on use asynchronous copies; others use neither."""
    found = disassemble(library)
    for arch in archs:
        recent = arch != "7.5"
        kernels = {kernel: what for (place, kernel), what in found.items() if place == arch and "aggregate" in kernel}
        # 7.5 has neither bfloat16 nor TF32 tensor cores: those take the reference path.
        types = ("Float16", "BFloat16", "TensorFloat32", "7Float32") if recent else ("Float16", "7Float32")
        for dtype in types:
            mine = [what for kernel, what in kernels.items() if dtype in kernel]
            assert len(mine) >= 3, (arch, dtype, kernels)
            for what in mine:
                assert ("HMMA" in what) == (dtype != "7Float32"), (arch, dtype, what)
                assert ("LDGSTS" in what) == recent, (arch, dtype, what)


def test_instructions_of_the_real_kernels(real):
    check_instructions(real["library"], SOME)


PROBE = """
import json, sys
import torch
torch.ops.load_library(sys.argv[1])
ops = torch.ops.vovnet
answers = {}

def ask(name, function, *arguments):
    try:
        answers[name] = repr(function(*arguments))
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"

def maps(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

forward, half = ops._cuda_aggregate_forward, torch.float16
x = [maps(2, 32, 5, 7) for _ in range(3)]
weight, bias, g = torch.zeros(64, 96, dtype=half), torch.zeros(64, dtype=half), maps(2, 64, 5, 7)
ask("supported", ops._cuda_supported, x, weight, 80, False)
ask("supported none", ops._cuda_supported, [], weight, 80, False)
ask("supported old", ops._cuda_supported, x, weight, 70, False)
ask("supported bf16 on 7.5", ops._cuda_supported, [m.bfloat16() for m in x], weight.bfloat16(), 75, False)
ask("supported float64", ops._cuda_supported, [m.double() for m in x], weight.double(), 80, False)
ask("supported odd width", ops._cuda_supported, [maps(2, 33, 5, 7)], weight[:, :33].contiguous(), 80, False)
misaligned = torch.zeros(2 * 5 * 7 * 32 + 1, dtype=half)[1:].view(2, 5, 7, 32).permute(0, 3, 1, 2)
ask("supported misaligned", ops._cuda_supported, [misaligned, *x[1:]], weight, 80, False)
ask("forward", forward, x, weight, bias, None, True, True, False)
learned = [maps(2, 32, 5, 7).requires_grad_() for _ in range(3)]
ask("forward with grad", forward, learned, weight, None, None, True, False, False)
ask("no inputs", forward, [], weight, None, None, True, False, False)
ask("many inputs", forward, x * 6, weight, None, None, True, False, False)
ask("rank", forward, [x[0][0]], weight, None, None, True, False, False)
ask("layout", forward, [x[0], torch.zeros(2, 32, 5, 7, dtype=half)], weight, None, None, True, False, False)
ask("mixed dtypes", forward, [x[0], maps(2, 32, 5, 7, dtype=torch.float32)], weight, None, None, True, False, False)
ask("integers", forward, [maps(2, 32, 5, 7, dtype=torch.int64)], weight, None, None, True, False, False)
ask("sizes", forward, [x[0], maps(2, 32, 5, 8)], weight, None, None, True, False, False)
ask("channel sum", forward, x, weight[:, :90].contiguous(), None, None, True, False, False)
ask("weight dtype", forward, x, weight.float(), None, None, True, False, False)
ask("weight view", forward, x, torch.zeros(96, 64, dtype=half).t(), None, None, True, False, False)
ask("bias", forward, x, weight, bias[:32], None, True, False, False)
ask("residual", forward, x, weight, bias, x[0], True, False, False)
ask("input gradients", ops._cuda_aggregate_input_gradients, g, weight, x, [True, False, True], False)
ask("gradient channels", ops._cuda_aggregate_input_gradients, x[0], weight, x, [True] * 3, False)
ask("flags", ops._cuda_aggregate_input_gradients, g, weight, x, [True], False)
ask("weight gradient", ops._cuda_aggregate_weight_gradient, g, x, False)
ask("gradient sizes", ops._cuda_aggregate_weight_gradient, maps(2, 64, 7, 5), x, False)
relu, mask = ops._cuda_relu_backward, torch.zeros(2 * 64 * 5 * 7 // 8, dtype=torch.uint8)
ask("relu", relu, g, None, mask, True, True)
ask("relu both", relu, g, g, mask, True, True)
ask("relu mask", relu, g, None, mask[:-1], True, True)
ask("relu out", relu, g, x[0], None, True, True)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(real: dict) -> dict[str, str]:
    """The errors of the loaded operators for tensors on the CPU."""
    # In a process of its own: a library cannot be taken out again.
    done = subprocess.run([sys.executable, "-c", PROBE, real["library"]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("forward", ("_cuda_aggregate_forward", "inputs[0]", "a tensor on a CUDA device", "cpu")),
        ("forward with grad", ("a tensor on a CUDA device",)),
        ("input gradients", ("_cuda_aggregate_input_gradients: g", "a tensor on a CUDA device", "cpu")),
        ("weight gradient", ("_cuda_aggregate_weight_gradient: g", "a tensor on a CUDA device", "cpu")),
        ("relu", ("_cuda_relu_backward: grad", "a tensor on a CUDA device", "cpu")),
        ("no inputs", ("1 to 16 feature maps", "got 0")),
        ("many inputs", ("1 to 16 feature maps", "got 18")),
        ("rank", ("inputs[0]", "(N, C, H, W)", "(32, 5, 7)")),
        ("layout", ("inputs[1]", "torch.channels_last", "strides (1120, 35, 7, 1)")),
        ("mixed dtypes", ("inputs[1]", "expected float16", "got float32")),
        ("integers", ("inputs[0]", "float16, bfloat16 or float32", "got Long")),
        ("sizes", ("inputs[1]", "(2, 32, 5, 7)", "got (2, 32, 5, 8)")),
        ("channel sum", ("weight", "(out_channels, 96)", "got (64, 90)")),
        ("weight dtype", ("weight", "expected float16", "got float32")),
        ("weight view", ("weight", "contiguous")),
        ("bias", ("bias", "(64,)", "got (32,)")),
        ("residual", ("residual", "(2, 64, 5, 7)", "got (2, 32, 5, 7)")),
        ("gradient channels", ("g: expected 64 channels", "got 32")),
        ("flags", ("wanted", "3 inputs", "got 1")),
        ("gradient sizes", ("g: ", "(2, 64, 5, 7)", "got (2, 64, 7, 5)")),
        ("relu both", ("out, mask", "at most one")),
        ("relu mask", ("mask", "(560,)", "got (559,)")),
        ("relu out", ("out", "(2, 64, 5, 7)", "got (2, 32, 5, 7)")),
    ],
)
def test_the_operators_refuse(answers, case, words):
    assert answers[case].startswith("RuntimeError: vovnet::_cuda_")
    for word in words:
        assert word in answers[case], answers[case]
    assert "\n" not in answers[case]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("supported", True),
        ("supported none", False),
        ("supported old", False),
        ("supported bf16 on 7.5", False),
        ("supported float64", False),
        ("supported odd width", False),
        ("supported misaligned", False),
    ],
)
def test_the_operators_say_what_they_take(answers, case, expected):
    assert answers[case] == repr(expected)


def test_the_library_for_the_cpu(standin, cxx, monkeypatch, capsys):
    runs = cxx('exec $real "$@"')
    for _ in range(2):
        code, out, _ = run(monkeypatch, capsys)
        assert not code
        (build,) = find_builds(standin)
        (last,) = [line for line in out.splitlines() if "built for" in line]
        assert re.fullmatch(rf"0 warnings; built for every \S+ processor in \d+ s: {build.path}", last)
    assert len([line for line in runs() if "-shared" in line]) == 1


def test_a_library_for_the_cpu_without_what_the_compiler_does_not_know(standin, cxx, monkeypatch, capsys):
    cxx('case "$*" in *-mavx512bf16*) exit 1;; esac\nexec $real "$@"')
    code, out, _ = run(monkeypatch, capsys)
    assert not code
    (build,) = find_builds(standin)
    assert ("isa_avx512_bf16.cpp" in out) == bool(build.left_out)


def test_a_library_for_the_cpu_that_cannot_be_built(standin, cxx, monkeypatch, capsys, tmp_path):
    cxx('exec $real "$@"')
    (standin.folder / "broken.cpp").write_text("void broken() { undeclared(); }\n")
    assert "undeclared" in refused(monkeypatch, capsys)
    (standin.folder / "broken.cpp").write_text("void elsewhere();\nvoid here() { elsewhere(); }\n")
    assert "undefined reference to `elsewhere()'" in refused(monkeypatch, capsys)
    (standin.folder / "broken.cpp").write_text("void careless() { int unused; }\n")
    line = refused(monkeypatch, capsys)
    assert "the build has" in line
    assert "unused variable" in line
    (standin.folder / "broken.cpp").unlink()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(standin.folder / "table.cpp"))
    assert "cache folder cannot be written" in refused(monkeypatch, capsys)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in refused(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", "8.0"), ("add --cuda",)),
        (("--cuda", "--arch", "7.0"), ("--arch 7.0", "7.5, 8.0", "'7.0'")),
        (("--cuda", "--arch", "8.0,"), ("--arch 8.0,", "''")),
        (("--cuda", "--arch", "sm_80"), ("'sm_80'",)),
        (("--cuda", "--report", "nowhere/report.json"), ("--report", "nowhere")),
        (("--gpu",), ("--gpu", "--help")),
    ],
)
def test_wrong_arguments(monkeypatch, capsys, arguments, words):
    line = refused(monkeypatch, capsys, *arguments)
    for word in words:
        assert word in line


def test_arguments_are_read():
    assert parse_targets(None) == Targets(ARCHITECTURES, "12.0")
    assert parse_targets("9.0, 8.0") == Targets(("8.0", "9.0"))
    assert parse_targets("10.0+PTX,9.0+PTX") == Targets(("9.0", "10.0"), "10.0")
    with pytest.raises(InputError):
        parse_targets("")


def test_a_build_without_a_compiler(tiny, no_nvcc, monkeypatch, capsys):
    monkeypatch.setattr(sources, "CUDA", tiny)
    assert "no CUDA compiler" in refused(monkeypatch, capsys, "--cuda")


def test_a_broken_source_is_one_line(tiny, compilers, monkeypatch, capsys):
    (tiny.folder / "tiny.cu").write_text("void broken() { undeclared(); }\n")
    monkeypatch.setattr(sources, "CUDA", tiny)
    line = refused(monkeypatch, capsys, "--cuda", "--arch", "8.0")
    assert 'identifier "undeclared" is undefined' in line


def test_an_undefined_function_ends_the_build(tiny, compilers, monkeypatch, capsys):
    (tiny.folder / "tiny.cu").write_text("void elsewhere();\nvoid here() { elsewhere(); }\n")
    monkeypatch.setattr(sources, "CUDA", tiny)
    assert "undefined reference to `elsewhere()'" in refused(monkeypatch, capsys, "--cuda", "--arch", "8.0")


def test_a_warning_is_an_error(tiny, compilers, monkeypatch, capsys, tmp_path):
    source = tiny.folder / "tiny.cu"
    source.write_text(source.read_text().replace("{ values[", "{ int unused; values["))
    monkeypatch.setattr(sources, "CUDA", tiny)
    line = refused(monkeypatch, capsys, "--cuda", "--arch", "8.0", "--report", tmp_path / "report.json")
    assert "the build has" in line
    assert '"unused" was declared but never referenced' in line
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] >= 1


def test_a_spill_is_an_error(tiny, compilers, monkeypatch, capsys, tmp_path):
    source = tiny.folder / "tiny.cu"
    body = """{
  float kept[96];
  for (int i = 0; i < 96; ++i) kept[i] = values[threadIdx.x + 256 * i];
  __syncthreads();
  for (int i = 0; i < 96; ++i) values[threadIdx.x + 256 * i] = kept[i] * kept[95 - i] * kScale;
}
"""
    text = source.read_text().replace("__launch_bounds__(256)", "__launch_bounds__(1024, 2)")
    source.write_text(
        text.replace("{ values[threadIdx.x] *= kScale; }", body.replace("for", "\n#pragma unroll\n  for"))
    )
    monkeypatch.setattr(sources, "CUDA", tiny)
    line = refused(monkeypatch, capsys, "--cuda", "--arch", "8.0", "--report", tmp_path / "report.json")
    assert "scale_kernel<float, -3> on 8.0 spills" in line
    (kernel,) = json.loads((tmp_path / "report.json").read_text())["kernels"]
    assert kernel["spill_bytes"] > 0
    assert kernel["shared_bytes"] == 2048


def test_a_kernel_that_the_table_misses(tiny, compilers, monkeypatch, capsys):
    source = tiny.folder / "tiny.cu"
    source.write_text(source.read_text().replace('{{"scale_kernel<float, -3>"', '{{"scale_kernel"'))
    monkeypatch.setattr(sources, "CUDA", tiny)
    line = refused(monkeypatch, capsys, "--cuda", "--arch", "8.0")
    assert "kernel scale_kernel<float, -3> has no row for 8.0" in line


def test_a_second_build_compiles_nothing(tiny, compiler_runs, monkeypatch, capsys):
    monkeypatch.setattr(sources, "CUDA", tiny)
    for _ in range(2):
        code, out, _ = run(monkeypatch, capsys, "--cuda", "--arch", "8.0+PTX")
        assert not code
        assert "built for 8.0 and PTX" in out
    assert len(compiler_runs()) == 1
    assert find_exact(tiny, Targets(("8.0",), "8.0")) is not None


def test_one_list_of_sources():
    names = {path.name for path in CUDA.sources}
    assert "torch_ops.cpp" in names
    assert any(name.endswith(".cu") for name in names)
    assert CUDA.key(13) != CUDA.key(12)
    assert CUDA.key(13) == CUDA.key(13)


def test_cores_are_not_exceeded(monkeypatch):
    cores = usable_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    monkeypatch.setenv("MAX_JOBS", "1")
    assert usable_cores() == 1
    monkeypatch.setenv("MAX_JOBS", str(cores + 5))
    assert usable_cores() == cores
    monkeypatch.setenv("MAX_JOBS", "many")
    assert usable_cores() == cores
