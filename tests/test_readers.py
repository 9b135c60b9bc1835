"""Readers: every format, every encoding, and forty ways in which a file can be wrong. Nothing is lost in silence."""

import gzip
import io
import json
import os
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretell.data import formats, lines, readers, streams
from foretell.data.records import Document, Rejected
from foretell.errors import DataError, MissingExtra

CHINESE = "话说天下大势，分久必合，合久必分。\n周末七国分争，并入于秦。及秦灭之后，楚、汉分争。\n"
# U+4E00 and U+3000 have a zero byte too.
ONES = "　　一日，一人一马一刀，一去不回。\n　　众人道：“一个也没有。”大家一笑。\n"
POEM = "國破山河在，城春草木深。\n感時花濺淚，恨別鳥驚心。\n烽火連三月，家書抵萬金。\n"


def read(path: Path, text_key: str | None = None) -> tuple[list[str], list[Rejected]]:
    records = [r for e in readers.expand([str(path)]).entries for r in readers.read(e, text_key)]
    return [r.text for r in records if isinstance(r, Document)], [r for r in records if isinstance(r, Rejected)]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- formats ---------------------------------------------------------------------------------------------------------


def test_prose_and_source_files_are_one_document(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.py", "d.rs", "Makefile", "e.yml", "f.unknown"):
        assert read(write(tmp_path / name, "one\n\ntwo\n")) == (["one\n\ntwo\n"], [])


def test_line_ends_become_lf(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "a\r\nb\rc\n"))[0] == ["a\nb\nc\n"]
    line = json.dumps({"text": "a\r\nb"})
    assert read(write(tmp_path / "a.jsonl", f"{line}\r\n"))[0] == ["a\nb"]


def test_json_lines(tmp_path: Path) -> None:
    rows = ['{"text": "a"}', '{"id": 1, "content": "b"}', '"c"', '{"paragraphs": ["d", "e"]}', "", '{"text": ""}']
    texts, bad = read(write(tmp_path / "a.jsonl", "\n".join(rows)))
    assert (texts, bad) == (["a", "b", "c", "d\ne", ""], [])
    texts, bad = read(write(tmp_path / "b.jsonl", '{"q": "x"}\n{"text": 3}\n{"text": null}\n[1]\n{"text"\n'))
    assert texts == []
    assert [r.offset for r in bad] == [0, 11, 23, 38, 42]
    assert "keys 'q'; name the right one with data.text_key" in bad[0].reason
    assert "not JSON" in bad[4].reason
    assert read(write(tmp_path / "c.jsonl", '{"q": "x", "text": "y"}\n'), text_key="q")[0] == ["x"]


