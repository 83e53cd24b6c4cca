#!/usr/bin/env bash
# Build the packages, check them, and use the wheel as a user would: installed by plain pip in a
# clean environment, run from another folder.
#
#   bash .github/scripts/clean_install.sh [PYTHON [FOLDER]]
#
# The packages are left in FOLDER/dist, by default build/clean/dist. What an extra brings is asked
# for before it is installed, and must be named then.
set -euo pipefail
python=${1:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${2:-$root/build/clean}
rm -rf "$work"
mkdir -p "$work/elsewhere" "$work/source"
work=$(cd "$work" && pwd)
step() { printf '\n== %s\n' "$*"; }

step "build"
git -C "$root" archive HEAD | tar -x -C "$work/source"  # what is committed, and no leftovers
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet build twine
"$work/tools/bin/python" -m build --outdir "$work/dist" "$work/source"
"$work/tools/bin/python" -m twine check --strict "$work"/dist/*

step "install the wheel"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work"/dist/*.whl
cd "$work/elsewhere"
export PATH="$work/venv/bin:$PATH" ORTHRUS_MLX_CACHE="$work/measured" HF_HUB_OFFLINE=1
export ORTHRUS_MLX_HISTORY="$work/history"
python -m pip check
python -c 'import orthrus_mlx; print(orthrus_mlx.__file__, orthrus_mlx.__version__)'

# missing EXTRA COMMAND...: the command must fail and name the extra.
missing() {
  local extra=$1 said
  shift
  step "without $extra: $*"
  if said=$("$@" 2>&1); then echo "It should have failed."; exit 1; fi
  echo "$said"
  tr '\n' ' ' <<<"$said" | tr -s ' ' | grep -q "orthrus-mlx\[$extra\]"
}
has() { orthrus-mlx "$1" --help > help.txt 2>&1; }

step "orthrus-mlx --version"; orthrus-mlx --version
step "generate"; orthrus-mlx generate --no-stdin -m 32 "What is 17 times 23?"
step "chat"; echo "Hello!" | orthrus-mlx chat
step "info"; orthrus-mlx info demo
demo=$(python -c 'import orthrus_mlx, pathlib; print(pathlib.Path(orthrus_mlx.__file__).parent / "demo")')
step "convert"; orthrus-mlx convert --hf-path "$demo" -q --q-group-size 32 --mlx-path four-bit
step "stock mlx-lm on what was converted"
python -m mlx_lm generate --model four-bit --prompt "What is 17 times 23?" --max-tokens 16
step "report"; orthrus-mlx report four-bit --num-prompts 1 -m 16 --json report.json
missing grammar orthrus-mlx generate --no-stdin "Is it?" --choices "yes,no"
missing plot orthrus-mlx bench --plot speed.png
if has serve; then missing serve orthrus-mlx serve --port 0; fi

for extra in grammar plot; do
  step "install $extra"
  python -m pip install --quiet "$(echo "$work"/dist/*.whl)[$extra]"
done
step "generate with a grammar"
orthrus-mlx generate --no-stdin "Is it?" --choices "yes,no"
step "bench with a plot"
orthrus-mlx bench --num-prompts 1 -m 4 --rounds 1 --plot speed.png
test -s speed.png
if has serve; then
  step "install serve"
  python -m pip install --quiet "$(echo "$work"/dist/*.whl)[serve]"
  step "serve"
  python "$root/.github/scripts/ask_server.py"
fi
step "what cuda would install"
python -m pip install --dry-run --quiet --report extra.json "$(echo "$work"/dist/*.whl)[cuda]"
grep -q mlx_cuda extra.json || [[ $(uname) != Linux ]]
step "all is well"
