"""README says what there is: every verb, option that it names, column and exit code; checked against the program."""

import re
from pathlib import Path

import pytest

from inspectad.cli import app
from inspectad.images import FULL_SCALES
from inspectad.results import COLUMNS

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
GROUPS = {
    group.name: [c.callback.__name__ for c in group.typer_instance.registered_commands]
    for group in app.registered_groups
}
VERBS = sorted(
    [command.callback.__name__ for command in app.registered_commands]
    + [f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs]
)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_row(verb: str) -> None:
    assert re.search(rf"^\| `{verb}\b", README, re.MULTILINE)


def test_the_table_of_verbs_names_no_other() -> None:
    table = README.split("## Verbs")[1].split("\n\n")[1]
    assert sorted(re.findall(r"^\| `(\w+(?: [a-z]+)?)", table, re.MULTILINE)) == VERBS


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_is_explained(column: str) -> None:
    table = README.split("| column | meaning |")[1].split("\n\n")[0]
    assert f"`{column}`" in table


def test_each_option_that_is_named_exists() -> None:
    known = {name for verb in VERBS for name in options_of(verb)}
    for name in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {
        "--no-index",
        "--find-links",
        "--help",
        "--head",
        "--port",
        "--disable-usage-stats",
    }:
        assert name in known, name


def options_of(verb: str) -> set[str]:
    import typer.main

    command = typer.main.get_command(app)
    for part in verb.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_each_exit_code_is_explained() -> None:
    table = README.split("| exit code | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) == ["0", "1", "2", "3", "4", "130, 143"]


def test_the_white_levels_are_those_of_the_code() -> None:
    assert ", ".join(str(level) for level in FULL_SCALES[1:]) in README


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert ROOT.joinpath(link).exists(), link
