"""The demo's corpus: the split holds, seeds decide everything, and every answer is right."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import prod

import pytest

from recipes.demo.corpus import KINDS, conversation, evaluation, held_out, judge, training
from recipes.demo.corpus.code import WORD_FREQUENCY_CODE, parametric
from recipes.demo.corpus.core import PINNED, Sample, code_block, draw
from recipes.demo.corpus.generate import RECTANGLE, pinned
from recipes.demo.corpus.snippets import SNIPPETS

pytestmark = pytest.mark.full
SAMPLES = 300


def samples(name: str, *, held: bool = False, count: int = SAMPLES) -> list[Sample]:
    rng = random.Random(f"test/{name}/{held}")
    return [draw(KINDS[name], rng, held=held) for _ in range(count)]


def replies(sample: Sample) -> list[str]:
    return [m["content"] for m in sample.messages if m["role"] == "assistant"]


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 12


@pytest.mark.parametrize("name", KINDS)
def test_messages_alternate_and_end_with_an_answer(name: str) -> None:
    for sample in samples(name):
        roles = [message["role"] for message in sample.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(sample.keys) * 2 == len(roles)
        for message in sample.messages:
            assert message["content"] and message["content"] == message["content"].strip()


@pytest.mark.parametrize("name", KINDS)
def test_the_split_keeps_problems_apart(name: str) -> None:
    trained = {k for sample in samples(name) for k in sample.keys}
    asked = {sample.keys[-1] for sample in samples(name, held=True, count=40)}
    assert not any(map(held_out, trained))
    assert all(map(held_out, asked))
    assert not trained & asked


def test_one_problem_in_twenty_is_held_out() -> None:
    share = sum(held_out(f"add:{a},{b}") for a in range(100) for b in range(100)) / 10_000
    assert 0.04 < share < 0.06


def test_no_evaluation_question_is_trained_on() -> None:
    trained = {
        message["content"]
        for i in range(20_000)
        for message in conversation(0, i)
        if message["role"] == "user"
    }
    # Follow-ups and small talk are short and mean something only in their conversation.
    asked = [
        q.prompt[-1]["content"] for q in evaluation(20, seed=1) if len(q.prompt) == 1 and q.answer
    ]
    assert len(asked) >= 200
    assert not trained.intersection(asked)


def test_the_seed_decides_everything() -> None:
    first = [conversation(3, i) for i in range(300)]
    assert first == [conversation(3, i) for i in range(300)]
    assert first != [conversation(4, i) for i in range(300)]
    assert [json.loads(line)["messages"] for line in training(300, seed=3, workers=1)] == first
    assert evaluation(3, seed=1) == evaluation(3, seed=1)


def test_evaluation_covers_every_kind() -> None:
    questions = evaluation(15, seed=1)
    assert len(questions) >= 200
    assert {question.kind for question in questions} == set(KINDS)
    for question in questions:
        assert type(question).from_json(question.as_json()) == question


@pytest.mark.parametrize("name", KINDS)
def test_the_key_answer_is_judged_right_and_a_wrong_one_wrong(name: str) -> None:
    chosen = samples(name, count=12 if name == "python" else 60)
    for sample in chosen:
        if sample.answer is not None:
            reply = sample.messages[-1]["content"]
            assert judge(reply, sample.answer), (reply, sample.answer)
            assert not judge("Something else.", sample.answer)


# Every equation in the corpus is computed again.
NUMBER = r"\$?\d+(?:\.\d+)?"
EQUATION = re.compile(
    rf"^({NUMBER}(?: [-+×÷] {NUMBER})+) = ({NUMBER})(?: remainder (\d+))?(?:, so one hour more)?$"
)


def value(expression: str) -> Fraction:
    tokens = expression.replace("$", "").split()
    terms, sign = [Fraction(tokens[0])], 1
    for operator, text in zip(tokens[1::2], tokens[2::2], strict=True):
        number = Fraction(text)
        if operator == "×":
            terms[-1] *= number
        elif operator == "÷":
            terms[-1] /= number
        else:
            sign = -1 if operator == "-" else 1
            terms.append(sign * number)
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("name", KINDS)
def test_every_equation_holds(name: str) -> None:
    seen = 0
    for sample in samples(name):
        for line in "\n".join(replies(sample)).split("\n"):
            match = EQUATION.match(line)
            if match is None:
                continue
            seen += 1
            expression, result, rest = match.groups()
            if rest is None:
                assert value(expression) == Fraction(result.removeprefix("$")), line
            else:
                a, b = (int(text) for text in expression.split(" ÷ "))
                assert divmod(a, b) == (int(result), int(rest)), line
    if name in ("arithmetic", "geometry", "word problems", "recipes", "sequences", "money"):
        assert seen > SAMPLES / 3


def _changes(have: int, *changes: int) -> int:
    return have + sum(changes)


def _older(a: int, d: int, together: str) -> int:
    return a + (a + d) if together == "True" else a + d


# What the last line must contain, from the values in the key alone.
ORACLES: dict[str, Callable[..., object]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b if a % b == 0 else f"{a // b} remainder {a % b}",
    "sum": lambda *n: sum(n),
    "mean": lambda *n: Fraction(sum(n), len(n)),
    "percent": lambda p, a: Fraction(p * a, 100),
    "rect_area": lambda a, b: a * b,
    "rect_perimeter": lambda a, b: 2 * a + 2 * b,
    "square_area": lambda a: a * a,
    "square_perimeter": lambda a: 4 * a,
    "triangle_area": lambda a, b: Fraction(a * b, 2),
    "box_volume": lambda *n: prod(n),
    "circumference": lambda d: f"{3.14 * d:.2f}",
    "changes": _changes,
    "groups": lambda a, b: a * b,
    "share": lambda a, b: a // b,
    "compare": _older,
    "times": lambda a, k: a * k,
    "times_sum": lambda a, k: a + a * k,
    "speed": lambda v, t: v * t,
    "daily": lambda p, d: p * d,
    "age": lambda a, d, y: a + d + y,
    "recipe": lambda p, n: p * n,
    "cost": lambda n, p: f"${n * p // 100}" if n * p % 100 == 0 else f"${n * p / 100:.2f}",
    "change": lambda n, p, note: f"${note - n * p}",
    "discount": lambda p, c: f"${Fraction(p * (100 - c), 100)}",
    "markup": lambda p, c: f"${Fraction(p * (100 + c), 100)}",
    "split": lambda bill, people: f"${Fraction(bill, people)}",
    "saving": lambda start, per, n: f"${start + per * n}",
    "two_goods": lambda n, p, m, q: f"${n * p + m * q}",
    "extreme": lambda least, *n: min(n) if least == "True" else max(n),
    "older": lambda a, b: abs(a - b),
    "parity": lambda a: "odd" if a % 2 else "even",
    "divisible": lambda a, b: "No" if a % b else "Yes",
}


def number(text: str) -> object:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


@pytest.mark.parametrize("name", KINDS)
def test_results_follow_from_the_values_alone(name: str) -> None:
    for sample in samples(name):
        for problem, reply in zip(sample.keys, replies(sample), strict=True):
            kind, _, rest = problem.partition(":")
            if kind not in ORACLES:
                continue
            want = str(ORACLES[kind](*map(number, rest.split(","))))
            last = reply.rsplit("\n", 1)[-1]
            assert re.search(rf"(?<![\d.]){re.escape(want)}(?![\d]|\.\d)", last), (problem, last)


def test_expressions() -> None:
    for sample in samples("arithmetic", count=2000):
        for problem, reply in zip(sample.keys, replies(sample), strict=True):
            if problem.startswith("expr:"):
                want = eval(problem.removeprefix("expr:").replace("×", "*"))
                assert reply.endswith(f"Answer: {want}")


def test_units_and_clock() -> None:
    for sample in samples("units", count=600):
        for reply in replies(sample):
            one, factor = re.match(r"1 (\w+) = (\d+) \w+", reply).groups()
            left, right = (int(n) for n in re.findall(r"\d+", reply.rsplit("\n", 1)[-1]))
            assert max(left, right) == min(left, right) * int(factor), (one, reply)
    for sample in samples("clock", count=600):
        kind, _, rest = sample.keys[0].partition(":")
        last = replies(sample)[0].rsplit("\n", 1)[-1]
        clocks = [int(h) * 60 + int(m) for h, m in re.findall(r"(\d+):(\d\d)", rest)]
        if kind == "later":
            end = (clocks[0] + int(rest.rsplit(",", 1)[1])) % 1440
            assert last == f"The time is {end // 60:02d}:{end % 60:02d}."
        elif kind == "between":
            found = re.findall(r"(\d+) (hour|minute)", last)
            length = sum(int(n) * (60 if unit == "hour" else 1) for n, unit in found)
            assert length == clocks[1] - clocks[0], last
        elif kind == "day":
            days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
            day, n = rest.split(",")
            assert last == f"It is {days[(days.index(day) + int(n)) % 7]}."
        else:
            hour, minute, half = re.search(r"(\d+):(\d\d) (am|pm)", last).groups()
            assert int(hour) % 12 * 60 + int(minute) + 720 * (half == "pm") == clocks[0]


def test_sequences_go_on_by_their_rule() -> None:
    for sample in samples("sequences"):
        given = [int(n) for n in sample.keys[0].removeprefix("next:").split(",")]
        more = [int(n) for n in re.findall(r"\d+", replies(sample)[0].rsplit("\n", 1)[-1])]
        terms = [*given, *more]
        steps = {b - a for a, b in pairwise(terms)}
        ratios = {Fraction(b, a or 1) for a, b in pairwise(terms)}
        assert len(steps) == 1 or len(ratios) == 1


def test_json_replies_hold_the_words_of_the_sentence() -> None:
    for sample in samples("json"):
        record = json.loads(replies(sample)[0])
        asked = sample.messages[0]["content"]
        for entry in record if isinstance(record, list) else [record]:
            for cell in entry.values():
                for part in cell if isinstance(cell, list) else [cell]:
                    # "False" is told as "has not paid"; a price may be written 2.50.
                    if not isinstance(part, bool | float):
                        assert str(part) in asked, (part, asked)


def test_lists_keep_their_items() -> None:
    for sample in samples("lists"):
        lead, *lines = replies(sample)[0].split("\n")
        marked = ""
        if lead.startswith("Repeats in brackets: "):
            marked, (lead, *lines) = lead.partition(": ")[2], lines
        items = [item for line in lines for item in line.split(", ")]
        given = sample.keys[0].rsplit(":", 1)[1].split(",")
        if lead == "Sorted from A to Z:":
            assert items == sorted(given)
        elif lead == "In reverse order:":
            assert items == given[::-1]
        elif lead == "In capital letters:":
            assert items == [item.upper() for item in given]
        elif lead == "Without duplicates:":
            assert items == list(dict.fromkeys(given)) and len(given) <= 7
            assert [item.strip("()") for item in marked.split(", ")] == given
            assert [item for item in marked.split(", ") if item[0] != "("] == items
        elif lead == "Numbered:":
            assert items == [f"{i}. {item}" for i, item in enumerate(given, 1)]
        elif lead in ("From small to large:", "From large to small:"):
            assert [int(i) for i in items] == sorted(
                map(int, given[1:]), reverse="large to" in lead
            )
            assert len(items) <= 6


def test_comparisons_name_the_right_one() -> None:
    for sample in samples("comparisons"):
        problem, _, rest = sample.keys[0].partition(":")
        *lines, last = replies(sample)[0].split("\n")
        if problem == "older":
            asked = dict(re.findall(r"(\w+) (?:is )?\(?(\d+)", sample.messages[0]["content"]))
            old, young = sorted(asked, key=lambda who: -int(asked[who]))
            assert sorted(asked.values()) == sorted(rest.split(","))
            assert lines[0] == f"{old} is {asked[old]}, {young} is {asked[young]}."
            assert last.startswith(f"{old} is ") and last.endswith(f" older than {young}.")
        elif problem == "extreme":
            least, *numbers = rest.split(",")
            best = numbers[0]
            assert len(lines) == len(numbers) - 1 <= 4
            for line, other in zip(lines, numbers[1:], strict=True):
                winner = (min if least == "True" else max)(best, other, key=int)
                assert line == f"{best} or {other}: {winner}"
                best = winner
            assert last.endswith(f" number is {best}.")


def test_tables_and_counts() -> None:
    for sample in samples("counting"):
        kind, _, rest = sample.keys[0].partition(":")
        words = rest.split(",")
        count = len(words) if kind == "count" else words[1:].count(words[0])
        assert f" {count} " in replies(sample)[0].rsplit("\n", 1)[-1]
    for sample in samples("tables"):
        for problem, reply in zip(sample.keys, replies(sample), strict=True):
            table = [line for line in reply.split("\n") if line.startswith("|")]
            assert len({line.count("|") for line in table}) == 1
            if problem.startswith("tally:"):
                words = problem.removeprefix("tally:").split(",")
                counts = [line.strip("| ").split(" | ") for line in table[2:]]
                assert counts == [[w, str(n)] for w, n in Counter(words).items()]
                running = re.findall(r"(\w+) \((\d+)\)", reply.split("\n")[0])
                assert [w for w, _ in running] == words and len(words) <= 7
                assert dict(running) == dict(map(tuple, counts))
            if problem.startswith("table_total:"):
                numbers = [int(line.split("|")[2].strip(" $")) for line in table[2:]]
                assert sum(numbers[:-1]) == numbers[-1]


def test_every_function_runs_and_returns_what_is_said() -> None:
    seen = set()
    for sample in samples("python", count=1500):
        for reply in replies(sample):
            code = code_block(reply)
            assert code is not None
            compile(code, "reply", "exec")
            if claim := re.search(r"For example, `(.+)` returns `(.+)`\.$", reply):
                scope: dict[str, object] = {}
                exec(code, scope)
                assert repr(eval(claim[1], scope)) == claim[2]
                seen.add(claim[1])
    assert len(seen) > len(SNIPPETS)


ORACLE_CALLS = {
    'reverse_string("abc")': "cba",
    'is_palindrome("Level")': True,
    'count_vowels("banana")': 3,
    "is_prime(13)": True,
    "primes_up_to(12)": [2, 3, 5, 7, 11],
    "factorial(5)": 120,
    "fibonacci(7)": [0, 1, 1, 2, 3, 5, 8],
    "gcd(12, 18)": 6,
    "lcm(4, 6)": 12,
    "digit_sum(123)": 6,
    "median([5, 1, 3])": 3,
    "bubble_sort([3, 1, 2])": [1, 2, 3],
    "binary_search([1, 4, 9], 9)": 2,
    "to_celsius(212)": 100.0,
    "is_leap_year(2024)": True,
    "to_binary(10)": "1010",
    "transpose([[1, 2], [3, 4]])": [[1, 3], [2, 4]],
    "fizzbuzz(5)": ["1", "2", "Fizz", "4", "Buzz"],
}


def test_functions_give_known_results() -> None:
    for snippet in SNIPPETS:
        scope: dict[str, object] = {}
        exec(snippet.code.replace("DOC", "pass"), scope)
        if snippet.call in ORACLE_CALLS:
            assert eval(snippet.call, scope) == ORACLE_CALLS[snippet.call]
        exec(f"def {snippet.name}{snippet.types}:\n    pass", {})


def test_parametric_functions_run() -> None:
    rng = random.Random(0)
    for _ in range(300):
        _, code, call, _ = parametric(rng)
        scope: dict[str, object] = {"print": lambda *_: None}
        exec(code, scope)
        eval(call, scope)


def test_the_word_frequency_program_counts(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    exec(WORD_FREQUENCY_CODE, scope)
    assert capsys.readouterr().out.splitlines() == ["the 3", "dog 2", "cat 1", "saw 1", "ran 1"]
    assert scope["word_frequency"]("It's, it's a b.") == {"it's": 2, "a": 1, "b": 1}


def test_the_two_example_prompts_are_trained_on_and_right() -> None:
    assert not any(map(held_out, PINNED))
    rng = random.Random(0)
    found = {
        s.messages[0]["content"]: s.messages[1]["content"] for s in (pinned(rng) for _ in range(20))
    }
    assert found[RECTANGLE].endswith("12 × 7 = 84\nThe area is 84.")
    assert "Counter" in found["Write a program to count the frequency of each word in a paragraph."]


def test_the_demo_says_what_it_is() -> None:
    told = {reply for sample in samples("about itself") for reply in replies(sample)}
    assert any("demo" in reply and "few million parameters" in reply for reply in told)
    assert any("orthrus-mlx chat --model chiennv/Orthrus-Qwen3-1.7B" in reply for reply in told)


def test_free_text_varies() -> None:
    for name in ("stories", "letters"):
        told = [replies(sample)[0] for sample in samples(name)]
        assert len(set(told)) == len(told)
    sentences = {s for sample in samples("stories") for s in replies(sample)[0].split(". ")}
    assert len(sentences) > 1000
