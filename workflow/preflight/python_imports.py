"""Find the files of this project that a Python file imports, directly or indirectly.

So a rule depends on exactly the code that produces its numbers, without a list of files kept by hand.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Where modules of the project lie.
ROOTS = (Path("code"), Path("workflow/scripts"))
# Statements, and the nodes that contain statements. No expression contains an import.
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def with_imports(
    paths: Iterable[str | Path], roots: Sequence[Path] = ROOTS, known: dict[Path, list[Path]] | None = None
) -> list[str]:
    """`paths` and every file below `roots` that they need, directly or not; sorted.

    `known`: a cache of each file's imports, which this call extends.

    Imports inside functions count, those only for type checkers do not. A name imported from a package counts as an
    import of its __init__.py; the packages above an imported module do not. Relative imports and names composed at run
    time are not found. Raises ValueError, naming the file, if one cannot be read or parsed.
    """
    ours = {path.stem for root in roots for path in root.iterdir()}
    known = {} if known is None else known
    found: set[Path] = set()
    open_ends = [Path(path) for path in paths]
    while open_ends:
        path = open_ends.pop()
        if path not in found:
            found.add(path)
            if path not in known:
                known[path] = list(_imported(path, roots, ours)) if path.suffix == ".py" else []
            open_ends += known[path]
    return sorted(map(str, found))


def _imported(path: Path, roots: Sequence[Path], ours: set[str]) -> Iterator[Path]:
    try:
        names = _names(path.read_bytes())
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read the imports of {path}: {error}") from error
    for module, name in names:
        if (module or name).partition(".")[0] not in ours:
            continue
        if file := _file(f"{module}.{name}" if module else name, roots) or _file(module, roots):
            yield file


def _names(source: bytes) -> list[tuple[str, str]]:
    """The imports of `source`: modules as ("", module), names as (module, name)."""
    found = []
    for node in _at_run_time(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [("", alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if for_types else ast.iter_child_nodes(node):
        if isinstance(child, _STATEMENTS):
            yield from _at_run_time(child)


def _file(module: str, roots: Sequence[Path]) -> Path | None:
    for root in roots if module else ():
        path = root.joinpath(*module.split("."))
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None
