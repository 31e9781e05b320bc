"""Run a model without inspectad: what a program in any language has to do, shown in Python.

    python examples/plain_onnxruntime.py model/model.onnx line_images/*.png

Needs: onnxruntime (any build of it), numpy and opencv-python; model.onnx alone, nothing of inspectad. Verdicts and
scores equal those of `inspectad scan` (tests/test_examples.py compares them).

Expected output: one line an image, and an exit code as `scan --fail-on-defect` has it: 0 all OK; 1 the model cannot be
used; 3 at least one NG; 4 no NG, but an image that could not be judged.

    OK  0.573587  line_images/part_001.png
    NG  0.901573  line_images/part_002.png

What model.onnx holds:
    input   image        uint8 (B, H, W, 3) RGB, H and W fixed; normalisation is inside the graph
    output  score        float32 (B,), higher is more anomalous
    output  anomaly_map  float32 (B, H, W), same units
    metadata 'inspectad_manifest': JSON with input_size_hw, calibration.threshold, resize_rule, full_scale, ...
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime as ort


def main(model: str, paths: list[str]) -> int:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["inspectad_manifest"])
    threshold = manifest["calibration"]["threshold"]
    height, width = manifest["input_size_hw"]
    if (
        manifest["schema_version"] != 2
        or manifest["tiling"]
        or manifest["resize_rule"] != "jpeg-reduced-area-down-linear-up"
    ):
        sys.exit(f"error: {model} was made by an inspectad of other rules than those in this file")
    if manifest["full_scale"] != 255:
        sys.exit(f"error: {model} was trained on 16-bit files (white at {manifest['full_scale']}); this reads 8-bit")

    seen = set()
    for path in paths:
        image = read_rgb(path, height, width)
        if image is None:
            seen.add("UNREADABLE")
            print(f"UNREADABLE  {path}")
            continue
        batch = resize(image, height, width)[np.newaxis]
        score, _anomaly_map = session.run(["score", "anomaly_map"], {"image": batch})
        verdict = "OK" if score[0] <= threshold else "NG"  # this way round, a score that is no number is NG
        seen.add(verdict)
        print(f"{verdict}  {score[0]:.6g}  {path}")
    return 3 if "NG" in seen else 4 if "UNREADABLE" in seen else 0


def read_rgb(path: str, height: int, width: int) -> np.ndarray | None:
    """8-bit RGB, upright; None for what is no image, is damaged, or has 16 bits. OpenCV 4 lets torn files through.

    The first half of the rule 'jpeg-reduced-area-down-linear-up': a JPEG is decoded at an eighth, a quarter or half of
    its size, the least of these that leaves at least twice the input on both axes and does not round its sides to the
    same number of pixels unless they are equal.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    if not data.size:
        return None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # grey and alpha become BGR, EXIF is applied
    if image is None or image.dtype != np.uint8:
        return None
    if data[:3].tobytes() == b"\xff\xd8\xff":
        longer, shorter = max(image.shape[:2]) // 2, min(image.shape[:2]) // 2
        for reduction, flag in (
            (8, cv2.IMREAD_REDUCED_COLOR_8),
            (4, cv2.IMREAD_REDUCED_COLOR_4),
            (2, cv2.IMREAD_REDUCED_COLOR_2),
        ):
            large = longer >= reduction * max(height, width) and shorter >= reduction * min(height, width)
            rounded = {-(-side // reduction) for side in image.shape[:2]}
            if large and (len(rounded) == 2 or image.shape[0] == image.shape[1]):
                image = cv2.imdecode(data, flag)
                break
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The second half of the rule: area averaging on each axis that shrinks, then linear on each that grows."""
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape[:2]:
        image = cv2.resize(image, (smaller[1], smaller[0]), interpolation=cv2.INTER_AREA)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: plain_onnxruntime.py MODEL.onnx IMAGE...")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
