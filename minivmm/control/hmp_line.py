"""Line: one line that the human monitor understands, and how its arguments are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minivmm.control.face import Context


class BadLine(Exception):
    """The arguments of a line are not understood; `str()` is QEMU's wording."""


@dataclass(frozen=True)
class Line:
    """A line: its names, what it is for, its function, and its parameters.

    A parameter written `[path]` may be left out, one written `queue:number` is an integer; all
    others are texts. With `flag` the line takes that word before its arguments, and the function
    gets `flag=True`.
    """

    names: tuple[str, ...]
    help: str
    function: Callable[..., Iterable[str]]
    parameters: tuple[str, ...] = ()
    flag: str = ""

    @property
    def usage(self) -> str:
        """`stop|s  -- stop emulation`: as `help` shows it."""
        words = [parameter.removesuffix(":number") for parameter in self.parameters]
        flags = [f"[{self.flag}]"] if self.flag else []
        return f"{' '.join(['|'.join(self.names), *flags, *words])} -- {self.help}"

    def run(self, context: Context, words: Sequence[str]) -> Iterable[str]:
        """Read `words` and do it; returns the lines to print. Raises BadLine and what it raises."""
        options = {}
        if self.flag and words and words[0] == self.flag:
            options, words = {"flag": True}, words[1:]
        if len(words) > len(self.parameters):
            raise BadLine(f"{'|'.join(self.names)}: extraneous characters at the end of line")
        needed = [one for one in self.parameters if not one.startswith("[")]
        if len(words) < len(needed):
            number = needed[len(words)].endswith(":number")
            name = "|".join(self.names)
            raise BadLine("unexpected end of expression" if number else f"{name}: string expected")
        pairs = zip(self.parameters, words, strict=False)
        values = [read_number(word) if ":number" in one else word for one, word in pairs]
        return self.function(context, *values, **options)


def truth(value: bool) -> str:
    """As QEMU's monitor writes it."""
    return "true" if value else "false"


def read_number(word: str) -> int:
    """An integer, decimal or 0x... Raises BadLine."""
    try:
        return int(word, 0)
    except ValueError:
        bad = next((char for char in word if not char.isdigit()), word[:1])
        raise BadLine(f"invalid char '{bad}' in expression") from None
