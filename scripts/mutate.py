"""Mutation testing: changes the code in one place at a time and looks whether a test notices.

    python scripts/mutate.py                         # every file of FILES; an hour or two
    python scripts/mutate.py --files mixing --list   # what would be changed, and by which id
    python scripts/mutate.py --shard 1/2             # half of the mutants; 2/2 is the other
    python scripts/mutate.py --ids 1a2b3c4d          # some of them again
    python scripts/mutate.py --write                 # what survived → tests/surviving_mutants.md

Each mutant is written into a copy of the checkout, and the tests of its file run there until the
first that fails. Results are lines of JSON in --report; what is in it already is not run again,
so that a campaign can be interrupted. `--write` lists the survivors, with the reasons that the list
already has for them; the exit code is 1 while a survivor has none.

A mutant's id comes from the text of its statement: it stays while the statement does, wherever in
the file it moves. Left alone are annotations, docstrings, decorators (caches and types) and what
`raise` and logging say.
"""

import argparse
import ast
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
SURVIVORS = ROOT / "tests" / "surviving_mutants.md"

# What is mutated, and the tests that must notice, the quickest first.
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
# Imported once, before the first test process is forked off; none of it computes on import.
PRELOADED = (
    "cv2", "PIL.Image", "simplejpeg", "pytest", "jax", "flax.nnx", "optax", "grain",
    "orbax.checkpoint", "tensorflow_datasets", "sklearn.datasets", "safetensors.numpy",
)  # fmt: skip
MEMORY = 6 << 30  # bytes of address space that a mutant may take

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
        path: of the file, from the checkout's root.
        line: where it is, as the file is now.
        scope: the function or class around it.
        change: what was there and what stands there instead.
        source: () → the whole file, changed.
    """

    id: str
    path: str
    line: int
    scope: str
    change: str
    source: Callable[[], str] = dataclasses.field(repr=False)


def alternatives(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in a node's place; None for nothing at all (a statement left out)."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
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
    elif isinstance(node, ast.Expr | ast.Raise) or _assigns_into(node):
        yield None
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(None)
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _assigns_into(node: ast.AST) -> bool:
    """Whether a part of something is assigned to: to leave out another would be a NameError."""
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
    """Another function, a keyword less, or what it was called with or on, as it is."""
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
    """What a dotted name begins with."""
    return ast.unparse(name).split(".")[0]


_MODULES = {
    "cv2", "np", "jnp", "jax", "math", "re", "optax", "nnx", "functools", "dataclasses", "ops",
    "models", "os", "log", "ast", "cls", "self", "logging", "Image",
}  # fmt: skip


def mutants(path: pathlib.Path, root: pathlib.Path = ROOT) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    tree = ast.parse(path.read_text())
    name, seen, out = str(path.relative_to(root)), {}, []
    for holder, field, index, node, scope, statement in _places(tree, "", None):
        for other in alternatives(node):
            there = _described(node)
            instead = "nothing" if other is None else _described(other)
            text = f"{name} {scope} {_text(statement)} {there} {instead}"
            seen[text] = seen.get(text, 0) + 1
            digest = hashlib.sha256(f"{text} {seen[text]}".encode()).hexdigest()[:8]
            source = functools.partial(_with, tree, holder, field, index, other)
            line = getattr(node, "lineno", getattr(statement, "lineno", 0))
            out.append(Mutant(digest, name, line, scope, f"{there} → {instead}", source))
    return sorted(out, key=lambda mutant: mutant.line)


def _places(
    holder: ast.AST, scope: str, statement: ast.stmt | None
) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str, ast.stmt]]:
    """Every node that may be changed, with where it hangs: (holder, field, index, node, …)."""
    for field, value in ast.iter_fields(holder):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_left_alone(node):
                continue
            place = index if isinstance(value, list) else None
            around = node if isinstance(node, ast.stmt) else statement
            inner = scope
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{node.name}".lstrip(".")
            if around is not None:
                yield holder, field, place, node, scope, around
            if not isinstance(node, ast.Raise | ast.JoinedStr):
                yield from _places(node, inner, around)


def _is_left_alone(node: ast.AST) -> bool:
    """Docstrings, imports, and what is logged."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("log.")


