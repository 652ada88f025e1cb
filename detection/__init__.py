"""Detectors on timm backbones. Importing this package registers their builders with torchvision."""

from vovnet.detection import train as _entry  # noqa: F401 (first, so that the name is that of the function below)
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.models.build import build_detector
from vovnet.detection.prediction.predictor import predict
from vovnet.detection.training.engine import train
from vovnet.detection.training.from_data import recipe_from_data
from vovnet.detection.training.rules import RULES, TrainingRules
from vovnet.detection.zoo import torchvision_api as _builders  # noqa: F401 (registers with torchvision)

__all__ = [
    "build_detector",
    "evaluate",
    "format_metrics",
    "load_detector",
    "load_recipe",
    "predict",
    "recipe_from_data",
    "train",
]


def _legacy_rules() -> TrainingRules:
    """Return the rules of ``conventions: legacy``, imported when a recipe asks for them.

    They are subclasses of the rules in ``training``, so ``training`` cannot import them itself.
    """
    from vovnet.detection.legacy.rules import LegacyRules

    return LegacyRules()


RULES["legacy"] = _legacy_rules
