"""Includes: followed within the folder of the top file, and refused where they lead out, in a circle or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.config.settings_files import MINIMAL, problems_of, write

from ups.config import load_settings


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that no settings file in `tmp_path/inside` may reach; its contents would be complained about."""
    (tmp_path / "inside").mkdir()
    secret = tmp_path / "secret.yaml"
    secret.write_text("canary: 1\n", encoding="utf-8")
    return secret


def test_includes_do_not_leave_the_folder(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "inside"
    (folder / "sub").mkdir()
    (folder / "link.yaml").symlink_to(outside)
    (folder / "folder").symlink_to(tmp_path)
    (folder / "chain.yaml").write_text("include: link.yaml\n", encoding="utf-8")
    ways = ["../secret.yaml", "sub/../../secret.yaml", "link.yaml", "folder/secret.yaml", "chain.yaml", str(outside)]
    for include in ways:
        said = problems_of(folder, f"include: {include}\n{MINIMAL}")
        assert "leads out of" in said
        assert "canary" not in said


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    write(tmp_path, real="seed: 4\n")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    assert load_settings(write(tmp_path, top=f"include: link.yaml\n{MINIMAL}")).seed == 4


def test_a_folder_below_may_include_from_the_folder_above_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "child.yaml").write_text("include: ../base.yaml\n", encoding="utf-8")
    write(tmp_path, base="seed: 5\n")
    assert load_settings(write(tmp_path, top=f"include: sub/child.yaml\n{MINIMAL}")).seed == 5


@pytest.mark.parametrize("include", ["top.yaml", "a.yaml"])
def test_circles_are_refused(tmp_path: Path, include: str) -> None:
    write(tmp_path, a="include: b.yaml\n", b="include: a.yaml\n")
    assert "closes a circle" in problems_of(tmp_path, f"include: {include}\n{MINIMAL}")


def test_a_diamond_is_no_circle_but_a_tower_of_them_ends(tmp_path: Path) -> None:
    write(tmp_path, base="seed: 6\n", left="include: base.yaml\n", right="include: base.yaml\n")
    assert load_settings(write(tmp_path, top=f"include: [left.yaml, right.yaml]\n{MINIMAL}")).seed == 6
    tower = {f"l{i}": f"include: [l{i + 1}.yaml, l{i + 1}.yaml]\n" for i in range(30)}
    write(tmp_path, **tower, l30="seed: 1\n")
    assert "includes more than" in problems_of(tmp_path, f"include: l0.yaml\n{MINIMAL}")


@pytest.mark.parametrize("include", ["3", "{a: b}", "[1]", "['']"])
def test_an_include_is_a_name_or_a_list_of_names(tmp_path: Path, include: str) -> None:
    assert "include must be" in problems_of(tmp_path, f"include: {include}\n{MINIMAL}")


def test_an_include_that_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "no such settings file" in problems_of(tmp_path, f"include: none.yaml\n{MINIMAL}")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a file" in problems_of(tmp_path, f"include: pipe.yaml\n{MINIMAL}")
