"""The mutants of a module: cosmic-ray's operators, one of our own, and the filters.

Of cosmic-ray's operators `operators` of the settings are used. `DropStatement` is added,
because cosmic-ray deletes nothing: a call for its effect, an assignment to an attribute or
an item, a `del` or a `raise` becomes `pass`.
"""

from __future__ import annotations

import ast
import difflib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DROP_STATEMENT: Final = "DropStatement"
_DROPPED: Final = frozenset(("atom_expr", "power", "del_stmt", "raise_stmt"))
_Span = tuple[tuple[int, int], tuple[int, int]]  # line and column of begin and end


class DropStatement:
    """Replaces a statement that is there for its effect with `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[_Span]:
        """Where `node` is such a statement, its span."""
        if node.parent is None or node.parent.type not in {"simple_stmt", "suite"}:
            return
        if node.type in _DROPPED or (node.type == "expr_stmt" and _changes_something(node)):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, _index: int) -> Any:
        """`pass` in its place."""
        prefix = node.get_first_leaf().prefix
        return Keyword("pass", node.start_pos, prefix)


def _changes_something(assignment: Any) -> bool:
    """Whether it is more than giving a name to a value, which nobody fails to notice."""
    target, sign = assignment.children[:2]
    return target.type in _DROPPED or (sign.type == "operator" and sign.value != "=")


class Mutant(NamedTuple):
    """One change of one module.

    Attributes:
        module: the module's name in the package.
        operator: the operator's name.
        occurrence: which of the places that the operator finds.
        line: where, counted from 1.
        where: class and function.
        was: the changed line, or lines, without indentation.
        now: the text in its place.
        source: the whole changed module.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    where: str
    was: str
    now: str
    source: str

    def __str__(self) -> str:
        place = f"{self.module}:{self.line} {self.where} [{self.operator}]"
        return f"{place}\n  - {self.was}\n  + {self.now}"


def mutants_of(module: str, source: str, operators: Sequence[str]) -> Iterator[Mutant]:
    """All mutants of a module that are not noise.

    Args:
        module: its name.
        source: its text.
        operators: regular expressions of the operators' names to use.
    """
    for place in places_of(source, operators):
        yield mutant_at(module, source, place)


class Place(NamedTuple):
    """Where a module can be changed, and how: much sooner found than the change is made.

    Attributes:
        name: the operator's.
        operator: what changes it.
        occurrence: which of the places that the operator finds.
        line: where, counted from 1.
    """

    name: str
    operator: Any
    occurrence: int
    line: int


def places_of(source: str, operators: Sequence[str]) -> Iterator[Place]:
    """All places of a module's text that are not noise."""
    noise = [(_begin(node), _end(node)) for node in _noise(ast.parse(source))]
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in _operators(operators):
        spans = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, (begin, end) in enumerate(spans):
            if not any(first <= begin and end <= last for first, last in noise):
                yield Place(name, operator, occurrence, begin[0])


def mutant_at(module: str, source: str, place: Place) -> Mutant:
    """The module with the change at one of its places."""
    changed = MutationVisitor.mutate_code(source, place.operator, place.occurrence)
    was, now = _difference(source, changed)
    where = _where(ast.parse(source), place.line)
    return Mutant(module, place.name, place.occurrence, place.line, where, was, now, changed)


def _operators(wanted: Sequence[str]) -> Iterator[tuple[str, Any]]:
    yield DROP_STATEMENT, DropStatement()
    for name in operator_names():
        short_name = name.removeprefix("core/")
        if any(re.fullmatch(pattern, short_name) for pattern in wanted):
            yield short_name, get_operator(name)()


def _noise(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that no test can or should tell apart: types, and log lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns
        elif (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or (
            isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        ):
            yield node


def _begin(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def _where(tree: ast.Module, line: int) -> str:
    names = [
        node.name
        for node in ast.walk(tree)  # from the outside in
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and min([node.lineno, *(d.lineno for d in node.decorator_list)]) <= line
        and line <= (node.end_lineno or 0)
    ]
    return ".".join(names) or "module"


def _difference(before: str, after: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    was, now = (" ".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
    return " ".join(was.split()), " ".join(now.split())
