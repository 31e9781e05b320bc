"""The parts of UTAD, each against a closed form, another program, brute force or the published count."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from inspectad.checkpoint import Checkpoints
from inspectad.demo_part import render_part
from inspectad.errors import TrainingError
from inspectad.export import half_ops, to_fp16
from inspectad.images import resize
from inspectad.methods.set_apart import set_apart, shifted
from inspectad.methods.utad import Schedule, UTADTrainer, augmentation_of, restore_utad
from inspectad.nn import fit_impression
from inspectad.nn.backbone import build_backbone, load_backbone
from inspectad.nn.batch_statistics import settle
from inspectad.nn.expert_net import Generator, ImageNorm, adaptive_instance_norm, start
from inspectad.nn.fit_expert import ExpertPlan, ExpertStage, falling_share
from inspectad.nn.fit_impression import GoodImages, ImpressionStage, rate_share
from inspectad.nn.inception import ImpressionNet, Inception
from inspectad.nn.information import PairDiscriminator, divergence, information_losses, pair_loss
from inspectad.nn.multi_scale_gan import MultiScaleDiscriminator, discriminator_loss, generator_loss
from inspectad.nn.perceptual import perceptual_distance
from inspectad.nn.reconstruction_map import anomaly_evidence, ms_ssim_map, residual
from inspectad.nn.settings import TrainSettings
from inspectad.nn.stages import Stage, run_stage
from inspectad.nn.two_stage import Reconstruction, TwoStage, restore_two_stage, shares_of
from inspectad.onnx_graph import FP32_LIMIT, compare, export_graph, predict_with_graph, predict_with_module
from inspectad.pose import FIXED, Pose, any_angle

SIDE = 64
CPU = torch.device("cpu")
TINY = Schedule((2, 2), (2, 1))
"""Where what is learnt is not the point."""


def part(seed: int, kind: str | None = None) -> np.ndarray:
    return resize(render_part(seed, kind, (96, 96)).image, (SIDE, SIDE))


def parts(count: int) -> list[np.ndarray]:
    return [part(seed) for seed in range(count)]


def a_batch(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform in 0..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def one(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)[None]


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# --- networks


def test_shapes_and_numbers_of_parameters_are_the_published_ones() -> None:
    impressions, generator = ImpressionNet().eval(), Generator().eval()
    assert round(parameters_of(impressions) / 1e6, 3) == 6.776
    assert round(parameters_of(generator) / 1e6, 3) == 9.779
    assert generator.adapt[-1].out_features == 2048
    images = a_batch(1, 3, 256, 256)
    with torch.inference_mode():
        latent = impressions.encode(images)
        mean, log_variance, reduced = impressions.describe(latent)
        content = generator.content(images)
        assert latent.shape == (1, 512, 8, 8)
        assert mean.shape == log_variance.shape == (1, 128)
        assert reduced.shape == (1, 512, 4, 4)
        assert impressions.decode(latent).shape == images.shape
        assert content.shape == (1, 256, 64, 64)
        assert generator.detail(images).shape == (1, 8)
        assert generator.decode(content, generator.detail(images)).shape == images.shape


def test_an_inception_block_is_its_four_views_normalised() -> None:
    """By plain convolutions of each view alone, with batch statistics of its own, as published."""
    block = Inception(3, 2).train()
    x = a_batch(2, 3, 8, 8)
    views = [F.conv2d(x, view.weight, padding=side // 2) for view, side in zip(block.views, (1, 3, 5), strict=True)]
    views.append(F.conv2d(F.max_pool2d(x, 3, 1, 1), block.highest[1].weight))
    apart = [F.leaky_relu(F.batch_norm(v, None, None, training=True, eps=1e-3), 0.1) for v in views]
    assert torch.allclose(block(x), torch.cat(apart, dim=1), atol=1e-5)


def test_adain_of_its_own_mean_and_deviation_changes_nothing() -> None:
    x = a_batch(2, 4, 9, 7)
    mean, deviation = x.mean(dim=(2, 3)), x.var(dim=(2, 3), correction=0).add(1e-5).sqrt()
    assert torch.allclose(adaptive_instance_norm(x, mean, deviation), x, atol=1e-5)


def test_adain_equals_the_usual_trick() -> None:
    """Batch normalisation, in training mode, of one image with as many channels as all have together."""
    x, shift, scale = a_batch(2, 4, 9, 7), a_batch(2, 4, seed=1), a_batch(2, 4, seed=2)
    trick = F.batch_norm(x.view(1, 8, 9, 7), None, None, scale.flatten(), shift.flatten(), training=True)
    assert torch.allclose(adaptive_instance_norm(x, shift, scale), trick.view_as(x), atol=1e-5)


def test_image_norm_does_not_depend_on_the_batch() -> None:
    norm = ImageNorm(3)
    x = a_batch(2, 3, 6, 5)
    by_hand = (x - x.mean(dim=(1, 2, 3), keepdim=True)) / x.var(dim=(1, 2, 3), keepdim=True, correction=0).sqrt()
    assert torch.allclose(norm(x), by_hand, atol=1e-3)
    assert torch.allclose(norm(x)[:1], norm(x[:1]), atol=1e-6)


def test_another_detail_changes_how_it_looks_and_not_where_things_are(random: torch.Generator) -> None:
    generator = Generator().eval()
    start(generator, random)
    image, other = a_batch(1, 3, SIDE, SIDE) * 2 - 1, a_batch(1, 3, SIDE, SIDE, seed=1) ** 4 * 2 - 1
    with torch.inference_mode():
        content = generator.content(image)
        own, swapped = (generator.decode(content, generator.detail(of)) for of in (image, 5 * other))
        assert not torch.allclose(own.mean(dim=(2, 3)), swapped.mean(dim=(2, 3)), atol=1e-3)
        # Where things are: in both, the same places are bright, channel by channel, where the content is the same.
        pairs = (torch.corrcoef(torch.stack([own[0, c].flatten(), swapped[0, c].flatten()]))[0, 1] for c in range(3))
        alien = generator.decode(generator.content(other), generator.detail(image))
        others = (torch.corrcoef(torch.stack([own[0, c].flatten(), alien[0, c].flatten()]))[0, 1] for c in range(3))
        same, different = [abs(float(found)) for found in pairs], [abs(float(found)) for found in others]
        assert min(same) > 2 * max(different)


def test_a_start_depends_on_its_generator_alone() -> None:
    networks = [Generator(), Generator()]
    for network in networks:
        start(network, torch.Generator().manual_seed(7))
    first, second = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    assert torch.equal(first, second)
    weight = networks[0].places[0].first.weight
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)


class Exported(nn.Module):
    """AdaIN between uint8 images and what a detector returns, so that `export_graph` takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        start(self.generator, torch.Generator().manual_seed(5))
        self.register_buffer("place", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        drawn = self.generator.decode(self.generator.content(x), self.generator.detail(x))
        return drawn.mean(dim=(1, 2, 3)), drawn.mean(dim=1)


def test_adain_is_exported_as_it_is() -> None:
    """The trick with batch normalisation, weights put in as attributes, is exported as another operation: .05 off."""
    module = Exported().eval()
    images = [part(0), part(1), part(2, "scratch")]
    graph = export_graph(module, (SIDE, SIDE))
    assert not [node for node in onnx.load_from_string(graph).graph.node if node.op_type == "BatchNormalization"]
    expected = predict_with_module(module, images)
    for batch in (1, 3):  # normalisations of each image by itself, whatever the batch
        found = predict_with_graph(graph, images, batch)
        assert np.abs(found.anomaly_maps - expected.anomaly_maps).max() < 2e-5


# --- losses


def test_a_discriminator_that_cannot_tell_loses_a_half_on_each_scale() -> None:
    halves = [torch.full((2, 1, side, side), 0.5) for side in (8, 4, 2)]
    assert float(discriminator_loss(halves, halves)) == pytest.approx(1.5)
    assert float(discriminator_loss(halves[:1], halves[:1])) == pytest.approx(0.5)
    assert float(generator_loss(halves)) == pytest.approx(0.75)


@torch.no_grad()
def test_discriminators_see_three_sizes() -> None:
    network = MultiScaleDiscriminator((4, 4, 4, 4), normalised=(1, 2))
    answers = network(a_batch(2, 3, 64, 64))
    assert [tuple(answer.shape) for answer in answers] == [(2, 1, 4, 4), (2, 1, 2, 2), (2, 1, 1, 1)]
    even = network(torch.full((1, 3, 64, 64), 0.25))  # an even image is even at each size
    assert len({round(float(answer.mean()), 4) for answer in even}) == 3  # by three networks
    assert sum(isinstance(module, nn.LeakyReLU) for module in network.modules()) == 12


def test_a_pair_discriminator_that_cannot_tell_loses_two_logs_of_two() -> None:
    assert float(pair_loss(torch.zeros(3, 4), torch.zeros(3, 4))) == pytest.approx(2 * math.log(2))
    assert float(pair_loss(torch.full((3, 4), 50.0), torch.full((3, 4), -50.0))) == pytest.approx(0)


@torch.no_grad()
def test_information_losses_pair_each_image_with_another_one() -> None:
    """Against a loop over images and places."""
    local, whole = PairDiscriminator(), PairDiscriminator()
    code, reduced = a_batch(3, 128), a_batch(3, 512, 2, 2, seed=1)
    terms: dict[str, list[float]] = {"local": [], "global": []}
    for image in range(3):
        other = (image - 1) % 3
        for y in range(2):
            for x in range(2):
                logits = [local(code[image][None], reduced[i, :, y, x][None, None]) for i in (image, other)]
                terms["local"].append(-math.log(torch.sigmoid(logits[0])) - math.log(1 - torch.sigmoid(logits[1])))
        logits = [whole(code[image][None], reduced[i].mean(dim=(1, 2))[None, None]) for i in (image, other)]
        terms["global"].append(-math.log(torch.sigmoid(logits[0])) - math.log(1 - torch.sigmoid(logits[1])))
    found = information_losses(local, whole, code, reduced)
    assert [float(loss) for loss in found] == pytest.approx(
        [np.mean(terms["local"]), np.mean(terms["global"])], rel=1e-4
    )


@given(mean=st.floats(-3, 3), log_variance=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_that_of_two_normal_distributions(mean: float, log_variance: float) -> None:
    found = divergence(torch.full((2, 5), mean), torch.full((2, 5), log_variance))
    own = torch.distributions.Normal(mean, math.exp(log_variance / 2))
    known = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0))
    assert float(found) == pytest.approx(5 * float(known), rel=1e-4, abs=1e-4)


