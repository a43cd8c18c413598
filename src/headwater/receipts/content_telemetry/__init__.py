"""Content Telemetry 0.1 (SPUR Coalition) in and out: receipts as sessions of events, and reports of fractional credit.

`sessions` writes what a receipt says as the standard's events; `documents` reads anybody's sessions, events, batches
and manifests and refuses what breaks the standard, its rules beyond the schema included; `fractional` is the report of
who is owed which part of an answer. Knows nothing of HTTP, files or keys.
"""

from headwater.receipts.content_telemetry.documents import (
    Document,
    Manifest,
    TelemetryEvent,
    form_of,
    manifest_json,
    multibase_key,
    read_document,
    read_manifest,
)
from headwater.receipts.content_telemetry.fractional import fractional_report, read_fractional
from headwater.receipts.content_telemetry.sessions import Content, session_json

__all__ = [
    "Content",
    "Document",
    "Manifest",
    "TelemetryEvent",
    "form_of",
    "fractional_report",
    "manifest_json",
    "multibase_key",
    "read_document",
    "read_fractional",
    "read_manifest",
    "session_json",
]
