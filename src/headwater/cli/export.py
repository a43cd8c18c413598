"""`headwater export`: the folder from which a stranger recomputes an epoch with `headwater epoch audit`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from headwater.cli.home import Home
from headwater.cli.log import log_signer
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.settlement.epoch import read_manifest
from headwater.store.epoch_export import write_export
from headwater.store.object_store import open_store


def export(
    *,
    epoch: int,
    to: Annotated[str, Parameter(name="--out", help="Folder or pyarrow address; an earlier export there is renewed.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Write what an auditor needs of a closed epoch: receipts, log, policies, registry. No text of anybody.

    Parameters
    ----------
    epoch
        Number of the epoch.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, progress(quiet=json) as bars:
        task = bars.add_task("receipts", total=None)
        record = opened.epochs.get(epoch)
        told = read_manifest(record.manifest)
        store = open_store(to)
        opened.log.promised()  # catches up with a writer at work
        done = write_export(
            store,
            opened.log,
            record,
            [one for one in opened.epochs.all() if one.epoch < epoch],
            operator=opened.signer.address,
            currency=opened.policy.currency,
            signer=log_signer(opened),
            policies={name: opened.policy_by_digest(name) for name in told["policy_digests"]},
            registry=opened.registry.records(told["registry_digest"]),
            progress=lambda at, total: bars.update(task, completed=at, total=total),
        )
        receipts = sum(one.count for one in done.segments)
        key = log_signer(opened).key.text
        if json:
            print_json({"location": store.location, "epoch": epoch, "receipts": receipts, "log_key": key})
        else:
            out.print(f"epoch {epoch}: {receipts} receipts and all that is needed to check them in {store.location}")
            out.print(f"log key {key}", soft_wrap=True, markup=False)
    return result.status
