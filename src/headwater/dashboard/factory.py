"""The factory: train an adapter from a page, watch its loss, stop it and go on, see what it gained, and talk to it.

The training is `headwater adapter train` in a process of its own: the same bits, the same state to go on from, the same
rules about licences and withdrawals. What it prints and its progress file are all that the page knows of it.
"""

# Annotations stay live here: FastAPI resolves them.

import sys
from typing import Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from headwater.core.errors import HeadwaterError
from headwater.dashboard import factory_form
from headwater.dashboard.charts import Series, lines
from headwater.dashboard.jobs import Job, Jobs
from headwater.dashboard.pages import Area, Link, Pages, wants_json
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.models.adapters import StoredAdapter
from headwater.models.factory.recipe import Recipe
from headwater.registry.lineage import HeldOut
from headwater.store.readings_registry import titles

KIND: Final = "adapter"
SHOWN_MAX: Final = 60
CURVE_MAX: Final = 120


def area(site: Site, pages: Pages, _: Keeper) -> Area:
    """The routes under ``/factory``."""
    router = APIRouter()
    jobs = Jobs(site.folder / "jobs")

    def operator(request: Request) -> str:
        return pages.sessions.require(request, "operator").subject

    @router.get("/factory", response_class=Response)
    def factory(request: Request, q: str = Query("", max_length=80)) -> Response:
        operator(request)
        defaults = Recipe()
        data = {
            "base": site.settings.model_name,
            "adapters": [_adapter(site, name) for name in site.adapters.names()],
            "trainings": [_listed(job) for job in jobs.all(KIND)],
            "numbers": [
                {"name": name, "low": low, "high": high, "value": getattr(defaults, name)}
                for name, low, high in factory_form.NUMBERS
            ],
            "q": q,
            "contributions": factory_form.trainable(site, q.strip(), SHOWN_MAX),
            "versions": factory_form.versions(site),
            "feedback": factory_form.feedback_count(site),
        }
        return pages.show(request, "factory/factory.html", say("factory.title"), data)

    async def order(request: Request) -> factory_form.Order:
        sent = await request.form()
        form = {name: str(value) for name, value in sent.items()}
        chosen = [str(one) for one in sent.getlist("contribution")]
        return factory_form.read(site, form, chosen, [str(one) for one in sent.getlist("datanet")])

    @router.post("/factory/estimate", response_class=Response)
    async def estimate(request: Request) -> Response:
        """How long what the form says would take, or what is wrong with it."""
        operator(request)
        data: dict[str, Any] = {"problem": "", "fix": "", "seconds": 0, "tokens": 0, "count": 0}
        try:
            found = await order(request)
            data |= {"seconds": found.seconds, "tokens": found.tokens, "count": len(found.contributions)}
        except HeadwaterError as error:
            data |= {"problem": error.message, "fix": error.fix or ""}
        return pages.fragment(request, "factory/estimate.html", data)

    @router.post("/factory", response_class=Response)
    async def begin(request: Request) -> Response:
        operator(request)
        found = await order(request)
        spec = {"name": found.name, "arguments": found.arguments, "tokens": found.tokens, "seconds": found.seconds}
        job = jobs.start(
            KIND,
            found.name,
            spec,
            _command(site, found.name, found.arguments),
            now_ns=site.now_ns(),
            random_bytes=site.random_bytes(8),
        )
        return pages.redirect(request, f"/factory/trainings/{job.id}")

    @router.get("/factory/trainings/{job_id}", response_class=Response)
    def training(request: Request, job_id: str) -> Response:
        operator(request)
        job = jobs.get(job_id)
        data = _training(job) | {
            "options": _options(job.spec["arguments"]),
            "output": job.output() if job.state == "failed" else "",
            "made": _adapter(site, job.title) if job.title in site.adapters.names() else None,
        }
        if not wants_json(request):
            data["curve"] = _curve(job)
        return pages.show(request, "factory/training.html", job.title, data)

    @router.get("/factory/trainings/{job_id}/progress", response_class=Response)
    def progress(request: Request, job_id: str) -> Response:
        """What the page of a training asks for while it runs."""
        operator(request)
        job = jobs.get(job_id)
        data = _training(job)
        if not wants_json(request):
            data["curve"] = _curve(job)
        response = pages.fragment(request, "factory/progress.html", data)
        if job.state != "running":
            response.headers["HX-Refresh"] = "true"
        return response

    @router.post("/factory/trainings/{job_id}/stop", response_class=Response)
    def stop(request: Request, job_id: str) -> Response:
        operator(request)
        jobs.stop(job_id)
        return pages.redirect(request, f"/factory/trainings/{job_id}", flash="training_stopped")

    @router.post("/factory/trainings/{job_id}/resume", response_class=Response)
    def resume(request: Request, job_id: str) -> Response:
        operator(request)
        job = jobs.get(job_id)
        jobs.again(job_id, _command(site, job.title, tuple(job.spec["arguments"])))
        return pages.redirect(request, f"/factory/trainings/{job_id}", flash="training_resumed")

    @router.get("/factory/adapters/{name}", response_class=Response)
    def adapter(request: Request, name: str) -> Response:
        operator(request)
        stored = site.adapters.get(name)
        data = _adapter(site, stored.name) | _made_of(site, stored)
        return pages.show(request, "factory/adapter.html", stored.name, data)

    return Area("factory", router, (Link("/factory", "factory.nav", ("operator",)),))


