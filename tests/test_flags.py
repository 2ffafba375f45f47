"""Every flag that takes a number says which ones, before anything is loaded."""

import argparse
import importlib
from pathlib import Path

import pytest

OTHER = {"mesh_shape", "shard"}  # several numbers in one word, with tests of their own
EITHER = {"_threshold", "figure"}  # a number, or a word, or a name with it
SCRIPTS = sorted(p.stem for p in (Path(__file__).parents[1] / "scripts").glob("[!_]*.py"))


def parser_of(script: str, monkeypatch) -> argparse.ArgumentParser:
    """The parser of a script, as it is when it reads a command line."""
    found = []

    def keep(self, *args, **kwargs):
        found.append(self)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    with pytest.raises(SystemExit):
        importlib.import_module(f"scripts.{script}").main([])
    monkeypatch.undo()
    return found[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_have_ranges(script, monkeypatch, capsys):
    parser = parser_of(script, monkeypatch)
    typed = [a for a in parser._actions if a.type not in (None, str, Path)]
    numeric = [a for a in typed if getattr(a.type, "__name__", "") in ("int", "float")]
    other = {a.type.__name__ for a in typed} - {"int", "float"}
    assert numeric and other <= OTHER | EITHER, f"{script}: is it a number? {other}"
    for action in [a for a in typed if a.type.__name__ in EITHER]:
        for value in ("nan", "x=nan", "1e400", "x=1e400"):
            with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                action.type(value)
    for action in numeric:
        if action.dest in ("processes", "process"):  # jax.distributed checks these against each other
            continue
        assert action.type not in (int, float), f"{script} {action.option_strings}: any number at all"
        for value in ("nan", "1e400", "-7", "x"):
            with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                action.type(value)
        default = action.default if isinstance(action.default, list | tuple) else [action.default]
        for value in default:
            assert value is None or action.type(str(value)) == value, f"{script} {action.option_strings}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "--passes", "0"], "--passes: must be at least 1 and at most 1000, got 0"),
        (["score", "--top-p", "7"], "--top-p: must be above 0 and at most 1, got 7"),
        (["edit", "--chunk", "0"], "--chunk: must be at least 1"),
        (["prepare_data", "--validation", "1"], "--validation: must be at least 0 and below 1"),
    ],
)
def test_the_line_names_the_flag(words, said, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"scripts.{words[0]}").main(words[1:])
    assert said in capsys.readouterr().err
