"""Tokenising in several processes, results in order, whatever their number.

Worker processes are plain interpreters that read blocks of texts from standard input and write token arrays to standard
output, as counts and raw bytes: nothing is pickled, nothing is forked, a script needs no `__main__` guard, and a worker
whose parent is killed reads end-of-file and ends. Frame: uint32 n, n uint32 lengths, payload (UTF-8 one way, uint32
tokens back).
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

import foretell
from foretell import runtime, tokenizer
from foretell.errors import DataError
from foretell.tokenizer import Tokenizer

Block = TypeVar("Block")
Encoded = tuple[np.ndarray, np.ndarray]
_LENGTH = np.dtype("<u4")
_START = "import sys; sys.path.insert(0, sys.argv[1]); from foretell.data import workers; workers.serve(sys.argv[2])"


def encode(
    blocks: Iterable[tuple[Block, list[bytes]]], own: Tokenizer, file: Path, workers: int
) -> Iterator[tuple[Block, Encoded]]:
    """For each (block, texts) the block and `Tokenizer.encode_flat` of the texts, in order. `file`: tokenizer.json."""
    if workers <= 1:
        for block, texts in blocks:
            yield block, own.encode_flat([t.decode() for t in texts])
        return
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    processes = [_spawn(file) for _ in range(workers)]
    for process in processes:
        idle.put(process)

    def task(texts: list[bytes]) -> Encoded:
        process = idle.get()
        try:
            return _ask(process, texts)
        finally:
            idle.put(process)

    waiting: deque[tuple[Block, Future[Encoded]]] = deque()
    try:
        with ThreadPoolExecutor(workers) as threads:
            for block, texts in blocks:
                waiting.append((block, threads.submit(task, texts)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
    finally:
        for process in processes:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of one that is gone already
                    pipe.close()  # type: ignore[union-attr]
            process.wait()


def _spawn(file: Path) -> subprocess.Popen[bytes]:
    root = str(Path(foretell.__file__).parent.parent)
    # Its own session, so that Ctrl-C reaches the parent alone, which then closes the pipes.
    return subprocess.Popen(
        [sys.executable, "-c", _START, root, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[bytes], texts: list[bytes]) -> Encoded:
    assert process.stdin  # both are pipes
    assert process.stdout
    try:
        _write(process.stdin, [len(t) for t in texts], b"".join(texts))
        lengths = _read_lengths(process.stdout).astype(np.int64)
        return np.frombuffer(_exactly(process.stdout, 4 * int(lengths.sum())), _LENGTH), lengths
    except (OSError, EOFError):
        code = process.wait()
        raise DataError(f"a tokenising process ended with code {code} (out of memory?); try workers=1") from None


def serve(file: str) -> None:
    """What a worker process runs."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whose reader was killed ends without a word
    runtime.tokenize_in_one_thread()  # the library's threads would compete: one process, one core
    own = tokenizer.load(Path(file))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            lengths = _read_lengths(source)
            ends = np.cumsum(lengths, dtype=np.int64)
            data = _exactly(source, int(ends[-1]) if len(ends) else 0)
        except EOFError:
            return
        texts = [data[e - n : e].decode() for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
        flat, counts = own.encode_flat(texts)
        _write(sink, counts.tolist(), flat.astype(_LENGTH).tobytes())


def _write(sink: IO[bytes], lengths: list[int], payload: bytes) -> None:
    sink.write(np.array([len(lengths), *lengths], _LENGTH).tobytes())
    sink.write(payload)
    sink.flush()


def _read_lengths(source: IO[bytes]) -> np.ndarray:
    n = int(np.frombuffer(_exactly(source, 4), _LENGTH)[0])
    return np.frombuffer(_exactly(source, 4 * n), _LENGTH)


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
