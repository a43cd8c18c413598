"""What an index says is what a slow reading of the rules says."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.attribution.spans import CreditRules, Document, SpanIndex
from headwater.core.errors import ConflictError, InvalidError, MissingError

K = 4
WORDS = ("ash", "birch", "cedar")


def texts(most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(WORDS), max_size=most).map(" ".join)


@st.composite
def libraries(draw: st.DrawFn) -> list[Document]:
    count = draw(st.integers(1, 7))
    return [
        Document(f"d{i}", f"o{draw(st.integers(0, 2))}", draw(st.integers(0, 3)), draw(texts(14))) for i in range(count)
    ]


def first_holder(documents: Sequence[Document], gram: list[str]) -> tuple[int, str] | None:
    holders = []
    for document in documents:
        words = str(document.text).split()
        if any(words[i : i + K] == gram for i in range(len(words) - K + 1)):
            holders.append((document.registered_at, document.id))
    return min(holders, default=None)


def owners_by_hand(documents: Sequence[Document], text: str) -> list[str | None]:
    """For every word, the earliest of the first holders of the k-grams over it."""
    words = text.split()
    holders = [first_holder(documents, words[i : i + K]) if i + K <= len(words) else None for i in range(len(words))]
    out = []
    for t in range(len(words)):
        over = [h for h in holders[max(0, t - K + 1) : t + 1] if h is not None]
        out.append(min(over)[1] if over else None)
    return out


def owners_of(index: SpanIndex, text: str) -> list[str | None]:
    trace = index.trace(text)
    out: list[str | None] = [None] * trace.tokens
    for span in trace.spans:
        out[span.token : span.token + span.tokens] = [span.document_id] * span.tokens
    return out


def occurrences(documents: Sequence[Document], words: list[str]) -> int:
    held = [str(d.text).split() for d in documents]
    return sum(h[i : i + len(words)] == words for h in held for i in range(len(h) - len(words) + 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=libraries(),
    cuts=st.sets(st.integers(0, 7)),
    removed=st.sets(st.integers(0, 6)),
    text=texts(30),
    data=st.data(),
)
def test_every_word_goes_to_its_first_holder(tmp_path_factory, reference, documents, cuts, removed, text, data):
    """In any order of arrival, over any segments, with removals, before and after compacting and reopening."""
    folder = tmp_path_factory.mktemp("index") / "spans"
    arrival = data.draw(st.permutations(documents))
    with SpanIndex.create(folder, gram_tokens=K, reference=reference, background=False) as index:
        batch: list[Document] = []
        for i, document in enumerate(arrival):
            batch.append(document)
            if i in cuts:
                index.add(batch, segment_tokens_max=1 if i % 2 else 1 << 20)
                batch = []
        index.add(batch)
        for i in removed:
            if i < len(documents):
                index.remove(f"d{i}")
        alive = [d for i, d in enumerate(documents) if i not in removed]
        expected = owners_by_hand(alive, text)
        before = index.trace(text)

        assert owners_of(index, text) == expected
        assert index.count(text) == (occurrences(alive, text.split()) if text else 0)
        assert index.verify() == ()
        with SpanIndex.open(folder) as other:
            assert other.trace(text) == before
        index.compact()
        assert index.trace(text) == before
        assert index.verify() == ()
        assert index.stats().documents == len(alive)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=libraries(), text=texts(25), least=st.integers(1, 6), split=st.integers(0, 7), gone=st.booleans())
def test_all_maximal_matches_are_found_and_counted(tmp_path_factory, reference, documents, text, least, split, gone):
    """Every match that cannot be made longer, and nothing else, with how often it occurs."""
    with SpanIndex.create(
        tmp_path_factory.mktemp("m") / "i", gram_tokens=K, reference=reference, background=False
    ) as index:
        index.add(documents[:split], segment_tokens_max=5)
        index.add(documents[split:])
        if gone:
            index.remove(documents[0].id)
            documents = documents[1:]
        words = text.split()
        longest = []
        for i in range(len(words)):
            j = i
            while j < len(words) and occurrences(documents, words[i : j + 1]):
                j += 1
            longest.append(j - i)
        expected = [
            (i, n, occurrences(documents, words[i : i + n]))
            for i, n in enumerate(longest)
            if n >= least and (i == 0 or longest[i - 1] <= n)
        ]
        starts = [len(" ".join([*words[:i], ""])) for i in range(len(words))]
        found = [(starts.index(m.start), m.tokens, m.count) for m in index.matches(text, tokens_min=least)]

        assert found == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=libraries(), data=st.data())
def test_the_report_counts_what_the_rules_give_each_document(tmp_path_factory, reference, documents, data):
    """Own and copied words, and k-grams taken back, whatever was there before and beside."""
    with SpanIndex.create(
        tmp_path_factory.mktemp("r") / "i", gram_tokens=K, reference=reference, background=False
    ) as index:
        there: list[Document] = []
        rest = data.draw(st.permutations(documents))
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            batch, rest = rest[:size], rest[size:]
            together = data.draw(st.integers(0, 2)) > 0  # else in several segments, each counted on its own
            report = index.add(batch, segment_tokens_max=10**6 if together else 20)
            now = [*there, *batch]
            if together:
                owned = copied = 0
                moved: dict[tuple[str, str], int] = {}
                for document in batch:
                    words = str(document.text).split()
                    owners = owners_by_hand(now, str(document.text))
                    owned += owners.count(document.id)
                    copied += len([o for o in owners if o not in (None, document.id)])
                    for i in range(len(words) - K + 1):
                        gram = words[i : i + K]
                        before, after = first_holder(there, gram), first_holder(now, gram)
                        fresh = all(words[j : j + K] != gram for j in range(i))
                        if fresh and before is not None and after is not None and after[1] == document.id:
                            moved[before[1], document.id] = moved.get((before[1], document.id), 0) + 1
                assert (report.owned_tokens, report.copied_tokens) == (owned, copied)
                assert {(r.from_document_id, r.to_document_id): r.tokens for r in report.reassigned} == moved
            there = now


@pytest.mark.parametrize(("words", "size"), [(2, 5000), (3, 9000), (40, 20_000)])
def test_counts_hold_where_phrases_are_frequent(tmp_path, reference, words, size):
    """Phrases that fill many stretches of the suffix array, alone and in batches, in one segment and in two."""
    rng = random.Random(words)
    texts = [" ".join(f"w{rng.randrange(words)}" for _ in range(size)) for _ in range(2)]
    with SpanIndex.create(tmp_path / "i", gram_tokens=K, reference=reference, background=False) as index:
        for i, text in enumerate(texts):
            index.add([Document(f"d{i}", "o", i, text)], segment_tokens_max=1)
        held = [f" {text} " for text in texts]
        phrases = [" ".join(f"w{rng.randrange(words)}" for _ in range(rng.randrange(1, 9))) for _ in range(300)]
        phrases += ["", "unknown", "w0 unknown", *(" ".join(texts[0].split()[i : i + 20]) for i in range(0, 900, 9))]
        expected = []
        for phrase in phrases:
            pattern = re.compile(f"(?= {phrase} )")
            expected.append(sum(len(pattern.findall(text)) for text in held) if phrase else 0)

        assert [index.count(phrase) for phrase in phrases] == expected
        assert list(index.count_batch(phrases)) == expected
        assert index.count_batch([]) == ()


def test_spans_point_at_the_words_in_both_texts(tmp_path, reference):
    """Byte offsets hold in the UTF-8 of the answer and of the document, and exactness is checked on the bytes."""
    source = "Préface. The naïve café owner,\n quietly, served seven cold drinks to nine loud guests — 日本語の本."
    answer = "He said: the naïve CAFÉ owner quietly served seven cold drinks to nine loud guests, 日本語の本 and left"
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document("a", "ann", 5, source)])
        (span,) = index.trace(answer).spans
        raw = answer.encode()[span.start : span.end].decode()

        assert raw == "the naïve CAFÉ owner quietly served seven cold drinks to nine loud guests, 日本語の本"
        assert source.encode()[span.document_start :].decode().startswith("The naïve café owner,")
        assert not index.is_exact(span, answer, source.encode())
        quote = "seven cold drinks to nine loud guests — 日本語の本"
        (exact,) = index.trace(quote).spans
        assert index.is_exact(exact, quote, source.encode())
        with pytest.raises(InvalidError, match="not the one"):
            index.is_exact(exact, quote, b"something else")


def test_an_earlier_proven_date_takes_the_words_back_and_says_so(tmp_path, reference):
    """Order of registration decides, not order of arrival, and the report names who lost what."""
    words = " ".join(f"w{i}" for i in range(30))
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        late = index.add([Document("late", "bob", 20, words)])
        early = index.add([Document("early", "ann", 10, words + " and some more")])

        assert (late.owned_tokens, late.copied_tokens) == (30, 0)
        assert {s.owner for s in index.trace(words).spans} == {"ann"}
        (moved,) = early.reassigned
        assert (moved.from_document_id, moved.to_document_id, moved.tokens) == ("late", "early", 30 - 8 + 1)


def test_public_domain_text_is_first_and_earns_nobody_anything(tmp_path, reference):
    """A null owner keeps later registrants from being paid for words that belong to all."""
    words = " ".join(f"psalm{i}" for i in range(40))
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document("psalms", None, 0, words), Document("claim", "thief", 1, words)])
        credit = index.credit(index.trace(words))

        assert credit.shares == ()
        assert credit.unowned_microbits == round(index.trace(words).covered_bits * 1e6) > 0


def test_common_property_has_no_owner(tmp_path):
    """k-grams that the frozen reference calls common are nobody's, even for the first to register them."""
    from headwater.attribution.spans import build_reference, read_reference

    phrase = "permission is hereby granted free of charge to any person obtaining a copy"
    frozen = read_reference(build_reference([f"{phrase} of work {i}".encode() for i in range(20)]))
    with SpanIndex.create(tmp_path / "i", reference=frozen) as index:
        index.add([Document("a", "ann", 0, phrase + " whenever the moon of Jupiter stands in the seventh house")])
        spans = index.trace(phrase).spans

        assert spans == ()
        assert index.trace("whenever the moon of Jupiter stands in the seventh house").spans


