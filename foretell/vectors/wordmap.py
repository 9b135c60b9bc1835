"""The map of vectors: where the most frequent words lie in two dimensions, their groups, and which are near each other.

It is made once, when the vectors are, and stands as map.json in their folder; a run that begins from the vectors keeps
a copy. `foretell report` draws it: the pages are made there, without torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import ConfigError
from foretell.vectors.folder import MAP, Folder

FORMAT_VERSION = 1
WORDS = 1000
NEIGHBOURS = 8
GROUPS = 8


def chart(opened: Folder, count: int = WORDS, told: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """What map.json holds (docs/formats.md), of the `count` most frequent words. `told` gets the share that is done.

    Places are in [0, 1] x [0, 1], by t-SNE and by two principal components. Raises ConfigError for a count below 2 or
    above 5,000, and where there are not two words.
    """
    from foretell.vectors import projection

    if not 2 <= count <= projection.MOST_WORDS:
        raise ConfigError(f"--words ({count:,}) must be from 2 to {projection.MOST_WORDS:,}")
    count = min(count, len(opened.vectors.words))
    if count < 2:
        raise ConfigError(f"{opened.path}: a map needs two words, there is {count}")
    directions = np.asarray(opened.vectors.directions[:count], np.float64)
    places = {"tsne": _square(projection.tsne(directions, told)), "pca": _square(projection.pca(directions))}
    return {
        "format_version": FORMAT_VERSION,
        "name": opened.path.name,
        "kind": opened.meta["kind"],
        "of": len(opened.vectors.words),
        "dim": int(opened.vectors.matrix.shape[1]),
        "words": [opened.shown(n) for n in range(count)],
        "places": {name: [round(float(v), 4) for v in xy.reshape(-1)] for name, xy in places.items()},
        "group": projection.groups(directions, GROUPS).tolist(),
        "near": _neighbours(directions).tolist(),
    }


def dumps(found: dict[str, Any]) -> bytes:
    """The bytes of map.json."""
    return (json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n").encode(errors="replace")


def keep(folder: Path, run: Path) -> None:
    """Copy the map of the vectors in `folder`, where they have one, into a run's folder."""
    if (folder / MAP).is_file():
        shutil.copyfile(folder / MAP, run / MAP)


def _square(xy: np.ndarray) -> np.ndarray:
    """Moved and scaled into [0, 1] x [0, 1], the same scale on both axes."""
    low, high = xy.min(0), xy.max(0)
    scale = float((high - low).max()) or 1.0
    return (xy - (low + high) / 2) / scale + 0.5


def _neighbours(directions: np.ndarray) -> np.ndarray:
    scores = directions @ directions.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(directions) - 1)]
