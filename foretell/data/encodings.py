"""From bytes to text by strict decoding in a stated order: BOM, UTF-8, UTF-16 without BOM, GB18030; else quarantine.

- A byte-order mark decides (UTF-8, UTF-16, UTF-32). UTF-16 and UTF-32 are re-coded to UTF-8 block by block, so that
  everything after this module deals with one kind of line.
- A first block with NULs on one side of each pair, or anywhere in Chinese, is UTF-16 without a mark if it reads so.
- A first block with NULs or control characters beyond 1%, or with a known signature, is binary.
- The first block that is not ASCII decides between UTF-8 and GB18030. UTF-8 with few bad bytes stays UTF-8 and loses
  only the lines they stand in. GB18030 accepts nearly any bytes, so it is believed only where at least a tenth of the
  decoded ideographs are among the 200 commonest (in Chinese text, old or new, simplified or traditional, it is a third
  to a half; in Latin-1, Big5, Shift-JIS or EUC-KR read as GB18030 about a fiftieth). Anything else is another 8-bit
  encoding: the whole file is quarantined with the advice to convert it, because half-right text is worse than none.

Not handled: Big5, Shift-JIS, Latin-1 and the like (convert with iconv); an encoding that changes within a file.
"""

from __future__ import annotations

import codecs
import itertools
import unicodedata
from collections.abc import Iterator

from foretell.data.records import Damaged

_BOMS = (
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SIGNATURES = (b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x7fELF", b"PAR1", b"BZh")
_CONTROLS = bytes(b for b in range(32) if b not in b"\t\n\v\f\r\b\x1b") + b"\x7f"
COMMON = frozenset(
    "的我了不一学是人在他你有来中工道大上去这子个说之和下天年要么生到们理日为得法多出分什可里家自能那于以"
    "也地知姆好与事用时国曰何她公行见如看会明成着相作都方玉儿性研起回想水心究二对山太三今很又只前此這化高"
    "发就其們及后小过马将德宝西合军物來主因笑意没新汤個问面十进便应些正老所城路月花贾动同已定王基管白教兵"
    "入本而做然文体两被等经名外嗎力平常听時数喜特南头计建系还制机斯把春关流无金安湯比医最打农哪母间度少重"
)

# A bad unit becomes a lone surrogate, which UTF-8 refuses later, in the line it stands in.
codecs.register_error("foretell.bad_unit", lambda e: ("\udcff", e.end))  # type: ignore[attr-defined]


class Binary(Exception):
    """The stream as a whole is no text of a known encoding."""


def utf8_like(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks without byte-order mark, UTF-16 and UTF-32 re-coded to UTF-8. Raises Binary before the first block."""
    first = next(blocks, b"")
    for bom, encoding in _BOMS:
        if first.startswith(bom):
            rest = itertools.chain([first[len(bom) :]], blocks)
            yield from _recoded(rest, encoding) if encoding else rest
            return
    if encoding := _utf16_without_bom(first[: 1 << 16]):
        yield from _recoded(itertools.chain([first], blocks), encoding)
        return
    if first.startswith(_SIGNATURES):
        raise Binary("binary file")
    if first[257:262] == b"ustar":  # large texts in it hide its few control bytes
        raise Binary("a tar archive; unpack it first")
    controls = len(first) - len(first.translate(None, _CONTROLS))
    if controls > max(4, len(first) / 100):
        raise Binary(f"binary file: {controls:,} control bytes in the first {len(first):,}")
    yield first
    yield from blocks


def _recoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("foretell.bad_unit")
    damage = None
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
    except Damaged as e:
        damage = e
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    if damage:
        raise damage


def _utf16_without_bom(sample: bytes) -> str:
    """The encoding, or nothing. Chinese has zeros on both sides: those of its line ends, and of U+4E00 and U+3000."""
    sample = sample[: len(sample) // 2 * 2]
    zeros = {"utf-16-le": sample[1::2].count(0), "utf-16-be": sample[0::2].count(0)}
    likelier, other = sorted(zeros, key=lambda e: -zeros[e])
    if not zeros[likelier]:
        return ""
    one_sided = zeros[other] <= zeros[likelier] / 10
    readable = {e: text for e in zeros if (text := _readable(sample, e))}
    if one_sided and zeros[likelier] >= len(sample) / 4:
        return likelier if likelier in readable else ""
    chinese = {e: _common_share(text) for e, text in readable.items()}
    best = max(chinese, key=lambda e: chinese[e], default="")
    if best and chinese[best] >= 0.1:
        return best
    return likelier if one_sided and likelier in readable and zeros[likelier] >= 0.05 * len(readable[likelier]) else ""


def _readable(sample: bytes, encoding: str) -> str:
    """The sample's text if it decodes to text, or nothing."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return ""
    readable = sum(unicodedata.category(c) not in {"Cc", "Cn", "Co", "Cs"} or c in "\t\n\r\f" for c in text)
    return text if readable >= 0.98 * len(text) else ""


class Decoder:
    """Strict decoding with an encoding that is chosen once, at the first bytes that are not ASCII."""

    def __init__(self) -> None:
        self.encoding = ""
        self._begun = False  # once some text was accepted, later damage costs lines, never the file

    def choose(self, sample: bytes) -> None:
        """Decide from a stretch of whole lines; ASCII leaves the question open. Raises Binary."""
        if self.encoding or sample.isascii():
            return
        text = sample.decode("utf-8", "replace")
        bad = text.count("\ufffd") - sample.count(b"\xef\xbf\xbd")
        good = sum(c > "\x7f" for c in text) - bad if bad else 1
        if bad == 0 or bad <= good / 4:
            self.encoding = "utf-8"
            return
        try:
            chinese = _common_share(codecs.getincrementaldecoder("gb18030")().decode(sample)) >= 0.1
        except UnicodeDecodeError as e:
            # A mostly Chinese file with a damaged place is still GB18030: look at what stands before and after it.
            around = sample[: e.start] + sample[e.end + 1 :]
            chinese = bad > len(sample) / 100 and _common_share(around.decode("gb18030", "ignore")) >= 0.1
        if chinese:
            self.encoding = "gb18030"
        elif self._begun or bad <= max(8, len(sample) / 1000):
            self.encoding = "utf-8"
        else:
            raise Binary("neither UTF-8, UTF-16 nor GB18030; convert it to UTF-8 first (iconv)")

    def decode(self, data: bytes) -> str:
        """Text of whole lines. Raises ValueError with the reason."""
        if b"\0" in data:
            raise ValueError(f"NUL at byte {data.index(0)} of the line")
        try:
            text = data.decode(self.encoding or "utf-8")
            self._begun = True
            return text
        except UnicodeDecodeError as e:
            raise ValueError(f"byte 0x{data[e.start]:02x} at byte {e.start} of the line is not {e.encoding}") from None

    def salvaged(self, data: bytes) -> str:
        """Text of lines that `decode` refuses, U+FFFD where they are bad."""
        return data.decode(self.encoding or "utf-8", "replace").replace("\0", "\ufffd")


def _common_share(text: str) -> float:
    ideographs = [c for c in text if c > "\x7f" and unicodedata.category(c) in {"Lo", "Co", "Cn"}]
    return sum(c in COMMON for c in ideographs) / len(ideographs) if ideographs else 0.0
