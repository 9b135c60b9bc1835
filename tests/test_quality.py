"""Each rule holds at its bound and breaks behind it; prose passes and junk does not; n-grams agree with brute force.

Texts for the bounds are built of tokens that never repeat unless they are made to, so that the numbers are known.
"""

import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.data import quality, repetition
from foretell.data.quality import RULES
from foretell.data.steps import Dropped, Kept

Edge = tuple[str, str, str, str, float, float]  # by, rule, text at the bound, text behind it, their numbers
TOKENS = {
    "words": ["".join(letters) for letters in product("bcdfghjklmnpqrstvwxz", repeat=4)],
    "characters": [c for c in map(chr, range(0x4E00, 0x9FA0)) if c not in quality.FUNCTION_CHARACTERS],
}
SPACE = {"words": " ", "characters": ""}


def tokens(by: str, first: int, last: int) -> str:
    return SPACE[by].join(TOKENS[by][first:last])


def short_line(by: str, n: int) -> str:
    """Three tokens, as long as any other line and unlike it."""
    return tokens(by, 3 * n, 3 * n + 3)


def long_line(by: str, n: int) -> str:
    return tokens(by, 11 * n, 11 * n + 11)


def run_thrice(by: str, run: int, of: int) -> str:
    """`of` tokens, among them a run that stands there three times, between neighbours that are never the same."""
    all_tokens = TOKENS[by]
    rest = all_tokens[run : of - 2 * run]
    made = [*all_tokens[:run], *rest[:1], *all_tokens[:run], *rest[1:2], *all_tokens[:run], *rest[2:]]
    assert len(made) == of
    return SPACE[by].join(made)


def often(by: str, n: int, times: int, of: int) -> str:
    """`of` tokens, among them `times` times the same n, apart."""
    rest = iter(TOKENS[by][n:])
    made = [t for _ in range(times) for t in (*TOKENS[by][:n], next(rest))]
    return SPACE[by].join([*made, *(next(rest) for _ in range(of - len(made)))])


def edges_of_lines(by: str) -> Iterator[Edge]:
    def both(rule: str, make: Callable[[int, int], str], count: int, at: int, behind: int, mark: str = "\n") -> Edge:
        """make(n, m): line n of a text in which m of all lines are special."""
        texts = (mark.join(make(n, m) for n in range(count)) for m in (at, behind))
        return by, rule, *texts, at / count, behind / count

    def repeated(n: int, m: int) -> str:
        return short_line(by, max(n, m))

    yield both("bullets", lambda n, m: "- " * (n < m) + short_line(by, n), 10, 9, 10)
    yield both("ellipsis at line ends", lambda n, m: short_line(by, n) + "..." * (n < m), 10, 3, 4)
    yield both("repeated lines", repeated, 10, 3, 4)
    yield both("repeated lines' characters", repeated, 10, 2, 3)
    yield both("repeated paragraphs", repeated, 10, 3, 4, mark="\n \n")
    yield both("repeated paragraphs' characters", repeated, 10, 2, 3, mark="\n\n")
    yield both("line ends", lambda n, m: short_line(by, n) + "?" * (n < m), 25, 3, 2)
    yield both("short lines", lambda n, m: (short_line if n < m else long_line)(by, n), 100, 67, 68)
    yield both("duplicated characters", repeated, 100, 1, 2)
    yield by, "lorem ipsum", short_line(by, 0), f"{short_line(by, 0)} Lorem Ipsum {short_line(by, 1)}", 0, 1


def edges_of_ngrams(by: str) -> Iterator[Edge]:
    for n in repetition.REPEATED:
        run = round(100 * RULES[by][f"repeated {n}-grams"].bound)
        texts = (run_thrice(by, run, of) for of in (200, 199))
        yield by, f"repeated {n}-grams", *texts, 2 * run / 200, 2 * run / 199
    often_enough = {
        "words": {2: (2, 20), 3: (3, 50), 4: (2, 50)},
        "characters": {2: (2, 20), 3: (11, 150), 4: (11, 200)},
    }
    for n, (times, of) in often_enough[by].items():
        texts = (often(by, n, times, size) for size in (of, of - 1))
        yield by, f"top {n}-gram", *texts, times * n / of, times * n / (of - 1)


