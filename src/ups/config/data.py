"""Settings of the data: where it is, how it is split, and how it is cut into windows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ups.config.kinds import Files, Fraction, Group, Word, Words


class SplitSettings(Group):
    """Which trajectories train, choose and judge: by fractions of the trajectories, or by named files."""

    train: Fraction = 0.8
    """Part of the trajectories that train."""
    valid: Fraction = 0.1
    """Part that weights are chosen by; of the training files where files are named and `valid_files` is null."""
    test: Fraction = 0.1
    """Part that judges."""
    seed: NonNegativeInt = 0
    """Of the permutation of trajectories; independent of the training seed, so that runs with other seeds compare."""
    order: Literal["random", "file"] = "random"
    """`file`: the first fraction of each file is test, then valid, then train."""
    train_files: Files | None = None
    """Files that train; with `test_files`, they take the place of the fractions."""
    valid_files: Files | None = None
    """Files that weights are chosen by; null takes the fraction `valid` of the training files."""
    test_files: Files | None = None
    """Files that judge."""

    @property
    def by_files(self) -> bool:
        """Whether the splits are named files instead of fractions."""
        return self.train_files is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = (self.train_files, self.valid_files, self.test_files)
        if any(files is not None for files in named) and (self.train_files is None or self.test_files is None):
            raise ValueError("named files need both train_files and test_files (valid_files may be left out)")
        if self.by_files:
            self._check_unread()
        if not self.by_files and self.train + self.valid + self.test > 1 + 1e-9:
            raise ValueError(f"train + valid + test is {self.train + self.valid + self.test:g}; it must be at most 1")
        cut = ("train", "valid", "test") if not self.by_files else ("valid",) if self.valid_files is None else ()
        empty = [name for name in cut if getattr(self, name) == 0]
        if empty:
            raise ValueError(f"{' and '.join(empty)} would be empty; training, choosing and judging each need a part")
        return self

    def _check_unread(self) -> None:
        """Refuses what says how to cut files that are named whole."""
        ways = ("valid", "seed", "order") if self.valid_files is not None else ()
        fields = type(self).model_fields
        unread = [name for name in ("train", "test", *ways) if getattr(self, name) != fields[name].default]
        if unread:
            raise ValueError(f"{' and '.join(unread)} would not be read: the splits are named files; leave it out")


class GenerateSettings(Group):
    """How to make the data with the reference solver when its files are absent."""

    samples: PositiveInt
    """Trajectories to make, in each file."""
    seed: NonNegativeInt = 0
    """Of the initial states."""
    params: dict[Word, float] = Field(default_factory=dict)
    """PDE parameters by name, such as `nu`; the rest keep the equation's defaults."""
    resolution: Annotated[int, Field(ge=8)] | None = None
    """Points per axis; null is the equation's own."""
    frames: Annotated[int, Field(ge=2)] | None = None
    """Frames of a trajectory, the first included; null is the equation's own."""


class DataSettings(Group):
    """Which data, and how it is cut into windows."""

    task: Words
    """Names of equations, such as `burgers1d`; a list trains one model on several."""
    root: Word = "data"
    """Folder of the files, relative to the working directory."""
    files: Files | None = None
    """Files relative to `root`: one name or a list (a single task), or a mapping from task to those."""
    split: SplitSettings = SplitSettings()
    """Which trajectories train, choose and judge."""
    time_stride: PositiveInt = 1
    """Every how many frames one is kept."""
    context: PositiveInt = 1
    """True frames a prediction starts from."""
    resolution: Annotated[int, Field(ge=4)] | None = None
    """Points per axis to subsample to."""
    max_samples: PositiveInt | None = None
    """Most trajectories of a task: the first of each file, as evenly as they allow; null takes all."""
    normalize: bool = True
    """Scale every field by its mean and standard deviation over the train split. False is for fields of the size of 1:
    others are refused, as the floors of the losses reckon with that."""
    memory_budget_gb: PositiveFloat = 4.0
    """Data that take more GiB as float32, all tasks together, stay on disk and are read lazily."""
    generate: GenerateSettings | None = None
    """Make files that are absent; null does not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.task)) != len(self.task):
            raise ValueError(f"task names {', '.join(self.task)}: each task may be named once")
        groups = {"files": self.files, "split.train_files": self.split.train_files}
        groups |= {"split.valid_files": self.split.valid_files, "split.test_files": self.split.test_files}
        for key, files in groups.items():
            if isinstance(files, tuple) and len(self.task) > 1:
                raise ValueError(f"{key} must be a mapping from task to files: there are {len(self.task)} tasks")
            if isinstance(files, dict) and set(files) != set(self.task):
                raise ValueError(f"{key} names the tasks {', '.join(files)}, but task names {', '.join(self.task)}")
        if self.generate is not None:
            self._check_generation(self.generate)
        if self.split.by_files and self.files is not None:
            raise ValueError("give either files, cut by fractions, or split.train_files and split.test_files; not both")
        return self

    def _check_generation(self, generate: GenerateSettings) -> None:
        """What is generated is one named file per task: two of one seed would hold the same trajectories."""
        by_task = self.files.values() if isinstance(self.files, dict) else [self.files or ()]
        if not all(len(names) == 1 and not set("*?[") & set(names[0]) for names in by_task):
            raise ValueError("generate makes one file per task: name each in files, without a pattern")
        if generate.params and len(self.task) > 1:
            raise ValueError("generate.params are of one equation, and there are several tasks; use 'ups data make'")
