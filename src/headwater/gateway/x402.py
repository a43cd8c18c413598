"""Payment by x402, version 2: a caller without a key is told what a call costs, signs, and is answered.

    402 with PAYMENT-REQUIRED -> PAYMENT-SIGNATURE -> verify -> answer -> settle -> charge -> last bytes

The chain is asked to pay when the answer is there and before its last bytes leave, so a call that did not answer costs
nothing; a settlement that fails leaves the call uncharged. One authorization pays once: shown again with the same
request it gives the same answer, with another one it is refused. Calls of one payer go one after the other, because its
account may hold only what the call at work has paid for. Needs the extra `x402`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from pydantic import ValidationError
from x402.extensions.payment_identifier import (
    PAYMENT_IDENTIFIER,
    declare_payment_identifier_extension,
    extract_payment_identifier,
)
from x402.http.utils import encode_payment_required_header, encode_payment_response_header
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse

from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, RefusedError, UpstreamError
from headwater.gateway.errors import Headers
from headwater.gateway.wire import Message, Scope, Send, check_idempotency_key, header
from headwater.gateway.x402_chain import Moved, PaymentChain
from headwater.store.key_store import KeyRecord
from headwater.store.payment_store import Payment, PaymentStore, used

HEADER: Final = b"payment-signature"
HEADER_BYTES_MAX: Final = 16_384
THREADS: Final = 4
"""Payments looked at on the chain at once, so that strangers cannot have it asked without end."""
TURN_S: Final = 60.0
"""How long a call waits for the payer's call before it."""
TOP_UPS: Final = "/v1/payments/x402"

Result = TypeVar("Result")
Answer = Callable[[KeyRecord, Scope, Send], Awaitable[None]]
"""Answers a request for a key."""

_NONCE: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_NUMBER: Final = re.compile(r"[0-9]{1,78}")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")


class PaymentRequiredError(RefusedError):
    """A payment is needed, or the one that came was not good; `headers` say what is accepted."""

    def __init__(self, message: str, *, code: str, fix: str, headers: Headers) -> None:
        super().__init__(message, code=code, fix=fix)
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Signed:
    """A payment as it came, not yet verified."""

    payload: PaymentPayload
    payer: str  # lower case
    nonce: str
    digest: str
    identifier: str | None


@dataclass(slots=True)
class _AtWork:
    """The call that a payer's account pays for now."""

    payment: Payment | None  # None: an answer given before is asked for, and nothing may be charged
    signed: Signed
    asked: PaymentRequirements
    name: str  # under which the request is idempotent
    settled: Moved | None = None


