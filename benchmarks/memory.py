"""The memory of a training step: our networks with ``vovnet.memory_efficient``, timm's and torchvision's.

    python -m benchmarks.memory [--time [--channels-last]]

Backbones are counted with fake tensors, which have shapes but no numbers. Detectors are counted with real tensors,
because their boxes depend on numbers. The counts are sums over tensors and the same on every machine. They include what
our operators allocate in Python, but not the workspaces inside oneDNN's and cuDNN's operators.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakSet

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.batches import CLASSES, make_batch
from benchmarks.common import Ratio, environment, positive, throughput_table, timed
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.models.build import build_detector
from vovnet.memory import Memory as MemoryMode
from vovnet.memory import memory_efficient
from vovnet.ops import aggregate, conv
from vovnet.timing.rounds import interleave
from vovnet.vovnet import OsaStage

KEPT_GOALS: dict[MemoryMode, float] = {"normal": 0.58, "low": 0.40}
TIME_GOALS: dict[MemoryMode, float] = {"normal": 1.0, "low": 1.08}
MIB = 2**20


@dataclass(frozen=True)
class Network:
    """A row of the table: a network of timm's, ours or torchvision's, and how it saves memory."""

    name: str
    memory: MemoryMode | None = None
    checkpoint: bool = False

    def __str__(self) -> str:
        whose = "torchvision" if self.name.startswith("resnet") else "timm" if self.name.endswith("a") else "ours"
        with_checkpoints = ", checkpointed blocks" if self.checkpoint else ""
        return f"{whose} {self.name}{f', {self.memory}' if self.memory else ''}{with_checkpoints}"


NETWORKS = {
    "vovnet39": [
        Network("vovnet39a"),
        Network("vovnet39"),
        Network("vovnet39", "normal"),
        Network("vovnet39", "low"),
        Network("vovnet39", "normal", checkpoint=True),
    ],
    "resnet": [Network("resnet50"), Network("resnet101")],
    "vovnet57": [Network("vovnet57a"), Network("vovnet57"), Network("vovnet57", "normal"), Network("vovnet57", "low")],
}
"""Rows by their name for ``--networks``; ratios are to the first row of a network, which is timm's."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one forward and backward pass."""

    kept: int
    """Bytes that autograd keeps between the passes, without parameters, buffers and the input."""
    peak: int
    """Peak of all tensors."""
    activations: int
    """Part of the peak that is neither parameters, buffers, their gradients nor the input."""


class Kept:
    """Context manager for forward passes; :meth:`bytes` returns what their graphs keep at that moment.

    Args:
        free: tensors that are not counted, nor are tensors that share their memory.
    """

    def __init__(self, free: Iterable[Tensor]) -> None:
        self._free = {_key(x) for x in free}
        self._alive: WeakSet[_Saved] = WeakSet()  # entries end with the graph that saved them
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def bytes(self) -> int:
        """Return the size of all storages that saved tensors refer to, each counted once and whole."""
        storages = {_key(saved.tensor): saved.tensor.untyped_storage() for saved in self._alive}
        return sum(storage.nbytes() for key, storage in storages.items() if key not in self._free)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())  # detached, because an output would keep its own graph alive
        self._alive.add(saved)
        return saved


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _key(x: Tensor) -> int:
    """Return a key of a tensor's storage, valid while the storage exists; fake tensors have no address."""
    return x.untyped_storage()._cdata


class OpenedOperators(TorchDispatchMode):
    """Run the bodies of our operators as PyTorch calls, so that outer modes see what they allocate."""

    _bodies: ClassVar[dict[str, Callable[..., Any]]] = {
        op._qualname: op._init_fn
        for op in (aggregate._aggregate, aggregate._aggregate_backward, conv._conv, conv._conv_backward)
    }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the body of one of our operators, or the operator."""
        if func.namespace == "mkldnn" and isinstance(args[0], FakeTensor):
            return args[0]  # the in-place convolution of vovnet.ops.onednn has no fake kernel
        body = self._bodies.get(func._schema.name)
        if body is None:
            return func(*args, **(kwargs or {}))
        with self:
            return body(*args, **(kwargs or {}))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps after ``model(x)``, without parameters, buffers and ``x``."""
    with Kept([*model.parameters(), *model.buffers(), x]) as kept:
        out = model(x)
    count = kept.bytes()
    del out
    return count


