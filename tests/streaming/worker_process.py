"""One worker as a process of its own: `python worker_process.py SUMMARY_FILE [COUNT]`, settings from SPOOR_CONFIG and
the environment. Ends as the command line does: error and hint on stderr, the error's exit code."""

import sys
from pathlib import Path

from activity.errors import SpoorError
from spoor.config import load_settings
from streaming.worker import run_worker

if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        run_worker(load_settings(), count=count, timeout_seconds=240, summary_file=Path(sys.argv[1]))
    except SpoorError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
