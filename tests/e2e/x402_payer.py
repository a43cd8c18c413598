"""A payer with the official x402 client, as a process of its own.

    python x402_payer.py BASE_URL NETWORK < steps

Steps are a JSON array of `{"path": …, "body": …, "headers": …}`; each is asked, and paid where a 402 says what it costs
(HEADWATER_PAYER holds the wallet's key). Prints a JSON array of `{"status", "headers", "text", "signed"}`, where
`signed` is the header that paid, if one did.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from eth_account import Account
from x402 import x402ClientSync
from x402.http.clients.requests import x402_requests
from x402.mechanisms.evm.exact import ExactEvmClientScheme
from x402.mechanisms.evm.upto import UptoEvmClientScheme


def main() -> None:
    """Take every step."""
    url, network = sys.argv[1:]
    wallet = Account.from_key(os.environ["HEADWATER_PAYER"])
    client = x402ClientSync()
    client.set_spend_controls(False)
    client.register(network, ExactEvmClientScheme(wallet))
    client.register(network, UptoEvmClientScheme(wallet))
    done: list[dict[str, Any]] = []
    with x402_requests(client) as session:
        for step in json.load(sys.stdin):
            answer = session.post(url + step["path"], json=step["body"], headers=step.get("headers"), timeout=60)
            signed = answer.request.headers.get("PAYMENT-SIGNATURE")
            headers = {name.lower(): value for name, value in answer.headers.items()}
            done.append({"status": answer.status_code, "headers": headers, "text": answer.text, "signed": signed})
    print(json.dumps(done))


if __name__ == "__main__":
    main()
