"""Run a model with ONNX Runtime. The only importer of onnxruntime, and all that a line PC needs."""

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnxruntime as ort

from inspectad.cores import lacks_vnni
from inspectad.errors import InspectadError, ModelFileError, UsageError
from inspectad.images import resize
from inspectad.manifest import Manifest
from inspectad.model_file import ONNX_NAME, extract_manifest, onnx_path, read_model_bytes
from inspectad.onnx_file import check_self_contained, read_metadata
from inspectad.records import ByteArray, FloatArray, Prediction, Verdict
from inspectad.tiles import score_tiles

ort.disable_telemetry_events()  # on Windows, where ORT_DISABLE_TELEMETRY (`inspectad`) says nothing
ort.set_default_logger_severity(3)  # else it warns of itself whenever a GPU is used; what matters we say ourselves

DEVICES: Final = ("auto", "cpu", "cuda", "tensorrt")
_DEVICE: Final = re.compile(r"(cuda|tensorrt):(\d{1,3})")
_NO_VNNI: Final = (
    "this processor has no VNNI: an int8 model is slow here, and its scores may be others than where it was exported; "
    "use the fp32 model"
)
_PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class Provider:
    """What a session runs on.

    Attributes:
        device: ``cpu``, ``cuda`` or ``tensorrt``.
        index: which GPU.
        reason: one line: why this one, when another was asked for or could have been hoped for; else empty.
    """

    device: str
    reason: str = ""
    index: int = 0


