"""Nothing acknowledged is lost, nothing damaged is believed, and odd input is only odd."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from headwater.attribution.spans import Document, SpanIndex, read_reference
from headwater.core.errors import ConflictError, InvalidError


def words(name: str, count: int = 40) -> str:
    return " ".join(f"{name}word{i}" for i in range(count))


@pytest.fixture
def two_segments(tmp_path, reference):
    """An index with two segments and something in the journal."""
    with SpanIndex.create(tmp_path / "i", reference=reference, background=False) as index:
        index.add([Document("a", "ann", 1, words("a", 2000))], segment_tokens_max=1)
        index.add([Document("b", "bob", 2, words("b", 2000))], segment_tokens_max=1)
        index.add([Document("c", "cyd", 3, words("c"))])
    return tmp_path / "i"


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["truncated", "flipped early", "flipped late", "gone", "foreign"])
def test_a_damaged_segment_is_refused_by_name_and_left_out_on_salvage(two_segments, how):
    """The checksum speaks before any query does; salvage keeps the rest."""
    path = sorted(two_segments.glob("*.hws"))[0]
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "gone":
        path.unlink()
    elif how == "foreign":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        flip(path, 40 if "early" in how else path.stat().st_size // 2)

    with pytest.raises(InvalidError) as caught:
        SpanIndex.open(two_segments)
    assert caught.value.code == "segment_damaged"
    assert path.name in str(caught.value)
    assert "--salvage" in str(caught.value)
    with SpanIndex.open(two_segments, salvage=True) as index:
        assert [p.where for p in index.problems] == [path.name]
        assert index.trace(words("a")).spans == ()
        assert [s.owner for s in index.trace(words("b")).spans] == ["bob"]
        assert [s.owner for s in index.trace(words("c")).spans] == ["cyd"]
        index.add([Document("d", "dee", 4, words("d"))])
        index.compact()
    with SpanIndex.open(two_segments) as index:
        assert index.verify() == ()
        assert index.stats().documents == 3


def test_a_bit_that_rots_under_an_open_index_is_found_by_verify(two_segments):
    """`verify` reads every byte, whatever the file system says of it."""
    with SpanIndex.open(two_segments) as index:
        assert index.verify() == ()
        path = sorted(two_segments.glob("*.hws"))[1]
        flip(path, path.stat().st_size - 5)

        assert [(p.where, p.code) for p in index.verify()] == [(path.name, "segment_damaged")]


@pytest.mark.parametrize("name", ["MANIFEST.json", "reference.bin", "journal"])
def test_other_damaged_files_are_refused_by_name(two_segments, name):
    """Manifest, reference and journal have digests of their own."""
    path = next(two_segments.glob("journal-*.log")) if name == "journal" else two_segments / name
    flip(path, path.stat().st_size // 2)

    with pytest.raises(InvalidError) as caught:
        SpanIndex.open(two_segments)
    assert path.name in str(caught.value)


def test_a_record_cut_short_was_never_acknowledged(two_segments):
    """Half a journal record at the end is dropped, and the next writer cuts it off."""
    journal = next(two_segments.glob("journal-*.log"))
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[: len(whole) // 2])

    with SpanIndex.open(two_segments) as index:
        assert index.stats().documents == 3
        index.add([Document("d", "dee", 4, words("d"))])
    with SpanIndex.open(two_segments) as index:
        assert index.stats().documents == 4
        assert index.verify() == ()


def test_two_writers_the_second_is_refused_clearly(two_segments):
    """Reading goes on, writing does not, and the first writer is not disturbed."""
    with SpanIndex.open(two_segments) as first, SpanIndex.open(two_segments) as second:
        first.add([Document("d", "dee", 4, words("d"))])
        for attempt in (lambda: second.add([Document("e", "eve", 5, "x")]), lambda: second.remove("a"), second.compact):
            with pytest.raises(ConflictError) as caught:
                attempt()
            assert caught.value.code == "index_locked"
        assert second.trace(words("a")).spans
        first.close()
        second.add([Document("e", "eve", 5, words("e"))])

        assert second.stats().documents == 5
        with pytest.raises(ConflictError):
            first.add([Document("f", "fay", 6, "x")])


CHILD = """
import sys
from pathlib import Path
from headwater.attribution.spans import Document, SpanIndex
index = SpanIndex.open(sys.argv[1])
print("ready", flush=True)
for i in range(int(sys.argv[2]), 10**6):
    text = " ".join(f"n{i}w{j}" for j in range(300))
    index.add([Document(f"n{i}", "ann", i, text)], segment_tokens_max=1 if i % 3 == 0 else 10**6)
    print(i, flush=True)
