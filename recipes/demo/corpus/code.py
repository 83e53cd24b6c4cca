"""Requests for short Python functions, with follow-ups about them."""

import json
import random
from functools import lru_cache

from .core import Answer, Sample, chat, key, kind, roughen, upper_first
from .snippets import SNIPPETS, Snippet
from .words import ANIMALS, COLORS, FRUITS

FORMS = (
    "Write a Python function to {w}.",
    "Write a function to {w}.",
    "Write a program to {w}.",
    "Can you write Python code to {w}?",
    "I need a Python function to {w}.",
    "How do I {w} in Python?",
    "Show me Python code to {w}.",
    "Please write a short function to {w}.",
    "Give me a function to {w} in Python.",
    "python function to {w}",
    "Code to {w}, please.",
    "Help me {w} in Python.",
    "Write some Python to {w}.",
    "How can I {w} with Python?",
    "Write a Python program to {w}.",
    "Implement a function to {w}.",
)
WORD_FREQUENCY = (
    "count the frequency of each word in a paragraph",
    "count how often each word occurs in a text",
    "count word frequencies in a paragraph",
    "find the frequency of every word in a text",
    "count the words of a paragraph by frequency",
    "compute word counts for a paragraph",
    "count each word in a paragraph",
)
WORD_FREQUENCY_CODE = '''import re
from collections import Counter


def word_frequency(paragraph):
    """Count how often each word occurs in a paragraph."""
    words = re.findall(r"[a-z0-9']+", paragraph.lower())
    return Counter(words)


paragraph = "The cat saw the dog. The dog ran."
for word, count in word_frequency(paragraph).most_common():
    print(word, count)'''
WORD_FREQUENCY_REPLY = (
    f"```python\n{WORD_FREQUENCY_CODE}\n```\n"
    "The text is split into words in lower case, a Counter counts them, and the words are "
    "printed from the most to the least frequent."
)
WORD_FREQUENCY_CALLS = (('dict(word_frequency("A b, a!"))', "{'a': 2, 'b': 1}"),)
PINNED_PROMPT = "Write a program to count the frequency of each word in a paragraph."


def _documented(snippet: Snippet) -> str:
    return snippet.code.replace("DOC", f'"""{snippet.doc}"""')


def _bare(snippet: Snippet) -> str:
    return snippet.code.replace("    DOC\n", "")


def _typed(snippet: Snippet) -> str:
    _, rest = _documented(snippet).split("\n", 1)
    return f"def {snippet.name}{snippet.types}:\n{rest}"


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


@lru_cache(maxsize=4096)
def _result(code: str, call: str) -> str:
    scope: dict[str, object] = {}
    exec(code, scope)
    return repr(eval(call, scope))


def _explained(code: str, call: str) -> str:
    return f"{_fenced(code)}\nFor example, `{call}` returns `{_result(code, call)}`."


def _checks(code: str, *calls: str) -> Answer:
    return Answer("python", json.dumps([[call, _result(code, call)] for call in calls]))


def parametric(rng: random.Random) -> tuple[str, str, str, str]:
    """A function with a number or a word in it: wish, code, call, values."""
    k, n = rng.randint(2, 99), rng.randint(2, 9)
    word = rng.choice(rng.choice((FRUITS, ANIMALS, COLORS)))
    rows = (
        (f"add {k} to each number in a list", f"add_{k}", "numbers", f"Add {k} to each number.",
         f"return [number + {k} for number in numbers]", "([1, 2])"),
        (f"multiply each number in a list by {k}", f"times_{k}", "numbers",
         f"Multiply each number by {k}.", f"return [number * {k} for number in numbers]",
         "([1, 2])"),
        (f"keep the numbers greater than {k}", f"above_{k}", "numbers",
         f"Keep the numbers greater than {k}.",
         f"return [number for number in numbers if number > {k}]", f"([1, {k}, 100])"),
        (f"count the numbers smaller than {k}", f"count_below_{k}", "numbers",
         f"Count the numbers smaller than {k}.",
         f"return sum(number < {k} for number in numbers)", "([1, 200])"),
        (f"check if a number is divisible by {k}", f"divisible_by_{k}", "n",
         f"Tell whether a number is divisible by {k}.", f"return n % {k} == 0", f"({k})"),
        (f"list the multiples of {k} up to a limit", f"multiples_of_{k}", "limit",
         f"List the multiples of {k} up to a limit.",
         f"return list(range({k}, limit + 1, {k}))", "(100)"),
        (f'count how often "{word}" is in a list', f"count_{word}", "words",
         f'Count how often "{word}" is in a list.', f'return words.count("{word}")',
         f'(["{word}"])'),
        (f'check if a text contains "{word}"', f"has_{word}", "text",
         f'Tell whether a text contains "{word}".', f'return "{word}" in text.lower()',
         f'("One {word}")'),
        (f"keep the words longer than {n} letters", f"longer_than_{n}", "words",
         f"Keep the words longer than {n} letters.",
         f"return [word for word in words if len(word) > {n}]", '(["a", "elephantine"])'),
        (f"get the first {k} items of a list", f"first_{k}", "items",
         f"Return the first {k} items.", f"return items[:{k}]", "([1])"),
        (f"repeat a text {k} times", f"repeat_{k}", "text",
         f"Repeat a text {k} times.", f"return text * {k}", '("")'),
        (f"print the numbers from 1 to {k}", f"count_to_{k}", "",
         f"Print the numbers from 1 to {k}.",
         f"for number in range(1, {k + 1}):\n        print(number)", "()"),
        (f'print "{word}" {k} times', f"print_{word}", "",
         f'Print "{word}" {k} times.', f'for _ in range({k}):\n        print("{word}")', "()"),
        (f"get every {n}th item of a list".replace("2th", "2nd").replace("3th", "3rd"),
         f"every_{n}", "items", f"Return one of every {n} items.", f"return items[::{n}]",
         "([1, 2])"),
    )  # fmt: skip
    wish, name, arguments, doc, body, call = rng.choice(rows)
    code = f'def {name}({arguments}):\n    """{doc}"""\n    {body}'
    return wish, code, name + call, f"{name}|{k if 'print' in wish else ''}"


