"""Finds defects on real production lines, from a handful of good images.

>>> import inspectad
>>> report = inspectad.train("good", "defects", output="model")     # doctest: +SKIP
>>> detector = inspectad.Detector.load("model")                     # doctest: +SKIP
>>> prediction = detector.predict(images)                           # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# From 1.29 on, onnxruntime's builds for Linux and macOS report sessions and models to their maker unless this is set
# before they are loaded. A factory's PC reports nothing to anybody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["Detector", "Prediction", "Verdict", "__version__", "set_max_megapixels", "train"]

if TYPE_CHECKING:
    from inspectad.api import train
    from inspectad.detector import OnnxDetector as Detector
    from inspectad.image_limits import set_max_megapixels
    from inspectad.records import Prediction, Verdict


def __getattr__(name: str) -> object:
    """Import on first use: ``inspectad --help`` loads neither torch nor onnxruntime."""
    if name == "train":
        from inspectad.api import train

        return train
    if name == "set_max_megapixels":
        from inspectad.image_limits import set_max_megapixels

        return set_max_megapixels
    if name == "Detector":
        from inspectad.detector import OnnxDetector

        return OnnxDetector
    if name in ("Prediction", "Verdict"):
        from inspectad import records

        return getattr(records, name)
    raise AttributeError(f"module 'inspectad' has no attribute {name!r}")
