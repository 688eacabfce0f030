"""The demo's pictures as PNG bytes: a histogram of freshness, and a map of users with their favourite genres. page.py
writes the files."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Vectors = npt.NDArray[np.float32]

# Okabe and Ito's colours: colour-blind readers can distinguish them. Grey is for all other labels.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31")
_GREY = "#B8B8B8"
_INK = "#333333"
_OTHER = "other"


def freshness_histogram(delays_ms: npt.NDArray[np.floating]) -> bytes:
    """Histogram of the delay (ms) from append to readable, one value per event, with p50 and p99 marked."""
    delays = np.asarray(delays_ms, np.float64)
    figure, axes = _canvas(8, 4.2)
    axes.set_title("Freshness: from Kafka's append to the embedding readable in Feast", loc="left")
    axes.set_xlabel("delay (ms)")
    axes.set_ylabel("events")
    if not len(delays):
        axes.text(0.5, 0.5, "no event was measured", ha="center", va="center", transform=axes.transAxes)
        return _png(figure)
    p50, p99 = np.percentile(delays, (50, 99))
    end = max(float(np.percentile(delays, 99.5)) * 1.05, 1.0)
    beyond = int((delays > end).sum())
    axes.hist(delays[delays <= end], bins=50, range=(0, end), color=_COLOURS[0], alpha=0.85)
    for value, name, colour in ((p50, "p50", _INK), (p99, "p99", _COLOURS[3])):
        axes.axvline(value, color=colour, linewidth=1.5, label=f"{name}  {value:,.0f} ms")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    axes.set_xlim(0, end)
    title = f"{len(delays):,} events" + (f", {beyond:,} beyond the axis" if beyond else "")
    axes.legend(title=title, frameon=False, loc="best", alignment="left")
    return _png(figure)


def user_map(vectors: Vectors, labels: Sequence[str | None], *, most_labels: int = 7) -> bytes:
    """Users by the first two principal components of their embeddings (float32[U, d]), coloured by label. The
    `most_labels` most frequent labels get a colour, the others and None are grey."""
    points, shares = principal_plane(vectors)
    frequent = [label for label, _ in Counter(label for label in labels if label).most_common(most_labels)]
    named = np.array([label if label in frequent else _OTHER for label in labels], object)
    figure, axes = _canvas(8, 6)
    axes.set_title(f"{len(points):,} users by embedding, coloured by favourite genre", loc="left")
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
    for label, colour in ((_OTHER, _GREY), *zip(frequent, _COLOURS, strict=False)):
        chosen = points[named == label]
        if len(chosen):
            axes.scatter(*chosen.T, s=18, color=colour, alpha=0.8, linewidths=0, label=f"{label} ({len(chosen):,})")
    if len(points):
        handles, names = axes.get_legend_handles_labels()
        grey_first = named.tolist().count(_OTHER) > 0
        order = [*range(1, len(handles)), 0] if grey_first else range(len(handles))
        axes.legend(
            [handles[k] for k in order],
            [names[k] for k in order],
            title="genre (users)",
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            alignment="left",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    return _png(figure)


def principal_plane(vectors: Vectors) -> tuple[Vectors, tuple[float, float]]:
    """float32[U, 2] and each axis' share of the variance. Zeros for too few users or dimensions."""
    plane = np.zeros((len(vectors), 2), np.float32)
    if len(vectors) < 2 or vectors.shape[1] == 0:
        return plane, (0.0, 0.0)
    centred = vectors - vectors.mean(0)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    kept = min(2, len(sizes))
    # The sign of a singular vector is arbitrary: a positive largest weight keeps the map from flipping.
    signs = np.sign([row[np.abs(row).argmax()] for row in directions[:kept]])
    plane[:, :kept] = left[:, :kept] * sizes[:kept] * signs
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), 1e-12), (0, 2))
    return plane, (float(shares[0]), float(shares[1]))


def favourite_genres(events: pa.Table, items: pa.Table, *, positive_actions: Sequence[str] = ()) -> dict[str, str]:
    """Per user, the genre with the largest difference between its share of the user's liked items and of everyone's.
    Users without a liked item of known genre are left out."""
    genres = dict(zip(items["item_id"].to_pylist(), items["genres"].to_pylist(), strict=True))
    liked: dict[str, Counter[str]] = {}
    columns = (events[name].to_pylist() for name in ("user_id", "item_id", "action"))
    for user, item, action in zip(*columns, strict=True):
        if (not positive_actions or action in positive_actions) and genres.get(item):
            liked.setdefault(user, Counter()).update(genres[item])
    everyone = sum(liked.values(), Counter())

    def beyond(mine: Counter[str], genre: str) -> float:
        return mine[genre] / mine.total() - everyone[genre] / everyone.total()

    return {user: max(sorted(mine), key=lambda genre: beyond(mine, genre)) for user, mine in liked.items()}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=_INK)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
