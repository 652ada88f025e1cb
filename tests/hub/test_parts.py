"""The network in a file that holds more: found by its own names, under any prefix; what is left out is listed."""

from __future__ import annotations

import pytest
import timm
import torch
from published_forms import dd3d
from torchvision.models import get_model

from vovnet.checkpoints.shapes import Shapes, shapes_of
from vovnet.errors import InputError
from vovnet.hub.classifiers import FORMS, infer_network
from vovnet.hub.parts import check_part, grouped, network_part

NAMES = ("vovnet27_slim", "vovnet39", "ese_vovnet19b_dw", "ese_vovnet39b_all", "resnet50")


def shapes(form: str, name: str, num_classes: int = 7) -> dict[str, tuple[int, ...]]:
    model = timm.create_model(name, num_classes=num_classes, device="meta")
    ours = shapes_of(model.state_dict())
    return {theirs: ours[key] for theirs, key in FORMS[form].keys(model).items() if key in ours}


def body(found: Shapes) -> set[str]:
    return {key for key in found if not key.startswith(("classifier.", "output.", "head.fc.", "fc."))}


@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "backbone.bottom_up.", "backbone.body.", "img_backbone.", "a.b.c."]
)
@pytest.mark.parametrize(("form", "name"), [(f, n) for f in FORMS for n in NAMES if n in FORMS[f].networks])
def test_the_backbone_is_found_under_any_prefix(form: str, name: str, prefix: str) -> None:
    network = shapes(form, name)
    others = {"fpn.lateral3.weight": (8, 8, 1, 1), "bbox_head.cls.weight": (3, 8), "stemming.weight": (2,)}
    found = {f"{prefix}{key}": shape for key, shape in network.items()} | others
    inferred = infer_network(found, "backbone")
    assert (inferred.name, inferred.named_by, inferred.num_classes) == (name, form, 0)
    assert set(inferred.names) == {f"{prefix}{key}" for key in body(network)}
    assert set(inferred.names) | set(inferred.ignored) == set(found)
    assert not set(inferred.names) & set(inferred.ignored)


@pytest.mark.parametrize("name", ["ese_vovnet19b_slim_dw", "ese_vovnet99b_all"])
def test_a_file_of_dd3d_names_the_option_and_gives_its_network(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    found = shapes_of(dd3d(model))
    with pytest.raises(InputError, match=r"fcos2d_head.*fcos3d_head.*--part backbone"):
        infer_network(found)
    inferred = infer_network(found, "backbone")
    assert (inferred.name, inferred.num_classes) == (name, 0)
    assert sorted(inferred.names.values()) == sorted(model.state_dict())
    assert set(inferred.names) | set(inferred.ignored) == set(found)


@pytest.mark.parametrize("name", ["ese_vovnet19b_slim_dw", "ese_vovnet19b"])
def test_names_beside_another_projects_heads_tell_no_licence(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    theirs = infer_network(shapes_of(dd3d(model)), "backbone")
    assert theirs.licence == "not-stated"
    assert any("CC BY-NC 4.0" in note for note in theirs.notes)  # if the network is vovnet-detectron2's
    own = {f"backbone.bottom_up.{key}": shape for key, shape in shapes("the authors", name, 0).items()}
    heads = {"backbone.fpn_lateral2.weight": (8, 8, 1, 1), "roi_heads.x": (1,)}
    assert {infer_network(file).licence for file in (own, own | heads)} == {"cc-by-nc-4.0"}


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_a_resnet_that_does_not_tell_its_epsilon_is_refused(name: str) -> None:
    """torchvision's first COCO files were trained without one; a detector with batch norms, as _v2, has counters."""
    with torch.device("meta"):
        found = shapes_of(get_model(name, weights=None, weights_backbone=None).state_dict())
    frozen = {key: shape for key, shape in found.items() if not key.endswith("num_batches_tracked")}
    assert frozen.keys() < found.keys()
    with pytest.raises(InputError, match=r"epsilon.*init=torchvision:"):
        infer_network(frozen, "backbone")
    assert infer_network(found, "backbone").name == "resnet50"


def test_detectors_of_detectron2_need_no_option() -> None:
    network = {
        f"backbone.bottom_up.{key}": shape for key, shape in shapes("the authors", "ese_vovnet19b_dw", 0).items()
    }
    others = {"backbone.fpn_lateral2.weight": (8, 8, 1, 1), "roi_heads.x": (1,), "pixel_mean": (3, 1, 1)}
    assert infer_network(network | others).ignored.keys() == others.keys()
    with pytest.raises(InputError, match="--part backbone"):
        infer_network(network | {"depth_head.weight": (1,)})


@pytest.mark.parametrize("part", [None, "backbone"])
def test_a_key_of_the_network_that_does_not_fit_is_no_other_part(part: str | None) -> None:
    network = {
        f"backbone.bottom_up.{key}": shape for key, shape in shapes("the authors", "ese_vovnet19b_dw", 0).items()
    }
    with pytest.raises(InputError, match=r"left over: stage5\.more"):
        infer_network(network | {"backbone.bottom_up.stage5.more": (1,)}, check_part(part))
    del network["backbone.bottom_up.stem.stem_1/norm.bias"]
    with pytest.raises(InputError, match=r"missing: stem\.stem_1/norm\.bias"):
        infer_network(network, check_part(part))


def test_a_network_with_other_keys_beside_it_names_the_option() -> None:
    with pytest.raises(InputError, match=r"left over: depth_head\.weight.*--part backbone"):
        infer_network(shapes("pytorchcv", "vovnet27_slim") | {"depth_head.weight": (1,)})


def test_two_networks_are_refused() -> None:
    network = shapes("timm", "resnet50", 0)
    found = {f"{prefix}{key}": shape for prefix in ("student.", "teacher.") for key, shape in network.items()}
    with pytest.raises(InputError, match=r"'student\.', 'teacher\.'"):
        network_part(found, "backbone")


def test_another_part_is_refused() -> None:
    assert check_part(None) is None
    assert check_part("backbone") == "backbone"
    with pytest.raises(InputError, match="--part 'neck': expected backbone"):
        check_part("neck")


def test_many_keys_are_counted_by_their_beginnings() -> None:
    keys = ["backbone.fpn_output3.weight", "backbone.fpn_output4.weight", "fcos2d_head.x.y", "pixel_mean", "a", "a"]
    assert grouped(keys) == ["backbone.fpn_output* (2 tensors)", "fcos2d_head.x.y", "pixel_mean", "a* (2 tensors)"]