BY_WORDS = [
    ("too short", tokens("words", 0, 50) + " - !", tokens("words", 0, 49) + " - !", 50, 49),
    ("too long", "a " * 100_000, "a " * 100_001, 100_000, 100_001),
    ("short words", "abc def", "abc de", 3, 2.5),
    ("long words", "abcdefghij " * 2, "abcdefghij abcdefghijk", 10, 10.5),
    ("hash signs", "#a" + " a" * 9, "#a" + " a" * 8, 1 / 10, 1 / 9),
    ("ellipses", "a..." + " a" * 9, "a…" + " a" * 8, 1 / 10, 1 / 9),
    ("few letters", "a b c d e f g h7 9 -", "a b c d e f g 7 9 -", 0.8, 0.7),
    ("stop words", "The day of", "the The THE days", 2, 1),
    ("sentences", "A b c. D e f! G h i?\nJ k l\nM n o", "A b c. D e f, e.g. this. G h i? J k l", 5, 4),
]
BY_CHARACTERS = [
    ("too short", tokens("characters", 0, 39) + "。", f" {tokens('characters', 0, 38)} 。", 40, 39),
    ("too long", "山" * 150_000, "山" * 150_001, 150_000, 150_001),
    ("short words", "山高水长。山高，水长远。", "山高，水长。山高。", 4, 3),
    ("long words", ("山" * 59 + "，") * 2, "山" * 60 + "。", 60, 61),
    ("hash signs", "###" + tokens("characters", 0, 47), "###" + tokens("characters", 0, 46), 0.06, 3 / 49),
    ("ellipses", "……。。。" + tokens("characters", 0, 45), "……。。。" + tokens("characters", 0, 44), 0.06, 3 / 49),
    ("few letters", "山水天1.5", "山水天1.5，", 0.5, 3 / 7),
    ("stop words", "山的水是天了", "山的水是天的", 3, 2),
    ("sentences", "山" * 299 + "。" + "水" * 299 + "！", "山" * 300 + "。", 300, 301),
]
EDGES: list[Edge] = [
    *(e for by in RULES for edges in (edges_of_lines, edges_of_ngrams) for e in edges(by)),
    *(("words", *row) for row in BY_WORDS),
    *(("characters", *row) for row in BY_CHARACTERS),
]


def test_every_rule_has_its_edge() -> None:
    assert {(by, rule) for by, rule, *_ in EDGES} == {(by, rule) for by in RULES for rule in RULES[by]}


@pytest.mark.parametrize(
    ("by", "rule", "inside", "outside", "at", "behind"), EDGES, ids=[f"{e[0]} {e[1]}" for e in EDGES]
)
def test_a_rule_holds_at_its_bound(by: str, rule: str, inside: str, outside: str, at: float, behind: float) -> None:
    assert {quality.counted_by(t) for t in (inside, outside)} == {by}
    assert (quality.numbers(inside)[rule], quality.numbers(outside)[rule]) == pytest.approx((at, behind))
    assert not RULES[by][rule].broken_by(quality.numbers(inside)[rule])
    assert RULES[by][rule].broken_by(quality.numbers(outside)[rule])


