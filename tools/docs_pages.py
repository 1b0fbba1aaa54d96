"""What pages of docs/ say of the code, made of the code: a hook of mkdocs (mkdocs.yml).

A line `{{ commands }}` of a page becomes every command with its options and its output,
`{{ errors }}` every error by the command that raises it, `{{ recipes }}` the packaged recipes,
`{{ losses }}` what losses to expect, and `{{ code FILE NAME ... }}` what is called so in a Python
file. Nothing is written into docs/. Links out of docs/, as to a benchmark's result, lead to copies.
"""

import ast
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTPUTS, LOSSES = DOCS / "outputs", ROOT / "benchmarks" / "results" / "losses.json"

# Commands in the order in which they are met; then the others.
FIRST = ("demo", "doctor", "suggest", "vae", "extract", "recipes", "train", "sample", "eval")
STEPS = (100, 1000, 2400, 4800)  # whose losses are shown
LINE = re.compile(r"^\{\{ (\w+)(.*) \}\}$", re.M)
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)(#[^)\s]*)?(\))")
# Where the errors of a wing are met: the commands, and the page that says more.
EVERY = ("every command", "commands.md")
MET: dict[str, tuple[str, str]] = {
    "cli": EVERY,
    "core": EVERY,
    "config": ("`recipes`, `train`, `ablate`: recipes", "recipes.md"),
    "data/sources": ("`extract`, `train --images`, `eval`: images and captions", "data.md"),
    "extraction": ("`extract`", "data.md"),
    "data": ("`extract`, `train`, `eval`: stores, prompts, statistics", "store.md"),
    "encoders": ("`--vae`, `--encoder`, `--text-encoder`: frozen networks", "data.md"),
    "suggest": ("`suggest`", "own-images.md"),
    "first_stages": ("`vae`", "own-images.md"),
    "training": ("`train`", "launching.md"),
    "align": ("`train`: methods", "methods.md"),
    "runs": ("`train`, `sample`, `eval`, `figures`: run folders", "launching.md"),
    "models": ("`sample`, `eval`, `train --init`: weights", "decisions.md"),
    "sampling": ("`sample`", "commands.md"),
    "diffusion": ("`sample`: guidance", "self-guidance.md"),
    "evaluation": ("`eval`", "eval.md"),
    "tables": ("`ablate` and `cost`", "tables.md"),
    "figures": ("`figures`", "tables.md"),
    "reports": ("`report`", "report.md"),
    "publish": ("`export`", "hub.md"),
    "doctor": ("`doctor`", "machine.md"),
    "demo": ("`demo`", "emoji.md"),
}
OF_COMMAND = {  # files of cli/ that are not of every command
    "extract": "extraction",
    "vae": "first_stages",
    "train": "training",
    "runs": "runs",
    "sample": "sampling",
    "evaluate": "evaluation",
    "figures": "figures",
    "ablate": "tables",
    "cost": "tables",
    "suggest": "suggest",
    "report": "reports",
    "export": "publish",
}
EXIT = {"SetupError": "2", "DataError": "1", "UserError": "1", "ValueError": "2"}


# Every command.


def commands(app: Any = None) -> dict[str, Any]:
    """{name as it is typed: click's command}, groups opened."""
    import typer

    if app is None:
        from sra2cli.cli import app

    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        for sub, one in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = one
    return {name: found[name] for name in [*FIRST, *sorted(found.keys() - FIRST)]}


def help_of(name: str, command: Any) -> str:
    """Its words and its options, a table a panel."""
    context = command.make_context(f"sra2 {name}", [], resilient_parsing=True)
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        usage, said = parameter.get_help_record(context)
        panel = "Arguments" if parameter.param_type_name == "argument" else "Options"
        rows = panels.setdefault(getattr(parameter, "rich_help_panel", None) or panel, [])
        rows.append(f"| <code>{plain(usage)}</code> | {plain(said)} |")
    tables = (f"| {panel} | |\n| --- | --- |\n" + "\n".join(panels[panel]) for panel in panels)
    return "\n\n".join([f"## sra2 {name}", command.help, *tables])


def commands_text() -> str:
    parts = []
    for name, command in commands().items():
        output = OUTPUTS / f"{name.replace(' ', '-')}.txt"
        parts.append(help_of(name, command))
        if output.exists():
            parts.append(f"As it came out:\n\n```text\n{output.read_text(encoding='utf-8')}```")
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Words that Markdown leaves as they are, in one line; what stands in backticks is code."""
    shown = html.escape(" ".join(text.split()), quote=False)
    shown = re.sub(r"[|\[\]*_\\{}~]", lambda found: f"&#{ord(found[0])};", shown)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)


# Every error.


def errors() -> Iterator[tuple[str, str, str]]:
    """(wing, exit code, text with … for what only a run knows) of each error in the source."""
    package = ROOT / "sra2cli"
    for file in sorted(package.rglob("*.py")):
        wing = wing_of(file.relative_to(package))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                not isinstance(node, ast.Call)
                or not isinstance(node.func, ast.Name)
                or not node.args
            ):
                continue
            kind = node.func.id
            if kind not in EXIT or (kind == "ValueError" and wing != "config"):
                continue
            text = " ".join(text_of(node.args[0]).split())
            if len(re.findall("[a-z]", text)) > 8:  # else it is made elsewhere, or of others' words
                yield wing, EXIT[kind], text


def wing_of(file: Path) -> str:
    """The wing whose errors those of a file stand with."""
    if file.parts[0] == "cli":
        return OF_COMMAND.get(file.stem, "cli")
    return "data/sources" if file.parts[:2] == ("data", "sources") else file.parts[0]


def text_of(node: ast.expr) -> str:
    """What an expression says, as far as the source tells."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body):
            return text_of(body)
        case ast.FormattedValue(value=ast.IfExp(body=ast.Constant(value=str(text)))):
            return text
        case _:
            return "…"


def errors_text() -> str:
    """A table for each place where errors are met, with its page."""
    places: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for wing, code, text in errors():
        place = MET.get(wing, (f"`{wing}`", "commands.md"))
        places.setdefault(place, set()).add((text, code))
    order = [place for place in dict.fromkeys([*MET.values(), *places]) if place in places]
    tables = []
    for words, page in order:
        rows = sorted(places[words, page], key=lambda row: row[0].lstrip("…-`'\"/ ").lower())
        lines = [f"| {plain(text)} | {code} |" for text, code in rows]
        title = words[0].upper() + words[1:]
        table = "\n".join(["| error | exit code |", "| --- | ---: |", *lines])
        tables.append(f"## {title}\n\nMore: [{page}]({page})\n\n{table}")
    return "\n\n".join(tables)


# Recipes, and losses to expect.


def recipes_text() -> str:
    """A row a recipe: its first line, and whether its losses are known."""
    from sra2cli.config import recipe

    rows = [
        f"| `{name}` | {plain(recipe.headline(name))} | {'yes' if name in losses() else 'no'} |"
        for name in recipe.names()
    ]
    return "\n".join(["| recipe | | trained here |", "| --- | --- | --- |", *rows])


def losses() -> dict[str, dict[str, dict[str, list[float]]]]:
    """{recipe: {seed: {"step": [...], loss: [...]}}}, as benchmarks/losses.py wrote them."""
    found = json.loads(LOSSES.read_text(encoding="utf-8"))["recipes"]
    return {name: found[name] for name in sorted(found)}


def losses_text() -> str:
    """A row a recipe and loss, a column a step: the mean over seeds, and the range."""
    lines = ["| recipe | loss | " + " | ".join(f"step {step:,}" for step in STEPS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(STEPS))
    for name, seeds in losses().items():
        for loss in [key for key in seeds["0"] if key != "step"]:
            cells = [
                spread(
                    [s[loss][s["step"].index(step)] for s in seeds.values() if step in s["step"]]
                )
                for step in STEPS
            ]
            lines.append(f"| `{name}` | {loss} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Their mean, and the least and largest."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


# Code.


def code_text(file: str, *names: str) -> str:
    """Top-level classes, functions and assignments of a file, as they stand there."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        name = getattr(node, "name", None)
        if name is None and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return "```python\n" + "\n\n\n".join(found[name] for name in names) + "\n```"


MAKERS: dict[str, Callable[..., str]] = {
    "commands": commands_text,
    "errors": errors_text,
    "recipes": recipes_text,
    "losses": losses_text,
    "code": code_text,
}


def filled(markdown: str) -> str:
    """A page with what its `{{ … }}` lines ask for, and tables as Python's Markdown reads them:
    bars in code stand for themselves there."""
    markdown = re.sub(
        r"^\|.*$",
        lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]),
        markdown,
        flags=re.M,
    )
    return LINE.sub(lambda line: MAKERS[line[1]](*line[2].split()), markdown)


# What mkdocs calls.


def outside(link: str, page: str) -> str | None:
    """The file of the repository outside docs/ that a page's link leads to."""
    target = (DOCS / page).parent.joinpath(link).resolve()
    if target.is_relative_to(DOCS) or not target.is_file() or not target.is_relative_to(ROOT):
        return None
    return target.relative_to(ROOT).as_posix()


def on_files(files: Any, config: Any) -> Any:
    """Copies of the files outside docs/ that pages link to."""
    from mkdocs.structure.files import File

    linked = {
        outside(link[2], file.src_uri)
        for file in list(files.documentation_pages())
        for link in LINK.finditer(file.content_string)
    }
    for name in sorted(linked - {None}):
        files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    def led(link: re.Match[str]) -> str:
        name = outside(link[2], page.file.src_uri)
        up = "../" * page.file.src_uri.count("/")
        return link[0] if name is None else f"{link[1]}{up}repository/{name}{link[4]}"

    return LINK.sub(led, filled(markdown))