"""


def test_killing_a_writer_loses_nothing_that_was_acknowledged(tmp_path, reference):
    """kill -9 at odd moments of adding, flushing and merging, several times over."""
    folder = tmp_path / "i"
    SpanIndex.create(folder, reference=reference).close()
    acknowledged = -1
    for round_ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(acknowledged + 1)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        stop = 5 + 7 * round_
        for line in child.stdout:
            acknowledged = int(line)
            stop -= 1
            if not stop:
                os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with SpanIndex.open(folder) as index:
            held = index.stats().documents
            assert acknowledged + 1 <= held <= acknowledged + 2
            for i in range(acknowledged + 1):
                assert index.count(f"n{i}w0 n{i}w1 n{i}w2") == 1
            assert index.verify() == ()
            acknowledged = held - 1


FULL = """
import resource, sys
from headwater.attribution.spans import Document, SpanIndex
from headwater.core.errors import UpstreamError
index = SpanIndex.open(sys.argv[1], background=False)
index.add([Document("warm", "ann", 0, "a few words to begin with and a few more")])
before = index.trace("a few words to begin with and a few more")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
big = " ".join(f"big{i}" for i in range(60000))
for limit in (1, 10**9):
    try:
        index.add([Document("big", "bob", 1, big)], segment_tokens_max=limit)
    except UpstreamError as error:
        print(error.code)
assert index.trace("a few words to begin with and a few more") == before
assert index.trace(big).spans == ()
"""


@pytest.mark.parametrize("limit_bytes", [100, 20_000, 400_000])
def test_a_full_disk_is_a_clean_error_and_the_old_state_stays(tmp_path, reference, limit_bytes):
    """Files that cannot grow stand in for a disk that cannot take more."""
    folder = tmp_path / "i"
    SpanIndex.create(folder, reference=reference).close()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(folder), str(limit_bytes)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["index_disk", "index_disk"]
    with SpanIndex.open(folder) as index:
        assert index.verify() == ()
        assert index.stats().documents == 1
        index.add([Document("more", "bob", 1, words("more"))])
        assert index.stats().documents == 2
        assert not list(folder.glob("*.part"))


def test_odd_documents_are_only_odd(tmp_path, reference):
    """Empty, without words, shorter than k, not UTF-8, one long word, one long line."""
    odd: dict[str, str | bytes] = {
        "empty": "",
        "marks": "!!! ... ???",
        "short": "just three words",
        "latin1": "caf\xe9 \xfc".encode("latin-1") * 10,
        "nul": b"\x00" * 100,
        "long word": "x" * 300_000,
        "long line": words("line", 30_000),
        "wide gaps": (" " * 1000).join(f"gap{i}" for i in range(50)),
    }
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        report = index.add(Document(name, "ann", i, text) for i, (name, text) in enumerate(odd.items()))
        assert report.documents == len(odd)
        (span,) = index.trace((" " * 1000).join(f"gap{i}" for i in range(10, 30))).spans
        assert span.document_start == len((" " * 1000).join(f"gap{i}" for i in range(10))) + 1000
        for text in odd.values():
            index.trace(text)
        assert index.trace("").spans == ()
        assert index.count("") == index.count("...") == 0
        index.compact()
        assert index.verify() == ()


def test_values_of_the_wrong_kind_are_refused_by_name(tmp_path, reference):
    """Not a stack trace from inside: what was given, and what to give."""
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        for wrong in (
            lambda: Document(5, "ann", 1, "x"),
            lambda: Document("x", "ann", 1.5, "x"),
            lambda: Document("x", "ann", True, "x"),
            lambda: Document("x", "ann", 1, None),
            lambda: index.add(["text"]),
            lambda: index.trace(5),
            lambda: index.trace_batch("one text"),
            lambda: index.count(None),
        ):
            with pytest.raises(InvalidError) as caught:
                wrong()
            assert caught.value.code in {"document_invalid", "text_invalid"}
            assert caught.value.fix
        assert index.stats().documents == 0


def test_an_index_of_another_format_is_named(tmp_path, reference):
    """It is not damaged: it is to be built again."""
    SpanIndex.create(tmp_path / "i", reference=reference).close()
    path = tmp_path / "i" / "MANIFEST.json"
    raw = path.read_bytes().partition(b"\n")[2].replace(b"headwater-spans-2", b"headwater-spans-1")
    path.write_bytes(hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)

    with pytest.raises(InvalidError) as caught:
        SpanIndex.open(tmp_path / "i")
    assert caught.value.code == "index_format"


def test_a_reference_for_another_tokeniser_or_cut_short_is_refused(reference):
    """A reference is all there and for this way of reading, or it is not used."""
    for raw in (
        b"",
        b"{}",
        reference.raw[:-1],
        reference.raw.replace(b'"tokeniser":"sha256:', b'"tokeniser":"sha257:'),
    ):
        with pytest.raises(InvalidError):
            read_reference(raw)


@pytest.mark.slow
def test_a_hundred_megabytes_on_one_line(tmp_path, reference):
    """One document of one line is like any other."""
    line = " ".join(f"{i * 7919 % 999_983}" for i in range(15_000_000)).encode()
    assert len(line) > 95_000_000
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document("line", "ann", 0, line)])
        assert sum(span.tokens for span in index.trace(line[50_000_000:50_002_000]).spans) > 200


@pytest.mark.slow
def test_a_million_identical_documents(tmp_path, reference):
    """The first one owns everything; asking stays quick."""
    text = words("same", 20)
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        report = index.add(Document(f"d{i:07d}", f"o{i % 1000}", i, text) for i in range(1_000_000))
        assert report.owned_tokens == 20
        assert report.copied_tokens == 20 * 999_999
        (span,) = index.trace(text).spans
        assert (span.document_id, span.count) == ("d0000000", 1_000_000)
        assert index.count(text) == 1_000_000