PROSE = {
    "English": "The ferry leaves the harbour at seven. It is a cold morning, and the wind has turned to the north! "
    "Who would want to be out on the water on a day like this? Nobody waits for those who are late. The captain "
    "stands on the bridge with a cup of tea and looks at the hills.\nHe has seen worse; in spring such weather is "
    "not rare. Below, a mother calls her children back from the deck, where they have been running about.",
    "simplified": "渡轮早上七点离开港口，没有人会等迟到的人。今天的风很大，船走得比平时慢一些。"
    "船长站在桥楼上看着远处的山，他说这样的天气在春天并不少见。乘客们坐在舱里喝茶，孩子在甲板上跑来跑去，被母亲叫了回来。",
    "traditional": "渡輪早上七點離開港口，沒有人會等遲到的人。今天的風很大，船走得比平時慢一些。"
    "船長站在橋樓上看著遠處的山，他說這樣的天氣在春天並不少見。乘客們坐在艙裡喝茶，孩子在甲板上跑來跑去，被母親叫了回來。",
    "a long poem": "朝出羽林宮，入參雲臺議。\n獨請萬里行，不奏和親事。\n君王重年少，深納開邊利。\n"
    "寶馬雕玉鞍，一朝從萬騎。\n煌煌都門外，祖帳光七貴。\n歌鐘樂行軍，雲物慘別地。\n簫笳整部曲，幢蓋動郊次。\n臨風親戚懷，滿袖兒女淚。",
}
CITIES = ["北京", "上海", "广州", "深圳", "天津", "重庆", "成都", "武汉", "南京", "杭州", "西安", "苏州"]
PAGES = ["首页", "关于我们", "产品中心", "新闻动态", "联系我们", "人才招聘", "在线留言", "客户案例", "会员登录"]
JUNK = {
    "a menu": ("\n".join(["Home", "About us", "Products", "News", "Contact", "Login"] * 10), "stop words"),
    "keywords": (
        ", ".join(f"{a} {b}" for a in ("cheap", "best", "online") for b in TOKENS["words"][:20]),
        "stop words",
    ),
    "one sentence again": (f"{PROSE['English'][:98]}\n" * 6, "repeated lines"),
    "one sentence, names changed": (
        " ".join(f"Call us in {c} today, we have all that you need to be happy." for c in TOKENS["words"][:10]),
        "top 4-gram",
    ),
    "read as Latin-1": (PROSE["simplified"].encode("gbk").decode("latin1"), "too short"),
    "numbers": (" ".join(str(n * 1.25) for n in range(100)), "few letters"),
    "a Chinese menu": ("\n".join([*PAGES, *CITIES]), "line ends"),
    "a Chinese menu in a row": (" | ".join(PAGES * 3), "long words"),
    "Chinese keywords": ("，".join(c + w for c in CITIES for w in ("租车公司", "租车价格", "商务租车")), "stop words"),
    "a Chinese sentence again": ("本公司所有商品均为正品，假一赔十，支持七天无理由退换货。\n" * 12, "repeated lines"),
    "Chinese, names changed": (
        "".join(f"{c}的朋友们请注意，我们在{c}有专业的团队为您服务，欢迎来电咨询。" for c in CITIES),
        "repeated 5-grams",
    ),
    "UTF-8 read as GBK": (PROSE["simplified"].encode().decode("gbk", "replace"), "long words"),
    "GBK read as Big5": ((PROSE["simplified"] * 2).encode("gbk").decode("big5", "replace"), "long words"),
    "replacement characters twice over": ("锟斤拷" * 60, "long words"),
    "a short poem": ("白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。", "too short"),
    "nothing": ("", "too short"),
}


@pytest.mark.parametrize("kind", PROSE)
def test_prose_is_kept(kind: str) -> None:
    assert quality.rules()(PROSE[kind]) == Kept(PROSE[kind])


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_dropped(kind: str) -> None:
    text, why = JUNK[kind]
    dropped = quality.rules()(text)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == f"quality: {why}"


def test_the_number_and_the_bound_are_told() -> None:
    told = quality.rules()(run_thrice("words", 35, 198) + " the of")
    assert isinstance(told, Dropped)
    assert told.detail == f"{70 * 4 / (198 * 4 + 5):.4g} of the characters are in repeated 5-grams, at most 0.15"
    assert quality.rules()("山水。") == Dropped("quality: too short", "3 characters, at least 40")
    assert quality.rules()("a " * 120_000) == Dropped("quality: too long", "120,000 words, at most 100,000")


