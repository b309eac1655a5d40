"""Rules between settings, strict types, and that the shipped files are settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ups.config import Settings, load_settings
from ups.config.merge import deep_merge

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
NOTHING = {"lambda_forward": 0.0, "lambda_relative": 0.0, "lambda_spectral": 0.0}
TRAINS_CODEC = {"latent": {"codec": {"train_with_operator": True}}}
PRIORS = {"enabled": True, "lambda_conservation": 0.1}
LATENT_PRIORS = {"enabled": True, "lambda_latent_norm": 0.1}
STUDENT = {"stages": {"diff_residual": {"epochs": 1}, "consistency_distill": {"epochs": 1}}}
CACHE = {"latent_cache_dir": "cache", "augment": False}


def build(tree: Mapping[str, Any]) -> Settings:
    """Settings of a tree laid over the smallest that is complete."""
    return Settings.model_validate(deep_merge({"data": {"task": "burgers1d"}}, tree))


def test_a_stage_that_overrides_something_else_keeps_its_budget() -> None:
    stages = build({"stages": {"operator": {"patience": 3}, "codec": {"scheduler": {"name": "wsd"}}}}).stages
    assert (stages.operator.epochs, stages.operator.patience) == (100, 3)
    assert stages.codec.epochs == 20
    assert build({"stages": {"operator": {"patience": 3, "seconds": 5}}}).stages.operator.epochs is None


def test_shipped_files_load() -> None:
    assert SHIPPED
    for path in SHIPPED:
        assert load_settings(path).data.task, path.name


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"operator": {"pdet": {"heads": 5}}}, "does not divide hidden_dim"),
        ({"data": {"split": {"train": 0.9, "valid": 0.2}}}, "must be at most 1"),
        ({"data": {"split": {"train": 0.0}}}, "train would be empty"),
        ({"data": {"split": {"valid": 0.0, "test": 0.0}}}, "valid and test would be empty"),
        ({"data": {"split": {"train_files": "a", "test_files": "b", "valid": 0.0}}}, "valid would be empty"),
        ({"data": {"split": {"train_files": "a.h5"}}}, "both train_files and test_files"),
        ({"data": {"split": {"train_files": "a", "test_files": "b", "train": 0.5}}}, "train would not be read"),
        (
            {"data": {"split": {"train_files": "a", "test_files": "b", "valid_files": "c", "seed": 1}}},
            "seed would not be read",
        ),
        ({"data": {"split": {"valid_files": "a.h5"}}}, "both train_files and test_files"),
        ({"data": {"files": "a.h5", "split": {"train_files": "b", "test_files": "c"}}}, "not both"),
        ({"data": {"task": ["a", "a"]}}, "named once"),
        ({"data": {"task": ["a", "b"], "files": "a.h5"}}, "must be a mapping"),
        ({"data": {"task": ["a", "b"], "files": {"a": "a.h5"}}}, "names the tasks a"),
        ({"data": {"context": 0}}, "greater than 0"),
        ({"stages": {"diff_residual": {"patience": 3}}}, "exactly one budget"),
        ({"stages": {"codec": {"epochs": 1, "seconds": 1}}}, "found epochs and seconds"),
        ({"stages": {"codec": {"epochs": 0}, "operator": {"epochs": 0}}}, "nothing would be trained"),
        (
            {"latent": {"codec": {"train_with_operator": True}}, "stages": {"operator": {"epochs": 0}}},
            "train_with_operator",
        ),
        ({"operator": {"pdet": {"hidden_dim": 36, "heads": 4}}}, "36 // 4 = 9; rotary pairs need an even head width"),
        ({"training": {"lambda_rollout": 0.1}}, "rollout_horizon is 1"),
        ({"training": {"rollout_horizon": 2}}, "rollout_horizon is 2, but lambda_rollout is 0"),
        (
            {"training": {"lambda_rollout": 1.0, "rollout_horizon": 3, "rollout_gradient_steps": 3}},
            "that is all of them; give fewer, or null",
        ),
        ({"training": {"rollout_gradient_steps": 1}}, "of a rollout_horizon of 1"),
        (
            {**STUDENT, "diffusion": {"student_steps": 9}},
            "student_steps is 9, but the teacher's path has 8 steps",
        ),
        (
            {"stages": {**STUDENT["stages"], "consistency_distill": {"epochs": 1, "distill_num_taus": 1}}},
            "taught at one tau alone",
        ),
        (
            {"stages": {**STUDENT["stages"], "consistency_distill": {"epochs": 1, "tau_schedule": [3, 1]}}},
            "taught at one tau alone",
        ),
        ({"training": NOTHING}, "all 0: there is nothing to minimise"),
        ({"training": {**NOTHING, "lambda_inv_dec": 1.0}}, "nothing to minimise"),
        ({"training": {**NOTHING, "lambda_rollout": 1.0, "rollout_horizon": 2}}, "with rollout_start 0"),
        ({"training": {"lambda_inv_enc": 0.1}}, "the codec is frozen, there is nothing to train"),
        ({"training": {"lambda_inv_dec": 0.1}}, "the codec is frozen, and as it is linear"),
        (
            {"training": {"lambda_inv_dec": 0.1, "inverse_loss_max_weight": 0.0}, **TRAINS_CODEC},
            "lambda_inv_dec above 0 would have no",
        ),
        (
            {"training": {"lambda_inv_enc": 0.1, "inverse_loss_max_weight": 0.0}, **TRAINS_CODEC},
            "lambda_inv_enc above 0 would have no weight",
        ),
        (
            {"training": {"physics_priors": PRIORS}, "stages": {"operator": {"epochs": 0}}},
            "only lambda_latent_norm and lambda_latent_diversity train the codec, too",
        ),
        (
            {"training": {"physics_priors": PRIORS}, "guards": {"conservation": True}},
            "the term would be zero by construction",
        ),
        ({"guards": {"positivity": True}, **TRAINS_CODEC}, "guards.positivity: a guard is exact only where"),
        ({"training": {"latent_cache_dir": "cache", "augment": False}, **TRAINS_CODEC}, "train_with_operator is true"),
        ({"training": {"latent_cache_dir": "cache"}}, "training.augment is true: latents of moved fields"),
        ({"operator": {"symmetrize": 2}, "training": {"augment": False}}, "roll-outs would see fields in ways that"),
        ({"training": {**CACHE, "latent_cache_dtype": "float64"}}, "float16"),
        ({"training": {**CACHE, "preload": "never"}}, "auto"),
        ({"training": {"latent_cache_dir": ""}}, "at least 1 character"),
        ({"training": {"pin_memory": True}}, "Extra inputs are not permitted"),
        ({"optimizer": {"scheduler": {"name": "wsd", "warmup": 0.5, "decay": 0.6}}}, "has only 1"),
        ({"optimizer": {"scheduler": {"name": "linear"}}}, "does not match any of the expected tags"),
        ({"optimizer": {"lr": float("nan")}}, "finite"),
        ({"name": "../../x"}, "pattern"),
        ({"name": "<script>"}, "pattern"),
        ({"name": "a\nb"}, "pattern"),
        ({"name": "trailing\n"}, "pattern"),
        ({"name": ".hidden"}, "pattern"),
        ({"data": {"task": "a\nb"}}, "pattern"),
    ],
)
def test_rules_between_settings(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        build(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"operator": {"pdet": {"hidden_dim": 40, "heads": 4}}},
        {"training": {**NOTHING, "lambda_spectral": 0.1}},
        {"training": {**NOTHING, "lambda_rollout": 1.0, "rollout_horizon": 2, "rollout_start": 0.0}},
        {"training": {"lambda_inv_dec": 0.1}, **TRAINS_CODEC},
        {"training": {"lambda_inv_enc": 0.1}, **TRAINS_CODEC},
        {"training": {"physics_priors": LATENT_PRIORS}, "stages": {"operator": {"epochs": 0}}},
        {"training": {"inverse_loss_max_weight": 0.0}},
        {"training": {"physics_priors": PRIORS}, "guards": {"positivity": True}},
        {
            "training": {"physics_priors": {**PRIORS, "lambda_residual": 0.1, "lambda_conservation": 0.0}},
            "guards": {"conservation": True},
        },
        {"training": CACHE},
        {"training": {**CACHE, "latent_cache_dtype": "bfloat16", "preload": False}},
        {"training": {"augment": True}, **TRAINS_CODEC},
    ],
)
def test_what_the_rules_ask_for_is_taken(tree: dict[str, Any]) -> None:
    for group, settings in tree.items():
        assert build(tree).model_dump()[group] == deep_merge(build({}).model_dump()[group], settings)


@pytest.mark.parametrize(
    "tree",
    [
        {"seed": "3"},
        {"seed": 3.0},
        {"seed": True},
        {"deterministic": 1},
        {"deterministic": "true"},
        {"optimizer": {"lr": "1e-3"}},
        {"optimizer": {"lr": True}},
        {"runs_dir": 3},
        {"latent": {"patch": "4"}},
        {"operator": {"pdet": {"depths": [1, "2"]}}},
        {"data": {"files": [3]}},
        {"latent": None},
        {"latent": []},
    ],
)
def test_types_are_strict(tree: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        build(tree)


def test_a_whole_number_may_stand_for_a_float() -> None:
    lr = build({"optimizer": {"lr": 1}}).optimizer.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_persistence_is_always_a_baseline_and_is_there_once() -> None:
    assert build({"evaluation": {"baselines": []}}).evaluation.baselines == ("persistence",)
    assert build({"evaluation": {"baselines": "fno"}}).evaluation.baselines == ("persistence", "fno")
    assert build({"evaluation": {"baselines": ["fno", "persistence"]}}).evaluation.baselines == ("fno", "persistence")


@pytest.mark.parametrize(
    "data",
    [
        {"task": "burgers1d", "generate": {"samples": 4}},
        {"task": "burgers1d", "files": ["a.h5", "b.h5"], "generate": {"samples": 4}},
        {"task": "burgers1d", "files": "*.h5", "generate": {"samples": 4}},
    ],
)
def test_generation_needs_one_named_file_per_task(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="one file per task"):
        Settings.model_validate({"data": data})
