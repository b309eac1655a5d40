"""What starting costs: `ups --help` against bare Python, and loading settings against importing PyTorch.

    python bench/startup.py [--rounds 7] [--config configs/demo.yaml]

Every round times each command once, in turn; medians and their ratios are printed, and the same as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

READY = "from ups.config import load_settings; load_settings({config!r})"


def seconds(command: list[str]) -> float:
    """Wall time of a process from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Time the commands, interleaved, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--config", default="configs/demo.yaml")
    options = parser.parse_args()
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "ups --help": [sys.executable, "-m", "ups", "--help"],
        "settings": [sys.executable, "-c", READY.format(config=options.config)],
        "import torch": [sys.executable, "-c", "import torch"],
        "import ups.pipeline.run": [sys.executable, "-c", "import ups.pipeline.run"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for round_number in range(options.rounds + 1):
        for name, command in commands.items():
            taken = seconds(command)
            if round_number:  # the first round fills the file cache
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: value / medians["import torch"] for name, value in medians.items()}
    print(f"{'process':<26}{'median':>10}{'of import torch':>18}")
    for name, value in medians.items():
        print(f"{name:<26}{value * 1000:>7.0f} ms{ratios[name]:>18.2f}")
    print(json.dumps({"bench": "startup", "rounds": options.rounds, "ratio_to_import_torch": ratios}))


if __name__ == "__main__":
    main()
