"""The operators under compilation, export, distribution, checkpointing and vmap."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import osa_reference as reference
import pytest
import torch
from osa_reference import draw
from torch import Tensor, nn
from torch.distributed import FileStore, destroy_process_group, init_process_group
from torch.export import Dim, export
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vovnet.ops import conv_affine_relu, osa_aggregate

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Block(nn.Module):
    """A One-Shot-Aggregation block of two layers with frozen norms and an identity."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        shapes = {"first": (4, 6, 3, 3), "second": (4, 4, 3, 3), "weight": (6, 14, 1, 1), "bias": (6,)}
        for seed, (name, shape) in enumerate(shapes.items()):
            self.register_parameter(name, nn.Parameter(draw(shape, seed, dtype) / 4))
        self.register_buffer("scale", draw((4,), 7, dtype))
        self.register_buffer("shift", draw((4,), 8, dtype))

    def conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv_affine_relu(x, weight, self.scale, self.shift, padding=1)

    def aggregate(self, maps: list[Tensor], identity: Tensor) -> Tensor:
        return osa_aggregate(maps, self.weight, self.bias, identity)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv(x, self.first)
        return self.aggregate([x, first, self.conv(first, self.second)], x)


class Plain(Block):
    """The same block with PyTorch's own operators."""

    def conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return reference.convolution(x, weight, self.scale, self.shift, (1, 1, 1, 1), True)

    def aggregate(self, maps: list[Tensor], identity: Tensor) -> Tensor:
        return reference.aggregate(maps, self.weight, self.bias, identity, True)


def step(function, module: nn.Module, shape=(2, 6, 5, 4), layout="contiguous", dtype=torch.float64) -> list[Tensor]:
    """Return the output, and the gradients of the input and of the parameters."""
    module.zero_grad()
    x = draw(shape, 9, dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    out = function(x)
    out.backward(draw(out.shape, 10, dtype).contiguous(memory_format=LAYOUTS[layout]))
    return [out.detach(), x.grad, *(p.grad for p in module.parameters())]


def equal(got: list[Tensor], expected: list[Tensor], bound: float = 1e-12) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.fixture(autouse=True)
def forget_graphs():
    """Reset the compiler, so that each test compiles anew."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(layout, dynamic):
    block, plain = Block(), Plain()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 6, 5, 4), (3, 6, 7, 9)):
        equal(step(compiled, block, shape, layout), step(plain, plain, shape, layout))


def test_compiles_with_inductor():
    """The compiled code calls our operators, relies on the strides of their fake kernels, and needs no C++ compiler."""
    block = Block(torch.float32).to(memory_format=torch.channels_last)
    compiled = torch.compile(block, fullgraph=True)
    got = step(compiled, block, layout="channels-last", dtype=torch.float32)
    equal(got, step(block, block, layout="channels-last", dtype=torch.float32), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_with_sizes_left_open(layout):
    block, plain = Block(), Plain()
    x = draw((2, 6, 5, 4), 0).contiguous(memory_format=LAYOUTS[layout])
    sizes = ({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    program = export(block, (x,), dynamic_shapes=sizes)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("vovnet.conv_affine_relu.default") == 2
    assert called.count("vovnet.osa_aggregate.default") == 1
    other = draw((3, 6, 8, 1), 1).contiguous(memory_format=LAYOUTS[layout])
    for module in (program.module(), program.run_decompositions().module()):
        for image in (x, other):
            torch.testing.assert_close(module(image), plain(image), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant, layout):
    block, plain = Block(), Plain()
    got = step(lambda x: checkpoint(block, x, use_reentrant=reentrant), block, layout=layout)
    equal(got, step(plain, plain, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_distributed_data_parallel(layout, tmp_path):
    """Gradients have the strides that DDP's buckets expect; DDP would warn of others."""
    store = FileStore(str(tmp_path / "store"), 1)
    init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        block = Block().to(memory_format=LAYOUTS[layout])
        parallel = DistributedDataParallel(block)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = step(parallel, block, layout=layout)
    finally:
        destroy_process_group()
    plain = Plain()
    equal(got, step(plain, plain, layout=layout))


def test_a_copy_and_a_saved_state_are_as_usual():
    block, plain = Block(), Plain()
    plain.load_state_dict(copy.deepcopy(block).state_dict())
    equal(step(block, block), step(plain, plain))


def test_gradients_add_up_over_two_passes():
    block, plain = Block(), Plain()
    equal(step(lambda x: block(x) + block(x * 2), block), step(lambda x: plain(x) + plain(x * 2), plain))


@pytest.mark.parametrize("name", ["osa_aggregate", "conv_affine_relu"])
def test_vmap_is_refused_in_words(name):
    x, weight = draw((2, 1, 3, 4, 5), 0), draw((2, 3, 1, 1), 1)

    def function(x: Tensor) -> Tensor:
        return osa_aggregate([x], weight) if name == "osa_aggregate" else conv_affine_relu(x, weight)

    with pytest.raises(RuntimeError, match=f"vmap over vovnet::{name}.* put that dimension into N"):
        torch.vmap(function)(x)


@pytest.mark.parametrize("name", ["osa_aggregate", "conv_affine_relu"])
def test_a_second_derivative_is_an_error(name):
    """The result is an error, not a silent zero."""
    x, weight = draw((1, 3, 4, 5), 0).requires_grad_(), draw((2, 3, 1, 1), 1).requires_grad_()
    out = osa_aggregate([x], weight) if name == "osa_aggregate" else conv_affine_relu(x, weight)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}_backward: a second derivative"):
        gradient.square().sum().backward()


