"""YAML that somebody else wrote: every fault is one error, and bounds come before the work."""

from __future__ import annotations

import datetime

import pytest

from pytest_sdbench.base.yaml import DEEPEST, LARGEST, MOST, YamlFault, read_yaml


def bomb(levels: int) -> str:
    """Return a document of a few lines that stands for 9 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines)


def test_values_are_plain_and_nodes_know_their_places() -> None:
    text = "a: 1\nb: [yes, 0.5, null]\nc: 2026-11-28\nd: &x {e: t}\nf: *x\n"
    values, node = read_yaml(text)
    day = datetime.date(2026, 11, 28)
    assert values == {"a": 1, "b": ["yes", 0.5, None], "c": day, "d": {"e": "t"}, "f": {"e": "t"}}
    assert node is not None
    assert [key.start_mark.line for key, _ in node.value] == [0, 1, 2, 3, 4]
    assert read_yaml("# nothing\n") == (None, None)


@pytest.mark.parametrize(
    ("text", "told", "line"),
    [
        ("a: 1\nb: [1, 2\n", "not valid YAML", None),
        ("a: 1\na: 2\n", "a key stands twice", 1),
        ("a: !!bool maybe\n", "not valid YAML", None),
        ("a: !!python/object/apply:os.system [true]\n", "not valid YAML", None),
        ("a: 2026-13-45\n", "not valid YAML", None),
        ("a: 2026-01-01 99:99:99\n", "not valid YAML", None),
        ("a: " + "9" * 5000 + "\n", "not valid YAML", None),
        ("a: &x [*x]\n", "an alias stands in what it stands for", None),
        ('a: 1\nb: "open\nc: 2\nd: 3\n', "not valid YAML", 1),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"more than {DEEPEST} lists", None),
        ("[" * 100_000, f"more than {DEEPEST} lists", None),
        ("- " * 100_000, f"more than {DEEPEST} lists", None),
        ("-  " * 100_000, f"more than {DEEPEST} lists", None),
        ("# " + "]" * 100_000 + "\n" + "[" * 100_000, f"more than {DEEPEST} lists", None),
        ("? " * 900, f"more than {DEEPEST} lists", None),
        ("a: " + "{b: " * 3000 + "}" * 3000, f"more than {DEEPEST} lists", None),
        (bomb(9), "values with its aliases written out", None),
        ("a: " + "x" * LARGEST, "characters of YAML", None),
        ("a: \x00", "not valid YAML", None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_fault_is_one_short_error(text: str, told: str, line: int | None) -> None:
    with pytest.raises(YamlFault) as caught:
        read_yaml(text)
    assert told in caught.value.message
    assert caught.value.remedy
    assert len(caught.value.message) + len(caught.value.found) < 600
    if line is not None:
        assert caught.value.line == line


def test_what_people_write_is_within_the_bounds() -> None:
    """A long list, aliases that are used often, and values as deep as a recipe or a hub card."""
    assert len(read_yaml("\n".join(f"- language {k}" for k in range(5000)))[0]) == 5000
    shared = "base: &base {a: [1, 2, 3], b: {c: d}}\n" + "".join(f"k{k}: *base\n" for k in range(1000))
    assert read_yaml(shared)[0]["k999"] == {"a": [1, 2, 3], "b": {"c": "d"}}
    assert MOST > 1000 * 8
    deep = "a: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert read_yaml(deep)[0]["a"] is not None
