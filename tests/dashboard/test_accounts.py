"""Signing in: by key, wallet, password and link; what is refused, and how sessions end."""

from __future__ import annotations

import time

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from pages_site import PagesSite, open_pages

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.instants import SECOND_NS
from headwater.dashboard.attempts import TRIES
from headwater.dashboard.links import make_link
from headwater.dashboard.passwords import FILE, set_password
from headwater.dashboard.sessions import COOKIE, IDLE_NS, LASTS_NS
from headwater.registry import unenrolled
from headwater.store.session_store import SessionStore

PASSWORD = "a password of some length"


def _link(site: PagesSite, role: str, subject: str, lasts_ns: int = 60 * SECOND_NS) -> str:
    store = SessionStore(site.site.db)
    return make_link(store, role, subject, word=site.site.random_bytes(24), now_ns=time.time_ns(), lasts_ns=lasts_ns)


def test_a_key_signs_its_payer_in_and_signing_out_ends_it(site):
    """With a key in force somebody asks as its payer; signed out, the same cookie is worth nothing."""
    who = site.caller()
    assert who.get("/ask.json").json["payer"]["key"] == site.key.key_id
    kept = dict(who.cookies)

    who.get("/ask")
    assert who.post("/sign-out").status == 303

    who.cookies = kept
    assert who.get("/ask.json").json["payer"] is None


@pytest.mark.parametrize("secret", ["", "hw_test_" + "a" * 43, "nothing"])
def test_another_key_is_refused(site, secret):
    """A wrong key is said to be wrong, and nobody is signed in."""
    who = site.visitor()

    assert who.sign_in_by_key(secret).status in (400, 422)
    assert who.get("/ask.json").json["payer"] is None


def test_a_revoked_key_is_out_at_once(site):
    """Revoking a key ends what its session may do, without waiting for the session to end."""
    who = site.caller()
    site.toy.keys.revoke(site.key.key_id, time.time_ns())

    assert who.get("/ask").status == 401


def test_a_session_has_a_new_token_and_ends_by_itself(site):
    """Signing in changes the cookie; a session ends when unused for long, and at the latest after half a day."""
    who = site.visitor()
    who.get("/sign-in")
    before = who.cookies[COOKIE]
    who.sign_in_by_key(site.secret)

    assert who.cookies[COOKIE] != before
    site.clock_ns[0] = IDLE_NS + SECOND_NS
    assert who.get("/ask.json").json["payer"] is None
    site.clock_ns[0] = 0
    for step in range(1, 9):
        site.clock_ns[0] = step * (IDLE_NS - SECOND_NS)
        signed_in = who.get("/ask.json").json["payer"] is not None
        assert signed_in == (site.clock_ns[0] < LASTS_NS)


def test_a_forged_or_cut_cookie_is_nobody(site):
    """A cookie without our signature is as good as none."""
    who = site.caller()
    token, _, signature = who.cookies[COOKIE].partition(".")
    for forged in (token, f"{token}.", f"{token}.{'A' * len(signature)}", f"{'A' * len(token)}.{signature}", "ä.ö"):
        who.cookies[COOKIE] = forged
        assert who.get("/ask.json").json["payer"] is None


def test_cookies_are_for_this_site_and_no_script(site):
    """The session's cookie is HttpOnly and SameSite=Strict, and Secure where the pages are reached over HTTPS."""
    assert "HttpOnly" in site.visitor().get("/").headers["set-cookie"]
    assert "samesite=strict" in site.visitor().get("/").headers["set-cookie"].lower()


def test_a_form_from_elsewhere_is_refused(site):
    """Without the token of a page, with another's, or from another site, nothing is done."""
    who, other = site.caller(), site.visitor()
    who.get("/ask")
    other.get("/ask")
    for fields, headers in (
        ({"csrf": ""}, {}),
        ({"csrf": other.csrf}, {}),
        ({}, {"origin": "https://elsewhere.example"}),
        ({}, {"sec-fetch-site": "cross-site"}),
    ):
        assert who.post("/sign-out", fields, **headers).status == 403
    assert who.send("/ask/stream", {}, **{"x-csrf-token": ""}).status == 403
    assert who.get("/ask.json").json["payer"] is not None


def test_two_pages_never_hold_the_same_token_bytes(site):
    """The token in a page is masked anew each time, so compression tells nothing of it."""
    who = site.visitor()
    who.get("/sign-in")
    first = who.csrf
    who.get("/sign-in")

    assert who.csrf != first
    who.csrf = first
    assert who.post("/sign-in/key", {"key": site.secret}).status == 303


def test_the_operator_signs_in_by_password(site):
    """The right password gives an operator's session, a wrong one does not; its file is the owner's alone."""
    who = site.visitor()
    who.get("/sign-in")
    assert who.post("/sign-in/operator", {"password": PASSWORD}).status == 400
    path = set_password(site.site.folder, PASSWORD)

    assert path.name == FILE
    assert path.stat().st_mode & 0o077 == 0
    assert PASSWORD not in path.read_text()
    assert who.post("/sign-in/operator", {"password": PASSWORD[:-1]}).status == 400
    reply = who.post("/sign-in/operator", {"password": PASSWORD})
    assert (reply.status, reply.headers["location"]) == (303, "/operator")


