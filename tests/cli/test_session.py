"""The reused cache: what is read again, and that reusing it never changes an answer."""

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models.cache import KVCache

from orthrus_mlx import session as session_module
from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.errors import ChatTemplateError
from orthrus_mlx.session import ChatSession

from .fakes import FakeGenerate, FakeModel, FakeTokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def make(monkeypatch: pytest.MonkeyPatch, *answers: Any, **config: Any) -> tuple[ChatSession, Any]:
    generate = FakeGenerate(*answers)
    monkeypatch.setattr(session_module, "stream_generate", generate)
    return ChatSession(FakeModel(), FakeTokenizer(), template_config=config), generate


def say(session: ChatSession, *messages: dict[str, str]) -> str:
    return "".join(r.text for r in session.stream(messages, prompt_progress_callback=quiet))


def quiet(done: int, total: int) -> None:
    pass


def check(session: ChatSession) -> None:
    """All layers must hold what the session believes."""
    offsets = {layer.offset for layer in session._cache}
    assert offsets == {session.cached_tokens}


def test_a_further_turn_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", "Fine")
    assert say(session, user("hi")) == "Hello"
    assert session.reused_tokens == 0
    check(session)
    assert say(session, user("hi"), assistant("Hello"), user("and?")) == "Fine"
    # The end token was said, but is not in the cache; "\n" is what the template puts there.
    assert generate.prompts == ["<user>hi\n<assistant>", "\n<user>and?\n<assistant>"]
    assert session.reused_tokens == len("<user>hi\n<assistant>Hello")
    assert session.prompt_text.endswith("<user>and?\n<assistant>")
    check(session)


def test_another_question_trims_to_the_common_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", "Fine", "Well")
    say(session, user("hi"))
    say(session, user("hi"), assistant("Hello"), user("and?"))
    say(session, user("hi"), assistant("Hello"), user("but?"))
    assert generate.prompts[2] == "but?\n<assistant>"
    check(session)


def test_the_same_prompt_again_reads_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", "Hello")
    say(session, user("hi"))
    say(session, user("hi"))
    assert generate.prompts[1] == ">"
    check(session)


def test_an_edited_answer_is_read_from_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "<think>x</think>Yes", "ok")
    say(session, user("hi"))
    say(session, user("hi"), assistant("Yes"), user("?"))
    assert generate.prompts[1] == "Yes\n<user>?\n<assistant>"
    check(session)


def test_closing_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", "ok")
    answer = session.stream([user("hi")], prompt_progress_callback=quiet)
    assert [next(answer).text for _ in range(3)] == ["H", "e", "l"]
    answer.close()
    assert generate.closed == 1
    check(session)
    say(session, user("hi"), assistant("Hel"), user("go on"))
    assert generate.prompts[1] == "l\n<user>go on\n<assistant>"  # the last one is not held yet


def test_a_failure_goes_back_to_the_common_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", ["so f", RuntimeError("out of memory")], "ok")
    say(session, user("hi"))
    with pytest.raises(RuntimeError):
        say(session, user("hi"), assistant("Hello"), user("and?"))
    assert session.cached_tokens == len("<user>hi\n<assistant>Hello")
    check(session)
    say(session, user("hi"), assistant("Hello"), user("and?"))
    assert generate.prompts[2] == generate.prompts[1]


def test_a_failure_between_two_layers_leaves_none_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = make(monkeypatch)

    def half_a_pass(*_: Any, prompt_cache: list[KVCache], **__: Any) -> Any:
        prompt_cache[0].offset += 5
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(session_module, "stream_generate", half_a_pass)
    with pytest.raises(KeyboardInterrupt):
        say(session, user("hi"))
    assert session.cached_tokens == 0
    check(session)


def test_reset_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "Hello", "Hello")
    say(session, user("hi"))
    session.reset()
    assert session.cached_tokens == 0
    say(session, user("hi"))
    assert generate.prompts[1] == generate.prompts[0]


def test_the_template_gets_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    session, generate = make(monkeypatch, "ok", opening="<think>")
    say(session, user("hi"))
    assert generate.prompts == ["<user>hi\n<assistant><think>"]


