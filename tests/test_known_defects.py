"""What known defects add to a memory bank: descriptions against numpy, weights against what must come out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad.demo_part import render_part
from inspectad.methods.memory_bank import HEAD_GOOD, MemoryBank, MemoryBankTrainer, restore_memory_bank
from inspectad.nn.defect_head import LIMIT, DefectHead, Evidence, describe, patch_rows, top_weights, weigh_top
from inspectad.nn.known_defects import Described, Learnt, learn, left_out_margins
from inspectad.nn.known_masks import Places, choose_defect, choose_good
from inspectad.nn.logistic import balanced, fit_logistic
from inspectad.nn.patches import SAME
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur
from inspectad.onnx_graph import TIE_LIMIT, compare, export_graph, predict_with_graph, predict_with_module

SIZE_HW = (96, 128)
DIMENSIONS, LEVELS = 6, 2
QUICK = settings(deadline=None, max_examples=25)


def evidence_of(seed: int, batch: int = 2, size_hw: tuple[int, int] = (4, 6)) -> Evidence:
    """Two levels, of 2 and 4 dimensions, the second at half the stride."""
    random = torch.Generator().manual_seed(seed)
    height, width = size_hw
    shapes = [(batch, height, width, 2), (batch, height // 2, width // 2, 4)]
    patches, residuals = ([torch.randn(shape, generator=random) for shape in shapes] for _ in range(2))
    anomaly_map = torch.rand((batch, 1, height, width), generator=random) + 0.1
    highest = anomaly_map.flatten(1).topk(6, dim=1).values
    return Evidence(patches, residuals, anomaly_map, highest[:, :3].mean(dim=1), weigh_top(anomaly_map, highest))


@QUICK
@given(st.integers(0, 10**6))
def test_a_description_equals_numpy(seed: int) -> None:
    evidence = evidence_of(seed)
    found = describe(evidence).numpy()
    assert found.shape == (2, 4 * DIMENSIONS + LEVELS)
    for b in range(2):
        weights = evidence.top[b, 0].numpy().astype(np.float64)
        blocks: list[list[np.ndarray]] = [[], [], [], [], []]
        for patches, residuals in zip(evidence.patches, evidence.residuals, strict=True):
            p, r = patches[b].numpy().astype(np.float64), residuals[b].numpy().astype(np.float64)
            at_top = np.zeros(r.shape[-1])
            size_at_top = np.zeros(r.shape[-1])
            for y, x in np.ndindex(4, 6):  # every place of the map, and the patch that covers it
                residual = r[y * r.shape[0] // 4, x * r.shape[1] // 6]
                at_top += weights[y, x] * residual
                size_at_top += weights[y, x] * np.abs(residual)
            blocks[0].append(p.mean(axis=(0, 1)))
            blocks[1].append(r.mean(axis=(0, 1)))
            blocks[2].append(at_top)
            blocks[3].append(size_at_top)
            blocks[4].append(np.log(np.sqrt((at_top**2).sum() + SAME**2))[None])
        np.testing.assert_allclose(
            found[b], np.concatenate([x for block in blocks for x in block]), rtol=1e-4, atol=1e-5
        )


@QUICK
@given(st.integers(1, 8), st.integers(0, 10**6))
def test_the_top_weights_add_up_to_one_and_none_lies_below_the_edge(count: int, seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).random((2, 1, 6, 8)).astype(np.float32))
    highest = values.flatten(1).topk(2 * count, dim=1).values
    weights = weigh_top(values, highest)
    for b in range(2):
        order = np.argsort(-values[b].numpy().ravel())
        flat = weights[b].numpy().ravel()
        gap = float(highest[b, count - 1] - highest[b, -1])
        full = gap / (gap + SAME)  # of the weight of a place that is far above the edge
        assert full - 1e-4 <= flat.sum() <= 1 + 1e-4
        assert (np.diff(flat[order]) <= 1e-7).all()
        assert flat[order[count - 1]] >= (full - 1e-4) * flat[order[0]]
        assert (flat[order[2 * count - 1 :]] == 0).all()
    pooled = top_weights(weights, torch.zeros(2, 3, 4, 5))
    torch.testing.assert_close(pooled.sum(dim=(1, 2, 3)), weights.sum(dim=(1, 2, 3)))


def test_the_description_of_a_flat_map_does_not_depend_on_rounding() -> None:
    evidence = evidence_of(0)
    flat = torch.full_like(evidence.anomaly_map, 0.003)
    noisy = flat + 1e-9 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    for anomaly_map in (flat, noisy):
        weights = weigh_top(anomaly_map, anomaly_map.flatten(1).topk(6, dim=1).values)
        assert float(weights.abs().sum()) < 1e-3


def test_a_new_head_changes_nothing_and_no_head_changes_more_than_its_limit() -> None:
    evidence, blur = evidence_of(3), GaussianBlur(0.5)
    head = DefectHead(DIMENSIONS, LEVELS)
    of_score, of_map = head(evidence, blur)
    assert torch.equal(of_score, torch.ones(2))
    assert torch.equal(of_map, torch.ones_like(evidence.anomaly_map))
    head.weight.fill_(1e4)
    head.patch_weight.fill_(1e4)
    head.patch_scale.fill_(1e4)
    for factor in head(evidence, blur):
        assert (factor.log().abs() <= LIMIT + 1e-6).all()


def test_the_map_of_a_head_is_linear_in_what_each_place_shows() -> None:
    evidence = evidence_of(5, batch=1)
    head = DefectHead(DIMENSIONS, LEVELS)
    random = np.random.default_rng(0)
    head.patch_weight.copy_(torch.from_numpy(0.1 * random.standard_normal(2 * DIMENSIONS)))
    head.patch_scale.fill_(0.3)
    head.patch_bias.fill_(0.2)
    narrow = GaussianBlur(1e-3)  # none
    logits = head(evidence, narrow)[1].log()[:, 0] / 0.3
    for corner, y, x in ((0, 0, 0), (23, 3, 5)):  # where enlarging a level takes its corner patch as it is
        row = patch_rows(evidence, torch.tensor([corner]))[0]
        expected = row @ head.patch_weight + 0.2
        torch.testing.assert_close(logits[0, y, x], expected, rtol=1e-4, atol=1e-5)


def test_the_rows_of_places_are_their_patches_residuals_and_sizes() -> None:
    evidence = evidence_of(6, batch=1)
    rows = patch_rows(evidence, torch.arange(24)).numpy()
    for place, (y, x) in enumerate(np.ndindex(4, 6)):
        signed = np.concatenate([evidence.residuals[0][0, y, x], evidence.residuals[1][0, y // 2, x // 2]])
        np.testing.assert_array_equal(rows[place], np.concatenate([signed, np.abs(signed)]))


def described(count: int, seed: int, along: float = 0.0, score: float = 0.0) -> Described:
    """Noise, moved along the first dimension of each block, with log scores around ``score``."""
    rng = np.random.default_rng(seed)
    descriptions = rng.standard_normal((count, 4 * DIMENSIONS + LEVELS))
    descriptions[:, :-LEVELS:DIMENSIONS] += along
    return Described(score + 0.05 * rng.standard_normal(count), descriptions)


def test_the_left_out_margins_equal_heads_that_are_fitted_without_the_pair() -> None:
    """Scaled, too, by what the other good images show: a block's variance counts for two images in each dimension."""
    good, defects = described(5, 0), described(3, 1, along=2.0)
    alone, heads = left_out_margins(good, defects, LEVELS)
    assert alone.shape == heads.shape == (3, 5)
    for g in range(5):
        others = np.delete(good.descriptions, g, axis=0)
        scale = np.empty(others.shape[1])
        for block in range(5):
            part = slice(block * DIMENSIONS, min((block + 1) * DIMENSIONS, others.shape[1]))
            variance = others[:, part].var(axis=0)
            deviation = np.sqrt((4 * variance + 2 * variance.mean()) / 6)
            scale[part] = np.sqrt(len(variance)) * (
                np.maximum(deviation, 1e-4) if block < 4 else 2 * np.maximum(deviation, 0.05)
            )
        spread = max(np.delete(good.log_scores, g).std(), 0.05)
        for d in range(3):
            kept = np.delete(defects.descriptions, d, axis=0)
            examples = (np.concatenate([others, kept]) - others.mean(axis=0)) / scale
            is_defect = np.arange(len(examples)) >= 4
            found = fit_logistic(examples, balanced(is_defect), is_defect, 25.0)
            apart = (defects.descriptions[d] - good.descriptions[g]) / scale
            assert heads[d, g] == pytest.approx(apart @ found[:-1], rel=1e-4, abs=1e-5)
            assert alone[d, g] == pytest.approx((defects.log_scores[d] - good.log_scores[g]) / spread)


