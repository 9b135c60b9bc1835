"""Preference pairs from real sources, for a run of `train.objective=dpo` on them, and what that run made of them.

    python benchmarks/preferences.py pairs piqa.jsonl.gz --records 600 --out choices.jsonl
    foretell train --base MODEL --data choices.jsonl --name choices lora.rank=8 ...
    python benchmarks/preferences.py judge runs/choices --show 4

Nobody's preferences come with this project. What is nearest to them here:

- PIQA (Bisk et al., 2020; a JSON line has `query`, two `choices`, `gold`): people wrote a way to reach an aim that
  works and one that does not, often a word apart. Chosen is the one that works.
- small talk of chatterbot-corpus (a folder of its YAML files): chosen is the answer that stands there, rejected the
  answer of another turn of the same file, drawn by a seed. That teaches to answer the question, not taste.

`judge` prints, before and after, the share of held-out pairs whose chosen answer the model finds likelier than the
rejected one (summed log-likelihood, so that a shorter answer has it easier), with a 90% interval, and greedy answers.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foretell import config as run_config
from foretell.data import Data, open_data
from foretell.data.conversations import ANSWER
from foretell.generate import generate
from foretell.models import source
from foretell.train import preference, run
from foretell.train.alone import Alone


def piqa(file: Path) -> Iterator[dict[str, str]]:
    """Pairs of a file of PIQA."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            r = json.loads(line)
            prompt = r["query"].removeprefix("Question: ").strip()
            chosen, rejected = (r["choices"][n].strip() for n in (r["gold"], 1 - r["gold"]))
            if prompt and chosen and rejected and chosen != rejected:
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def small_talk(folder: Path) -> Iterator[dict[str, str]]:
    """Pairs of a folder of chatterbot's YAML files: question and answer of a talk's first two turns."""
    import yaml  # type: ignore[import-untyped]

    for file in sorted(folder.glob("*.yml")):
        talks = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
        turns = sorted({tuple(t[:2]) for t in talks if len(t) > 1 and all(isinstance(x, str) for x in t[:2])})
        answers = sorted({a for _, a in turns})
        draw = random.Random(file.name)
        for question, answer in turns:
            own = {a for q, a in turns if q == question}
            others = [a for a in answers if a not in own]
            if others:
                yield {"prompt": question, "chosen": answer, "rejected": draw.choice(others)}


def judged(folder: Path, show: int) -> dict[str, Any]:
    """What the base and the model of a finished run say of the held-out pairs, and some greedy answers of both."""
    c = run_config.load(folder / "config.toml")
    data, base = open_data(run.prepared(folder)), Path(c.train.base or "")
    n = data.index["splits"]["valid"]["documents"]
    how = {"beta": 1.0, "context": c.train.context, "micro": c.train.needed("micro_batch_size"), "most": None}
    found: dict[str, Any] = {"pairs": n}
    for when, path in (("before", base), ("after", folder)):
        model, tokenizer = source.load(path)
        # A base that finds all equally likely makes margins of log-likelihoods.
        none = {"valid": torch.zeros(n, 2)}
        scores = preference.scores(Alone(model), data, "valid", none, **how)  # type: ignore[arg-type]
        share = scores["reward_accuracy"]
        half = 1.645 * (share * (1 - share) / n) ** 0.5
        found[when] = {
            "chosen_likelier": share,
            "interval": [share - half, share + half],
            "margin_nats": scores["reward_margin"],
            "perplexity_of_chosen": scores["perplexity"],
            "answers": [
                generate(model, tokenizer, [prompt], max_new_tokens=24, temperature=0.0)[0]["completion"]
                for prompt in _prompts(data, show)
            ],
        }
    return found | {"prompts": _prompts(data, show)}


def _prompts(data: Data, show: int) -> list[str]:
    """What stands before the chosen answer in the first held-out pairs, as the model sees it."""
    tokens, marks, ends = data.tokens("valid"), data.answers("valid"), data.document_ends("valid")
    found = []
    for n in range(show):
        own = slice(int(ends[n - 1]) if n else 0, int(ends[n]))
        first = int((marks[own] & ANSWER).argmax())
        found.append(data.tokenizer.decode(tokens[own][:first].tolist()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("pairs")
    made.add_argument("source", type=Path)
    made.add_argument("--records", type=int, default=600)
    made.add_argument("--out", type=Path, required=True)
    asked = verbs.add_parser("judge")
    asked.add_argument("run", type=Path)
    asked.add_argument("--show", type=int, default=4)
    a = parser.parse_args()
    if a.verb == "judge":
        print(json.dumps(judged(a.run, a.show), ensure_ascii=False, indent=1))
        return
    every = list(small_talk(a.source) if a.source.is_dir() else piqa(a.source))
    random.Random(0).shuffle(every)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in every[: a.records])
    a.out.write_text(lines, encoding="utf-8")
    print(f"{min(a.records, len(every))} of {len(every)} pairs in {a.out}")


if __name__ == "__main__":
    main()
