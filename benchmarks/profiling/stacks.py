"""What a sampling profiler has seen: stacks of frames, and how often each was there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FRAME: Final = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(:(?P<line>\d+))?\)")
_THREAD: Final = re.compile(r"thread \((?P<id>[^)]*)\)(: (?P<name>.*))?")
_PROCESS: Final = re.compile(r'process \d+:"')
_MAIN: Final = "MainThread"


class Frame(NamedTuple):
    """One call.

    Attributes:
        function: its name, qualified where it is Python's; an address where it has none.
        file: of the source, shortened, or of the library.
    """

    function: str
    file: str

    @property
    def is_python(self) -> bool:
        """Whether it is a function of Python, and not of a library."""
        return self.file.endswith(".py") or self.file.startswith("<")


class Stack(NamedTuple):
    """The calls in which a thread was seen.

    Attributes:
        process: command line of a process that was started; empty for the one looked at.
        thread: the thread's name.
        frames: the outermost first.
        sample_count: how often it was seen.
    """

    process: str
    thread: str
    frames: tuple[Frame, ...]
    sample_count: int

    @property
    def is_main(self) -> bool:
        """Whether it is of the thread that runs the rounds."""
        return not self.process and self.thread == _MAIN

    def has(self, function: str) -> bool:
        """Whether a function of this name is among the calls."""
        return any(frame.function == function for frame in self.frames)


def parse(lines: Iterable[str]) -> Iterator[Stack]:
    """Read stacks as py-spy's format ``raw`` has them, with threads (``--threads``).

    Each line has the frames from the outermost on, with semicolons between, and a count.
    """
    for line in lines:
        path, _, count = line.rstrip().rpartition(" ")
        yield _stack(path.split(";"), int(count))


def _stack(parts: list[str], count: int) -> Stack:
    processes, thread, frames = [], "", []
    for part in parts:
        if _PROCESS.match(part):
            processes.append(part.partition(":")[2].strip('"'))
        elif found := _THREAD.fullmatch(part):
            thread = found["name"] or found["id"]
        else:
            frames.append(_frame(part))
    # Each process stands below the one that has started it.
    return Stack(processes[-1] if len(processes) > 1 else "", thread, tuple(frames), count)


def _frame(text: str) -> Frame:
    found = _FRAME.fullmatch(text)
    return Frame(found["function"], found["file"]) if found else Frame(text, "")
