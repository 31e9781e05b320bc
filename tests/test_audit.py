"""CI's audit of the dependencies: a list that does not answer is never taken for a list without vulnerabilities."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
FAKE = """
import json, os, sys
from pathlib import Path
how = os.environ["FAKE_AUDIT"]
names = [line.split("==")[0] for line in Path(sys.argv[sys.argv.index("--requirement") + 1]).read_text().split()]
is_canary = names == ["pyyaml"]
if how == "no network" or (how == "osv alone" and "pypi" in sys.argv):
    sys.exit("ConnectionError")
def entry(name):
    if how == "lists nothing" or (how == "lacks one" and name == "numpy" and not is_canary):
        return {"name": name, "skip_reason": "not found"}
    bad = is_canary or (how == "vulnerable" and name == "rich")
    return {"name": name, "vulns": [{"id": "CVE-1"}] if bad else []}
print(json.dumps({"dependencies": [entry(name) for name in names]}))
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("no network", 0, "NOT AUDITED: none of the public lists"),
        ("lists nothing", 0, "NOT AUDITED: none of the public lists"),
        ("osv alone", 0, "audit by osv"),
        ("lacks one", 0, "NOT AUDITED, since pypi does not list them: numpy"),
        ("clean", 0, "packages looked up, 0 vulnerable"),
        ("vulnerable", 1, "VULNERABLE: rich: CVE-1"),
    ],
)
def test_what_the_audit_says(how: str, code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()
    (tmp_path / "pip_audit" / "__main__.py").write_text(FAKE)
    environment = {**os.environ, "FAKE_AUDIT": how, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, AUDIT, sys.executable], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout


def test_all_that_a_user_may_install_is_looked_up() -> None:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    names = {line.split("==")[0] for line in audit.installed(sys.executable)}
    assert {"numpy", "torch", "onnxruntime-gpu", "matplotlib", "ray", "pyarrow", "s3fs", "botocore"} <= names
    assert "pytest" not in names
