"""Words of the frame around every page."""

WORDS = {
    "common.name": "headwater",
    "common.tagline": "Where the value of an answer comes from, and how it gets back there.",
    "common.skip": "Skip to the content",
    "common.navigation": "Main",
    "common.menu": "Menu",
    "common.theme": "Light or dark",
    "common.twin": "This page as JSON",
    "common.source_note": (
        "A share is an estimate. It is shown with the method that measured it and with what nobody supplied."
    ),
    "common.sign_in": "Sign in",
    "common.sign_out": "Sign out",
    "common.signed_in_as": "Signed in: {role}",
    "common.older": "Older",
    "common.newer": "Back to the newest",
    "common.search": "Search",
    "common.copy": "Copy",
    "common.none": "none",
    "common.pages": "Pages",
    "role.operator": "operator",
    "role.contributor": "contributor",
    "role.payer": "caller",
    "error.back": "Back to the start",
    "error.explain": "Nothing was changed by this request, unless the message says so.",
    "error.code": "Code",
    "unit.bits": "bits",
    "unit.nothing": "nothing",
    "flash.signed_in": "You are signed in.",
    "flash.signed_out": "You are signed out.",
}
