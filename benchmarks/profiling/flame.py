"""A flame graph as a picture without scripts: which calls the time was spent in.

Each row is what the row above has called, and as wide as its share of the time. py-spy
writes such pictures itself, but with a script in them, and ten times as large.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Final

from benchmarks.profiling.steps import CODEC, GIL, KERNEL, step_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.profiling.stacks import Frame, Stack

_WIDTH: Final = 1000
_ROW: Final = 18
_EDGE: Final = 10
_HEAD: Final = 48
_LEAST_PX: Final = 3.0
_TEXT_PX: Final = 28.0
_LETTER_PX: Final = 6.4
_NEARLY_ALL: Final = 0.9
_KINDS: Final = {
    "kernel": "the kernel",
    "codec": "compressing and hashing",
    "gil": "waiting for the GIL",
    "python": "Python",
    "mixed": "several of these",
}
_STYLE: Final = """
:root { --ink: #1c1d1f; --paper: #ffffff; --kernel: #9cc9f2; --codec: #a6dcb8; --gil: #f3a8a0;
  --python: #f2d998; --mixed: #e6e7ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --paper: #111315;
  --kernel: #1f5482;
  --codec: #22603a; --gil: #8a3029; --python: #6b5518; --mixed: #2b2d31; } }
text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 14px; font-weight: 600; }
rect { stroke: var(--paper); stroke-width: .7; } .paper { fill: var(--paper); }
.kernel { fill: var(--kernel); } .codec { fill: var(--codec); } .gil { fill: var(--gil); }
.python { fill: var(--python); } .mixed { fill: var(--mixed); }
"""


@dataclass
class Node:
    """A call, and what it has called.

    Attributes:
        count: how often it was seen.
        kinds: how often at work of each kind.
        children: by label.
    """

    count: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, labels: Sequence[str], kind: str, count: int) -> None:
        """Count a stack below this call."""
        node = self
        for label in ("", *labels):
            node = node.children.setdefault(label, Node()) if label else node
            node.count += count
            node.kinds[kind] += count

    @property
    def kind(self) -> str:
        """What nearly all of it was spent on, or ``mixed``."""
        most = max(self.kinds, key=lambda kind: self.kinds[kind])
        return most if self.kinds[most] >= _NEARLY_ALL * self.count else "mixed"

    def depth(self, least_count: float) -> int:
        """How many rows are below, of calls that were seen this often."""
        shown = [child for child in self.children.values() if child.count >= least_count]
        return max((1 + child.depth(least_count) for child in shown), default=0)


def merge(stacks: Iterable[Stack]) -> Node:
    """One tree of all stacks, from the first call of bbcache on."""
    root = Node()
    for stack in stacks:
        root.add(labels_of(stack.frames), _kind_of(step_of(stack)), stack.sample_count)
    return root


def labels_of(frames: Sequence[Frame]) -> list[str]:
    """The calls worth showing: from bbcache's first on, each once.

    Of functions without a name the package is shown, if they belong to one.
    """
    first = next((n for n, frame in enumerate(frames) if _is_beginning(frame)), 0)
    labels: list[str] = []
    for frame in frames[first:]:
        has_name = not frame.function.startswith("0x")
        label = frame.function if has_name else f"({frame.file.partition('/')[0]})"
        if (has_name or "/" in frame.file) and label not in labels[-1:]:
            labels.append(label)
    return labels


def _is_beginning(frame: Frame) -> bool:
    return frame.file.startswith("bbcache/") and not frame.file.startswith("bbcache/bench/")


def _kind_of(step: str) -> str:
    if step.startswith(KERNEL):
        return "kernel"
    if step.startswith(CODEC) or step == "XXH3":
        return "codec"
    return "gil" if step == GIL else "python"


def picture(title: str, stacks: Iterable[Stack]) -> str:
    """The flame graph of some stacks, as an SVG file.

    Args:
        title: above it.
        stacks: one at least.
    """
    root = merge(stacks)
    scale = (_WIDTH - 2 * _EDGE) / root.count
    height = _HEAD + _ROW * root.depth(_LEAST_PX / scale) + _EDGE
    name = escape(title, quote=True)
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{name}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
        f'<text class="title" x="{_EDGE}" y="18">{name}</text>',
        *_legend(),
        *_boxes(root, _EDGE, _HEAD, scale),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _legend() -> Iterator[str]:
    x = _EDGE
    for kind, text in _KINDS.items():
        yield f'<rect class="{kind}" x="{x}" y="26" width="12" height="12"/>'
        yield f'<text x="{x + 17}" y="36">{text}</text>'
        x += 32 + int(len(text) * _LETTER_PX)


def _boxes(node: Node, x: float, y: float, scale: float) -> Iterator[str]:
    ordered = sorted(node.children.items(), key=lambda item: (-item[1].count, item[0]))
    for label, child in ordered:
        width = child.count * scale
        if width < _LEAST_PX:
            break
        share = width / (_WIDTH - 2 * _EDGE)
        yield f'<rect class="{child.kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" '
        yield f'height="{_ROW - 1}"><title>{escape(label)} {share:.1%}</title></rect>'
        if width >= _TEXT_PX:
            text = shortened(label, int((width - 6) / _LETTER_PX))
            yield f'<text x="{x + 3:.1f}" y="{y + 12.5}">{escape(text)}</text>'
        yield from _boxes(child, x, y + _ROW, scale)
        x += width


def shortened(label: str, length: int) -> str:
    """A label in so many letters: the end of a qualified name says more than its beginning."""
    if len(label) <= length:
        return label
    last = label.rpartition(".")[2]
    return last if len(last) <= length else f"{last[: max(1, length - 1)]}…"