def test_json_is_lines_or_source(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n'))[0] == ["a", "b"]
    assert read(write(tmp_path / "b.json", '{\n "text": "a"\n}\n'))[0] == ['{\n "text": "a"\n}\n']


def test_csv(tmp_path: Path) -> None:
    data = 'id,text\n1,"a, ""b""\nsecond line"\n2,c\n3\n4,d\n'
    texts, bad = read(write(tmp_path / "a.csv", data))
    assert texts == ['a, "b"\nsecond line', "c", "d"]
    assert [(r.offset, r.reason) for r in bad] == [(data.index("3\n"), "row of 1 cells has no column 2")]
    assert read(write(tmp_path / "b.csv", "x,y\n1,2\n"))[0] == ["x\ty", "1\t2"]
    assert read(write(tmp_path / "c.csv", "x,y\n1,2\n"), text_key="y")[0] == ["2"]


def test_csv_bad_byte_costs_its_record(tmp_path: Path) -> None:
    data = b'text\nfirst\n"quoted\nb\xffd\nend"\nlast\n'
    texts, bad = read(write(tmp_path / "a.csv", data))
    assert texts == ["first", "last"]
    assert [r.offset for r in bad] == [data.index(b'"quoted')]


@pytest.mark.parametrize("bad", [b"\xff", b"\0"])
def test_csv_bad_line_that_closes_a_cell_costs_its_record_alone(tmp_path: Path, bad: bytes) -> None:
    data = b'text\n"one\nb' + bad + b'd"\ntwo\n"three, quoted"\n"b' + bad + b'd\nfour"\nfive\n'
    texts, rejected = read(write(tmp_path / "a.csv", data))
    assert texts == ["two", "three, quoted", "five"]
    assert [r.offset for r in rejected] == [5, data.rindex(b'"b')]


def test_csv_header_with_a_bad_byte_still_names_its_columns(tmp_path: Path) -> None:
    texts, bad = read(write(tmp_path / "a.csv", b"pr\xffce,text\n1,one\n2,two\n"))
    assert texts == ["one", "two"]
    assert [r.offset for r in bad] == [0]


def test_csv_without_the_column_asked_for_is_one_record(tmp_path: Path) -> None:
    for name, data in (("a.csv", "x,y\n1,2\n3,4\n"), ("a.tsv", "x\ty\n1\t2\n")):
        texts, bad = read(write(tmp_path / name, data), text_key="title")
        assert (texts, len(bad)) == ([], 1)
        assert "columns x, y; name the right one with data.text_key" in bad[0].reason


def test_csv_quote_that_never_closes_is_bounded(tmp_path: Path) -> None:
    data = 'text\ngood\n"open\n' + "word word\n" * 300_000
    texts, bad = read(write(tmp_path / "a.csv", data))
    assert texts[0] == "good"
    assert bad[0].offset == data.index('"open')
    assert len(bad) == 1
    assert len(texts) > 150_000  # reading went on after the cell reached its bound


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    data = 'Hi.\t嗨。\n"No\t不\n'
    assert read(write(tmp_path / "a.tsv", data))[0] == ["Hi.\t嗨。", '"No\t不']


def test_html_gives_visible_text(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>T &amp; t</title><style>p {}</style><script>if (a<b) x()</script></head>
    <body><h1>Head</h1><p>One   <b>two</b>
    three.</p><!-- no --><pre>a  b
      c</pre><ul><li>x<li>y</ul><script>bad</script>caf&eacute;</body></html>"""
    (text,), bad = read(write(tmp_path / "a.html", page))
    assert not bad
    assert "One two three." in text
    assert "a  b\n" in text
    assert "café" in text
    assert text.startswith("T & t\n")
    assert "bad" not in text
    assert "{}" not in text
    assert "no" not in text


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<!--",
        "<a ",
        "</",
        "<![CDATA[",
        "<script>",
        "&",
        "<div>",
        "<a b='",
        "</script ",
        "<svg>",
        '<a>"',
        "<!x",
        "&#9",
    ],
)
def test_hostile_html_ends_soon(tmp_path: Path, unit: str) -> None:
    path = write(tmp_path / "a.html", unit * 300_000)
    read(path)  # in quadratic time this would be hours


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"id": list(range(1000)), "text": [f"row {n}\r\n" if n else None for n in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    texts, bad = read(tmp_path / "a.parquet")
    assert (texts[:2], len(texts), bad) == (["", "row 1\n"], 1000, [])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(3).column(1).data_page_offset
    data[middle : middle + 40] = b"\xff" * 40
    texts, bad = read(write(tmp_path / "b.parquet", bytes(data)))
    assert len(texts) == 900
    assert [r.offset for r in bad] == [300]
    assert "row group 3" in bad[0].reason
    for damaged in (bytes(data[:5000]), b"PAR1", b"no", bytes(data[-300:])):
        texts, bad = read(write(tmp_path / "c.parquet", damaged))
        assert (texts, len(bad)) == ([], 1)
    pq.write_table(pa.table({"q": ["x"]}), tmp_path / "d.parquet")
    assert "data.text_key" in read(tmp_path / "d.parquet")[1][0].reason
    assert read(tmp_path / "d.parquet", text_key="q")[0] == ["x"]


def datasets_folder(folder: Path, texts: list[str]) -> Path:
    """As datasets.Dataset.save_to_disk lays it out."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    table = pa.table({"text": texts, "id": list(range(len(texts)))})
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as w:
        w.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_datasets_folder(tmp_path: Path) -> None:
    one = datasets_folder(tmp_path / "one", ["a", "b"])
    (one / "cache-1.arrow").write_bytes(b"a cache, not data")
    assert read(one) == (["a", "b"], [])
    datasets_folder(tmp_path / "both" / "train", ["a"])
    datasets_folder(tmp_path / "both" / "test", ["b"])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert sorted(read(tmp_path / "both")[0]) == ["a", "b"]
    cut = (one / "data-00000-of-00001.arrow").read_bytes()[:-200]
    write(one / "data-00000-of-00001.arrow", cut)
    assert len(read(one)[1]) == 1


def test_hugging_face_without_the_library_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="foretell\\[data\\]"):
        list(readers.documents("hf://someone/something"))

    class Library:
        @staticmethod
        def load_dataset(*args: object, **kwargs: object) -> Any:
            raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", Library)
    with pytest.raises(DataError, match="could not be fetched: no route"):
        list(readers.documents("hf://someone/something"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        list(readers.documents("hf://someone/something"))


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk"]
)
@pytest.mark.parametrize(
    "text",
    [CHINESE * 3, POEM * 3, ONES, ONES * 40, CHINESE * 60_000],
    ids=["novel", "poem", "ones", "more ones", "long"],
)
def test_chinese_in_every_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    texts, bad = read(write(tmp_path / "a.txt", text.replace("\n", "\r\n").encode(encoding)))
    assert not bad
    assert "".join(texts) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("text", ["plain english\n", "Привет, мир! Как дела?\n" * 5, "naïve café — “quoted”\n" * 3])
def test_other_scripts(tmp_path: Path, encoding: str, text: str) -> None:
    assert read(write(tmp_path / "a.txt", text.encode(encoding))) == ([text], [])


def test_gb18030_after_much_ascii_and_in_records(tmp_path: Path) -> None:
    text = "plain ascii line\n" * 200_000 + CHINESE
    assert "".join(read(write(tmp_path / "a.txt", text.encode("gb18030")))[0]) == text
    rows = "".join(json.dumps({"text": CHINESE}, ensure_ascii=False) + "\n" for _ in range(3))
    assert read(write(tmp_path / "a.jsonl", rows.encode("gb18030")))[0] == [CHINESE] * 3


LATIN = "Les élèves français étudient déjà la géographie à l'école ; où êtes-vous né ?\n" * 40


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (LATIN, "latin-1"),
        ("Über größere Straßen führen schöne Brücken nach Österreich.\n" * 40, "latin-1"),
        (POEM * 40, "big5"),
        ("これは日本語の文章です。漢字とひらがなを含みます。\n" * 40, "shift-jis"),
        ("これは日本語の文章です。漢字とひらがなを含みます。\n" * 40, "euc-jp"),
        ("이것은 한국어 문장입니다. 여러 단어가 있습니다.\n" * 40, "euc-kr"),
        ("Привет, мир! Это обычный русский текст.\n" * 40, "cp1251"),
        ("Привет, мир! Это обычный русский текст.\n" * 40, "koi8-r"),
    ],
)
def test_other_eight_bit_encodings_are_not_taken_for_chinese(tmp_path: Path, text: str, encoding: str) -> None:
    texts, bad = read(write(tmp_path / "a.txt", text.encode(encoding)))
    assert texts == []
    assert len(bad) == 1
    assert "convert it" in bad[0].reason