def learnt(good: Described, defects: Described):
    return learn(good, defects, LEVELS, [], [None] * len(defects.log_scores))


def test_defects_that_the_bank_cannot_see_but_a_head_can_get_weight() -> None:
    result = learnt(described(16, 0), described(8, 1, along=4.0))
    assert result.head is not None
    assert 0.4 < result.weight <= 8 / 13
    new = {name: described(40, 7, along).descriptions for name, along in (("good", 0.0), ("defect", 4.0))}
    moved = {k: (x - result.head.centre.numpy()) @ result.head.weight.numpy() for k, x in new.items()}
    assert moved["defect"].min() > moved["good"].max()


def test_defects_that_the_bank_finds_by_itself_get_none() -> None:
    found_alone = learnt(described(16, 0), described(8, 1, along=4.0, score=1.0))
    assert (found_alone.weight, found_alone.head) == (0.0, None)
    assert "100.0%" in found_alone.why


@pytest.mark.parametrize("images", [3, 4, 8, 16])
def test_noise_gets_no_weight_but_by_chance(images: int) -> None:
    weights = [learnt(described(images, s), described(5, 100 + s, score=0.08)).weight for s in range(16)]
    assert sum(w > 0 for w in weights) <= 10
    assert np.mean(weights) < 0.25  # half of what may be


