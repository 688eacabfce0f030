"""`spoor demo` from the wheel, in a folder of `feast init`, on a small data set: interrupted, continued, run again."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spoor.activity.simulator import SimulatorSettings, simulate
from tests.conftest import free_port, wait_until
from tests.installed import build_wheel, copy_of_checkout, feast, new_environment

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000


@pytest.fixture
def bin_folder(tmp_path):
    wheel = build_wheel(copy_of_checkout(tmp_path / "checkout"), tmp_path)
    return new_environment(tmp_path / "environment", wheel)


@pytest.fixture
def shop(tmp_path, bin_folder):
    """A company's folder; its `feature_repo` is a package of its own."""
    feast(bin_folder / "python", "init", "shop", cwd=tmp_path)
    return tmp_path / "shop"


@pytest.fixture
def demo_settings(tmp_path, bin_folder):
    """A settings file with free ports; the demo's own file takes them over."""
    config = tmp_path / "spoor.toml"
    config.write_text(f'state_folder = "state"\n[kafka]\nport = {free_port()}\ncontroller_port = {free_port()}\n')
    yield config
    if (demo := tmp_path / "demo" / "spoor.toml").exists():
        subprocess.run([bin_folder / "spoor", "--config", str(demo), "services", "down"], check=True)


@pytest.mark.timeout(900)
def test_the_demo_continues_after_an_interruption_and_ends_the_same_when_run_again(
    tmp_path, bin_folder, shop, demo_settings
):
    start = 1_750_000_000_000
    settings = SimulatorSettings(events=6000, from_ms=start, to_ms=start + 60 * DAY_MS, users=150, items=200, seed=3)
    [events] = simulate(settings)
    pq.write_table(events, tmp_path / "events.parquet")
    command = [str(bin_folder / "spoor"), "--config", str(demo_settings), "demo", "--json"]
    command += ["--data", str(tmp_path / "events.parquet"), "--folder", str(tmp_path / "demo")]
    steps = tmp_path / "demo" / "steps"

    first = subprocess.Popen(command, cwd=shop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (steps / "archive.json").exists(), "the first run has archived")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path.name for path in steps.glob("*.json")}

    second = _json(command, shop)
    assert second["steps"]["verify"]["differences"] == 0
    assert second["steps"]["verify"]["users"] == len(set(events["user_id"].to_pylist()))
    assert second["steps"]["stream"]["summary"]["freshness_p50_ms"] > 0
    assert "past.json" in finished and "rank.json" not in finished
    for name in ("report.html", "training_curve.png", "freshness.png", "user_map.png", "result.json"):
        assert (tmp_path / "demo" / name).stat().st_size > 500, name

    third = _json(command, shop)
    for name in ("past", "pretrain", "backfill", "stream", "rank"):
        assert third["steps"][name] == second["steps"][name], f"{name} was not reused"
    assert third["steps"]["verify"]["differences"] == 0

    other = subprocess.run(
        [*command[:-4], "--folder", str(tmp_path / "demo")], cwd=shop, capture_output=True, text=True
    )
    assert other.returncode in (2, 3) and "hint:" in other.stderr  # MovieLens is other data, or cannot be had

    served = subprocess.run(
        [
            bin_folder / "python",
            ROOT / "examples" / "read_features.py",
            str(tmp_path / "demo" / "feature_repo"),
            "demo-1",
            "1",
            "1",
        ],
        cwd=shop,
        capture_output=True,
        text=True,
    )
    assert served.returncode == 0, served.stderr
    online, _ = (json.loads(line) for line in served.stdout.splitlines()[-2:])
    assert len(online[0]["embedding"]) == 64

    for line in readme_commands():
        words = [word.replace("runs/demo", str(tmp_path / "demo")).replace("416", "1") for word in line.split()]
        if words[0] == "spoor":
            environment = {**os.environ, "SPOOR_CONFIG": str(tmp_path / "demo" / "spoor.toml")}
            ran = subprocess.run(
                [bin_folder / "spoor", *words[1:]], cwd=shop, env=environment, capture_output=True, text=True
            )
            assert ran.returncode == 0, (line, ran.stderr[-2000:])


def readme_commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def _json(command, shop):
    done = subprocess.run(command, cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
