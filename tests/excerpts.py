"""Real items for the tests of metrics, and outputs of a system that is wrong now and then."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any


@cache
def excerpts() -> Any:
    """Excerpts of published sets; each part names its source and licence."""
    return json.loads((Path(__file__).parent / "data" / "metrics" / "excerpts.json").read_text(encoding="utf-8"))


def translations(language: str) -> tuple[list[str], list[list[str]]]:
    """Sources and references of both directions: several references into Chinese, one into English."""
    pairs = excerpts()["translation"]["pairs"]
    if language == "zh":
        return [p["en"] for p in pairs], [p["zh"] for p in pairs]
    return [p["zh"][0] for p in pairs], [[p["en"]] for p in pairs]


def damaged(text: str, share: float, rng: random.Random) -> str:
    """The text without some of its words, or of its characters where it has no spaces, and some of them twice."""
    parts = text.split(" ") if " " in text else list(text)
    kept = [p for p in parts for _ in range(rng.choices([1, 0, 2], [1 - share, share * 0.7, share * 0.3])[0])]
    return (" " if " " in text else "").join(kept)


def answered(language: str, seed: int = 1) -> tuple[list[str], list[list[str]]]:
    """Predictions cut out of the context around the right answer, some empty, and the right answers."""
    rng = random.Random(seed)
    predictions, references = [], []
    for item in excerpts()["answers"][language]:
        at = item["context"].find(item["answers"][0])
        low = max(0, at + rng.choice([0, 0, 0, -6, -2, 2]))
        high = at + len(item["answers"][0]) + rng.choice([0, 0, 0, -2, 3, 9])
        predictions.append("" if rng.random() < 0.05 else item["context"][low:high])
        references.append(item["answers"])
    return predictions, references