def parse_devices(text: str) -> list[str]:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, or several GPUs as ``cuda:0,cuda:1``. Raises: UsageError."""
    names = [name.strip() for name in text.split(",")]
    wrong = [n for n in names if n not in DEVICES and not _DEVICE.fullmatch(n)]
    if wrong or (len(names) > 1 and not all(_DEVICE.fullmatch(n) for n in names)) or len(set(names)) < len(names):
        raise UsageError(
            f"no device named {text!r}; there are: {', '.join(DEVICES)}, one GPU as cuda:1, several as cuda:0,cuda:1"
        )
    return names


class OnnxDetector:
    """A model that is loaded and ready: arrays in, scores and maps out. Safe to use from several threads."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, digest: str, provider: Provider) -> None:
        self._session = session
        self._bound: dict[int, _Bound] = {}
        self._binding = threading.Lock()
        self.manifest = manifest
        self.digest = digest
        self.provider = provider

    @classmethod
    def load(cls, model: str | Path, device: str = "auto", threads: int = 0, *, spins: bool = False) -> Self:
        """Load a model folder or a single ``.onnx`` file.

        Args:
            device: ``auto`` (CUDA where it works, else CPU), ``cpu``, ``cuda`` or ``tensorrt``, and ``cuda:1`` and
                the like for another GPU than the first.
            threads: CPU threads for each call; 0 for all cores. Many threads that call are best served by 1.
            spins: these threads wait busily for each other: a fifth faster where nothing else needs the cores.
        Raises:
            ModelFileError: missing, damaged, foreign, or too new.
            UsageError: no such device name.
        """
        path = onnx_path(Path(model))
        return cls.from_bytes(read_model_bytes(path), device, threads, path, spins=spins)

    @classmethod
    def from_bytes(
        cls, data: bytes, device: str = "auto", threads: int = 0, path: Path = Path(ONNX_NAME), *, spins: bool = False
    ) -> Self:
        """As `load`, of what `read_model_bytes` read. Args: path: where it was, for messages."""
        (device,) = parse_devices(device)[:1]
        try:
            manifest = extract_manifest(read_metadata(data), data)
            check_self_contained(data)  # all of this before the runtime, which is native code, sees the file
            session, provider = create_session(data, device, threads, spins=spins)
            _check_graph(session, manifest)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path}: damaged (a name in it is no text); copy it again or train again") from error
        if provider.device == "cpu" and manifest.precision == "int8" and lacks_vnni():
            # There, whole numbers are added up in 16 bits, which overflow.
            provider = dataclasses.replace(provider, reason=_NO_VNNI)
        return cls(session, manifest, hashlib.sha256(data).hexdigest(), provider)

    @property
    def input_size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.manifest.input_size_hw

    @property
    def threshold(self) -> float:
        """The calibrated threshold in image-score units."""
        return self.manifest.calibration.threshold

    def predict(self, images: ByteArray | Sequence[ByteArray]) -> Prediction:
        """Score a batch of images of any sizes; each is resized by the rule used in training, or cut into tiles.

        Args:
            images: uint8 RGB, (B, H, W, 3) or a sequence of (H, W, 3).
        Returns: scores (B,) and maps (B, H, W) at `input_size_hw`. By a model of tiles, the highest tile score and a
            map that is blended from the tiles', an eighth as fine as they (`inspectad.tiles.score_tiles`).
        Raises: ValueError: no such images; images of several sizes for a model of tiles, whose maps differ in size.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    f"each image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}; put one in a list"
                )
        if not len(images):
            return Prediction(np.zeros(0, np.float32), np.zeros((0, *self.input_size_hw), np.float32))
        if self.manifest.tiling is None:
            return self.predict_resized(np.stack([resize(image, self.input_size_hw) for image in images]))
        if len({image.shape for image in images}) > 1:
            raise ValueError("a model of tiles gives maps as large as the images; give images of one size at a time")
        found = [score_tiles(image, self.manifest.tiling, self.input_size_hw, self._score) for image in images]
        return Prediction(np.array([score for score, _ in found], np.float32), np.stack([m for _, m in found]))

    def predict_resized(self, batch: ByteArray) -> Prediction:
        """Score images that are at the input size already: uint8 (B, H, W, 3).

        Raises: InspectadError when the runtime fails, as it does when memory is short.
        """
        try:
            return Prediction(*self._run(batch))
        except Exception as error:  # onnxruntime raises its own classes, which share no public base
            raise InspectadError(
                f"the network failed on a batch of {len(batch)} images ({_first_line(error)}); "
                "try a smaller --batch-size, or --device cpu"
            ) from error

    def _score(self, pixels: ByteArray) -> tuple[float, FloatArray]:
        return self.predict_resized(pixels[np.newaxis]).only

    def _run(self, batch: ByteArray) -> tuple[FloatArray, FloatArray]:
        if self.provider.device == "cpu":
            scores, maps = self._session.run(["score", "anomaly_map"], {"image": batch})
            return scores, maps
        # Filled up to a power of two, so that few sizes need places, and a CUDA graph, of their own.
        size = 1 << (len(batch) - 1).bit_length()
        missing = size - len(batch)
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        with self._binding:  # one after the other: they share the places
            if size not in self._bound:
                self._bound[size] = _Bound(self._session, self.provider, filled.shape)
            try:
                scores, maps = self._bound[size].run(filled)
            except Exception:
                del self._bound[size]  # a smaller batch may need its memory
                raise
        return scores[: len(batch)], maps[: len(batch)]

    def verdicts(self, prediction: Prediction, threshold: float | None = None) -> list[Verdict]:
        """OK or NG for each image of a prediction, by the calibrated threshold or by another."""
        calibration = self.manifest.calibration
        return [calibration.verdict(float(s), threshold) for s in prediction.image_scores]


class _Bound:
    """Inputs and outputs of a session at fixed places of its device, for one shape.

    Nothing is allocated for a run, and a CUDA graph, which is recorded for a shape and its places, can be replayed.
    """

    def __init__(self, session: ort.InferenceSession, provider: Provider, shape: tuple[int, ...]) -> None:
        """Args: shape of the images (B, H, W, 3)."""
        device = "cpu" if provider.device == "cpu" else "cuda"
        self._is_on_cpu = device == "cpu"
        self._session = session
        self._images = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, device, provider.index)
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(size, np.float32, device, provider.index)
            for size in (shape[:1], shape[:3])
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._images)
        for name, value in zip(("score", "anomaly_map"), self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(shape[0]))

    def run(self, images: ByteArray) -> tuple[FloatArray, FloatArray]:
        """Args: images of the shape. Returns: scores (B,), maps (B, H, W)."""
        self._images.update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._binding, self._options)
        # Copies, as the places are used again; from a GPU `numpy` copies by itself.
        scores, maps = (np.array(value.numpy(), copy=self._is_on_cpu or None) for value in self._outputs)
        return scores, maps


def create_session(
    data: bytes, device: str = "cpu", threads: int = 0, *, spins: bool = False
) -> tuple[ort.InferenceSession, Provider]:
    """A session for a serialised graph on the first device that works.

    Raises: ModelFileError when the bytes are no ONNX graph that this runtime can run.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what matters is said in our own words
    options.intra_op_num_threads = threads
    # Else a file that is ONNX for `check_self_contained` could be onnxruntime's own format for the runtime.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Waiting threads that spin take the cores from those that decode and draw: 50 against 64 images/s on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    device, _, index = device.partition(":")
    wanted, reason = _usable_devices(device)
    for name in wanted:
        try:
            session = _start(data, options, name, int(index or 0))
        except Exception as error:  # onnxruntime raises its own classes, which share no public base
            if name != "cpu":
                reason = f"{name} did not start ({_first_line(error)})"
                continue
            raise ModelFileError(
                f"not an ONNX model, or a damaged one ({_first_line(error)}); copy it again or train again"
            ) from error
        if name == "cpu" or session.get_providers()[0] == _PROVIDERS[name]:
            return session, Provider(name, reason and f"running on {name}: {reason}", int(index or 0))
        reason = f"onnxruntime could not start {name}; 'inspectad doctor' says what is missing"
    raise AssertionError("the CPU provider is always tried last")


