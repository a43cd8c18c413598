from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.registry.personal_data import luhn, without_personal_data


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mail me at ada.l+x@mail.example.co.uk please", "e-mail"),
        ("card 4111 1111 1111 1111 thanks", "card"),
        ("card 5500-0000-0000-0004", "card"),
        ("pay to DE89 3704 0044 0532 0130 00 today", "bank account"),
        ("pay to GB29NWBK60161331926819", "bank account"),
        ("from 203.0.113.77 at noon", "IP address"),
        ("from 2001:db8::8a2e:370:7334 at noon", "IP address"),
        ("call +49 30 901820 now", "phone"),
        ("call (030) 901 820-12 now", "phone"),
        ("call +1-202-555-0143.", "phone"),
        ("my key is sk-abcdefghijklmnop1234 ok", "key"),
        ("key hw_live_" + "a" * 43, "key"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQ==\n-----END EC PRIVATE KEY-----", "private key"),
        ("secret 0x" + "ab" * 32, "key"),
    ],
)
def test_what_names_a_person_or_opens_a_door_is_taken_out(text, kind):
    """Each kind is recognised, counted and replaced by its name."""
    cleaned = without_personal_data(text)

    assert cleaned.found == ((kind, 1),)
    assert f"[{kind}]" in cleaned.text


@pytest.mark.parametrize(
    "text",
    [
        "PEP 572 was accepted on 2018-07-11 for Python 3.8.0",
        "card 4111 1111 1111 1112 has a wrong check digit",
        "GB30NWBK60161331926819 has a wrong check number",
        "use python 3.11.4 and 127.0.0.1",
        "a ratio of 1234567890123 to 1",
        "def f(x): return x::2",
        "std::vector and 12:30:45",
        "0123456789abcdef is hex, 1000000000000 is large",
        "@decorator and user at example dot org",
        "version 999.999.999.999",
    ],
)
def test_ordinary_words_stay(text):
    """Dates, versions, numbers, code and loopback are left alone."""
    assert without_personal_data(text).text == text


@given(st.text(max_size=400))
def test_cleaning_twice_is_cleaning_once(text):
    """What was taken out leaves nothing that would be taken out again."""
    once = without_personal_data(text)

    assert without_personal_data(once.text).text == once.text


def test_hostile_texts_cost_little():
    """Long runs that almost match every pattern are read in time that grows with their length."""
    started = time.process_time()
    for text in ("1 " * 50_000, "a@" * 50_000, "+1" * 50_000, ":" * 100_000, "A1" * 50_000, "a." * 50_000 + "@"):
        without_personal_data(text)

    assert time.process_time() - started < 20


def test_the_check_digit_is_luhns():
    """Known cards pass, and one changed digit never does."""
    card = "4539578763621486"

    assert luhn(card)
    for place in range(len(card)):
        changed = card[:place] + str((int(card[place]) + 1) % 10) + card[place + 1 :]
        assert not luhn(changed)