def test_credit_adds_up_and_leaves_out_what_was_in_the_context(tmp_path, reference):
    """Every covered micro-bit is credited, unowned, under the floor or excluded: nothing is lost."""
    docs = [Document(f"d{i}", f"o{i}", i, " ".join(f"x{i}y{j}" for j in range(30))) for i in range(3)]
    docs.append(Document("free", None, 9, " ".join(f"z{j}" for j in range(30))))
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add(docs)
        text = " ".join(str(d.text) for d in docs)
        trace = index.trace(text)
        credit = index.credit(trace, CreditRules(), exclude={"d1"})
        total = credit.microbits + credit.unowned_microbits + credit.under_floor_microbits + credit.excluded_microbits

        assert total == round(trace.covered_bits * 1_000_000)
        assert {s.document_id for s in credit.shares} == {"d0", "d2"}
        assert sum(p.microbits for p in credit.pieces) == credit.microbits
        assert credit.rules == CreditRules().digest != CreditRules(floor_microbits=1).digest
        index.add([Document("new", "o", 99, "something else entirely")])
        with pytest.raises(ConflictError, match="trace the text again"):
            index.credit(trace)


def test_adding_twice_is_harmless_and_changing_history_is_refused(tmp_path, reference):
    """The same document again is skipped; the same id with anything different is a conflict."""
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document("a", "ann", 1, "one two three")])
        digest = index.trace("x").manifest

        assert index.add([Document("a", "ann", 1, "one two three")] * 2).skipped == 2
        assert index.trace("x").manifest == digest
        for other in (("ann", 1, "else"), ("bob", 1, "one two three"), ("ann", 2, "one two three")):
            with pytest.raises(ConflictError) as caught:
                index.add([Document("a", *other)])
            assert caught.value.code == "document_conflict"
        with pytest.raises(ConflictError):
            index.add([Document("b", "x", 1, "p"), Document("b", "x", 1, "q")])
        with pytest.raises(MissingError):
            index.remove("nobody")