def test_a_gradient_without_the_bits_is_an_error():
    """This is about the operator itself; ``osa_aggregate`` always asks for the mask if it may be needed."""
    x, weight = draw((1, 3, 4, 5), 0), draw((2, 3, 1, 1), 1).requires_grad_()
    with pytest.raises(RuntimeError, match="keep_mask must be true"):
        torch.ops.vovnet.osa_aggregate([x], weight, None, None, True, False)


# Python tells of each process that is started, and of each module that is imported, through audit events.
CODE = """
import json, os, sys

started, step = {}, "import timm"

def hook(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"):
        started.setdefault(step, []).append(f"{event} {arguments[:1]}")

sys.addaudithook(hook)
import timm, torch, torchvision
step = "import vovnet"
import vovnet
early = sorted(name for name in sys.modules if name.startswith("vovnet.ops"))
step = "import vovnet.ops"
import vovnet.ops
step = "use"
for layout in (torch.contiguous_format, torch.channels_last):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 5, 4, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        conv = torch.randn(8, 8, 3, 3, dtype=dtype, requires_grad=True)
        weight = torch.randn(8, 16, 1, 1, dtype=dtype, requires_grad=True)
        y = vovnet.ops.conv_affine_relu(x, conv, torch.ones(8, dtype=dtype), torch.ones(8, dtype=dtype), padding=1)
        vovnet.ops.osa_aggregate([x, y], weight, None, x).sum().backward()
step = "control"
import subprocess
subprocess.run([sys.executable, "-c", ""], check=True)
built = os.environ["TORCH_EXTENSIONS_DIR"]  # the checkout's own path may well have the project's name in it
loaded = [line.split()[-1] for line in open("/proc/self/maps") if built in line and line.strip().endswith(".so")]
print(json.dumps({"early": early, "started": started, "loaded": loaded}))
"""


def test_cpu_tensors_start_no_compiler(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started either, whatever VOVNET_OPS is; and ``import vovnet`` does not import the operators."""
    monkeypatch.setenv("VOVNET_OPS", "require")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    done = subprocess.run([sys.executable, "-c", CODE], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["early"] == []
    assert told["started"].keys() - {"import timm"} == {"control"}, told
    assert told["loaded"] == []
    assert not (tmp_path / "extensions").exists()