def _text(node: ast.AST) -> str:
    """A node in a line; of a statement with others inside it only the head."""
    lines = ast.unparse(node).splitlines()
    if isinstance(node, ast.stmt) and hasattr(node, "body"):
        lines = [next(line for line in lines if not line.startswith("@"))]
    return " ".join(" ".join(lines).split())


def _described(node: ast.AST) -> str:
    text = _text(node)
    return text if len(text) <= 70 else f"{text[:45]} … {text[-22:]}"


def _with(
    tree: ast.Module, holder: ast.AST, field: str, index: int | None, other: ast.AST | None
) -> str:
    """The module's text with something else in one place."""
    value = getattr(holder, field)
    old = value if index is None else value[index]
    new = ast.Pass() if other is None else other
    try:
        if index is None:
            setattr(holder, field, new)
        else:
            value[index] = new
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        if index is None:
            setattr(holder, field, old)
        else:
            value[index] = old


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant: killed, timeout or survived; by which; after how long."""

    result: str
    by: str
    seconds: float


class Bench:
    """A copy of the checkout, and the tests run on it in processes forked off this one."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._copy = directory / "checkout"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "figures", "*.jsonl")
        shutil.copytree(ROOT, self._copy, ignore=ignored)
        self._said = directory / "said.txt"

    def tried(self, path: str, source: str | None, limit: float) -> Outcome:
        """Runs the tests of a file for some seconds, with another text in its place or none."""
        target = self._copy / path
        original = target.read_text()
        if source is not None:
            target.write_text(source)
        began = time.monotonic()
        try:
            code = self._in_child(FILES[path], limit)
        finally:
            target.write_text(original)
        seconds = round(time.monotonic() - began, 2)
        if code is None:
            return Outcome("timeout", "", seconds)
        return Outcome("survived" if code == 0 else "killed", self._first_failure(), seconds)

    def _in_child(self, tests: Sequence[str], limit: float) -> int | None:
        child = os.fork()
        if child == 0:
            self._run_tests(tests)
        until = time.monotonic() + limit
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _run_tests(self, tests: Sequence[str]) -> None:
        """In the child: never returns."""
        os.setsid()
        out = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(self._copy)
        sys.path.insert(0, str(self._copy))
        import pytest  # noqa: PLC0415  (loaded long ago)

        code = 3
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]))
        finally:
            os._exit(code)

    def _first_failure(self) -> str:
        for line in self._said.read_text(errors="replace").splitlines():
            if line.startswith(("FAILED", "ERROR")):
                return line.split(" - ")[0].split(maxsplit=1)[1]
        return ""


def _chosen(flags: argparse.Namespace) -> list[Mutant]:
    paths = [p for p in FILES if not flags.files or pathlib.Path(p).stem in flags.files]
    every = [mutant for path in paths for mutant in mutants(ROOT / path)]
    if flags.ids:
        return [mutant for mutant in every if mutant.id in flags.ids]
    number, of = (int(part) for part in flags.shard.split("/"))
    return every[number - 1 :: of]


