"""The pages: what was said, who supplied it, what became of the money, and how to check it.

FastAPI and Jinja2 on the same process as the gateway, which goes on serving `/v1`. Each area of the pages is a
module that gives an `Area` (see `pages`), with its templates in a folder of the same name and its words in
`strings`. Knows nothing of how anything is measured, divided or booked: it reads what the stores hold and asks
the gateway, as any caller would. Nothing it serves comes from another host.
"""

from headwater.dashboard.app import Front, dashboard_app, front
from headwater.dashboard.pages import Area, Link, Pages
from headwater.dashboard.site import Site

__all__ = ["Area", "Front", "Link", "Pages", "Site", "dashboard_app", "front"]
