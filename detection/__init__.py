"""Detectors on timm backbones: importing this package registers their builders with torchvision."""

from vovnet.detection import train as _entry  # noqa: F401 (first, so that the function below keeps the name)
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.evaluation.evaluator import evaluate, format_metrics
from vovnet.detection.models.assembly import build_detector
from vovnet.detection.prediction.predictor import predict
from vovnet.detection.training.engine import train
from vovnet.detection.zoo import torchvision_api as _builders  # noqa: F401 (registers with torchvision)

__all__ = ["build_detector", "evaluate", "format_metrics", "load_detector", "load_recipe", "predict", "train"]