def test_the_divergence_of_the_standard_normal_is_nothing() -> None:
    assert float(divergence(torch.zeros(2, 128), torch.zeros(2, 128))) == 0


def test_learning_rates_fall_at_half_and_at_seven_eighths() -> None:
    assert [round(rate_share(step, 400), 4) for step in (0, 199, 200, 349, 350, 399)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_the_rate_of_stage_two_falls_in_its_second_half() -> None:
    assert [falling_share(step, 100) for step in (0, 49, 50, 75, 99)] == pytest.approx([1, 1, 1, 0.5, 0.02])
    assert falling_share(0, 1) == 1  # a single step learns


def test_stage_two_learns_at_that_rate() -> None:
    views = GoodImages(parts(1), augmentation_of(FIXED), CPU, 0)
    stage = ExpertStage(views, ImpressionNet().eval(), ExpertPlan(steps=4, batch=1, seed=0, rate=1e-3), CPU)
    rates = []
    for number in range(4):
        stage.step(number)
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in stage.optimisers.values()])
    assert rates == [[pytest.approx(r)] * 2 for r in (1e-3, 1e-3, 1e-3, 5e-4)]


# --- the map


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=20, deadline=None)
def test_nothing_differs_from_itself(seed: int, is_even: bool) -> None:
    image = torch.full((1, 3, 32, 32), 0.3) if is_even else a_batch(1, 3, 32, 32, seed=seed)
    assert torch.equal(residual(image, image), torch.zeros(1, 1, 32, 32))
    assert torch.equal(anomaly_evidence(image, image, image, image), torch.zeros(1, 1, 32, 32))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_residuals_are_shares_and_symmetric(seed: int) -> None:
    first, second = a_batch(1, 3, 32, 32, seed=seed), a_batch(1, 3, 32, 32, seed=seed + 1).round()
    found = residual(first, second)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.allclose(found, residual(second, first), atol=1e-6)


