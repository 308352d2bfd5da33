"""A training from Python with a callback in every process: python calling.py stop|fail IMAGES OUTPUT."""

import os
import sys
from pathlib import Path

from toy import TOYS

import globalvit as gv
from globalvit.models.variants import VARIANTS


class Caller:
    """Notes every step; stops the run, or fails, after the second."""

    def __init__(self, how, notes):
        self.how, self.notes = how, notes

    def on_step(self, step):
        """Note the step."""
        with self.notes.open("a") as file:
            file.write(f"step {step.step}\n")
        if step.step == 2:
            raise gv.StopTraining if self.how == "stop" else ZeroDivisionError("two")

    def on_end(self, end):
        """Note the end."""
        with self.notes.open("a") as file:
            file.write(f"{end.reason} at {end.step}\n")


if __name__ == "__main__":
    VARIANTS.update(TOYS)
    how, images, output = sys.argv[1:]
    notes = Path(output, f"notes-{os.environ['RANK']}.txt")
    settings = {"image_size": 32, "batch_size": 4, "epochs": 2, "warmup_epochs": 0, "workers": 0, "device": "cpu"}
    try:
        run = gv.train(
            data_dir=images, weights=None, output=output, tag="run", callbacks=[Caller(how, notes)], **settings
        )
        result = f"{run.last.name}, {run.is_finished}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    Path(output, f"result-{os.environ['RANK']}.txt").write_text(result)
