"""Trained models as files for other programs, ONNX and torch.export, checked against the model before they are kept.

    from globalvit.export import export_model

    report = export_model(model, "model.onnx")

ONNX needs `pip install 'globalvit[export]'`; torch.export's form needs nothing more.
"""

from globalvit.export.check import Check
from globalvit.export.model import ExportReport, export_model

__all__ = ["Check", "ExportReport", "export_model"]
