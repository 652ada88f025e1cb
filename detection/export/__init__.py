"""Detectors as files for other runtimes: ONNX, OpenVINO, AOTInductor and TorchScript."""

from vovnet.detection.export.exporter import export_detector

__all__ = ["export_detector"]
