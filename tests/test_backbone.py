"""The backbones against timm and torchvision, and the refusal of weights that are wrong or that would run code."""

import ast
import hashlib
import os
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from inspectad.embedded import embedded_weights
from inspectad.errors import TrainingError, UsageError
from inspectad.nn import backbone
from inspectad.nn.backbone import BACKBONES, TorchvisionFeatures, load_backbone

REPOSITORY = Path(__file__).parents[1]
SIZES_HW = [(64, 64), (97, 131), (33, 250), (160, 96)]


def random_images(size_hw: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size_hw), generator=torch.Generator().manual_seed(size_hw[0])).float()


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def timm_network() -> torch.nn.Module:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = load_file(embedded_weights("efficientnet_lite0"))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected
    needed = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(5)))
    assert not [name for name in missing if name.startswith(needed) and not name.endswith("num_batches_tracked")]
    return network.eval()


@pytest.mark.parametrize("size_hw", SIZES_HW)
@torch.inference_mode()
def test_the_embedded_network_equals_timm(timm_network: torch.nn.Module, size_hw: tuple[int, int]) -> None:
    network, _ = load_backbone("efficientnet_lite0")
    images = random_images(size_hw)
    expected = timm_network.forward_intermediates((images - 127) / 128, indices=[2, 3], intermediates_only=True)
    found = network(images)
    activations: list[torch.Tensor] = []
    hook = timm_network.blocks[4][1].bn2.register_forward_hook(lambda *call: activations.append(call[2]))
    timm_network.forward_features((images - 127) / 128)
    hook.remove()
    assert [f.shape[1] for f in found] == [40, 112, 672]
    for ours, theirs in zip(found, [*expected, *activations], strict=True):
        assert relative_difference(ours, theirs) < 1e-5


def test_the_embedded_network_is_frozen_and_in_evaluation_mode() -> None:
    network, _ = load_backbone("efficientnet_lite0")
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())


def test_the_embedded_file_has_the_recorded_hash() -> None:
    digest = hashlib.sha256(embedded_weights("efficientnet_lite0").read_bytes()).hexdigest()
    assert BACKBONES["efficientnet_lite0"].embedded_sha256 == digest
    assert load_backbone("efficientnet_lite0")[1] == digest


def test_the_card_states_the_hash_of_the_file_beside_it() -> None:
    folder = REPOSITORY / "models" / "efficientnet_lite0"
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert re.findall(r"\b[0-9a-f]{64}\b", (folder / "card.md").read_text("utf-8")) == [digest]


def test_an_embedded_file_with_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = load_file(embedded_weights("efficientnet_lite0"))
    weights["bn1.bias"] = weights["bn1.bias"] + 0.001
    save_file(weights, tmp_path / "weights.safetensors")
    monkeypatch.setattr(backbone, "embedded_weights", lambda _: tmp_path / "weights.safetensors")
    with pytest.raises(TrainingError, match="damaged"):
        load_backbone("efficientnet_lite0")


def test_a_file_of_ones_own_replaces_the_embedded_weights(tmp_path: Path) -> None:
    weights = {name: value * 0.5 for name, value in load_file(embedded_weights("efficientnet_lite0")).items()}
    path = tmp_path / "half.safetensors"
    save_file(weights, path)
    network, digest = load_backbone("efficientnet_lite0", path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(network.state_dict()["conv_stem.weight"], weights["conv_stem.weight"])


def test_an_unknown_backbone_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"resnet19.*efficientnet_lite0"):
        load_backbone("resnet19")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_that_are_not_there_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"--backbone-weights .*no such file"):
        load_backbone("efficientnet_lite0", tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"no weights at all", b"\xff" * 5000])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match="not weights of this backbone"):
        load_backbone("efficientnet_lite0", tmp_path / name)


@pytest.mark.parametrize("change", ["another network", "a layer short", "another shape"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_network_are_refused(tmp_path: Path, change: str, suffix: str) -> None:
    weights = load_file(embedded_weights("efficientnet_lite0"))
    if change == "another network":
        weights = {"fc.weight": torch.zeros(3, 3)}
    elif change == "a layer short":
        del weights["blocks.3.0.conv_pw.weight"]
    else:
        weights["bn1.weight"] = torch.zeros(7)
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        load_backbone("efficientnet_lite0", path)


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_that_would_execute_code_is_refused_and_does_not(tmp_path: Path, wrapped: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {"conv_stem.weight": Payload(marker)}
    torch.save(content, path) if wrapped else path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match="not weights of this backbone"):
        load_backbone("efficientnet_lite0", path)
    assert not marker.exists()
    if not wrapped:  # the same bytes do execute where pickle may
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.fixture(scope="module")
def resnet18() -> torch.nn.Module:
    """ResNet-18 with random weights, and statistics that a wrong batch normalisation would not survive."""
    torch.manual_seed(5)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@torch.inference_mode()
def test_a_torchvision_backbone_equals_torchvision(resnet18: torch.nn.Module) -> None:
    theirs = create_feature_extractor(resnet18, ["layer2", "layer3"])
    ours = TorchvisionFeatures("resnet18").eval()
    ours.load_torchvision(resnet18.state_dict())
    for size_hw in ((64, 96), (97, 131)):
        images = random_images(size_hw)
        expected = theirs(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        for found, wanted in zip(ours(images), expected.values(), strict=True):
            assert relative_difference(found, wanted) < 1e-5


@torch.inference_mode()
def test_a_deep_torchvision_backbone_has_the_last_stage_too_and_changes_no_other(
    resnet18: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_file(resnet18.state_dict(), path)
    deep, shallow = (load_backbone("resnet18", path, deep=deep)[0] for deep in (True, False))
    theirs = create_feature_extractor(resnet18, ["layer4"])
    images = random_images((97, 131))
    expected = theirs(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))["layer4"]
    found = deep(images)
    assert relative_difference(found[BACKBONES["resnet18"].deepest], expected) < 1e-5
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, shallow(images), strict=False))
    assert not [name for name in shallow.state_dict() if name.startswith("layer4")]


def test_the_embedded_backbone_has_no_deeper_stage() -> None:
    deep, _ = load_backbone("efficientnet_lite0", deep=True)
    maps = deep(random_images((64, 64)))
    assert tuple(maps[BACKBONES["efficientnet_lite0"].deepest].shape) == (2, 112, 4, 4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvision_weights_load_from_a_file(resnet18: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    state, path = resnet18.state_dict(), tmp_path / f"resnet18{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network, digest = load_backbone("resnet18", path)
    loaded = network.state_dict()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(loaded["stem.0.weight"], state["conv1.weight"])
    assert torch.equal(loaded["stem.1.running_var"], state["bn1.running_var"])
    kept = [name for name in state if name.startswith(("layer1.", "layer2.", "layer3."))]
    assert all(torch.equal(loaded[name], state[name]) for name in kept)


def test_without_a_network_the_message_says_how_to_bring_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(TrainingError, match=r"could not be downloaded.*--backbone-weights FILE"):
        load_backbone("resnet18")


def test_the_conversion_script_keeps_what_the_network_needs() -> None:
    source = ast.parse((REPOSITORY / "models" / "convert_efficientnet_lite0.py").read_text("utf-8"))
    (kept,) = (
        ast.literal_eval(n.value) for n in source.body if isinstance(n, ast.Assign) and n.targets[0].id == "KEPT"
    )
    names = BACKBONES["efficientnet_lite0"].build().state_dict()
    assert all(name.startswith(kept) for name in names)
    assert {n for n in names if not n.endswith("num_batches_tracked")} == set(
        load_file(embedded_weights("efficientnet_lite0"))
    )