@pytest.mark.parametrize("bad", [b"caf\xe9 au lait", b"\xff", b"a\x00b", b"\xed\xa0\x80", b"\xc3"])
def test_one_bad_line_in_utf8_costs_that_line(tmp_path: Path, bad: bytes) -> None:
    before, after = ("good line, naïve\n" * 50).encode(), "后来的好文字\n".encode() * 50
    texts, rejected = read(write(tmp_path / "a.txt", before + bad + b"\n" + after))
    assert [t.encode() for t in texts] == [before, after]
    assert [r.offset for r in rejected] == [len(before)]
    row = b'{"text": "' + bad + b'"}\n'
    good = b'{"text": "ok"}\n'
    texts, rejected = read(write(tmp_path / "a.jsonl", good * 5 + row + good * 5))
    assert len(texts) == 10
    assert [r.offset for r in rejected] == [5 * len(good)]


def test_bad_byte_deep_inside_a_large_file(tmp_path: Path) -> None:
    text = ("x" * 99 + "\n").encode()
    data = text * 50_000 + b"bad \xff line\n" + text * 50_000
    texts, rejected = read(write(tmp_path / "a.txt", data))
    assert sum(map(len, texts)) == 10_000_000
    assert [r.offset for r in rejected] == [5_000_000]


def test_bad_place_in_gb18030_costs_its_line(tmp_path: Path) -> None:
    data = (CHINESE * 40).encode("gb18030")
    texts, rejected = read(write(tmp_path / "a.txt", data + b"\xff\xff\n" + data))
    assert texts == [CHINESE * 40, CHINESE * 40]
    assert len(rejected) == 1


