"""The span index beside infini-gram: same words, same machine, same run, queries in turn.

    python bench/spans.py FOLDER... [--megabytes 200] [--answers 200] [--json]

FOLDER holds documentation: on Debian, `apt-get download cppreference-doc-en-html python3.11-doc
postgresql-doc-15 libboost1.74-doc openjdk-17-doc linux-doc-6.1` and `dpkg -x` give 212 MB of text. Both
engines index the word tokens of one set of documents; infini-gram gets them as ids, so that what is compared
is building and searching, not tokenising (ours tokenises as well; it does not). Its builder takes 32 GB for
32-bit ids, so it gets 16-bit ones: the 65,000 most frequent words have one each, the others share 500, and
matches that touch such a word are left out when the two are compared. CPU-seconds are those of the process
and its children. One document in fifty is held out, to answer with.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans import Document, SpanIndex
from headwater.attribution.spans.tokens import tokenise
from headwater.attribution.spans.vocabulary import Vocabulary
from headwater.cli.index import files_in, text_of

HELD_OUT_EVERY = 50
BLOCK = 50


def read(folders: Sequence[Path], megabytes: int) -> tuple[list[bytes], list[bytes]]:
    """Distinct documents to register and documents held out."""
    seen: set[bytes] = set()
    total = 0
    for _, path in files_in(folders):
        text = b" ".join(text_of(path).split())
        if len(text) < 400 or text in seen:
            continue
        seen.add(text)
        total += len(text)
        if total > megabytes * 1_000_000:
            break
    texts = sorted(seen, key=hash_of)  # a shuffle that is the same every time
    held = texts[::HELD_OUT_EVERY]
    return [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY], held


def hash_of(text: bytes) -> int:
    """A number to shuffle by."""
    return int(tokenise(text[:400]).hashes.sum(dtype=np.uint64))


def answers_of(registered: Sequence[bytes], held: Sequence[bytes], count: int) -> list[str]:
    """Answers of 200 words: 120 held out and two quotes of 40."""
    rng = random.Random(11)

    def cut(texts: Sequence[bytes], words: int) -> bytes:
        while True:
            text = rng.choice(texts)
            found = tokenise(text)
            if len(found.starts) > words:
                begin = rng.randrange(len(found.starts) - words)
                return text[found.starts[begin] : found.ends[begin + words - 1]]

    return [
        b" ".join((cut(held, 60), cut(registered, 40), cut(held, 60), cut(registered, 40))).decode("utf-8", "replace")
        for _ in range(count)
    ]


def build_ours(folder: str, corpus: str, segments: int, out: Any) -> None:
    """Build in a process of its own that reads the corpus as it goes, so that its memory can be told."""

    def texts() -> Iterator[bytes]:
        with open(corpus, "rb") as source:
            while head := source.read(8):
                yield source.read(int.from_bytes(head, "little"))

    words = sum(len(tokenise(text).starts) for text in texts())
    with SpanIndex.create(Path(folder) / "warm") as warm:  # compiled code is loaded before the clock starts
        warm.add([Document("w", "o", 0, next(texts()))])
        warm.add([Document("v", "o", 0, next(texts()))], segment_tokens_max=1)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    with SpanIndex.create(Path(folder) / "index", background=False) as index:
        report = index.add(
            (Document(f"d{i:06d}", f"o{i % 97}", i, text) for i, text in enumerate(texts())),
            segment_tokens_max=(words // segments) + 1 if segments > 1 else 2**27,
        )
        cpu = time.process_time() - cpu
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
        stats = index.stats()
    out.put(
        {
            "cpu_s": cpu,
            "tokens": report.tokens,
            "segments": stats.segments,
            "disk_bytes_per_token": stats.size_bytes / report.tokens,
            "peak_bytes_per_token": peak_kb * 1024 / report.tokens,
        }
    )


class Words:
    """Words as the 16-bit ids that infini-gram's builder can take."""

    OWN, SHARED = 65_000, 500

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._vocabulary = Vocabulary()
        counts = np.zeros(1, dtype=np.int64)
        for text in texts:
            found = self._ids(text)
            if counts.size <= self._vocabulary.size:
                counts = np.concatenate([counts, np.zeros(self._vocabulary.size, dtype=np.int64)])
            np.add.at(counts, found, 1)
        self._known = self._vocabulary.size
        self._map = self.OWN + np.arange(self._known + 1) % self.SHARED
        frequent = np.argsort(-counts[: self._known + 1], kind="stable")[: self.OWN]
        self._map[frequent] = np.arange(frequent.size)

    def ids(self, text: bytes) -> NDArray[np.int64]:
        """The words of a text; one that was never registered has the id after all others."""
        found = self._ids(text)
        return np.where(found <= self._known, self._map[np.minimum(found, self._known)], self.OWN + self.SHARED)

    def _ids(self, text: bytes) -> NDArray[np.int32]:
        hashes = tokenise(text).hashes
        out = np.empty(hashes.size, dtype=np.int32)
        self._vocabulary.intern(hashes, out)
        return out


