"""Detectors as files for other runtimes: ONNX, OpenVINO, AOTInductor and TorchScript."""

from vovnet.detection.export.detector import ExportedDetector, exported_detector
from vovnet.detection.export.exporter import export_detector
from vovnet.detection.export.parity import DetectorParity, check_exported, detector_parity

__all__ = [
    "DetectorParity",
    "ExportedDetector",
    "check_exported",
    "detector_parity",
    "export_detector",
    "exported_detector",
]