def test_similarity_is_that_of_the_paper() -> None:
    """Each scale by scipy's Gaussian, then the three put together as in the paper on several scales."""
    first, second = a_batch(1, 1, 32, 32), (a_batch(1, 1, 32, 32) + 0.3 * a_batch(1, 1, 32, 32, seed=1)).clamp(0, 1)

    def window(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, mode="mirror", radius=5)

    logs = np.zeros((32, 32))
    for number, weight in enumerate((0.0448, 0.2856, 0.3001)):
        x, y = (F.avg_pool2d(image, 2**number)[0, 0].double().numpy() for image in (first, second))
        variances = window(x * x) - window(x) ** 2 + window(y * y) - window(y) ** 2
        similar = (2 * (window(x * y) - window(x) * window(y)) + 0.0009) / (variances + 0.0009)
        if number == 2:
            similar *= (2 * window(x) * window(y) + 0.0001) / (window(x) ** 2 + window(y) ** 2 + 0.0001)
        wide = torch.from_numpy(np.log(similar.clip(1e-3, 1)))[None, None]
        logs += weight / 0.6305 * F.interpolate(wide, (32, 32), mode="bilinear")[0, 0].numpy()
    assert np.abs(ms_ssim_map(first, second)[0, 0].numpy() - np.exp(logs)).max() < 1e-4


