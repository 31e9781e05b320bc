"""How the workers of a scan share a network: alone, in batches, on several devices; and a session's fixed buffers."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inspectad.cores import cores
from inspectad.demo_part import render_part
from inspectad.detector import DEVICES, OnnxDetector, Provider, _Bound, _provider_options, parse_devices
from inspectad.errors import InspectadError, UsageError
from inspectad.images import resize
from inspectad.network import GPU_BATCH, Batched, Direct, Network, open_network, share
from inspectad.records import Prediction
from inspectad.scan import ScanConfig, scan

SIDE = 4


class FakeDetector:
    """Scores an image by its first pixel; notes how large the batches were, and fails where it is told to."""

    def __init__(self, fails: Callable[[np.ndarray], BaseException | None] = lambda _: None) -> None:
        self.provider = Provider("cuda")
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.entered = threading.Event()
        self.may_run = threading.Event()
        self.may_run.set()
        self._fails = fails

    def predict_resized(self, batch: np.ndarray) -> Prediction:
        self.entered.set()
        assert self.may_run.wait(20)
        self.batches.append(len(batch))
        self.threads.add(threading.get_ident())
        error = self._fails(batch)
        if error is not None:
            raise error
        scores = batch[:, 0, 0, 0].astype(np.float32)
        return Prediction(scores, np.broadcast_to(scores[:, None, None], (len(batch), SIDE, SIDE)).copy())


def picture(value: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), value, np.uint8)


def score_together(network: Network, values: list[int]) -> list[tuple[float, np.ndarray] | BaseException]:
    """What each of as many threads gets, each with an image of its own."""

    def ask(value: int) -> tuple[float, np.ndarray] | BaseException:
        try:
            return network.score(picture(value))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(ask, values))


@pytest.fixture(scope="module")
def detector(trained) -> OnnxDetector:
    return OnnxDetector.load(trained.model, "cpu", threads=1)


@pytest.fixture(scope="module")
def images(detector: OnnxDetector) -> list[np.ndarray]:
    return [resize(render_part(400 + i, None, (160, 192)).image, detector.input_size_hw) for i in range(7)]


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_give_the_answers_of_single_images(detector, images, batch_size: int) -> None:
    direct, batched = Direct(detector), Batched([detector], batch_size)
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(batched.score, images))
    batched.close()
    for (score, anomaly_map), (alone, map_alone) in zip(together, map(direct.score, images), strict=True):
        assert score == pytest.approx(alone, rel=1e-5)
        np.testing.assert_allclose(anomaly_map, map_alone, rtol=1e-4, atol=1e-5)


def test_each_caller_gets_the_answer_to_its_own_image() -> None:
    network = Batched([FakeDetector(), FakeDetector()], 4)
    values = list(range(40))
    answers = score_together(network, values)
    network.close()
    assert [score for score, _ in answers] == values
    assert all((anomaly_map == value).all() for value, (_, anomaly_map) in zip(values, answers, strict=True))


def ask_behind_one(network: Batched, fake: FakeDetector, count: int) -> list[float]:
    """Scores of picture 0, which holds the thread, and of so many that wait meanwhile."""
    with ThreadPoolExecutor(count + 1) as pool:
        first = pool.submit(network.score, picture(0))
        assert fake.entered.wait(20)
        others = [pool.submit(network.score, picture(i)) for i in range(1, count + 1)]
        while network._requests.qsize() < count:
            time.sleep(0.001)
        fake.may_run.set()
        return [f.result()[0] for f in (first, *others)]


def test_a_batch_is_filled_by_number() -> None:
    fake = FakeDetector()
    fake.may_run.clear()  # the first, small batch holds the thread until all the others wait
    network = Batched([fake], 4)
    assert ask_behind_one(network, fake, 12) == list(range(13))
    network.close()
    assert fake.batches == [1, 4, 4, 4]


def test_a_batch_that_is_not_full_starts_after_a_while() -> None:
    fake = FakeDetector()
    network = Batched([fake], 16)
    for value in range(3):  # one caller, that waits for its answer before it asks again
        assert network.score(picture(value))[0] == value
    network.close()
    assert fake.batches == [1, 1, 1]


def test_a_wait_that_is_over_at_once_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """`queue.SimpleQueue.get(timeout=1e-9)` never returned, about once in a thousand times, and so did a scan now and
    then whose thread lost its core just when it began to wait for its batch to fill.
    """
    monkeypatch.setattr("inspectad.network._FILL_S", 1e-6)
    network = Batched([], 2)  # nobody serves: this test does
    request = picture(7), Future()
    batches = []

    def serve() -> None:
        for _ in range(20_000):
            network._requests.put(request)
            batches.append(network._next_batch(2))

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    server.join(60)
    assert len(batches) == 20_000
    assert all(batch == [request] and more for batch, more in batches)


def test_all_devices_work() -> None:
    fakes = [FakeDetector(), FakeDetector()]
    for fake in fakes:
        fake.may_run.clear()
    network = Batched(fakes, 2)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(network.score, picture(i)) for i in range(8)]
        for fake in fakes:
            assert fake.entered.wait(20)
        for fake in fakes:
            fake.may_run.set()
        assert [f.result()[0] for f in asked] == list(range(8))
    network.close()
    assert all(fake.batches for fake in fakes)
    assert fakes[0].threads.isdisjoint(fakes[1].threads)


def test_a_batch_that_fails_is_halved_until_it_goes() -> None:
    fake = FakeDetector(lambda batch: InspectadError("out of memory") if len(batch) > 1 else None)
    fake.may_run.clear()
    network = Batched([fake], 4)
    assert ask_behind_one(network, fake, 4) == list(range(5))
    network.close()
    assert fake.batches == [1, 4, 2, 1, 1, 2, 1, 1]


def test_an_error_reaches_only_the_callers_that_it_concerns() -> None:
    fake = FakeDetector(lambda batch: InspectadError("no") if (batch == 7).any() else None)
    network = Batched([fake], 4)
    answers = score_together(network, list(range(10)))
    network.close()
    assert [a[0] for i, a in enumerate(answers) if i != 7] == [i for i in range(10) if i != 7]
    assert isinstance(answers[7], InspectadError)


def test_a_bug_reaches_all_callers_of_its_batch_and_the_next_batch_is_served() -> None:
    network = Batched([FakeDetector(lambda batch: ZeroDivisionError() if (batch == 1).any() else None)], 2)
    with pytest.raises(ZeroDivisionError):
        network.score(picture(1))
    assert network.score(picture(2))[0] == 2
    network.close()


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    network = Batched([FakeDetector(), FakeDetector()], 4)
    assert len(set(threading.enumerate()) - before) == 2
    network.close()
    assert not set(threading.enumerate()) - before


def test_batches_on_gpus_none_on_a_cpu(detector: OnnxDetector) -> None:
    assert isinstance(share([detector]), Direct)
    networks = [share([detector], 3), share([FakeDetector()]), share([FakeDetector(), FakeDetector()], 1)]
    assert [n.callers for n in networks] == [6 * cores(), 2 * GPU_BATCH, 4]
    for network in networks:
        network.close()


def test_a_lone_image_is_run_on_all_cores_and_many_on_one_each() -> None:
    many, alone = FakeDetector(), FakeDetector()
    network = Direct(many, alone)
    network.score(picture(1))
    assert (many.batches, alone.batches) == ([], [1])
    alone.may_run.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(network.score, picture(2))
        while not network._busy:
            time.sleep(0.001)
        assert pool.submit(network.score, picture(3)).result()[0] == 3
        alone.may_run.set()
        assert first.result()[0] == 2
    assert (many.batches, alone.batches) == ([1], [1, 1])


def test_fixed_buffers_give_the_answers_of_a_plain_run(detector: OnnxDetector, images) -> None:
    for count in (1, 3):
        bound = _Bound(detector._session, Provider("cpu"), (count, *images[0].shape))
        kept = []
        for start in (0, 3):
            batch = np.stack(images[start : start + count])
            expected = detector._session.run(["score", "anomaly_map"], {"image": batch})
            kept.append((bound.run(batch), expected))
        for (scores, maps), (expected_scores, expected_maps) in kept:  # the second run must not change the first's
            np.testing.assert_array_equal(scores, expected_scores)
            np.testing.assert_array_equal(maps, expected_maps)


def test_fixed_buffers_take_images_that_lie_scattered_in_memory(detector: OnnxDetector, images) -> None:
    scattered = np.stack(images[:2])[:, ::-1, ::-1]
    scores, _ = _Bound(detector._session, Provider("cpu"), scattered.shape).run(scattered)
    expected = detector._session.run(["score"], {"image": np.ascontiguousarray(scattered)})[0]
    np.testing.assert_array_equal(scores, expected)


def test_cuda_is_asked_for_graphs_on_the_gpu_that_was_named() -> None:
    (name, options), cpu = _provider_options("cuda", 1, graphs=True)
    assert (name, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (options["device_id"], options["enable_cuda_graph"]) == ("1", "1")
    assert _provider_options("cuda", 0)[0][1]["enable_cuda_graph"] == "0"


def test_tensorrt_keeps_its_engines_for_each_model_and_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (name, options), (second, _), third = _provider_options("tensorrt", 2, data=b"one model")
    assert (name, second, third) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "2"
    assert options["trt_engine_cache_enable"] == "True"
    assert options["trt_engine_cache_path"].startswith(str(tmp_path / "inspectad" / "tensorrt"))
    if os.name != "nt":  # compiled code lies there
        assert (tmp_path / "inspectad" / "tensorrt").stat().st_mode & 0o077 == 0
    other = _provider_options("tensorrt", 2, data=b"another")[0][1]
    assert other["trt_engine_cache_path"] != options["trt_engine_cache_path"]
    assert (options["trt_fp16_enable"], _provider_options("tensorrt", data=b"x_fp16")[0][1]["trt_fp16_enable"]) == (
        "False",
        "True",
    )
    assert _provider_options("cpu") == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        *((device, [device]) for device in DEVICES),
        ("cuda:1", ["cuda:1"]),
        ("tensorrt:12", ["tensorrt:12"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        (" cuda:0 , tensorrt:1 ", ["cuda:0", "tensorrt:1"]),
    ],
)
def test_devices_that_there_may_be(text: str, names: list[str]) -> None:
    assert parse_devices(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("", "gpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:1000", "cuda:x"),
        *("cpu,cuda", "auto,auto", "cuda,cuda:1", "cuda:0,cuda:0", "cuda:0,", "cuda:0;cuda:1"),
    ],
)
def test_devices_that_there_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="no device named"):
        parse_devices(text)


def test_a_gpu_that_is_not_there_is_said_so_and_the_cpu_used(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspectad.detector.gpu_problem", lambda: "no card in this machine")
    first, network = open_network(trained.model, "cuda:0,cuda:1")
    assert (first.provider.device, first.provider.reason) == ("cpu", "running on cpu: no card in this machine")
    assert isinstance(network, Direct)


def test_batches_on_a_gpu_are_filled_up_to_few_sizes(
    detector: OnnxDetector, images, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def on_cpu(session: object, provider: Provider, shape: tuple[int, ...]) -> _Bound:
        made.append(shape[0])
        return _Bound(session, Provider("cpu"), shape)

    monkeypatch.setattr("inspectad.detector._Bound", on_cpu)
    pretended = OnnxDetector(detector._session, detector.manifest, detector.digest, Provider("cuda"))
    for count in (3, 1, 4, 3, 2):
        some = np.stack((list(images) * 4)[:count])
        ours, plain = pretended.predict_resized(some), detector.predict_resized(some)
        np.testing.assert_allclose(ours.image_scores, plain.image_scores, rtol=1e-5)
        np.testing.assert_allclose(ours.anomaly_maps, plain.anomaly_maps, rtol=1e-4, atol=1e-6)
    assert made == [4, 1, 2]


def test_a_scan_that_ends_in_the_middle_does_not_wait_for_answers_that_never_come(trained, tmp_path) -> None:
    """Workers wait for a network that is closed: they must be ended first. It hung for ever."""

    def gone(row: object) -> None:
        raise BrokenPipeError

    plain = OnnxDetector.load(trained.model, "cpu", threads=1)
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out", batch_size=2)
    with pytest.raises(BrokenPipeError):
        scan(config, plain, on_row=gone)


def test_a_closed_network_answers_with_an_error() -> None:
    network = Batched([FakeDetector()], 2)
    network.close()
    with pytest.raises(InspectadError, match="closed"):
        network.score(picture(1))


def test_one_of_several_gpus_that_does_not_work_is_not_left_out_in_silence(trained, monkeypatch) -> None:
    real = OnnxDetector.load

    def load(model: Path, device: str = "auto", threads: int = 0, *, spins: bool = False) -> OnnxDetector:
        found = real(model, "cpu", threads)
        found.provider = Provider("cuda") if device == "cuda:0" else Provider("cpu", "no such GPU")
        return found

    monkeypatch.setattr(OnnxDetector, "load", load)
    with pytest.raises(UsageError, match="no such GPU"):
        open_network(trained.model, "cuda:0,cuda:7")
