"""Pages say what is true: links and files exist, command lines parse, what is made of the code is.

None of it needs mkdocs; `make docs` builds the site.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from sra2cli.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HOLDERS = ("sra2cli", "tests", "tools", "benchmarks", "docs", "recipes", "assets")


def room(path: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = room("tools/docs_pages.py")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(params=PAGES, ids=name)
def page(request) -> Path:
    return request.param


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Of its headings, and of the rooms whose docstrings it shows."""
    text = FENCED.sub("", pages.filled(page.read_text(encoding="utf-8")))
    found = set(re.findall(r"^::: (\S+)", text, re.M))
    for heading in re.findall(r"^#+ (.+)", text, re.M):
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(re.sub(r"[-\s]+", "-", words))
    return found


# Links, and files that are named.


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        led = (page.parent / file).resolve() if file else page
        assert led.exists(), target
        assert not anchor or anchor in anchors(led), target


def test_files_that_are_named_exist(page):
    """`tests/test_x.py`, and `data/store.py` of the package; NAME, OUT and * stand for any."""
    for span in SPAN.findall(prose(page)):
        wings = "|".join(sorted(p.name for p in (ROOT / "sra2cli").iterdir() if p.is_dir()))
        named = rf"\b(?:{'|'.join(HOLDERS)})/[\w./-]+\.\w+|\b(?:{wings})/[\w./-]+\.py\b"
        for path in re.findall(named, span):
            if re.search(r"[A-Z]{3}", path):
                continue
            places = (ROOT / path, ROOT / "sra2cli" / path, page.parent / path)
            assert any(place.exists() for place in places), path


def test_the_site_lists_every_page():
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = {file for part in yaml.safe_load(text)["nav"] for e in next(iter(part.values()))
              for file in e.values()}  # fmt: skip
    written = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert listed == {p for p in written if not re.match(r"ablations/[a-z]", p)}


# Command lines.


def lines(text: str) -> list[str]:
    """Command lines of a fenced block, continued ones in one piece; of a pipe the first."""
    whole = re.sub(r" \| .*", "", text.replace("\\\n", " "))
    found = re.findall(r"^\s*(?:\$ )?((?:sra2|.*-m(?: --)? sra2cli) .*)$", whole, re.M)
    return [re.sub(r"^.*-m(?: --)? sra2cli\b", "sra2", line).rstrip("'") for line in found]


def parsed(line: str, *, whole: bool) -> None:
    """Refuses a command or option that does not exist and, of a whole line, what does not parse."""
    tokens = shlex.split(line, comments=True)[1:]
    known = {option for p in typer.main.get_command(app).params for option in p.opts}
    if not tokens or tokens[0] in known | {"--help"} or tokens[0] == "COMMAND":
        return
    found = pages.commands(app)
    name = max((n for n in found if tokens[: n.count(" ") + 1] == n.split()), key=len, default=None)
    groups = {n.split()[0] for n in found if " " in n}
    if name is None and tokens in [[group] for group in groups]:
        return
    assert name, f"no such command: {line}"
    command, rest = found[name], tokens[name.count(" ") + 1 :]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    unknown = {t for t in rest if t.startswith("--")} - options
    assert not unknown, f"no option {unknown}: {line}"
    if whole and not {"…", "..."} & set(rest):
        command.make_context(name, rest)


def test_command_lines_parse(page):
    text = page.read_text(encoding="utf-8")
    for _, block in FENCED.findall(text):
        for line in lines(block):
            parsed(line, whole=True)
    for span in SPAN.findall(FENCED.sub("", text)):
        if span.startswith("sra2 "):
            parsed(span.replace("\\|", "|"), whole=False)


@pytest.mark.parametrize(
    "line",
    [
        "sra2 trian --recipe xl-sit --data a.h5",
        "sra2 train --recipe xl-sit --dat a.h5",
        "sra2 train --recipe xl-sit",
        "sra2 sample run --num many",
        "sra2 figures pca",
    ],
)
def test_wrong_lines_do_not_parse(line):
    with pytest.raises(Exception):  # noqa: B017 typer's own, of a name that moves
        parsed(line, whole=True)


# Pages made of the code.


def filled(name: str) -> str:
    return pages.filled((DOCS / name).read_text(encoding="utf-8"))


def test_every_command_is_shown_with_its_options_and_output():
    text = filled("commands.md")
    for name, command in pages.commands(app).items():
        start = text.index(f"## sra2 {name}\n")
        part = text[start : text.find("\n## ", start)]
        for option in (p for p in command.params if p.param_type_name == "option"):
            assert all(name in part for name in option.opts), option.name
        assert f"```text\n$ sra2 {name}" in part, f"tools/make_outputs.py runs no {name}"


