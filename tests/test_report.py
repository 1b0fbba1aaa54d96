"""sra2 report: what stands in the page, what is left out of it, and the page in a browser."""

import json
import re
import shutil
import sys
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, pictures
from conftest import finished, one_line
from PIL import Image

from sra2cli.reports.curves import thinned
from sra2cli.reports.report import report

HOSTILE = "<img src=x onerror=document.title='taken'>"
TINY = ["model.depth=1", "model.width=24", "train.steps=6", "train.batch=8", "log.every=2"]
TINY += ["log.save_every=3", "log.keep_every=3", "log.preview_every=3", "log.eval_every=3"]
TINY += ["log.eval_num=20", "log.eval_steps=2", "log.eval_metrics=fd-digits"]
TINY += ["log.tensorboard=false"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits_store) -> list[Path]:
    """SiT and SiT + SRA 2 on a few digits, with previews and evaluations.

    The folder of the second has a name that would be run, were it not escaped.
    """
    root = tmp_path_factory.mktemp("report")
    made = [root / "plain", root / HOSTILE]
    for out, recipe, more in zip(
        made, ("digits-sit", "digits-sra2"), ([], ["align.sra2.depth=1"]), strict=True
    ):
        sets = [part for setting in [*TINY, *more] for part in ("--set", setting)]
        sra2("train", "--recipe", recipe, "--data", digits_store, "--out", out, *sets)
        drawn = ["--preset", "digits", "--steps", "2", "--num", "20"]
        sra2("eval", out, "--step", "3,6", "--cfg", "1,1.5", *drawn)
    return made


