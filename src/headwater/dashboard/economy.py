"""The economy: what rules do to assumed behaviour, run from a page, watched, put side by side; and the policy form.

A change of the policy is tried here before it is published: the same people, the same seeds, once under the policy in
force and once under the other.
"""

# Annotations stay live here: FastAPI resolves them.

import sys
from typing import Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from headwater.core.errors import InvalidError
from headwater.core.money import NANO
from headwater.dashboard import operator_policy
from headwater.dashboard.charts import Series, lines
from headwater.dashboard.jobs import Job, Jobs, whole
from headwater.dashboard.pages import Area, Link, Pages, wants_json
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.splits import Policy

KIND: Final = "economy"
COMPARED_MAX: Final = 4
DAYS_MAX: Final = 730
SEEDS_MAX: Final = 9
SIMULATED: Final = {"run.days": 120, "run.seeds": 3, "agents.contributors": 5_000, "agents.users": 5_000}
"""What "simulate this change" runs: small enough for a minute, large enough to tell."""

FIELDS: Final = (
    ("run.days", 1, DAYS_MAX),
    ("run.seeds", 1, SEEDS_MAX),
    ("agents.contributors", 10, 200_000),
    ("agents.users", 10, 200_000),
    ("price.per_call_nano", 0, 10**12),
)
"""Assumptions that the form of a run shows; any other can be written below them."""

HEADLINES: Final = (
    "contributors_earned_share", "contributors_received_share", "take_share", "residual_share", "waiting_share",
    "fees_share", "median_month", "above_dollar_share", "gini_earned", "active_share", "surplus_per_call",
    "delay_days", "share:commons", "share:base_model",
)  # fmt: skip
PARTS: Final = frozenset(name for name in HEADLINES if name.endswith("_share") or name.startswith("share:"))
"""Figures that are parts of a whole, shown in per cent."""


