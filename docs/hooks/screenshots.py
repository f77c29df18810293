"""The pictures of pages: `python docs/hooks/screenshots.py [NAME ...]` makes docs/images/NAME.png.

Each is the first screen of a page that a command of the site writes, from real runs in a folder
that is thrown away. Needs Chromium and its driver; takes some minutes on two cores.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 900
DRAWN = """document.querySelector('.main-svg')
  && [...document.querySelectorAll('.js-plotly-plot')].every(chart =>
    chart.querySelector('.main-svg') && chart.scrollWidth <= chart.parentElement.clientWidth)"""

GHOSTS = "train --norm.kind=ghost --norm.ghost_size=32 --batch.micro=32 --schedule.length=8ep"
NOISE = "'--probes=[{name: noise, every: 1st, source: passes, half_life: 2ep}]'"
PAGES = {
    "report": [
        f"{GHOSTS} {NOISE} --batch.size=128 --run.dir=small",
        f"{GHOSTS} {NOISE} --batch.size=512 --run.dir=large",
        "report small large -o page.html",
    ],
    "plan": [
        "plan --nodes 64 --per-node 8 --model resnet50 --device h100 --link ib-ndr --cards 8"
        " --batch-per-rank 128 --plot page.html"
    ],
    "scaling": [
        "bench scaling --ranks 1 2 --batches 8 32 --models cifar_resnet20 --image-size 32"
        " --seconds 2 --html page.html"
    ],
    "study": [
        "study steps-to-target --recipe quadratic '--target={loss: 0.3}' --evaluate.every=64sa"
        " --batches=[4,16,32,64] --scaling=sqrt --rates=[1] --seeds=3 --folder asked"
        " --html page.html"
    ],
}
"""The commands of each page, which the last of them writes."""


def made(name: str, folder: Path) -> Path:
    """Run the commands of a page in ``folder`` and return its file."""
    for command in PAGES[name]:
        print("largebatch", command, flush=True)
        words = [sys.executable, "-m", "largebatch", *shlex.split(command)]
        subprocess.run(words, cwd=folder, check=True)
    return folder / "page.html"


def photograph(page: Path, picture: Path) -> None:
    """Save the first screen of ``page``, in the light style, once its charts are drawn."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise SystemExit("chromium and chromedriver are needed: install both")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        drawn = f"return {DRAWN}"
        WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn))
        picture.write_bytes(browser.get_screenshot_as_png())
    finally:
        browser.quit()


def main() -> None:
    for name in sys.argv[1:] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            photograph(made(name, Path(folder)), IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
