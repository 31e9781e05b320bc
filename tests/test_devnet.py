"""The deviation network: its loss to the digit, its pooling in the exported graph, its training on rendered parts."""

import csv
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import inspectad
from inspectad.demo_part import render_part
from inspectad.errors import TrainingError, UsageError
from inspectad.export import ExportConfig, export
from inspectad.methods.devnet import DevNet, DevNetTrainer, restore_devnet
from inspectad.nn import fit_deviation as fitting
from inspectad.nn.balanced import BalancedBatches, endless, turned_at_random
from inspectad.nn.deviation import (
    REFERENCES,
    deviation_loss,
    draw_reference,
    patch_anomaly,
    top_count,
    top_mean,
)
from inspectad.nn.fit_deviation import PATIENCE, held_back, schedule_for
from inspectad.nn.settings import TrainSettings
from inspectad.onnx_graph import export_graph, predict_with_graph, predict_with_module
from inspectad.pseudo_defects import paste_patch

SIZE_HW = (96, 128)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(seeds: range, defect: str | None = None, size_hw: tuple[int, int] = SIZE_HW) -> list[np.ndarray]:
    return [render_part(seed, defect, size_hw).image for seed in seeds]


def trainer_of(
    good: int = 3, defects: int = 2, seed: int = 0, epochs: int = 1, abs_topk: bool = True, **more: object
) -> DevNetTrainer:
    settings = TrainSettings(input_size_hw=SIZE_HW, seed=seed, epochs=epochs, **more)
    return DevNetTrainer(parts(range(good)), parts(range(50, 50 + defects), "stain"), settings, abs_topk=abs_topk)