def area(site: Site, pages: Pages, _: Keeper) -> Area:
    """The routes under ``/economy`` and ``/operator/policy``."""
    router = APIRouter()
    jobs = Jobs(site.folder / "jobs")

    def actor(request: Request) -> str:
        return f"operator:{pages.sessions.require(request, 'operator').subject}"

    def start(title: str, cases: list[dict[str, Any]], **more: Any) -> Job:
        from headwater.dashboard.economy_run import scenario_of  # compiles kernels: only who runs something waits

        for case in cases:
            scenario_of(case)  # everything that can be refused is refused before the process begins
        return jobs.start(
            KIND,
            title[:120],
            {"cases": cases, **more},
            [sys.executable, "-m", "headwater.dashboard.economy_run", "{job}"],
            now_ns=site.now_ns(),
            random_bytes=site.random_bytes(8),
        )

    # The economy

    @router.get("/economy", response_class=Response)
    def runs(request: Request) -> Response:
        actor(request)
        found = [_listed(job) for job in jobs.all(KIND)]
        fields = [{"name": name, "low": low, "high": high, "value": _DEFAULTS[name]} for name, low, high in FIELDS]
        return pages.show(request, "economy/runs.html", say("economy.title"), {"jobs": found, "fields": fields})

    @router.post("/economy", response_class=Response)
    async def run(request: Request) -> Response:
        actor(request)
        form = {name: str(value) for name, value in (await request.form()).items()}
        values: dict[str, Any] = {
            name: whole(form.get(name, str(_DEFAULTS[name])), name, low, high) for name, low, high in FIELDS
        }
        values |= _assumptions(form.get("assumptions", ""))
        title = form.get("title", "").strip() or say("economy.untitled")
        policy = operator_policy.to_toml(site.flow.parts.policy)
        job = start(title, [{"label": title, "policy": policy, "values": values}])
        return pages.redirect(request, f"/economy/runs/{job.id}")

    @router.get("/economy/runs/{job_id}", response_class=Response)
    def one(request: Request, job_id: str) -> Response:
        actor(request)
        return pages.show(request, "economy/run.html", jobs.get(job_id).title, _shown(request, jobs.get(job_id)))

    @router.get("/economy/runs/{job_id}/progress", response_class=Response)
    def progress(request: Request, job_id: str) -> Response:
        """What the page of a run asks for while it runs; when it has ended the page is loaded anew."""
        actor(request)
        job = jobs.get(job_id)
        response = pages.fragment(request, "economy/progress.html", {"job": _listed(job)})
        if job.state != "running":
            response.headers["HX-Refresh"] = "true"
        return response

    @router.post("/economy/runs/{job_id}/stop", response_class=Response)
    def stop(request: Request, job_id: str) -> Response:
        actor(request)
        jobs.stop(job_id)
        return pages.redirect(request, f"/economy/runs/{job_id}", flash="job_stopped")

    @router.get("/economy/compare", response_class=Response)
    def compare(request: Request) -> Response:
        actor(request)
        run = request.query_params.getlist("run")
        if not 2 <= len(run) <= COMPARED_MAX:
            raise InvalidError(
                f"{len(run)} runs", code="compare_invalid", fix=f"choose 2 to {COMPARED_MAX} runs that are done"
            )
        found = [jobs.get(name) for name in run]
        cases = [
            {**case, "label": f"{job.title}: {case['label']}" if len(job.spec["cases"]) > 1 else job.title}
            for job in found
            for case in job.result()["cases"]
        ]
        return pages.show(
            request, "economy/compare.html", say("economy.compare"), {"cases": _cases(cases), "rows": _rows(cases)}
        )

    def _shown(request: Request, job: Job) -> dict[str, Any]:
        data: dict[str, Any] = {
            "job": _listed(job),
            "values": dict(job.spec["cases"][0]["values"]),
            "output": job.output() if job.state == "failed" else "",
            "cases": [],
            "rows": [],
            "proposed": job.spec.get("proposed", ""),
            "replaces": job.spec.get("replaces", ""),
            "changes": job.spec.get("changes", []),
        }
        if job.state == "done":
            cases = job.result()["cases"]
            data |= {"cases": _cases(cases), "rows": _rows(cases)}
            if not wants_json(request):
                data["chart"] = _chart(cases)
        return data

    # The policy

    @router.get("/operator/policy", response_class=Response)
    def policy(request: Request) -> Response:
        actor(request)
        return pages.show(
            request, "operator/policy.html", say("operator.policy"), _policy(operator_policy.in_file(site))
        )

    @router.post("/operator/policy/preview", response_class=Response)
    async def preview(request: Request) -> Response:
        actor(request)
        form = {name: str(value) for name, value in (await request.form()).items()}
        before = operator_policy.in_file(site)
        after = operator_policy.from_form(form, before)
        changes = operator_policy.differences(before, after)
        data = {
            "before": before.to_json(),
            "after": after.to_json(),
            "changes": [row for row in changes if row["field"] != "version"],
            "toml": operator_policy.to_toml(after),
            "replaces": before.digest,
            "digest": after.digest,
            "price_units": NANO // 100,
            "divided_before": operator_policy.example(before, NANO // 100),
            "divided_after": operator_policy.example(after, NANO // 100),
            "simulated": SIMULATED,
        }
        return pages.show(request, "operator/policy_preview.html", say("operator.policy_preview"), data)

    @router.post("/operator/policy/simulate", response_class=Response)
    def simulate(request: Request, toml: str = Form(), replaces: str = Form()) -> Response:
        actor(request)
        before, after = operator_policy.in_file(site), Policy.from_toml(toml)
        cases = [
            {"label": say("economy.now"), "policy": operator_policy.to_toml(before), "values": SIMULATED},
            {"label": say("economy.proposed"), "policy": toml, "values": SIMULATED},
        ]
        changes = [row for row in operator_policy.differences(before, after) if row["field"] != "version"]
        title = say("economy.change_title", name=after.name, version=after.version)
        job = start(title, cases, proposed=toml, replaces=replaces, changes=changes)
        return pages.redirect(request, f"/economy/runs/{job.id}")

    @router.post("/operator/policy/publish", response_class=Response)
    def publish(request: Request, toml: str = Form(), replaces: str = Form()) -> Response:
        operator_policy.publish(site, toml, replaces=replaces, actor=actor(request))
        return pages.redirect(request, "/operator/policy", flash="policy_published")

    def _policy(filed: Policy) -> dict[str, Any]:
        force = site.flow.parts.policy
        return {
            "policy": filed.to_json(),
            "digest": filed.digest,
            "take_bps": filed.take_bps,
            "lines_max": operator_policy.LINES_MAX,
            "in_force": {"name": force.name, "version": force.version, "digest": force.digest},
            "waits": force.digest != filed.digest,
        }

    return Area("economy", router, (Link("/economy", "economy.nav", ("operator",)),))


_DEFAULTS: Final[dict[str, int]] = {
    "run.days": 180,
    "run.seeds": 3,
    "agents.contributors": 20_000,
    "agents.users": 20_000,
    "price.per_call_nano": 5_000_000,
}


def _assumptions(text: str) -> dict[str, Any]:
    """Further assumptions, one ``section.key = value`` a line, values as TOML writes them.

    Raises:
        InvalidError: a line of another form.
    """
    import tomllib

    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, equals, raw = line.partition("=")
        if not line.strip():
            continue
        try:
            if not equals or "policy" in name:  # a policy is a path of the server's disk there
                raise ValueError(name)
            found[name.strip()] = tomllib.loads(f"x = {raw}")["x"]
        except (tomllib.TOMLDecodeError, ValueError):
            raise InvalidError(
                f"{line[:80]!r} is not an assumption", code="scenario_invalid", fix="write section.key = value"
            ) from None
    return found


def _listed(job: Job) -> dict[str, Any]:
    done, total = int(job.progress.get("done", 0)), int(job.progress.get("total", 0))
    return {
        "id": job.id,
        "title": job.title,
        "state": job.state,
        "begun_at_ns": job.begun_at_ns,
        "done": done,
        "total": total,
        "label": str(job.progress.get("label", "")),
        "cpu_s": round(float(job.progress.get("cpu_s", 0.0)), 1),
        "cases": len(job.spec["cases"]),
    }


def _cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: case[name] for name in ("label", "scenario", "policy", "seeds")} for case in cases]