def measure(model: nn.Module, inputs: Sequence[Tensor], loss: Callable[[], Tensor]) -> Memory:
    """Count one forward pass, made by ``loss`` from ``inputs``, and its backward pass."""
    tracker = MemTracker()
    tracker.track_external(model, *inputs)
    with tracker, OpenedOperators():
        with Kept([*model.parameters(), *model.buffers(), *inputs]) as kept:
            total = loss()
        count = kept.bytes()
        total.backward()
    peak = {str(kind.value): size for kind, size in _on(tracker, inputs[0].device).items() if kind != "Total"}
    return Memory(count, sum(peak.values()), peak["Activation"] + peak["Temp"])


def _on(tracker: MemTracker, device: torch.device) -> dict[Any, int]:
    return tracker.get_tracker_snapshot("peak")[device]


@contextmanager
def fake(model: nn.Module) -> Iterator[None]:
    """Make the model's tensors fake, and new tensors within the context."""
    mode = FakeTensorMode()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = mode.from_tensor(parameter.detach())
            setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))
    with mode:
        yield


def build_backbone(network: Network) -> nn.Module:
    """Return a network from images (N, 3, H, W) to maps of strides 4 to 32; norms are frozen, all parameters train."""
    if network.name.startswith("resnet"):
        net = resnet.__dict__[network.name](norm_layer=FrozenBatchNorm2d)
        return IntermediateLayerGetter(net, {f"layer{i}": str(i - 1) for i in range(1, 5)}).train()
    net = timm.create_model(network.name, features_only=True, out_indices=(1, 2, 3, 4))
    return _prepared(freeze_batch_norm_2d(net), network).train()


