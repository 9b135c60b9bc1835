"""Device, dtype, threads, seed, signals and folders: everything about the machine, decided in one place.

This is the only module that reads the environment, and the only one that names a device. It imports torch lazily, so
that `foretell --help` and `foretell plan` stay fast.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import signal
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Read by glibc at process start: transparent huge pages for malloc, and no giving back of large blocks between steps.
# Page faults cost a tenth to a half of a training step on CPU (docs/log.md). No caches of small blocks: a tensor is
# aligned, the few bytes before it would go to a cache, and there they would keep its neighbours from becoming one hole.
_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=33554432:"
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "MALLOC_ARENA_MAX": "2",
}
_EXECUTED = "FORETELL_TUNED"
_REPORT = "FORETELL_WORKER_REPORT"
_ONE_WISH_SECONDS = 15.0


def tune_process() -> None:
    """Restart this interpreter once with allocator settings that must be in the environment before it starts.

    `os.execve` keeps the process id, so a killed parent never leaves a trainer behind. Only the command line calls
    this, only for what trains or times training, and only before torch is imported. Does nothing outside glibc Linux,
    on a second call, or where the user set the same variables.
    """
    already = _EXECUTED in os.environ or "torch" in sys.modules or any(k in os.environ for k in _ALLOCATOR)
    if already or sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or not sys.argv[0]:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, *_interpreter_flags(), "-m", "foretell.cli", *sys.argv[1:]]
    os.execve(sys.executable, arguments, tuned_environment())


def tuned_environment() -> dict[str, str]:
    """This process's environment with the allocator settings that `tune_process` starts the interpreter with."""
    return {**os.environ, **_ALLOCATOR, _EXECUTED: "1"}


def _interpreter_flags() -> list[str]:
    import subprocess

    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]


def device() -> torch.device:
    """CUDA where present, then Apple's MPS, then CPU. FORETELL_DEVICE overrides."""
    import torch

    wanted = os.environ.get("FORETELL_DEVICE")
    if wanted:
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", rank() % torch.cuda.device_count())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def dtype(name: str) -> torch.dtype:
    """The torch type of that name. Raises ConfigError for one not known."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"dtype `{name}` is not one of {', '.join(known)}")
    return known[name]


def rank() -> int:
    """Number of this process among those of a run; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of a run; 1 where this one is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_worker() -> bool:
    """Whether a launcher started this process as one of a run's."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def prepare_workers(processes: int, report: Path) -> None:
    """Set what processes started from here inherit. report: the folder in which they leave why they ended."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # Workers of a restart must not read the addresses of those before them (pytorch issue 135712).
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", _REPORT: str(report), _EXECUTED: "1"}
    os.environ |= {k: v for k, v in _ALLOCATOR.items() if k not in os.environ} | own


def worker_report() -> Path | None:
    """The folder in which a worker leaves why it ended."""
    folder = os.environ.get(_REPORT)
    return Path(folder) if folder else None


def end_with_parent() -> None:
    """Let SIGTERM come to this process when its parent is gone, however that ended. Linux only."""
    import ctypes

    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:  # it was gone before
        os.kill(os.getpid(), signal.SIGTERM)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs. One that has ended and was not waited for does not (Linux)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True


def cores() -> int:
    """Processors this process may use, as the scheduler sees it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Compute threads of one process: OMP_NUM_THREADS, else one a core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(wanted) if wanted.isdigit() and int(wanted) else cores()


def memory_total_bytes() -> int:
    """Physical memory, or the container's limit where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        return total


def reset_peak_memory() -> None:
    """Give freed memory back and start the peak anew, so that a run's peak is the run's own. Linux only."""
    import ctypes

    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            pass


def peak_memory_bytes() -> int:
    """The largest resident size this process has had since `reset_peak_memory`, or since its start."""
    import resource

    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """The resident size of this process now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def cache_dir() -> Path:
    """Where the machine record lives: $FORETELL_HOME, else $XDG_CACHE_HOME/foretell, else ~/.cache/foretell."""
    home = os.environ.get("FORETELL_HOME")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foretell"


def tokenize_in_one_thread() -> None:
    """For this process, from before the tokenizers library first encodes: no threads of the library's own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def ready_for_lm_eval() -> None:
    """For this process, from before lm-eval is imported: no network, errors alone, no processes of its own."""
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LMEVAL_LOG_LEVEL": "ERROR", "DISABLE_MULTIPROC": "1"}
    os.environ |= own


def offline() -> bool:
    """Whether the user forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "") in {"1", "true", "TRUE", "yes"}


@functools.cache
def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def machine_key() -> str:
    """Names the machine record: processor (with its feature flags' digest), threads, torch version."""
    import hashlib

    flags = ""
    with contextlib.suppress(OSError, StopIteration):
        flags = next(s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith(("flags", "Features")))
    facts = {"processor": processor(), "flags": flags, "threads": threads(), "torch": metadata.version("torch")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    name = "".join(c if c.isalnum() else "-" for c in processor().lower()).strip("-")[:40]
    return f"{name}-{threads()}t-{digest}"


def machine_facts() -> dict[str, Any]:
    """What a machine record and a run folder say of the machine."""
    return {
        "processor": processor(),
        "threads": threads(),
        "memory_bytes": memory_total_bytes(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "system": platform.system(),
    }


def has_compiler() -> bool:
    """Whether torch.compile could build code here: a C++ compiler on the path."""
    import shutil

    return any(shutil.which(c) for c in (os.environ.get("CXX") or "g++", "clang++"))


class StopRequest:
    """While it is entered, Ctrl-C and SIGTERM are noted in `signum` and end nothing; a second one ends the process.

    A worker may get the same wish twice, from its launcher and from the scheduler: within seconds it counts once.
    Outside the main thread, where Python delivers no signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.signum, self._noted = 0, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM):
                self._previous[s] = signal.signal(s, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _note(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self.signum and is_worker() and now - self._noted < _ONE_WISH_SECONDS:
            return
        if self.signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum, self._noted = signum, now


def seed_all(seed: int) -> None:
    """Seed torch's default generators. Weights, dropout and sampling draw from them; data order does not."""
    import torch

    torch.manual_seed(seed)
