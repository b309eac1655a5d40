"""Files and overrides: what wins, and what is said of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.settings_files import MINIMAL, problems_of, write

from ups.config import load_settings
from ups.config.names import setting_names
from ups.errors import SettingsError


def test_file_wins_over_includes_later_includes_over_earlier_and_overrides_over_all(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        deep="seed: 1\nthreads: 1\nlatent: {dim: 8, patch: 2}\n",
        first="include: deep.yaml\nseed: 2\nlatent: {dim: 16}\n",
        second="threads: 3\nruns_dir: second\n",
        top=f"include: [first.yaml, second.yaml]\nruns_dir: top\n{MINIMAL}",
    )
    settings = load_settings(top, ["seed=9"])
    assert (settings.seed, settings.threads, settings.runs_dir) == (9, 3, "top")
    assert (settings.latent.dim, settings.latent.patch) == (16, 2)


def test_lists_are_replaced_and_files_are_one_value(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        base="data: {files: {a: x.h5, b: y.h5}}\nevaluation: {baselines: [fno, unet]}\n",
        top="include: base.yaml\ntask: c\ndata: {files: {c: z.h5}}\nevaluation: {baselines: [linear]}\n",
    )
    settings = load_settings(top)
    assert settings.data.files == {"c": ("z.h5",)}
    assert settings.evaluation.baselines == ("persistence", "linear")


def test_a_pattern_on_the_command_line_needs_no_quotes_of_its_own(tmp_path: Path) -> None:
    top = write(tmp_path, top="task: c\n")
    assert load_settings(top, ["data.files=*.h5"]).data.files == ("*.h5",)
    assert load_settings(top, ["data.files=[a*.h5, '*b.h5']"]).data.files == ("a*.h5", "*b.h5")


def test_a_budget_displaces_another_kind_of_budget_but_two_in_one_place_are_refused(tmp_path: Path) -> None:
    text = f"{MINIMAL}stages: {{operator: {{epochs: 3, patience: 4}}}}\n"
    operator = load_settings(write(tmp_path, top=text), ["stages.operator.seconds=5"]).stages.operator
    assert (operator.epochs, operator.seconds, operator.patience) == (None, 5.0, 4)
    said = problems_of(tmp_path, f"{MINIMAL}stages: {{operator: {{steps: 3, seconds: 4}}}}\n")
    assert "stages.operator (" in said
    assert "give exactly one budget out of epochs, steps and seconds; found steps and seconds" in said
    said = problems_of(tmp_path, text, "stages.operator.steps=3", "stages.operator.seconds=4")
    assert "found steps and seconds" in said, "nor does one on the command line displace another there"
    again = ["stages.operator.steps=3", "stages.operator.steps=5"]
    assert load_settings(write(tmp_path, top=text), again).stages.operator.steps == 5


def test_another_schedule_takes_its_keys_along(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        base="optimizer: {scheduler: {name: cosine, final: 0.5}}\n",
        top=f"include: base.yaml\n{MINIMAL}optimizer: {{scheduler: {{name: step, gamma: 0.1}}}}\n",
    )
    assert load_settings(top).optimizer.scheduler.model_dump() == {
        "name": "step",
        "warmup": 0.05,
        "step_size": 0.25,
        "gamma": 0.1,
    }
    for order in (1, -1):
        changes = ["optimizer.scheduler.step_size=0.1", "optimizer.scheduler.name=step"][::order]
        scheduler = load_settings(write(tmp_path, top=MINIMAL), changes).optimizer.scheduler.model_dump()
        assert (scheduler["name"], scheduler["step_size"]) == ("step", 0.1)
    kept = load_settings(write(tmp_path, top=f"include: base.yaml\n{MINIMAL}"), ["optimizer.scheduler.warmup=0.2"])
    assert kept.optimizer.scheduler.model_dump() == {"name": "cosine", "warmup": 0.2, "final": 0.5}


def test_a_stage_inherits_what_its_optimizer_leaves_out(tmp_path: Path) -> None:
    text = (
        f"{MINIMAL}optimizer: {{name: adamw, lr: 0.1, scheduler: {{name: wsd}}}}\n"
        "stages: {operator: {epochs: 1, optimizer: {lr: 0.2}}, "
        "codec: {epochs: 1, scheduler: {name: plateau}, batch_size: 7}}\n"
    )
    settings = load_settings(write(tmp_path, top=text))
    operator, codec = settings.optimizer_of("operator"), settings.optimizer_of("codec")
    assert (operator.name, operator.lr, operator.scheduler.name) == ("adamw", 0.2, "wsd")
    assert (codec.name, codec.lr, codec.scheduler.name) == ("adamw", 0.1, "plateau")
    assert (settings.batch_size_of("codec"), settings.batch_size_of("operator")) == (7, settings.training.batch_size)


def test_task_at_the_top_is_data_task(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, top=MINIMAL)).data.task == ("burgers1d",)
    several = load_settings(write(tmp_path, top="seed: 1\n"), ["task=[a, b]"])
    assert several.data.task == ("a", "b")
    assert "give one of them" in problems_of(tmp_path, "task: a\ndata: {task: b}\n")
    base_then_top = write(tmp_path, base="data: {task: a}\n", top="include: base.yaml\ntask: b\n")
    assert load_settings(base_then_top).data.task == ("b",)


def test_every_problem_is_listed_with_its_place_and_source(tmp_path: Path) -> None:
    write(tmp_path, base="latent: {dim: -3}\ntraining: {grad_clip: yes}\n")
    said = problems_of(
        tmp_path,
        'include: base.yaml\ntraining: {num_workers: "3"}\noptimizer: {betas: [0.9, 2], lr: -5}\n'
        "operator: {pdet: {heads: 3}}\n",
        "seed=soon",
    )
    for line in (
        "top.yaml: 8 problems in the settings",
        "seed (command line): must be a whole number, not 'soon'",
        "data (",
        "base.yaml): must be above 0, not -3",
        "base.yaml): must be a number, not 'yes'",
        "training.num_workers (",
        "must be a whole number or 'auto', not '3'",
        "optimizer.betas[1] (",
        "must be above 0, not -5",
        "heads is 3, which does not divide hidden_dim, 64",
    ):
        assert line in said, said


def test_of_a_list_with_a_wrong_item_only_the_item_is_complained_about(tmp_path: Path) -> None:
    said = problems_of(tmp_path, MINIMAL, "operator.pdet.coarsen=[0, 2]")
    assert "1 problem in the settings" in said
    assert "operator.pdet.coarsen[0] (command line): must be above 0, not 0" in said


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.batch_sise", "training.batch_size"),
        ("trainig", "training"),
        ("training.lr", "optimizer.lr"),
        ("data.split.trian", "data.split.train"),
        ("latent.heads", "operator.pdet.heads"),
        ("stages.codec.epoch", "stages.codec.epochs"),
        ("optimizer.scheduler.warm_up", "optimizer.scheduler.warmup"),
        ("data.generate.sample", "data.generate.samples"),
        ("sead", "seed"),
        ("operator.seconds", "stages.operator.seconds"),
        ("diffusion.members", "evaluation.members"),
    ],
)
def test_an_unknown_key_names_the_nearest_known(tmp_path: Path, written: str, meant: str) -> None:
    extra = ["data.generate.samples=2"] if written.startswith("data.generate") else []
    said = problems_of(tmp_path, MINIMAL, *extra, f"{written}=1")
    assert f"{written} (command line): unknown setting; did you mean {meant}?" in said


def test_a_key_like_no_other_is_refused_without_a_guess(tmp_path: Path) -> None:
    assert "xyzzyx (command line): unknown setting; remove it" in problems_of(tmp_path, MINIMAL, "xyzzyx=1")


def test_a_key_of_another_schedule_is_said_to_be_one(tmp_path: Path) -> None:
    said = problems_of(tmp_path, f"{MINIMAL}optimizer: {{scheduler: {{name: step, final: 0.1}}}}\n")
    assert "optimizer.scheduler.final" in said
    assert "does not belong to the kind chosen by name" in said


@pytest.mark.parametrize("name", setting_names())
def test_every_name_that_may_be_suggested_is_known(tmp_path: Path, name: str) -> None:
    """A wrong value is complained about, and never the name."""
    assert "unknown" not in problems_of(tmp_path, MINIMAL, f"{name}=[[1]]")


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".a=3", "a b=3", "seed=", "seed= ", "include=x.yaml"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    assert "command line" in problems_of(tmp_path, MINIMAL, override)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_must_be_a_mapping(tmp_path: Path, text: str) -> None:
    assert "must be a mapping" in problems_of(tmp_path, text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.yaml", "no such"), (tmp_path, "not a file")):
        with pytest.raises(SettingsError, match=said):
            load_settings(path)
    (tmp_path / "top.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(tmp_path / "top.yaml")
    (tmp_path / "top.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(SettingsError, match="larger than"):
        load_settings(tmp_path / "top.yaml")


@pytest.mark.parametrize("budget", ["seconds: 0", "steps: 0", "seconds: 0.0"])
def test_a_budget_of_nothing_says_how_a_stage_is_skipped(tmp_path: Path, budget: str) -> None:
    said = problems_of(tmp_path, MINIMAL + f"stages: {{diff_residual: {{{budget}}}}}\n")
    assert "must be above 0" in said
    assert "; to skip the stage, give stages.diff_residual.epochs=0" in said
    assert "to skip" not in problems_of(tmp_path, MINIMAL + "stages: {operator: {seconds: -1}}\n")


def test_a_stage_has_checkpoints_at_its_own_interval_or_at_that_of_all(tmp_path: Path) -> None:
    stages = "stages: {diff_residual: {checkpoint_interval: 4, epochs: 1}}\n"
    top = write(tmp_path, top=MINIMAL + "training: {checkpoint_interval: 9}\n" + stages)
    settings = load_settings(top)
    assert settings.checkpoint_interval_of("diff_residual") == 4
    assert settings.checkpoint_interval_of("operator") == 9
