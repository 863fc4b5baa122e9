"""Which changes can be made to a source file, and a seeded sample of them; the operators are those of cosmic-ray."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

# Operators that need arguments of ours, or that swap == for `is`, which for small numbers and names is the same.
LEFT_OUT = ("VariableReplacer", "VariableInserter")
IDENTITY = ("_Is", "_IsNot")
Position = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """One change: occurrence `occurrence` of `operator` in the file `path` (relative to the tree)."""

    path: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def key(self) -> str:
        """A name that stays the same while the file does."""
        return f"{self.path}:{self.line}:{self.column} {self.operator} {self.occurrence}"


def mutated(source: str, operator: str, occurrence: int) -> str:
    """`source` with that change; "" where the result is no Python or says the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(source, get_operator(operator)(), occurrence)
    try:
        same = changed is None or ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
    except SyntaxError:
        return ""
    return "" if same else str(changed)


def difference(before: str, after: str) -> str:
    """The changed lines as `before -> after`."""
    old, new = before.splitlines(), after.splitlines()
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changed = [(" ".join(old[a:b]).strip(), " ".join(new[c:d]).strip()) for tag, a, b, c, d in steps if tag != "equal"]
    return "; ".join(f"{one} -> {other or '(removed)'}" for one, other in changed)


def draw(root: Path, folders: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants at different places, all places equally likely, and all changes of a place.

    A place is a stretch of code that some operator changes: a binary operator has eleven changes, but is drawn as often
    as a condition with its one.
    """
    from cosmic_ray.plugins import operator_names

    names = [name for name in operator_names() if not name.endswith(LEFT_OUT) and not _identity(name)]
    places: dict[tuple[str, Position, Position], list[Mutant]] = defaultdict(list)
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            path = str(file.relative_to(root))
            for begin, end, operator, occurrence in _changes(file.read_text("utf-8"), names):
                places[path, begin, end].append(Mutant(path, *begin, operator, occurrence))
    rng, found = random.Random(seed), list[Mutant]()
    sources: dict[str, str] = {}
    for place in rng.sample(sorted(places), len(places)):
        chosen = rng.choice(places[place])
        source = sources.setdefault(chosen.path, (root / chosen.path).read_text("utf-8"))
        if mutated(source, chosen.operator, chosen.occurrence):
            found.append(chosen)
        if len(found) == count:
            break
    return found


def _identity(name: str) -> bool:
    """Whether an operator turns another comparison into `is` or `is not`."""
    return name.endswith(IDENTITY) and "_Is_" not in name and "_IsNot_" not in name


def _changes(source: str, names: list[str]) -> Iterator[tuple[Position, Position, str, int]]:
    """(begin, end, operator, occurrence) of every change that matters."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    silent = list(_silent(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    for name in names:
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for begin, end in operator.mutation_positions(node):
                if not any(first <= begin and end <= last for first, last in silent):
                    yield begin, end, name, occurrence
                occurrence += 1


def _silent(tree: ast.AST) -> Iterator[tuple[Position, Position]]:
    """Stretches of code that say nothing: annotations, words for people, and imports for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.returns:
            yield _span(node.returns)
        elif isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            yield _span(node.annotation)
        elif isinstance(node, ast.JoinedStr):
            yield _span(node)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from map(_span, node.exc.args)
        elif isinstance(node, (ast.If, ast.Call, ast.Assign)) and _says_nothing(node):
            yield _span(node)


def _says_nothing(node: ast.If | ast.Call | ast.Assign) -> bool:
    """Whether it is for type checkers, a call of the log, or a type's name: `Name = A | B`, `Name = Callable[...]`."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).startswith(("logger.", "logging.", "warnings."))
    value = node.value
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def _span(node: ast.expr | ast.stmt) -> tuple[Position, Position]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