def test_bad_lines_are_taken_out_and_counted() -> None:
    body = [f"The {tokens('words', 9 * n, 9 * n + 9)} is of it." for n in range(20)]
    bad = [
        "Read more",
        "Please enable JavaScript now.",
        "We use cookies. See our policy.",
        "x" * 1001 + " is it",
        "Home",
    ]
    told = quality.rules()("\n".join([bad[0], body[0], "", *bad[1:], *body[1:]]))
    counts = {"JavaScript": 1, "policies": 1}
    assert told == Kept(
        "\n".join([body[0], "", *body[1:]]),
        {f"line about {k}": n for k, n in counts.items()}
        | {"line of one or two words": 2, "line with an endless word": 1},
    )
    chinese = PROSE["simplified"]
    told = quality.rules()(f"{chinese}\n请开启JavaScript。\n好。\n请先阅读本站的隐私政策。")
    assert told == Kept(f"{chinese}\n好。", {"line about JavaScript": 1, "line about policies": 1})


def test_a_page_of_bad_lines_only_is_dropped() -> None:
    told = quality.rules()(
        "您的浏览器不支持JavaScript，请你在设置中开启，这是为了上网的安全，也是对我们的支持。\n" + "\n" * 3
    )
    assert told == Dropped("quality: line ends", "0 of the lines end in punctuation, at least 0.12")


def test_a_step_goes_to_other_processes() -> None:
    text = PROSE["English"]
    assert pickle.loads(pickle.dumps(quality.rules()))(text) == Kept(text)


def brute_force(words: list[str]) -> dict[int, float]:
    """The shares of n-grams from their definition."""
    total = max(1, len("".join(words)))
    shares = {}
    for n in (*repetition.TOP, *repetition.REPEATED):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=1)
        tops = {min(1.0, most * len("".join(g)) / total) for g, c in counts.items() if c == most} if most > 1 else {0.0}
        covered = {i + k for i, g in enumerate(grams) if g in grams[:i] for k in range(n)}
        shares[n] = max(tops) if n in repetition.TOP else sum(len(words[i]) for i in covered) / total
    return shares


@given(st.lists(st.sampled_from(["aa", "bb", "cc", "dd"]), max_size=40))
def test_ngrams_are_counted_as_by_brute_force(words: list[str]) -> None:
    sizes = np.array([len(w) for w in words], np.int64)
    assert repetition.ngram_shares(repetition.word_tokens(words), sizes) == pytest.approx(brute_force(words))


@given(st.lists(st.sampled_from(["a", "bbb", "cc"]), max_size=60), st.integers(2, 12))
def test_repeated_ngrams_count_characters(words: list[str], copies: int) -> None:
    words = words * copies
    shares = repetition.ngram_shares(repetition.word_tokens(words), np.array([len(w) for w in words], np.int64))
    expected = brute_force(words)
    assert {n: shares[n] for n in repetition.REPEATED} == pytest.approx({n: expected[n] for n in repetition.REPEATED})


@settings(deadline=None)
@given(
    st.text(st.characters(codec=None), max_size=300)
    | st.text("的山水。，…\n.# aA!", max_size=300)
    | st.lists(st.sampled_from([*PROSE.values(), "javascript\n", "\n\n", "lorem ipsum "]), max_size=5).map("".join)
)
def test_any_text_has_one_fate(text: str) -> None:
    fate = quality.rules()(text)
    assert quality.rules()(text) == fate
    if isinstance(fate, Kept):
        assert len(fate.text) <= len(text)
        assert (fate.text == text) == (not fate.changed)
    else:
        assert fate.reason.removeprefix("quality: ") in RULES[quality.counted_by(text)]


def test_the_rules_that_are_described_are_the_rules() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cleaning-rules.md").read_text(encoding="utf-8")
    described = {r[0]: r[1:4] for r in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (\w+) \|", page, re.M)}
    sides = {"least": "at least", "most": "at most"}
    for name, english in RULES["words"].items():
        chinese = RULES["characters"][name]
        bounds = [f"{sides[r.side]} {r.bound:,g}" for r in (english, chinese)]
        assert described[name] == (*bounds, english.source)
    assert described.keys() == RULES["words"].keys() == RULES["characters"].keys()
