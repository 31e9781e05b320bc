"""HTDG from its parts to its trainer: each against a closed form, brute force or another program."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inspectad.checkpoint import Checkpoints
from inspectad.errors import TrainingError
from inspectad.export import half_ops, to_fp16
from inspectad.held_out import _stand_in, turned_copies
from inspectad.methods.htdg import HTDGTrainer, restore_htdg
from inspectad.nn import fit_pyramid as fitting
from inspectad.nn import transformations as moves
from inspectad.nn.altered_copies import altered_copies
from inspectad.nn.fit_pyramid import PyramidPlan, fit_pyramid, patch_loss, right_answers
from inspectad.nn.patch_gan import Discriminator, Generator, resample, resampling, sides_of, start, width_of
from inspectad.nn.pyramid import Scale, generate, pyramid_images
from inspectad.nn.settings import TrainSettings
from inspectad.nn.transformation_votes import TransformationVotes, lowest_mean, told_turns
from inspectad.nn.transformations import ALL, GEOMETRIC, ROTATIONS, Transformation, apply_all
from inspectad.onnx_graph import export_graph, predict_with_graph, predict_with_module
from inspectad.pose import FIXED
from inspectad.training_data import TrainingImages

SIDE = 32
SMALL = (13, 17)
"""Sides of scales where what they learn is not the point."""


def pictures(count: int, side: int = SIDE, first: int = 0) -> list[np.ndarray]:
    """Smooth random colours, no two alike, none the same when it is turned: uint8 (side, side, 3)."""
    made = []
    for seed in range(first, first + count):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        made.append(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return made


def pixels(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def reals(*images: np.ndarray) -> torch.Tensor:
    """(N, 3, side, side) in -1..1, as networks see them."""
    return pixels(*images).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discriminator(classes: int, width: int = 32, seed: int = 0, scatter: float = 1.0) -> Discriminator:
    """Untrained; a ``scatter`` above 1 makes its votes differ."""
    network = Discriminator(classes, width).eval()
    start(network, random_source(seed))
    with torch.no_grad():
        network.body[-1].weight.mul_(scatter)
    return network


def votes_of(
    transformations: tuple[Transformation, ...] = ROTATIONS, share: float = 0.05, sides: tuple[int, ...] = (25, 32)
) -> TransformationVotes:
    """Untrained, its votes differ from patch to patch."""
    networks = [discriminator(len(transformations) + 1, seed=side, scatter=3000.0) for side in sides]
    module = TransformationVotes(networks, transformations, sides, SIDE, share).eval().requires_grad_(False)
    module.spread.copy_(torch.tensor([0.02, 0.1])[: len(sides)])
    return module


def plan(steps: int = 2, seed: int = 0, **more: object) -> PyramidPlan:
    return PyramidPlan(**{"sides": SMALL, "transformations": ROTATIONS, "steps": steps, "seed": seed, **more})


def trainer(images: list[np.ndarray], steps: int = 1, seed: int = 0, **more: object) -> HTDGTrainer:
    given = {key: more.pop(key) for key in ("checkpoints", "transformations") if key in more}
    settings = TrainSettings(input_size_hw=images[0].shape[:2], steps=steps, seed=seed, **given)
    return HTDGTrainer(images, [], settings, **{"sides": SMALL[:1], **more})


def weights(scales: list[Scale]) -> list[torch.Tensor]:
    networks = [network for scale in scales for network in (scale.discriminator, scale.generator)]
    return [tensor for network in networks for tensor in network.state_dict().values()]


def are_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- transformations


def test_there_are_54_transformations_42_without_grey_and_4_turns() -> None:
    assert (len(ALL), len(set(ALL))) == (54, 54)
    assert (len(GEOMETRIC), sum(t.grey for t in GEOMETRIC), sum(t.grey for t in ALL)) == (42, 0, 12)
    assert tuple(Transformation(turns=turn) for turn in range(4)) == ROTATIONS
    assert set(ROTATIONS) <= set(GEOMETRIC) <= set(ALL)


def test_all_transformations_of_an_image_differ() -> None:
    image = torch.rand(1, 3, 20, 20, generator=random_source())
    made = apply_all(image, ALL)
    assert min(float((a - b).abs().max()) for a, b in itertools.combinations(made, 2)) > 0.1


@pytest.mark.parametrize("transformation", ALL)
def test_a_transformation_is_numpys_flip_roll_with_reflection_and_quarter_turn(transformation: Transformation) -> None:
    image = torch.rand(2, 3, 20, 20, generator=random_source())
    t, distance = transformation, 3  # 15 % of 20
    expected = image.numpy()[..., ::-1] if t.flip else image.numpy()
    border = ((0, 0), (0, 0), (distance, distance), (distance, distance))
    padded = np.pad(expected, border, mode="reflect")
    top, left = distance * (1 - t.shift_y), distance * (1 - t.shift_x)
    expected = np.rot90(padded[..., top : top + 20, left : left + 20], t.turns, (-2, -1))
    if t.grey:
        expected = np.repeat(np.tensordot([0.299, 0.587, 0.114], expected, (0, 1))[:, None], 3, axis=1)
    np.testing.assert_allclose(moves.apply(image, t).numpy(), expected, rtol=0, atol=1e-6)


def test_what_keeps_all_pixels_is_undone_exactly_and_nothing_else() -> None:
    image = torch.rand(1, 3, 9, 9, generator=random_source())
    kept = [t for t in ALL if t.keeps_pixels]
    assert len(kept) == 16  # 2 flips, 4 turns, in colour and in grey
    for t in kept:
        assert torch.equal(moves.undo(moves.apply(image, replace(t, grey=0)), t), image)
    with pytest.raises(ValueError, match="cannot be undone"):
        moves.undo(image, ALL[-1])


@pytest.mark.parametrize("transformations", [ROTATIONS, ALL[::-1]])
def test_all_transformations_at_once_are_those_one_after_the_other(
    transformations: tuple[Transformation, ...],
) -> None:
    images = torch.rand(3, 3, 20, 20, generator=random_source())
    table = moves.pixel_table(transformations, 20)
    has_grey = any(t.grey for t in transformations)
    assert torch.equal(moves.look_up(images, table, has_grey=has_grey), apply_all(images, transformations))


def test_the_order_of_transformations_travels_as_numbers() -> None:
    order = [ALL[i] for i in np.random.default_rng(0).permutation(54)]
    assert moves.from_tensor(moves.to_tensor(order)) == tuple(order)
    with pytest.raises(ValueError, match="no transformations"):
        moves.from_tensor(torch.tensor([[0, 2, 0, 0, 0]]))


# --- networks


def test_the_pyramid_of_64_pixels_is_the_published_one_but_for_their_rounding() -> None:
    assert sides_of(64) == (25, 32, 40, 51, 64)
    assert [width_of(n) for n in range(9)] == [32] * 4 + [64] * 4 + [128]
    assert sides_of(25) == (25,)
    with pytest.raises(ValueError, match="24 are too few"):
        sides_of(24)


def test_the_discriminator_has_as_many_parameters_as_the_authors() -> None:
    assert sum(p.numel() for p in Discriminator(55, 32).parameters()) == 44791


@pytest.mark.parametrize("network", [Discriminator(5, 32), Generator(32)])
def test_a_place_of_a_map_sees_11_by_11_pixels(network: nn.Module) -> None:
    network.eval()
    start(network, random_source())
    image = torch.zeros(1, 3, 31, 31, requires_grad=True)
    given = (image,) if isinstance(network, Discriminator) else (image, torch.zeros(1, 3, 31, 31), torch.zeros(1))
    out = network(*given)
    assert out.shape[2] == (21 if isinstance(network, Discriminator) else 31)
    middle = out.shape[2] // 2
    out[0, :, middle, middle].sum().backward()
    assert image.grad is not None
    seen = image.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.min(dim=0).values.tolist(), seen.max(dim=0).values.tolist()) == ([10, 10], [20, 20])


@pytest.mark.parametrize("side", sides_of(64))
def test_resampling_is_torchs_antialiased_bicubic(side: int) -> None:
    images = torch.rand(2, 3, 64, 64, generator=random_source()) * 2 - 1
    expected = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    np.testing.assert_allclose(resample(images, resampling(64, side)).numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("transformations", [ROTATIONS, ALL])
def test_an_untrained_discriminator_guesses(transformations: tuple[Transformation, ...]) -> None:
    count = len(transformations)
    network = discriminator(count + 1).train()
    stacked = apply_all(reals(pictures(1, 41)[0]), transformations)
    with torch.no_grad():
        loss = patch_loss(network(stacked), torch.arange(count))
    assert float(loss) == pytest.approx(math.log(count + 1), abs=0.05)
    module = TransformationVotes([network.eval()], transformations, (41,), 41, 1.0)
    with torch.no_grad():
        votes = module.votes(pixels(*pictures(1, 41)))
    assert votes[0].shape == (count, 1, 31, 31)  # 10 pixels less
    assert float(module.normality(votes)) * count == pytest.approx(1, abs=0.05)


def test_a_quarter_turn_of_the_image_moves_the_rows_of_the_votes() -> None:
    network = discriminator(5, scatter=3000.0)
    image = reals(pictures(1)[0])

    def mean_votes(seen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(apply_all(seen, ROTATIONS))[:, :4].softmax(dim=1).mean(dim=(2, 3))

    rows, turned = mean_votes(image), mean_votes(torch.rot90(image, 1, (2, 3)))
    assert float((rows - rows.roll(-1, 0)).abs().max()) > 0.01
    np.testing.assert_allclose(turned.numpy(), rows.roll(-1, 0).numpy(), atol=1e-6)


# --- training


def test_the_loss_is_the_mean_log_of_the_right_share() -> None:
    logits = torch.randn(8, 5, 3, 4, generator=random_source())
    answers = right_answers(plan(), 2, torch.device("cpu"))
    assert answers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    exponents = np.exp(logits.double().numpy())
    shares = [exponents[i, a] / exponents[i].sum(axis=0) for i, a in enumerate(answers)]
    assert float(patch_loss(logits, answers)) == pytest.approx(-np.mean(np.log(shares)), rel=1e-6)


def test_the_discriminators_rate_falls_to_a_tenth_at_half_of_the_steps() -> None:
    usual = plan(steps=1000)
    assert (usual.learning_rate, usual.betas) == (5e-4, (0.5, 0.999))
    assert [usual.rate_of(step) for step in (0, 499, 500, 999)] == [
        5e-4,
        5e-4,
        pytest.approx(5e-5),
        pytest.approx(5e-5),
    ]


def test_the_rates_and_the_number_of_updates_reach_the_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    update = fitting.descend
    monkeypatch.setattr(
        fitting, "descend", lambda adam, loss: rates.append(adam.param_groups[0]["lr"]) or update(adam, loss)
    )
    fit_pyramid(pixels(*pictures(1)), plan(steps=2, sides=SMALL[:1]))
    assert rates == pytest.approx([5e-4] * 6 + [5e-5] * 3 + [5e-4] * 3)


def test_a_discriminator_alone_remembers_its_image_and_no_noise() -> None:
    image = pictures(1, 25)[0]
    [scale] = fit_pyramid(pixels(image), plan(steps=60, sides=(25,), with_generator=False))
    module = TransformationVotes([scale.discriminator], ROTATIONS, (25,), 25, 1.0).eval()
    noise = np.random.default_rng(0).integers(0, 256, (25, 25, 3), np.uint8)
    with torch.no_grad():
        own, other = (4 * float(module.normality(module.votes(pixels(seen)))) for seen in (image, noise))
    assert own > 3.8
    assert other == pytest.approx(1, abs=0.25)
    assert told_turns(module, pixels(image)) > 0.95


def test_a_scale_is_frozen_before_the_next_one_learns_and_hands_its_weights_on() -> None:
    seen: list[list[torch.Tensor]] = []

    def watch(_text: str, _done: int, _total: int, detail: str = "", /) -> None:
        if detail.startswith("scale 2") and made:
            seen.append([t.clone() for t in weights(made[:1])])

    made: list[Scale] = []
    with pytest.MonkeyPatch.context() as patch:
        freeze = Scale.freeze
        patch.setattr(Scale, "freeze", lambda scale: made.append(scale) or freeze(scale))
        scales = fit_pyramid(pixels(*pictures(1)), plan(), say=watch)
    assert len(seen) == 2 + 1  # its two steps, and the end
    assert are_equal(seen[0], seen[-1])
    for network in (scales[0].discriminator, scales[0].generator):
        assert not any(p.requires_grad for p in network.parameters())
        assert not network.training
    alone = fit_pyramid(pixels(*pictures(1)), plan(sides=SMALL[:1]))
    assert are_equal(weights(alone), weights(scales[:1]))
    untaught = fit_pyramid(pixels(*pictures(1)), plan(learning_rate=0.0))
    learnt = [[p for n in (s.discriminator, s.generator) for p in n.parameters()] for s in untaught]
    assert are_equal(*learnt)


def test_all_weights_learn_and_the_reconstruction_comes_close() -> None:
    image = pixels(*pictures(1))
    short, longer = (fit_pyramid(image, plan(steps=steps, sides=SMALL[:1])) for steps in (1, 12))
    before, after = (dict(scales[0].generator.named_parameters()) for scales in (short, longer))
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == []
    errors = []
    for scales in (short, longer):
        again = generate(scales, 13, torch.zeros(1, dtype=torch.int64), None)
        errors.append(float((again - pyramid_images(image, (13,))[0]).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    assert longer[0].losses[2] < 0.1


def test_the_noise_above_the_coarsest_scale_is_a_tenth_of_what_the_reconstruction_lacks() -> None:
    images = pixels(*pictures(2))
    scales = fit_pyramid(images, plan(steps=1))
    again = generate(scales[:1], 17, torch.arange(2), None)
    lacking = (pyramid_images(images, (17,))[0] - again).abs().mean(dim=(1, 2, 3))
    assert scales[0].amplitudes.tolist() == [1, 1]
    np.testing.assert_allclose(scales[1].amplitudes.numpy(), 0.1 * lacking.numpy(), rtol=1e-4)
    assert torch.equal(scales[0].fixed[:, 0], scales[0].fixed[:, 2])  # one channel, three times
    assert not torch.equal(scales[1].fixed[:, 0], scales[1].fixed[:, 2])


def test_the_same_seed_gives_the_same_pyramid_whatever_was_drawn_before() -> None:
    images = pixels(*pictures(2))
    first = weights(fit_pyramid(images, plan(seed=3)))
    torch.manual_seed(17)
    expected = torch.rand(3)
    torch.manual_seed(17)
    again = weights(fit_pyramid(images, plan(seed=3)))
    assert torch.equal(torch.rand(3), expected)  # and nothing is drawn from what others use
    assert are_equal(first, again)
    assert not torch.equal(first[0], weights(fit_pyramid(images, plan(seed=4, steps=1)))[0])


@pytest.mark.parametrize("stopped_at", [1, 4])
def test_a_training_that_was_stopped_gives_the_same_pyramid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """Within the first scale and within the second."""
    images = pixels(*pictures(2))
    whole = weights(fit_pyramid(images, plan(steps=3)))
    monkeypatch.setattr(fitting, "_SECONDS", -1.0)  # a checkpoint a step
    steps = 0

    def stop(_text: str, _done: int, _total: int, _detail: str = "", /) -> None:
        nonlocal steps
        if steps == stopped_at:
            raise KeyboardInterrupt
        steps += 1

    with pytest.raises(KeyboardInterrupt):
        fit_pyramid(images, plan(steps=3), Checkpoints(tmp_path, "key"), say=stop)
    done: list[str] = []
    again = fit_pyramid(images, plan(steps=3), Checkpoints(tmp_path, "key"), say=lambda *said: done.append(said[3]))
    assert are_equal(whole, weights(again))
    assert len(done) == 6 - stopped_at + 1
    restarted: list[str] = []
    fit_pyramid(images, plan(steps=3), Checkpoints(tmp_path, "key"), say=lambda *said: restarted.append(said[3]))
    assert len(restarted) == 1  # all is there


def test_a_scale_that_was_stopped_at_its_very_end_is_settled_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not: a checkpoint of its last step counted as complete. Found by a review."""
    images = pixels(*pictures(2))
    whole = weights(fit_pyramid(images, plan(steps=2)))
    monkeypatch.setattr(fitting, "_SECONDS", -1.0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(fitting, "settle", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_pyramid(images, plan(steps=2), Checkpoints(tmp_path, "key"))
    assert are_equal(whole, weights(fit_pyramid(images, plan(steps=2), Checkpoints(tmp_path, "key"))))


def test_a_loss_that_is_no_number_stops_the_training_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path, "key")
    step = fitting._ScaleTraining._step

    def broken(self: object, previous: torch.Tensor) -> torch.Tensor:
        lost = step(self, previous)
        return lost * torch.tensor([1, math.nan, 1]) if self._number == 1 and self._scale.step == 1 else lost

    monkeypatch.setattr(fitting._ScaleTraining, "_step", broken)
    with pytest.raises(TrainingError, match="scale 2 of 2, step 2: the generator's loss is nan"):
        fit_pyramid(pixels(*pictures(1)), plan(steps=2), kept)
    finished = kept.load("fit-0")
    assert finished is not None
    assert int(finished["step"]) == 2
    assert all(bool(torch.isfinite(t).all()) for t in finished.values())


def test_progress_tells_scale_losses_and_all_of_the_work() -> None:
    said: list[tuple[str, int, int, str]] = []
    fit_pyramid(pixels(*pictures(1)), plan(steps=4), say=lambda *step: said.append(step))
    assert {text for text, *_ in said} == {"learning the pyramid"}  # one bar, whose time left is that of all scales
    assert {total for _, _, total, _ in said} == {8}
    done = [done for _, done, _, _ in said]
    assert done == sorted(done)
    assert done[4] == int(8 * 13**2 / (13**2 + 17**2))  # larger scales take longer
    assert done[-1] == 8
    assert said[0][3] == "scale 1 of 2"
    assert [part.split()[0] for part in said[-1][3].split(", ")] == ["scale", "D", "G", "rec"]


def test_of_more_than_ten_images_each_step_sees_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    chosen = fitting._chosen
    monkeypatch.setattr(fitting, "_chosen", lambda *given: seen.append(chosen(*given).tolist()) or chosen(*given))
    images = pictures(12)
    fitted = trainer(images, steps=2).fit(range(12), [])
    assert [len(set(step)) for step in seen] == [10, 10]
    assert seen[0] != seen[1]
    assert "12 good images: this method is for 1 to 10" in " ".join(fitted.warnings)
    assert math.isfinite(float(predict_with_module(fitted.module, images[:1]).image_scores[0]))


# --- votes, score and map


@pytest.mark.parametrize(("share", "count"), [(1.0, 77), (0.05, 3), (0.1, 7), (0.001, 1)])
def test_the_lowest_share_of_the_patches_counts(share: float, count: int) -> None:
    votes = torch.rand(4, 3, 7, 11, generator=random_source())
    expected = [[np.sort(image.ravel())[:count].mean() for image in row] for row in votes.numpy()]
    np.testing.assert_allclose(lowest_mean(votes, share).numpy(), expected, rtol=1e-6)


def naive_votes(module: TransformationVotes, image: np.ndarray) -> list[list[np.ndarray]]:
    """Vote for the right one at each patch, of each scale and transformation, one pass of a network each."""
    found = []
    for network, side in zip(module.discriminators, (25, 32), strict=True):
        small = F.interpolate(reals(image), (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        rows = []
        for number, t in enumerate(moves.from_tensor(module.rows)):
            with torch.no_grad():
                logits = network(moves.apply(small, t))[0, : len(module.rows)].double().numpy()
            shares = np.exp(logits - logits.max(axis=0))
            rows.append(shares[number] / shares.sum(axis=0))
        found.append(rows)
    return found


def test_score_and_map_are_what_brute_force_finds() -> None:
    module, images = votes_of(GEOMETRIC), pictures(2)
    found = predict_with_module(module, images)
    weight = np.array([1 / 0.02, 1 / 0.1]) / (1 / 0.02 + 1 / 0.1)
    for image, score, anomaly_map in zip(images, found.image_scores, found.anomaly_maps, strict=True):
        votes = naive_votes(module, image)
        means = [np.mean([np.sort(v.ravel())[: int(0.05 * v.size)].mean() for v in rows]) for rows in votes]
        assert score == pytest.approx(-math.log(weight @ means), rel=1e-4)
        placed = np.zeros((SIDE, SIDE))
        for share, rows in zip(weight, votes, strict=True):
            back = []
            for t, vote in zip(GEOMETRIC, rows, strict=True):
                if t.shift_x == t.shift_y == 0:
                    turned = np.rot90(vote, -t.turns)
                    back.append(turned[:, ::-1] if t.flip else turned)
            assert len(back) == 8
            padded = np.pad(np.mean(back, axis=0), 5, mode="edge")
            placed += share * cv2.resize(padded, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        smooth = cv2.GaussianBlur(placed, (33, 33), 4.0, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(anomaly_map, -np.log(smooth), rtol=2e-3)


def test_scales_weigh_as_one_over_how_much_good_images_differ_there() -> None:
    module = votes_of(share=1.0)
    images = pixels(*pictures(5))
    module.learn_usual(images)
    with torch.no_grad():
        found = module.normality(module.votes(images)).double().numpy()
    np.testing.assert_allclose(module.usual.numpy(), found.mean(axis=0), rtol=1e-5)
    spread = np.maximum(found.std(axis=0), 0.01)
    np.testing.assert_allclose(module.weights().numpy(), (1 / spread) / (1 / spread).sum(), rtol=1e-4)
    # The order of scores is that of the mean of standardised ones.
    module.spread.copy_(torch.tensor([0.03, 0.2]))
    scores = predict_with_module(module, pictures(5)).image_scores
    standardised = ((found - module.usual.numpy()) / [0.03, 0.2]).mean(axis=1)
    assert np.argsort(scores).tolist() == np.argsort(-standardised).tolist()


def test_altered_copies_are_cut_from_the_image_and_follow_the_seed() -> None:
    images = pixels(*pictures(2, 64))
    copies = altered_copies(images, 6, seed=1)
    assert (copies.shape, copies.dtype) == ((6, 64, 64, 3), torch.uint8)
    assert torch.equal(copies, altered_copies(images, 6, seed=1))
    assert not torch.equal(copies, altered_copies(images, 6, seed=2))
    for number, copy in enumerate(copies.numpy()):
        inner = np.ascontiguousarray(copy[8:-8, 8:-8])
        alike = [cv2.matchTemplate(image, inner, cv2.TM_CCOEFF_NORMED).max() for image in images.numpy()]
        own, other = alike[number % 2], alike[1 - number % 2]
        assert own > max(0.8, other)


@pytest.mark.parametrize(("transformations", "sides"), [(ROTATIONS, (25, 32)), (ALL, (25,))])
def test_the_exported_graph_equals_the_network_in_batches_of_any_size(
    transformations: tuple[Transformation, ...], sides: tuple[int, ...]
) -> None:
    module = votes_of(transformations, sides=sides)
    images = pictures(5)
    ours = predict_with_module(module, images)
    theirs = predict_with_graph(export_graph(module, (SIDE, SIDE)), images, batch_size=3)
    assert np.ptp(ours.image_scores) > 0.01
    np.testing.assert_allclose(theirs.image_scores, ours.image_scores, rtol=1e-4)
    np.testing.assert_allclose(theirs.anomaly_maps, ours.anomaly_maps, rtol=1e-3)


def test_half_precision_reaches_every_convolution_of_the_discriminators() -> None:
    module, images = votes_of(), pictures(3)
    graph = export_graph(module, (SIDE, SIDE))
    half = to_fp16(graph, half_ops(module))
    model = onnx.load_from_string(half)
    constants = {i.name: i for i in model.graph.initializer}
    weights = [constants[n.input[1]] for n in model.graph.node if n.op_type == "Conv"]
    trunk = [i.data_type for i in weights if list(i.dims[2:]) == [3, 3]]  # the others smooth the map
    assert trunk == [onnx.TensorProto.FLOAT16] * 10
    ours, theirs = predict_with_graph(graph, images), predict_with_graph(half, images)
    np.testing.assert_allclose(theirs.image_scores, ours.image_scores, rtol=0.05)
    assert not np.array_equal(theirs.anomaly_maps, ours.anomaly_maps)


def test_a_single_good_image_turned_by_5_degrees_stands_for_others() -> None:
    module = votes_of()
    good = TrainingImages((), (SIDE, SIDE), 255)
    good._cache[0] = pictures(1)[0]
    copies = predict_with_module(module, turned_copies(pictures(1)[0], 5.0))
    assert _stand_in(module, good, FIXED)[0] == pytest.approx(1.35 * copies.image_scores.mean(), rel=1e-5)


def test_a_module_of_sides_that_cannot_be_is_refused() -> None:
    for sides in ((), (10,), (33,), (10**9,)):
        with pytest.raises(ValueError, match="do not fit an input of 32 pixels"):
            TransformationVotes([], ROTATIONS, sides, SIDE, 0.05)


# --- the trainer


def test_the_trained_network_comes_back_from_its_tensors() -> None:
    images = pictures(2, 32)
    fitted = trainer(images, sides=None).fit([0, 1], [])
    assert fitted.notes["scales"] == "25, 29, 32 px"
    assert not any(p.requires_grad for p in fitted.module.parameters())
    assert not any(m.training for m in fitted.module.modules())
    again = restore_htdg(fitted.module.state_dict(), TrainSettings(input_size_hw=(32, 32)))
    ours, theirs = (predict_with_module(module, images) for module in (fitted.module, again))
    assert np.array_equal(ours.image_scores, theirs.image_scores)
    assert np.array_equal(ours.anomaly_maps, theirs.anomaly_maps)
    assert not hasattr(fitted.module, "generator")
    assert not [name for name in fitted.module.state_dict() if "generator" in name]


def test_training_teaches_with_the_images_it_is_told_and_once() -> None:
    images = pictures(3)
    subject = trainer(images)
    assert subject.fit([0, 2], []) is subject.fit([0, 2], [1])
    alone = trainer([images[0], images[2]]).fit([0, 1], [])
    state, same = subject.fit([0, 2], []).module.state_dict(), alone.module.state_dict()
    assert are_equal(list(state.values()), list(same.values()))


@pytest.mark.parametrize(("images", "share"), [(1, 0.05), (4, 0.05), (5, 0.10)])
def test_the_share_of_patches_is_the_published_one_for_so_many_images(images: int, share: float) -> None:
    fitted = trainer(pictures(images)).fit(range(images), [])
    assert float(fitted.module.lowest_share) == share
    assert fitted.notes["patches that count"] == f"the {share:.0%} that are least sure"


def test_the_samples_show_the_training_images_first() -> None:
    images = pictures(2)
    picture = trainer(images, sides=SMALL).fit([0, 1], []).samples
    assert picture is not None
    assert (picture.dtype, picture.shape) == (np.uint8, (5 * 34 - 2, 8 * 34 - 2, 3))
    assert np.array_equal(picture[:32, :32], images[0])
    assert np.array_equal(picture[:32, 34:66], images[1])
    assert trainer(images, with_generator=False).fit([0, 1], []).samples is None


def test_a_grey_image_is_as_good_as_any() -> None:
    grey = np.repeat(pictures(1)[0][:, :, :1], 3, axis=2)
    found = predict_with_module(trainer([grey]).fit([0], []).module, [grey, pictures(1)[0]])
    assert np.isfinite(found.image_scores).all()


def test_a_part_that_looks_the_same_when_turned_is_told_of() -> None:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    rings = (127 + 120 * np.sin(np.hypot(x, y) * 1.5)).astype(np.uint8)
    same = np.repeat(rings[..., None], 3, axis=2)
    assert np.array_equal(same, np.rot90(same))
    symmetric, turning = (
        trainer([image], steps=20, with_generator=False, sides=(25,)).fit([0], []) for image in (same, pictures(1)[0])
    )
    assert "looks the same however it lies" in " ".join(symmetric.warnings)
    assert "--method memory_bank" in " ".join(symmetric.warnings)
    assert turning.warnings == ()


def test_few_steps_are_told_of() -> None:
    warnings = trainer(pictures(1), steps=2).fit([0], []).warnings
    assert any(sentence.startswith("--steps 2: too few") for sentence in warnings)


@pytest.mark.parametrize(("size_hw", "reason"), [((64, 96), "square"), ((16, 16), "16 are too few")])
def test_an_input_that_cannot_be_is_refused(size_hw: tuple[int, int], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        HTDGTrainer(pictures(1), [], TrainSettings(input_size_hw=size_hw))
