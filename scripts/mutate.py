"""Mutation testing: change the code in one place at a time and check that a test fails.

    python scripts/mutate.py                         # every file in FILES; an hour or two
    python scripts/mutate.py --files mixing --list   # list the mutants and their ids
    python scripts/mutate.py --shard 1/2             # half of the mutants; 2/2 is the other half
    python scripts/mutate.py --ids 1a2b3c4d          # run some of them again
    python scripts/mutate.py --write                 # survivors → tests/surviving_mutants.md

Each mutant is written into a copy of the checkout, where the tests of its file run until the first
failure. Results are appended as lines of JSON to --report; mutants in it are not run again, so a
campaign can be interrupted. `--write` lists the survivors with the reasons from the existing list;
the exit code is 1 while a survivor has no reason.

A mutant's id is a hash of its statement and scope: it stays the same when the statement moves
within its function. Not mutated are annotations, docstrings, decorators (caches and types), and the
messages of `raise` and logging.
"""

import argparse
import ast
import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

ROOT = pathlib.Path(__file__).resolve().parent.parent
SURVIVORS = ROOT / "tests" / "surviving_mutants.md"

# Mutated files, and the tests that must fail, the quickest first.
FILES: dict[str, tuple[str, ...]] = {
    "convit_jax/data/images/transforms.py": ("tests/data/images/test_transforms.py",),
    "convit_jax/data/images/randaugment.py": ("tests/data/images/test_randaugment.py",),
    "convit_jax/data/images/image_operations.py": (
        "tests/data/images/test_image_operations.py",
        "tests/data/images/test_randaugment.py",
    ),
    "convit_jax/data/mixing.py": ("tests/data/test_mixing.py",),
    "convit_jax/data/order.py": ("tests/data/test_order.py",),
    "convit_jax/data/sources/subsets.py": ("tests/data/sources/test_subsets.py",),
    "convit_jax/data/images/resizing.py": (
        "tests/data/images/test_resizing.py",
        "tests/data/images/test_preprocessing.py",
    ),
    "convit_jax/training/optimizer.py": (
        "tests/training/test_optimizer.py",
        "tests/training/test_thirty_steps.py",
    ),
    "convit_jax/weights/torch_names.py": (
        "tests/weights/test_torch_names.py",
        "tests/weights/test_writing.py",
    ),
}
# Imported once, before the first test process is forked; none of them computes on import.
PRELOADED = (
    "cv2", "PIL.Image", "simplejpeg", "pytest", "jax", "flax.nnx", "optax", "grain",
    "orbax.checkpoint", "tensorflow_datasets", "sklearn.datasets", "safetensors.numpy",
)  # fmt: skip
MEMORY = 6 << 30  # address space of a test process, bytes

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor",
    "sin": "cos", "cos": "sin", "minimum": "maximum", "maximum": "minimum",
    "break": "continue", "continue": "break",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        id: eight hexadecimal digits.
        path: the file, relative to the checkout's root.
        line: line in the current file.
        scope: name of the enclosing function or class.
        change: "original → replacement".
        source: () → the text of the changed file.
    """

    id: str
    path: str
    line: int
    scope: str
    change: str
    source: Callable[[], str] = dataclasses.field(repr=False)


def alternatives(node: ast.AST) -> Iterator[ast.AST | None]:
    """Yield replacements of a node; None deletes a statement."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for replacement in COMPARISONS[type(op)]:
                ops = [*node.ops[:i], replacement(), *node.ops[i + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign):
        if type(node.op) in ARITHMETIC:
            yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
        yield None
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_values(node.value))
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.UnaryOp):
        yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            ifs = node.ifs[:i] + node.ifs[i + 1 :]
            yield ast.comprehension(node.target, node.iter, ifs, node.is_async)
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.Slice):
        for name in ("lower", "upper", "step"):
            if getattr(node, name) is not None:
                parts = {"lower": node.lower, "upper": node.upper, "step": node.step}
                yield ast.Slice(**parts | {name: None})
    elif isinstance(node, ast.Expr | ast.Raise) or _assigns_to_part(node):
        yield None
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(None)
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _assigns_to_part(node: ast.AST) -> bool:
    """Return whether an attribute or item is assigned to: deleting others would be a NameError."""
    return isinstance(node, ast.Assign) and isinstance(
        node.targets[0], ast.Attribute | ast.Subscript
    )