def test_outputs_are_of_commands_that_exist():
    scripts = room("tools/make_outputs.py").COMMANDS
    assert {p.stem for p in pages.OUTPUTS.iterdir()} == set(scripts)
    for name, told in scripts.items():
        shown = lines((pages.OUTPUTS / f"{name}.txt").read_text(encoding="utf-8"))
        assert [line for line in shown if line in told] == list(told), name
        for line in told:
            parsed(line, whole=True)


def test_errors_are_those_of_the_source():
    text, found = filled("troubleshooting.md"), list(pages.errors())
    assert len(found) > 400
    assert {"1", "2"} == {code for _, code, _ in found}
    calls = sum(
        len(re.findall(r"(?:Setup|Data)Error\(f?[\"']", p.read_text()))
        for p in (ROOT / "sra2cli").rglob("*.py")
    )
    assert len(found) >= 0.95 * calls  # those without words of their own are left out
    assert "| unknown recipe '…'" in pages.html.unescape(text)
    for _, page in pages.MET.values():
        assert (DOCS / page).exists()


def test_recipes_and_losses_are_shown():
    from sra2cli.config import recipe

    text = filled("recipes.md")
    assert all(f"| `{name}` |" in text for name in recipe.names())
    for name, seeds in pages.losses().items():
        assert name in recipe.names() and "0" in seeds
        own = {"step", "denoise"} | set(recipe.load(name).align)
        assert all(set(rows) == own and 100 in rows["step"] for rows in seeds.values())
        for loss in own - {"step"}:
            at = [rows[loss][rows["step"].index(100)] for rows in seeds.values()]
            assert f"| `{name}` | {loss} | {sum(at) / len(at):.3f} (" in text


def test_toys_are_those_of_the_tests():
    text, source = filled("extending.md"), (ROOT / "tests" / "test_extending.py").read_text()
    blocks = [block for language, block in FENCED.findall(text) if language == "python"]
    assert len(blocks) >= 6 and all(part in source for b in blocks for part in b.split("\n\n\n"))


def test_no_line_is_left_unfilled(page):
    assert "{{ " not in pages.filled(page.read_text(encoding="utf-8"))


def shape_of(output: str) -> list[str]:
    """Its lines without numbers, digests, widths and progress, which differ from run to run."""
    kept = [line for line in output.splitlines() if not re.search(r"\d/s|^\W*$", line)]
    plain = [re.sub(r"\b[0-9a-f]{8,}\b|\d[\d.,]*(e-\d+)?", "0", line) for line in kept]
    return [" ".join(line.split()) for line in plain]


@pytest.mark.slow
def test_outputs_are_what_commands_print(tmp_path):
    script = room("tools/make_outputs.py")
    subprocess.run([sys.executable, script.__file__, "--out", str(tmp_path)], check=True)
    for name in script.COMMANDS.keys() - {"doctor", "suggest"}:  # they are of the machine
        new, shown = ((folder / f"{name}.txt").read_text() for folder in (tmp_path, pages.OUTPUTS))
        assert shape_of(new) == shape_of(shown), f"run tools/make_outputs.py {name}"


@pytest.mark.slow
def test_losses_are_what_trainings_give(run_sra2, tmp_path):
    """The first 100 steps, to 3%: other processors round otherwise."""
    from sra2cli.data.digits import write_folder

    write_folder(tmp_path / "digits")
    run_sra2("extract", "digits", "--out", "a.h5", "--vae", "digits", "--resolution", 32)
    sets = ["--set", "train.steps=100", "--set", "log.preview_every=0", "--json"]
    for name in ("digits-sit", "digits-sra2"):
        done = run_sra2("train", "--recipe", name, "--data", "a.h5", "--device", "cpu", *sets)
        assert done.returncode == 0, done.stderr
        known, last = pages.losses()[name]["0"], json.loads(done.stdout)["last"]
        for loss in known.keys() - {"step"}:
            told = known[loss][known["step"].index(100)]
            assert last[loss] == pytest.approx(told, rel=0.03), (name, loss)


@pytest.mark.slow
def test_the_site_is_built_and_fetches_nothing(tmp_path):
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in tmp_path.rglob("*.html"):
        fetched = r"<(?:script|img|iframe)[^>]*src=.?https?:|<link[^>]*href=.?https?:"
        assert not re.search(fetched, file.read_text(encoding="utf-8")), file


def test_rooms_of_the_api_exist():
    rooms = re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(), re.M)
    assert len(rooms) > 8
    for dotted in rooms:
        assert (ROOT / (dotted.replace(".", "/") + ".py")).exists(), dotted
