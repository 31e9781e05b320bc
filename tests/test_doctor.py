"""``inspectad doctor`` must work best where nothing else does."""

import builtins
from typing import Any

import pytest

from inspectad.doctor import examine


def break_import(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    original = builtins.__import__

    def broken(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == name or module.startswith(f"{name}."):
            raise error
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)


def state_of(what: str) -> str:
    (finding,) = [f for f in examine() if f.what.startswith(what)]
    assert finding.state == "ok" or finding.advice, f"{what}: {finding.detail} and no advice"
    return finding.state


def test_all_that_is_needed_works_where_the_tests_run() -> None:
    findings = examine()
    assert [f.what for f in findings if f.state == "broken"] == []
    assert {"Python", "numpy", "training", "embedded backbone"} <= {f.what for f in findings}


@pytest.mark.parametrize("error", [ImportError("DLL load failed"), OSError("libcudart.so: cannot open")])
def test_a_runtime_that_does_not_load_is_a_finding(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    break_import(monkeypatch, "inspectad.detector", error)
    assert state_of("onnxruntime") == "broken"


def test_a_torchvision_that_does_not_fit_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert state_of("training") == "broken"


def test_missing_weights_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise FileNotFoundError(f"{name} is not there")

    monkeypatch.setattr("inspectad.embedded.embedded_weights", missing)
    assert state_of("embedded backbone") == "broken"
