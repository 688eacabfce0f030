"""Which of PinFM's ingredients, and which of the recipe's own, help on a small catalogue?

    python -m benchmarks.ablation --set amazon_beauty [--epochs 6] [--seeds 0] [--variants recipe dot-score …] --json

Every variant changes one thing of the recipe that recipe.py chooses for the set, and is trained without a refit
by the code of `spoor pretrain`; figures are those of its best epoch on the validation events (leave one out, full
ranking). The recipe is the peer: `ratio` is its NDCG@10 over that of the best variant, so above 1 the rule picks what
wins. Rows are appended to benchmarks/results/ablation.jsonl. Data are read from ../shared/data and never committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "ablation.jsonl"


def variants(model: dict[str, Any], items: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name to (changes of the model, changes of the settings)."""
    width = model["width"]
    hashed = {"items": "hashed", "hash_functions": 4, "table_width": width // 4, "table_rows": items}
    projections = {"projections": "mlp", "projection_width": 4 * width}
    drawn = {"negatives": "in-batch", "own_positives": "masked"}
    return {
        "recipe": ({}, {}),
        "random-start": ({}, {"item_start": "random"}),
        "dot-score": ({"score": "dot"}, {}),
        "mlp-projections": (projections, {}),
        "hashed-items": (hashed, {"item_start": "random"}),
        "in-batch-negatives": ({}, drawn),
        "mixed-negatives": ({}, {"negatives": "mixed", "own_positives": "masked"}),
        "as-pinfm": (hashed | projections, drawn | {"item_start": "random"}),
        "multi-token": ({}, {"multi_token_weight": 0.5}),
        "double-width": ({"width": 2 * width, "dimension": 2 * width, "table_width": 2 * width}, {}),
        "one-more-layer": ({"layers": model["layers"] + 1}, {}),
    }


def measure(name: str, variant: str, *, seed: int, epochs: int) -> dict[str, Any]:
    """Trains one variant and returns its row."""
    from spoor.activity.settings import EventSettings
    from spoor.encoder.data.corpus import Corpus
    from spoor.encoder.data.split import make_split, training_statistics
    from spoor.encoder.training.loop import train
    from spoor.encoder.training.plan import PretrainRequest, make_plan
    from spoor.encoder.training.recipe import choose
    from spoor.encoder.training.run import fresh_state
    from spoor.encoder.training.settings import PretrainSettings

    data = DATA / name / "events.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = Corpus.build(data, folder / "corpus", events=EventSettings())
        recipe = choose(training_statistics(corpus, make_split(corpus, "leave-one-out")))
        of_model, of_settings = variants(recipe.model.to_json(), corpus.counts.items)[variant]
        model = recipe.model.to_json() | of_model
        if "feed_forward_width" not in of_model:
            model["feed_forward_width"] = 4 * model["width"]
        (folder / "model.json").write_text(json.dumps(model))
        chosen = recipe.settings | of_settings | {"mixture": "none", "refit_epochs": 0, "epochs": epochs, "seed": seed}
        settings = PretrainSettings(model=str(folder / "model.json"), **chosen)
        plan = make_plan(
            PretrainRequest(data, out=folder / "variant-1", settings=settings, protocol="leave-one-out", fixed=chosen),
            folder=folder,
        )
        state = fresh_state(plan)
        train(state, plan.schedule)
    best = state.evaluations[state.best_epoch]
    return {
        "set": name,
        "items": corpus.counts.items,
        "variant": variant,
        "seed": seed,
        "epochs": epochs,
        "best_epoch": state.best_epoch + 1,
        "seconds": round(state.seconds, 1),
        **{key: round(best[key], 5) for key in ("recall_at_10", "ndcg_at_10", "mean_cosine", "effective_rank")},
        "command": f"python -m benchmarks.ablation --set {name} --epochs {epochs} --seeds {seed} --variants {variant}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, dest="name")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (DATA / arguments.name / "events.parquet").exists():
        sys.exit(f"skipped: {DATA / arguments.name / 'events.parquet'} is not there")
    known = list(variants({"width": 4, "layers": 1}, 1))
    asked = ["recipe", *(name for name in arguments.variants or known if name != "recipe")]
    if unknown := sorted(set(asked) - set(known)):
        parser.error(f"there is no variant {', '.join(unknown)}; there are {', '.join(known)}")
    found: dict[str, list[float]] = {}
    for variant in asked:
        for seed in arguments.seeds:
            row = measure(arguments.name, variant, seed=seed, epochs=arguments.epochs)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            found.setdefault(variant, []).append(row["ndcg_at_10"])
    means = {variant: sum(values) / len(values) for variant, values in found.items()}
    others = [value for variant, value in means.items() if variant != "recipe"]
    result = {"benchmark": "ablation", "set": arguments.name, "ndcg_at_10": means, "goal": 1.0}
    if others:
        result["ratio"] = means["recipe"] / max(others)
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value:.4f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