def test_the_manifest_digest_depends_on_what_is_registered_only(tmp_path, reference):
    """Segments, order of arrival and removed documents leave no trace in it."""
    docs = [Document(f"d{i}", "o", i, f"text number {i} " * 20) for i in range(6)]
    with (
        SpanIndex.create(tmp_path / "a", reference=reference) as one,
        SpanIndex.create(tmp_path / "b", reference=reference) as two,
    ):
        one.add(docs)
        for document in reversed(docs):
            two.add([document], segment_tokens_max=1)
        two.add([Document("extra", "o", 1, "unrelated words")])
        two.remove("extra")

        assert one.trace("x").manifest == two.trace("x").manifest
        two.add([Document("extra", "o", 1, "unrelated words")])
        assert one.trace("x").manifest != two.trace("x").manifest


def test_readers_are_not_disturbed_by_a_writer_that_merges(tmp_path, reference):
    """Queries run on while segments come and go, and never see less than what was acknowledged."""
    quote = " ".join(f"kept{i}" for i in range(20))
    problems: list[str] = []
    done = threading.Event()
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document("kept", "ann", 0, quote)])

        def read() -> None:
            while not done.is_set():
                spans = index.trace(quote).spans
                if [s.document_id for s in spans] != ["kept"]:
                    problems.append(str(spans))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for i in range(12):
            index.add([Document(f"n{i}", "bob", i + 1, f"filler {i} " * 40)], segment_tokens_max=1)
        done.set()
        for reader in readers:
            reader.join()
        index.close()

        assert problems == []
        assert index.stats().segments <= 4
        assert index.verify() == ()


