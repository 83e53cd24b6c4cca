"""The fixed Python functions that the demo can write, each with an example call."""
# ruff: noqa: E501

from typing import NamedTuple


class Snippet(NamedTuple):
    """A function, the ways to ask for it, and a call that shows its use."""

    name: str
    wishes: tuple[str, ...]
    doc: str
    code: str  # the whole function; DOC marks the docstring's place
    call: str
    types: str  # the signature with type hints


def _s(name: str, wishes: str, doc: str, types: str, body: str, call: str) -> Snippet:
    lines = "\n".join("    " + line if line else "" for line in body.strip("\n").split("\n"))
    arguments = types[: types.index(" ->")] if " ->" in types else types
    plain = ", ".join(
        part.split(":")[0].strip() for part in _split_arguments(arguments.strip("()"))
    )
    code = f"def {name}({plain}):\n    DOC\n{lines}"
    return Snippet(name, tuple(wishes.split("|")), doc, code, call, types)


def _split_arguments(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


SNIPPETS: tuple[Snippet, ...] = (
    _s("reverse_string", "reverse a string|turn a string around|write a string backwards",
       "Return the text backwards.", "(text: str) -> str",
       "return text[::-1]", 'reverse_string("abc")'),
    _s("is_palindrome", "check if a word is a palindrome|test for palindromes|tell if a text reads the same backwards",
       "Tell whether the text reads the same backwards.", "(text: str) -> bool",
       "text = text.lower()\nreturn text == text[::-1]", 'is_palindrome("Level")'),
    _s("count_vowels", "count the vowels in a string|count vowels|find how many vowels a text has",
       "Count the vowels in a text.", "(text: str) -> int",
       'return sum(letter in "aeiou" for letter in text.lower())', 'count_vowels("banana")'),
    _s("count_words", "count the words in a sentence|count words in a text|find how many words a text has",
       "Count the words in a text.", "(text: str) -> int",
       "return len(text.split())", 'count_words("one two three")'),
    _s("longest_word", "find the longest word in a sentence|get the longest word of a text",
       "Return the longest word of a text.", "(text: str) -> str",
       "return max(text.split(), key=len)", 'longest_word("a tiny elephant")'),
    _s("letter_counts", "count the letters in a word|count how often each letter occurs|count each character of a string",
       "Count how often each letter occurs.", "(text: str) -> dict[str, int]",
       "counts = {}\nfor letter in text:\n    counts[letter] = counts.get(letter, 0) + 1\nreturn counts", 'letter_counts("noon")'),
    _s("capitalize_words", "capitalize each word|make the first letter of every word a capital",
       "Start each word with a capital letter.", "(text: str) -> str",
       'return " ".join(word.capitalize() for word in text.split())', 'capitalize_words("red fox")'),
    _s("remove_spaces", "remove the spaces from a string|strip all spaces from a text",
       "Remove all spaces from a text.", "(text: str) -> str",
       'return text.replace(" ", "")', 'remove_spaces("a b c")'),
    _s("is_even", "check if a number is even|tell if a number is even or not",
       "Tell whether a number is even.", "(n: int) -> bool",
       "return n % 2 == 0", "is_even(4)"),
    _s("is_odd", "check if a number is odd|test for odd numbers",
       "Tell whether a number is odd.", "(n: int) -> bool",
       "return n % 2 == 1", "is_odd(7)"),
    _s("is_prime", "check if a number is prime|test whether a number is a prime|tell if n is prime",
       "Tell whether a number is prime.", "(n: int) -> bool",
       "if n < 2:\n    return False\nfor d in range(2, int(n**0.5) + 1):\n    if n % d == 0:\n        return False\nreturn True", "is_prime(13)"),
    _s("primes_up_to", "list the primes up to n|find all primes up to a limit|print prime numbers up to n",
       "List the primes up to a limit.", "(limit: int) -> list[int]",
       "primes = []\nfor n in range(2, limit + 1):\n    if all(n % p for p in primes):\n        primes.append(n)\nreturn primes", "primes_up_to(12)"),
    _s("factorial", "compute the factorial of a number|calculate a factorial|find n factorial",
       "Return the product of the numbers from 1 to n.", "(n: int) -> int",
       "result = 1\nfor i in range(2, n + 1):\n    result *= i\nreturn result", "factorial(5)"),
    _s("fibonacci", "compute the first n Fibonacci numbers|list Fibonacci numbers|make the Fibonacci sequence",
       "Return the first n Fibonacci numbers.", "(n: int) -> list[int]",
       "numbers = []\na, b = 0, 1\nfor _ in range(n):\n    numbers.append(a)\n    a, b = b, a + b\nreturn numbers", "fibonacci(7)"),
    _s("gcd", "find the greatest common divisor of two numbers|compute the gcd of two numbers",
       "Return the greatest common divisor.", "(a: int, b: int) -> int",
       "while b:\n    a, b = b, a % b\nreturn a", "gcd(12, 18)"),
    _s("lcm", "find the least common multiple of two numbers|compute the lcm of two numbers",
       "Return the least common multiple.", "(a: int, b: int) -> int",
       "x, y = a, b\nwhile y:\n    x, y = y, x % y\nreturn a * b // x", "lcm(4, 6)"),
    _s("digit_sum", "add the digits of a number|compute the sum of the digits of a number",
       "Add the digits of a number.", "(n: int) -> int",
       "return sum(int(digit) for digit in str(n))", "digit_sum(123)"),
    _s("sum_list", "add the numbers in a list|sum a list of numbers|compute the sum of a list",
       "Add the numbers in a list.", "(numbers: list[int]) -> int",
       "total = 0\nfor number in numbers:\n    total += number\nreturn total", "sum_list([1, 2, 3])"),
    _s("average", "compute the average of a list|find the mean of a list of numbers|calculate the average",
       "Return the mean of the numbers.", "(numbers: list[float]) -> float",
       "return sum(numbers) / len(numbers)", "average([2, 4, 6])"),
    _s("largest", "find the largest number in a list|get the maximum of a list|find the biggest number",
       "Return the largest number.", "(numbers: list[int]) -> int",
       "best = numbers[0]\nfor number in numbers:\n    if number > best:\n        best = number\nreturn best", "largest([3, 9, 5])"),
    _s("smallest", "find the smallest number in a list|get the minimum of a list",
       "Return the smallest number.", "(numbers: list[int]) -> int",
       "best = numbers[0]\nfor number in numbers:\n    if number < best:\n        best = number\nreturn best", "smallest([3, 9, 5])"),
    _s("median", "find the median of a list|compute the median of some numbers",
       "Return the middle value of the numbers.", "(numbers: list[float]) -> float",
       "ordered = sorted(numbers)\nmiddle = len(ordered) // 2\nif len(ordered) % 2:\n    return ordered[middle]\nreturn (ordered[middle - 1] + ordered[middle]) / 2", "median([5, 1, 3])"),
    _s("remove_duplicates", "remove duplicates from a list|keep each item of a list once|dedupe a list",
       "Keep each item once, in order.", "(items: list) -> list",
       "return list(dict.fromkeys(items))", "remove_duplicates([1, 2, 1])"),
    _s("reverse_list", "reverse a list|turn a list around",
       "Return the items in reverse order.", "(items: list) -> list",
       "return items[::-1]", "reverse_list([1, 2, 3])"),
    _s("sort_by_length", "sort words by length|order a list of words by their length",
       "Sort words from short to long.", "(words: list[str]) -> list[str]",
       "return sorted(words, key=len)", 'sort_by_length(["pear", "fig"])'),
    _s("bubble_sort", "sort a list without using sort|write bubble sort|implement bubble sort",
       "Sort a list by swapping neighbors.", "(items: list[int]) -> list[int]",
       "items = list(items)\nfor end in range(len(items) - 1, 0, -1):\n    for i in range(end):\n        if items[i] > items[i + 1]:\n            items[i], items[i + 1] = items[i + 1], items[i]\nreturn items", "bubble_sort([3, 1, 2])"),
    _s("binary_search", "search a sorted list|implement binary search|find an item in a sorted list",
       "Return the index of the target, or -1.", "(items: list[int], target: int) -> int",
       "low, high = 0, len(items) - 1\nwhile low <= high:\n    middle = (low + high) // 2\n    if items[middle] == target:\n        return middle\n    if items[middle] < target:\n        low = middle + 1\n    else:\n        high = middle - 1\nreturn -1", "binary_search([1, 4, 9], 9)"),
    _s("flatten", "flatten a list of lists|turn nested lists into one list",
       "Join the inner lists into one.", "(lists: list[list]) -> list",
       "return [item for inner in lists for item in inner]", "flatten([[1, 2], [3]])"),
    _s("merge_dicts", "merge two dictionaries|combine two dicts",
       "Join two dictionaries; the second wins.", "(a: dict, b: dict) -> dict",
       "return {**a, **b}", 'merge_dicts({"a": 1}, {"b": 2})'),
    _s("invert_dict", "swap the keys and values of a dictionary|invert a dictionary",
       "Swap keys and values.", "(data: dict) -> dict",
       "return {value: key for key, value in data.items()}", 'invert_dict({"a": 1})'),
    _s("common_items", "find the common items of two lists|get the items that two lists share",
       "Return the items that are in both lists.", "(a: list, b: list) -> list",
       "return [item for item in a if item in b]", "common_items([1, 2, 3], [2, 3, 4])"),
    _s("chunks", "split a list into chunks|cut a list into parts of size n",
       "Cut a list into parts of a given size.", "(items: list, size: int) -> list[list]",
       "return [items[i : i + size] for i in range(0, len(items), size)]", "chunks([1, 2, 3], 2)"),
    _s("transpose", "transpose a matrix|swap rows and columns of a matrix",
       "Swap the rows and columns of a matrix.", "(matrix: list[list]) -> list[list]",
       "return [list(row) for row in zip(*matrix)]", "transpose([[1, 2], [3, 4]])"),
    _s("fizzbuzz", "play FizzBuzz|write FizzBuzz|solve FizzBuzz up to n",
       "Return the FizzBuzz words up to n.", "(n: int) -> list[str]",
       'words = []\nfor i in range(1, n + 1):\n    word = "Fizz" * (i % 3 == 0) + "Buzz" * (i % 5 == 0)\n    words.append(word or str(i))\nreturn words', "fizzbuzz(5)"),
    _s("to_celsius", "convert Fahrenheit to Celsius|turn Fahrenheit into Celsius",
       "Convert Fahrenheit to Celsius.", "(fahrenheit: float) -> float",
       "return (fahrenheit - 32) * 5 / 9", "to_celsius(212)"),
    _s("to_fahrenheit", "convert Celsius to Fahrenheit|turn Celsius into Fahrenheit",
       "Convert Celsius to Fahrenheit.", "(celsius: float) -> float",
       "return celsius * 9 / 5 + 32", "to_fahrenheit(100)"),
    _s("rectangle_area", "compute the area of a rectangle|find the area of a rectangle",
       "Return the area of a rectangle.", "(length: float, width: float) -> float",
       "return length * width", "rectangle_area(12, 7)"),
    _s("circle_area", "compute the area of a circle|find the area of a circle",
       "Return the area of a circle.", "(radius: float) -> float",
       "return 3.14159 * radius**2", "circle_area(2)"),
    _s("is_leap_year", "check for leap years|tell if a year is a leap year",
       "Tell whether a year is a leap year.", "(year: int) -> bool",
       "return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)", "is_leap_year(2024)"),
    _s("swap_case", "swap upper and lower case|swap the case of each letter",
       "Swap upper and lower case.", "(text: str) -> str",
       "return text.swapcase()", 'swap_case("Abc")'),
    _s("is_anagram", "check if two words are anagrams|tell if two words have the same letters",
       "Tell whether two words have the same letters.", "(a: str, b: str) -> bool",
       "return sorted(a.lower()) == sorted(b.lower())", 'is_anagram("listen", "silent")'),
    _s("power", "raise a number to a power|compute powers without the ** operator",
       "Multiply the base n times.", "(base: int, n: int) -> int",
       "result = 1\nfor _ in range(n):\n    result *= base\nreturn result", "power(2, 5)"),
    _s("to_binary", "convert a number to binary|write a number in binary",
       "Write a number in binary digits.", "(n: int) -> str",
       'digits = ""\nwhile n > 0:\n    digits = str(n % 2) + digits\n    n //= 2\nreturn digits or "0"', "to_binary(10)"),
    _s("running_total", "make running totals of a list|compute the cumulative sum of a list",
       "Return the sums of the first 1, 2, 3, ... numbers.", "(numbers: list[int]) -> list[int]",
       "totals = []\ntotal = 0\nfor number in numbers:\n    total += number\n    totals.append(total)\nreturn totals", "running_total([1, 2, 3])"),
    _s("make_acronym", "make an acronym from a phrase|build an acronym",
       "Join the first letters of the words.", "(phrase: str) -> str",
       'return "".join(word[0].upper() for word in phrase.split())', 'make_acronym("as soon as possible")'),
    _s("group_by_first_letter", "group words by their first letter|sort words into groups by first letter",
       "Collect words under their first letter.", "(words: list[str]) -> dict[str, list[str]]",
       "groups = {}\nfor word in words:\n    groups.setdefault(word[0], []).append(word)\nreturn groups", 'group_by_first_letter(["fig", "fox"])'),
)  # fmt: skip
