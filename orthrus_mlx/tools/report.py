"""Everything that one machine can tell about one model, in a few minutes: what `report` runs.

A report is a row of sections. Each measures something, gives plain JSON values, and shows them as
Markdown. A section that fails says so, and the others go on: what fails is worth knowing too.
Ctrl-C ends a report early; it then holds what was measured by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint.info import ModelInfo
from ..checkpoint.read import DEMO, locate
from ..device import backend
from ..device.memory import machine_memory
from ..errors import OutputError, brief
from ..files import check_parent
from .markdown import code, table
from .prompts import Prompt, bundled
from .report_sections import SECTIONS, Section, Subject

FORMAT = 1  # of the JSON file
PACKAGES = ("mlx", "mlx-lm", "transformers")

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Report:
    """What was measured so far.

    Attributes:
        model: the model's name and shape.
        device: the machine and its system.
        versions: of the packages that matter.
        date: the day, in UTC.
        sections: what each section found, by its name.
        seconds: how long each section took.
        failed: what went wrong in the sections that failed.
        interrupted: whether Ctrl-C ended it.
    """

    model: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    date: str
    sections: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether everything was measured, and decoding is lossless here."""
        lossless = bool(self.sections.get("verify", {}).get("passed"))
        return lossless and not (self.failed or self.interrupted)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"format": FORMAT, "passed": self.passed, **rounded(vars(self))}


def measure(
    model: Any,
    tokenizer: Any,
    info: ModelInfo,
    name: str,
    *,
    max_tokens: int = 128,
    num_prompts: int = 5,
    progress: Progress = lambda title: nullcontext(lambda done, total: None),
    sections: Sequence[Section] = SECTIONS,
) -> Report:
    """Measure one section after the other; Ctrl-C returns what is known.

    Args:
        model: a model from `orthrus_mlx.load`, not used since.
        tokenizer: its tokenizer.
        info: what `checkpoint.info.describe` says of its folder.
        name: what the user calls it.
        max_tokens: most tokens in an answer.
        num_prompts: answers of each mode.
        progress: given a section's title, shows how far it has come: (steps done, steps in all).
        sections: what is measured.
    """
    shown = public_name(name)
    report = Report(about_model(info, shown), about_device(), versions(), _today())
    prompts: list[Prompt] = bundled()[:num_prompts]
    subject = Subject(model, tokenizer, prompts, max_tokens)
    for section in sections:
        start = time.perf_counter()
        try:
            with progress(section.title) as show:
                found = section.measure(subject, show)
        except KeyboardInterrupt:
            report.interrupted = True
            return report
        except Exception as error:  # what a backend raises can be of any type
            text = f"{type(error).__name__}: {brief(error)}"
            report.failed[section.name] = without_paths(text, info.folder)
            continue
        report.seconds[section.name] = time.perf_counter() - start
        if found is not None:
            report.sections[section.name] = found
            if found.get("interrupted"):
                report.interrupted = True
                return report
    return report


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


# ----------------------------------------------------------------------------------- the facts


def about_model(info: ModelInfo, name: str) -> dict[str, Any]:
    """What kind of model it is."""
    config, stored = info.config, sum_of(view.stored_as for view in info.views.values())
    return {
        "name": name,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "block_size": config.block_size,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "stored_as": max(stored, key=lambda kind: stored[kind]),
    }


def sum_of(tables: Any) -> dict[str, int]:
    """Several tables of counts, added up."""
    total: dict[str, int] = {}
    for counts in tables:
        for key, count in counts.items():
            total[key] = total.get(key, 0) + count
    return total


