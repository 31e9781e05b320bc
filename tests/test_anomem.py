"""AnoMem: memory, losses, views and both stages, against closed forms and brute force."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inspectad.checkpoint import Checkpoints
from inspectad.demo_part import render_part
from inspectad.errors import TrainingError
from inspectad.methods import anomem
from inspectad.methods.anomem import AnoMemTrainer, restore_anomem
from inspectad.nn import fit_prototypes
from inspectad.nn.contrast import EPSILON, nt_xent, variance_loss
from inspectad.nn.fit_prototypes import Prototypes, PrototypeTraining
from inspectad.nn.one_class_head import OneClassHead, fit_one_class
from inspectad.nn.prototypes import PrototypeMemory, beta_of, cluster, count_of, effective_number, targets_of
from inspectad.nn.settings import SCRATCH, TrainSettings
from inspectad.nn.views import (
    Augmentation,
    augmentation_named,
    draw_matrices,
    read_points,
    shared_points,
    view,
)
from inspectad.pose import FIXED, MIRRORS, Pose

SIDE = 96
D = 128


def units(count: int, seed: int = 0, dimensions: int = D) -> torch.Tensor:
    return F.normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)), dim=1)


def parts(count: int, first: int = 0) -> list[np.ndarray]:
    return [render_part(first + i, None, (SIDE, SIDE)).image for i in range(count)]


def trainer(good: list[np.ndarray], defects: list[np.ndarray] | None = None, **more: object) -> AnoMemTrainer:
    settings = TrainSettings(**({"input_size_hw": (SIDE, SIDE), "epochs": 1} | more))
    return AnoMemTrainer(good, defects or [], settings)


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def are_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- memory


def test_a_memory_of_one_prototype_answers_every_query_with_it() -> None:
    prototype = units(1)
    answers = PrototypeMemory(3 * prototype)(units(20, 1))
    torch.testing.assert_close(answers, prototype.expand(20, -1))


def test_without_beta_the_answer_is_the_direction_of_the_mean() -> None:
    prototypes = units(16)
    expected = prototypes.mean(0) / prototypes.mean(0).norm()
    torch.testing.assert_close(PrototypeMemory(prototypes, 0.0)(units(5, 1)), expected.expand(5, -1))


def test_with_a_large_beta_a_stored_pattern_returns() -> None:
    prototypes = units(16)
    assert (PrototypeMemory(prototypes, 1e4)(prototypes) - prototypes).norm(dim=1).max() < 1e-3


def test_the_default_beta_tells_prototypes_apart_and_the_librarys_does_not() -> None:
    prototypes = units(16)
    assert beta_of(D) == 2 * math.sqrt(D)
    assert (PrototypeMemory(prototypes)(prototypes) - prototypes).norm(dim=1).max() < 1e-6
    assert (PrototypeMemory(prototypes, 1 / math.sqrt(D))(prototypes) - prototypes).norm(dim=1).min() > 1


def test_the_answer_is_the_softmax_of_the_equation() -> None:
    prototypes, queries = units(7), units(3, 1)
    for query, answer in zip(queries.numpy(), PrototypeMemory(prototypes)(queries).detach().numpy(), strict=True):
        weights = np.exp(beta_of(D) * prototypes.numpy().astype(float) @ query)
        expected = (weights[:, None] * prototypes.numpy()).sum(axis=0)
        np.testing.assert_allclose(answer, expected / np.linalg.norm(expected), atol=1e-6)


def test_an_anomalys_own_target_does_not_write_memory() -> None:
    memory, vectors = PrototypeMemory(units(8)), units(6, 1)
    is_good = torch.tensor([True, True, False, True, False, True])
    targets = targets_of(memory, vectors, is_good)
    assert torch.equal(targets[~is_good], vectors[~is_good])
    (of_anomalies,) = torch.autograd.grad(targets[~is_good].square().sum(), memory.prototypes, retain_graph=True)
    (of_good,) = torch.autograd.grad((targets[is_good] * units(4, 2)).sum(), memory.prototypes)
    assert not of_anomalies.any()
    assert of_good.any()


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_effective_number_lies_between_one_and_all(used: int, idle: int) -> None:
    shares = torch.cat([torch.full((used,), 1 / used), torch.zeros(idle)])
    assert effective_number(shares) == pytest.approx(used, rel=1e-4)


def test_clusters_are_where_the_vectors_are_whatever_these_are() -> None:
    centres = units(3)
    around = F.normalize(centres.repeat_interleave(50, 0) + 0.02 * units(150, 1), dim=1)
    found = cluster(around, 3, seed=1)
    nearest = (found @ centres.T).max(dim=0).values
    assert found.norm(dim=1).sub(1).abs().max() < 1e-5
    assert (nearest > 0.99).sum() >= 2  # k-means may put two centres into one of the three
    constant = cluster(centres[:1].expand(9, -1), 4, seed=0)
    torch.testing.assert_close(constant, centres[:1].expand(4, -1))


def test_fewer_patches_are_given_fewer_prototypes() -> None:
    assert [count_of(n) for n in (1, 4, 100, 1024, 100_000)] == [1, 1, 25, 256, 256]


# --- losses


def test_nt_xent_of_equal_vectors_is_the_log_of_the_others() -> None:
    same = units(1).expand(64, -1)
    assert float(nt_xent(same, same)) == pytest.approx(math.log(63), abs=1e-4)


def test_nt_xent_is_its_equation() -> None:
    vectors, targets = units(10, 1).double(), units(10, 2).double()
    logits, total = (vectors @ targets.T / 0.1).numpy(), 0.0
    for k in range(10):
        others = [i for i in range(10) if i != k]
        total -= logits[k, (k + 5) % 10] - math.log(sum(math.exp(logits[k, i]) for i in others))
    assert float(nt_xent(vectors, targets)) == pytest.approx(total / 10, rel=1e-9)


def test_the_variance_loss_of_constant_and_of_spread_vectors() -> None:
    assert float(variance_loss(torch.ones(32, 8), 1.0)) == pytest.approx(1 - math.sqrt(EPSILON))
    spread = torch.tensor([[-1.0], [1.0]]).expand(2, 8)
    assert float(variance_loss(spread, 1.0)) == 0
    assert float(variance_loss(units(2000))) < 0.02 / math.sqrt(D)


# --- views


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 96)])
def test_shared_points_show_the_same_spot_in_both_views(size_hw: tuple[int, int]) -> None:
    """On a picture whose channels are its coordinates, whatever the crops, turns and mirrors are."""
    height, width = size_hw
    y, x = torch.meshgrid(torch.linspace(40, 200, height), torch.linspace(40, 200, width), indexing="ij")
    images = torch.stack([y, x, x + y])[None].expand(8, -1, -1, -1) / 2
    kind = Augmentation(0.7, tuple(MIRRORS), 30.0, 0.0)
    random = torch.Generator().manual_seed(0)
    first, second = (draw_matrices(8, size_hw, kind, random) for _ in range(2))
    points = shared_points(first, second, 16, random)
    seen = [view(images, matrices, kind, random) for matrices in (first, second)]
    apart = (read_points(seen[0], points[0]) - read_points(seen[1], points[1])).abs().amax(dim=2).flatten()
    assert apart.median() < 0.5
    assert apart.quantile(0.8) < 2  # what lies beyond the picture's edge is mirrored, and no spot of it
    assert points[1].abs().max() <= 1.0 + 1e-5
    assert (first - second).abs().amax(dim=(1, 2)).min() > 0.01


def test_views_without_any_change_are_the_images() -> None:
    images = torch.from_numpy(np.stack(parts(2))).permute(0, 3, 1, 2).float()
    none = Augmentation(1.0, (), 0.0, 0.0)
    random = torch.Generator().manual_seed(0)
    torch.testing.assert_close(
        view(images, draw_matrices(2, (SIDE, SIDE), none, random), none, random), images, atol=0.1, rtol=0
    )


def test_the_inspection_set_keeps_what_the_paper_changes() -> None:
    fixed, anyhow = augmentation_named("inspection", FIXED), augmentation_named("inspection", Pose(turns=8))
    paper = augmentation_named("paper", FIXED)
    assert (fixed.mirrors, fixed.hue, fixed.grey, fixed.least_crop) == ((), 0.0, 0.0, 0.7)
    assert (fixed.degrees, anyhow.degrees) == (5.0, 180.0)
    assert (paper.least_crop, paper.light, paper.grey, paper.blur) == (0.5, 0.4, 0.2, 0.5)
    images = torch.full((4, 3, 16, 16), 128.0)
    images[:, 0] = 200
    random = torch.Generator().manual_seed(3)
    grey = Augmentation(1.0, (), 0.0, 0.0, grey=1.0, blur=1.0)
    seen = view(images, draw_matrices(4, (16, 16), grey, random), grey, random)
    assert (seen.amax(dim=1) - seen.amin(dim=1)).max() < 0.5
    assert seen.mean() == pytest.approx(0.299 * 200 + 0.701 * 128, abs=1)


# --- training


def test_the_same_seed_gives_the_same_detector_and_another_another() -> None:
    good = parts(3)
    first, again, other = (state_of(trainer(good, seed=s).fit(range(3), []).module) for s in (0, 0, 1))
    assert are_same(first, again)
    assert not are_same(first, other)


def test_the_memory_is_in_use_with_the_variance_term(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    good, used = parts(6), []
    for weight in (1.0, 0.0):
        monkeypatch.setattr(fit_prototypes, "VARIANCE_WEIGHT", weight)
        notes = trainer(good).fit(range(6), []).notes
        sizes, in_use = (list(map(float, notes[k].split(", "))) for k in ("prototypes", "prototypes in use"))
        used.append([u / n for u, n in zip(in_use, sizes, strict=True)])
    assert min(used[0]) > 0.25
    record_property("shares in use with the term and without", used)  # both, as the specification asks


def test_stage_two_changes_no_byte_of_stage_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    run = PrototypeTraining.run

    def running(self: PrototypeTraining) -> object:
        learnt = run(self)
        kept.append(state_of(learnt.encoder) | state_of(learnt.memories))
        return learnt

    monkeypatch.setattr(PrototypeTraining, "run", running)
    defects = [render_part(40 + i, "scratch", (SIDE, SIDE)).image for i in range(3)]
    module = trainer(parts(6), defects).fit(range(6), range(3)).module
    assert len(kept) == 1
    assert are_same(kept[0], state_of(module.encoder) | state_of(module.memories))


@pytest.mark.parametrize("init", ["pretrained", SCRATCH])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_prototypes, "_SECONDS", -1.0)  # a checkpoint after every step
    monkeypatch.setattr(anomem, "EPOCH_STEPS", 6)
    good = parts(3)
    more = {"init": init, "backbone": "resnet18" if init == SCRATCH else "efficientnet_lite0"}
    whole = state_of(trainer(good, **more).fit(range(3), []).module)

    def stop(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "learning prototypes" and done == 3:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path / "checkpoint", "key")
    with pytest.raises(KeyboardInterrupt):
        trainer(good, checkpoints=checkpoints, **more).fit(range(3), [], stop)
    assert checkpoints.has_any()
    begun: list[int] = []
    resumed = trainer(good, checkpoints=checkpoints, **more).fit(
        range(3), [], lambda text, done, *_: begun.append(done) if text == "learning prototypes" else None
    )
    assert begun[0] == 3
    assert are_same(whole, state_of(resumed.module))


def test_a_training_that_was_stopped_at_its_very_end_is_settled_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not: a checkpoint of its last step counted as complete. Found by a review."""
    monkeypatch.setattr(fit_prototypes, "_SECONDS", -1.0)
    monkeypatch.setattr(anomem, "EPOCH_STEPS", 4)
    good, checkpoints = parts(3), Checkpoints(tmp_path / "checkpoint", "key")
    whole = state_of(trainer(good).fit(range(3), []).module)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(fit_prototypes, "settle", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer(good, checkpoints=checkpoints).fit(range(3), [])
    assert checkpoints.has_any()
    assert are_same(whole, state_of(trainer(good, checkpoints=checkpoints).fit(range(3), []).module))


def test_a_loss_that_is_no_number_stops_with_step_and_cause_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_prototypes, "_SECONDS", -1.0)
    calls = iter(range(1000))
    monkeypatch.setattr(
        fit_prototypes,
        "nt_xent",
        lambda vectors, targets: nt_xent(vectors, targets) * (math.nan if next(calls) >= 9 else 1),
    )
    checkpoints = Checkpoints(tmp_path / "checkpoint", "key")
    with pytest.raises(TrainingError, match=r"stage 1, step 4: the contrastive loss is nan"):
        trainer(parts(2), checkpoints=checkpoints).fit(range(2), [])
    assert checkpoints.has_any()


