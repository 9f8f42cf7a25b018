"""The inspection pages over HTTP, written by Jinja with escaping on; corrections where ``inspection`` allows them."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, urlencode

import polars as pl
import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA, GENERATED, OUTCOMES
from embed_pipeline.inspection.agreement import judged_pairs, measure_agreement, threshold_curves
from embed_pipeline.inspection.pair_index import STATES, CountedValue, CurrentIndex, PairIndex, verdict_word
from embed_pipeline.inspection.pair_query import CHOICES, PAGE_SIZES, RANGES, SORTS, PairQuery, QueryError, is_page
from embed_pipeline.inspection.provenance import Provenance, TrainedModel, raw_responses
from embed_pipeline.lineage import LineageError, Model, stored_tables
from embed_pipeline.reviews import ReviewError, ReviewJournal, ReviewVerdict, fold_reviews, read_reviews, review_row
from embed_pipeline.serving.connections import GuardedProtocol, HostMiddleware, bind
from embed_pipeline.serving.request import is_loopback
from embed_pipeline.settings import Settings
from embed_pipeline.storage import StorageError

logger = logging.getLogger(__name__)
_MAX_BODY_BYTES = 128 * 1024
_ROWS = 50
_DOCUMENT_SORTS = ("path", "segments", "covered", "pairs", "accepted", "share", "won", "lost")
_EVALUATION_FILTERS = {"set": "query_set", "outcome": "outcome"}
_EVALUATION_SORTS = ("change", "base_rank", "tuned_rank", "bm25_rank")
_COVERAGE = ("all", "without", "with")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, under which browsers do not say where a correction comes from.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ASSETS = {"inspect.css": "text/css", "inspect.js": "text/javascript"}


@dataclass(frozen=True)
class Neighbours:
    """What the inspector needs of the orchestration, which it does not know.

    Attributes:
        models: all registered versions of the model.
        reviewed: told after every correction, so that the assets which read reviews are shown as stale.
    """

    models: Callable[[], Sequence[Model]]
    reviewed: Callable[[], None]


class Inspector:
    """The handlers, over one store."""

    def __init__(self, settings: Settings, neighbours: Neighbours) -> None:
        self._settings, self._neighbours = settings, neighbours
        self._root = settings.paths.root
        self._index = CurrentIndex(self._root)
        self._journal = ReviewJournal(self._root)
        self._token = secrets.token_urlsafe(24)
        self._templates = Environment(
            loader=PackageLoader("embed_pipeline.inspection"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(
            choices=CHOICES, ranges=RANGES, sorts=SORTS, sizes=PAGE_SIZES, states=STATES, criteria=CRITERIA,
            corrections=settings.inspection.corrections, token=self._token,
        )  # fmt: skip
        self._templates.filters.update(figure=_figure, percent=_percent, query=_query)

    def routes(self) -> list[Route]:
        """Every route."""
        pages = [
            Route("/", self.pairs),
            Route("/pairs/{qa_id}", self.pair),
            Route("/pairs/{qa_id}/raw", self.raw),
            Route("/documents", self.documents),
            Route("/documents/{document_id}", self.document),
            Route("/segments", self.segments),
            Route("/segments/{segment_id}", self.segment),
            Route("/evaluation", self.evaluation),
            Route("/agreement", self.agreement),
            *(Route(f"/{name}", self.asset) for name in _ASSETS),
        ]
        writes = [Route("/pairs/{qa_id}/reviews", self.review, methods=["POST"])]
        return [*pages, *(writes if self._settings.inspection.corrections else [])]

    def asset(self, request: Request) -> Response:
        """Style and script."""
        name = request.url.path.rpartition("/")[2]
        text = files("embed_pipeline.inspection").joinpath(name).read_text(encoding="utf-8")
        return Response(text, media_type=_ASSETS[name], headers=_HEADERS)

    def pairs(self, request: Request) -> Response:
        """All pairs, filtered, sorted and counted."""
        query = PairQuery.parse(request.query_params.multi_items())
        index = self._index.get()
        page = index.page(query)
        named = index.frame.height and query.document and _path(index.documents, query.document)
        return self._page("pairs.html", query=query, page=page, document=named or query.document, index=index)

    def pair(self, request: Request) -> Response:
        """One pair with all that belongs to it."""
        query = PairQuery.parse(request.query_params.multi_items())
        qa_id, index = request.path_params["qa_id"], self._index.get()
        row = index.find(qa_id)
        if row is None:
            raise HTTPException(404, f"there is no pair {qa_id[:80]}")
        before, after = index.neighbours(query, qa_id)
        common: dict[str, Any] = {"row": row, "query": query, "before": before, "after": after}
        provenance = self._provenance()
        rejected = provenance.reject(qa_id) if row["state"] == "invalid" else None
        if rejected is not None:
            return self._page("reject.html", reject=rejected[0], sources=rejected[1], **common)
        detail = provenance.pair(qa_id)
        verdict = self._verdicts().get(qa_id, ReviewVerdict())
        return self._page(
            "pair.html",
            detail=detail,
            pair=detail.trace.pair,
            verdict=verdict,
            said=verdict_word(verdict) if detail.trace.reviews else "",
            bounds={name: getattr(self._settings.synthesis, f"min_{name}") for name in (*CRITERIA, "overall")},
            decidable=row["origin"] == GENERATED and row["overall"] is not None,
            **common,
        )

    def raw(self, request: Request) -> Response:
        """What the model said, word for word."""
        qa_id = request.path_params["qa_id"]
        row = self._index.get().find(qa_id)
        if row is None:
            raise HTTPException(404, f"there is no pair {qa_id[:80]}")
        # As it was written, whatever people have made of it since.
        written = _first_question(stored_tables(self._root)("qa_pairs"), qa_id) or row["question"]
        found = raw_responses(self._settings.paths.responses, written)
        return self._page("raw.html", row=row, found=found, store=str(self._settings.paths.responses))

    def documents(self, request: Request) -> Response:
        """The documents of the corpus, with what became of their questions."""
        asked = _simple(request, {"sort": _DOCUMENT_SORTS, "order": ("ascending", "descending")})
        found = self._index.get().documents
        for word in asked["q"].lower().split():
            found = found.filter(pl.col("path").str.to_lowercase().str.contains(word, literal=True))
        sort = asked["sort"] or "path"
        found = found.sort(sort, "path", descending=[asked["order"] == "descending", False], nulls_last=True)
        return self._listed("documents.html", found, asked, sorts=_DOCUMENT_SORTS)

    def segments(self, request: Request) -> Response:
        """The segments of the corpus: which have no accepted question."""
        asked = _simple(request, {"coverage": _COVERAGE})
        found = self._index.get().segments
        total, covered = found.height, found.filter(pl.col("accepted") > 0).height
        if asked["coverage"] in {"with", "without"}:
            found = found.filter((pl.col("accepted") > 0) == (asked["coverage"] == "with"))
        for word in asked["q"].lower().split():
            place = pl.concat_str("path", "heading_path", separator="\n").str.to_lowercase()
            found = found.filter(place.str.contains(word, literal=True))
        return self._listed("segments.html", found, asked, all_segments=total, covered=covered)

    def document(self, request: Request) -> Response:
        """One document version."""
        document_id = request.path_params["document_id"]
        found = self._provenance().document(document_id)
        if found is None:
            raise HTTPException(404, f"there is no document {document_id[:80]}")
        index, query = self._index.get(), PairQuery(document=document_id, sort="state", size=200)
        own, versions, segments, models = found
        figures = {row["segment_id"]: row for row in index.segments.filter(document_id=document_id).to_dicts()}
        return self._page(
            "document.html", own=own, versions=versions, segments=segments, models=models, figures=figures,
            pairs=index.page(query), query=query, asked=_asked(index, models),
        )  # fmt: skip

    def segment(self, request: Request) -> Response:
        """One segment."""
        segment_id = request.path_params["segment_id"]
        found = self._provenance().segment(segment_id)
        if found is None:
            raise HTTPException(404, f"there is no segment {segment_id[:80]}")
        query = PairQuery(segment=segment_id, size=200)
        shown, negative, negatives, models = found
        index = self._index.get()
        return self._page(
            "segment.html", shown=shown, negative=negative, negatives=negatives, models=models, query=query,
            pairs=index.page(query), asked=_asked(index, models),
        )  # fmt: skip

    def evaluation(self, request: Request) -> Response:
        """The queries of the last evaluation, those of people's sets too: which the tuned model won and lost."""
        stored = stored_tables(self._root)("question_results")
        everything = tables.QUESTION_RESULTS.empty() if stored is None else stored.collect()
        sets = everything["query_set"].unique().sort().to_list()
        orders = ("ascending", "descending")
        asked = _simple(request, {"set": sets, "outcome": OUTCOMES, "sort": _EVALUATION_SORTS, "order": orders})
        question = pl.col("question").str.to_lowercase()
        words = [question.str.contains(word, literal=True) for word in asked["q"].lower().split()]
        chosen = {column: pl.col(column) == asked[name] for name, column in _EVALUATION_FILTERS.items() if asked[name]}
        counts = {}
        for name, column in _EVALUATION_FILTERS.items():
            others = (condition for other, condition in chosen.items() if other != column)
            counts[name] = _counted(everything.filter(*words, *others)[column], asked[name])
        found = everything.filter(*words, *chosen.values())
        down = [asked["order"] == "descending", False, False]
        found = found.sort(asked["sort"] or "change", "query_set", "query_id", descending=down, nulls_last=True)
        firsts = pl.concat([found["base_first"], found["tuned_first"]]).unique()
        named = self._index.get().segments.filter(pl.col("segment_id").is_in(firsts.implode()))
        places = dict(named.select("segment_id", pl.format("{} segment {}", "path", "position")).iter_rows())
        return self._listed("evaluation.html", found, asked, counts=counts, everything=everything.height, places=places)

    def agreement(self, request: Request) -> Response:  # noqa: ARG002 - a handler takes the request
        """Judge and reviewers, and what other thresholds would do."""
        reviews = read_reviews(self._root)
        read = stored_tables(self._root)
        scores, decisions = (read(name) for name in ("qa_scores", "qa_decisions"))
        judged = judged_pairs(
            tables.QA_SCORES.empty() if scores is None else scores.collect(),
            tables.QA_DECISIONS.empty() if decisions is None else decisions.collect(),
            fold_reviews(reviews),
            self._settings.synthesis,
        )
        measured = measure_agreement(judged, tables.QA_REVIEWS.empty() if reviews is None else reviews)
        curves = threshold_curves(judged, self._settings.synthesis) if judged.height else []
        return self._page("agreement.html", measured=measured, curves=curves, judged=judged.height)

    async def review(self, request: Request) -> Response:
        """Store a correction, and go back to the pair."""
        given = dict(parse_qsl((await _body(request)).decode("utf-8", "replace"), keep_blank_values=True))
        self._refuse_others(request, given.get("token", ""))
        back = PairQuery.parse(parse_qsl(given.get("back", "").removeprefix("?"))).address()
        await run_in_threadpool(self._store, request, given)
        place = f"/pairs/{request.path_params['qa_id']}{back}#reviews"
        return RedirectResponse(place, status_code=303, headers=_HEADERS)

    def _store(self, request: Request, given: Mapping[str, str]) -> None:
        qa_id = request.path_params["qa_id"]
        row = self._index.get().find(qa_id)
        action = given.get("action", "")
        if row is None or row["state"] == "invalid":
            raise HTTPException(404, f"there is no pair {qa_id[:80]} to correct")
        if action in {"accept", "reject", "edit"} and (row["origin"] != GENERATED or row["overall"] is None):
            raise HTTPException(400, "only pairs that were generated and judged are accepted, rejected or edited here")
        question, answer = (_changed(given.get(name, ""), row[name]) for name in ("question", "answer"))
        if action == "edit" and not question and not answer:
            action = "accept"
        words = (question, answer) if action == "edit" else (None, None)
        segment = given.get("segment_id") if action == "positive" else None
        if segment and segment not in self._provenance().negatives(qa_id):
            raise HTTPException(400, f"segment {segment[:80]} is no hard negative of this question")
        who, comment = self._reviewer(request), given.get("comment", "")
        said = review_row(qa_id, action, who, question=words[0], answer=words[1], segment_id=segment, comment=comment)
        self._journal.append([said])
        self._neighbours.reviewed()

    def _reviewer(self, request: Request) -> str:
        options = self._settings.inspection
        if options.reviewer_header is None:
            return options.reviewer_name
        name = request.headers.get(options.reviewer_header, "").strip()
        if not name:
            raise HTTPException(403, f"the proxy in front did not say in {options.reviewer_header} who is signed in")
        return name

    def _refuse_others(self, request: Request, token: str) -> None:
        """Pass only what a page of this process sent: another site's page knows no token, and says where it is from."""
        origin = request.headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
        elsewhere = request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}
        if foreign or elsewhere or not hmac.compare_digest(token.encode(), self._token.encode()):
            raise HTTPException(403, "this correction does not come from a page of this inspector; load the page again")

    def _verdicts(self) -> dict[str, ReviewVerdict]:
        return fold_reviews(read_reviews(self._root))

    def _provenance(self) -> Provenance:
        return Provenance(self._root, stored_tables(self._root), self._neighbours.models())

    def _listed(self, template: str, found: pl.DataFrame, asked: dict[str, str], **more: Any) -> Response:  # noqa: ANN401
        page = int(asked["page"] or 1)
        rows = found.slice((page - 1) * _ROWS, _ROWS).to_dicts()
        pages = max(1, -(-found.height // _ROWS))
        return self._page(template, rows=rows, total=found.height, asked=asked, number=page, pages=pages, **more)

    def _page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401
        text = self._templates.get_template(template).render(**values)
        return HTMLResponse(text, status_code=status, headers=_HEADERS)

    def refuse(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 - a handler takes the request
        """An error as a page."""
        status = error.status_code if isinstance(error, HTTPException) else 400
        if isinstance(error, LineageError):
            status = 404
        if isinstance(error, StorageError):
            status = 500
            logger.error("%s", error)
        said = error.detail if isinstance(error, HTTPException) else str(error)
        return self._page("refused.html", status=status, said=said)


def _simple(request: Request, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The parameters of a plain list: words, page and those of ``known``."""
    asked = dict.fromkeys(("q", "page", *known), "")
    for name, value in request.query_params.multi_items():
        if name not in asked:
            raise QueryError(f"there is no filter {name[:40]!r}; there are {', '.join(asked)}")
        if value and name in known and value not in known[name]:
            raise QueryError(f"{name} is {value[:40]!r}, expected one of {', '.join(known[name])}")
        if value and name == "page" and not is_page(value):
            raise QueryError(f"page is {value[:40]!r}, expected 1 and more")
        asked[name] = value.strip()
    return asked


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"a correction has at most {_MAX_BODY_BYTES} bytes")
    return body


def _asked(index: PairIndex, models: Sequence[TrainedModel]) -> dict[str, str]:
    """The questions by which models were trained."""
    return index.questions(key for model in models for key in model.qa_ids)


def _counted(values: pl.Series, chosen: str) -> list[CountedValue]:
    """How often each value occurs, commonest first; the chosen one is always among them."""
    counted = dict(values.value_counts(sort=True).iter_rows())
    if chosen:
        counted.setdefault(chosen, 0)
    return [CountedValue(value, count, value == chosen) for value, count in counted.items()]


def _changed(given: str, before: str | None) -> str | None:
    """The words of a form's field; None: they are those of before."""
    return None if given.split() == (before or "").split() else given


def _first_question(pairs: pl.LazyFrame | None, qa_id: str) -> str:
    found = [] if pairs is None else pairs.filter(qa_id=qa_id).select("question").collect()["question"].to_list()
    return found[0] if found else ""


def _path(documents: pl.DataFrame, document_id: str) -> str:
    found = documents.filter(document_id=document_id)["path"]
    return str(found[0]) if len(found) else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _query(values: Mapping[str, object]) -> str:
    return "?" + urlencode({name: value for name, value in values.items() if value})


def create_inspector(settings: Settings, neighbours: Neighbours) -> Starlette:
    """The application."""
    inspector = Inspector(settings, neighbours)
    errors = (HTTPException, QueryError, ReviewError, LineageError, StorageError)
    application = Starlette(
        routes=inspector.routes(),
        # On every address: a page that is read in a browser is what a web page with another name would reach for.
        middleware=[Middleware(HostMiddleware, frozenset(settings.serving.allowed_hosts))],
        exception_handlers=dict.fromkeys(errors, inspector.refuse),
    )
    application.router.redirect_slashes = False
    return application


def inspect(settings: Settings, neighbours: Neighbours, *, port: int | None = None) -> None:
    """Serve the pages until SIGTERM or SIGINT.

    Args:
        settings: ``inspection``, and where the store is.
        neighbours: models, and who is told of corrections.
        port: instead of ``inspection.port``.

    Raises:
        ServingError: the address is taken or not this machine's.
    """
    listener = bind(settings.inspection, port)
    host, port = listener.getsockname()[:2]
    if not is_loopback(host):
        writes = " and corrects pairs" if settings.inspection.corrections else ""
        logger.warning(
            "the inspection page has no sign-in: whoever reaches %s port %d reads documents and questions%s; put a "
            "proxy that asks for a password in front of it (docs/security.md)",
            host, port, writes,
        )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    logger.info("the QA set is shown at http://%s:%d", shown, port)
    config = uvicorn.Config(
        create_inspector(settings, neighbours), http=GuardedProtocol, ws="none", lifespan="off", log_config=None,
        log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