def _parametric_sample(rng: random.Random) -> Sample:
    wish, code, call, values = parametric(rng)
    question = roughen(rng, rng.choice(FORMS).format(w=wish), lower=False)
    problem = (key("code_with", values),)
    if call.endswith("()"):
        reply = _fenced(code)
        return Sample(chat(question, reply), problem, Answer("exact", reply))
    return Sample(chat(question, _explained(code, call)), problem, _checks(code, call))


def word_frequency(rng: random.Random, *, pinned: bool = False) -> Sample:
    """The second example prompt of the paper's README, and its paraphrases."""
    if pinned:
        question, problem = PINNED_PROMPT, "code:word_frequency|pinned"
    else:
        form, wish = rng.randrange(len(FORMS)), rng.randrange(len(WORD_FREQUENCY))
        question = FORMS[form].format(w=WORD_FREQUENCY[wish])
        problem = f"code:word_frequency|{form}|{wish}"
        if question == PINNED_PROMPT:
            problem = "code:word_frequency|pinned"
        question = roughen(rng, question)
    answer = Answer("python", json.dumps(WORD_FREQUENCY_CALLS))
    return Sample(chat(question, WORD_FREQUENCY_REPLY), (problem,), answer)


def _follow_up(rng: random.Random, snippet: Snippet) -> tuple[str, str, str]:
    choice = rng.randrange(3)
    if choice == 0:
        forms = ("add type hints", "Now with type hints.", "Can you add types?", "Add type hints.")
        return rng.choice(forms), _fenced(_typed(snippet)), "types"
    if choice == 1:
        forms = ("How do I call it?", "show me how to use it", "Give me an example call.")
        text = (
            f"Call it like this:\n{_fenced(f'print({snippet.call})')}\n"
            f"It prints `{_printed(snippet)}`."
        )
        return rng.choice(forms), text, "call"
    name = rng.choice(("solve", "run", "compute", "helper", "answer", "my_function"))
    forms = (f"call it {name}", f"Rename it to {name}.", f"Name the function {name}, please.")
    code = _documented(snippet).replace(f"def {snippet.name}(", f"def {name}(")
    return rng.choice(forms), _fenced(code), f"rename {name}"


def _printed(snippet: Snippet) -> str:
    value = _result(_documented(snippet), snippet.call)
    return value[1:-1] if value.startswith("'") else value


@kind("python", 8)
def python(rng: random.Random) -> Sample:
    """A function, at times with a follow-up: docstring, types, a call, another name."""
    roll = rng.random()
    if roll < 0.35:
        return _parametric_sample(rng)
    if roll < 0.43:
        return word_frequency(rng, pinned=rng.random() < 0.25)
    snippet = rng.choice(SNIPPETS)
    form, wish = rng.randrange(len(FORMS)), rng.randrange(len(snippet.wishes))
    question = FORMS[form].format(w=snippet.wishes[wish])
    problem = f"code:{snippet.name}|{form}|{wish}"
    if rng.random() < 0.15:
        question = f"{question.rstrip('.?')}, without a docstring."
        bare = _fenced(_bare(snippet))
        turns, keys = [roughen(rng, question, lower=False), bare], [problem + "|bare"]
        answer = _checks(_bare(snippet), snippet.call)
        if rng.random() < 0.6:
            request = rng.choice(
                ("add a docstring", "Now add a docstring.", "Add a docstring, please.")
            )
            turns += [request, _fenced(_documented(snippet))]
            keys.append(f"{problem}|docstring")
            answer = Answer("exact", turns[-1])
        return Sample(chat(*turns), tuple(keys), answer)
    code = _documented(snippet)
    turns = [roughen(rng, question, lower=False), _explained(code, snippet.call)]
    if rng.random() < 0.3:
        request, reply, what = _follow_up(rng, snippet)
        turns += [roughen(rng, upper_first(request)), reply]
        answer = Answer("exact", reply)
        return Sample(chat(*turns), (problem, f"{problem}|{what}"), answer)
    return Sample(chat(*turns), (problem,), _checks(code, snippet.call))