def _command(site: Site, name: str, arguments: tuple[str, ...]) -> list[str]:
    return [
        *(sys.executable, "-m", "headwater", "adapter", "train", name, *arguments),
        *("--home", str(site.folder.resolve()), "--progress-file", "{job}/progress.json", "--json"),
    ]


def _options(arguments: list[str]) -> list[dict[str, str]]:
    """The arguments of a training as pairs; contributions are counted."""
    found: list[dict[str, str]] = []
    counted = 0
    for place, word in enumerate(arguments):
        if word == "--contribution":
            counted += 1
        elif word.startswith("--"):
            value = arguments[place + 1] if place + 1 < len(arguments) else ""
            found.append({"name": word[2:], "value": "yes" if value.startswith("--") or not value else value})
    return [*found, {"name": "contributions", "value": str(counted)}]


def _listed(job: Job) -> dict[str, Any]:
    done, total = int(job.progress.get("done", 0)), int(job.progress.get("total", 0))
    phase = str(job.progress.get("phase", ""))
    return {
        "id": job.id,
        "title": job.title,
        "state": job.state,
        "begun_at_ns": job.begun_at_ns,
        "phase": phase if phase in ("frozen", "training", "index") else "",
        "done": done,
        "total": total,
        "cpu_s": round(float(job.progress.get("cpu_s", 0.0))),
        "seconds": int(job.spec.get("seconds", 0)),
        "tokens": int(job.spec.get("tokens", 0)),
    }


def _training(job: Job) -> dict[str, Any]:
    losses = [(int(step), float(loss)) for step, loss in job.progress.get("losses", [])]
    return {"job": _listed(job), "losses": [[step, loss] for step, loss in losses], "running": job.state == "running"}


def _curve(job: Job) -> Any:
    """The loss of each step, and its mean over the last tenth: one step's loss depends on which rows it saw."""
    losses = [(int(step), float(loss)) for step, loss in job.progress.get("losses", [])]
    if len(losses) < 2:
        return ""
    every = max(1, len(losses) // CURVE_MAX)
    window = max(2, len(losses) // 10)
    means = [
        sum(loss for _, loss in losses[max(0, at - window + 1) : at + 1]) / min(at + 1, window)
        for at in range(len(losses))
    ]
    shown = range(0, len(losses), every)
    return lines(
        [str(losses[at][0]) for at in shown],
        (
            Series(say("factory.loss"), tuple(losses[at][1] for at in shown), "residual"),
            Series(say("factory.loss_mean"), tuple(means[at] for at in shown), "c0"),
        ),
        title=say("factory.curve", first=f"{means[min(window, len(means)) - 1]:.3f}", last=f"{means[-1]:.3f}"),
        show=lambda value: f"{value:.3g}",
    )


def _adapter(site: Site, name: str) -> dict[str, Any]:
    stored = site.adapters.get(name)
    found = stored.lineage
    try:
        registered = site.registry.get(stored.contribution)
        license_text, floor = registered.license.expression, registered.license.price_floor_units
    except HeadwaterError:
        license_text, floor = "", 0  # trained elsewhere, or not finished: there, and not served yet
    return {
        "name": name,
        "contribution": stored.contribution,
        "registered": bool(license_text),
        "license": license_text,
        "price_floor_units": floor,
        "served_as": f"{site.settings.model_name}+{name}",
        "base": found.base_name,
        "steps": found.steps,
        "trained_on": len(found.trained_on),
        "before": _held(found.before),
        "after": _held(found.after),
    }


def _held(found: HeldOut) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "loss": found.loss_micronats / 1e6,
        "pairs": found.pairs,
        "pair_loss": found.pair_loss_micronats / 1e6,
        "pairs_right": found.pairs_right,
    }


def _made_of(site: Site, stored: StoredAdapter) -> dict[str, Any]:
    lineage = stored.lineage
    named = titles(site.db, tuple(one.contribution for one in lineage.trained_on))
    return {
        "digest": lineage.adapter_digest,
        "base_digest": lineage.base_digest,
        "parent": lineage.parent,
        "code": lineage.code_version,
        "data_digest": lineage.data_digest,
        "operator": lineage.operator,
        "recipe": {name: str(value) for name, value in sorted(dict(lineage.recipe).items())},
        "material": [
            {
                "contribution": one.contribution,
                "title": named.get(one.contribution, one.contribution),
                "rows": one.rows,
                "tokens": one.tokens,
            }
            for one in lineage.trained_on
        ],
    }
