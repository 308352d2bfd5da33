"""Scripts in processes of their own that share one import of the package: each is forked from a server that has it."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch
from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["globalvit.cli.main", "globalvit.train.loop"])


class Process:
    """A script with its words that runs in a process of its own; what it prints is kept in the file `log`."""

    def __init__(self, words: tuple[str, ...], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self.process = CONTEXT.Process(target=_run, args=(words, str(log), environment))
        self.process.start()

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(60)

    def finish(self, timeout: float = 120) -> tuple[int | None, str]:
        """Wait for its end; returns the exit status, None where it still runs, and what it printed."""
        self.process.join(timeout)
        return self.process.exitcode, self.log.read_text()


def group_of(size: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """A store that must outlive the processes, and what torchrun puts into the environment of each."""
    # It chooses a free port itself, which no other test can take meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return store, [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _run(words: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.update(environment)
    # Loaders start their processes as they do in a command, not as this one was started.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")
