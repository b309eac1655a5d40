"""The report: whole on its own, safe whatever things are called, honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.helpers import (
    HOSTILE,
    Elements,
    Steps,
    make_set,
    shifted,
    spec_of,
    travelling_sines,
    write_run,
)

from ups.errors import UpsError, UsageError
from ups.evaluation import pictures, plots
from ups.evaluation.evaluate import Protocol, evaluate
from ups.evaluation.report import Run, write_report
from ups.evaluation.summary import Scores, number, plain, with_unit
from ups.models.baselines import Persistence
from ups.physics.solvers.cost import SolverCost


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("tasks", [("advection1d",), ("reaction_diffusion2d",), ("advection1d", "burgers1d")])
def test_report_is_one_well_formed_file_that_asks_for_nothing(
    tmp_path: Path, tasks: tuple[str, ...], drawn: bool
) -> None:
    html = write_report(write_run(tmp_path, tasks, drawn=drawn)).read_text()
    elements = Elements(html)
    assert elements.open == []
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes[name])
    assert "url(http" not in html
    assert "@import" not in html
    assert len(html) < 5_000_000
    for task in tasks:
        assert f"<b>{task}</b>" in html


@pytest.mark.parametrize("drawn", [False, True])
def test_names_cannot_become_markup(tmp_path: Path, drawn: bool) -> None:
    html = write_report(write_run(tmp_path, name="a<b>&'\"", drawn=drawn)).read_text()
    assert HOSTILE not in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("<script") == 2  # the player's numbers and the player
    assert "<title>a&lt;b&gt;" in html


def test_uncertainty_is_shown_where_there_is_an_ensemble(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path, drawn=True)).read_text()
    section = html[html.index('<section id="uncertainty"') : html.index('<section id="pictures"')]
    assert section.count('class="readings"') == 2  # one for each emulator that draws
    assert section.count("<svg") == 3  # their reliability together, spread and error of each
    assert "Overconfident" in section
    assert html.count("ensemble, t = ") == 3 * 4  # worst, median and best at four times
    assert 'href="#uncertainty"' in html
    without = write_report(write_run(tmp_path, name="without")).read_text()
    assert "uncertainty" not in without.lower().replace("uncertainty of", "")
    assert "deterministic: there is no ensemble to score" in without
    plane = write_report(write_run(tmp_path, ("reaction_diffusion2d",), name="plane", drawn=True)).read_text()
    assert plane.count(">ensemble mean<") == plane.count(">spread<") == 3 * 2  # three trajectories of two fields
    assert plane.count("ensemble, spread at t = ") == 3 * 2 * 5


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    html = write_report(run).read_text()
    assert "Not compared with linear, fno, unet" in html
    (run / "evaluation" / "fields.npz").unlink()
    assert "No trajectories were kept to look at" in write_report(run).read_text()
    (run / "evaluation" / "full.json").rename(run / "evaluation" / "small.json")
    assert "Only the small evaluation exists" in write_report(run).read_text()
    shutil.rmtree(run / "evaluation")
    for name in ("metadata.json", "log.jsonl"):
        (run / name).unlink()
    html = write_report(run).read_text()
    for said in ("not been evaluated", "Nothing was logged", "environment is not known"):
        assert said in html


def test_damaged_files_and_no_folder_are_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            UsageError, match=f"{folder.name} is no run's folder: it has no config.yaml; give the folder"
        ):
            write_report(folder)
    assert list(tmp_path.iterdir()) == []
    run = write_run(tmp_path)
    full = run / "evaluation" / "full.json"
    content = json.loads(full.read_text())
    full.write_text(json.dumps({**content, "schema_version": 0}))
    with pytest.raises(UpsError, match="another version"):
        write_report(run)
    del content["details"]["advection1d"]["emulators"]["ups"]["per_sample"]["0"]
    full.write_text(json.dumps(content))
    with pytest.raises(UpsError, match=r"fields\.npz is of another evaluation"):
        write_report(run)
    full.write_text("{")
    with pytest.raises(UpsError, match=r"full\.json is damaged"):
        write_report(run)


def test_the_solver_is_told_of(tmp_path: Path) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    cost = SolverCost(
        resolution=24, nrmse=0.0123, seconds_per_trajectory=0.5, found=True, tried=(), samples=4, target=0.02
    )
    found = evaluate({"ups": Steps(sets, shifted)}, sets, protocol=Protocol())
    found.with_solver_costs({"advection1d": cost}, {"advection1d": 0.25}).save(tmp_path / "evaluation", "full")
    (tmp_path / "config.yaml").write_text("")
    html = write_report(tmp_path).read_text()
    assert "Its error is" not in html
    assert "judged on 4 trajectories only" in html
    assert "at 24 points per axis, at least as accurate, has an nRMSE of 0.0123 and takes 500 ms" in html
    assert (
        "over all 4 trajectories, on which ups has 0.0200 and takes 250 ms per trajectory, as one batch, too." in html
    )
    full = tmp_path / "evaluation" / "full.json"
    content = json.loads(full.read_text())
    content["details"]["advection1d"]["solver"]["samples"] = 3
    full.write_text(json.dumps(content))
    assert "over 3 of the 4 trajectories, on which" in write_report(tmp_path).read_text()
    for name in ("samples", "target"):  # as an older version wrote it
        del content["details"]["advection1d"]["solver"][name]
    full.write_text(json.dumps(content))
    assert "per trajectory.</p>" in write_report(tmp_path).read_text()


def test_a_diverged_run_is_reported(tmp_path: Path) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    emulators = {
        "ups": Steps(sets, lambda u: u * torch.nan),
        "persistence": Persistence({"advection1d": spec_of(sets["advection1d"])}),
    }
    evaluate(emulators, sets, protocol=Protocol()).save(tmp_path / "evaluation", "full")
    (tmp_path / "config.yaml").write_text("")
    html = write_report(tmp_path).read_text()
    assert "The roll-out has no score: 4 of 4 roll-outs diverged" in html
    assert "No spectrum" in html


def test_environment_begins_with_the_machine_and_ends_with_hashes(tmp_path: Path) -> None:
    known = {
        "architecture": "aa",
        "config_hash": "bb",
        "last_full_eval": None,
        "machine": {"device": "cpu"},
        "steps": {"operator": {"key": "cc", "seconds": 3.0}},
        "threads": 2,
        "versions": {"torch": "9"},
    }
    run = write_run(tmp_path, **{"metadata.json": json.dumps(known)})
    lines = Run(run).environment
    assert [name for name, _ in lines] == [
        *("machine.device", "threads", "versions.torch", "last_full_eval"),
        *("steps.operator.seconds", "architecture", "config_hash"),
    ]
    assert dict(lines)["last_full_eval"] == "–"


def test_a_diverged_roll_out_is_not_drawn_as_one_that_conserves() -> None:
    def drawn(*drift: float | None) -> str:
        return plots.conservation([1e-4] * 4, {0: drift}, dt=0.1)

    assert drawn(1e-3, 1e-2, None, None) != drawn(1e-3, 1e-2, 0.0, 0.0)
    assert drawn(1e-3, 1e-2, 1e-12, 0.0) == drawn(1e-3, 1e-2, 0.0, 0.0)


def test_training_of_baselines_is_called_by_their_names_and_one_point_is_drawn(tmp_path: Path) -> None:
    records = [{"stage": "baselines-fno", "step": 1, "loss": 0.5}]
    records += [{"stage": "operator", "step": step, "loss": 1 / step} for step in (1, 2)]
    log = "".join(json.dumps(record) + "\n" for record in records)
    single, several = Run(write_run(tmp_path, **{"log.jsonl": log})).stages()
    assert [single.name, several.name] == ["fno (baseline)", "operator"]
    round_marks = [bool(re.search(r"^C ", stage.chart, flags=re.MULTILINE)) for stage in (single, several)]
    assert round_marks == [True, False]


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "says"),
    [
        (0.01, 0.0512, "good", "5.12 times smaller than that of the best baseline, fno"),
        (0.0512, 0.01, "bad", "5.12 times that of the best baseline, fno"),
        (0.0104, 0.01, "even", "about as good as the best baseline, fno"),
        (0.01, 0.0104, "even", "about as good as the best baseline, fno"),
        (0.0106, 0.01, "bad", "1.06 times that of the best baseline, fno"),
        (None, 0.01, "bad", "no score: it diverged"),
        (0.01, None, "unknown", "nothing to compare it with"),
    ],
)
def test_verdict(ours: float | None, theirs: float | None, kind: str, says: str) -> None:
    content: dict[str, Any] = {
        "tasks": {"t": {"nrmse": ours}},
        "baselines": {"persistence": {"t": {"nrmse": theirs and 2 * theirs}}, "fno": {"t": {"nrmse": theirs}}},
        "reasons": {"tasks": {"t": {"nrmse": "it diverged"}}},
        "protocol": {"tasks": {"t": {"num_samples": 5}}},
    }
    found, sentence = Scores(content).verdict("t")
    assert found == kind
    assert says in sentence
    assert "only" not in sentence
    content["protocol"]["tasks"]["t"]["num_samples"] = 1
    assert Scores(content).verdict("t") == (kind, sentence + " That is judged on one trajectory only.")


def test_one_trajectory_is_not_several(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    full = run / "evaluation" / "full.json"
    content = json.loads(full.read_text())
    content["protocol"]["tasks"]["advection1d"]["num_samples"] = 1
    full.write_text(json.dumps(content))
    html = write_report(run).read_text()
    assert "judged on 1 trajectory kept" in html
    assert "1 trajectories" not in html


def test_numbers_for_people() -> None:
    assert plain(0.000123456) == "0.000123"
    assert plain(1234.5) == "1230"
    assert plain(5.96, 2) == "6.0"
    assert plain(0.9999) == "1.00"
    assert str(number(2.5e-7)) == "2.50&#8202;×&#8202;10<sup>−7</sup>"
    assert str(number(9.999e-6)) == "1.00&#8202;×&#8202;10<sup>−5</sup>"
    assert str(with_unit(0.0123, "s")) == "12.3 ms"
    assert str(with_unit(3.0, "")) == "3"


def test_player_numbers_come_back_as_they_went_in() -> None:
    """Quantising keeps errors to a half step of their own scale, and marks what is not finite."""
    import base64
    import zlib

    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 2, 8)).astype(np.float32)
    values[1, 0, 3] = np.nan
    low, high = [-4.0, -5.0], [4.0, 5.0]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(pictures._pack(values, low, high, 16))), "<u2").reshape(
        values.shape
    )
    assert codes[1, 0, 3] == 65535
    back = np.array(low)[None, :, None] + codes / 65534 * (np.array(high) - np.array(low))[None, :, None]
    finite = np.isfinite(values)
    assert np.abs(back - values)[finite].max() <= 5 / 65534 + 1e-6


def test_pictures_run_right_and_up() -> None:
    import base64
    import io

    from matplotlib.image import imread

    values = np.zeros((3, 2))
    values[2, 0] = 1.0
    values[0, 1] = np.nan
    source = pictures.picture(values, 0.0, 1.0, "gray")
    pixels = imread(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert pixels.shape == (2, 3, 4)
    assert pixels[1, 2].tolist() == [1, 1, 1, 1]  # the end of the first axis, the start of the second: right, below
    assert pixels[0, 0, 3] == 0
    assert pixels[..., 0].sum() == 1