def test_a_reader_sees_another_process_writing_after_refresh(tmp_path, reference):
    """A second handle is a reader: it keeps its snapshot until asked to look again."""
    with SpanIndex.create(tmp_path / "i", reference=reference) as writer:
        reader = SpanIndex.open(tmp_path / "i")
        writer.add([Document("a", "ann", 0, " ".join(f"word{i}" for i in range(20)))])

        assert reader.count("word1 word2") == 0
        assert reader.refresh()
        assert reader.count("word1 word2") == 1
        assert not reader.refresh()


def test_batches_give_what_single_calls_give(tmp_path, reference, proposals):
    """Over threads or not."""
    with SpanIndex.create(tmp_path / "i", reference=reference) as index:
        index.add([Document(name, "o", i, text) for i, (name, text) in enumerate(proposals[:20])])
        answers = [text[3000:4200] for _, text in proposals[:40]]

        assert index.trace_batch(answers, threads=2) == tuple(index.trace(a) for a in answers)
        assert index.trace_batch([]) == ()


def test_bad_arguments_are_refused(tmp_path, reference):
    """Ids, times, k and folders out of range are named in the error."""
    for bad in (("", "o", 0), ("a\n", "o", 0), ("a", "", 0), ("a", "o", -1), ("x" * 600, "o", 0)):
        with pytest.raises(InvalidError):
            Document(*bad, "text")
    with pytest.raises(InvalidError, match="gram_tokens 2"):
        SpanIndex.create(tmp_path / "i", gram_tokens=2)
    with pytest.raises(MissingError):
        SpanIndex.open(tmp_path / "nothing")
    SpanIndex.create(tmp_path / "i", reference=reference)
    with pytest.raises(ConflictError):
        SpanIndex.create(tmp_path / "i", reference=reference)