def test_bad_unit_in_utf16_costs_its_line(tmp_path: Path) -> None:
    good = "good line\n" * 5
    data = b"\xff\xfe" + good.encode("utf-16-le") + b"a\x00\x00\xd8b\x00\n\x00" + good.encode("utf-16-le") + b"x"
    texts, rejected = read(write(tmp_path / "a.txt", data))
    assert texts == [good, good]
    assert len(rejected) == 2  # the lone surrogate, and the odd byte at the end


# --- compressed ------------------------------------------------------------------------------------------------------


def test_gzip_members_padding_and_inner_formats(tmp_path: Path) -> None:
    two = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert read(write(tmp_path / "a.txt.gz", two))[0] == ["one\ntwo\n"]
    assert read(write(tmp_path / "b.txt.gz", two + b"\0" * 512)) == (["one\ntwo\n"], [])
    assert read(write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"text": "a"}')))[0] == ["a"]
    assert read(write(tmp_path / "d.gz", gzip.compress(CHINESE.encode("utf-16"))))[0] == [CHINESE]


def test_truncated_gzip_keeps_what_was_decoded(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": random.Random(n).random()} | {"text": f"{n} " * 50}) + "\n" for n in range(5000))
    packed = gzip.compress(rows.encode())
    texts, bad = read(write(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2]))
    assert 1000 < len(texts) < 4000
    assert texts == [f"{n} " * 50 for n in range(len(texts))]
    assert any("ends early" in r.reason for r in bad)
    assert len(bad) <= 2  # the half record, and the missing rest
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # the checksum
    texts, bad = read(write(tmp_path / "b.jsonl.gz", bytes(flipped)))
    assert len(texts) == 5000
    assert "incorrect data check" in bad[0].reason
    assert "not gzip" in read(write(tmp_path / "c.txt.gz", b"plain text"))[1][0].reason


def test_gzip_bomb_is_bounded(tmp_path: Path) -> None:
    bomb = gzip.compress(b"a b\n" * (1 << 26))
    assert len(bomb) < 1_000_000
    texts, bad = read(write(tmp_path / "a.txt.gz", bomb))
    assert sum(map(len, texts)) < 1 << 27
    assert "bomb" in bad[-1].reason