def about_device() -> dict[str, Any]:
    """The machine, without anything that names it or its owner."""
    mac = platform.mac_ver()[0]
    system = f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
    return {
        "name": backend.device_name(),
        "backend": backend.backend(),
        "architecture": str(backend.device_info().get("architecture", "")),
        "memory_bytes": backend.memory_bytes() or machine_memory(),
        "recommended_bytes": backend.recommended_bytes(),
        "system": f"{system}, {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """The versions of the packages that matter here."""
    return {"orthrus-mlx": __version__} | {package: version(package) for package in PACKAGES}


def public_name(name: str) -> str:
    """The name of a model without the folders that it lies in."""
    found = DEMO if name == DEMO else locate(name)
    if isinstance(found, Path):
        return Path(os.path.normpath(found.absolute())).name  # links keep their name
    return found if isinstance(found, str) else found.repo_id


def without_paths(text: str, folder: Path | None) -> str:
    """Text that names neither the model's folder nor the user's home."""
    for path, instead in ((folder, "MODEL"), (Path.cwd(), "."), (Path.home(), "~")):
        for name in (path, path and path.resolve()):  # /var is a link on macOS
            if name is not None and len(name.parts) > 1:
                # Whole names alone: /Users/ann is no part of /Users/anna.
                whole = rf"(?<![\w.-]){re.escape(str(name))}(?![\w-]|\.\w)"
                text = re.sub(whole, instead, text)
    return text


def rounded(value: Any) -> Any:
    """JSON values with four significant digits, which is more than timings have."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


# -------------------------------------------------------------------------------- as Markdown


def verdict(report: dict[str, Any]) -> str:
    """The result in one line."""
    if "verify" in report["sections"]:
        return str(report["sections"]["verify"]["verdict"])
    if "verify" in report["failed"]:
        return "NOT VERIFIED: comparing answers failed, see below."
    return "NOT VERIFIED: the report was interrupted before."


def markdown(report: dict[str, Any], sections: Sequence[Section] = SECTIONS) -> str:
    """The report `to_dict` as Markdown, to be pasted anywhere."""
    model, device = report["model"], report["device"]
    memory = f"{device['memory_bytes'] / 1e9:.0f} GB"
    if device["recommended_bytes"]:
        memory += f", {device['recommended_bytes'] / 1e9:.0f} GB of them recommended"
    busy = f", load {device['load']:.1f} of {device['cores']} cores" if "load" in device else ""
    facts = {
        "Device": f"{device['name']}, {memory}",
        "Backend": f"{device['backend']} {device['architecture']}".strip(),
        "System": f"{device['system']}, Python {device['python']}",
        "Versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "Model": f"{model['parameters'] / 1e6:,.0f} million parameters in "
        f"{model['weight_bytes'] / 1e6:,.0f} MB, mostly {model['stored_as']}; {model['layers']} "
        f"layers of {model['hidden_size']}, blocks of {model['block_size']} rows",
        "Measured": f"{report['date']}, in {sum(report['seconds'].values()):.0f} s{busy}",
    }
    lines = [f"## orthrus-mlx report: {code(model['name'])}", "", f"**{verdict(report)}**", ""]
    if report["interrupted"]:
        lines += ["Interrupted: this is what was measured by then.", ""]
    lines += table(("", ""), facts.items(), "ll")
    for section in sections:
        if section.name in report["sections"]:
            body = section.show(report["sections"][section.name])
        elif section.name in report["failed"]:
            body = [f"**Failed:** {code(report['failed'][section.name])}"]
        else:
            continue
        lines += ["", f"### {section.title}", "", *body]
    return "\n".join(lines) + "\n"


def file_name(report: dict[str, Any]) -> str:
    """A name for the JSON file of a report: the device, then the model."""
    words = f"{report['device']['name']} {report['device']['backend']} {report['model']['name']}"
    kept = "".join(c if c.isalnum() and c.isascii() else " " for c in words.lower())
    return "-".join(kept.split()) + ".json"


# -------------------------------------------------------------------------------- as a file


def check_file(path: Path) -> None:
    """Check before measuring that `save` can write this file.

    Raises:
        OutputError: if it cannot.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise OutputError(f"{path} is {kind}; name a file for the report.")
    check_parent(path)
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {path.parent}.")


def save(report: dict[str, Any], path: Path) -> None:
    """Write the report `to_dict` as JSON, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {brief(e)}.") from e
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