def _rows(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of cases side by side; a difference counts when it is larger than both intervals."""
    from headwater.economy import ABOUT

    rows = []
    for name in HEADLINES:
        found = [case["figures"].get(name, {"mean": 0.0, "half": 0.0}) for case in cases]
        first, last = found[0], found[-1]
        apart = last["mean"] - first["mean"]
        sure = len(found) > 1 and abs(apart) > first["half"] + last["half"]
        rows.append(
            {
                "name": name,
                "about": ABOUT.get(name, say("economy.share_of", name=name.partition(":")[2])),
                "percent": name in PARTS,
                "values": found,
                "difference": apart,
                "sure": sure,
            }
        )
    return rows


def _chart(cases: list[dict[str, Any]]) -> Any:
    """What contributors had received by each day, as part of what was paid until then."""
    days = cases[0]["series"]["day"]
    series = tuple(
        Series(
            case["label"],
            tuple(
                100 * got / paid if paid else None
                for got, paid in zip(case["series"]["received"], case["series"]["paid"], strict=True)
            ),
            f"c{number}",
            number > 0,
        )
        for number, case in enumerate(cases)
    )
    return lines(
        [say("economy.day", day=day) for day in days],
        series,
        title=say("economy.chart"),
        show=lambda value: f"{value:.3g} %",
    )
