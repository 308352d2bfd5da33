"""Trained models as files that other programs run: ONNX and torch.export, checked against the model before they are kept.

from globalvit.export import export_model

report = export_model(model, "model.onnx")
"""

from globalvit.export.check import Check
from globalvit.export.model import ExportReport, export_model

__all__ = ["Check", "ExportReport", "export_model"]