def test_what_the_naive_impression_keeps_is_added_and_never_taken_away() -> None:
    image = a_batch(1, 3, 32, 32)
    impression, restored = 0.5 * image + 0.2, 0.9 * image
    plain = residual(image, restored)
    assert torch.equal(anomaly_evidence(image, impression, restored, impression), plain)
    kept = anomaly_evidence(image, impression, restored, 1 - image)
    assert torch.allclose(kept, plain + (residual(impression, 1 - image) - residual(restored, impression)).relu())
    assert float((kept - plain).max()) > 0


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_perceptual_distance_is_twice_one_minus_the_cosine(seed: int) -> None:
    first, second = a_batch(2, 5, 4, 4, seed=seed) + 0.1, a_batch(2, 5, 4, 4, seed=seed + 1) + 0.1
    found = perceptual_distance([first, first], [second, first], (4, 4))
    assert torch.allclose(found[:, 0], 1 - F.cosine_similarity(first, second), atol=1e-4)  # of two maps, one is equal
    assert torch.equal(perceptual_distance([first], [first], (8, 8)), torch.zeros(2, 1, 8, 8))


def test_the_map_is_what_the_backbone_sees_standardised_place_by_place() -> None:
    """By the backbone itself and numpy, of the held-out images and of another one."""
    images = parts(10)
    module = trainer(images).fit(range(10), []).module
    assert isinstance(module, TwoStage)
    backbone, _ = load_backbone("efficientnet_lite0")

    def raw(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 255
        made = module.reconstruct(pixels)
        seen, restored, impression = (backbone(255 * x) for x in (pixels, made.restored, made.impression))
        apart = [
            F.interpolate((2 - 2 * F.cosine_similarity(a, b)).unsqueeze(1), (SIDE, SIDE), mode="bilinear")
            for other in (restored, impression)
            for a, b in zip(seen, other, strict=True)
        ]
        return ndimage.gaussian_filter(sum(apart)[0, 0].numpy() / len(seen), SIDE / 64, mode="nearest")

    with torch.inference_mode():
        held = np.stack([raw(images[i]) for i in set_apart(range(10))])
        spread = np.sqrt(held.var(axis=0) + held.var(axis=0).mean() + (0.05 * held.mean()) ** 2)
        expected = np.maximum(raw(part(12, "scratch")) - held.mean(axis=0), 0) / spread
        pixels = shares_of(one(part(12, "scratch")))
        found, _ = module.examine(pixels, module.reconstruct(pixels))
    assert np.abs(found[0].numpy() - expected).max() < 0.01 * expected.max()


# --- training


def test_views_are_turned_and_mirrored_only_as_parts_lie() -> None:
    assert (augmentation_of(FIXED).mirrors, augmentation_of(FIXED).degrees) == ((), 0.0)
    assert augmentation_of(Pose(("left-right",))).mirrors == ("left-right",)
    assert augmentation_of(any_angle(3)).degrees == 180.0


def test_images_take_turns_and_steps_draw_the_same_views_again() -> None:
    images = [np.full((SIDE, SIDE, 3), 10 * i, np.uint8) for i in range(1, 6)]
    views = GoodImages(images, augmentation_of(FIXED), CPU, 0)
    drawn, _ = views.draw(3, 10)
    assert sorted(round(float(view.mean()) * 255) for view in drawn) == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]
    assert torch.equal(drawn, views.draw(3, 10)[0])
    assert not torch.equal(drawn, views.draw(4, 10)[0])
    alone = [float(views.draw(step, 1)[0].mean()) * 255 for step in range(10)]
    assert sorted(map(round, alone[:5])) == sorted(map(round, alone[5:])) == [10, 20, 30, 40, 50]
    across = [round(float(view.mean()) * 255) for view in torch.cat([views.draw(step, 3)[0] for step in range(5)])]
    assert sorted(across) == [10] * 3 + [20] * 3 + [30] * 3 + [40] * 3 + [50] * 3


