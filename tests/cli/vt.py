"""A terminal of few words: enough of one to see what a person would see."""

import re

_SEQUENCE = re.compile(
    r"\x1b\[(?P<args>[?0-9;]*)(?P<final>[@-~])"  # CSI
    r"|\x1b\].*?(?:\x07|\x1b\\)"  # OSC
    r"|\x1b[()].|\x1b[=>78A-Z]",
    re.DOTALL,
)


class Terminal:
    """Keeps the characters on a screen high enough that nothing scrolls away."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.rows = [[" "] * width for _ in range(height)]
        self.x = self.y = 0
        self._rest = ""  # the start of a sequence that is still coming

    def feed(self, text: str) -> None:
        """Take output, with line breaks as a terminal gets them (CR LF)."""
        text, self._rest = self._rest + text, ""
        at = 0
        while at < len(text):
            if text[at] != "\x1b":
                self._put(text[at])
                at += 1
                continue
            match = _SEQUENCE.match(text, at)
            if match is None:
                self._rest = text[at:]
                return
            if match["final"]:
                self._control(match["final"], match["args"])
            at = match.end()

    def lines(self) -> list[str]:
        """What stands on the screen, without the blank lines at its end."""
        lines = ["".join(row).rstrip() for row in self.rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _put(self, c: str) -> None:
        if c == "\r":
            self.x = 0
        elif c == "\n":
            self.y += 1
        elif c == "\b":
            self.x = max(self.x - 1, 0)
        elif c >= " ":
            if self.x == self.width:
                self.x, self.y = 0, self.y + 1
            self.rows[self.y][self.x] = c
            self.x += 1

    def _control(self, final: str, args: str) -> None:
        if args.startswith("?"):  # modes
            return
        numbers = [int(n) if n else 0 for n in args.split(";")]
        n = max(numbers[0], 1)
        match final:
            case "A":
                self.y = max(self.y - n, 0)
            case "B":
                self.y += n
            case "C":
                self.x = min(self.x + n, self.width - 1)
            case "D":
                self.x = max(self.x - n, 0)
            case "G":
                self.x = n - 1
            case "H":
                self.y, self.x = n - 1, max(numbers[-1], 1) - 1 if len(numbers) > 1 else 0
            case "K":
                start, end = {0: (self.x, self.width), 1: (0, self.x + 1), 2: (0, self.width)}[
                    numbers[0]
                ]
                self.rows[self.y][start:end] = [" "] * (end - start)
            case "J":
                last = self.y if numbers[0] == 0 else 0
                if numbers[0] == 0:
                    self._control("K", "0")
                    last = self.y + 1
                for y in range(last, len(self.rows)):
                    self.rows[y] = [" "] * self.width
            case "m":
                pass
            case _:
                raise NotImplementedError(f"CSI {args}{final}")