def test_a_collapse_of_the_memory_is_said() -> None:
    method = trainer(parts(1))
    whole = nn.ModuleList(PrototypeMemory(units(256, i)) for i in range(3))
    idle, alike = copy.deepcopy(whole), copy.deepcopy(whole)
    alike[2].prototypes.data.copy_(units(1).expand(256, -1))
    used = (200.0, 200.0, 200.0)
    encoder = method._encoder()
    assert method._warnings(Prototypes(encoder, whole, (1.0, 0.0), used), 1) == ()
    (few,) = method._warnings(Prototypes(encoder, idle, (1.0, 0.0), (200.0, 60.0, 200.0)), 1)
    (same,) = method._warnings(Prototypes(encoder, alike, (1.0, 0.0), used), 1)
    assert "the memory has collapsed: prototypes in use 60.0 of 256, spread by 0.9" in few
    assert "at stride 16." in few
    assert "200.0 of 256, spread by 0.000, at stride 32." in same


def test_few_and_constant_images_shrink_the_memory_which_is_said() -> None:
    fitted = trainer([np.full((SIDE, SIDE, 3), 90, np.uint8)]).fit([0], [])
    (small,) = fitted.warnings
    assert "the memory holds 36 at stride 8, 9 at stride 16, 2 at stride 32" in small
    with torch.inference_mode():
        score, anomaly_map = fitted.module(torch.full((1, SIDE, SIDE, 3), 90, dtype=torch.uint8))
    assert torch.isfinite(score).all()
    assert torch.isfinite(anomaly_map).all()


