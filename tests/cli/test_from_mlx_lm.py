"""What mlx-lm's users type: taken, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import GenerationError, load, mlx_generate, stream_generate
from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.cli.habits import REFUSED, rewrite
from orthrus_mlx.tools import prompt_cache

from .test_app import invoke, plain
from .test_generate import Fake, fake  # noqa: F401  (a fixture)

QUESTION = "If a rectangle has length 12 and width 7, what is its area?"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--verbose False", "--no-verbose"),
        ("--verbose f -m 3", "--no-verbose -m 3"),
        ("--verbose=F hi", "--no-verbose hi"),
        ("--verbose True hi", "--verbose hi"),
        ("--verbose T", "--verbose"),
        ("--verbose hi", "--verbose hi"),
        ("--verbose", "--verbose"),
        ("--verbose=no", "--verbose=no"),
        ("--no-verbose False", "--no-verbose False"),
        ("-p hi --extra-eos-token a b -m 3", "-p hi --extra-eos-token a --extra-eos-token b -m 3"),
        ("--extra-eos-token a b --prompt=x", "--extra-eos-token a --extra-eos-token b --prompt=x"),
        ("--extra-eos-token a hi", "--extra-eos-token a hi"),
        ("--extra-eos-token=a b -p x", "--extra-eos-token=a b -p x"),
        ("-qa hi", "--quantize-activations hi"),
        ("-- --verbose False", "-- --verbose False"),
    ],
)
def test_flags_with_values(given: str, read: str) -> None:
    assert rewrite(given.split()) == read.split()


def test_verbose_false_and_several_end_tokens(fake: Fake) -> None:  # noqa: F811
    result = invoke("generate", "-p", "hi", "--verbose", "False", "--extra-eos-token", "a", "b")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "An answer\n", "")
    assert fake.tokenizer.eos_added == ["a", "b"]
    assert "Prompt:" in invoke_again(fake, "hi", "--verbose", "True").stderr
    assert invoke_again(fake, "hi", "--verbose=maybe").exit_code == 2


def invoke_again(fake: Fake, *args: str) -> Any:  # noqa: F811
    fake.generate.answers = ["An answer"]
    return invoke("generate", *args)


@pytest.mark.parametrize("flag", sorted(set(REFUSED) - {"-d", "--dequantize", "--quant-predicate"}))
def test_refused_with_the_reason(flag: str) -> None:
    for command in ("generate", "chat"):
        result = invoke(command, flag, "1")
        assert result.exit_code == 2
        assert f"{flag}: {REFUSED[flag]}" in plain(result.stderr)


def test_refused_by_convert() -> None:
    for flag in ("-d", "--dequantize", "--quant-predicate"):
        result = invoke("convert", "--model", "demo", flag)
        assert result.exit_code == 2
        assert REFUSED[flag] in plain(result.stderr)


def test_the_beginning_of_the_answer(fake: Fake) -> None:  # noqa: F811
    invoke("generate", "hi", "--prefill-response", "Well, ")
    assert fake.generate.prompts == ["<user>hi\n<assistant>Well, "]
    assert (
        invoke("generate", "hi", "--prefill-response", "x", "--ignore-chat-template").exit_code == 2
    )


def test_the_default_chat_template(fake: Fake) -> None:  # noqa: F811
    fake.tokenizer.has_chat_template = False
    fake.tokenizer.get_vocab = dict
    refused = invoke("generate", "hi", "--use-default-chat-template")
    assert refused.exit_code == 2
    assert "<|im_start|>" in plain(refused.stderr)


def test_the_default_chat_template_where_there_is_none() -> None:
    from orthrus_mlx.cli.habits import use_default_chat_template

    class Tokenizer:
        has_chat_template = False
        chat_template = None
        ends: list[str] = []  # noqa: RUF012

        def get_vocab(self) -> dict[str, int]:
            return {"<|im_start|>": 1, "<|im_end|>": 2}

        def add_eos_token(self, token: str) -> None:
            self.ends.append(token)

    import jinja2

    tokenizer = Tokenizer()
    use_default_chat_template(tokenizer)
    assert tokenizer.has_chat_template
    assert tokenizer.ends == ["<|im_end|>"]
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.chat_template is not None
    said = jinja2.Template(tokenizer.chat_template).render(
        messages=messages, add_generation_prompt=True
    )
    assert said == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    own = load("demo")[1]
    before = own.chat_template
    use_default_chat_template(own)
    assert own.chat_template == before


def test_penalties_reach_the_engine(fake: Fake) -> None:  # noqa: F811
    result = invoke(
        "generate", "hi", "--repetition-penalty", "2", "--repetition-context-size", "1",
        "--presence-penalty", "1", "--frequency-penalty", "0.5", "--frequency-context-size", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    options = fake.generate.options[0]
    assert "logits_processors" not in options  # these would be called row by row
    given = {name: value for name, value in options.items() if "_penalty" in name}
    assert given == {"repetition_penalty": 2, "presence_penalty": 1, "frequency_penalty": 0.5}
    sizes = [options[f"{name}_context_size"] for name in ("repetition", "presence", "frequency")]
    assert sizes == [1, 20, 3]


def test_penalties_write_what_those_of_mlx_lm_do() -> None:
    from mlx_lm.sample_utils import make_logits_processors

    model, tokenizer = load("demo")
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": QUESTION}])
    flags = {"repetition_penalty": 3.0, "presence_penalty": 4.0, "frequency_penalty": 4.0}
    given = [part for name, x in flags.items() for part in (f"--{name.replace('_', '-')}", str(x))]
    result = invoke("generate", QUESTION, "--mode", "parallel", "-m", "24", *given)
    assert result.exit_code == 0, result.output
    row_by_row = make_logits_processors(**flags)
    answer = stream_generate(
        model, tokenizer, ids, max_tokens=24, mode="ar", logits_processors=row_by_row
    )
    assert result.stdout.rstrip("\n") == "".join(r.text for r in answer)
    assert result.stdout != invoke("generate", QUESTION, "--mode", "ar", "-m", "24").stdout


def test_a_bias_changes_the_answer_in_every_mode() -> None:
    _, tokenizer = load("demo")
    answers = set()
    first = tokenizer.encode("Area", add_special_tokens=False)[0]
    for mode in ("ar", "parallel"):
        result = invoke(
            "generate", QUESTION, "--mode", mode, "--logit-bias", json.dumps({str(first): -100})
        )
        assert result.exit_code == 0, result.output
        answers.add(result.stdout)
    (answer,) = answers
    assert not answer.startswith("Area")


@pytest.mark.parametrize(
    "bias", ["[]", "{", '{"a": 1}', '{"1": "x"}', '{"1": true}', '{"1": 1e99}', '{"99999": 1}']
)
def test_a_bad_bias(bias: str) -> None:
    result = invoke("generate", "hi", "--logit-bias", bias)
    assert result.exit_code == 2
    assert "--logit-bias" in plain(result.stderr)


def test_a_cached_prompt_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rectangle"
    start, rest = QUESTION[:42], QUESTION[42:]
    cached = invoke("cache-prompt", "--prompt-cache-file", str(file), "-p", start)
    assert cached.exit_code == 0, cached.output
    assert f"{file}.safetensors" in cached.stderr
    whole = invoke("generate", QUESTION, "--mode", "ar")
    for mode in ("ar", "parallel"):
        result = invoke("generate", "--prompt-cache-file", str(file), "-p", rest, "--mode", mode)
        assert result.stdout == whole.stdout, result.output
    assert "The area is 84" in whole.stdout

    model, tokenizer = load("demo")
    read = prompt_cache.load(file)
    assert read.model == "demo"
    assert tokenizer.decode(read.ids).endswith(start)
    assert {layer.offset for layer in read.layers} == {len(read.ids or ())}
    tail, _ = prompt_cache.continue_chat(tokenizer, rest, {})
    ids = [*(read.ids or ()), *tail]
    continued = mlx_generate(model, tail, (), 5, mode="ar", prompt_cache=read.layers)
    assert list(continued) == list(mlx_generate(model, ids, (), 5, mode="ar"))
    for args, problem in (
        (("--system-prompt", "x"), "give it to cache-prompt"),
        (("--model", str(tmp_path)), "made with --model demo"),
        (("--revision", "v1"), "made without --revision"),
        (("--adapter-path", "a"), "made without --adapter-path"),
    ):
        refused = invoke("generate", "--prompt-cache-file", str(file), "-p", rest, *args)
        assert refused.exit_code in (1, 2)
        assert problem in plain(refused.stderr)


def test_mlx_lm_reads_what_is_cached_and_we_read_what_it_caches(tmp_path: Path) -> None:
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    model, _ = load("demo")
    layers = prompt_cache.read_prompt(model, [5, 6, 7])
    file = prompt_cache.save(tmp_path / "a", prompt_cache.CachedPrompt(layers, [5, 6, 7], "demo"))
    theirs, metadata = load_prompt_cache(str(file), return_metadata=True)
    assert (metadata["model"], json.loads(metadata["tokenizer_config"])) == ("demo", {})
    assert theirs[0].offset == 3
    save_prompt_cache(str(tmp_path / "b.safetensors"), layers, {"model": "demo"})
    ours = prompt_cache.load(tmp_path / "b.safetensors")
    assert (ours.ids, ours.model, ours.layers[0].offset) == (None, "demo", 3)


@pytest.mark.parametrize("name", ["", "/", "..", "~nobody-here/x", "x" * 300, "no/such/folder/x"])
def test_a_name_that_is_no_file(name: str) -> None:
    for args in (("generate", "hi"), ("cache-prompt", "-p", "hi")):
        result = invoke(*args, "--prompt-cache-file", name)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_prompt_cache_goes_before_the_model_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "cached")
    assert invoke("cache-prompt", "--prompt-cache-file", file, "-p", "What is 3").exit_code == 0
    monkeypatch.setenv("ORTHRUS_MLX_MODEL", "no/such")
    go_on = ["generate", "--prompt-cache-file", file, "-p", "+ 4?", "-m", "2", "--no-calibrate"]
    assert invoke(*go_on).exit_code == 0
    assert "leave --model out" in invoke(*go_on, "--model", "no/such").stderr


def test_a_file_that_is_no_prompt_cache(tmp_path: Path) -> None:
    model, _ = load("demo")
    layers = prompt_cache.read_prompt(model, [5, 6, 7])
    good = prompt_cache.save(tmp_path / "a", prompt_cache.CachedPrompt(layers, [5, 6]))
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "folder.safetensors").mkdir()
    weights = Path(prompt_cache.__file__).parent / "demo" / "model.safetensors"
    for file in (good, *(tmp_path / n for n in ("short", "text", "folder", "none")), weights):
        with pytest.raises(GenerationError, match="cache-prompt"):
            prompt_cache.load(file)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
