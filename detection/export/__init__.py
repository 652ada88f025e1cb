"""Detectors as files for other runtimes: ONNX, OpenVINO, AOTInductor and TorchScript."""

from vovnet.detection.export.detector import ExportedDetector, exported_detector
from vovnet.detection.export.exporter import export_detector

__all__ = ["ExportedDetector", "export_detector", "exported_detector"]