def test_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.compress(b"one\n") + zstandard.compress(b"two\n")
    assert read(write(tmp_path / "a.txt.zst", packed))[0] == ["one\ntwo\n"]
    data = random.Random(0).randbytes(300_000).hex().encode()
    lines_ = b"\n".join(data[n : n + 100] for n in range(0, len(data), 100))
    packed = zstandard.compress(lines_)
    texts, bad = read(write(tmp_path / "b.txt.zst", packed[: len(packed) // 2]))
    assert texts
    assert lines_.decode().startswith(texts[0].rstrip("\n"))
    assert len(bad) == 1
    bomb = zstandard.compress(b"a b\n" * (1 << 26))
    assert "bomb" in read(write(tmp_path / "c.txt.zst", bomb))[1][-1].reason
    assert "not zstandard" in read(write(tmp_path / "d.txt.zst", b"plain"))[1][0].reason


# --- nasty -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
        b"%PDF-1.4\nstream of text\n" * 100,
        b"PK\x03\x04 zip",
        random.Random(1).randbytes(100_000),
        b"\0" * 5000,
        struct.pack("<1000f", *range(1000)),
        zlib.compress(b"x" * 100_000),
        b"\xfe\xff" + b"\xd8\x00" * 1,
    ],
)
def test_binary_is_one_quarantined_record(tmp_path: Path, data: bytes) -> None:
    texts, bad = read(write(tmp_path / "thing", data))
    assert (texts, len(bad)) == ([], 1)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_of_large_texts_is_no_text(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        member = tarfile.TarInfo("book.txt")
        member.size = 3_000_000
        archive.addfile(member, io.BytesIO(b"a line of a book\n" * 176_471))
    texts, bad = read(tmp_path / name)
    assert (texts, [r.reason for r in bad]) == ([], ["a tar archive; unpack it first"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.html", "a.parquet", "a.txt.gz", "a.json"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a mark"])
def test_empty_files_are_one_record(tmp_path: Path, name: str, data: bytes) -> None:
    packed = gzip.compress(data) if name.endswith(".gz") and data else data
    texts, bad = read(write(tmp_path / name, packed))
    assert len(texts) + len(bad) == 1
    assert not any(t.strip() for t in texts)


def test_deep_json_surrogates_and_huge_numbers(tmp_path: Path) -> None:
    rows = [
        '{"text": ' + "[" * 200_000,
        '{"text": "\\ud800"}',
        '{"text": "a\\u0000b"}',
        '{"n": ' + "9" * 10_000 + "}",
        '{"text": NaN}',
        '{"text": "ok", "text": "last"}',
    ]
    texts, bad = read(write(tmp_path / "a.jsonl", "\n".join(rows)))
    assert texts == ["last"]
    assert len(bad) == 5
    assert "U+D800" in bad[1].reason


def test_long_lines_are_bounded(tmp_path: Path) -> None:
    long = b'{"text": "' + b"x" * (lines.RECORD_BYTES + 10) + b'"}\n'
    good = b'{"text": "ok"}\n'
    texts, bad = read(write(tmp_path / "a.jsonl", good + long + good + long[:-1]))
    assert texts == ["ok", "ok"]
    assert [r.offset for r in bad] == [len(good), 2 * len(good) + len(long)]
    assert "longer than" in bad[0].reason
    text = "字" * 5_000_000 + "end"
    texts, bad = read(write(tmp_path / "a.txt", text))
    assert not bad
    assert "".join(texts) == text
    assert max(map(len, texts)) < 2 * formats.PIECE_CHARACTERS
    text = CHINESE.replace("\n", "") * 50_000
    texts, bad = read(write(tmp_path / "b.txt", text.encode("gb18030")))
    assert ("".join(texts), bad) == (text, [])


def test_long_prose_is_cut_at_paragraphs(tmp_path: Path) -> None:
    paragraph = "One sentence.\nAnother one.\n\n"
    text = paragraph * 400_000
    texts, _ = read(write(tmp_path / "a.txt", text))
    assert len(texts) > 1
    assert "".join(texts) == text
    assert all(t.endswith("\n\n") for t in texts)
    offsets = [r.offset for r in readers.documents(str(tmp_path / "a.txt"))]
    assert offsets == [sum(map(len, texts[:n])) for n in range(len(texts))]


def test_special_files_links_and_hidden_ones(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    write(folder / ".git" / "config", "secret")
    write(folder / "._a.txt", "hidden")
    write(folder / "b.txt", "b")
    write(folder / "sub" / "a.txt", "a")
    os.mkfifo(folder / "fifo.txt")
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    inputs = readers.expand([str(folder)])
    assert inputs.hidden == 2
    texts, bad = read(folder)
    assert texts == ["b", "a"]
    reasons = {Path(r.source).name: r.reason for r in bad}
    assert reasons == {
        "fifo.txt": "not a regular file",
        "dangling.txt": "dangling link",
        "loop": "link to a folder, which is not followed",
        "self": "dangling link",
    }


def test_permissions_and_vanishing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "a")
    entry = readers.expand([str(path)]).entries[0]

    def refuse(*args: object, **kwargs: object) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as m:
        m.setattr(Path, "open", refuse)
        (record,) = readers.read(entry)
    assert isinstance(record, Rejected)
    assert "Permission denied" in record.reason
    path.unlink()
    (record,) = readers.read(entry)
    assert "No such file" in record.reason  # type: ignore[union-attr]


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in ("nothing", "no*thing", str(tmp_path)):
        with pytest.raises(DataError, match=source.replace("*", r"\*")):
            readers.expand([source])


def test_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        write(tmp_path / name, name)
    assert [d.text for d in readers.documents(str(tmp_path / "*.txt"))] == ["a.txt", "b.txt"]
    assert [d.text for d in readers.documents(str(tmp_path / "**"))] == ["a.txt", "b.txt", "c.md"]


def test_folders_that_a_pattern_matches_are_read_once(tmp_path: Path) -> None:
    for name in ("x/a.txt", "x/deep/b.txt", "y/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, name)
    for pattern in ("*", "**"):
        names = [d.text for d in readers.documents(str(tmp_path / pattern))]
        assert sorted(names) == ["x/a.txt", "x/deep/b.txt", "y/c.txt"]


def test_zstandard_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match="foretell\\[data\\]"):
        read(write(tmp_path / "a.zst", b"x"))


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=400) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    name=st.sampled_from(["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.html", "a.json", "a.gz", "a.csv.gz", "a"]),
    pack=st.booleans(),
)
def test_no_content_raises(tmp_path: Path, data: bytes, name: str, pack: bool) -> None:
    texts, bad = read(write(tmp_path / name, gzip.compress(data) if pack else data))
    assert len(texts) + len(bad) >= 1
    for text in texts:
        text.encode()
        assert "\0" not in text
        assert "\r" not in text


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.binary(max_size=60), max_size=20),
    size=st.integers(1, 70),
    longest=st.integers(1, 80),
)
def test_runs_are_the_stream(rows: list[bytes], size: int, longest: int) -> None:
    """However the blocks fall, lines up to the bound come whole and in place, longer ones as one rejected run each."""
    data = b"\n".join(rows)
    stream = io.BytesIO(data)
    runs = list(lines.byte_runs(iter(lambda: stream.read(size), b""), longest=longest))
    got = [(r.offset + o, line) for r in runs if not r.reason for o, line in with_offsets(r.data)]
    expected = [(o, line) for o, line in with_offsets(data) if len(line) <= longest]
    assert got == expected
    assert [r.offset for r in runs if r.reason] == [o for o, line in with_offsets(data) if len(line) > longest]


