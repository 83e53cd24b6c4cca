"""Options are checked by name, and a YAML file can hold them."""

from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.errors import TrainingError
from orthrus_mlx.training.options import TrainOptions, read_config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iters", 0),
        ("iters", 2.5),
        ("batch_size", True),
        ("block_size", 1),
        ("block_size", 1 << 20),
        ("anchors", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("learning_rate", "fast"),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("warmup", 1.0),
        ("dtype", "int8"),
        ("resume", "yes"),
        ("chat_template_config", "{}"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(TrainingError, match=name):
        TrainOptions("base", Path("data"), Path("out"), **{name: value})


def test_yaml_holds_options_by_the_names_of_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: base\nbatch-size: 8\nlearning_rate: 1e-3\nresume: true\n")
    given = read_config(file)
    options = TrainOptions(**{"data": "data", "output": "out", **given})
    assert (options.batch_size, options.learning_rate, options.resume) == (8, 1e-3, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_rank: 8\n", "'lora_rank', which is no option"),
        ("- 1\n", "should hold names and values"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(TrainingError, match=said):
        read_config(file)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")
