"""The adapter factory: registered rows in, a signed low-rank adapter out, the same bits every time.

Needs the extra `torch`; import `headwater.models.factory.factory`, `training` or `task` where training is done.
`recipe` and `rows` need no torch. Knows nothing of serving, calls, payers or the registry's database.
"""

from __future__ import annotations

from headwater.models.factory.recipe import Recipe, projections
from headwater.models.factory.rows import Dataset, Row, assemble, read_rows, rows_of

__all__ = ["Dataset", "Recipe", "Row", "assemble", "projections", "read_rows", "rows_of"]
