"""The chat loop, with nobody and no model: who said what, and what is kept."""

import copy
import errno
import os
import signal
from typing import Any

import pytest

from orthrus_mlx.cli.conversation import Conversation, Turn
from orthrus_mlx.cli.repl import Chat
from orthrus_mlx.cli.settings import Settings
from orthrus_mlx.cli.stats import BY_FLAG, cut_line
from orthrus_mlx.cli.thinking import Kind
from orthrus_mlx.errors import ContextLengthError, PromptError
from orthrus_mlx.signals import ends_as_exception

from .fakes import FakeReader, FakeScreen, FakeSession, lines, notes, response


class PressCtrlC(FakeScreen):
    """Presses Ctrl-C, or another signal, once these characters were shown."""

    def __init__(self, after: int, times: int = 1, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.after, self.times, self.number = after, times, number

    def write(self, kind: Kind, text: str) -> None:
        super().write(kind, text)
        self.after -= len(text)
        if self.after == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def make(session: FakeSession, *typed: Any, screen: Any = None, **options: Any) -> Chat:
    return Chat(
        session,
        FakeReader(*typed),
        screen or FakeScreen(),
        notes(),
        model_name="fake",
        **options,
    )


def test_turns_follow_each_other_until_the_input_ends() -> None:
    session = FakeSession("Hello!", "Fine.")
    screen = FakeScreen()
    chat = make(session, "hi", "", "   ", "how are you?", screen=screen)
    chat.run()
    assert chat.conversation.turns == [Turn("hi", "Hello!"), Turn("how are you?", "Fine.")]
    assert [m["content"] for m in session.sent[1]] == ["hi", "Hello!", "how are you?"]
    assert screen.text() == "Hello!Fine."
    assert lines(chat.notes) == [
        "7 tokens · 50.0 tok/s · 2.33 per forward · 43% accepted · prompt 10 (0 reused)",
        "6 tokens · 50.0 tok/s · 2.00 per forward · 50% accepted · prompt 10 (0 reused)",
    ]


def test_settings_and_system_prompt_reach_the_model() -> None:
    session = FakeSession("ok")
    settings = Settings(temp=0.5, top_p=0.9, seed=3)
    make(
        session, "hi", conversation=Conversation("Be brief."), settings=settings,
        extra_options={"prefill_step_size": 64},
    ).run()  # fmt: skip
    assert session.sent[0][0] == {"role": "system", "content": "Be brief."}
    options = session.generate.options[0]
    assert options["temperature"] == 0.5
    assert options["top_p"] == 0.9
    assert options["seed"] == 3
    assert options["mode"] == "auto"
    assert options["prefill_step_size"] == 64


def test_thinking_is_shown_apart_and_not_sent_again() -> None:
    session = FakeSession("<think>\nhm\n</think>\n\nYes.", "No.")
    screen = FakeScreen()
    chat = make(session, "well?", "sure?", screen=screen)
    chat.run()
    assert chat.conversation.turns[0] == Turn("well?", "Yes.", "hm")
    assert screen.text(Kind.thinking) == "\nhm\n"
    assert session.sent[1][1] == {"role": "assistant", "content": "Yes."}


def test_a_prompt_that_opens_the_thinking() -> None:
    session = FakeSession("hm</think>Yes.", opening="...<assistant><think>\n")
    chat = make(session, "well?")
    chat.run()
    assert chat.conversation.turns == [Turn("well?", "Yes.", "hm")]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    session = FakeSession("A long answer", "ok")
    chat = make(session, "talk", "go on", screen=PressCtrlC(after=6))
    before = signal.getsignal(signal.SIGINT)
    chat.run()
    assert chat.conversation.turns == [Turn("talk", "A long"), Turn("go on", "ok")]
    assert lines(chat.notes)[0].startswith("6 tokens")
    assert lines(chat.notes)[1] == "Stopped by Ctrl-C."
    assert session.generate.closed == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_prompt_is_read_takes_the_turn_back() -> None:
    session = FakeSession([KeyboardInterrupt()], "ok")
    chat = make(session, "talk", "hi")
    chat.run()
    assert chat.conversation.turns == [Turn("hi", "ok")]
    assert lines(chat.notes)[0].startswith("Stopped before the answer began")


def test_a_second_ctrl_c_does_not_wait_for_the_next_token() -> None:
    chat = make(FakeSession("A long answer"), "talk", screen=PressCtrlC(after=3, times=2))
    chat.run()
    assert chat.conversation.turns == [Turn("talk", "A l")]


def test_ctrl_c_at_the_prompt_clears_the_line() -> None:
    chat = make(FakeSession("ok"), KeyboardInterrupt, "hi")
    chat.run()
    assert chat.conversation.turns == [Turn("hi", "ok")]


def test_ctrl_c_ends_a_chat_that_nobody_watches() -> None:
    chat = make(FakeSession("A long answer"), "hi", "x", screen=PressCtrlC(2), interactive=False)
    with pytest.raises(KeyboardInterrupt):
        chat.run()
    assert lines(chat.notes)[-1] == "Stopped by Ctrl-C."


@pytest.mark.parametrize("interactive", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_keeps_what_was_said(number: Any, interactive: bool) -> None:
    """Of a terminal that is closed it comes twice."""
    kept: list[Conversation] = []

    def keep(conversation: Conversation) -> None:
        os.kill(os.getpid(), number)  # again, where the answer could still be lost
        kept.append(copy.deepcopy(conversation))

    session, screen = FakeSession("A long answer"), PressCtrlC(after=6, times=2, number=number)
    chat = make(session, "talk", "more", screen=screen, keep=keep, interactive=interactive)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, ends_as_exception():
        chat.run()
    assert ended.value.code == 128 + number
    assert [one.turns for one in kept] == [[Turn("talk", "A long")]]
    assert lines(chat.notes)[1] == f"Stopped by {number.name}."
    assert session.generate.closed == len(session.sent) == 1
    assert signal.getsignal(number) is before


def test_such_a_signal_ends_a_chat_that_waits_for_a_line() -> None:
    class Waiting(FakeReader):
        def read(self, prompt: str) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return "never asked"

    session = FakeSession("no answer")
    chat = Chat(session, Waiting(), FakeScreen(), notes(), model_name="fake")
    with pytest.raises(SystemExit) as ended, ends_as_exception():
        chat.run()
    assert (ended.value.code, session.sent) == (143, [])


def test_a_terminal_that_cannot_be_read_ends_the_chat() -> None:
    chat = make(FakeSession("ok"), "hi", OSError(errno.EIO, "gone"))
    chat.run()
    assert chat.conversation.turns == [Turn("hi", "ok")]


def test_a_failed_turn_is_rolled_back() -> None:
    session = FakeSession("one", ["so f", PromptError("It broke.")], "two")
    chat = make(session, "1", "fails", "2")
    chat.run()
    assert chat.conversation.turns == [Turn("1", "one"), Turn("2", "two")]
    assert "error: It broke." in lines(chat.notes)
    assert [m["content"] for m in session.sent[2]] == ["1", "one", "2"]


def test_a_full_context_says_what_to_do() -> None:
    chat = make(FakeSession([ContextLengthError("Too long.")]), "1")
    chat.run()
    assert lines(chat.notes)[1].startswith("The conversation is too long: /undo")


def test_an_error_ends_a_chat_that_nobody_watches() -> None:
    chat = make(FakeSession([PromptError("It broke.")]), "1", "2", interactive=False)
    with pytest.raises(PromptError):
        chat.run()
    assert chat.conversation.turns == []


def test_an_answer_cut_off_says_so() -> None:
    chat = make(FakeSession("A long answer"), "hi", settings=Settings(max_tokens=4))
    chat.run()
    assert chat.conversation.turns == [Turn("hi", "A lo")]
    assert lines(chat.notes)[1] == (
        "Cut off at max_tokens (4): /set max_tokens 8 for more, -1 for all that fits."
    )


def test_the_seed_is_told_when_it_matters() -> None:
    chat = make(FakeSession("ok"), "hi", settings=Settings(temp=1.0, seed=11))
    chat.run()
    assert lines(chat.notes)[0].endswith("· seed 11")


def test_quotes_make_several_lines_one_message() -> None:
    session = FakeSession("ok", "ok")
    chat = make(session, '"""first', "", '/quit  second"""', '"""', "a", "b", '"""')
    chat.run()
    assert [turn.question for turn in chat.conversation.turns] == ["first\n\n/quit  second", "a\nb"]


@pytest.mark.parametrize(
    ("cut", "finish", "stopped", "thinks", "line"),
    [
        (None, "stop", False, False, None),
        (None, "stop", True, False, None),  # Ctrl-C came too late to cut anything
        (None, "stop", None, True, "The model ended while thinking, before the answer began."),
        (None, None, "Ctrl-C", False, "Stopped by Ctrl-C."),
        (
            None,
            None,
            "SIGTERM",
            True,
            "Stopped by SIGTERM while thinking, before the answer began.",
        ),
        ("stop string", "stop", None, False, "Ended by a stop string."),
        ("context", "length", None, False, "Cut off: the context is full. Send less."),
        (
            "max_tokens",
            "length",
            "Ctrl-C",
            False,
            "Cut off at max_tokens (3): --max-tokens 6 for more, -1 for all that fits.",
        ),
    ],
)
def test_what_cuts_an_answer_and_what_to_do(
    cut: Any, finish: Any, stopped: str | None, thinks: bool, line: Any
) -> None:
    last = response("a", 3, 10, finish)
    last.cut = cut
    assert cut_line(last, BY_FLAG, stopped=stopped, thinks=thinks) == line


def test_an_answer_cut_inside_its_thinking_keeps_the_thought() -> None:
    chat = make(FakeSession("<think>hmmm</think>Yes"), "well?", settings=Settings(max_tokens=9))
    chat.run()
    assert chat.conversation.turns == [Turn("well?", "", "hm")]
    assert lines(chat.notes)[1].startswith("Cut off at max_tokens (9) while thinking")
    assert lines(chat.notes)[1].endswith("; /set thinking off thinks less.")


def test_set_thinking_reaches_the_template() -> None:
    session = FakeSession("a", "b", "c")
    wanted = []
    session.stream = lambda *args, real=session.stream, **options: (  # type: ignore[method-assign]
        wanted.append(session.thinking) or real(*args, **options)
    )
    make(session, "1", "/set thinking off", "2", "/set nothink", "/set think", "3").run()
    assert wanted == [None, False, True]


def test_a_message_that_waits_is_answered_first() -> None:
    session = FakeSession("one", "two")
    chat = make(session, "more", conversation=Conversation(pending="/help"))
    chat.run()
    assert chat.conversation.turns == [Turn("/help", "one"), Turn("more", "two")]
