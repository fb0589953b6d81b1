"""Open TensorBoard in a headless Chromium: each metric of the README is a chart with points, HParams shows each run.

    pip install playwright
    python tests/browser.py /usr/bin/chromium

Each script trains twice, for some seconds. The screenshot goes to benchmarks/results/tensorboard.png. Run by hand.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RUNS = {"ppo_discrete": "CartPole-v1", "ppo_continuous": "Pendulum-v1", "ppo_vector": "CartPole-v1"}
RATES = ("1e-3", "3e-4")


def train(folder):
    for script, env_id in RUNS.items():
        for rate in RATES:
            flags = ["--env-id", env_id, "--total-timesteps", "60000", "--learning-rate", rate, "--exp-name"]
            command = [sys.executable, ROOT / f"{script}.py", *flags, f"{script}_{rate}"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def check_charts(page, names):
    """The card of each metric has a line for each run, with a last step in its table."""
    metrics = re.findall(r"^\| `((?:charts|losses|eval)/\w+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    for metric in metrics:
        page.get_by_role("combobox", name="Filter tags (regex)").fill(f"^{metric}$")
        card = page.locator("scalar-card", has=page.get_by_text(f"/{metric.split('/')[1]}", exact=True)).first
        for name in names:
            card.get_by_text(name).first.wait_for()
        steps = re.findall(r"^\d\d,\d{3}$", card.inner_text(), re.MULTILINE)
        assert len(steps) == len(names), (metric, card.inner_text())
        print(f"{metric}: {len(steps)} runs", flush=True)
    assert len(metrics) == 13


def check_hparams(page, names):
    """The table has a row for each run, and shows both learning rates."""
    page.get_by_text(names[0]).first.wait_for()
    cells = page.locator("vaadin-grid-cell-content").all_inner_texts()
    assert {*names} <= {*cells}, cells
    numbers = {float(cell) for cell in cells if re.match(r"[\d.]+(e-\d+)?$", cell)}
    assert {float(rate) for rate in RATES} <= numbers
    print(f"HParams: {len(names)} runs")


def main(chromium):
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        train(folder)
        names = [path.name for path in Path(folder, "runs").iterdir()]
        words = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0"]
        server = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            address = next(found for line in server.stderr for found in re.findall(r"http://\S+:\d+", line))
            browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(f"{address}/?darkMode=false#timeseries")
            page.locator("line-chart").first.wait_for()
            page.get_by_role("button", name="Settings").click()  # hide the panel
            page.wait_for_timeout(3000)
            page.screenshot(path=ROOT / "benchmarks" / "results" / "tensorboard.png")
            check_charts(page, names)
            page.goto(f"{address}/#hparams")
            check_hparams(page, names)
            browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