def build_theirs(folder: Path, texts: Sequence[bytes], words: Words) -> float:
    """Write the words as ids, let their builder sort them; CPU-seconds of the sorting."""
    folder.mkdir()
    offset = 0
    with (folder / "tokenized.0").open("wb") as tokens, (folder / "offset.0").open("wb") as offsets:
        for text in texts:
            offsets.write(offset.to_bytes(8, "little"))
            offset += tokens.write(b"\xff\xff" + words.ids(text).astype("<u2").tobytes())
    script = (
        "import argparse, sys; from infini_gram.indexing import build_sa; build_sa(argparse.Namespace("
        "save_dir=sys.argv[1], temp_dir=sys.argv[1], worker_id=0, shards=1, workers=1, mem=4, cpus=2, token_width=2))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"infini-gram could not build: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def timed(action: Callable[[], Any]) -> float:
    """Microseconds of one call."""
    begin = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - begin) / 1000


def spread(microseconds: list[float]) -> dict[str, float]:
    """Least, median and 99th percentile."""
    ordered = sorted(microseconds)
    return {"min": ordered[0], "p50": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)]}


def cpu_each(action: Callable[[], Any], count: int) -> float:
    """CPU-microseconds for each of `count` items of one call."""
    begin = time.process_time()
    action()
    return (time.process_time() - begin) / count * 1e6