def fitted(good: int = 3, defects: int = 2, **more: object) -> DevNet:
    return trainer_of(good, defects, **more).fit(range(good), range(defects)).module


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What training does is the same, what it learns is not the point."""
    monkeypatch.setattr(fitting, "STEPS", 2)


@pytest.fixture(scope="module")
def network() -> DevNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STEPS", 2)
        return fitted()


# --- the loss

SCORES = torch.tensor([0.0, 0.5, -1.0, 2.0, 5.0, 7.0])
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def test_the_loss_of_six_scores_is_three_quarters() -> None:
    assert float(deviation_loss(SCORES, LABELS, 0.0, 1.0)) == 0.75


def test_the_loss_with_real_references_scatters_as_measured() -> None:
    source = generator(0)
    losses = [float(deviation_loss(SCORES, LABELS, *draw_reference(source))) for _ in range(1000)]
    assert np.mean(losses) == pytest.approx(0.755, abs=0.001)
    assert np.std(losses) == pytest.approx(0.007, abs=0.001)


def test_scores_of_zero_with_half_defects_lose_half_the_margin() -> None:
    assert float(deviation_loss(torch.zeros(48), torch.arange(48) >= 24, 0.0, 1.0)) == 2.5


def test_the_gradient_is_the_sign_for_good_images_and_none_for_clear_defects() -> None:
    scores = torch.tensor([1.5, -0.7, 0.3, 2.0, 5.3, 9.0], dtype=torch.float64, requires_grad=True)
    mean, std = 0.1, 0.9
    deviation_loss(scores, LABELS, mean, std).backward()
    expected = np.array([1, -1, 1, -1, 0, 0]) / std / 6  # the fifth deviates by 5.8
    np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=1e-12)


def test_the_reference_is_fresh_at_each_step_and_follows_the_seed() -> None:
    source, again = generator(3), generator(3)
    first, second = draw_reference(source), draw_reference(source)
    assert first == draw_reference(again)
    assert first != second
    assert abs(float(first[0])) < 5 / math.sqrt(REFERENCES)
    assert float(first[1]) == pytest.approx(1, abs=5 / math.sqrt(2 * REFERENCES))


# --- pooling


@pytest.mark.parametrize(("side_px", "count"), [(448, 19), (224, 4), (112, 1)])
def test_the_number_of_patches_that_count_is_the_papers(side_px: int, count: int) -> None:
    places = math.ceil(side_px / 32) ** 2
    assert top_count(places) == count


def test_a_tenth_is_rounded_down_exactly_and_never_none() -> None:
    assert [top_count(n) for n in (1, 9, 10, 19, 20, 29, 30, 70, 100)] == [1, 1, 1, 1, 2, 2, 3, 7, 10]


def test_the_pooling_is_the_mean_of_the_largest_tenth() -> None:
    values = torch.randn(5, 1, 7, 11, generator=generator(1))
    expected = np.sort(values.flatten(1).numpy(), axis=1)[:, -7:].mean(axis=1)
    np.testing.assert_allclose(top_mean(values).numpy(), expected, rtol=1e-5)


def test_a_strongly_negative_patch_counts_by_its_size_only_with_abs_topk() -> None:
    scores = torch.tensor([[-7.0, 0.2, 0.1]])
    assert patch_anomaly(scores, abs_topk=True).tolist() == [[7.0, pytest.approx(0.2), pytest.approx(0.1)]]
    assert patch_anomaly(scores, abs_topk=False).tolist() == [[0.0, pytest.approx(0.2), pytest.approx(0.1)]]


@pytest.mark.parametrize("abs_topk", [True, False])
def test_the_same_choice_makes_the_score_the_map_and_what_is_trained(network: DevNet, abs_topk: bool) -> None:
    state = {**network.state_dict(), "abs_topk": torch.tensor(abs_topk)}
    state["head.weight"], state["head.bias"] = 0 * state["head.weight"], torch.tensor([-3.0])  # every patch at -3
    module = restore_devnet(state, TrainSettings(input_size_hw=SIZE_HW))
    image = torch.from_numpy(parts(range(1))[0])[None]
    with torch.inference_mode():
        score, anomaly_map = module(image)
        trained = module.score(image.permute(0, 3, 1, 2).float())
    assert score.tolist() == [pytest.approx(3.0 if abs_topk else 0.0)]
    assert torch.allclose(anomaly_map, torch.full((1, *SIZE_HW), 3.0 if abs_topk else 0.0))
    assert trained.tolist() == [pytest.approx(3.0 if abs_topk else -3.0)]


def test_the_score_is_the_mean_over_both_sizes(network: DevNet) -> None:
    image = parts(range(9, 10))[0]
    half = cv2.resize(image, (64, 48), interpolation=cv2.INTER_NEAREST)
    levels = []
    with torch.inference_mode():
        for pixels in (image, half):
            features = network.backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[1]
            levels.append(network.head(features)[0, 0].abs().numpy())
        score, anomaly_map = network(torch.from_numpy(image)[None])
    assert [level.shape for level in levels] == [(6, 8), (3, 4)]
    expected = [np.sort(level.ravel())[-top_count(level.size) :].mean() for level in levels]
    assert float(score[0]) == pytest.approx(np.mean(expected), rel=1e-4)
    enlarged = np.mean([cv2.resize(level, (128, 96), interpolation=cv2.INTER_LINEAR) for level in levels], axis=0)
    smooth = cv2.GaussianBlur(enlarged, (0, 0), math.sqrt(96 * 128) / 56, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(anomaly_map[0].numpy(), smooth, rtol=1e-2, atol=1e-2)


# --- the exported graph


def test_the_exported_score_is_the_mean_of_the_top_of_the_exported_coarse_map(network: DevNet) -> None:
    model = onnx.load_from_string(export_graph(network, SIZE_HW))
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    tops = [node for node in model.graph.node if node.op_type == "TopK"]
    assert [constants[node.input[1]].item() for node in tops] == [4, 1]  # of 48 and 12 patches: constants
    for node in tops:
        model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.stack([*parts(range(20, 22)), *parts(range(22, 25), "dent")])
    score, _, *coarse = session.run(None, {"image": images})
    assert [level.shape for level in coarse] == [(5, 48), (5, 12)]
    means = [np.sort(level, axis=1)[:, -k:].mean(axis=1) for level, k in zip(coarse, (4, 1), strict=True)]
    np.testing.assert_allclose(score, np.mean(means, axis=0), rtol=1e-5)


def test_the_exported_graph_equals_the_network_in_batches_of_any_size(network: DevNet) -> None:
    images = [*parts(range(20, 23)), *parts(range(30, 32), "scratch")]
    ours = predict_with_module(network, images)
    theirs = predict_with_graph(export_graph(network, SIZE_HW), images, batch_size=3)
    np.testing.assert_allclose(theirs.image_scores, ours.image_scores, rtol=1e-4)
    np.testing.assert_allclose(theirs.anomaly_maps, ours.anomaly_maps, rtol=1e-3, atol=1e-4)
    assert (ours.image_scores > 0).all()
    assert np.isfinite(ours.anomaly_maps).all()
    assert (ours.anomaly_maps > 0).all()


# --- training


def test_all_layers_learn_and_batch_statistics_stay(network: DevNet) -> None:
    before = trainer_of()._backbone.state_dict()
    after = network.backbone.state_dict()
    statistics = {name for name in before if name.rpartition(".")[2].startswith(("running_", "num_batches"))}
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert [name for name in before.keys() - statistics if torch.equal(before[name], after[name])] == []


def test_the_trained_network_is_frozen_and_in_evaluation_mode(network: DevNet) -> None:
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())


@pytest.mark.usefixtures("few_steps")
def test_a_fit_leaves_the_backbone_of_the_next_one_alone() -> None:
    trainer = trainer_of()
    first, again = (trainer.fit(range(3), range(2)).module for _ in range(2))
    assert first.backbone is not again.backbone
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same_network_whatever_was_drawn_before() -> None:
    first = fitted(seed=3)
    torch.rand(17)
    np.random.rand(17)  # noqa: NPY002
    again, other = fitted(seed=3), fitted(seed=4)
    assert torch.equal(first.head.weight, again.head.weight)
    assert torch.equal(first.backbone.state_dict()["conv_stem.weight"], again.backbone.state_dict()["conv_stem.weight"])
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.usefixtures("few_steps")
def test_training_leaves_the_global_random_state_alone() -> None:
    trainer = trainer_of()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    trainer.fit(range(3), range(2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("few_steps")
def test_without_any_defect_left_pasted_patches_stand_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pasted = []
    monkeypatch.setattr(
        "inspectad.nn.balanced.paste_patch", lambda image, *more: pasted.append(0) or paste_patch(image, *more)
    )
    module = trainer_of(defects=1).fit(range(3), []).module
    assert len(pasted) == 2 * 8
    assert math.isfinite(float(predict_with_module(module, parts(range(1))).image_scores[0]))
    trainer_of(defects=1).fit(range(3), [0])
    assert len(pasted) == 2 * 8  # with a real one, none


@pytest.mark.usefixtures("few_steps")
def test_what_was_done_is_noted() -> None:
    notes = trainer_of().fit(range(3), range(2)).notes
    assert notes["epochs"] == "1 of 1, 2 steps each"
    assert notes["stopped"] == "at the last epoch"
    assert float(notes["final loss"]) > 0


@pytest.mark.usefixtures("few_steps")
def test_the_progress_counts_steps_and_tells_the_loss() -> None:
    told = []
    trainer_of(epochs=2).fit(range(3), range(2), lambda *step: told.append(step))
    assert [(done, total) for _, done, total, _ in told] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(detail.startswith("loss ") for _, done, _, detail in told if done)


@pytest.mark.usefixtures("few_steps")
def test_a_loss_that_is_no_number_stops_with_the_step_and_what_to_do() -> None:
    trainer = trainer_of()
    trainer._backbone.state_dict()["conv_stem.weight"].fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"nan at step 1: .*--seed"):
        trainer.fit(range(3), range(2))


def test_training_ends_when_nothing_changes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 1)
    monkeypatch.setattr(fitting, "CHANGE", 100.0)  # the first epoch falls from infinity, no other does
    monkeypatch.setattr(fitting, "LEARNT", 10.0)
    trainer = trainer_of(epochs=30)
    described = trainer.fit(range(3), range(2)).notes
    assert described["epochs"] == f"{1 + PATIENCE} of 30, 1 steps each"
    assert described["stopped"].startswith("early")


def test_a_network_that_has_not_learnt_yet_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STEPS", 1)
    monkeypatch.setattr(fitting, "CHANGE", 100.0)
    monkeypatch.setattr(fitting, "LEARNT", 0.0)
    monkeypatch.setattr(fitting, "UNLEARNT", 0.0)
    trainer = trainer_of(epochs=8)
    notes = trainer.fit(range(3), range(2)).notes
    assert notes["epochs"] == "8 of 8, 1 steps each"
    assert "more --epochs" in notes["caution"]


def painted(seed: int) -> np.ndarray:
    """A part with a dark patch the size of one patch of the network, somewhere."""
    part, random = parts(range(seed, seed + 1))[0].copy(), np.random.default_rng(seed)
    y, x = random.integers(8, 72), random.integers(8, 104)
    part[y : y + 16, x : x + 16] = 30
    return part


def test_it_learns_what_a_few_defects_show_and_finds_it_on_new_parts() -> None:
    settings = TrainSettings(input_size_hw=SIZE_HW, epochs=3)
    trainer = DevNetTrainer(parts(range(12)), [painted(seed) for seed in range(50, 56)], settings)
    module = trainer.fit(range(12), range(6)).module
    good, defective = parts(range(100, 112)), [painted(seed) for seed in range(200, 212)]
    found = predict_with_module(module, [*good, *defective])
    assert roc_auc_score([0] * 12 + [1] * 12, found.image_scores) >= 0.9
    hits = 0
    for image, anomaly_map in zip(defective, found.anomaly_maps[12:], strict=True):
        y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
        hits += bool((image[max(y - 16, 0) : y + 17, max(x - 16, 0) : x + 17] == 30).all(axis=2).sum() > 100)
    assert hits >= 8  # of 12


def test_a_tenth_of_many_good_images_is_held_back_and_none_of_few() -> None:
    assert held_back(range(19)) == ([], list(range(19)))
    watched, taught = held_back(range(40))
    assert (len(watched), len(taught)) == (4, 36)
    assert sorted(watched + taught) == list(range(40))
    assert len(held_back(range(1000))[0]) == 16


def test_another_number_of_epochs_has_the_same_curve() -> None:
    paper = schedule_for("cuda", None)
    assert (paper.epochs, paper.each, paper.decay_every, paper.learning_rate) == (50, 24, 10, 2e-4)
    assert schedule_for("cuda", 10).decay_every == 2
    assert (schedule_for("cpu", 8).decay_every, schedule_for("cpu", 1).decay_every) == (4, 1)


# --- batches


def test_batches_are_half_good_half_defective_and_few_defects_come_round() -> None:
    good = [np.full((8, 8, 3), i, np.uint8) for i in range(6)]
    defects = [np.full((8, 8, 3), 100 + i, np.uint8) for i in range(2)]
    batches = BalancedBatches(good, range(6), defects, range(2), np.random.default_rng(0))
    seen: Counter[int] = Counter()
    for _ in range(3):
        images, is_defect = batches.draw(4)
        values = images.float().mean(dim=(1, 2, 3)).round().int()
        assert images.dtype == torch.uint8
        assert ((values >= 100) == is_defect).all()
        seen.update(values.tolist())
    assert seen == {**dict.fromkeys(range(6), 2), 100: 6, 101: 6}


def test_an_endless_stream_is_shuffled_anew_each_round() -> None:
    stream = endless([3, 5, 8, 9, 11], np.random.default_rng(1))
    rounds = [[next(stream) for _ in range(5)] for _ in range(8)]
    assert all(sorted(values) == [3, 5, 8, 9, 11] for values in rounds)
    assert len({tuple(values) for values in rounds}) > 4


def test_turned_images_show_nothing_that_was_not_there() -> None:
    image = np.full((20, 30, 3), 77, np.uint8)
    turned = [turned_at_random(image, np.random.default_rng(seed)) for seed in range(9)]
    assert all(np.array_equal(other, image) for other in turned)  # no black corners
    part = parts(range(1))[0]
    assert not np.array_equal(turned_at_random(part, np.random.default_rng(0)), part)


def test_a_pasted_patch_is_a_rectangle_of_the_other_image() -> None:
    for seed in range(50):
        image, source = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 255, np.uint8)
        pasted = paste_patch(image, source, np.random.default_rng(seed))
        rows, columns = np.flatnonzero(pasted.any(axis=(1, 2))), np.flatnonzero(pasted.any(axis=(0, 2)))
        inside = pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (inside == 255).all()
        assert 0.01 < inside[..., 0].size / 2400 < 0.17
        assert not image.any()


# --- backbones with a last stage of their own


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


@pytest.mark.usefixtures("few_steps")
def test_a_resnet_is_taken_to_stride_32_and_restored(resnet_file: Path) -> None:
    module = fitted(backbone="resnet18", backbone_weights=resnet_file)
    shapes = [tuple(s.shape) for s in module.patch_scores(torch.zeros(1, 3, 448, 448))]
    assert shapes == [(1, 1, 14, 14), (1, 1, 7, 7)]
    assert "backbone.layer4.1.conv2.weight" in module.state_dict()
    restored = restore_devnet(module.state_dict(), TrainSettings(input_size_hw=SIZE_HW, backbone="resnet18"))
    ours, again = (predict_with_module(m, parts(range(2))) for m in (module, restored))
    assert np.array_equal(ours.image_scores, again.image_scores)
    assert np.array_equal(ours.anomaly_maps, again.anomaly_maps)


@pytest.mark.usefixtures("few_steps")
def test_signed_scores_are_trained_and_restored_as_such() -> None:
    trainer = trainer_of(abs_topk=False)
    fit = trainer.fit(range(3), range(2))
    module = fit.module
    assert "signed" in fit.notes["abs_topk"]
    restored = restore_devnet(module.state_dict(), TrainSettings(input_size_hw=SIZE_HW))
    ours, again = (predict_with_module(m, parts(range(2))) for m in (module, restored))
    assert np.array_equal(ours.image_scores, again.image_scores)


# --- the whole way


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``good`` with four parts, ``defects`` with two, ``one`` with one, ``nothing``."""
    root = tmp_path_factory.mktemp("parts")
    for seed in range(4):
        write(root / "good" / f"good_{seed}.png", render_part(seed, None, SIZE_HW).image)
    for folder, kinds in (("defects", ("scratch", "stain")), ("one", ("stain",))):
        for kind in kinds:
            write(root / folder / f"{kind}.png", render_part(60, kind, SIZE_HW).image)
    return root


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imencode(".png", image[..., ::-1])[1].tofile(path)