def test_one_defect_gets_little() -> None:
    one = learnt(described(8, 0), described(1, 1, along=4.0))
    assert one.weight == pytest.approx(1 / 6)
    assert "one defect" in one.why
    assert learnt(described(3, 0), described(8, 1, along=6.0)).weight > 0


def test_defects_that_look_good_have_no_say() -> None:
    good, real = described(16, 0), described(8, 1, along=4.0, score=0.2)
    clean = learnt(good, real)
    fake = described(2, 300, score=-0.1)
    mixed = learnt(
        good,
        Described(np.append(real.log_scores, fake.log_scores), np.concatenate([real.descriptions, fake.descriptions])),
    )
    assert "2 of 10 defects look good" in mixed.why
    assert clean.head is not None
    assert mixed.head is not None
    np.testing.assert_allclose(mixed.head.weight.numpy(), clean.head.weight.numpy(), rtol=1e-5)


@pytest.mark.parametrize("along", [0.0, 6.0])
def test_masks_teach_the_map_the_places_that_they_mark(along: float) -> None:
    rng = np.random.default_rng(0)

    def image(is_defect: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of 60 places, ten of them defective: unusual in the first dimension, which the bank does not see."""
        rows, covered = rng.standard_normal((60, 2 * DIMENSIONS)), np.zeros(60)
        if is_defect:
            covered[:10] = 1
            rows[:10, 0] += 4
        return rows, 0.1 * rng.standard_normal(60), covered

    good_places, masked = [], []
    for _ in range(6):
        rows, log_map, _ = image(False)
        chosen = choose_good(log_map, 6, rng)
        good_places.append(Places(rows[chosen], log_map[chosen], np.zeros(len(chosen), bool)))
        rows, log_map, covered = image(True)
        chosen, is_defect = choose_defect(log_map, covered, rng)
        masked.append(Places(rows[chosen], log_map[chosen], is_defect))
    result = learn(described(6, 0), described(6, 1, along=along), LEVELS, good_places, masked)
    assert result.head is not None
    assert (result.weight > 0) == (along > 0)  # a mask teaches the map whether or not the score gains
    assert bool(result.head.weight.abs().sum() > 0) == (along > 0)
    used = 6 if along else int(result.map_why.split()[1])  # of noise, one may look mislabelled
    assert used >= 5
    assert f"{used} masks, weight {used / (used + 5):.2f}" in result.map_why
    rows, _, covered = image(True)
    logits = rows @ result.head.patch_weight.numpy() + float(result.head.patch_bias)
    assert logits[covered == 1].mean() > logits[covered == 0].mean() + 2
    assert float(result.head.patch_scale) == pytest.approx(0.1 * used / (used + 5))


def test_a_small_defect_that_covers_no_place_by_half_still_teaches_one() -> None:
    rng = np.random.default_rng(0)
    covered = np.zeros(50)
    covered[7] = 0.1
    chosen, is_defect = choose_defect(np.zeros(50), covered, rng)
    assert chosen[is_defect].tolist() == [7]
    _, is_defect = choose_defect(np.zeros(50), np.ones(50), rng)
    assert is_defect.all()  # a mask of the whole image leaves no good places


def test_good_places_are_bounded_however_many_images_there_are() -> None:
    rng = np.random.default_rng(0)
    taken = sum(len(choose_good(rng.random(400), HEAD_GOOD, rng)) for _ in range(HEAD_GOOD))
    assert taken <= 8 * HEAD_GOOD
    log_map = np.zeros(400)
    log_map[[3, 77]] = 1.0
    assert {3, 77} <= set(choose_good(log_map, HEAD_GOOD, rng).tolist())  # where the bank is most mistaken


class Parts(list):
    """Defect images without or with masks, as the trainer sees them."""

    def __init__(self, images: list[np.ndarray], masks: list[np.ndarray | None]) -> None:
        super().__init__(images)
        self._masks = masks

    def has_mask(self, index: int) -> bool:
        return self._masks[index] is not None

    def mask(self, index: int) -> np.ndarray | None:
        return self._masks[index]


@pytest.fixture(scope="module")
def taught() -> MemoryBank:
    """Six good parts and five stained ones, with masks."""
    good = [render_part(i, None, SIZE_HW).image for i in range(6)]
    stained = [render_part(50 + i, "stain", SIZE_HW) for i in range(5)]
    defects = Parts([part.image for part in stained], [part.mask for part in stained])
    trainer = MemoryBankTrainer(good, defects, TrainSettings(input_size_hw=SIZE_HW, bank_size=300))
    module = trainer.fit(range(6), range(5)).module
    if module.head is None:  # the bank finds all of them; what is tested here is the way of a head through the graph
        module.head = DefectHead(sum(b.bank.shape[1] for b in module.banks), len(module.banks))
        random = torch.Generator().manual_seed(0)
        module.head.weight.copy_(0.01 * torch.randn(module.head.weight.shape, generator=random))
        module.head.patch_weight.copy_(torch.randn(module.head.patch_weight.shape, generator=random))
        module.head.patch_scale.fill_(0.05)
    return module


def test_the_graph_with_a_head_equals_the_module(taught: MemoryBank) -> None:
    images = [render_part(80 + i, kind, SIZE_HW).image for i, kind in enumerate((None, "stain", "dent", None))]
    graph = export_graph(taught, SIZE_HW)
    reference, found = predict_with_module(taught, images), predict_with_graph(graph, images)
    parity = compare(reference, found, 0.5, 1e-4, "it", has_ties=taught.has_ties)
    assert parity.limit == TIE_LIMIT
    assert parity.score_difference < TIE_LIMIT
    assert parity.map_difference < 1e-4


def test_a_head_is_restored_from_the_weights(taught: MemoryBank) -> None:
    restored = restore_memory_bank(taught.state_dict(), TrainSettings(input_size_hw=SIZE_HW))
    assert restored.has_ties
    image = [render_part(80, "stain", SIZE_HW).image]
    ours, again = predict_with_module(taught, image), predict_with_module(restored, image)
    assert ours.image_scores == again.image_scores
    np.testing.assert_array_equal(ours.anomaly_maps, again.anomaly_maps)


def test_the_banks_are_those_of_the_good_images_alone(taught: MemoryBank) -> None:
    good = [render_part(i, None, SIZE_HW).image for i in range(6)]
    alone = MemoryBankTrainer(good, Parts([], []), TrainSettings(input_size_hw=SIZE_HW, bank_size=300))
    module = alone.fit(range(6), []).module
    assert module.head is None
    assert not module.has_ties
    for ours, theirs in zip(taught.banks, module.banks, strict=True):
        assert torch.equal(ours.bank, theirs.bank)


def test_a_good_image_is_described_by_a_bank_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    nothing = Learnt(None, 0.0, "")
    monkeypatch.setattr(
        "inspectad.methods.memory_bank.learn", lambda good, defects, *_: seen.update(g=good, d=defects) or nothing
    )
    good = [render_part(i, None, SIZE_HW).image for i in range(4)]
    settings_ = TrainSettings(input_size_hw=SIZE_HW, bank_size=10**6)  # every patch is kept
    trainer = MemoryBankTrainer(good, Parts([good[0]], [None]), settings_)
    trainer.fit(range(4), [0])
    for i in range(4):
        others = [j for j in range(4) if j != i]
        module = MemoryBankTrainer([good[j] for j in others], Parts([], []), settings_).fit(range(3), []).module
        expected = predict_with_module(module, [good[i]]).image_scores[0]
        assert np.exp(seen["g"].log_scores[i]) == pytest.approx(expected, rel=0.02)  # the offsets are of all four
    assert np.exp(seen["d"].log_scores[0]) < 1.01 * SAME  # a defect that is one of the good images
