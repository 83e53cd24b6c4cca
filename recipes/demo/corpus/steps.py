"""Worked arithmetic in steps small enough for a small model: each line changes two digits."""


def add(a: int, b: int) -> list[str]:
    """Lines that add b to a, its hundreds first, then the rest."""
    if min(a, b) < 100 or b % 100 == 0:
        return [f"{a} + {b} = {a + b}"]
    high = b // 100 * 100
    return [f"{a} + {high} = {a + high}", f"{a + high} + {b - high} = {a + b}"]


def subtract(a: int, b: int) -> list[str]:
    """Lines that take b from a, its hundreds first, then the rest."""
    if b < 100 or b % 100 == 0:
        return [f"{a} - {b} = {a - b}"]
    high = b // 100 * 100
    return [f"{a} - {high} = {a - high}", f"{a - high} - {b - high} = {a - b}"]


def total(numbers: list[int]) -> list[str]:
    """Lines that add the numbers from left to right."""
    lines, running = [], numbers[0]
    for number in numbers[1:]:
        lines += add(running, number)
        running += number
    return lines


def multiply(a: int, b: int) -> list[str]:
    """Lines of partial products, for factors of 2 and 2 or 3 and 1 digits, or a round one."""
    high, low = max(a, b), min(a, b)
    direct = [f"{high} × {low} = {high * low}"]
    if high in (100, 1000) or low in (10, 100, 1000) or (high < 100 and low < 10):
        return direct
    if low < 10:
        hundreds, rest = high // 100 * 100, high % 100
        if not rest:
            return direct
        first, second = hundreds * low, rest * low
        return [
            f"{hundreds} × {low} = {first}",
            f"{rest} × {low} = {second}",
            *add(first, second),
        ]
    if high >= 100:
        raise ValueError(f"{a} × {b} is too large for worked steps")
    tens, ones = low // 10 * 10, low % 10
    if not ones:
        return direct
    return [
        f"{high} × {tens} = {high * tens}",
        f"{high} × {ones} = {high * ones}",
        *add(high * tens, high * ones),
    ]


def divide(a: int, b: int) -> list[str]:
    """Long division by one digit, one line for each digit of the quotient."""
    lines, rest = [], 0
    for digit in str(a):
        current = rest * 10 + int(digit)
        rest = current % b
        if current >= b or lines:
            lines.append(f"{current} ÷ {b} = {current // b} remainder {rest}")
    if len(lines) < 2:
        lines = []
    whole = f"{a} ÷ {b} = {a // b}"
    return [*lines, whole if a % b == 0 else f"{whole} remainder {a % b}"]
