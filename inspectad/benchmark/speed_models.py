"""One model in several precisions and input sizes, as files: what is measured beside the model as it is."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from inspectad.atomic import write_atomically
from inspectad.errors import MissingDependencyError, UsageError
from inspectad.images import choose_input_size, resize
from inspectad.model_file import append_manifest, onnx_path
from inspectad.progress import Step

if TYPE_CHECKING:
    from inspectad.manifest import Manifest
    from inspectad.records import ByteArray

_EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "scipy")


class Models:
    """Makes each variant once, when it is asked for.

    Attributes:
        manifest: of the model as it is.
        is_fixed: the model is measured as it is: it is a single file, or exporting does not work here.
        note: why it is fixed, where one might wonder; else empty.
    """

    def __init__(self, model: Path, manifest: "Manifest", folder: Path, step: Step) -> None:
        """Args: folder: for the files that are made."""
        self._model = model
        self.manifest = manifest
        self._folder = folder
        self._step = step
        self._graphs: dict[tuple[int, int], tuple[bytes, list[ByteArray]]] = {}
        self._made: dict[tuple[str, tuple[int, int]], Path] = {}
        missing = [p for p in _EXPORT_PACKAGES if find_spec(p) is None]
        self.is_fixed = not model.is_dir() or bool(missing)
        self.note = f"other precisions and sizes need {', '.join(missing)}" if model.is_dir() and missing else ""

    def check(self, precisions: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        """Raises: an error when more was asked for than a fixed model is."""
        own = self.manifest.precision
        if not self.is_fixed and self.sizes_hw(sizes) != self.sizes_hw(()):
            self._check_is_resizable()
        if not self.is_fixed or (set(precisions) <= {own} and set(self.sizes_hw(sizes)) <= set(self.sizes_hw(()))):
            return
        if self.note:
            raise MissingDependencyError(f'{self.note}: pip install "inspectad[train]"')
        raise UsageError(
            f"{self._model}: a single file is measured as it is ({own}); give the model folder for other precisions "
            "and sizes, or leave --precisions and --sizes out"
        )

    def _check_is_resizable(self) -> None:
        from inspectad.api import prepare_training

        prepare_training()
        from inspectad.restore import read_manifest

        _, method = read_manifest(self._model)
        if method.square_side is not None:
            height, width = self.manifest.input_size_hw
            raise UsageError(
                f"--sizes: a model of {self.manifest.method} has one input size, {width} x {height} px; leave the "
                "option out"
            )

    def precisions(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those that can be had."""
        return (self.manifest.precision,) if self.is_fixed else wanted

    def sizes_hw(self, longer_px: tuple[int, ...]) -> list[tuple[int, int]]:
        """Input sizes (H, W) of the model's aspect ratio with these longer sides; its own for none."""
        own = self.manifest.input_size_hw
        sizes = [own if px == max(own) else choose_input_size([own], px) for px in longer_px] or [own]
        return list(dict.fromkeys(sizes))

    def file(self, precision: str, input_hw: tuple[int, int]) -> Path:
        """The ``.onnx`` file of a variant.

        Raises: ModelFileError: the folder is incomplete, or damaged.
        """
        if self.is_fixed:
            return onnx_path(self._model)
        key = (precision, input_hw)
        if key not in self._made:
            self._step(f"exporting {precision} at {input_hw[1]} x {input_hw[0]} px", 0, 1)
            manifest = dataclasses.replace(self.manifest, precision=precision, input_size_hw=input_hw)
            path = self._folder / f"{precision}-{input_hw[1]}x{input_hw[0]}.onnx"
            write_atomically(path, append_manifest(self._converted(precision, input_hw), manifest))
            self._made[key] = path
        return self._made[key]

    def graph(self, input_hw: tuple[int, int]) -> bytes | None:
        """The fp32 graph, where it can be had."""
        return None if self.is_fixed else self._exported(input_hw)[0]

    def _exported(self, input_hw: tuple[int, int]) -> "tuple[bytes, list[ByteArray]]":
        """The fp32 graph at an input size, and the training images that are kept with the model, at that size."""
        if input_hw not in self._graphs:
            from inspectad.api import prepare_training

            prepare_training()
            from inspectad.onnx_graph import export_graph
            from inspectad.restore import restore

            restored = restore(self._model, self.manifest, "benchmark speed", input_hw)
            samples = [resize(sample, input_hw) for sample in restored.samples]
            self._graphs[input_hw] = export_graph(restored.module, input_hw), samples
        return self._graphs[input_hw]

    def _converted(self, precision: str, input_hw: tuple[int, int]) -> bytes:
        from inspectad.export import to_fp16
        from inspectad.int8 import to_int8

        graph, samples = self._exported(input_hw)
        if precision == "fp16":
            return to_fp16(graph)
        return to_int8(graph, samples) if precision == "int8" else graph