def main() -> None:
    """Build, ask, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ours-only", action="store_true", help="leave infini-gram out")
    options = parser.parse_args()
    registered, held = read(options.folders, options.megabytes)
    answers = answers_of(registered, held, options.answers)
    size = sum(map(len, registered))
    result: dict[str, Any] = {"megabytes": size / 1e6, "documents": len(registered)}
    work = Path(tempfile.mkdtemp(prefix="bench-spans-"))
    try:
        with (work / "corpus").open("wb") as corpus:
            for text in registered:
                corpus.write(len(text).to_bytes(8, "little") + text)
        for segments in (1, 4):
            queue = multiprocessing.get_context("spawn").Queue()
            target = work / f"ours{segments}"
            target.mkdir()
            child = multiprocessing.get_context("spawn").Process(
                target=build_ours, args=(str(target), str(work / "corpus"), segments, queue)
            )
            child.start()
            result[f"build_{segments}"] = queue.get()
            child.join()
        result["build_mb_per_cpu_s"] = size / 1e6 / result["build_1"]["cpu_s"]
        SpanIndex.open(work / "ours1" / "index").close()
        result["open_ms"] = min(timed(lambda: SpanIndex.open(work / "ours1" / "index")) for _ in range(5)) / 1000
        ask(work, result, registered, held, answers, options.ours_only)
    finally:
        shutil.rmtree(work)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            shown = ", ".join(f"{k} {v:,.2f}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{name:36} {shown:,.2f}" if isinstance(shown, float) else f"{name:36} {shown}")


def ask(
    work: Path,
    result: dict[str, Any],
    registered: Sequence[bytes],
    held: Sequence[bytes],
    answers: list[str],
    ours_only: bool,
) -> None:
    """Ask every engine the same, in turn."""
    one = SpanIndex.open(work / "ours1" / "index", background=False)
    four = SpanIndex.open(work / "ours4" / "index", background=False)
    rng = random.Random(5)
    phrases = []
    for text in rng.sample(registered, min(500, len(registered))):
        found = tokenise(text)
        begin = rng.randrange(len(found.starts) - 5)
        phrases.append(text[found.starts[begin] : found.ends[begin + 4]])
    engines: dict[str, Callable[[str], Any]] = {"trace_1_us": one.trace, "trace_4_us": four.trace}
    counters: dict[str, Callable[[bytes], Any]] = {"count_1_us": one.count}
    if not ours_only:
        words = Words(registered)
        result["infini_build_cpu_s"] = build_theirs(work / "infini", registered, words)
        result["infini_build_mb_per_cpu_s"] = result["megabytes"] / result["infini_build_cpu_s"]
        engine = open_theirs(work / "infini")
        lists = {answer: words.ids(answer.encode()).tolist() for answer in answers}
        grams = {phrase: words.ids(phrase).tolist() for phrase in phrases}
        engines["infini_attribute_us"] = lambda a: engine.attribute(lists[a], [], 8, 10, False)
        engines["infini_creativity_us"] = lambda a: engine.creativity(lists[a])
        counters["infini_count_us"] = lambda p: engine.count(grams[p])
        agree(result, one, engine, answers, lists, phrases, grams)
    times: dict[str, list[float]] = {name: [] for name in [*engines, *counters]}
    for call in engines.values():
        call(answers[0])
    # In turn, a block at a time: infini-gram starts a thread for every word, which empties the caches of the next.
    for _ in range(3):
        for begin in range(0, len(answers), BLOCK):
            for name, call in engines.items():
                for answer in answers[begin : begin + BLOCK]:
                    times[name].append(timed(lambda call=call, answer=answer: call(answer)))
        for begin in range(0, len(phrases), BLOCK):
            for name, count in counters.items():
                for phrase in phrases[begin : begin + BLOCK]:
                    times[name].append(timed(lambda count=count, phrase=phrase: count(phrase)))
    result.update({name: spread(list_) for name, list_ in times.items()})
    if not ours_only:
        result["times_faster"] = result["infini_attribute_us"]["p50"] / result["trace_1_us"]["p50"]
    result["trace_batch_answers_per_cpu_s"] = 1e6 / cpu_each(lambda: one.trace_batch(answers * 10), 10 * len(answers))
    one.count_batch(phrases)
    result["count_batch_us"] = cpu_each(lambda: one.count_batch(phrases * 20), 20 * len(phrases))
    add_more(work, result, registered, held)


def open_theirs(folder: Path) -> Any:
    """infini-gram at its best setting: everything in memory, no read-ahead."""
    from infini_gram.engine import InfiniGramEngine

    return InfiniGramEngine(
        str(folder), eos_token_id=65_534, vocab_size=65_535, token_dtype="u16", load_to_ram=True,
        ds_prefetch_depth=0, sa_prefetch_depth=0, od_prefetch_depth=0,
    )  # fmt: skip


def agree(
    result: dict[str, Any],
    one: SpanIndex,
    engine: Any,
    answers: list[str],
    lists: dict[str, list[int]],
    phrases: list[bytes],
    grams: dict[bytes, list[int]],
) -> None:
    """Compare longest matches at every word and counts of every phrase."""
    same = either = 0
    for answer in answers:
        listed = lists[answer]
        starts = {int(start): i for i, start in enumerate(tokenise(answer.encode()).starts)}
        mine = {(starts[m.start], starts[m.start] + m.tokens) for m in one.matches(answer)}
        ends = list(engine.creativity(listed)["rs"])
        theirs = {(i, end) for i, end in enumerate(ends) if end - i >= 8 and (i == 0 or ends[i - 1] < end)}
        shared = {i for i, word in enumerate(listed) if Words.OWN <= word < Words.OWN + Words.SHARED}
        clear = {m for m in mine | theirs if shared.isdisjoint(range(m[0] - 1, m[1] + 1))}
        same += len(mine & theirs & clear)
        either += len(clear)
    plain = [p for p in phrases if max(grams[p]) < Words.OWN]
    counts = sum(one.count(p) == engine.count(grams[p])["count"] for p in plain)
    result["agreement_of_maximal_matches"] = f"{same} of {either}"
    result["agreement_of_counts"] = f"{counts} of {len(plain)}"


def add_more(work: Path, result: dict[str, Any], registered: Sequence[bytes], held: Sequence[bytes]) -> None:
    """Time adding a megabyte, and the ownership of copies and of new text, against the large segment."""
    fresh = b"\n".join(held)[:1_000_000]
    with SpanIndex.open(work / "ours1" / "index", background=False) as index:
        index.add([Document("first", "o", 10**9, held[0])])
        begin = time.perf_counter()
        index.add([Document("megabyte", "o", 10**9, fresh)])
        found = bool(index.trace(fresh[len(fresh) // 2 :][:3000]).spans)
        result["add_1_mb_visible_ms"] = (time.perf_counter() - begin) * 1000 if found else float("nan")
        copied = b"\n".join(registered)[:1_500_000]
        words = len(tokenise(copied).starts)
        begin = time.process_time()
        index.trace(copied)
        result["ownership_of_a_copy_mtokens_per_cpu_s"] = words / (time.process_time() - begin) / 1e6
        words = len(tokenise(fresh).starts)
        begin = time.process_time()
        one = index.trace(fresh)
        result["ownership_of_new_text_mtokens_per_cpu_s"] = words / (time.process_time() - begin) / 1e6
        assert one.tokens == words


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
