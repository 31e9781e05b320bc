#!/usr/bin/env bash
# One round of a line: judge every new image, list the defective ones worst first, and sort the files by verdict.
#
#   examples/line.sh [FOLDER]        FOLDER (default: here) holds incoming/ and model/
#
# New is what still lies in incoming/: judged images move to judged/<time>/OK/ or .../NG/, with their rows beside them
# in results.jsonl. An unreadable image (perhaps half written as yet) stays, and is tried again in the next round.
# Names may hold spaces and newlines. Run it from cron, or in a loop that ends at an error:
#
#   while sleep 1; do examples/line.sh /line3 || [ $? -ge 3 ] || break; done
#
# Needs: inspectad on PATH, bash, a find with -print0 (GNU, BSD, macOS), and jq; without jq it uses python3, which
# JQ=none asks for where jq is installed (jq cannot pass on names that are not UTF-8, python3 can).
# For a look without moving anything, one pipeline will do:
#
#   find incoming -type f -print0 | inspectad scan - -0 --format jsonl | jq -r 'select(.verdict == "NG") | .image'
#
# Exit codes, for the line controller: 0 all OK, or nothing new; 1 error; 3 at least one NG; 4 no NG, but an
# unreadable image (without a verdict: never take it for a good part).
#
# Expected output, on stdout (severity is score / threshold; scan's own messages go to stderr):
#
#   NG 1.54 part_012.png
#   NG 1.38 tray 7/part_002.png
#   judged/20250131-101500-4711: 6 OK, 2 NG, 0 unreadable
set -Eeuo pipefail
trap 'exit 1' ERR # whatever fails has said why; its own exit code could be taken for a verdict

# Rows of a verdict, worst first, as SEVERITY <zero byte> IMAGE <zero byte>: no file name holds a zero byte.
rows() { # VERDICT
  if command -v "${JQ:-jq}" >/dev/null; then
    "${JQ:-jq}" --slurp --join-output --arg verdict "$1" '
      map(select(.verdict == $verdict)) | sort_by(-.severity)[] | "\(.severity)\u0000\(.image)\u0000"
    ' "$round/results.jsonl"
  else
    python3 -c '
import json, os, sys
rows = [json.loads(line) for line in open(sys.argv[2])]
rows = sorted((r for r in rows if r["verdict"] == sys.argv[1]), key=lambda r: -r["severity"])
for r in rows:
    sys.stdout.buffer.write(b"%.7g\0%s\0" % (r["severity"], os.fsencode(r["image"])))
    ' "$1" "$round/results.jsonl"
  fi
}

move() { # VERDICT
  rows "$1" | while IFS= read -r -d '' severity && IFS= read -r -d '' image; do
    name=${image#incoming/}
    target=$round/$1/$name
    mkdir -p -- "${target%/*}"
    mv -- "$image" "$target"
    if [ "$1" = NG ]; then LC_ALL=C printf 'NG %.2f %s\n' "$severity" "$name"; fi
  done
}

count() { # VERDICT
  grep -c "\"verdict\": \"$1\"" "$round/results.jsonl" || [ $? -eq 1 ] # 1: there is none
}

cd -- "${1:-.}"
round=judged/$(date +%Y%m%d-%H%M%S)-$$
new=$(mktemp)
trap 'rm -f -- "$new"' EXIT

find incoming -type f ! -name '.*' \( -iname '*.png' -o -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.bmp' \
  -o -iname '*.tif' -o -iname '*.tiff' \) -print0 >"$new"
if [ ! -s "$new" ]; then exit 0; fi

# Standard output is no terminal here, so scan sends its rows there too; the file has them already.
code=0
inspectad scan - -0 --format jsonl --fail-on-defect --model model --output "$round" <"$new" >/dev/null || code=$?
case $code in
  0 | 3 | 4) ;; # every image has its row
  *)
    rm -rf -- "$round" # 1 error, 2 wrong usage, 130 Ctrl-C: scan has said why, and nothing was moved
    exit "$code"
    ;;
esac

move NG
move OK
echo "$round: $(count OK) OK, $(count NG) NG, $(count UNREADABLE) unreadable"
exit "$code"