def sra2(*arguments: object) -> None:
    command = [sys.executable, "-m", "sra2cli", *map(str, arguments), "--device", "cpu"]
    assert finished(command).returncode == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def copied(run: Path, to: Path) -> Path:
    """A run folder that may be spoilt."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints")))


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def test_the_page_says_what_the_folders_say(run_sra2, runs, tmp_path):
    done = run_sra2("report", *runs, "--json")
    said = json.loads(done.stdout)
    assert said["report"] == "report.html" and said["bytes"] == Path("report.html").stat().st_size
    assert said["evaluations"] == 2 * (2 + 4) and said["rows"] == 2 * 4 and said["left_out"] == []
    page = Path("report.html").read_text()
    text = unescape(re.sub(r"<wbr>|<[^>]*>", "", page.split('<script type="application')[0]))
    differ = text.split("Settings that differ")[1].split("All settings")[0]
    assert "align.sra2.depth" in differ and "train.lr" not in differ  # the same in both
    for run in runs:
        for file in [f for f in run.glob("evals/*.json") if not f.name.startswith("point")]:
            result = json.loads(file.read_text())
            assert f"{result['fd-digits']:.4g}" in text and result["environment"]["command"] in text
    data = data_of(Path("report.html"))
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").open()]
    logged = [row for row in rows if "event" not in row]
    first = data["curves"][0]
    assert first["x"] == [row["step"] for row in logged]
    assert first["y"]["denoise"][0] == pytest.approx([r["denoise"] for r in logged], rel=1e-4)
    (trained,) = [g for g in data["evaluations"]["steps"] if "by the training" in g["label"]]
    judged = [row["fd-digits"] for row in rows if row.get("event") == "eval"]
    assert trained["charts"][0]["lines"][0]["y"] == pytest.approx(judged, rel=1e-4)
    guided = data["evaluations"]["guidance"][0]
    assert guided["label"].startswith("6 steps") and guided["charts"][0]["lines"][1]["x"] == [
        1,
        1.5,
    ]


def test_grids_of_one_noise_stand_in_one_series(run_sra2, runs):
    run_sra2("report", *runs)
    series = data_of(Path("report.html"))["series"]
    assert [s["label"].split(":")[0] for s in series] == [
        "previews of the training",
        *["drawn to be judged"] * 2,
    ]
    for one in series:
        at = [(frame["run"], frame["step"]) for frame in one["frames"]]
        assert one["steps"] == [3, 6] and at == [(0, 3), (0, 6), (1, 3), (1, 6)]
        assert len({frame["src"] for frame in one["frames"]}) == 4


def test_nothing_outside_the_page_is_named_and_nothing_in_it_is_run(run_sra2, runs):
    run_sra2("report", *runs)
    page = Path("report.html").read_text()
    before, after = page.split('<script type="application/json" id="data">')
    assert HOSTILE not in page and "&lt;img src=x" in before
    assert "<" not in after.split("</script>")[0]  # of the data
    named = Links()
    named.feed(page)
    assert len(named.links) > 6 and all(link.startswith(("#", "data:")) for link in named.links)


class Links(HTMLParser):
    """What the elements of a page point at."""

    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_a_run_that_has_just_begun_and_one_that_is_damaged(run_sra2, runs, tmp_path):
    begun, spoilt = copied(runs[0], tmp_path / "begun"), copied(runs[0], tmp_path / "spoilt")
    for room in ("previews", "evals"):
        shutil.rmtree(begun / room)
    (begun / "metrics.jsonl").unlink()
    lines = (spoilt / "metrics.jsonl").read_text().splitlines()
    lines[0] = '{"step": 2, "loss": NaN, "denoise": Infinity, "images_per_second": 0.0}'
    lines[1] = '{"step": 2, "loss": }'
    (spoilt / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']))  # still written
    (spoilt / "previews" / "step-00000003.png").write_bytes(b"no picture")
    next(spoilt.glob("evals/step*.json")).write_text('{"metric": "fd-digits"}')
    alone = run_sra2("report", begun, "--out", "begun.html", "--json")
    assert alone.returncode == 0 and json.loads(alone.stdout)["rows"] == 0
    page = Path("begun.html").read_text()
    assert "No rows of metrics yet" in page and "No grids of samples" in page
    both = run_sra2("report", begun, spoilt, "--json")
    left_out = json.loads(both.stdout)["left_out"]
    assert [name for name in ("line 2", "no result", "step-00000003.png") for line in left_out
            if name in line] == ["line 2", "no result", "step-00000003.png"]  # fmt: skip
    assert both.stderr.count("warning: left out") == 3
    curve = data_of(Path("report.html"))["curves"][1]
    assert curve["y"]["denoise"][0][0] is None  # what is not a number is a gap


def test_refuses(run_sra2, runs, tmp_path):
    assert "is not a run folder" in one_line(run_sra2("report", tmp_path), 2)
    assert "is given twice" in one_line(run_sra2("report", runs[0], f"{runs[0]}/."), 2)
    assert "name a file" in one_line(run_sra2("report", runs[0], "--out", tmp_path), 2)


def test_thinned_curves_keep_means_and_extremes():
    rows = [{"step": k + 1, "denoise": float(k), "mfu": 0.5} for k in range(1001)]
    rows[500]["denoise"] = float("nan")
    found = thinned(rows, 100)
    means, least, largest = found.values["denoise"]
    assert found.merged == 11 and len(found.steps) == 91 and found.steps[-1] == 1001
    assert (means[0], least[0], largest[0]) == (5, 0, 10) and found.steps[0] == 11
    assert means[45] == pytest.approx((sum(range(495, 506)) - 500) / 10, rel=1e-4)
    assert found.values["mfu"][0][0] == 50  # per cent


def test_in_a_browser(browser, runs, tmp_path):
    report(runs, tmp_path / "report.html")
    browser.screen(1280, 1000)
    browser.open(tmp_path / "report.html")
    run = browser.run
    grids = "[...document.querySelectorAll('#grids img')].map((image) => image.src)"
    assert len(run(grids)) == 2  # both runs, side by side
    first = run(grids)
    run("document.getElementById('step').focus()")
    browser.key("ArrowLeft", 37)
    assert run("document.getElementById('at').textContent") == "3"
    assert not set(first) & set(run(grids))
    run("document.querySelector('[name=shown][value=\"1\"]').click()")
    (alone,) = run(grids)
    by_step = data_of(tmp_path / "report.html")["series"][0]["frames"]
    assert alone == next(f["src"] for f in by_step if (f["run"], f["step"]) == (1, 3))
    assert run("document.querySelector('#grids figcaption').textContent").startswith(HOSTILE)
    assert run("document.querySelector('#grids img').naturalWidth") > 100  # it is decoded
    drawn = "document.querySelectorAll('[data-curve=denoise] path.curve').length"
    assert run(drawn) == 2
    run("document.querySelector('button.run').click()")
    assert run(drawn) == 1  # a run can be taken out of the charts
    run("document.querySelector('button.run').click()")
    run("document.querySelector('[data-curve=denoise] svg').focus()")
    browser.key("ArrowLeft", 37)
    tip = run("document.querySelector('[data-curve=denoise] .tip').textContent")
    assert tip.startswith("step 6plain ") and HOSTILE in tip
    run("document.getElementById('logx').click(), document.getElementById('logy').click()")
    assert run(drawn) == 2
    colour = "getComputedStyle(document.body).backgroundColor"
    light = run(colour)
    run(
        "(theme => (theme.value = 'dark', theme.dispatchEvent(new Event('change'))))"
        "(document.getElementById('theme'))"
    )
    assert run(colour) != light
    assert browser.fetched == [] and browser.errors == []
    assert run("document.title").endswith(": sra2 report")


def test_nothing_is_cut_off_or_overlaps(browser, runs, tmp_path):
    report(runs, tmp_path / "report.html")
    for width, phone in ((1280, False), (360, True)):
        browser.screen(width, 800, phone=phone)
        browser.open(tmp_path / "report.html")
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run(COLLISIONS) == []
    sizes = [file.stat().st_size for file in pictures(browser, tmp_path / "report.html", tmp_path)]
    assert len(sizes) == 3 and all(3000 < size < 300_000 for size in sizes)


COLLISIONS = """
[...document.querySelectorAll(".chart svg")].flatMap((chart) => {
  const all = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
  const out = texts.filter(([, b]) => b.left < all.left - 1 || b.right > all.right + 1 || b.bottom > all.bottom + 1);
  const over = texts.filter(([, a], i) => texts.some(([, b], j) => i < j && a.left < b.right && b.left < a.right
    && a.top + 2 < b.bottom && b.top + 2 < a.bottom));
  return [...out, ...over].map(([text]) => text);
})
"""  # noqa: E501


@pytest.mark.slow
def test_long_runs_are_quick_and_many_are_small(browser, runs, tmp_path):
    """Two runs of 100,000 rows each; and ten with grids of 512 pixels, ten steps each."""
    long = [copied(runs[0], tmp_path / name) for name in ("a", "b")]
    rng = np.random.default_rng(0)
    names = ("loss", "denoise", "sra2", "grad_norm", "images_per_second", "memory_gb", "mfu")
    for run in long:
        rows = [dict(zip(names, row, strict=True)) for row in rng.random((100_000, 7)).tolist()]
        text = "".join(json.dumps({"step": k + 1, **row}) + "\n" for k, row in enumerate(rows))
        (run / "metrics.jsonl").write_text(text)
    begun = time.process_time()  # of one thread: others may be at work here
    assert report(long, tmp_path / "long.html")["rows"] == 200_000
    assert time.process_time() - begun < 10
    browser.open(tmp_path / "long.html")
    begun = browser.seconds
    browser.open(tmp_path / "long.html")
    assert 0 < browser.seconds - begun < 2
    ten = [copied(runs[0], tmp_path / f"run-{k}") for k in range(10)]
    for k, run in enumerate(ten):
        for step in range(10):
            noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
            grid = Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC)
            grid.save(run / "previews" / f"step-{1000 * step + k:08d}.png")
    found = report(ten, tmp_path / "ten.html")
    assert found["bytes"] == (tmp_path / "ten.html").stat().st_size < 5_000_000
    assert found["grids"] > 50