def test_a_template_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = make(monkeypatch, refuse=True)
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        say(session, user("hi"))


def test_a_tokenizer_without_template() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.has_chat_template = False
    with pytest.raises(ChatTemplateError, match="no chat template"):
        encode_chat(tokenizer, [user("hi")])


@pytest.fixture(scope="module")
def tiny16(tiny16_dir: Path) -> Any:
    from orthrus_mlx import load

    return load(tiny16_dir)


@pytest.mark.parametrize("mode", ["ar", "parallel"])
def test_answers_over_a_reused_cache_are_those_of_a_fresh_one(
    tiny16: Any, mode: str, tmp_path: Path
) -> None:
    model, tokenizer = tiny16
    session = ChatSession(model, tokenizer)
    talk: list[dict[str, str]] = []
    for turn, question in enumerate(
        [
            "If a rectangle has length 12 and width 7, what is its area?",
            "Find the area of a rectangle that is 9 by 3.",
            "A rectangle measures 24 by 52. Find its area.",
        ]
    ):
        talk.append(user(question))
        stop_after = 11 if turn == 1 else 200  # the second answer is interrupted
        expected = said(ChatSession(model, tokenizer), talk, stop_after, mode)
        assert said(session, talk, stop_after, mode) == expected
        check(session)
        if turn:
            assert session.reused_tokens > 30
        if turn == 1:  # the last answer is that of another process
            session.save_cache(tmp_path / "cache.safetensors", "tiny16")
            session = ChatSession(model, tokenizer)
            session.load_cache(tmp_path / "cache.safetensors", "tiny16")
        talk.append(assistant(tokenizer.decode([t for t in expected if t != 2])))


def said(session: ChatSession, talk: list[dict[str, str]], stop_after: int, mode: str) -> list[int]:
    tokens = []
    answer = session.stream(talk, max_tokens=60, mode=mode)
    for response in answer:
        tokens.append(response.token)
        if len(tokens) == stop_after:
            answer.close()
    return tokens


class Quoting(FakeTokenizer):
    """A template that takes what stands before `</think>` for thinking, as Qwen3's does."""

    def __init__(self, heeds: bool) -> None:
        super().__init__()
        self.heeds = heeds  # whether it takes the thinking apart from the content too

    def apply_chat_template(self, messages: Any, **how: Any) -> str:
        def answer(message: Any) -> Any:
            if message["role"] == "user" or (self.heeds and "reasoning_content" in message):
                return message
            return {**message, "content": message["content"].split("</think>")[-1]}

        return super().apply_chat_template([answer(m) for m in messages], **how)


@pytest.mark.parametrize(
    ("heeds", "kept"),
    [(True, "It ends with </think>, always."), (False, "It ends with < /think>, always.")],
)
def test_a_quoted_tag_does_not_eat_the_history(heeds: bool, kept: str) -> None:
    talk = [user("How?"), assistant("It ends with </think>, always."), user("It ends </think>?")]
    _, text = encode_chat(Quoting(heeds), talk)
    said = f"<user>How?\n<assistant>{kept}\n<user>It ends </think>?\n<assistant>"
    assert text == said


def test_a_saved_cache_is_taken_up_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    session, _ = make(monkeypatch, "Hello")
    session.save_cache(other, "weights")  # empty
    say(session, user("hi"))
    session.save_cache(path, "weights")
    held = session.cached_tokens

    def taken_up(file: Path, key: str) -> int:
        session, generate = make(monkeypatch, "Fine")
        session.load_cache(file, key)
        say(session, user("hi"), assistant("Hello"), user("and?"))
        check(session)
        whole = "<user>hi\n<assistant>Hello\n<user>and?\n<assistant>"
        assert generate.prompts == [whole[session.reused_tokens :]]
        return session.reused_tokens

    assert taken_up(path, "weights") == held == len("<user>hi\n<assistant>Hello")
    assert taken_up(path, "other weights") == 0
    assert taken_up(other, "weights") == 0
    assert taken_up(tmp_path / "none.safetensors", "weights") == 0
    for content in (b"", b"{", path.read_bytes()[:200]):
        other.write_bytes(content)
        assert taken_up(other, "weights") == 0
