"""The page to chat in, in a headless Chromium."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.server import answers

from .browser import PATIENCE, Browser, browsing, find
from .conftest import SCRIPT
from .house import Actor, House, serving

pytestmark = pytest.mark.skipif(find() is None, reason="there is no Chromium or Chrome here")

HTML = """<img src=x onerror='window.bad = 1'> <script>window.bad = 2</script>

[a](javascript:window.bad=3) [b](data:text/html,x) <b>bold?</b>

```html
<script>window.bad = 4</script>
```

| <i>x</i> | y |
|---|---|
| <u>z</u> | `<s>` |"""
MARKDOWN = """# Title

Some **bold**, *italic*, `a < b` and [a link](https://example.com/x?a=1&b=2).

1. one
   - inner
2. two

```python
print("hi")
```

2 * 3 * 4 and snake_case_name."""
WORDS = 300
MORE = {"html": HTML, "markdown": MARKDOWN, "endless": "word " * WORDS}

IDLE = "document.getElementById('stop').hidden"
ANSWER = "document.querySelector('article.assistant:last-child .content')"
CHAT = "localStorage.getItem('orthrus-mlx chat')"


class Gated(Actor):
    """Each pass needs a permit while the gate is shut."""

    def __init__(self) -> None:
        super().__init__({**SCRIPT, **MORE})
        self.permits, self.shut = threading.Semaphore(0), False

    def close(self) -> None:
        """Let no pass begin without a permit."""
        self.permits, self.shut = threading.Semaphore(0), True

    def forward(self, rows: Any) -> Any:
        """A pass, once it may be."""
        while self.shut and not self.permits.acquire(timeout=0.01):
            pass
        return super().forward(rows)


@pytest.fixture(scope="module")
def gated() -> Iterator[House]:
    with serving(Gated(), options={"max_tokens": -1}) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, gated: House) -> Iterator[Browser]:
    """The page as a new visitor finds it."""
    visit(browser, gated)
    yield browser
    gated.model.shut = False
    assert {address for address in browser.asked if not address.startswith(gated.url)} == set()
    assert browser.said == []


def visit(browser: Browser, house: House) -> None:
    browser.open(f"{house.url}/markdown.js")  # of the same origin, and without scripts that run
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.open(house.url)
    browser.asked.clear()
    browser.said.clear()


def ask(page: Browser, text: str, wait: bool = True) -> None:
    page.click("#text")
    page.write(text)
    page.press("Enter")
    if wait:
        page.until(f"{IDLE} && document.querySelector('article.assistant')")


def text_of(page: Browser, selector: str) -> list[str]:
    """The visible texts of all elements of a selector."""
    found: list[str] = page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        ".filter((e) => e.checkVisibility()).map((e) => e.innerText)"
    )
    return found


def asked_for(house: House) -> list[list[dict[str, Any]]]:
    """Collect the messages of each request from now on."""
    seen: list[Any] = []
    encode = type(house.service).encode

    def noted(ask: Any) -> Any:
        seen.append(ask)
        return encode(house.service, ask)

    house.service.encode = noted  # type: ignore[method-assign]
    return seen


def test_a_first_visit_and_an_answer(page: Browser, gated: House) -> None:
    page.until("document.title.startsWith('test-model')")
    assert text_of(page, "#empty h2") == ["Ask test-model"]
    assert len(text_of(page, "#examples button")) == 4
    page.click("#text")
    page.write("Hello")
    page.press("Enter", shift=True)
    page.write("you.")
    assert page.run("document.getElementById('text').value") == "Hello\nyou."
    # Enter that ends a word of an input method sends nothing.
    page.run(
        "document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    assert text_of(page, "article") == []
    page.press("Enter")
    page.until(f"{IDLE} && {ANSWER}")
    assert text_of(page, "article .content")[0] == "Hello\nyou."
    assert text_of(page, "#empty") == []
    facts = " ".join(text_of(page, ".stat"))
    for part in (" tokens ", " tokens/s ", " tokens/pass ", "first token after ", "seed "):
        assert part in facts
    assert page.run("document.getElementById('announce').textContent") == page.run(
        f"{ANSWER}.textContent"
    )


def test_an_example_is_asked_by_a_click(page: Browser) -> None:
    page.click("#examples button", "rectangle")
    page.until(f"{IDLE} && {ANSWER}")
    question, answer = text_of(page, "article .content")
    assert "rectangle" in question
    assert answer == question  # a text that is in no script is said again


def test_answers_stream_and_stop_frees_the_row(page: Browser, gated: House) -> None:
    gated.model.close()
    cancelled = gated.service.worker.totals.cancelled
    ask(page, "endless", wait=False)
    lengths = set()
    for words in (1, 8, 16):
        while page.run(f"{ANSWER}?.textContent.split('word').length - 1 || 0") < words:
            gated.model.permits.release()
            time.sleep(0.01)
        lengths.add(page.run(f"{ANSWER}.textContent.length"))
    assert len(lengths) == 3  # it was seen to grow
    assert sum(gated.service.worker.load) == 1
    page.click("#stop")
    page.until(IDLE)
    assert "stopped" in text_of(page, ".stat")
    end = time.monotonic() + PATIENCE
    while gated.service.worker.load != (0, 0):
        assert time.monotonic() < end
        gated.model.permits.release()
        time.sleep(0.01)
    assert gated.service.worker.totals.cancelled == cancelled + 1
    assert page.run(f"{ANSWER}.textContent").count("word") < WORDS


def test_waiting_tells_how_far_the_prompt_is(
    page: Browser, gated: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.05)
    monkeypatch.setitem(gated.service.options, "prefill_step_size", 16)
    gated.model.close()
    ask(page, "Many words. " * 20, wait=False)
    page.until("document.querySelector('p.waiting')?.textContent === 'Waiting for the first token'")
    gated.model.permits.release(2)
    page.until(
        "/^Reading the prompt: 32.[0-9]+ tokens$/.test("
        "document.querySelector('p.waiting').textContent)"
    )
    gated.model.shut = False
    page.until(IDLE)
    assert text_of(page, ".waiting") == []


def test_text_of_a_model_is_text(page: Browser) -> None:
    ask(page, "html")
    shown = page.run(f"{ANSWER}.textContent")
    for part in ("<img src=x onerror=", "<script>window.bad = 2</script>", "<b>bold?</b>", "<i>x"):
        assert part in shown
    assert "[a](javascript:window.bad=3) [b](data:text/html,x)" in shown
    assert page.run(f"{ANSWER}.querySelectorAll('img, script, a, b, i, u, s').length") == 0
    assert page.run(f"{ANSWER}.querySelector('pre').innerText").strip() == (
        "<script>window.bad = 4</script>"
    )
    assert page.run("window.bad") is None
    # What is kept is shown in the same way.
    page.open(page.run("location.href"))
    assert page.run("window.bad") is None
    assert page.run(f"{ANSWER}.querySelectorAll('img, script, a, b').length") == 0


def test_text_of_a_user_is_text(page: Browser) -> None:
    ask(page, HTML)
    assert page.run("document.querySelectorAll('article :is(img, script, b)').length") == 0
    assert page.run("window.bad") is None


def test_scripts_of_others_would_not_run(page: Browser, gated: House) -> None:
    rules = gated.http.get("/").headers["content-security-policy"]
    assert "unsafe" not in rules and "default-src 'none'" in rules
    for script in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.setAttribute('onclick', 'window.bad = 1')",
        "document.body.appendChild(document.createElement('script')).text = 'window.bad = 2'",
    ):
        assert page.run(f"(() => {{ try {{ {script} }} catch {{ return 'refused' }} }})()") == (
            "refused"
        )
    page.run("document.body.click()")
    assert page.run("window.bad") is None
    assert len(page.said) == 3
    page.said.clear()


def test_markdown(page: Browser) -> None:
    ask(page, "markdown")
    one = f"{ANSWER}.querySelector"
    assert page.run(f"{one}('h1').textContent") == "Title"
    assert page.run(f"{one}('strong').textContent") == "bold"
    assert page.run(f"[...{ANSWER}.querySelectorAll('em')].map((e) => e.textContent)") == ["italic"]
    assert page.run(f"{one}('p code').textContent") == "a < b"
    assert page.run(f"{one}('a').href") == "https://example.com/x?a=1&b=2"
    assert "noopener" in page.run(f"{one}('a').rel")
    assert page.run(f"{one}('ol > li > ul > li').textContent") == "inner"
    assert page.run(f"{one}('ol').children.length") == 2
    assert page.run(f"{one}('pre').textContent") == 'print("hi")'
    assert page.run(f"{ANSWER}.lastChild.textContent") == "2 * 3 * 4 and snake_case_name."
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.click(".code button")
    page.until("window.copied")
    assert page.run("window.copied") == 'print("hi")'


def test_no_markdown_takes_long(page: Browser) -> None:
    for part in ("[", "*a ", "**", "`", "> ", "- ", "  - a\n", "_a ", "|", "~~~\n", "](", "\\"):
        script = (
            "import('./markdown.js').then(({ show }) => { const e = document.createElement('p');"
            f"show(e, {json.dumps(part)}.repeat(20000)); return e.textContent.length }})"
        )
        assert page.run(script) is not None  # within the patience of `run`


def test_thinking_is_folded_and_apart(page: Browser) -> None:
    ask(page, "think")
    assert page.run(f"{ANSWER}.innerText") == "The answer is 4."
    assert page.run("document.querySelector('details.thinking').open") is False
    assert text_of(page, "details.thinking div") == []
    page.click("summary")
    assert text_of(page, "details.thinking div") == ["Well, let me see."]


def test_a_key_is_asked_for_and_kept(browser: Browser) -> None:
    with serving(Actor(SCRIPT), settings={"keys": ["secret"]}) as locked:
        visit(browser, locked)
        browser.until("!document.getElementById('key-form').hidden")
        ask(browser, "Hi.")
        assert any("API key" in error for error in text_of(browser, "article .error"))
        for key in ("wrong", "secret"):
            browser.click("#key")
            browser.run("document.getElementById('key').select()")
            browser.write(key)
            browser.press("Enter")
            if key == "wrong":
                browser.until(
                    "document.getElementById('key-note').textContent.includes('not know')"
                )
        # The question that was refused is asked again by itself.
        browser.until(f"{IDLE} && {ANSWER}?.textContent === 'Hi.'")
        assert text_of(browser, "#key-form, article .error") == []
        browser.open(locked.url)
        browser.until("document.title.startsWith('test-model')")
        assert text_of(browser, "#key-form") == []
        assert "secret" not in browser.run("JSON.stringify(localStorage)")
    ask(browser, "Is anybody there?")
    assert text_of(browser, "article .error") == [
        "The server cannot be reached. Does it still run?"
    ]


def test_errors_are_shown_where_they_happen(page: Browser, gated: House) -> None:
    gated.model.broken = RuntimeError("broken")
    ask(page, "Hi.")
    assert text_of(page, "article .error") == ["The engine failed: RuntimeError."]
    page.said.clear()
    page.click("button", "Try again")
    page.until(f"{IDLE} && {ANSWER}?.textContent === 'Hi.'")
    assert text_of(page, "article .error") == []
    # What the server does not take is said in its words.
    page.run("localStorage.setItem('orthrus-mlx settings', '{\"temperature\": \"-1\"}')")
    page.click("button", "Regenerate")
    page.until(f"{IDLE} && document.querySelector('article.assistant .error').textContent")
    assert text_of(page, "article .error") == ["temperature is -1; expected 0 to 100."]
    # The answer that was there is not lost, here or after a reload.
    assert page.run(f"{ANSWER}.textContent") == "Hi."
    assert '"content":"Hi."' in page.run(CHAT)[page.run(CHAT).index("assistant") :]
    page.said.clear()


def test_a_chat_survives_a_reload(page: Browser, gated: House) -> None:
    ask(page, "think")
    ask(page, "One more.")
    before = text_of(page, "article .content"), text_of(page, ".stat")
    page.open(gated.url)
    assert (text_of(page, "article .content"), text_of(page, ".stat")) == before
    # Another tab may have gone on with it.
    page.run(
        'localStorage.setItem(\'orthrus-mlx chat\', \'[{"role": "user", "content": "Ah."}]\');'
        "dispatchEvent(new StorageEvent('storage', { key: 'orthrus-mlx chat' }))"
    )
    assert text_of(page, "article .content") == ["Ah."]
    # So does what there is of an answer under way, and its row is freed.
    gated.model.close()
    ask(page, "endless", wait=False)
    gated.model.permits.release(20)
    page.until(f"{ANSWER}?.textContent.includes('word')")
    page.open(gated.url)
    assert "word" in page.run(f"{ANSWER}.textContent")
    assert "stopped" in text_of(page, ".stat")
    gated.model.shut = False
    end = time.monotonic() + PATIENCE
    while gated.service.worker.load != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_again_edit_and_a_new_chat(page: Browser, gated: House) -> None:
    seen = asked_for(gated)
    try:
        ask(page, "One.")
        ask(page, "think")
        page.click("button", "Regenerate")
        page.until(f"{IDLE} && {ANSWER}?.textContent === 'The answer is 4.'")
        page.click("article.user button", "Edit")
        assert page.run("document.getElementById('text').value") == "think"
        page.write(" no more")
        page.press("Enter")
        page.until(f"{IDLE} && {ANSWER}?.textContent === 'think no more'")
    finally:
        del gated.service.encode
    told = [[message["content"] for message in ask.messages] for ask in seen]
    assert told == [
        ["One."],
        ["One.", "One.", "think"],
        ["One.", "One.", "think"],
        ["One.", "One.", "think no more"],
    ]
    page.click("#new")
    assert text_of(page, "article") == []
    assert page.run(CHAT) == "[]"
    page.click("#bring-back")
    assert len(text_of(page, "article")) == 4


def test_settings_are_kept_and_sent(page: Browser, gated: House) -> None:
    page.click("#open-settings")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0.5",
        "max_tokens": "3",
        "seed": "7",
    }.items():
        page.click(f"#settings [name={name}]")
        page.write(value)
    page.run(
        "((e) => { e.value = 'off'; e.dispatchEvent(new Event('change', { bubbles: true })) })"
        "(document.querySelector('[name=thinking]'))"
    )
    page.click("#done")
    page.until("!document.getElementById('settings').open")
    page.open(gated.url)
    seen = asked_for(gated)
    try:
        ask(page, "endless")
    finally:
        del gated.service.encode
    (asked,) = seen
    assert asked.messages[0] == {"role": "system", "content": "Be brief."}
    assert (asked.options["temperature"], asked.options["max_tokens"], asked.seed) == (0.5, 3, 7)
    assert asked.template == {"enable_thinking": False}
    facts = text_of(page, ".stat")
    assert "3 tokens" in facts and "seed 7 (fast)" in facts
    assert "cut at the longest answer allowed" in facts


def test_the_view_follows_only_from_the_end(page: Browser, gated: House) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=500,
        deviceScaleFactor=1,
        mobile=True,
    )
    try:
        ask(page, MARKDOWN)
        ask(page, "endless")
        at_end = (
            "(({ scrollTop, scrollHeight, clientHeight }) => scrollHeight - scrollTop - "
            "clientHeight < 40)(document.getElementById('scroll'))"
        )
        assert page.run(at_end)
        # Nothing is wider than the screen.
        assert page.run("document.documentElement.scrollWidth <= 390")
        gated.model.close()
        page.click("button", "Regenerate")
        gated.model.permits.release(20)
        page.until(f"{ANSWER}?.textContent.includes('word')")
        page.run("document.getElementById('scroll').scrollTop = 0")
        page.until("!document.getElementById('to-end').hidden")
        gated.model.shut = False
        page.until(IDLE)
        assert page.run("document.getElementById('scroll').scrollTop") == 0
        page.click("#to-end")
        page.until(at_end)
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_a_file_that_is_none_of_the_page(gated: House) -> None:
    assert gated.http.get("/page.py").status_code == 404
    assert gated.http.get("/").headers["content-type"] == "text/html; charset=utf-8"
    found = gated.http.get("/page.js")
    assert found.headers["content-type"].startswith("text/javascript")
    folder = Path(__file__).parents[2] / "orthrus_mlx" / "server"
    assert found.text == (folder / "page.js").read_text("utf-8")
