"""Programs that train: each takes two steps of a model that keeps less for its backward pass."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from client_models import small
from torch import nn
from torch.utils.data import DataLoader

import vovnet

Loader = DataLoader[tuple[torch.Tensor, ...]]


def first_weight(model: nn.Module) -> torch.Tensor:
    return next(model.parameters()).detach().clone()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(model: nn.Module, loader: Loader, precision: str) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    before = first_weight(model)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", precision=precision, **quiet)
    trainer.fit(Module(), loader)
    assert trainer.global_step == 2
    assert not torch.equal(before, first_weight(model))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(model: nn.Module, loader: Loader, precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, before = accelerate.Accelerator(cpu=True, mixed_precision=precision), first_weight(model)
    prepared, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.01), loader)
    for images, labels in batches:
        accelerator.backward(F.cross_entropy(prepared(images), labels))
        optimizer.step()
        optimizer.zero_grad()
    unwrapped = accelerator.unwrap_model(prepared)
    assert type(unwrapped) is type(model)
    assert not torch.equal(before, first_weight(unwrapped))


def test_ignite(model: nn.Module, loader: Loader) -> None:
    engine, metrics = pytest.importorskip("ignite.engine"), pytest.importorskip("ignite.metrics")
    before = first_weight(model)
    trainer = engine.create_supervised_trainer(model, torch.optim.SGD(model.parameters(), 0.01), F.cross_entropy)
    assert trainer.run(loader, max_epochs=1).iteration == 2
    assert not torch.equal(before, first_weight(model))
    state = engine.create_supervised_evaluator(model, metrics={"accuracy": metrics.Accuracy()}).run(loader)
    assert 0 <= state.metrics["accuracy"] <= 1


@pytest.mark.parametrize("lean", [False, True])
def test_fully_sharded_data_parallel(loader: Loader, tmp_path: Path, lean: bool) -> None:
    """FSDP2, stage by stage, gives the gradients of the model alone."""
    from torch.distributed.fsdp import fully_shard

    model = small()
    alone = copy.deepcopy(model)
    if lean:
        vovnet.memory_efficient(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for stage in model.get_submodule("stages").children():
            fully_shard(stage)
        fully_shard(model)
        images, labels = next(iter(loader))
        for one in (model, alone):
            F.cross_entropy(one(images), labels).backward()
        for shard, whole in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(shard.grad.full_tensor(), whole.grad, rtol=1e-3, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()


def test_fastai(model: nn.Module, loader: Loader, tmp_path: Path) -> None:
    fastai, learner = pytest.importorskip("fastai.vision.all"), pytest.importorskip("fastai.vision.learner")
    before = first_weight(model)
    training = fastai.Learner(fastai.DataLoaders(loader, loader), model, loss_func=F.cross_entropy, path=tmp_path)
    with training.no_bar(), training.no_logging():
        training.fit(1)
    assert not torch.equal(before, first_weight(model))
    assert learner.create_timm_model("vovnet27_slim", 3, pretrained=False)[0](torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_lightly_train_by_name_and_by_instance() -> None:
    """It looks for timm in the classes' module names, which ours are not in; its wrapper for timm takes them."""
    helpers = pytest.importorskip("lightly_train._models.package_helpers")
    from lightly_train._models.timm.timm import TIMMModelWrapper
    from lightly_train.errors import UnknownModelError

    named = helpers.get_wrapped_model("timm/vovnet27_slim", num_input_channels=3)
    with pytest.raises(UnknownModelError):
        helpers.get_wrapped_model(small(), num_input_channels=3)
    wrapped = helpers.get_wrapped_model(TIMMModelWrapper(small()), num_input_channels=3)
    for model in (named, wrapped):
        assert model.feature_dim() == 512
        assert model.forward_features(torch.rand(1, 3, 64, 64))["features"].shape == (1, 512, 2, 2)


def test_lightly_train_pretrains(image_folder: Path, tmp_path: Path) -> None:
    """What it exports are the backbone's weights; the head that it made and did not train comes along."""
    lightly_train = pytest.importorskip("lightly_train")
    how = {"method": "dino", "epochs": 1, "batch_size": 2, "num_workers": 0, "accelerator": "cpu", "devices": 1}
    size = {"image_size": (64, 64), "local_view": None}
    data = str(image_folder / "val")
    lightly_train.pretrain(out=str(tmp_path / "out"), data=data, model="timm/vovnet27_slim", transform_args=size, **how)
    state = torch.load(tmp_path / "out" / "exported_models" / "exported_last.pt", weights_only=True)
    keys = small(num_classes=0).load_state_dict(state, strict=False)
    assert keys.missing_keys == []
    assert keys.unexpected_keys == ["head.fc.weight", "head.fc.bias"]


def test_kornia(model: nn.Module) -> None:
    augmentation = pytest.importorskip("kornia.augmentation")
    augment = augmentation.AugmentationSequential(augmentation.RandomAffine(10.0, p=1.0))
    model(augment(torch.rand(2, 3, 64, 64))).sum().backward()
    assert next(model.parameters()).grad.abs().sum() > 0