def _other_values(value: Any) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value * 1.1, value * 0.9) if value else (1.0,)
    elif isinstance(value, str):
        yield f"XX{value}"


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """Yield calls of another function or without a keyword, and the first argument or receiver."""
    function = node.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in NAMES:
        renamed = (
            ast.Attribute(function.value, NAMES[name])
            if isinstance(function, ast.Attribute)
            else ast.Name(NAMES[name])
        )
        yield ast.Call(renamed, node.args, node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            yield ast.Call(function, node.args, node.keywords[:i] + node.keywords[i + 1 :])
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    if isinstance(function, ast.Attribute) and _root(function) not in _MODULES:
        yield function.value


def _root(name: ast.expr) -> str:
    """Return the first part of a dotted name."""
    return ast.unparse(name).split(".")[0]


_MODULES = {
    "cv2", "np", "jnp", "jax", "math", "re", "optax", "nnx", "functools", "dataclasses", "ops",
    "models", "os", "log", "ast", "cls", "self", "logging", "Image",
}  # fmt: skip


def mutants(path: pathlib.Path, root: pathlib.Path = ROOT) -> list[Mutant]:
    """Return all mutants of a file, sorted by line."""
    tree = ast.parse(path.read_text())
    name = str(path.relative_to(root))
    counts: collections.Counter[str] = collections.Counter()
    result = []
    for location, node, scope, statement in _mutable_nodes(tree, "", None):
        for replacement in alternatives(node):
            before = _describe(node)
            after = "nothing" if replacement is None else _describe(replacement)
            text = f"{name} {scope} {_text(statement)} {before} {after}"
            counts[text] += 1
            digest = hashlib.sha256(f"{text} {counts[text]}".encode()).hexdigest()[:8]
            source = functools.partial(_source_with, tree, location, replacement)
            line = getattr(node, "lineno", getattr(statement, "lineno", 0))
            result.append(Mutant(digest, name, line, scope, f"{before} → {after}", source))
    return sorted(result, key=lambda mutant: mutant.line)


class _Location(NamedTuple):
    """A node's position in the tree; `index` is None in a field that is not a list."""

    parent: ast.AST
    field: str
    index: int | None


def _mutable_nodes(
    parent: ast.AST, scope: str, statement: ast.stmt | None
) -> Iterator[tuple[_Location, ast.AST, str, ast.stmt]]:
    """Yield (location, node, scope, enclosing statement) for every node that may be replaced."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_excluded(node):
                continue
            location = _Location(parent, field, index if isinstance(value, list) else None)
            enclosing = node if isinstance(node, ast.stmt) else statement
            inner_scope = scope
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inner_scope = f"{scope}.{node.name}".lstrip(".")
            if enclosing is not None:
                yield location, node, scope, enclosing
            if not isinstance(node, ast.Raise | ast.JoinedStr):
                yield from _mutable_nodes(node, inner_scope, enclosing)


def _is_excluded(node: ast.AST) -> bool:
    """Return whether a node is a docstring, an import or a logging call."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("log.")


def _text(node: ast.AST) -> str:
    """Return a node's code in one line; of a compound statement, only its header."""
    lines = ast.unparse(node).splitlines()
    if isinstance(node, ast.stmt) and hasattr(node, "body"):
        lines = [next(line for line in lines if not line.startswith("@"))]
    return " ".join(" ".join(lines).split())


def _describe(node: ast.AST) -> str:
    text = _text(node)
    return text if len(text) <= 70 else f"{text[:45]} … {text[-22:]}"


def _source_with(tree: ast.Module, location: _Location, replacement: ast.AST | None) -> str:
    """Return the module's code with one node replaced."""
    parent, field, index = location
    value = getattr(parent, field)
    new = ast.Pass() if replacement is None else replacement
    new_value = new if index is None else [*value[:index], new, *value[index + 1 :]]
    setattr(parent, field, new_value)
    try:
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        setattr(parent, field, value)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of testing a mutant.

    Attributes:
        result: "killed", "timeout" or "survived".
        by: the test that failed.
        seconds: duration.
    """

    result: str
    by: str
    seconds: float


class TestRunner:
    """Runs tests on a copy of the checkout, in processes forked from this one."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._copy = directory / "checkout"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "figures", "*.jsonl")
        shutil.copytree(ROOT, self._copy, ignore=ignored)
        self._log = directory / "log.txt"

    def run(self, path: str, source: str | None, timeout: float) -> Outcome:
        """Run the tests of a file, with its text replaced by `source` unless that is None."""
        target = self._copy / path
        original = target.read_text()
        if source is not None:
            target.write_text(source)
        start = time.monotonic()
        try:
            code = self._run_in_child(FILES[path], timeout)
        finally:
            target.write_text(original)
        seconds = round(time.monotonic() - start, 2)
        if code is None:
            return Outcome("timeout", "", seconds)
        return Outcome("survived" if code == 0 else "killed", self._first_failure(), seconds)

    def _run_in_child(self, tests: Sequence[str], timeout: float) -> int | None:
        """Return the exit code of a forked process that runs the tests, or None on a timeout."""
        child = os.fork()
        if child == 0:
            self._run_tests(tests)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _run_tests(self, tests: Sequence[str]) -> NoReturn:
        """Run the tests in the child process and exit."""
        os.setsid()
        out = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(self._copy)
        sys.path.insert(0, str(self._copy))
        import pytest  # noqa: PLC0415  (already loaded)

        code = 3
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]))
        finally:
            os._exit(code)

    def _first_failure(self) -> str:
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith(("FAILED", "ERROR")):
                return line.split(" - ")[0].split(maxsplit=1)[1]
        return ""