def _known(report: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The last result of each mutant."""
    lines = report.read_text().splitlines() if report.exists() else []
    return {record["id"]: record for record in map(json.loads, lines)}


def _run(flags: argparse.Namespace, todo: Sequence[Mutant]) -> None:
    """Tries the mutants and adds a line for each to the report."""
    with tempfile.TemporaryDirectory(prefix="convit-jax-mutants-") as scratch:
        # For the children, which fork off after the imports: what conftest.py sets comes too late.
        os.environ |= {
            "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TMPDIR": scratch,
        }  # fmt: skip
        sys.dont_write_bytecode = True  # a mutant may be of its original's length and second
        for module in PRELOADED:
            __import__(module)
        bench, limits = Bench(pathlib.Path(scratch)), {}
        for path in sorted({mutant.path for mutant in todo}):
            whole = bench.tried(path, None, limit=1800.0)
            limits[path] = 5.0 + flags.limit * whole.seconds
            print(f"{path} as it is: {whole.result}, {whole.seconds} s", flush=True)
            if whole.result != "survived":
                sys.exit(f"the tests of {path} fail without any mutant: {whole.by}")
        with flags.report.open("a") as report:
            for number, mutant in enumerate(todo, 1):
                outcome = bench.tried(mutant.path, mutant.source(), limits[mutant.path])
                record = vars(mutant) | vars(outcome)
                del record["source"]
                report.write(json.dumps(record, ensure_ascii=False) + "\n")
                report.flush()
                if outcome.result == "survived" or number % 50 == 0:
                    print(f"{number}/{len(todo)} {_line(mutant)}: {outcome.result}", flush=True)


def _line(mutant: Mutant) -> str:
    return f"{mutant.id} {mutant.path}:{mutant.line} {mutant.scope}: {mutant.change}"


def _reasons() -> dict[str, str]:
    """Why survivors may survive, from the list as it is."""
    rows = SURVIVORS.read_text().splitlines() if SURVIVORS.exists() else []
    cells = [row.strip("|").split(" | ") for row in rows if row.startswith("| `")]
    return {cell[0].strip(" `"): cell[-1].strip() for cell in cells}


def _write(flags: argparse.Namespace) -> int:
    """Writes the list of survivors; returns how many of them nobody gave a reason for."""
    known, reasons = _known(flags.report), _reasons()
    totals, rows, open_questions = [], [], 0
    for path in FILES:
        every = mutants(ROOT / path)
        results = [known.get(mutant.id, {"result": "not run"})["result"] for mutant in every]
        counts = {result: results.count(result) for result in ("killed", "timeout", "survived")}
        totals.append((path, len(every), *counts.values(), results.count("not run")))
        for mutant, result in zip(every, results, strict=True):
            if result == "survived":
                reason = reasons.get(mutant.id, "?")
                open_questions += reason == "?"
                change = mutant.change.replace("|", "\\|")
                where = f"{pathlib.Path(path).stem}: {mutant.scope or 'module'}"
                rows.append(f"| `{mutant.id}` | {where} | `{change}` | {reason} |")
    totals.append(("together", *(sum(column) for column in list(zip(*totals, strict=True))[1:])))
    SURVIVORS.write_text(
        "# Mutants that survive\n\nWritten by `python scripts/mutate.py --write` (docs/testing.md);"
        " the last column is ours, and what it says stays.\n\n"
        "| file | mutants | killed | too slow | survived | not run |\n|---|---|---|---|---|---|\n"
        + "".join(f"| {' | '.join(map(str, row))} |\n" for row in totals)
        + "\n| id | where | change | why it may survive |\n|---|---|---|---|\n"
        + "".join(f"{row}\n" for row in rows)
    )
    print(f"{len(rows)} survivors, {open_questions} of them without a reason → {SURVIVORS}")
    return open_questions


def main() -> int:
    """Lists, tries or sums up mutants, as the flags say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stems = [pathlib.Path(path).stem for path in FILES]
    parser.add_argument("--files", nargs="+", choices=stems, help="only these", default=())
    parser.add_argument("--ids", nargs="+", help="only these, whether known or not", default=())
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th mutant from the i-th on")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument(
        "--limit", type=float, default=8.0,
        help="how many times as long as without it a mutant may take (default 8)",
    )  # fmt: skip
    parser.add_argument("--survivors", action="store_true", help="try again those that survived")
    parser.add_argument("--write", action="store_true", help="write tests/surviving_mutants.md")
    parser.add_argument(
        "--report", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"), metavar="FILE.jsonl"
    )
    flags = parser.parse_args()
    if flags.write:
        return int(_write(flags) > 0)
    chosen, known = _chosen(flags), _known(flags.report)
    if flags.list:
        print("\n".join(map(_line, chosen)))
        return 0
    if flags.survivors:
        chosen = [m for m in chosen if known.get(m.id, {}).get("result") == "survived"]
    elif not flags.ids:
        chosen = [m for m in chosen if m.id not in known]
    print(f"{len(chosen)} mutants to try", flush=True)
    _run(flags, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
