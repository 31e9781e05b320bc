#!/usr/bin/env bash
# A line PC has inspectad without [train]: no torch. usage: line_pc.sh BIN WORK, WORK/demo made by `make demo`.
set -euo pipefail
BIN=$1 DEMO=$2/demo
if "$BIN/python" -c "import torch" 2>/dev/null; then echo "torch is here, so nothing is proved"; exit 1; fi
cd "$DEMO"
"$BIN/inspectad" --help >/dev/null
"$BIN/inspectad" info >/dev/null
"$BIN/inspectad" scan ./line_images --heatmaps -o line_pc >/dev/null
cut -d, -f1,2 line_pc/results.csv | diff - <(cut -d, -f1,2 fp32/results.csv)  # as check_quick_start.py left it, with torch installed
if "$BIN/inspectad" train ./good 2>message; then echo "train without torch must fail"; exit 1; fi
grep -q 'pip install "inspectad\[train\]"' message
echo "line PC: same verdicts without torch"
