"""The CUDA kernels on the host: g++ compiles their source against ``tests/vovnet/ops/emulation``, ctypes calls them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "vovnet" / "ops" / "csrc" / "cuda"
EMULATION = ROOT / "tests" / "vovnet" / "ops" / "emulation"
KERNEL_SOURCES = ("forward.cu", "gradients.cu", "relu_backward.cu", "sum_partials.cu")
COMPILER = shutil.which("g++")
# Fibers jump between stacks, which glibc's fortified longjmp takes for an error.
FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE",
]

FLOAT16, BFLOAT16, FLOAT32, TENSOR_FLOAT32 = range(4)
STORAGE = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16, FLOAT32: torch.float32, TENSOR_FLOAT32: torch.float32}


def build(sources: Sequence[Path], *definitions: str, folder: Path = KERNELS) -> ctypes.CDLL:
    """Compile sources and load them. Equal files with equal flags are compiled once."""
    assert COMPILER is not None
    command = [COMPILER, *FLAGS, *(f"-D{name}" for name in definitions), f"-I{EMULATION}", f"-I{folder}"]
    # Places do not count, contents do: a mutated copy of the kernels is the same wherever it lies.
    digest = hashlib.sha256("\0".join([*FLAGS, *definitions, *(path.name for path in sources)]).encode())
    for path in sorted({*EMULATION.glob("*"), *folder.glob("*.cu*"), *folder.glob("*.h"), *sources}):
        digest.update(path.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"vovnet-emulation-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"{digest.hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:  # beside it, so that the last step is a rename

            def compile_one(source: Path) -> str:
                target = f"{scratch}/{source.name}.o"
                subprocess.run([*command, "-c", "-o", target, "-x", "c++", source], check=True)
                return target

            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(compile_one, sources))
            subprocess.run([*command, "-o", f"{scratch}/library.so", *objects], check=True)
            os.replace(f"{scratch}/library.so", library)
    return ctypes.CDLL(str(library))


class EmulationError(Exception):
    """The machine found an error in a kernel, or a launcher refused its arguments."""


class Emulator:
    """The launchers of ``kernels.h`` on an emulated GPU. Every tensor has an allocation of exactly its size."""

    def __init__(self, capability: int, folder: Path = KERNELS) -> None:
        self.only_last = -1  # a launch runs only so many blocks, its last; -1: all
        sources = [EMULATION / "machine.cpp", EMULATION / "bindings.cpp", *(folder / name for name in KERNEL_SOURCES)]
        self.library = build(sources, f"EMULATED_CAPABILITY={capability}", folder=folder)
        self.library.emulation_message.restype = ctypes.c_char_p
        self.library.emulated_weight_gradient_workspace.restype = ctypes.c_size_t
        self.library.emulated_relu_backward_workspace.restype = ctypes.c_size_t

    def reset(self, seed: int, inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor | None]) -> None:
        """Register these tensors only, and begin another random order. Outputs become NaN, except for huge ones."""
        self.library.emulation_reset(ctypes.c_uint64(seed))
        self.library.emulation_only_last(ctypes.c_int64(self.only_last))
        for tensor in outputs:
            if tensor is not None and tensor.nbytes < 2**28:
                tensor.view(torch.uint8).fill_(0xFF)
        for writable, tensors in enumerate((inputs, outputs)):
            for tensor in tensors:
                if tensor is not None:
                    self.library.emulation_allocate(pointer(tensor), ctypes.c_int64(tensor.nbytes), writable)

    def check(self, status: int) -> None:
        if status != 0:
            raise EmulationError(self.library.emulation_message().decode())

    def supported(self, dtype: int, capability: int, widths: Sequence[int], out_channels: int) -> bool:
        array = (ctypes.c_int * len(widths))(*widths)
        return bool(self.library.emulated_supported(dtype, capability, array, len(widths), out_channels))

    def forward(
        self,
        x: Sequence[torch.Tensor],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        *,
        relu: bool,
        mask: bool,
        dtype: int,
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return out (pixels, O) and the mask for inputs (pixels, channels)."""
        pixels, out_channels = x[0].shape[0], weight.shape[0]
        out = torch.empty(pixels, out_channels, dtype=STORAGE[dtype])
        bits = torch.empty(pixels * out_channels // 8, dtype=torch.uint8) if mask else None
        self.reset(seed, [*x, weight, bias, residual], [out, bits])
        self.check(
            self.library.emulated_forward(
                pointers(x), channels(x), len(x), pointer(weight), pointer(bias), pointer(residual), pointer(out),
                pointer(bits), ctypes.c_int64(pixels), out_channels, relu, dtype,
            )
        )  # fmt: skip
        return out, bits

    def input_gradients(
        self,
        g: torch.Tensor,
        weight: torch.Tensor,
        widths: Sequence[int],
        wanted: Sequence[bool],
        *,
        dtype: int,
        seed: int,
    ) -> list[torch.Tensor | None]:
        """Return the wanted gradients of the inputs for g (pixels, O) and a weight (O, sum of widths)."""
        pixels = g.shape[0]
        gradients = [
            torch.empty(pixels, width, dtype=STORAGE[dtype]) if want else None
            for width, want in zip(widths, wanted, strict=True)
        ]
        self.reset(seed, [g, weight], gradients)
        self.check(
            self.library.emulated_input_gradients(
                pointer(g), pointer(weight), pointers(gradients), (ctypes.c_int * len(widths))(*widths), len(widths),
                ctypes.c_int64(pixels), g.shape[1], dtype,
            )
        )  # fmt: skip
        return gradients

    def weight_gradient(self, g: torch.Tensor, x: Sequence[torch.Tensor], *, dtype: int, seed: int) -> torch.Tensor:
        """Return the gradient (O, sum of channels) for g (pixels, O) and inputs (pixels, channels)."""
        pixels, out_channels = g.shape
        gradient = torch.empty(out_channels, sum(each.shape[1] for each in x), dtype=STORAGE[dtype])
        size = self.library.emulated_weight_gradient_workspace(
            channels(x), len(x), ctypes.c_int64(pixels), out_channels, dtype
        )
        workspace = torch.empty(size, dtype=torch.uint8)
        self.reset(seed, [g, *x], [gradient, workspace])
        self.check(
            self.library.emulated_weight_gradient(
                pointer(g), pointers(x), channels(x), len(x), pointer(gradient), pointer(workspace),
                ctypes.c_int64(pixels), out_channels, dtype,
            )
        )  # fmt: skip
        return gradient

    def relu_backward(
        self,
        grad: torch.Tensor,
        out: torch.Tensor | None,
        mask: torch.Tensor | None,
        *,
        want_g: bool,
        want_shift: bool,
        in_place: bool = False,
        dtype: int,
        seed: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return g and its sum over pixels for grad (pixels, channels)."""
        pixels, width = grad.shape
        g = grad.clone() if in_place else torch.empty_like(grad) if want_g else None
        shift = torch.empty(width) if want_shift else None
        size = self.library.emulated_relu_backward_workspace(ctypes.c_int64(pixels), width)
        workspace = torch.empty(size, dtype=torch.uint8)
        self.reset(seed, [grad, out, mask], [None if in_place else g, shift, workspace])
        if in_place:
            assert g is not None
            self.library.emulation_allocate(pointer(g), ctypes.c_int64(g.nbytes), 1)
        self.check(
            self.library.emulated_relu_backward(
                pointer(g if in_place else grad), pointer(out), pointer(mask), pointer(g),
                pointer(shift), pointer(workspace), ctypes.c_int64(pixels), width, dtype,
            )
        )  # fmt: skip
        return g, shift


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def pointers(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(pointer(tensor) for tensor in tensors))


def channels(tensors: Sequence[torch.Tensor]) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * len(tensors))(*(tensor.shape[1] for tensor in tensors))
