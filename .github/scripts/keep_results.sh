#!/usr/bin/env bash
# What the commands say of this machine, into files: verify, bench and report of the demo.
#
#   bash .github/scripts/keep_results.sh FOLDER [MODEL]
#
# The report fails where decoding is not lossless, or something cannot be measured.
set -euo pipefail
folder=$1 model=${2:-demo}
mkdir -p "$folder"
.venv/bin/orthrus-mlx verify "$model" --num-prompts 4 --json > "$folder/verify.json"
.venv/bin/orthrus-mlx bench "$model" --num-prompts 5 --rounds 1 --json > "$folder/bench.json"
.venv/bin/orthrus-mlx report "$model" --json "$folder/report.json" | tee "$folder/report.md"
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat "$folder/report.md" >> "$GITHUB_STEP_SUMMARY"
