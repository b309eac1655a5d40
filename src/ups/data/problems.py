"""What is wrong with data, said so that a person can mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ups.errors import DataError


@dataclass(frozen=True)
class DataProblem:
    """One thing that makes data unfit for training.

    Args:
        file: the file at fault, or the setting where no file is.
        what: what is wrong.
        where: the place inside the file (dataset, trajectory, frame); empty when it is the file as a whole.
        remedy: what to do about it.
    """

    file: str
    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.file}: {self.what}{place}; {self.remedy}"


class BadDataError(DataError):
    """Data with the problems that were found in it; the message lists every one."""

    def __init__(self, problems: Sequence[DataProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def bad(file: object, what: str, remedy: str, where: str = "") -> BadDataError:
    """The error of a single problem, to be raised."""
    return BadDataError([DataProblem(str(file), what, where, remedy)])


def raise_if_any(problems: Sequence[DataProblem]) -> None:
    """Raises BadDataError when there are problems."""
    if problems:
        raise BadDataError(problems)