@pytest.mark.parametrize(("count", "sizes"), [(8, [6, 6, 5]), (17, [17]), (64, [17])])
def test_all_images_are_shown_in_parts_of_about_one_size(count: int, sizes: list[int]) -> None:
    """So that each counts as much as any other where the mean over batches is taken."""
    images = [np.full((SIDE, SIDE, 3), i, np.uint8) for i in range(17)]
    found = list(GoodImages(images, augmentation_of(FIXED), CPU, 0).batches(count))
    assert [len(batch) for batch in found] == sizes
    assert torch.equal(torch.cat(found)[:, 0, 0, 0] * 255, torch.arange(17.0))


def test_impressions_and_images_come_in_pairs() -> None:
    class Same(nn.Module):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images

        decode = encode

    views = GoodImages(parts(2), augmentation_of(FIXED), CPU, 0)
    stage = ExpertStage(views, Same(), ExpertPlan(1, 2, 0), CPU)
    image, impression, _ = stage._pairs(0)
    assert image.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(image, impression)
    assert float(image.min()) < 0 < float(image.max()) <= 1


def test_batch_statistics_settle_on_what_is_shown() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    batches = [a_batch(4, 2, 3, 3, seed=seed) for seed in range(3)]
    settle(network, batches)
    assert not network.training
    assert torch.allclose(network[0].running_mean, torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(dim=0))
    assert network[0].momentum == 0.1


class Counting(Stage):
    """Its only weight grows by 1 a step; the loss is what `losses` says."""

    title, loss_names = "counting", ("first", "second")

    def __init__(self, steps: int, bad_at: int | None = None) -> None:
        self.steps, self.bad_at, self.finished = steps, bad_at, 0
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.networks, self.optimisers = {"net": self.net}, {"net": torch.optim.Adam(self.net.parameters())}

    def step(self, number: int) -> torch.Tensor:
        with torch.no_grad():
            self.net.weight.add_(1)
        return torch.tensor([1.0, math.inf if number == self.bad_at else number])

    def finish(self) -> None:
        self.finished += 1


