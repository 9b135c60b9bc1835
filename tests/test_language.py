"""Languages are told apart, Chinese is one of them, code is none, and a step keeps what it is told to keep.

Truth: sentences written for this file, and the library's own ranking of them with the members of Chinese added up.
"""

import inspect
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.data import language
from foretell.data.steps import Dropped, Kept
from foretell.errors import ConfigError, MissingExtra

SENTENCES = {
    "en": "The ferry leaves the harbour at seven in the morning, and nobody waits for those who are late.",
    "de": "Die Fähre verlässt den Hafen um sieben Uhr morgens, und niemand wartet auf die Verspäteten.",
    "fr": "Le bac quitte le port à sept heures du matin et personne n'attend ceux qui sont en retard.",
    "es": "El transbordador sale del puerto a las siete de la mañana y nadie espera a los que llegan tarde.",
    "ru": "Паром отходит от причала в семь часов утра, и никто не ждёт тех, кто опаздывает.",
    "ar": "تغادر العبارة الميناء في الساعة السابعة صباحا ولا أحد ينتظر المتأخرين.",
    "hi": "नाव सुबह सात बजे बंदरगाह से निकलती है और देर से आने वालों की कोई प्रतीक्षा नहीं करता।",
    "ja": "フェリーは朝七時に港を出ます。遅れた人を待つ人は誰もいません。",
    "ko": "배는 아침 일곱 시에 항구를 떠나고, 늦은 사람을 기다려 주는 사람은 아무도 없다.",
    "zh": "渡轮早上七点离开港口，没有人会等迟到的人。今天的风很大，船走得比平时慢一些。",
}
CHINESE = {
    "traditional": "渡輪早上七點離開港口，沒有人會等遲到的人。今天的風很大，船走得比平時慢一些。",
    "classical": "朝出羽林宮，入參雲臺議。\n獨請萬里行，不奏和親事。",
    "Cantonese": "佢哋今日唔喺度，我哋聽日再嚟搵佢啦。你食咗飯未呀？",
    "one bracket": "名隆五嶽，秩映三台。\n嚴祠已備，[睟]影方迴。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_in_its_language(code: str) -> None:
    found, confidence = language.identify(SENTENCES[code])
    assert found == code
    assert 0.5 < confidence <= 1.0001


@pytest.mark.parametrize("kind", CHINESE)
def test_chinese_is_one_language(kind: str) -> None:
    assert language.identify(CHINESE[kind])[0] == "zh"


def test_the_confidence_is_the_librarys_own() -> None:
    """Its ranking knows three Chinese languages; ours is their sum."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for text in CHINESE.values():
        ranked = dict(peer.rank(text))
        assert language.identify(text)[1] == pytest.approx(ranked["zh"] + ranked["wuu"] + ranked["yue"], abs=1e-5)
    assert max(dict(peer.rank(CHINESE["Cantonese"])).items(), key=lambda r: r[1])[0] == "yue"


NO_LANGUAGE = {
    "nothing": "",
    "space": " \n\t",
    "numbers": "12.5 13.8 99.1\n" * 40,
    "a table": "\n".join(f"2019-03-{n:02d} | {n * 37} kg | {n}" for n in range(1, 29)),
    "Python": inspect.getsource(language),
    "JSON": json.dumps([{"id": n, "tags": ["new", "red"], "at": [n, n * 2]} for n in range(40)], indent=1),
    "C": "static int f(struct node *n) {\n  if (n == NULL) return 0;\n  n->next = &head[n->i++];\n}\n" * 8,
    "question marks": "????? ??? ?????? ?????? ?? ???????",
}


@pytest.mark.parametrize("kind", NO_LANGUAGE)
def test_this_is_no_language(kind: str) -> None:
    assert language.identify(NO_LANGUAGE[kind])[0] == language.UNKNOWN


def test_three_places_are_looked_at() -> None:
    """What stands between beginning, middle and end does not count."""
    german, english = SENTENCES["de"] * 3, SENTENCES["en"] * 9
    assert language.identify(german + english + german + english + german)[0] == "de"


def test_documents_in_other_languages_are_dropped() -> None:
    step = language.only(["en", "zh"])
    assert step(SENTENCES["en"]) == Kept(SENTENCES["en"])
    assert step(SENTENCES["zh"]) == Kept(SENTENCES["zh"])
    dropped = step(SENTENCES["de"])
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "language"
    assert dropped.detail == f"de {language.identify(SENTENCES['de'])[1]:.2f}, kept are en, zh"
    assert step("1 2 3") == Dropped("language", "und 0.00, kept are en, zh")
    assert language.only(["und"])("1 2 3") == Kept("1 2 3")


def test_a_step_goes_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(language.only(["fr"])))(SENTENCES["fr"]) == Kept(SENTENCES["fr"])


@pytest.mark.parametrize("wrong", [[], ["eng"], ["en", "xx"], ["wuu"]])
def test_an_unknown_language_is_refused(wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="name one or more"):
        language.only(wrong)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    language._judge.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MissingExtra, match="foretell\\[clean\\]"):
        language.only(["en"])
    with pytest.raises(MissingExtra, match="foretell\\[clean\\]"):
        language.identify(SENTENCES["en"])


@settings(deadline=None)  # the first call loads the model
@given(st.text(st.characters(codec=None), max_size=900))
def test_any_text_has_one_fate(text: str) -> None:
    code, confidence = language.identify(text)
    assert len(code) == 2 or code == language.UNKNOWN
    assert 0 <= confidence < 1.001
    assert language.identify(text) == (code, confidence)