def test_a_restored_detector_is_the_same_one_alone_or_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomem, "_BETTER", -1.0)  # the one-class heads are taken
    defects = [render_part(40 + i, "scratch", (SIDE, SIDE)).image for i in range(3)]
    given = trainer(parts(6), defects)
    module = given.fit(range(6), range(3)).module
    assert module.one_class is not None
    restored = restore_anomem(state_of(module), TrainSettings(input_size_hw=(SIDE, SIDE)))
    images = torch.from_numpy(np.stack([*parts(2, 90), *defects]))
    with torch.inference_mode():
        score, anomaly_map = module(images)
        again, _ = restored(images)
        alone = torch.cat([module(image[None])[0] for image in images])
    assert torch.equal(score, again)
    torch.testing.assert_close(score, alone, rtol=1e-4, atol=0)
    assert score.min() > 0
    assert anomaly_map.shape == (5, SIDE, SIDE)


def test_scores_tell_defects_of_rendered_parts_as_the_mean_prototype_does_not() -> None:
    size = (128, 160)
    good, more = ([render_part(first + i, None, size).image for i in range(8)] for first in (0, 100))
    bad = [render_part(200 + i, "missing_hole", size).image for i in range(8)]
    method = trainer(good, input_size_hw=size)
    module = method.fit(range(8), []).module
    found = []
    with torch.inference_mode():
        maps = [method._maps(module, image) for image in good]
        for _ in range(2):
            scores = [module(torch.from_numpy(np.stack(side)))[0].numpy() for side in (more, bad)]
            found.append((scores[1][:, None] > scores[0][None]).mean())
            for scale, memory in enumerate(module.memories):
                vectors = torch.cat([module.encoder.project(scale, m[scale]).flatten(0, 2) for m in maps])
                memory.prototypes = nn.Parameter(vectors.mean(0, keepdim=True).clone(), requires_grad=False)
            module.standardise(maps)
    assert found[0] > max(0.9, found[1])


def test_the_one_class_head_learns_and_has_no_bias() -> None:
    deviations = 0.1 * units(4 * 64, 5).view(4, 8, 8, D)
    (head,) = fit_one_class([deviations], seed=0)
    assert isinstance(head, OneClassHead)
    assert not any(name.endswith("bias") for name, _ in head.named_parameters())
    apart = head.embed(deviations) - head.centre.view(1, -1, 1, 1)
    torch.testing.assert_close(head(deviations).square(), apart.square().sum(dim=1), atol=1e-6, rtol=1e-4)
    strange = 0.1 * units(4 * 64, 6).view(4, 8, 8, D) * 3
    assert head(strange).mean() > 2 * head(deviations).mean()
