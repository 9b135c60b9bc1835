"""The map: one self-contained HTML page of the most frequent words in two dimensions, to look through and search.

Made like the report's page: a skeleton, a style sheet and a script from files beside this one, by plain replacement,
and a content security policy that names the digests of the two and forbids everything else. The words stand in a block
of JSON that the script reads; it puts them on the page as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foretell import __version__
from foretell.errors import ConfigError, DataError
from foretell.vectors.folder import Folder

Method = Literal["tsne", "pca"]
NEIGHBOURS = 8
HUES = 8
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def chart(
    opened: Folder, out: Path, count: int = 1000, told: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Write the map of the `count` most frequent words to `out`; the fields of `foretell vectors map --json`.

    The page shows them by t-SNE, and by two principal components at a click. Raises ConfigError for a count below 2 or
    above 5,000, DataError where the page cannot be written.
    """
    from foretell.checkpoint import files
    from foretell.vectors import projection

    if not 2 <= count <= projection.MOST_WORDS:
        raise ConfigError(f"--words ({count:,}) must be from 2 to {projection.MOST_WORDS:,}")
    count = min(count, len(opened.vectors.words))
    if count < 2:
        raise ConfigError(f"{opened.path}: a map needs two words, there is {count}")
    directions = np.asarray(opened.vectors.directions[:count], np.float64)
    places = {"tsne": _square(projection.tsne(directions, told)), "pca": _square(projection.pca(directions))}
    content = page(opened, places, projection.groups(directions, HUES), _neighbours(directions))
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(out.absolute(), content.encode())
    except OSError as e:
        raise DataError(f"{out}: the map cannot be written there: {e.strerror or e}") from None
    return {"map": str(out), "words": count, "of": len(opened.vectors.words), "bytes": len(content.encode())}


def page(opened: Folder, places: dict[str, np.ndarray], group: np.ndarray, near: np.ndarray) -> str:
    """The whole document: places (n, 2) in [0, 1] by method, group (n,), the rows near each word (n, k)."""
    style, script = _part("chart.css"), _part("chart.js")
    count = len(group)
    known = {
        "words": [_UNFIT.sub("\ufffd", opened.shown(n)) for n in range(count)],
        "places": {name: [round(float(v), 4) for v in xy.reshape(-1)] for name, xy in places.items()},
        "group": group.tolist(),
        "near": near.tolist(),
    }
    data = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
    meta = opened.meta
    name = opened.path.name
    kind = {"word2vec": f"Word2Vec {meta.get('architecture', '')}".strip(), "glove": "GloVe"}.get(meta["kind"], "")
    parts = {
        "policy": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": _safe(name),
        "kind": _safe(kind),
        "shown": f"{count:,}",
        "of": f"{len(opened.vectors.words):,}",
        "dim": f"{opened.vectors.matrix.shape[1]:,}",
        "version": __version__,
        "style": style,
        "script": script,
        # Nothing in it can end the block: no tag begins without its <.
        "data": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _part("chart.html"))


def _safe(text: object) -> str:
    return html.escape(_UNFIT.sub("\ufffd", str(text)), quote=True)


def _square(xy: np.ndarray) -> np.ndarray:
    """Moved and scaled into [0, 1] x [0, 1], the same scale on both axes."""
    low, high = xy.min(0), xy.max(0)
    scale = float((high - low).max()) or 1.0
    return (xy - (low + high) / 2) / scale + 0.5


def _neighbours(directions: np.ndarray) -> np.ndarray:
    scores = directions @ directions.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEIGHBOURS]


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