@pytest.mark.usefixtures("few_steps")
def test_train_scan_and_export_on_the_command_line(folders: Path, run_here, run_cli, tmp_path: Path) -> None:
    model = tmp_path / "model"
    done = run_here(
        *("train", folders / "good", folders / "defects", "-o", model),
        *("--method", "devnet", "--epochs", 1, "--size", 128, "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "learning good from defective, without part 1 of 3 ..." in done.stderr
    assert "hardly learnt to tell the defects" in done.stderr  # in two steps
    manifest = inspectad.Detector.load(model, "cpu").manifest
    assert (manifest.method, manifest.input_size_hw) == ("devnet", SIZE_HW)
    assert manifest.settings["epochs"] == "1 of 1, 2 steps each"
    assert manifest.calibration.held_out == "cross-fitting in 3 parts"
    assert len(manifest.calibration.defect_scores) == 2
    assert manifest.parity.score_difference <= manifest.parity.limit

    scanned = run_cli("scan", folders / "good", "-m", model, "-o", tmp_path / "results", "--heatmaps")
    assert scanned.returncode == 0, scanned.stderr
    assert len(list((tmp_path / "results" / "heatmaps").iterdir())) == 4

    for precision in ("fp32", "fp16"):
        exported, _ = export(ExportConfig(model=model, output=tmp_path / f"{precision}.onnx", precision=precision))
        assert max(exported.parity.score_difference, exported.parity.map_difference) <= exported.parity.limit
    tensors = load_file(model / "weights.safetensors")
    assert tensors["module.head.weight"].shape == (1, 112, 1, 1)


@pytest.mark.usefixtures("few_steps")
def test_one_defect_is_enough(folders: Path, tmp_path: Path) -> None:
    report = inspectad.train(
        folders / "good", folders / "one", tmp_path / "model", method="devnet", size_px=128, epochs=1, device="cpu"
    )
    assert len(report.manifest.calibration.defect_scores) == 1
    assert report.manifest.calibration.threshold > 0


def test_without_defects_it_says_what_to_do(folders: Path, run_cli, tmp_path: Path) -> None:
    done = run_cli("train", folders / "good", "-o", tmp_path / "model", "--method", "devnet")
    assert done.returncode == 2
    assert "devnet learns from defects: give a folder of them, or use --method memory_bank" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("method", "epochs"), [("memory_bank", 3), ("devnet", 0), ("devnet", 10**9)])
def test_epochs_that_make_no_sense_are_refused(folders: Path, tmp_path: Path, method: str, epochs: int) -> None:
    with pytest.raises(UsageError, match=f"--epochs {epochs}"):
        inspectad.train(folders / "good", folders / "defects", tmp_path / "model", method=method, epochs=epochs)


@pytest.mark.usefixtures("few_steps")
def test_the_benchmark_measures_it_and_has_a_row_with_the_reason_where_there_is_no_defect(
    folders: Path, run_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectad.benchmark.accuracy.warm_up", lambda: None)  # no test asks how fast
    done = run_here(
        *("benchmark", "accuracy", folders, "-o", tmp_path / "benchmark", "--shots", 2, "--defect-shots", "0,1"),
        *("--seeds", 1, "--methods", "devnet", "--size", 128),
    )
    assert done.returncode == 1, done.stderr  # one of the two could not be made
    with open(tmp_path / "benchmark" / "rows.csv", encoding="utf-8", newline="") as file:
        rows = {row["defect_shots"]: row for row in csv.DictReader(file)}
    assert rows["0"]["error"].startswith("devnet learns from defects")
    assert (rows["1"]["error"], rows["1"]["defect_images"], rows["1"]["test_defects"]) == ("", "1", "1")
    assert 0 <= float(rows["1"]["image_auroc"]) <= 1
