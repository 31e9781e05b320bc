"""Judge frames as a camera delivers them, without files in between.

    python examples/camera_loop.py 0 --model model --frames 100
    python examples/camera_loop.py line_images             # a folder of images stands in for the camera

Needs: inspectad (without torch), and a model that `inspectad train` wrote. A camera of your own maker's SDK fits as
well: replace `frames_of`; all that `predict` wants is uint8 RGB arrays (H, W, 3) of any size.

Expected output (of `inspectad demo`, two CPU cores): one line a frame. Overlays of the NG frames go to --output:

    frame 000000  OK  score 0.574  severity 0.88   15.0 ms
    frame 000001  NG  score 0.902  severity 1.38   12.7 ms  camera_ng/000001.png
    12 frames, 6 NG, 12.2 ms a frame (median)

Exit codes: 0 done; 1 the camera delivers nothing more, or the model cannot be used.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

import inspectad
from inspectad.errors import InspectadError
from inspectad.heatmap import region_level, render_overlay
from inspectad.image_files import find_images


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge frames as a camera delivers them.")
    parser.add_argument("camera", help="index of a camera (0, 1, ...), or a folder of images")
    parser.add_argument("--model", default="model", help="model folder or .onnx file")
    parser.add_argument("--frames", type=int, help="stop after so many; default: never, or at the end of the folder")
    parser.add_argument("--output", type=Path, default=Path("camera_ng"), help="folder for overlays of NG frames")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    args = parser.parse_args()
    try:
        run(args)
    except InspectadError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    detector = inspectad.Detector.load(args.model, args.device)
    calibration = detector.manifest.calibration
    if detector.manifest.full_scale != 255:
        sys.exit("error: trained on 16-bit files, which 8-bit frames cannot be compared with")
    args.output.mkdir(parents=True, exist_ok=True)
    detector.predict([np.zeros((*detector.input_size_hw, 3), np.uint8)])  # the first run is slow: not on a part

    latencies, rejected = [], 0
    for number, frame_bgr in enumerate(islice(frames_of(args.camera), args.frames)):
        started = time.perf_counter()
        frame = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)  # OpenCV delivers BGR; models are trained on RGB
        prediction = detector.predict([frame])  # several frames at once: predict([left, right])
        verdict = detector.verdicts(prediction)[0]
        latencies.append(1000 * (time.perf_counter() - started))

        score, anomaly_map = float(prediction.image_scores[0]), prediction.anomaly_maps[0]
        severity = score / calibration.threshold
        line = f"frame {number:06}  {verdict}  score {score:.3f}  severity {severity:.2f}  {latencies[-1]:5.1f} ms"
        if verdict is not inspectad.Verdict.OK:  # so that whatever is not plainly good is rejected
            rejected += 1
            path = args.output / f"{number:06}.png"
            level = region_level(float(anomaly_map.max()), verdict, calibration.threshold, calibration.map_threshold)
            overlay = render_overlay(frame, anomaly_map, level, f"{verdict}  score {score:.3f}", verdict)
            cv2.imencode(".png", cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))[1].tofile(path)
            line += f"  {path}"
        print(line, flush=True)  # here the line controller is told
    if not latencies:
        sys.exit(f"error: {args.camera} delivered no frame")
    print(f"{len(latencies)} frames, {rejected} NG, {statistics.median(latencies):.1f} ms a frame (median)")


def frames_of(camera: str) -> Iterator[np.ndarray]:
    """Frames as OpenCV delivers them: uint8 BGR (H, W, 3). A frame that is missing ends the program, never an OK."""
    if not camera.isdigit():
        for file in find_images(Path(camera)):
            frame = cv2.imdecode(np.fromfile(file.path, np.uint8), cv2.IMREAD_COLOR)  # imread fails on some names
            if frame is None:
                sys.exit(f"error: {file.path} is not an image, or a damaged one")
            yield frame
        return
    capture = cv2.VideoCapture(int(camera))
    try:
        while True:
            grabbed, frame = capture.read()
            if not grabbed:
                sys.exit(f"error: camera {camera} delivers no frame; is it connected, and free?")
            yield frame
    finally:
        capture.release()


if __name__ == "__main__":
    main()
