"""Resolve every dependency and extra to wheels for Apple Silicon, from any machine.

    python .github/scripts/mac_wheels.py [--macos 14] [--python 3.11,3.12,3.13,3.14]

Nothing is installed. pip picks wheels by its `--platform` and `--python-version`, but reads
markers such as `sys_platform == 'darwin'` for the machine that it runs on; so it is told of the
other one. A set without `mlx-metal`, which MLX asks for on Macs alone, would show that this failed.

Exit code 0: all sets resolve to wheels. 1: some do not; the lines say which, and why.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ON_MACS_ALONE = "mlx-metal"
PIP = """
import json, sys
from pip._vendor.packaging import markers
mac = json.loads(sys.argv.pop(1))
markers.default_environment = lambda: dict(mac)
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def mac(python: str, macos: str) -> dict[str, str]:
    """What markers see on that Mac."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "arm64",
        "platform_python_implementation": "CPython",
        "platform_release": "23.0.0",
        "platform_system": "Darwin",
        "platform_version": f"Darwin Kernel Version of macOS {macos}",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "darwin",
    }


def resolve(requirements: list[str], python: str, macos: str) -> list[str]:
    """The file names of all wheels that these requirements come to.

    Raises:
        subprocess.CalledProcessError: with pip's words in `stderr`, if they come to none.
    """
    options = ["--dry-run", "--ignore-installed", "--quiet", "--no-input", "--report", "-"]
    options += ["--only-binary", ":all:", "--implementation", "cp", "--target", "unused"]
    options += ["--python-version", python, "--platform", f"macosx_{macos}_0_arm64"]
    command = [sys.executable, "-c", PIP, json.dumps(mac(python, macos)), "install", *options]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    return [item["download_info"]["url"].rpartition("/")[2] for item in found["install"]]


def oldest_macos(wheels: list[str]) -> str:
    """The oldest macOS that all these wheels run on."""
    needed = [
        min(map(tuple, (map(int, tag) for tag in tags)))
        for wheel in wheels
        if (tags := re.findall(r"macosx_(\d+)_(\d+)_(?:arm64|universal2)", wheel))
    ]
    return ".".join(map(str, max(needed, default=(11, 0))))


def main() -> int:
    """Resolve each set for each Python; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--macos", default="14", help="its first number")
    parser.add_argument("--python", default="3.11,3.12,3.13,3.14")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core: list[str] = project["dependencies"]
    sets = {"core": core} | {
        name: core + extra for name, extra in project["optional-dependencies"].items()
    }
    failed = 0
    for python in args.python.split(","):
        for name, requirements in sets.items():
            try:
                wheels = resolve(requirements, python, args.macos)
            except subprocess.CalledProcessError as error:
                lines = [line for line in error.stderr.splitlines() if "ERROR" in line]
                print(f"Python {python}, {name}: NO WHEELS: {' '.join(lines)}", flush=True)
                failed += 1
                continue
            if not any(wheel.startswith(ON_MACS_ALONE.replace("-", "_")) for wheel in wheels):
                print(f"Python {python}, {name}: no {ON_MACS_ALONE}: not resolved for a Mac")
                failed += 1
                continue
            about = f"{len(wheels)} wheels, macOS {oldest_macos(wheels)} or later"
            print(f"Python {python}, {name}: {about}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
