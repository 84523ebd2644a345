"""Change the verdicts' code in small ways, see which no test notices: `python -m benchmarks.gate.mutation`.

A mutant is one module with one comparison, operation, constant or truth value changed; the tests of its
module run on it until one fails. A mutant that no test notices shows a line that could be wrong without
anybody being told. Pytest, NumPy and SciPy are loaded once; a fork of that process judges each mutant.

Two well-kept tools were read. mutmut changes nothing outside functions, where levels, floors and margins
stand; cosmic-ray and mutmut move a number by 1, so that a level of 0.05 becomes 1.05, which any test notices.
"""

from __future__ import annotations

import ast
import datetime
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np  # noqa: F401 - loaded before the forks, which then need not
import pytest
import scipy.stats  # noqa: F401

import pytest_sdbench.cards.card  # noqa: F401
from benchmarks import options
from benchmarks.report import RESULTS, ROOT, grid, paragraphs
from pytest_sdbench.base.files import write_atomically

PACKAGE = "pytest_sdbench.gate"
TESTS = {
    "verdict": ("test_verdict.py", "test_binomial.py"),
    "words": ("test_verdict.py", "test_hardware.py"),
    "hardware": ("test_hardware.py", "test_ranks.py"),
    "looks": ("test_looks.py",),
}
"""What has to notice a change, by module."""

PATIENCE = 60.0
"""Processor seconds after which a mutant counts as noticed; the tests of the unchanged code take a few."""

_NO_LEVEL = "A chance that no level reaches, and that is not printed: any number above 0.05 does."
_NO_SUM = "A sum of binomial coefficients over a power of two is never the number 0.002."
_NO_POWER = "A power of two is never the number 0.002."
_LIKE_AT_THE_MARGIN = "_NORMAL.cdf((score.worse - score.margin) / error)"
EQUIVALENT = {
    ("_chance_of_wrong_pass", "0.0 if score.worse <= score.margin + _rounding(score) else 1.1"): _NO_LEVEL,
    ("_chance_of_wrong_pass", f"{_LIKE_AT_THE_MARGIN} if error else 1.1"): _NO_LEVEL,
    ("_chance_of_wrong_fail", "return 1.1"): _NO_LEVEL,
    ("_chance_of_wrong_fail", "0.0 if score.worse > score.margin + _rounding(score) else 1.1"): _NO_LEVEL,
    ("_by", "worse >= 0"): "A difference of 0 has returned already, as no difference.",
    ("judge_latency", "chance <= RANK_LEVEL"): _NO_SUM,
    ("judge_latency", "0.5 ** len(seconds) > RANK_LEVEL"): _NO_POWER,
    ("_conclude", "worse <= score.margin"): "A score on the margin is told so, whatever the level.",
    ("_remedy", "score.worse <= score.margin"): "A score on the margin has returned already.",
    ("_orders", "n * m + 2"): "The coefficient after the last is 0.",
    ("_orders", "size + 1"): "The coefficients after the last are 0.",
    ("_orders", "[2]"): "All counts are doubled, and what is used is a ratio of two of them.",
}
"""Why no test can notice a mutant, by function and changed text."""


@dataclass(frozen=True)
class Mutant:
    """One module with one change."""

    module: str
    function: str
    line: int
    """Where the changed statement begins."""
    before: str
    after: str
    source: str

    @property
    def reason(self) -> str | None:
        """Why nothing can notice it; None where something should."""
        return EQUIVALENT.get((self.function, self.after))

    def __str__(self) -> str:
        place = f"{self.module}.py:{self.line}" + (f", `{self.function}`" if self.function else "")
        return f"{place}: `{self.before}` to `{self.after}`"


COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    # The boundary on the other side, and the negation.
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,)},
    **{ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
    **{ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)},
}
OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
}


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield what of a node is changed: a field and its other value."""
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    yield "ops", [*node.ops[:i], other(), *node.ops[i + 1 :]]
        case ast.BinOp() if type(node.op) in OPERATIONS:
            yield "op", OPERATIONS[type(node.op)]()
        case ast.UnaryOp(op=ast.USub()):
            yield "op", ast.UAdd()
        case ast.UnaryOp(op=ast.Not()):
            yield "operand", ast.UnaryOp(ast.Not(), node.operand)
        case ast.BoolOp():
            yield "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.Constant(value=bool() as truth):
            yield "value", not truth
        case ast.Constant(value=int() as number):
            yield "value", number + 1
        case ast.Constant(value=float() as figure):
            yield "value", float(f"{1.1 * figure:.12g}") if figure else 1.0
        case ast.Name(id="min" | "max" as name):
            yield "id", "max" if name == "min" else "min"


def source_of(module: str) -> str:
    """Return the text of a module as it is."""
    return ROOT.joinpath(*PACKAGE.split("."), f"{module}.py").read_text(encoding="utf-8")


def mutants(module: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    tree, found = ast.parse(source_of(module)), []
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def around(node: ast.AST, *kinds: type[ast.AST]) -> Any:
        while not isinstance(node, (*kinds, ast.Module)):
            node = parents[node]
        return node

    for node, parent in parents.items():
        # A number says nothing without what it stands in.
        shown = parent if isinstance(node, ast.Constant | ast.Name) else node
        for field, value in changes(node):
            function = getattr(around(node, ast.FunctionDef, ast.ClassDef), "name", "")
            # Python 3.11 gives expressions within f-strings lines of their own; those of statements hold.
            line = around(node, ast.stmt).lineno
            before, kept = ast.unparse(shown), getattr(node, field)
            setattr(node, field, value)
            found.append(Mutant(module, function, line, before, ast.unparse(shown), ast.unparse(tree)))
            setattr(node, field, kept)
    return sorted(found, key=lambda mutant: mutant.line)


def judge(module: str, source: str) -> bool:
    """Tell whether the tests of a module pass on this text of it; for a process of its own."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    # A change may loop for ever: time that is up is a test that fails. Other processes do not use it up.
    signal.signal(signal.SIGPROF, _give_up)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE, 1)
    # Only what was loaded before the fork is known: whatever imports the module gets this text of it.
    name = f"{PACKAGE}.{module}"
    assert name not in sys.modules, "the forking process has loaded the module that is to be changed"
    code = ModuleType(name)
    code.__dict__.update(__package__=PACKAGE, __file__=f"<a mutant of {name}>")
    sys.modules[name] = code
    setattr(importlib.import_module(PACKAGE), module, code)
    tests = [str(ROOT / "tests" / "gate" / test) for test in TESTS[module]]
    asked = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT)]
    try:
        exec(compile(source, code.__dict__["__file__"], "exec"), code.__dict__)
        return pytest.main([*asked, *tests]) == pytest.ExitCode.OK
    except Exception:
        return False


def _give_up(*_unused: Any) -> None:
    raise TimeoutError


def survivors(module: str, wanted: list[Mutant], jobs: int) -> list[Mutant]:
    """Return the mutants that no test notices, in order."""
    # Each task has a fresh fork: what a mutant or a test leaves behind ends with it.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as forks:
        if not forks.apply(judge, (module, source_of(module))):
            raise SystemExit(f"{', '.join(TESTS[module])}: fails on the code as it is; mend that first")
        results, found = forks.imap(partial(judge, module), [each.source for each in wanted]), []
        for mutant, passed in zip(wanted, results, strict=True):
            if passed:
                found.append(mutant)
                print(f"  survives: {mutant}", file=sys.stderr, flush=True)
    return found


def report(found: dict[str, tuple[int, list[Mutant]]]) -> str:
    """Return the Markdown of what was found, by module: the number of mutants, and the survivors."""
    rows = [
        [f"{module}.py", number, number - len(left), len(left), sum(not mutant.reason for mutant in left)]
        for module, (number, left) in found.items()
    ]
    survivors = [
        f"- {mutant}. {mutant.reason or 'NOT EQUIVALENT: a test is missing.'}"
        for _, left in found.values()
        for mutant in left
    ]
    return paragraphs(
        "# Mutation: which changes of the verdicts' code no test notices",
        grid(rows, ["module", "mutants", "noticed", "survivors", "of these not equivalent"]),
        "Changed, one at a time, each wherever it stands: comparisons (to the other side of the boundary, "
        "and to the negation), `+ - * / **` and `<<`, minus signs, `and`, `or`, `not`, numbers (a whole one "
        "by 1, any other by a tenth), `min`, `max`, `True` and `False`.",
        "## Survivors",
        "\n".join(survivors or ["None."]),
        datetime.date.today().isoformat(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge all mutants, write Markdown; exit with 1 where one survives that is not equivalent."""
    parser = options.parser("gate.mutation", __doc__)
    parser.add_argument("--only", action="append", choices=list(TESTS), help="modules; writes no results")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time [%(default)s]")
    asked = parser.parse_args(arguments)
    found = {}
    for module in asked.only or TESTS:
        wanted = mutants(module)
        print(f"{module}: {len(wanted)} mutants", file=sys.stderr, flush=True)
        found[module] = len(wanted), survivors(module, wanted, asked.jobs)
    left = [mutant for _, each in found.values() for mutant in each]
    text = report(found)
    print(text)
    if not asked.only:
        write_atomically(RESULTS / "mutation.md", text.encode("utf-8"))
        used = {(mutant.function, mutant.after) for mutant in left}
        for key in EQUIVALENT.keys() - used:
            print(f"noticed, or gone, though said to be equivalent: {key}", file=sys.stderr)
    if not all(mutant.reason for mutant in left):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
