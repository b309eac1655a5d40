"""The charts of one task's scores: every emulator in its own colour, drawn from what the evaluation wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ups.evaluation import plots
from ups.evaluation.summary import Scores


class Charts:
    """Charts of all emulators on a task.

    Args:
        scores: of a run.
        task: name of it.
    """

    def __init__(self, scores: Scores, task: str) -> None:
        self.details, self.names = scores.details(task), scores.emulators
        found = self.details["emulators"]
        self.numbered: dict[int, Mapping[str, Any]] = {
            number: found[name] for number, name in enumerate(self.names) if name in found
        }

    def error(self) -> Markup:
        """Error against time."""
        curves = {number: one["error_curve"] for number, one in self.numbered.items()}
        return plots.error_against_time(curves, self.details["dt"])

    def samples(self) -> Markup:
        """Errors of the trajectories one by one."""
        errors = {self.names[number]: list(one["per_sample"].values()) for number, one in self.numbered.items()}
        return plots.sample_errors(errors)

    def conservation(self) -> Markup | None:
        """Drift of a conserved integral against time; None where there is none, or an older evaluation kept none."""
        found = {number: drift for number, one in self.numbered.items() if (drift := one.get("conservation"))}
        if 0 not in found:
            return None
        predictions = {number: one["prediction"] for number, one in found.items()}
        return plots.conservation(found[0]["truth"], predictions, self.details["dt"])

    def spectra(self) -> list[tuple[str, Markup]]:
        """A chart of the energy spectrum of each field; none where the emulator under judgement diverged."""
        found = {number: one["spectrum"] for number, one in self.numbered.items() if one["spectrum"] is not None}
        if 0 not in found:
            return []
        whole = min(self.details["grid"]) // 2 + 1  # shells beyond are cut by the corners of the wave numbers

        def chart(channel: int) -> Markup:
            predictions = {number: one["prediction"][channel][:whole] for number, one in found.items()}
            ours = found[0]
            return plots.spectrum(ours["truth"][channel][:whole], predictions, {0: ours["error"][channel][:whole]})

        return [(name, chart(channel)) for channel, name in enumerate(self.details["fields"])]
