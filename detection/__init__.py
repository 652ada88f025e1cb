"""Detectors on timm backbones: importing this package registers their builders with torchvision."""

from vovnet.detection import builders as _builders  # noqa: F401 (registers with torchvision)
from vovnet.detection import train as _entry  # noqa: F401 (first, so that the function below keeps the name)
from vovnet.detection.checkpoint import load_detector
from vovnet.detection.detectors import build_detector
from vovnet.detection.engine import train
from vovnet.detection.evaluation import evaluate, format_metrics
from vovnet.detection.prediction import predict
from vovnet.detection.recipe import load_recipe

__all__ = ["build_detector", "evaluate", "format_metrics", "load_detector", "load_recipe", "predict", "train"]