class Payments:
    """Takes payments for calls and top-ups. Belongs to one event loop, but for `settle`.

    Args:
        now_ns: wall clock.
    """

    def __init__(
        self, store: PaymentStore, chain: PaymentChain, now_ns: Callable[[], int], public_url: str = ""
    ) -> None:
        self.store, self.chain, self._now_ns = store, chain, now_ns
        self._public_url = public_url.rstrip("/")
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="x402")
        self._turns: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._at_work: dict[str, _AtWork] = {}  # by key id

    # What is asked for

    def url_of(self, scope: Scope) -> str:
        """Where a request went, for the payer's eyes: behind a proxy that is not what this process was asked by."""
        host = (header(scope, b"host") or b"").decode("latin-1")
        base = self._public_url or f"{scope.get('scheme', 'http')}://{host[:200]}"
        return f"{base}{scope['path']}"

    def ways(self, units: int, fixed: bool) -> list[PaymentRequirements]:
        """How a call may be paid: exactly where its price is fixed, up to its ceiling where the chain can do that."""
        token_units = self.token_units(units)
        if fixed and token_units:
            return [self.chain.requirements("exact", token_units)]
        return [self.chain.requirements("upto", token_units)] if self.chain.has_upto and token_units else []

    def token_units(self, units: int) -> int:
        """Nano units in the token, rounded up."""
        return -(-units // self.store.unit_nano)

    def required(self, url: str, ways: list[PaymentRequirements], why: str | None = None) -> PaymentRequiredError:
        """The 402 that says how to pay."""
        told = PaymentRequired(
            error=why or "PAYMENT-SIGNATURE header is required",
            resource=ResourceInfo(url=url, mime_type="application/json"),
            accepts=ways,
            extensions={PAYMENT_IDENTIFIER: declare_payment_identifier_extension()},
        )
        headers = ((b"payment-required", encode_payment_required_header(told).encode()),)
        if why is None:
            fix = "sign one of the ways in PAYMENT-REQUIRED, or send an API key as Authorization: Bearer hw_…"
            return PaymentRequiredError("this costs money", code="payment_required", fix=fix, headers=headers)
        return PaymentRequiredError(
            f"the payment is not accepted: {why[:200]}",
            code="payment_refused",
            fix="sign what PAYMENT-REQUIRED asks for",
            headers=headers,
        )

    # Calls

    async def serve(self, quoted: tuple[int, bool] | None, scope: Scope, send: Send, answer: Answer) -> None:
        """Answer a call for the payment that came with it, or say what it costs.

        Args:
            quoted: (nano units at most, whether it costs exactly that); None for a call that only a key can pay.
            answer: answers for a key; charges it at most what was quoted, through `settle`.

        Raises:
            PaymentRequiredError: ``payment_required``, ``payment_refused``.
            ConflictError: ``payment_used``.
        """
        url = self.url_of(scope)
        raw, offered = header(scope, HEADER), self.ways(*quoted) if quoted else []
        if not offered:
            raise self.required(url, [], f"this call takes an API key; POST {TOP_UPS}?amount=… gives one")
        if raw is None:
            raise self.required(url, offered)
        signed = read_payment(raw)
        ways = [one for one in offered if one.scheme == signed.payload.accepted.scheme]
        if not ways:
            raise self.required(url, offered, f"the scheme is {signed.payload.accepted.scheme[:20]!r}")
        key = await self._run(lambda: self.store.payer(signed.payer, self._now_ns()))
        lock, waiting = self._turns.setdefault(key.key_id, (asyncio.Lock(), []))
        waiting.append(None)
        try:
            await self._turn(lock)
            try:
                await self._answer(signed, ways[0], url, key, scope, send, answer)
            finally:
                lock.release()
        finally:
            waiting.pop()
            if not waiting:
                self._turns.pop(key.key_id, None)

    async def _turn(self, lock: asyncio.Lock) -> None:
        try:
            async with asyncio.timeout(TURN_S):
                await lock.acquire()
        except TimeoutError:
            raise RefusedError(
                "another call of this payer is at work", code="rate_limit_exceeded", fix="send one after the other"
            ) from None

    async def _answer(
        self,
        signed: Signed,
        asked: PaymentRequirements,
        url: str,
        key: KeyRecord,
        scope: Scope,
        send: Send,
        answer: Answer,
    ) -> None:
        name = request_name(header(scope, b"idempotency-key"), signed)
        work = await self._run(lambda: self._admit(signed, asked, url, key, name))
        self._at_work[key.key_id] = work

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and work.settled is not None:
                response = encode_payment_response_header(self._response(signed, work.settled))
                message["headers"] = [*message.get("headers", ()), (b"payment-response", response.encode())]
            await send(message)

        finished = False
        try:
            await answer(key, _named(scope, work.name), told)
            finished = True
        finally:
            ending = self._run(lambda: self._end(key.key_id, work, finished))
            await asyncio.shield(asyncio.ensure_future(ending))

    def _admit(self, signed: Signed, asked: PaymentRequirements, url: str, key: KeyRecord, request: str) -> _AtWork:
        name = (self.chain.network, signed.payer, signed.nonce)
        found = self.store.find(name)
        if found is not None and found.digest == signed.digest and found.purpose == "call":
            if found.state in ("verified", "settling"):
                found = self.finish(found)
            if found.state == "done":
                return _AtWork(None, signed, asked, found.request)
            if found.state == "settled":  # the chain has paid for an answer that did not come
                moved = Moved(found.settled_token_units, found.transaction_hash)
                return _AtWork(found, signed, asked, found.request, moved)
        if found is not None and (found.state != "released" or found.digest != signed.digest):
            raise used(found)
        self._verify(signed, asked, url)
        payment = self.store.admit(
            name,
            digest=signed.digest,
            scheme=asked.scheme,
            purpose="call",
            request=request,
            key=key,
            token_units=int(asked.amount),
            from_block=self.chain.block(),
            at_ns=self._now_ns(),
        )
        return _AtWork(payment, signed, asked, request)

    def _verify(self, signed: Signed, asked: PaymentRequirements, url: str) -> None:
        accepted = signed.payload.accepted
        for name in ("network", "asset", "pay_to", "amount"):
            if str(getattr(accepted, name)).lower() != str(getattr(asked, name)).lower():
                raise self.required(url, [asked], f"{name} is {str(getattr(accepted, name))[:80]}")
        why = self.chain.verify(signed.payload, asked)
        if why is not None:
            raise self.required(url, [asked], why)

    def settle(self, key_id: str, units: int) -> None:
        """Have the chain pay for the answer that is there; to be called before it is charged. Blocks.

        A key that pays otherwise is none of this one's business.

        Raises:
            ConflictError: ``payment_used``, an answer is asked for that was paid before and is not kept.
            RefusedError: ``payment_not_settled``.
            UpstreamError: ``payment_pending``, whether the chain has paid is not known; ask again with the same one.
        """
        work = self._at_work.get(key_id)
        if work is None:
            return
        if work.payment is None:
            found = self.store.find((self.chain.network, work.signed.payer, work.signed.nonce))
            assert found is not None
            raise used(found)
        exact = work.payment.scheme == "exact"
        wanted = work.payment.token_units if exact else self.token_units(units)
        if work.settled is not None:
            if wanted > work.settled.token_units:
                raise RefusedError(
                    f"{work.settled.token_units} token units were paid, this costs {wanted}",
                    code="payment_not_settled",
                    fix="sign another payment",
                )
            return
        work.settled = self.pay(work.payment, work.signed, work.asked, wanted)

    def pay(self, payment: Payment, signed: Signed, asked: PaymentRequirements, token_units: int) -> Moved:
        """Have the chain pay and note that it has; errors as for `settle`."""
        self.store.settling(payment, token_units)
        moved: Moved | None = Moved(0, "")
        why, unknown = "", False
        if token_units:
            moved, why, unknown = self.chain.settle(signed.payload, asked, token_units)
        if moved is None:
            try:
                moved = self.chain.moved(payment.scheme, payment.payer, payment.nonce, token_units, payment.from_block)
            except HeadwaterError:
                unknown = True
        if moved is None and unknown:
            raise UpstreamError(
                "whether the chain has paid is not known yet",
                code="payment_pending",
                fix="send the same request with the same payment again",
            )
        if moved is None:
            self.store.released(payment)
            raise RefusedError(
                f"the chain did not pay: {why[:200]}", code="payment_not_settled", fix="sign another payment"
            )
        self.store.settled(payment, moved.token_units, moved.transaction_hash, self._now_ns())
        return moved

    def _end(self, key_id: str, work: _AtWork, finished: bool) -> None:
        """The call is over: what the chain did not take is taken back."""
        self._at_work.pop(key_id, None)
        if work.payment is None:
            return
        now = self._now(work.payment)
        if now.state == "settled" and finished:
            self.store.done(now)
        elif now.state == "verified":
            self.store.released(now)
        self.store.take_back(self._now_ns())

    def finish(self, payment: Payment) -> Payment:
        """Go on with what a process has left in the middle: the chain says what became of it.

        Raises:
            UpstreamError: the chain cannot be asked.
        """
        if payment.state == "settling":
            moved = self.chain.moved(
                payment.scheme,
                payment.payer,
                payment.nonce,
                payment.settled_token_units or payment.token_units,
                payment.from_block,
            )
            if moved is not None:
                return self.store.settled(payment, moved.token_units, moved.transaction_hash, self._now_ns())
            if payment.purpose == "top-up":
                return payment  # its payer may send it again
        if payment.state in ("verified", "settling"):
            self.store.released(payment)
        return self._now(payment)

    def _now(self, payment: Payment) -> Payment:
        found = self.store.find(payment.name)
        assert found is not None
        return found

    def recover(self) -> None:
        """Finish what an earlier process left; what the chain cannot be asked about now is left as it is."""
        for payment in self.store.open():
            if payment.key_id in self._at_work:
                continue
            try:
                self.finish(payment)
            except HeadwaterError:
                continue
        self.store.take_back(self._now_ns())

    # Top-ups

    def top_up(
        self, raw: bytes, asked: PaymentRequirements, url: str, key: KeyRecord | None
    ) -> tuple[Payment, Headers]:
        """Have the chain pay and give the credit, once. Blocks.

        Args:
            key: whose credit it becomes; None for the payer's own record.

        Returns:
            The payment, which is done, and headers with what the chain has paid.

        Raises:
            PaymentRequiredError: ``payment_refused``.
            ConflictError: ``payment_used``, for a call or for another key.
            RefusedError: ``payment_not_settled``.
            UpstreamError: ``payment_pending``; send the same again.
        """
        signed = read_payment(raw)
        if key is None:
            key = self.store.keys.payer(signed.payer, self._now_ns())
            if key.revoked:
                raise RefusedError(f"{key.key_id} is revoked", code="payer_revoked", fix="ask the operator")
        name = (self.chain.network, signed.payer, signed.nonce)
        payment = self.store.find(name)
        if payment is None or payment.state == "released":
            earlier = None
            self._verify(signed, asked, url)  # before an identifier is believed: now it is known whose it is
            if signed.identifier is not None:
                earlier = self.store.topped_up(key.key_id, signed.payer, signed.identifier)
            if earlier is not None:
                return earlier, self._told(signed, earlier)
            payment = self.store.admit(
                name,
                digest=signed.digest,
                scheme=asked.scheme,
                purpose="top-up",
                request=signed.identifier or "",
                key=key,
                token_units=int(asked.amount),
                from_block=self.chain.block(),
                at_ns=self._now_ns(),
            )
        elif (payment.digest, payment.purpose, payment.key_id) != (signed.digest, "top-up", key.key_id):
            raise used(payment)
        if payment.state == "settling":
            payment = self.finish(payment)
        if payment.state == "settling":
            self.pay(payment, signed, asked, int(asked.amount))
            payment = self._now(payment)
        return payment, self._told(signed, payment)

    # Who has paid

    def identify(self, raw: bytes) -> KeyRecord:
        """Who has paid with a payment that was taken before: it opens the records of what it paid for.

        Raises:
            RefusedError: ``invalid_api_key``.
        """
        signed = read_payment(raw)
        found = self.store.find((self.chain.network, signed.payer, signed.nonce))
        if found is None or found.digest != signed.digest:
            raise RefusedError(
                "no such payment was taken", code="invalid_api_key", fix="send the PAYMENT-SIGNATURE that has paid"
            )
        return self.store.keys.in_force(found.key_id)

    def close(self) -> None:
        """Wait for what is being settled."""
        self._pool.shutdown(wait=True)

    async def settle_soon(self, key_id: str, units: int) -> None:
        """`settle` for callers on the event loop."""
        if key_id in self._at_work:
            await self._run(lambda: self.settle(key_id, units))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _told(self, signed: Signed, payment: Payment) -> Headers:
        moved = Moved(payment.settled_token_units, payment.transaction_hash)
        return ((b"payment-response", encode_payment_response_header(self._response(signed, moved)).encode()),)

    def _response(self, signed: Signed, moved: Moved) -> SettleResponse:
        return SettleResponse(
            success=True,
            payer=signed.payer,
            transaction=moved.transaction_hash,
            network=self.chain.network,
            amount=str(moved.token_units),
        )


def read_payment(raw: bytes) -> Signed:
    """The payment in a header: its form only; nothing in it is believed before the chain has verified it.

    Raises:
        InvalidError: ``payment_invalid``.
    """
    try:
        if len(raw) > HEADER_BYTES_MAX:
            raise ValueError(f"{len(raw)} bytes, at most {HEADER_BYTES_MAX}")
        text = base64.b64decode(raw, validate=True)
        refuse_deep(text)
        payload = PaymentPayload.model_validate(msgspec.json.decode(text))
        if payload.x402_version != 2:
            raise ValueError(f"version {payload.x402_version}")
        payer, nonce = _authorization(payload)
    except ValidationError:
        raise _invalid("fields are missing or wrong") from None
    except (ValueError, TypeError, binascii.Error, msgspec.DecodeError, HeadwaterError) as error:
        raise _invalid(str(error)[:200]) from None
    digest = hashlib.sha256(msgspec.json.encode(payload.payload, order="sorted")).hexdigest()
    return Signed(payload, payer, nonce, digest, extract_payment_identifier(payload))


def _authorization(payload: PaymentPayload) -> tuple[str, str]:
    """(payer, nonce) of what was signed, in one form for each, so that a nonce cannot come in two writings."""
    exact = payload.accepted.scheme == "exact"
    inner: Any = payload.payload.get("authorization" if exact else "permit2Authorization")
    if not isinstance(inner, dict):
        raise ValueError(f"no authorization of {payload.accepted.scheme[:20]!r}")
    payer, nonce = inner.get("from"), inner.get("nonce")
    if not isinstance(payer, str) or not _ADDRESS.fullmatch(payer):
        raise ValueError(f"from is {str(payer)[:80]!r}")
    if not isinstance(nonce, str) or not (_NONCE if exact else _NUMBER).fullmatch(nonce):
        raise ValueError(f"nonce is {str(nonce)[:80]!r}")
    return payer.lower(), nonce.lower() if exact else str(int(nonce))


def _invalid(why: str) -> InvalidError:
    return InvalidError(
        f"not a payment: {why}", code="payment_invalid", fix="send the base64 of an x402 payload of version 2"
    )


def request_name(given: bytes | None, signed: Signed) -> str:
    """The idempotency key of a paid request: a retry with it is answered again and pays nothing."""
    if signed.identifier:
        return f"x402-{signed.identifier}"
    if given is not None:
        return check_idempotency_key(given)
    return f"x402-{signed.nonce}"


def _named(scope: Scope, name: str) -> Scope:
    headers = [(key, value) for key, value in scope["headers"] if key != b"idempotency-key"]
    return {**scope, "headers": [*headers, (b"idempotency-key", name.encode())]}
