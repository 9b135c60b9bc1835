"""Near-duplicates planted in text made for it: how many are found, how many finds are right, seconds, memory, a peer.

    python benchmarks/near_duplicates.py [--gigabytes 1] [--workers 2] [--out near_duplicates.json]

Two thirds of the bytes are English, a third Chinese, each drawn from a Markov chain (two words, three characters) over
real text: the Python standard library and, where the environment variable FORETELL_DATA names the folder with them,
lm-en and lm-zh. Without those, Chinese is a random text of Zipf's law. About a fifth of the documents are copies of
another: words substituted, inserted, deleted, ends cut, and half of them with other case, white space and punctuation
besides; a third of them changed so much (Jaccard 0.4 to 0.65) that they must stay.

Truth is the exact Jaccard similarity of the shingle sets, by a second implementation over Python strings and sets
(`shingles`), for all pairs of a family of copies and for every removed document with the one it is said to repeat.
  recall      of the pairs of at least threshold + 0.05: one of the two is removed
  precision   of the removed: at least threshold - 0.05 like the one that is named; `strict`: at least the threshold
Peer: datasketch's MinHash and MinHashLSH as they come (128 permutations), where importable, on the first megabytes, in
the same order and one process; its shingles are made beforehand and not counted, ours are.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import re
import resource
import sys
import sysconfig
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from foretell.data import near

RECALL, PRECISION, SECONDS, BYTES = 0.95, 0.99, 30 * 60, 24e9
MARGIN = 0.05
BLOCK = 4096  # documents made or signed at once
COPIED = 0.16  # fresh documents of which copies are made
EDGES = [0.0, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]


@functools.cache
def _role(character: str) -> str:
    category = unicodedata.category(character)
    name = unicodedata.name(character, "")
    if category == "Cf":
        return "nothing"
    if category[0] not in "LNM":
        return "apart"
    return "character" if re.match("CJK|IDEOGRAPHIC|HIRAGANA|KATAKANA", name) else "word"


def shingles(text: str) -> set[tuple[str, ...]]:
    """The shingle set that `foretell.data.near` describes, for scripts of words, Han and kana: plain Python, slow."""
    units: list[str] = []
    weights: list[int] = []
    joined = False
    for c in unicodedata.normalize("NFKC", text):
        role = _role(c)
        if role == "nothing":
            continue
        if role == "word" and joined:
            units[-1] += c.lower()
        elif role != "apart":
            units.append(c.lower())
            weights.append(5 if role == "character" else 8)
        joined = role == "word"
    found: set[tuple[str, ...]] = set()
    stop = total = 0
    for start in range(len(units)):
        while total < 40 and stop < len(units):
            total += weights[stop]
            stop += 1
        if total < 40 and found:
            break
        found.add(tuple(units[start:stop]))
        total -= weights[start]
    return found


def jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


class Chain:
    """A Markov chain over the tokens of a text: a state is a place in the text, and leads to what follows there or at
    any other place with the same last `order` tokens."""

    def __init__(self, tokens: list[str], order: int, mean: int) -> None:
        self.mean = mean
        self.tokens = np.array(tokens, object)
        number = {t: n for n, t in enumerate(dict.fromkeys(tokens))}
        ids = np.array([number[t] for t in tokens])
        state = np.zeros(len(ids), np.int64)
        for n in range(order):
            _, state = np.unique(state * (ids.max() + 1) + np.roll(ids, n), return_inverse=True)
        self._state = state
        self._places = np.argsort(state, kind="stable")
        self._first = np.searchsorted(state[self._places], np.arange(state.max() + 2))

    def documents(self, rng: np.random.Generator, count: int) -> list[list[str]]:
        """Documents with lengths of a log-normal distribution (sigma 0.8, at most 8 times the mean)."""
        lengths = np.clip(rng.lognormal(np.log(self.mean) - 0.32, 0.8, count), 30, 8 * self.mean).astype(int)
        lengths = -np.sort(-lengths)
        place = rng.integers(len(self.tokens), size=count)
        walked = np.zeros((lengths[0], count), np.int32)
        for n in range(lengths[0]):
            place = place[: np.searchsorted(-lengths, -n)]
            walked[n, : len(place)] = place
            state = self._state[place]
            low, high = self._first[state], self._first[state + 1]
            place = (self._places[low + (rng.random(len(place)) * (high - low)).astype(int)] + 1) % len(self.tokens)
        texts = [self.tokens[walked[:length, n]].tolist() for n, length in enumerate(lengths)]
        return [texts[n] for n in rng.permutation(count)]


def chains() -> dict[str, Chain]:
    """English and Chinese."""
    english = [p.read_text(errors="replace") for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    chinese = []
    if "FORETELL_DATA" in os.environ:
        data = Path(os.environ["FORETELL_DATA"])
        english = english[:40]
        for path in sorted(data.glob("lm-en/*/*.gz")):
            text = gzip.decompress(path.read_bytes()).decode()
            english += [json.loads(x)["text"] for x in text.splitlines()] if ".jsonl" in path.name else [text]
        chinese = [gzip.decompress(p.read_bytes()).decode() for p in sorted(data.glob("lm-zh/*/*.txt.gz"))]
    if not chinese:
        ranks = np.random.default_rng(0).zipf(1.2, 1 << 20)
        chinese = ["".join(chr(0x4E00 + r) if r < 3000 else "，" for r in ranks)]
    return {
        "english": Chain(re.findall(r"\S+\s*", "\n".join(english)), 2, 330),
        "chinese": Chain(list("".join(chinese)), 3, 670),
    }


def near_copy(tokens: list[str], fresh: list[str], wanted: float, units: int, rng: np.random.Generator) -> str:
    """A changed copy of a document, at a similarity of about `wanted`: an edit spoils the `units` shingles over it."""
    tokens = list(tokens)
    way = rng.random()
    if way < 0.2:
        kept = round(len(tokens) * wanted)
        start = rng.integers(len(tokens) - kept + 1)
        tokens = tokens[start : start + kept]
    else:
        if way < 0.4:
            tokens = tokens[rng.integers(1, 4) : len(tokens) - rng.integers(1, 4)]
        rate = 1 - (2 * wanted / (1 + wanted)) ** (1 / units)
        for n in np.flatnonzero(rng.random(len(tokens)) < rate)[::-1]:
            new = [fresh[rng.integers(len(fresh))]]
            tokens[n : n + 1] = [new, [*new, tokens[n]], []][rng.integers(3)]
    if rng.random() < 0.5:
        tokens = [t.upper() if x < 0.1 else t for t, x in zip(tokens, rng.random(len(tokens)), strict=True)]
        marks = [" \n", "  ", "\u3000", " - ", "; "]
        for n in rng.integers(len(tokens), size=len(tokens) // 20):
            tokens[n] += marks[rng.integers(len(marks))]
    return "".join(tokens)


def make(folder: Path, part: int, language: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes JSON lines; returns where each begins (and the end), and the family of each document: a number, or -1."""
    chain, rng = chains()[language], np.random.default_rng([part, len(language)])
    units = 5 if language == "english" else 8
    offsets, families, waiting = [0], [], []
    text_bytes = known = 0
    with (folder / f"{part}.jsonl").open("wb") as f:
        while text_bytes < size or waiting:
            fresh = chain.documents(rng, BLOCK if text_bytes < size else 1)
            block = [("".join(t), -1) for t in fresh]
            for n in np.flatnonzero(rng.random(len(fresh)) < COPIED):
                block[n] = (block[n][0], known)
                for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])):
                    wanted = rng.uniform(0.4, 0.65) if rng.random() < 1 / 3 else rng.uniform(0.65, 1)
                    other = fresh[rng.integers(len(fresh))]
                    waiting.append((near_copy(fresh[n], other, wanted, units, rng), known))
                known += 1
            rng.shuffle(waiting)
            now = len(waiting) // 2 if text_bytes < size else len(waiting)
            block += waiting[:now]
            waiting = waiting[now:]
            for n in rng.permutation(len(block)):
                line = json.dumps({"text": block[n][0]}, ensure_ascii=False).encode() + b"\n"
                f.write(line)
                text_bytes += len(block[n][0].encode())
                offsets.append(offsets[-1] + len(line))
                families.append(block[n][1])
    return np.array(offsets), np.array(families)