def with_offsets(data: bytes) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    for line in data.split(b"\n"):
        whole = line + b"\n" if offset + len(line) < len(data) else line
        if whole:
            found.append((offset, whole))
        offset += len(whole)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.lists(st.text("ab é字\n", min_size=1, max_size=30), max_size=8), data=st.data())
def test_good_lines_survive_bad_ones(tmp_path: Path, good: list[str], data: st.DataObject) -> None:
    """Whatever is damaged, the text that comes out is exactly the good lines, in order."""
    rows = [line for text in good for line in text.split("\n")]
    bad_at = data.draw(st.sets(st.integers(0, max(0, len(rows) - 1)), max_size=3))
    raw = b"".join((b"\xff" if n in bad_at else b"") + r.encode() + b"\n" for n, r in enumerate(rows))
    texts, bad = read(write(tmp_path / "a.txt", raw))
    if rows:
        assert "".join(texts) == "".join(r + "\n" for n, r in enumerate(rows) if n not in bad_at)
        assert len(bad) == len(bad_at)


def test_block_sizes_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (CHINESE * 30).encode("gb18030") + b"\xff\xff\n" + ("ascii line\r\n" * 30 + CHINESE).encode("gb18030")
    path = write(tmp_path / "a.txt", data)
    expected = read(path)
    for size in (7, 64, 1000):
        monkeypatch.setattr(streams, "BLOCK_BYTES", size)
        texts, bad = read(path)
        assert "".join(texts) == "".join(expected[0])
        assert [r.offset for r in bad] == [r.offset for r in expected[1]]


# --- real files ------------------------------------------------------------------------------------------------------


def test_real_files(shared_data: Path) -> None:
    """The full sets: every record is read, and the counts are those that their sources state."""
    counts = {
        "lm-zh/tang-poetry/train.jsonl.gz": 18_009,
        "lm-zh/hongloumeng/train.txt.gz": 1,
        "cls-en/banking77/train.csv.gz": 10_003,
        "cls-en/banking77/test.csv.gz": 3_080,
        "mt-en-zh/tatoeba-cmn-eng.tsv.gz": 21_116,
        "cls-zh/csl-category/train.tsv.gz": 8_000,
        "lm-en/c4-mini/train.jsonl.gz": 1_000,
    }
    for name, count in counts.items():
        texts, bad = read(shared_data / name)
        assert (len(texts), len(bad)) == (count, 0), name
        assert not any("\r" in t for t in texts)
