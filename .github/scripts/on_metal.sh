#!/usr/bin/env bash
# What Metal makes of the tests here, without deciding anything: GitHub's Macs are virtual, and nobody
# vouches for their GPU. The exit code is 0 whatever was found; FOLDER keeps it.
#
#   bash .github/scripts/on_metal.sh FOLDER
set -uo pipefail
folder=$1
mkdir -p "$folder"
unset ORTHRUS_MLX_DEVICE
say() { echo "$*"; [ -z "${GITHUB_STEP_SUMMARY:-}" ] || echo "$*" >> "$GITHUB_STEP_SUMMARY"; }
found=$(.venv/bin/python -c 'from orthrus_mlx.device.backend import backend; print(backend())')
if [ "$found" != Metal ]; then
  say "Metal: MLX finds none here."
  exit 0
fi
make test 2>&1 | tee "$folder/tests.log"
say "Tests on Metal: exit code ${PIPESTATUS[0]}; $(grep -E ' (passed|failed)' "$folder/tests.log" | tail -n 1)"
bash .github/scripts/keep_results.sh "$folder"
say "Report on Metal: exit code $?"
exit 0
