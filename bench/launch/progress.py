"""Display of progress: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tqdm import tqdm

from bench.launch.items import Item
from bench.launch.status import duration, position
from bench.records.inputs import printable

LINE_SECONDS = 30.0  # between progress lines where there is no terminal


class Progress:
    """Progress of runs, from their records, and of their study: bars on a terminal, plain lines elsewhere.

    Rates and the time left are those of this session; what earlier ones did does not count.
    """

    def __init__(self, study: str, n_runs: int) -> None:
        self.study, self.n_runs, self.n_finished = study, n_runs, 0
        self.bars: dict[Path, tqdm] = {}
        # None: no terminal; without smoothing the time left follows from all runs of the session
        self.whole = tqdm(total=n_runs, desc=study, unit="run", smoothing=0) if sys.stderr.isatty() else None
        self.begun = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (*self.bars.values(), *filter(None, [self.whole])):
            bar.close()

    def finished(self, item: Item, result: str) -> None:
        self.n_finished += 1
        if item.folder in self.bars:
            self.bars.pop(item.folder).close()
        line = f"[{self.n_finished}/{self.n_runs}] {item.folder.name}: {printable(result)}"
        tqdm.write(line, file=sys.stderr)
        if self.whole is not None:
            self.whole.update()

    def show(self, running: list[Item]) -> None:
        """Show the positions of `running`, items at work here or under another launcher."""
        if self.whole is not None:
            self.whole.refresh()
            for item in running:
                self.show_bar(item)
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            positions = {item.folder.name: position(item.folder) for item in running}
            begun = {name: at for name, at in positions.items() if at.stage != "starting"}
            for name, at in begun.items():
                tqdm.write(f"{name}: {at}", file=sys.stderr)
            if len(begun) < len(positions):  # on Slurm they may be pending for days
                tqdm.write(f"{len(positions) - len(begun)} submitted, not started", file=sys.stderr)
            tqdm.write(self.line(self.last_line - self.begun), file=sys.stderr)

    def show_bar(self, item: Item) -> None:
        """The bar of a run; a new one for each stage, and where a run began again behind its last position."""
        at, bar = position(item.folder), self.bars.get(item.folder)
        if bar is None or bar.unit != at.unit or at.at < bar.initial:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=item.folder.name, total=at.of, initial=at.at, unit=at.unit, leave=False)
            self.bars[item.folder] = bar
        bar.n = at.at
        bar.set_postfix_str(printable(at.stage))

    def line(self, seconds: float) -> str:
        """The study's own line, after so many seconds."""
        line = f"{self.study}: {self.n_finished} of {self.n_runs} runs ended"
        if not self.n_finished:
            return line
        return f"{line}, about {duration(seconds / self.n_finished * (self.n_runs - self.n_finished))} left"
