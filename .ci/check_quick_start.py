"""The README's quick start on the demo's images, typed as a user would, and its verdicts checked against the truth.

Usage: check_quick_start.py WORK BIN, where WORK/demo was made by `make demo`.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

from inspectad.demo import LINE

work, binaries = Path(sys.argv[1]), Path(sys.argv[2])
demo = work / "demo"


def run(*arguments: str, expect: int = 0, stdin: str = "") -> str:
    command = [str(binaries / "inspectad"), *arguments]
    done = subprocess.run(command, cwd=demo, input=stdin, capture_output=True, text=True, check=False)
    print("$ inspectad", *arguments, "->", done.returncode)
    if done.returncode != expect:
        sys.exit(f"expected exit code {expect}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def verdicts(results: Path) -> list[tuple[str, str]]:
    with results.open(newline="") as file:
        return [(row["image"], row["verdict"]) for row in csv.DictReader(file)]


truth = [(f"part_{i + 1:03}.png", "NG" if defect else "OK") for i, defect in enumerate(LINE)]
if verdicts(demo / "results/results.csv") != truth:
    sys.exit(f"demo: {verdicts(demo / 'results/results.csv')} is not {truth}")

run("train", "./good", "./defects")
run("scan", "./line_images", "--heatmaps")
if verdicts(demo / "results/results.csv") != truth:
    sys.exit(f"quick start: {verdicts(demo / 'results/results.csv')} is not {truth}")
heatmaps = sorted(p.name for p in (demo / "results/heatmaps").iterdir())
if heatmaps != sorted(f"{name}.png" for name, _ in truth):
    sys.exit(f"heatmaps: {heatmaps}")
if (demo / "model/model.onnx").stat().st_size > 15e6:
    sys.exit("model.onnx is larger than 15 MB")
rows = [json.loads(line) for line in run("scan", "./line_images", "--format", "jsonl").splitlines()]
if [(r["image"], r["verdict"]) for r in rows] != truth:
    sys.exit("jsonl on standard output differs")
run("scan", "./line_images", "--fail-on-defect", expect=3)
for precision in ("fp32", "fp16", "int8"):
    run("export", "--precision", precision, "-o", f"{precision}.onnx")
    run("scan", "./line_images", "-m", f"{precision}.onnx", "-o", precision)
    if verdicts(demo / precision / "results.csv") != truth:
        sys.exit(f"{precision}: verdicts differ")
listed = "".join(f"./line_images/{name}\n" for name, _ in truth)
piped = run("scan", "-", "--format", "jsonl", stdin=listed)
if [json.loads(line)["verdict"] for line in piped.splitlines()] != [verdict for _, verdict in truth]:
    sys.exit("paths on standard input: verdicts differ")

readme = Path(__file__).parents[1].joinpath("README.md").read_text()
snippet = readme.split("```python\n")[1].split("```")[0]
before = "import cv2\nframe = cv2.cvtColor(cv2.imread('line_images/part_002.png'), cv2.COLOR_BGR2RGB)\n"
after = "\nassert [str(v) for v in detector.verdicts(prediction)] == ['NG']\n"
subprocess.run([str(binaries / "python"), "-c", before + snippet + after], cwd=demo, check=True)
print("the README's Python snippet: as expected")

figures = json.loads(run("evaluate", "./good", "./defects", "--json"))
if figures["false_rejects"]["of"] != 16 or not 0.5 < figures["image_auroc"] <= 1:
    sys.exit(f"evaluate: {figures}")
run("info")
run("doctor")
print("quick start: all verdicts as expected")