def test_a_loss_that_is_no_number_stops_with_its_step_and_keeps_what_was_before(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("inspectad.nn.stages._SECONDS", -1.0)
    checkpoints = Checkpoints(tmp_path / "checkpoint", "key")
    with pytest.raises(TrainingError, match=r"counting, step 14 of 40: the second loss is inf.*--seed"):
        run_stage(Counting(40, bad_at=13), checkpoints, "fit")
    kept = checkpoints.load("fit")
    assert (int(kept["step"]), float(kept["net.weight"])) == (10, 10.0)
    whole = Counting(40)
    assert run_stage(whole, checkpoints, "fit") == (1.0, 39.0)
    assert (float(whole.net.weight), whole.finished) == (40.0, 1)
    again = Counting(40)
    assert run_stage(again, checkpoints, "fit") == (1.0, 39.0)
    assert (float(again.net.weight), again.finished) == (40.0, 0)


def test_a_stage_that_was_stopped_at_its_very_end_is_finished_when_it_goes_on(tmp_path, monkeypatch) -> None:
    """It was not: a checkpoint of its last step counted as complete. Found by a review."""
    monkeypatch.setattr("inspectad.nn.stages._SECONDS", -1.0)
    checkpoints = Checkpoints(tmp_path / "checkpoint", "key")

    class Stopped(Counting):
        def finish(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(Stopped(20), checkpoints, "fit")
    again = Counting(20)
    assert run_stage(again, checkpoints, "fit") == (1.0, 19.0)
    assert (float(again.net.weight), again.finished) == (20.0, 1)


def test_what_is_said_meanwhile_has_losses_and_how_far_it_is() -> None:
    said: list[tuple[object, ...]] = []
    pictures: list[int] = []
    run_stage(Counting(25), say=lambda *what: said.append(what), picture=lambda: pictures.append(1))
    assert said == [
        ("counting", 0, 25, ""),
        ("counting", 10, 25, "first 1, second 9"),
        ("counting", 20, 25, "first 1, second 19"),
        ("counting", 25, 25, "first 1, second 24"),
    ]
    assert pictures == []  # not yet a minute


def test_a_divergence_of_the_real_thing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_impression, "RATES", (math.inf, 1e-4))
    views = GoodImages(parts(2), augmentation_of(FIXED), CPU, 0)
    with pytest.raises(TrainingError, match=r"learning impressions, step [23] of 4: the pixel loss is nan"):
        run_stage(ImpressionStage(views, 4, 2, CPU, 0))


# --- the trainer


def trainer(images: list[np.ndarray], **options) -> UTADTrainer:
    return UTADTrainer(images, [], TrainSettings(input_size_hw=(SIDE, SIDE), **options), schedule=TINY)


def test_a_fifth_of_the_good_images_teaches_nothing() -> None:
    assert set_apart(range(4)) == []
    assert set_apart(range(5)) == [0]
    assert set_apart(range(5), at_least=2) == [0, 2]
    assert set_apart(range(20)) == [0, 5, 10, 15]
    assert len(set_apart(range(1000))) == 64
    images = parts(2)
    moved = shifted(images, 0)
    assert all(sorted(a.flatten()) == sorted(b.flatten()) for a, b in zip(images, moved, strict=True))
    assert not np.array_equal(images[0], moved[0])
    assert len(shifted(images[:1], 0)) == 2


def test_the_score_is_of_the_standardised_parts() -> None:
    module = trainer(parts(6)).fit(range(6), []).module
    assert isinstance(module, TwoStage)
    assert len(module.codes) == 4  # two were held out
    images = torch.from_numpy(np.stack([part(7), part(8, "scratch"), part(9)]))
    with torch.inference_mode():
        score, anomaly_map = module(images)
        pixels = images.permute(0, 3, 1, 2).float() / 255
        standard, found = module.examine(pixels, module.reconstruct(pixels))
        codes = module.reconstruct(pixels).code
    top = torch.stack([m.flatten().sort(descending=True).values[: round(0.01 * SIDE**2)].mean() for m in standard])
    nearest = torch.cdist(codes, module.codes).sort(dim=1).values[:, :3].mean(dim=1)
    assert torch.allclose(found, torch.stack([top, nearest], dim=1), rtol=1e-4, atol=1e-6)
    has_code = float(module.usual[1]) >= 0.1
    assert math.isinf(float(module.spread[1])) != has_code
    standardised = ((found - module.usual) / module.spread)[:, : 1 + has_code].sum(dim=1)
    assert torch.equal(standardised.argsort(), score.argsort())
    if not has_code:
        assert torch.allclose(score, found[:, 0] / module.usual[0])
    assert anomaly_map.shape == (3, SIDE, SIDE)
    assert torch.allclose(anomaly_map, (standard / module.usual[0]).clamp_min(1e-6), atol=1e-3)
    assert float(score.min()) > 0


def test_the_unit_of_the_score_is_that_of_the_images_that_taught() -> None:
    """By numpy: their highest hundredth, standardised by the images that did not."""
    images = parts(10)
    module = trainer(images).fit(range(10), []).module
    assert isinstance(module, TwoStage)
    with torch.inference_mode():
        raw = [module.evidence(x, module.reconstruct(x))[0].numpy() for x in (shares_of(one(i)) for i in images)]
    held = np.stack([raw[i] for i in set_apart(range(10))])
    spread = np.sqrt(held.var(axis=0) + held.var(axis=0).mean() + (0.05 * held.mean()) ** 2)
    tops = [
        np.sort(np.maximum(raw[i] - held.mean(axis=0), 0) / spread, axis=None)[-round(0.01 * SIDE**2) :].mean()
        for i in range(10)
        if i not in set_apart(range(10))
    ]
    assert float(module.usual[0]) == pytest.approx(max(1.0, np.mean(tops)), rel=1e-3)
    assert float(module.spread[0]) == pytest.approx(max(np.std(tops), 0.05 * max(1.0, np.mean(tops))), rel=1e-2)


def test_the_same_images_and_seed_give_the_same_detector_and_restoring_it_too() -> None:
    images = parts(3)
    first, second = (trainer(images).fit(range(3), []).module for _ in range(2))
    for (name, mine), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    other = trainer(images, seed=1).fit(range(3), []).module
    assert not torch.equal(first.codes, other.codes)
    restored = restore_utad(first.state_dict(), TrainSettings(input_size_hw=(SIDE, SIDE)))
    image = torch.from_numpy(part(5))[None]
    assert torch.equal(restored(image)[1], first(image)[1])
    with pytest.raises((KeyError, RuntimeError)):
        restore_two_stage({"codes": torch.zeros(2, 128)}, build_backbone("efficientnet_lite0"))


def test_a_stopped_training_goes_on_to_the_same_detector(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in stage 2, after its first step: stage 1 is not done again."""
    whole = trainer(parts(2)).fit(range(2), []).module
    checkpoints = Checkpoints(tmp_path / "checkpoint", "key")
    monkeypatch.setattr("inspectad.nn.stages._SECONDS", -1.0)
    monkeypatch.setattr("inspectad.nn.stages._LOOK_EVERY", 1)
    steps = []
    step = ExpertStage.step

    def stopped(stage: ExpertStage, number: int) -> torch.Tensor:
        steps.append(number)
        if number == 1 and len(steps) == 2:
            raise KeyboardInterrupt
        return step(stage, number)

    monkeypatch.setattr(ExpertStage, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer(parts(2), checkpoints=checkpoints).fit(range(2), [])
    monkeypatch.setattr(ImpressionStage, "step", None)
    gone_on = trainer(parts(2), checkpoints=checkpoints).fit(range(2), []).module
    assert steps == [0, 1, 1]
    for (name, mine), theirs in zip(whole.state_dict().items(), gone_on.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(("restored", "counts"), [(lambda x: 1 - x, 0), (lambda x: 0.85 * x, 1)], ids=["noise", "near"])
def test_a_second_stage_counts_unless_it_has_failed(
    monkeypatch: pytest.MonkeyPatch, restored: Callable[[torch.Tensor], torch.Tensor], counts: int
) -> None:
    backbone, _ = load_backbone("efficientnet_lite0")
    module = TwoStage(ImpressionNet(), Generator(), Generator(), backbone, SIDE, 2).eval()
    monkeypatch.setattr(module, "reconstruct", lambda x: Reconstruction(0.9 * x, restored(x), torch.zeros(len(x), 128)))
    images = [torch.from_numpy(image)[None] for image in parts(3)]
    found = module.learn_usual(images[:2], images[2:])
    pixels = images[2].permute(0, 3, 1, 2).float() / 255
    expected = [-10 * math.log10(float((made - pixels).square().mean())) for made in (0.9 * pixels, restored(pixels))]
    assert found == pytest.approx(expected, rel=1e-4)
    assert int(module.restores) == counts
    with torch.inference_mode():
        alone = perceptual_distance(backbone(255 * pixels), backbone(255 * 0.9 * pixels), (SIDE, SIDE))
        evidence = module.evidence(pixels, module.reconstruct(pixels))
    assert torch.allclose(evidence, module.blur(alone).squeeze(1)) == (not counts)


@pytest.mark.parametrize("images", [parts(1), [np.full((SIDE, SIDE, 3), 90, np.uint8)] * 5], ids=["one", "even"])
def test_one_image_and_even_images_give_finite_scores_and_are_warned_of(images: list[np.ndarray]) -> None:
    fitted = trainer(images).fit(range(len(images)), [])
    assert any("this method learns from nothing" in warning for warning in fitted.warnings)
    assert any("almost even" in warning for warning in fitted.warnings) == (len(images) == 5)
    scores, maps = fitted.module(torch.from_numpy(np.stack([images[0], part(3)])))
    assert bool(torch.isfinite(scores).all())
    assert bool(torch.isfinite(maps).all())
    assert float(scores.min()) > 0
    assert float(scores[1]) > float(scores[0]) or len(images) == 1
    assert float(scores.max()) < 1e4


def test_pictures_are_drawn_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspectad.nn.stages._SECONDS", -1.0)
    monkeypatch.setattr("inspectad.nn.stages._LOOK_EVERY", 1)
    shown: list[np.ndarray] = []
    fitted = trainer(parts(2), show=shown.append).fit(range(2), [])
    assert [picture.shape for picture in shown] == [(130, 130, 3), (262, 130, 3)]  # after the first step of each stage
    assert fitted.samples is not None
    assert fitted.samples.shape == (262, 130, 3)
    assert np.array_equal(fitted.samples[:SIDE, :SIDE], part(0))  # the first row is what is reconstructed
    with torch.inference_mode():
        restored = fitted.module.reconstruct(shares_of(one(part(1)))).restored[0].permute(1, 2, 0).numpy()
    third = fitted.samples[2 * (SIDE + 2) : 2 * (SIDE + 2) + SIDE, SIDE + 2 :]
    assert np.abs(third / 255 - restored).max() < 0.01
    assert trainer(parts(3)).fit([0, 1], []).samples is None  # of a part, for calibration


# --- what it is for, shown on parts that it learns by heart: a minute and a half on a free core


@pytest.fixture(scope="module")
def overfit() -> TwoStage:
    """Eight parts learnt by heart."""
    schedule = Schedule(OVERFIT_STEPS, (8, 1), OVERFIT_RATE)
    settings = TrainSettings(input_size_hw=(SIDE, SIDE))
    images = parts(8)
    module = UTADTrainer(images, [], settings, schedule=schedule).fit(range(8), []).module
    assert isinstance(module, TwoStage)
    return module


OVERFIT_STEPS, OVERFIT_RATE = (40, 60), 2e-4


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return -10 * math.log10(float((first - second).square().mean()))


@pytest.mark.timeout(900)
def test_the_second_stage_is_nearer_to_the_image_than_the_impression(overfit: TwoStage) -> None:
    pixels = torch.from_numpy(np.stack(parts(8))).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found = overfit.reconstruct(pixels)
    assert psnr(found.restored, pixels) > psnr(found.impression, pixels)


def test_inside_a_pasted_square_what_is_restored_is_nearer_to_the_clean_image_than_the_naive_way(
    overfit: TwoStage,
) -> None:
    clean = torch.from_numpy(np.stack(parts(8))).permute(0, 3, 1, 2).float() / 255
    inside = (..., slice(26, 38), slice(26, 38))  # 24 of 256 pixels are 6 of 64; twice as many, since it is a black one
    pasted = clean.clone()
    pasted[inside] = 0
    with torch.inference_mode():
        found = overfit.reconstruct(pasted)
        naive = overfit.naive(pasted)
    assert psnr(found.restored[inside], clean[inside]) > psnr(naive[inside], clean[inside])


def test_the_graph_of_a_trained_detector_computes_the_same(overfit: TwoStage) -> None:
    """And nearly the same in half precision, whose trunk is the whole of IE-Net."""
    images = [part(0), part(10), part(11, "scratch")]
    reference = predict_with_module(overfit, images)
    graph = export_graph(overfit, (SIDE, SIDE))
    half = to_fp16(graph, half_ops(overfit))
    for found, limit in ((graph, FP32_LIMIT), (half, 0.05)):
        parity = compare(reference, predict_with_graph(found, images), 1.0, limit, "it")
        assert max(parity.score_difference, parity.map_difference) <= limit
    convolutions = sum(isinstance(module, nn.Conv2d) for module in overfit.impressions.modules())
    model = onnx.load_from_string(half)
    in_half = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    assert sum(n.op_type == "Conv" and n.input[1] in in_half for n in model.graph.node) >= convolutions