def _selected(flags: argparse.Namespace) -> list[Mutant]:
    paths = [p for p in FILES if not flags.files or pathlib.Path(p).stem in flags.files]
    candidates = [mutant for path in paths for mutant in mutants(ROOT / path)]
    if flags.ids:
        return [mutant for mutant in candidates if mutant.id in flags.ids]
    shard, num_shards = (int(part) for part in flags.shard.split("/"))
    return candidates[shard - 1 :: num_shards]


def _read_report(report: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each mutant by id."""
    lines = report.read_text().splitlines() if report.exists() else []
    return {record["id"]: record for record in map(json.loads, lines)}


def _run(flags: argparse.Namespace, selected: Sequence[Mutant]) -> None:
    """Test the mutants and append a line for each to the report."""
    with tempfile.TemporaryDirectory(prefix="convit-jax-mutants-") as scratch:
        # Set here because conftest.py runs in the children, after the imports.
        os.environ |= {
            "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TMPDIR": scratch,
        }  # fmt: skip
        # Cached bytecode is matched by size and time, which a mutant may share with the original.
        sys.dont_write_bytecode = True
        for module in PRELOADED:
            __import__(module)
        runner, timeouts = TestRunner(pathlib.Path(scratch)), {}
        for path in sorted({mutant.path for mutant in selected}):
            outcome = runner.run(path, None, timeout=1800.0)
            timeouts[path] = 5.0 + flags.limit * outcome.seconds
            print(f"{path} unchanged: {outcome.result}, {outcome.seconds} s", flush=True)
            if outcome.result != "survived":
                sys.exit(f"the tests of {path} fail on the unchanged file: {outcome.by}")
        with flags.report.open("a") as report:
            for number, mutant in enumerate(selected, 1):
                outcome = runner.run(mutant.path, mutant.source(), timeouts[mutant.path])
                record = vars(mutant) | vars(outcome)
                del record["source"]
                report.write(json.dumps(record, ensure_ascii=False) + "\n")
                report.flush()
                if outcome.result == "survived" or number % 50 == 0:
                    print(
                        f"{number}/{len(selected)} {_describe_mutant(mutant)}: {outcome.result}",
                        flush=True,
                    )


def _describe_mutant(mutant: Mutant) -> str:
    return f"{mutant.id} {mutant.path}:{mutant.line} {mutant.scope}: {mutant.change}"


def _reasons(ids: Collection[str]) -> dict[str | tuple[str, str], str]:
    """Return the reasons why mutants may survive, from the existing list.

    They are keyed by id. Reasons whose id is not in `ids`, because the file was moved or other
    parts of the statement changed, are keyed by (where, change) instead.
    """
    reasons: dict[str | tuple[str, str], str] = {}
    for row in SURVIVORS.read_text().splitlines() if SURVIVORS.exists() else ():
        if row.startswith("| `"):
            mutant_id, where, change, reason = (c.strip("` ") for c in row[2:-2].split(" | "))
            reasons[mutant_id if mutant_id in ids else (where, change)] = reason
    return reasons


def _write(flags: argparse.Namespace) -> int:
    """Write the list of survivors; return the number of those without a reason."""
    report = _read_report(flags.report)
    all_mutants = {path: mutants(ROOT / path) for path in FILES}
    reasons = _reasons({m.id for group in all_mutants.values() for m in group})
    columns = ("killed", "timeout", "survived", "not run")
    counts, rows, num_unexplained = [], [], 0
    for path, group in all_mutants.items():
        results = [report.get(mutant.id, {"result": "not run"})["result"] for mutant in group]
        counts.append([len(group), *map(results.count, columns)])
        for mutant, result in zip(group, results, strict=True):
            if result == "survived":
                change = mutant.change.replace("|", "\\|")
                where = f"{pathlib.Path(path).stem}: {mutant.scope or 'module'}"
                reason = reasons.get(mutant.id) or reasons.get((where, change), "?")
                num_unexplained += reason == "?"
                rows.append(f"| `{mutant.id}` | {where} | `{change}` | {reason} |")
    counts.append([sum(column) for column in zip(*counts, strict=True)])
    SURVIVORS.write_text(
        "# Mutants that survive\n\nWritten by `python scripts/mutate.py --write` (docs/testing.md);"
        " the last column is edited by hand and preserved.\n\n"
        "| file | mutants | killed | too slow | survived | not run |\n|---|---|---|---|---|---|\n"
        + "".join(
            f"| {' | '.join(map(str, (name, *row)))} |\n"
            for name, row in zip((*FILES, "total"), counts, strict=True)
        )
        + "\n| id | where | change | why it may survive |\n|---|---|---|---|\n"
        + "".join(f"{row}\n" for row in rows)
    )
    print(f"{len(rows)} survivors, {num_unexplained} of them without a reason → {SURVIVORS}")
    return num_unexplained


def main() -> int:
    """List, test or summarise mutants, as the flags say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stems = [pathlib.Path(path).stem for path in FILES]
    parser.add_argument("--files", nargs="+", choices=stems, help="only these files", default=())
    parser.add_argument(
        "--ids", nargs="+", help="only these mutants, even if in the report", default=()
    )
    parser.add_argument(
        "--shard", default="1/1", help="i/n: every n-th mutant, starting at the i-th"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants without running them")
    parser.add_argument(
        "--limit", type=float, default=8.0,
        help="timeout as a multiple of the time of the unchanged file (default 8)",
    )  # fmt: skip
    parser.add_argument("--survivors", action="store_true", help="run the survivors again")
    parser.add_argument("--write", action="store_true", help="write tests/surviving_mutants.md")
    parser.add_argument(
        "--report", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"), metavar="FILE.jsonl"
    )
    flags = parser.parse_args()
    if flags.write:
        return int(_write(flags) > 0)
    selected, report = _selected(flags), _read_report(flags.report)
    if flags.list:
        print("\n".join(map(_describe_mutant, selected)))
        return 0
    if flags.survivors:
        selected = [m for m in selected if report.get(m.id, {}).get("result") == "survived"]
    elif not flags.ids:
        selected = [m for m in selected if m.id not in report]
    print(f"{len(selected)} mutants to run", flush=True)
    _run(flags, selected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