class Corpus:
    """The documents of all parts, numbered one after another."""

    def __init__(self, folder: Path, offsets: list[np.ndarray]) -> None:
        self._folder, self._offsets = folder, offsets
        self._first = np.cumsum([0, *(len(o) - 1 for o in offsets)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def text(self, number: int) -> str:
        part = int(np.searchsorted(self._first, number, "right")) - 1
        n = number - self._first[part]
        with (self._folder / f"{part}.jsonl").open("rb") as f:
            f.seek(self._offsets[part][n])
            return json.loads(f.readline())["text"]

    def texts(self, first: int, last: int) -> Iterator[str]:
        return (self.text(n) for n in range(first, min(last, len(self))))


def peak_memory() -> int:
    """Of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sign(corpus: Corpus, file: Path, first: int) -> tuple[int, float, int]:
    """Signatures of one block into their rows of the file; bytes of text, processor seconds of `signature`, memory."""
    rows = np.memmap(file, np.uint8, "r+", shape=(len(corpus), near.BINS))
    size, seconds = 0, 0.0
    near.signature("the tables are made once in a process")
    for n, text in enumerate(corpus.texts(first, first + BLOCK), first):
        began = time.process_time()
        rows[n] = near.signature(text)
        seconds += time.process_time() - began
        size += len(text.encode())
    return size, seconds, peak_memory()


def find(file: Path, documents: int, threshold: float) -> tuple[np.ndarray, int]:
    """`duplicates`, and the peak memory of the process."""
    signatures = np.memmap(file, np.uint8, "r", shape=(documents, near.BINS))
    return near.duplicates(signatures, threshold), peak_memory()


def exact(corpus: Corpus, pairs: np.ndarray) -> list[float]:
    """Jaccard similarity of each pair; neighbouring pairs share documents."""
    known = functools.lru_cache(16)(lambda n: shingles(corpus.text(n)))
    return [jaccard(known(int(a)), known(int(b))) for a, b in pairs]


def planted(families: np.ndarray) -> np.ndarray:
    """(n, 2): the pairs of documents of one family, the earlier first."""
    order = np.argsort(families, kind="stable")
    order = order[families[order] >= 0]
    found = []
    for n in range(1, 4):
        same = families[order[n:]] == families[order[:-n]]
        found.append(np.stack([order[:-n][same], order[n:][same]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def judged(repeats: np.ndarray, pairs: np.ndarray, alike: np.ndarray, named: np.ndarray, threshold: float) -> dict:
    """The quality. alike: of the planted pairs. named: similarity of each removed document to the one it repeats."""
    gone = (repeats[pairs] >= 0).any(axis=1)
    # Members of larger families go for other reasons, too, so the curve is that of families of two.
    alone = np.bincount(pairs.ravel(), minlength=len(repeats))[pairs].max(axis=1, initial=0) == 1
    curve = []
    for low, high in zip(EDGES, [*EDGES[1:], 2.0], strict=True):
        inside = (alike >= low) & (alike < high) & alone
        share = float(gone[inside].mean()) if inside.any() else None
        curve.append({"from": low, "pairs": int(inside.sum()), "removed": share})
    return {
        "pairs": int((alike >= threshold + MARGIN).sum()),
        "recall": float(gone[alike >= threshold + MARGIN].mean()),
        "recall_at_threshold": float(gone[alike >= threshold].mean()),
        "precision": float((named >= threshold - MARGIN).mean()),
        "strict_precision": float((named >= threshold).mean()),
        "lowest_named": float(named.min()),
        "removed": int((repeats >= 0).sum()),
        "curve": curve,
    }


def peer(texts: list[str], threshold: float) -> tuple[np.ndarray, float] | None:
    """datasketch, the same rule (a document goes if it is like one that is kept); seconds without the shingles."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return None
    sets = [[" ".join(s).encode() for s in shingles(t)] for t in texts]
    repeats = np.full(len(texts), -1, np.int64)
    began = time.perf_counter()
    index, kept = MinHashLSH(threshold=threshold, num_perm=128), {}
    for n, found in enumerate(sets):
        m = MinHash(num_perm=128)
        m.update_batch(found)
        similar = [(kept[k].jaccard(m), -k) for k in index.query(m)]
        best, k = max(similar, default=(0.0, 0))
        if best >= threshold:
            repeats[n] = -k
        else:
            index.insert(n, m)
            kept[n] = m
    return repeats, time.perf_counter() - began


def compared(corpus: Corpus, families: np.ndarray, numbers: np.ndarray, threshold: float) -> dict[str, Any]:
    """Ours and the peer on some of the documents, from texts in memory, in one process."""
    texts = [corpus.text(n) for n in numbers]
    near.signature("the tables are made once in a process")
    began = time.perf_counter()
    signatures = np.stack([near.signature(t) for t in texts])
    signed = time.perf_counter() - began
    repeats = near.duplicates(signatures, threshold)
    seconds = time.perf_counter() - began
    theirs = peer(texts, threshold)
    pairs = planted(families[numbers])
    alike = np.array(exact(corpus, numbers[pairs]))

    def quality(repeats: np.ndarray) -> dict[str, Any]:
        removed = np.flatnonzero(repeats >= 0)
        named = np.array(exact(corpus, numbers[np.stack([repeats[removed], removed], axis=1)]))
        return judged(repeats, pairs, alike, named, threshold)

    size = sum(len(t.encode()) for t in texts)
    result = {"bytes": size, "documents": len(texts), "signature_seconds": signed, "seconds": seconds}
    result["quality"] = quality(repeats)
    if theirs:
        result |= {"peer_seconds": theirs[1], "ratio": theirs[1] / seconds, "peer_quality": quality(theirs[0])}
    return result


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
        return result

    size, t = int(args.gigabytes * 1e9), args.threshold
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        shares = {"english": size - size // 3, "chinese": size // 3}
        jobs = [pool.submit(make, folder, n, *share) for n, share in enumerate(shares.items())]
        made = timed("making the text", lambda: [j.result() for j in jobs])
    corpus = Corpus(folder, [m[0] for m in made])
    families = np.concatenate([made[0][1], np.where(made[1][1] < 0, -1, made[1][1] + made[0][1].max() + 1)])
    file = folder / "signatures"
    np.memmap(file, np.uint8, "w+", shape=(len(corpus), near.BINS)).flush()
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        starts = range(0, len(corpus), BLOCK)
        signed = timed("signatures", lambda: list(pool.map(functools.partial(sign, corpus, file), starts)))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        repeats, peak = timed("duplicates", lambda: pool.submit(find, file, len(corpus), t).result())
    removed = np.flatnonzero(repeats >= 0)
    pairs = planted(families)
    all_pairs = np.concatenate([pairs, np.stack([repeats[removed], removed], axis=1)])
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        parts = np.array_split(all_pairs, max(1, len(all_pairs) // 2000))
        alike = timed("truth", lambda: np.concatenate(list(pool.map(functools.partial(exact, corpus), parts))))
    chinese = len(made[0][1])
    share = args.peer_megabytes / args.gigabytes / 1000
    numbers = np.concatenate(
        [np.arange(first, first + int(share * len(m[1]))) for first, m in zip((0, chinese), made, strict=True)]
    )
    quality = {}
    for name, first, last in (("all", 0, len(corpus)), ("english", 0, chinese), ("chinese", chinese, len(corpus))):
        inside = (pairs[:, 0] >= first) & (pairs[:, 0] < last)
        of = (removed >= first) & (removed < last)
        part = np.where((np.arange(len(corpus)) >= first) & (np.arange(len(corpus)) < last), repeats, -1)
        named = alike[len(pairs) :][of]
        quality[name] = judged(part, pairs[inside], alike[: len(pairs)][inside], named, t)
    return {
        "bytes": sum(s[0] for s in signed),
        "documents": len(corpus),
        "removed_without_family": int((families[removed] < 0).sum()),
        "threshold": t,
        "bands": near.bands(t),
        "workers": args.workers,
        "seconds": seconds,
        "signature_bytes_per_second_per_core": sum(s[0] for s in signed) / sum(s[1] for s in signed),
        "duplicates_peak_memory_bytes": peak,
        "signatures_peak_memory_bytes": max(s[2] for s in signed),
        "quality": quality,
        "slice": timed("peer", lambda: compared(corpus, families, numbers, t)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer-megabytes", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("near_duplicates.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(Path(temporary), args)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    q, work = result["quality"]["all"], result["seconds"]["signatures"] + result["seconds"]["duplicates"]
    print(json.dumps(result, indent=1))
    good = q["recall"] >= RECALL and q["precision"] >= PRECISION
    good &= work <= SECONDS and result["duplicates_peak_memory_bytes"] <= BYTES
    print(
        f"recall {q['recall']:.4f} (bar {RECALL}), precision {q['precision']:.4f} (bar {PRECISION}), {work:.0f} s, "
        f"peak {result['duplicates_peak_memory_bytes'] / 1e9:.2f} GB; "
        f"{result['slice'].get('ratio', float('nan')):.1f} times the speed of the peer"
    )
    sys.exit(0 if good else 3)


if __name__ == "__main__":
    main()
