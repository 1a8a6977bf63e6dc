"""Flame graphs."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from support.profiling_stacks import FSYNC, worker

from benchmarks.profiling.flame import labels_of, merge, picture, shortened

WRITE = (
    "Builder.build (bbcache/prepare/builder.py:1);"
    "_Compressor._compress (bbcache/archive/format.py:2)"
)
STACKS = [
    worker(f"Thread.run (threading.py:9);{WRITE};0x7f (isal/zlib.so);0x80 (isal/zlib.so)", 60),
    worker(f"Builder.build (bbcache/prepare/builder.py:7);{FSYNC};fsync (libc.so.6)", 30),
    worker("Builder.build (bbcache/prepare/builder.py:7)", 10),
]


def test_calls_are_shown_from_bbcache_on() -> None:
    """Each once; what has no name is shown as its package, or not at all."""
    assert labels_of(STACKS[0].frames) == ["Builder.build", "_Compressor._compress", "(isal)"]
    nameless = worker(f"{FSYNC};0x7f (libc.so.6)", 1)
    assert labels_of(nameless.frames) == ["TempFile.sync", "os_fsync"]


def test_equal_calls_are_one_box() -> None:
    """As wide as all of them, in the colour of what nearly all of it was spent on."""
    root = merge(STACKS)
    (build,) = root.children.values()
    assert (root.count, build.count, build.kind) == (100, 100, "mixed")
    kinds = {label: (node.count, node.kind) for label, node in build.children.items()}
    assert kinds == {"_Compressor._compress": (60, "codec"), "TempFile.sync": (30, "kernel")}
    assert root.depth(1) == 4
    assert root.depth(50) == 3


def test_the_picture_has_neither_script_nor_link() -> None:
    """It is well-formed, escapes what it is given, and names each call with its share."""
    text = picture("a <b> & c", [*STACKS, worker("f.<locals>.<lambda> (bbcache/x.py:1)", 100)])
    root = ET.fromstring(text)  # noqa: S314 - made here
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names == {"svg", "style", "rect", "text", "title"}
    assert "href" not in text
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "f.<locals>.<lambda> 50.0%" in titles
    assert "(isal) 30.0%" in titles


def test_a_label_is_cut_to_its_end() -> None:
    """The last part of a name is what tells it from others."""
    assert shortened("Builder.build", 20) == "Builder.build"
    assert shortened("Builder.build", 8) == "build"
    assert shortened("Builder.build_all", 6) == "build…"