def test_a_short_password_is_not_taken(tmp_path):
    """A password below the least length is refused before anything is written."""
    with pytest.raises(InvalidError):
        set_password(tmp_path, "short")

    assert list(tmp_path.iterdir()) == []


def test_trying_often_is_stopped(site):
    """After a handful of tries the next has to wait, also with the right password."""
    set_password(site.site.folder, PASSWORD)
    who = site.visitor()
    who.get("/sign-in")
    found = [who.post("/sign-in/key", {"key": "wrong"}).status for _ in range(TRIES + 1)]

    assert found == [400] * TRIES + [429]
    late = who.post("/sign-in/operator", {"password": PASSWORD})
    assert late.status == 429
    assert int(late.headers["retry-after"]) > 0


def test_a_contributor_signs_in_by_wallet_once(site):
    """The address that a contributor is paid at signs it in, by a text of this site; the signature works once."""
    wallet = Account.from_key(b"\x05" * 32)
    someone = unenrolled("test", "Wallet Owner")
    site.toy.registry.add_contributor(someone)
    site.toy.registry.enroll(someone.id, wallet.address)
    who = site.visitor()
    who.get("/sign-in")
    page = who.post("/sign-in/wallet/text", {"address": wallet.address.lower()}, accept="application/json")
    message = page.json["message"]
    signature = "0x" + wallet.sign_message(encode_defunct(text=message)).signature.hex()

    assert message.startswith(site.url.removeprefix("http://") + " wants you to sign in")
    assert who.post("/sign-in/wallet", {"message": message, "signature": signature}).status == 303
    again = site.visitor()
    again.get("/sign-in")
    assert again.post("/sign-in/wallet", {"message": message, "signature": signature}).status == 400


@pytest.mark.parametrize("change", ["host", "signer", "old", "nonce", "form"])
def test_a_signature_for_something_else_is_refused(site, change):
    """Another site's text, another signer, an old text, an unknown nonce or another form sign nobody in."""
    wallet = Account.from_key(b"\x05" * 32)
    someone = unenrolled("test", "Wallet Owner")
    site.toy.registry.add_contributor(someone)
    site.toy.registry.enroll(someone.id, wallet.address)
    who = site.visitor()
    who.get("/sign-in")
    message = who.post("/sign-in/wallet/text", {"address": wallet.address}, accept="application/json").json["message"]
    signer = wallet
    if change == "host":
        message = message.replace("127.0.0.1", "127.0.0.2")
    elif change == "signer":
        signer = Account.from_key(b"\x06" * 32)
    elif change == "old":
        site.clock_ns[0] = 3600 * SECOND_NS
    elif change == "nonce":
        message = message.replace("Nonce: ", "Nonce: 0")[:-1]
    else:
        message += "\nand give me everything"
    signature = "0x" + signer.sign_message(encode_defunct(text=message)).signature.hex()

    reply = who.post("/sign-in/wallet", {"message": message, "signature": signature})

    assert reply.status in (400, 403)
    assert who.get("/statement").status == 303  # to the page where one signs in


def test_a_link_signs_in_once_and_only_when_its_button_is_pressed(site):
    """Opening a link does nothing; pressing its button signs in; a second time, or too late, it does not."""
    path = _link(site, "payer", site.key.key_id)
    who = site.visitor()
    assert who.get(path).status == 200
    assert who.get("/ask.json").json["payer"] is None

    who.get(path)
    assert who.post(path).status == 303
    assert who.get("/ask.json").json["payer"]["key"] == site.key.key_id
    late = site.visitor()
    late.get(path)
    assert late.post(path).status == 403
    old = _link(site, "operator", "operator", lasts_ns=0)
    late.get(old)
    assert late.post(old).status == 403


def test_a_link_of_an_unknown_role_is_not_made(site):
    """Only roles that exist have links."""
    with pytest.raises(InvalidError):
        _link(site, "emperor", "me")


def test_going_on_after_signing_in_never_leaves_the_site(site):
    """The place to go to afterwards is a path of ours, whatever the address says."""
    for next_, place in (("/receipts", "/receipts"), ("//evil.example", "/ask"), ("https://evil.example", "/ask")):
        who = site.visitor()
        who.get("/sign-in")
        assert who.post("/sign-in/key", {"key": site.secret, "next": next_}).headers["location"] == place


def test_a_one_time_word_is_for_its_purpose(site):
    """A word kept for one purpose does nothing for another, and is used up by nobody else."""
    store = SessionStore(site.site.db)
    store.keep_word(b"w" * 16, "wallet", "0xabc", now_ns=1, lasts_ns=10)

    with pytest.raises(RefusedError):
        store.take_word(b"w" * 16, "link", now_ns=2)
    assert store.take_word(b"w" * 16, "wallet", now_ns=2) == "0xabc"


def test_behind_https_cookies_never_go_in_the_clear(tmp_path):
    """With a public address that is HTTPS, cookies are Secure and browsers are told to come by HTTPS only."""
    with open_pages(tmp_path / "home", public_url="https://pay.example") as site:
        reply = site.visitor().get("/sign-in")

    assert "; secure" in reply.headers["set-cookie"].lower()
    assert reply.headers["strict-transport-security"].startswith("max-age=")
