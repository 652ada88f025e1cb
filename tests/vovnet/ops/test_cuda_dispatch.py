"""Which tensors the compiled kernels are given, and how, on a machine without a GPU: stand-ins take the kernels' place.

The stand-ins compute on the CPU what ``csrc/cuda/torch_ops.cpp`` promises, and demand what it demands.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import osa_reference as reference
import pytest
import torch
from osa_reference import LAYOUTS, draw, leaf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vovnet.ops import aggregate, conv, conv_affine_relu, cuda, osa_aggregate
from vovnet.ops.relu_mask import pack_positive, relu_backward

LAST = torch.channels_last


def demand(*tensors: Tensor | None) -> None:
    """Check that tensors are aligned to 16 bytes, maps channels-last, others contiguous, all but masks of one dtype."""
    present = [tensor for tensor in tensors if tensor is not None]
    for tensor in present:
        assert tensor.data_ptr() % 16 == 0
        assert tensor.is_contiguous(memory_format=LAST if tensor.dim() == 4 else torch.contiguous_format)
    assert len({tensor.dtype for tensor in present} - {torch.uint8}) == 1


class Kernels:
    """Stand-ins for ``torch.ops.vovnet._cuda_*``; ``calls`` lists the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.capability = 80
        self.tf32: list[bool] = []

    def _cuda_supported(self, inputs: list[Tensor], weight: Tensor, capability: int, tf32: bool) -> bool:
        assert weight.dim() == 2
        assert weight.is_contiguous()
        assert weight.dtype == inputs[0].dtype
        assert capability == self.capability
        real = [tensor for tensor in (*inputs, weight) if not isinstance(tensor, FakeTensor)]
        if any(tensor.data_ptr() % 16 for tensor in real):
            return False
        return all(x.shape[1] * x.element_size() % 16 == 0 for x in inputs) and weight.shape[0] % 8 == 0

    def _cuda_aggregate_forward(
        self,
        inputs: list[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        with_mask: bool,
        tf32: bool,
    ) -> tuple[Tensor, Tensor]:
        self.calls.append("forward")
        self.tf32.append(tf32)
        demand(*inputs, weight, bias, residual)
        out = reference.aggregate(inputs, weight[:, :, None, None], bias, None, relu).contiguous(memory_format=LAST)
        assert relu or not with_mask
        mask = pack_positive(out) if with_mask else torch.empty(0, dtype=torch.uint8)
        return out if residual is None else out + residual, mask

    def _cuda_aggregate_input_gradients(
        self, g: Tensor, weight: Tensor, inputs: list[Tensor], wanted: list[bool], tf32: bool
    ) -> list[Tensor]:
        self.calls.append("input gradients")
        self.tf32.append(tf32)
        demand(g, weight, *inputs)
        assert any(wanted)
        all_of_them = torch.einsum("nohw,oc->nchw", g, weight).split([x.shape[1] for x in inputs], 1)
        return [d.clone(memory_format=LAST) if w else g.new_empty(0) for d, w in zip(all_of_them, wanted, strict=True)]

    def _cuda_aggregate_weight_gradient(self, g: Tensor, inputs: list[Tensor], tf32: bool) -> Tensor:
        self.calls.append("weight gradient")
        self.tf32.append(tf32)
        demand(g, *inputs)
        return torch.einsum("nohw,nchw->oc", g, torch.cat(inputs, 1)).contiguous()

    def _cuda_relu_backward(
        self, grad: Tensor, out: Tensor | None, mask: Tensor | None, want_g: bool, want_shift: bool
    ) -> tuple[Tensor, Tensor]:
        self.calls.append("relu")
        demand(grad, out, mask)
        assert out is None or mask is None
        g = relu_backward(grad, out if mask is None else mask)
        total = g.float().sum((0, 2, 3)) if want_shift else torch.empty(0)
        return g.clone(memory_format=LAST) if want_g else grad.new_empty(0), total


class Torch:
    """The module ``torch`` for ``vovnet.ops.cuda``, with the stand-ins as operators."""

    def __init__(self, kernels: Kernels) -> None:
        self.ops = SimpleNamespace(vovnet=kernels)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Pretend a machine with a GPU whose operators are built."""
    kernels = Kernels()
    monkeypatch.setattr(cuda, "torch", Torch(kernels))
    monkeypatch.setattr(cuda.loader, "available", lambda device: True)
    monkeypatch.setattr(cuda.loader, "capability", lambda device: kernels.capability)
    return kernels


@pytest.fixture
def on_the_cpu(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Make CPU tensors take the path of CUDA tensors, so that the whole operators run."""

    def supported(inputs: list[Tensor], weight: Tensor) -> bool:
        last = all(x.is_contiguous(memory_format=LAST) for x in inputs)
        return last and kernels._cuda_supported(list(inputs), cuda._matrix(weight, inputs[0]), 80, False)

    def gradient_before_relu(
        grad: Tensor, output_or_mask: Tensor | None, wants_sum: bool
    ) -> tuple[Tensor, Tensor | None]:
        if grad.is_contiguous(memory_format=LAST):
            return cuda.masked_gradient(grad, output_or_mask, wants_sum)
        return relu_backward(grad, output_or_mask), None

    monkeypatch.setattr(aggregate.cuda, "supported", supported)
    monkeypatch.setattr(conv.cuda, "gradient_before_relu", gradient_before_relu)
    return kernels


def tensors(layouts=("channels-last",), dtype=torch.float32, parameters=torch.float32):
    """Return two inputs, weight, bias and residual."""
    inputs = [leaf(draw((2, c, 3, 5), c, dtype), layouts[i % len(layouts)]) for i, c in enumerate((8, 16))]
    weight, bias = leaf(draw((8, 24, 1, 1), 2, parameters)), leaf(draw((8,), 3, parameters))
    return inputs, weight, bias, leaf(draw((2, 8, 3, 5), 4, dtype), layouts[-1])


def compare(
    own: Tensor, plain: Tensor, wanted: list[Tensor], layout: str = "channels-last", bound: float = 1e-4
) -> None:
    torch.testing.assert_close(own, plain, rtol=bound, atol=bound)
    grad = LAYOUTS[layout](draw(own.shape, 9, own.dtype))
    for one, other in zip(
        torch.autograd.grad(own, wanted, grad), torch.autograd.grad(plain, wanted, grad), strict=True
    ):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("residual_layout", LAYOUTS)
def test_the_aggregation_by_kernels_is_the_same(on_the_cpu, residual_layout, gradient):
    """The kernels get residual and gradient aligned and channels-last, whatever their layout was."""
    inputs, weight, bias, residual = tensors()
    residual = leaf(residual, residual_layout)
    own = osa_aggregate(inputs, weight, bias, residual)
    plain = reference.aggregate(inputs, weight, bias, residual, True)
    compare(own, plain, [*inputs, weight, bias, residual], gradient)
    assert on_the_cpu.calls == ["forward", "relu", "input gradients", "weight gradient"]


@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_any_parameters_will_do(on_the_cpu, weight_layout):
    inputs, weight, bias, residual = tensors()
    weight, bias = leaf(weight, weight_layout), draw((17,), 3, torch.float32)[1::2].requires_grad_()
    own = osa_aggregate(inputs, weight, bias, residual)
    torch.testing.assert_close(own, reference.aggregate(inputs, weight, bias, residual, True), rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(own.sum(), [weight, bias])
    assert grads[0].stride() == torch.empty_like(weight).stride()
    # One that starts between 16 bytes is the reference's.
    assert on_the_cpu.calls[:1] == ([] if weight_layout.startswith("misaligned") else ["forward"])


def test_parameters_of_float32_beside_lower_maps(on_the_cpu):
    inputs, weight, bias, residual = tensors(dtype=torch.float16)
    own = osa_aggregate(inputs, weight, bias, residual, relu=False)
    exact = [leaf(t.float(), "channels-last" if t.dim() == 4 else "contiguous") for t in (*inputs, residual)]
    plain = reference.aggregate(exact[:2], weight, bias, exact[2], False)
    torch.testing.assert_close(own.float(), plain, rtol=1e-2, atol=1e-2)
    got = torch.autograd.grad(own.sum(), [*inputs, weight, bias])
    assert [g.dtype for g in got] == [torch.float16] * 2 + [torch.float32] * 2
    for one, other in zip(got, torch.autograd.grad(plain.sum(), [*exact[:2], weight, bias]), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("wanted", "relu", "calls"),
    [
        (["x"], True, ["relu", "input gradients"]),
        (["weight"], True, ["relu", "weight gradient"]),
        (["bias"], True, ["relu"]),
        (["bias"], False, ["relu"]),  # the sum over pixels
        (["x", "weight"], False, ["input gradients", "weight gradient"]),
    ],
)
def test_only_what_is_wanted_is_computed(on_the_cpu, wanted, relu, calls):
    inputs, weight, bias, residual = tensors()
    named = {"x": inputs[1], "weight": weight, "bias": bias, "residual": residual}
    for tensor in (*inputs, weight, bias, residual):
        tensor.requires_grad_(False)
    for name in wanted:
        named[name].requires_grad_()
    own = osa_aggregate(inputs, weight, bias, residual, relu)
    compare(own, reference.aggregate(inputs, weight, bias, residual, relu), [named[name] for name in wanted])
    assert [call for call in on_the_cpu.calls if call != "forward"] == calls


@pytest.mark.parametrize(
    "layouts", [("contiguous",), ("channels-last", "contiguous"), ("sliced",), ("misaligned channels-last",)]
)
def test_what_does_not_lie_as_the_kernels_read_takes_the_reference(on_the_cpu, layouts):
    inputs, weight, bias, residual = tensors(layouts)
    own = osa_aggregate(inputs, weight, bias, residual)
    compare(own, reference.aggregate(inputs, weight, bias, residual, True), inputs, layouts[0])
    assert on_the_cpu.calls == []


@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("relu", [True, False])
def test_the_convolution_by_kernels_is_the_same(on_the_cpu, relu, gradient):
    x = leaf(draw((2, 8, 5, 3), 0, torch.float32), "channels-last")
    parameters = [leaf(draw(shape, i, torch.float32)) for i, shape in enumerate(((8, 8, 3, 3), (8,), (8,)))]
    own = conv_affine_relu(x, *parameters, padding=1, relu=relu)
    plain = reference.convolution(x, *parameters, (1, 1, 1, 1), relu)
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)
    grad, wanted = LAYOUTS[gradient](draw(own.shape, 9, own.dtype)), [x, *parameters]
    for one, other in zip(
        torch.autograd.grad(own, wanted, grad), torch.autograd.grad(plain, wanted, grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert on_the_cpu.calls == ["relu"]


def fake_maps(dtype=torch.float32, channels=(8, 16), memory_format=LAST, device="cuda") -> list[Tensor]:
    return [torch.empty(2, c, 3, 5, dtype=dtype, device=device).to(memory_format=memory_format) for c in channels]


def test_takes_channels_last_cuda_tensors_that_the_kernels_serve(kernels, monkeypatch):
    with FakeTensorMode():
        weight = torch.empty(8, 24, 1, 1, device="cuda")
        assert cuda.supported(fake_maps(), weight)
        assert cuda.supported(fake_maps(torch.float16), weight)  # float32 parameters are lowered before they are shown
        assert not cuda.supported(fake_maps(memory_format=torch.contiguous_format), weight)
        assert not cuda.supported([*fake_maps()[:1], *fake_maps(memory_format=torch.contiguous_format)[1:]], weight)
        assert not cuda.supported(fake_maps(channels=(7, 17)), weight)
        assert not cuda.supported(fake_maps(device="cpu"), torch.empty(8, 24, 1, 1))
        monkeypatch.setattr(cuda.loader, "available", lambda device: False)
        assert not cuda.supported(fake_maps(), weight)


def test_cpu_tensors_do_not_even_ask(monkeypatch):
    def forbid(device: torch.device) -> bool:
        raise AssertionError("this must not happen")

    monkeypatch.setattr(cuda.loader, "available", forbid)
    inputs, weight, bias, residual = tensors()
    osa_aggregate(inputs, weight, bias, residual).sum().backward()
    conv_affine_relu(inputs[0], draw((8, 8, 1, 1), 0, torch.float32).requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("dtype", "layout", "served"),
    [
        (torch.float16, LAST, True),
        (torch.bfloat16, LAST, True),
        (torch.float32, LAST, True),
        (torch.float64, LAST, False),
        (torch.float32, torch.contiguous_format, False),
    ],
)
def test_which_gradients_go_through_the_relu_kernel(kernels, monkeypatch, dtype, layout, served):
    seen = []
    monkeypatch.setattr(cuda, "masked_gradient", lambda *arguments: (seen.append("kernel"), None))
    monkeypatch.setattr(cuda, "relu_backward", lambda *arguments: seen.append("reference"))
    with FakeTensorMode():
        (grad,) = fake_maps(dtype, (8,), layout)
        cuda.gradient_before_relu(grad, grad, False)
        (grad,) = fake_maps(dtype, (8,), layout, "cpu")
        cuda.gradient_before_relu(grad, grad, False)
    assert seen == ["kernel" if served else "reference", "reference"]


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_as_pytorch_has_it_for_convolutions(on_the_cpu, monkeypatch, allowed):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        inputs, weight, bias, residual = tensors()
        osa_aggregate(inputs, weight, bias, residual).sum().backward()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert on_the_cpu.tf32 == [allowed] * 3


def test_no_bits_without_autograd(on_the_cpu):
    inputs, weight, bias, residual = tensors()
    with torch.no_grad():
        own = osa_aggregate(inputs, weight, bias, residual)
    torch.testing.assert_close(own, reference.aggregate(inputs, weight, bias, residual, True), rtol=1e-4, atol=1e-4)
    assert on_the_cpu.calls == ["forward"]
