"""The pages of `docs/`: every setting with its meaning, the committed page as it is made now, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ups.config.document import main, settings_page
from ups.config.names import setting_names
from ups.config.schema import Settings
from ups.physics.equations import EQUATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = settings_page()
AGAIN = "docs/settings.md is not what the schema says: run `make docs`"


def rows(section: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and meaning of every key of a section."""
    found = re.findall(r"^\| `(\S+)` \| (.*?) \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    return {key: (kind, default, meaning) for key, kind, default, meaning in found}


def documented() -> dict[str, tuple[str, str, str]]:
    """The rows of the page under every place in which their section says that they stand."""
    found = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        place = re.match(r"`(\S+)`", section)
        also = re.search(r"^The same keys stand under (.*)\.$", section, flags=re.MULTILINE)
        for key, row in rows(section).items():
            found[key] = row
            for other in re.findall(r"`(\S+?)`", also[1]) if also and place else ():
                found[other + key.removeprefix(place[1])] = row
    return found


ROWS = documented()


@pytest.mark.parametrize("name", [name for name in setting_names() if name != "task"])
def test_every_key_has_a_row_and_a_meaning(name: str) -> None:
    in_any_stage = re.sub(r"^stages\.\w+\.(optimizer|scheduler)\.", r"stages.STAGE.\1.", name)
    kind, _, meaning = ROWS[in_any_stage]
    assert kind
    assert meaning, f"{name} has no meaning: write a docstring under it in src/ups/config"


def test_no_equation_has_a_velocity_without_divergence_yet() -> None:
    """As `guards.divergence` and `lambda_divergence` say."""
    assert not any(equation.solenoidal for equation in EQUATIONS.values())


def test_the_page_has_no_key_that_does_not_exist() -> None:
    assert {name for name in ROWS if ".STAGE." not in name} <= set(setting_names())


def test_the_committed_page_is_what_is_made_now(tmp_path: Path) -> None:
    main([str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == PAGE, AGAIN


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("seed", ("whole number from 0 and below 2^63", "`17`")),
        ("data.task", ("text or list of such", "required")),
        ("data.files", ("text, list of such, mapping from text to list of text or null", "`null`")),
        ("training.amp", ("true, false or `auto`", "`auto`")),
        ("training.physics_priors.bc_type", ("`dirichlet`, `neumann`, `periodic` or null", "`null`")),
        ("optimizer.betas", ("list of 2: number from 0 and below 1", "`[0.9, 0.99]`")),
        ("stages.codec", ("group", "`{epochs: 20}`")),
        ("stages.steady_prior.seconds", ("number above 0 or null", "`null`")),
        ("gates.ratios.ece", ("number above 0, `auto` or null", "`auto`")),
    ],
)
def test_types_and_defaults_in_words(name: str, row: tuple[str, str]) -> None:
    assert ROWS[name][:2] == row


def test_a_key_that_is_left_out_has_the_default_of_its_row() -> None:
    settings = Settings.model_validate({"task": "burgers1d", "evaluation": {"small": {}}}).model_dump(mode="json")
    compared = 0
    for name, (_, default, _) in ROWS.items():
        value: object = settings
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool | int | float | str) and not re.search("scheduler|stages", name):
            assert default in (f"`{value}`", f"`{str(value).lower()}`"), name
            compared += 1
    assert compared > 80


def test_rules_between_keys_are_listed_in_the_words_of_their_errors() -> None:
    assert "- heads is …, which does not divide hidden_dim, …" in PAGE
    assert "- give exactly one budget out of epochs, steps and seconds; found …" in PAGE
    assert PAGE.count("\n- ") > 30


def test_the_tests_that_pages_name_exist() -> None:
    """A page may say that something holds only if there is a test of that name."""
    named = {
        match for page in DOCS.glob("*.md") for match in re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", page.read_text())
    }
    assert named
    for place, name in named:
        assert (ROOT / place).is_file(), place
        tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
        functions = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
        assert not name or name in functions, f"{place}::{name}"


def test_pages_link_to_files_that_exist() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