def _usable_devices(device: str) -> tuple[list[str], str]:
    """Devices to try in order, and why the one asked for is not among them."""
    if device == "cpu":
        return ["cpu"], ""
    problem = gpu_problem()
    if problem:
        return ["cpu"], problem
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN that came as Python packages are found only after this
    return (["tensorrt", "cuda", "cpu"] if device == "tensorrt" else ["cuda", "cpu"]), ""


def gpu_problem() -> str:
    """Why CUDA cannot work here, in words; empty when nothing speaks against it."""
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        return "this onnxruntime has no CUDA support (package onnxruntime instead of onnxruntime-gpu)"
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return "no NVIDIA driver found"
    return ""


def try_provider(device: str) -> str:
    """Start a session of a one-node graph on a device; why it did not start, empty when it did."""
    # y = Identity(x), x float (1,): the serialised protobuf, since a line PC has no package that writes ONNX.
    graph = (
        b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
        b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
    )
    provider = create_session(graph, device)[1]
    return "" if provider.device == device else provider.reason


def _start(data: bytes, options: ort.SessionOptions, device: str, index: int) -> ort.InferenceSession:
    """A session; on a GPU with a CUDA graph where the runtime can record and replay this network, else without."""
    if device == "cuda":
        with contextlib.suppress(Exception):  # a node that is not for the GPU, say
            providers = _provider_options(device, index, graphs=True)
            session = ort.InferenceSession(data, options, providers, enable_fallback=0)
            blank = np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)
            bound = _Bound(session, Provider(device, index=index), blank.shape)
            for _ in range(3):  # to warm up, to record, to replay
                bound.run(blank)
            return session
    return ort.InferenceSession(data, options, _provider_options(device, index, data=data), enable_fallback=0)


def _provider_options(device: str, index: int = 0, *, graphs: bool = False, data: bytes = b"") -> list[Any]:
    """Providers to try, with their options. Args: data: of the model, which a cached engine is named after."""
    cuda = (
        _PROVIDERS["cuda"],
        {
            "device_id": str(index),
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",  # fp32 means fp32: with it scores differ by 1e-4 from a CPU's. For speed there is fp16.
            "enable_cuda_graph": str(int(graphs)),
        },
    )
    if device == "tensorrt":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inspectad", "tensorrt")
        engines = str(cache / hashlib.sha256(data).hexdigest()[:16])  # building one takes minutes
        with contextlib.suppress(OSError):  # compiled code: nobody else may put any there
            os.makedirs(engines, mode=0o700, exist_ok=True)
            os.chmod(cache, 0o700)
        tensorrt = {
            "device_id": str(index),
            "trt_fp16_enable": str(b"_fp16" in data),  # what `export` calls the weights of such a model
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": engines,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": engines,
        }
        return [(_PROVIDERS["tensorrt"], tensorrt), cuda, _PROVIDERS["cpu"]]
    return [cuda, _PROVIDERS["cpu"]] if device == "cuda" else [_PROVIDERS["cpu"]]


def _check_graph(session: ort.InferenceSession, manifest: Manifest) -> None:
    inputs = [(i.name, i.type, tuple(i.shape[1:])) for i in session.get_inputs()]
    outputs = {(o.name, o.type, len(o.shape)) for o in session.get_outputs()}
    expected = {("score", "tensor(float)", 1), ("anomaly_map", "tensor(float)", 3)}
    if inputs != [("image", "tensor(uint8)", (*manifest.input_size_hw, 3))] or outputs != expected:
        raise ModelFileError("its graph is not what its manifest says")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
