"""Where the embedded backbones' weights are: in an installed wheel, or in a checkout."""

from pathlib import Path


def embedded_weights(name: str) -> Path:
    """Path of an embedded backbone's weights.

    Raises: FileNotFoundError when this installation lacks them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_models", package.parent / "models"):
        if (file := folder / name / "weights.safetensors").is_file():
            return file
    raise FileNotFoundError(f"the embedded weights of {name} are missing from this installation")
