"""Resolved settings: written back they are the same, their hash is of their values, and they stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.config.settings_files import MINIMAL, write

from ups.config import Settings, dump_settings, load_settings, settings_hash

words = st.text(st.characters(blacklist_categories=["C"]), min_size=1, max_size=12)
fractions = st.floats(0, 0.33)
parts = st.floats(0.01, 0.33)
positive = st.floats(1e-8, 1e8)
counts = st.integers(1, 10**6)


def group(**keys: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """A group that gives any of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


def with_one_file_to_generate(data: dict[str, Any]) -> dict[str, Any]:
    """What is generated is one named file."""
    return {**data, "files": "made.h5"} if "generate" in data else data


schedules = st.one_of(
    group(warmup=fractions),
    group(warmup=fractions, final=fractions).map(lambda keys: {**keys, "name": "cosine"}),
    group(warmup=fractions).map(lambda keys: {**keys, "name": "step", "gamma": 0.3}),
    group(warmup=fractions, decay=st.floats(0.01, 0.5)).map(lambda keys: {**keys, "name": "wsd"}),
    group(patience=counts).map(lambda keys: {**keys, "name": "plateau"}),
)
optimizers = group(
    name=st.sampled_from(["adam", "adamw", "sgd", "muon"]),
    lr=positive | counts,
    betas=st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    scheduler=schedules,
)
stages = st.builds(
    lambda budget, rest: {**rest, **budget},
    st.sampled_from([{"epochs": 2}, {"steps": 10}, {"seconds": 1}]),
    group(optimizer=optimizers, scheduler=schedules, patience=counts, batch_size=counts),
)
trees = st.fixed_dictionaries(
    {"task": words},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True),
        "seed": st.integers(0, 2**40),
        "runs_dir": words,
        "data": group(
            root=words,
            files=words | st.lists(words, min_size=1, max_size=3),
            split=st.fixed_dictionaries({"train": parts, "valid": parts, "test": parts}),
            memory_budget_gb=positive | counts,
            generate=st.fixed_dictionaries({"samples": counts}, optional={"params": st.dictionaries(words, positive)}),
        ).map(with_one_file_to_generate),
        "latent": group(dim=counts, patch=counts | st.just("auto")),
        "operator": group(pdet=group(depths=counts | st.lists(counts, min_size=1, max_size=4), mlp_ratio=positive)),
        "training": group(amp=st.booleans() | st.just("auto"), grad_clip=positive | st.none(), lambda_forward=positive),
        "optimizer": optimizers,
        "stages": group(codec=stages, operator=stages),
        "evaluation": group(baselines=st.lists(st.sampled_from(["fno", "unet", "linear", "persistence"]), unique=True)),
    },
)


@given(trees)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resolved_settings_load_back_to_the_same_hash(tmp_path: Path, tree: dict[str, object]) -> None:
    settings = Settings.model_validate(tree)
    again = load_settings(write(tmp_path, top=dump_settings(settings)))
    assert again == settings
    assert settings_hash(again) == settings_hash(settings)
    assert dump_settings(again) == dump_settings(settings)


def test_the_hash_depends_on_values_and_not_on_how_they_are_written(tmp_path: Path) -> None:
    plain = load_settings(write(tmp_path, top=MINIMAL))
    for text in (
        "data: {files: [a.h5], task: [burgers1d]}\n",
        f"{MINIMAL}training: {{grad_clip: 1}}\nseed: 17\n",
        f"# a remark\n{MINIMAL}",
    ):
        assert settings_hash(load_settings(write(tmp_path, top=text))) == settings_hash(plain)
    assert settings_hash(load_settings(write(tmp_path, top=MINIMAL), ["seed=18"])) != settings_hash(plain)


def test_settings_are_frozen() -> None:
    settings = Settings.model_validate({"task": "burgers1d"})
    with pytest.raises(ValidationError, match="frozen"):
        settings.training.batch_size = 1  # type: ignore[misc]
