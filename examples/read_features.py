"""What a ranker does with Spoor's features: plain Feast calls, online and at a past point in time.

python examples/read_features.py FEATURE_REPO RELEASE USER ITEM [ITEM ...] --at 1998-04-01T00:00:00Z
"""

import argparse

import pandas as pd
from feast import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo")
    parser.add_argument("release")
    parser.add_argument("user")
    parser.add_argument("items", nargs="+")
    parser.add_argument("--at", default=None, help="ISO 8601 time for the training row (default: now)")
    args = parser.parse_args()

    store = FeatureStore(args.repo)
    service = store.get_feature_service("ranker_" + args.release.replace("-", "_"))
    rows = [{"user_id": args.user, "item_id": item} for item in args.items]

    serving = store.get_online_features(features=service, entity_rows=rows).to_df()
    print(serving.to_json(orient="records"))  # a ranker scores these rows

    moment = pd.to_datetime(args.at, utc=True) if args.at else pd.Timestamp.now("UTC")
    labelled = pd.DataFrame(rows).assign(event_timestamp=moment, label=1.0)
    # The flag leaves out what was computed, or whose model was trained, after the row's time.
    job = store.get_historical_features(labelled, service, filter_by_created_timestamp=True)
    print(job.to_df().to_json(orient="records"))  # a ranker is trained on these rows


if __name__ == "__main__":
    main()
