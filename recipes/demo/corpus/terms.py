"""Simple explanations of terms."""
# ruff: noqa: E501

import random

from .core import Answer, Sample, chat, kind, roughen, upper_first
from .words import a

FORMS = (
    "What is {t}?",
    "Explain {t}.",
    "What does {b} mean?",
    "Define {b}.",
    "Can you explain what {t} is?",
    "Tell me what {t} is.",
    "what's {t}?",
    "Explain {b} in simple words.",
    "Give me a definition of {b}.",
    "What do people mean by {b}?",
    "How would you explain {t} to a child?",
    "Please explain the word {b}.",
    "I don't know what {t} is. Can you explain?",
    "describe {t}",
)
# Terms that take an article, then terms that do not.
COUNTED = {
    "rectangle": "A rectangle is a shape with four sides and four right angles. Opposite sides have the same length.",
    "square": "A square is a rectangle whose four sides all have the same length.",
    "triangle": "A triangle is a shape with three sides and three angles. The angles add up to 180 degrees.",
    "circle": "A circle is a round shape. Every point on it is equally far from the center.",
    "perimeter": "The perimeter is the length of the line around a shape. You find it by adding all the sides.",
    "diameter": "The diameter is the distance across a circle through its center. It is twice the radius.",
    "radius": "The radius is the distance from the center of a circle to its edge. It is half the diameter.",
    "prime number": "A prime number is a whole number above 1 that only 1 and itself divide, such as 2, 3, 5 and 7.",
    "even number": "An even number can be divided by 2 with nothing left over, such as 2, 4 and 6.",
    "odd number": "An odd number leaves a remainder of 1 when it is divided by 2, such as 1, 3 and 5.",
    "fraction": "A fraction is a part of a whole, written as one number over another. One half is 1/2.",
    "remainder": "A remainder is what is left over after a division. 7 divided by 2 is 3 remainder 1.",
    "average": "An average is the sum of some numbers divided by how many there are.",
    "discount": "A discount is an amount taken off a price. With 10% off, a price of $50 becomes $45.",
    "sequence": "A sequence is a list of numbers in order, often made by a rule such as adding 2 each time.",
    "function": "A function is a named piece of code. It takes inputs, does its work and returns a result.",
    "variable": "A variable is a name for a value in a program. The value can change while the program runs.",
    "loop": "A loop repeats a piece of code, either a fixed number of times or as long as a condition holds.",
    "list": "A list is a sequence of values in order. In Python it is written in square brackets: [1, 2, 3].",
    "dictionary": "A dictionary stores values under keys, so that you can look up a value by its key.",
    "string": "A string is a piece of text in a program, written between quotes.",
    "docstring": "A docstring is a text at the start of a function that says what the function does.",
    "bug": "A bug is a mistake in a program that makes it do something wrong.",
    "computer": "A computer is a machine that follows instructions to store and change information.",
    "program": "A program is a list of instructions that a computer follows step by step.",
    "token": "A token is a small piece of text, such as a word or a part of a word. Language models read and write tokens.",
    "language model": "A language model is a program that predicts the next piece of text. It learns this from many examples.",
    "tokenizer": "A tokenizer cuts text into tokens and turns tokens back into text.",
    "table": "A table shows data in rows and columns, so that it is easy to compare.",
    "letter": "A letter is a written message to somebody, with a greeting, a text and a name at the end.",
    "calendar": "A calendar shows the days, weeks and months of a year.",
    "budget": "A budget is a plan for money: how much comes in and how much is spent on what.",
    "receipt": "A receipt is a piece of paper that shows what you bought and what you paid.",
    "recipe": "A recipe is a list of ingredients and steps for cooking a dish.",
    "map": "A map is a drawing of a place from above. It shows where things are.",
    "lighthouse": "A lighthouse is a tower with a bright light that guides ships at night.",
    "bridge": "A bridge carries a road or a path over water or over another road.",
    "library": "A library is a place where you can read and borrow books.",
    "garden": "A garden is a piece of land where people grow flowers, fruit or vegetables.",
    "clock": "A clock is a machine that shows the time with hands or with numbers.",
}  # fmt: skip
PLAIN = {
    "area": "Area is the size of a surface. The area of a rectangle is its length times its width.",
    "volume": "Volume is the space inside a solid. The volume of a box is length times width times height.",
    "addition": "Addition puts numbers together. For example, 2 + 3 = 5.",
    "subtraction": "Subtraction takes one number away from another. For example, 5 - 3 = 2.",
    "multiplication": "Multiplication is adding the same number several times. For example, 3 × 4 = 12.",
    "division": "Division splits a number into equal parts. For example, 12 ÷ 4 = 3.",
    "JSON": "JSON is a text format for data. It writes objects as keys and values in curly brackets.",
    "Markdown": "Markdown is a simple way to format text with plain signs, such as # for a heading.",
    "Python": "Python is a programming language that is known for code that is easy to read.",
    "speed": "Speed says how far something moves in a certain time, such as 60 km per hour.",
    "change": "Change is the money you get back when you pay more than the price.",
    "profit": "Profit is the money that is left when all costs are paid.",
    "friendship": "Friendship is a bond between people who like, trust and help each other.",
    "patience": "Patience is the ability to wait calmly, even when something takes a long time.",
    "courage": "Courage is doing what is right or needed although you are afraid.",
    "parallel decoding": "Parallel decoding drafts several tokens at once and checks them in one pass, so that text comes out faster.",
}  # fmt: skip
TERMS = (*COUNTED, *PLAIN)


@kind("terms", 3)
def terms(rng: random.Random) -> Sample:
    """One term, asked for in one of many ways."""
    term = rng.choice(TERMS)
    form = rng.randrange(len(FORMS))
    article = f"the {term}" if term in ("perimeter", "diameter", "radius") else a(term)
    text = COUNTED.get(term) or PLAIN[term]
    question = FORMS[form].format(t=article if term in COUNTED else term, b=term)
    turns, keys = [roughen(rng, upper_first(question)), text], [f"term:{term}|{form}"]
    return Sample(chat(*turns), tuple(keys), Answer("exact", text))