def build_whole(network: Network) -> nn.Module:
    """Return Faster R-CNN with random weights and frozen norms: the shipped recipe's, or torchvision's for a ResNet."""
    if network.name.startswith("resnet"):
        backbone = resnet_fpn_backbone(
            backbone_name=network.name, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
        return FasterRCNN(backbone, CLASSES + 1, _skip_resize=True).train()
    model = load_recipe("faster_rcnn_vovnet39_fpn").model
    detector = build_detector(replace(model, backbone=network.name, num_classes=CLASSES), download=False)
    return _prepared(detector, network).train()


def _prepared(model: nn.Module, network: Network) -> nn.Module:
    if network.memory:
        memory_efficient(model, network.memory)
    for module in model.modules():
        if isinstance(module, OsaStage):  # what set_grad_checkpointing of the whole network does
            module.grad_checkpointing = network.checkpoint
    return model


def backbone_memory(network: Network, size: Sequence[int], *, real: bool = False) -> Memory:
    """Count the backbone alone; the loss is the sum of its maps."""
    model = build_backbone(network)
    with nullcontext() if real else fake(model):
        x = torch.rand(1, 3, *size)
        return measure(model, [x], lambda: total(model(x)))


def detector_memory(network: Network, size: tuple[int, int]) -> Memory:
    """Count the whole detector with real tensors, because its proposals depend on numbers."""
    torch.manual_seed(0)
    model = build_whole(network)
    images, targets = make_batch(0, size=size, images=1, objects=8, masks=False)
    images = [image / 255 for image in images]
    return measure(model, images, lambda: total(model(images, targets)))


def total(outputs: Any) -> Tensor:
    """Return the sum of all tensors in a list or a dictionary."""
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return torch.stack([value.sum() for value in values]).sum()


def table(title: str, groups: Sequence[Sequence[Network]], count: Callable[[Network], Memory]) -> list[Ratio]:
    """Print one line per network; return the ratios to timm's for ``memory_efficient``."""
    width = max(len(str(network)) for group in groups for network in group)
    print(f"\n{title}\n{'':{width}}  kept MiB  / timm's  peak MiB  of it activations", flush=True)
    ratios = []
    for group in groups:
        theirs: Memory | None = None
        for network in group:
            gc.collect()  # frees tensors of the previous network that are in reference cycles
            memory = count(network)
            shown = ""
            if network.name.startswith("vovnet"):
                theirs = theirs or memory
                ratio = memory.kept / theirs.kept
                shown = f"{ratio:.3f}"
                if network.memory and not network.checkpoint:
                    name = f"kept, {network} / {group[0]}"
                    ratios.append(Ratio(name, ratio, KEPT_GOALS[network.memory], at_least=False))
            sizes = f"{memory.peak / MIB:8.1f}  {memory.activations / MIB:17.1f}"
            print(f"{network!s:{width}}  {memory.kept / MIB:8.1f}  {shown:>8}  {sizes}", flush=True)
    return ratios


def compare_times(options: argparse.Namespace) -> list[Ratio]:
    """Time forward and backward passes of timm's ``vovnet39a``, unchanged and converted, with the same weights."""
    x = torch.rand(1, 3, *options.size)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    theirs = Network("vovnet39a")
    start = build_backbone(theirs).state_dict()

    def contestant(network: Network) -> Callable[[int], float]:
        model = build_backbone(network)
        model.load_state_dict(start)
        model.to(memory_format=layout)

        def one_round(number: int) -> float:
            model.zero_grad(set_to_none=True)
            return timed(lambda: total(model(x)).backward())

        return one_round

    networks = [theirs, *(replace(theirs, memory=memory) for memory in TIME_GOALS)]
    seconds = interleave(
        {str(network): contestant(network) for network in networks}, options.rounds, warmup=options.warmup
    )
    height, width = options.size
    print(
        f"\nforward and backward of the backbone, 1 x {height}x{width} pixels, frozen norms, "
        f"{'channels-last' if options.channels_last else 'contiguous'}, by converting timm's vovnet39a\n"
        f"{throughput_table(seconds, dict.fromkeys(seconds, 1))}"
    )
    return [time_ratio(seconds[str(n)], seconds[str(theirs)], str(n), str(theirs), n.memory) for n in networks[1:]]


def time_ratio(ours: Sequence[float], theirs: Sequence[float], name: str, their_name: str, memory: Any) -> Ratio:
    """Return the median of the ratios of single rounds."""
    rounds = [one / other for one, other in zip(ours, theirs, strict=True)]
    note = (
        f"of medians {statistics.median(ours) / statistics.median(theirs):.3f}, of the least "
        f"{min(ours) / min(theirs):.3f}, of single rounds from {min(rounds):.3f} to {max(rounds):.3f} in {len(rounds)}"
    )
    value = statistics.median(rounds)
    return Ratio(f"seconds, {name} / {their_name}", value, TIME_GOALS[memory], at_least=False, note=note)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--size", type=positive, nargs=2, default=[800, 1344], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument(
        "--of", nargs="*", choices=["backbone", "detector"], default=["backbone", "detector"], help="what to count"
    )
    options.add_argument("--time", action="store_true", help="also compare times, with real tensors")
    options.add_argument("--channels-last", action="store_true", help="with --time: channels-last images and weights")
    options.add_argument("--rounds", type=positive, default=7, help="with --time: rounds that are measured")
    options.add_argument("--warmup", type=int, default=1, help="rounds before them")
    options.add_argument("--threads", type=positive, help="torch threads; by default torch's own choice")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Ratio]:
    """Parse the command line and run; print the ratios that have goals and return them."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(environment("vovnet", "torch", "torchvision", "timm", threads=torch.get_num_threads()))
    groups = [NETWORKS[name] for name in options.networks]
    height, width = options.size
    step = f"forward and backward, 1 x {height}x{width} pixels, float32, frozen norms"
    ratios: list[Ratio] = []
    if "backbone" in options.of:
        title = f"backbone, {step}, all parameters training, over fake tensors"
        ratios += table(title, groups, lambda network: backbone_memory(network, options.size))
    if "detector" in options.of:
        title = f"Faster R-CNN, {step}, over real tensors (its boxes depend on numbers)"
        table(title, groups, lambda network: detector_memory(network, (height, width)))
    if options.time:
        ratios += compare_times(options)
    print("", *ratios, sep="\n")
    return ratios


if __name__ == "__main__":
    main()
