"""Checkpoints by hub name, out of a hub's cache and out of a hub on this machine; sra2 export."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import yaml
from conftest import one_line
from hub_stub import TOKEN, serving
from safetensors import safe_open

from sra2cli import load_model
from sra2cli.config import recipe
from sra2cli.core import hub
from sra2cli.core.errors import SetupError
from sra2cli.runs.naming import split_step
from sra2cli.runs.run import Run
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent
FIRST, SECOND = "a" * 40, "b" * 40
DRAW = ["--num", 3, "--steps", 2, "--labels", "balanced"]
SMALL = ["train.batch=8", "log.tensorboard=false", "log.preview_every=0"]


@pytest.fixture(scope="module")
def run(digits_store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings = ["train.steps=4", "log.save_every=2", "log.keep_every=2", *SMALL]
    train(recipe.load("digits-sra2", settings), digits_store, out)
    return out


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """The run's export."""
    from sra2cli.publish.export import export

    out = tmp_path_factory.mktemp("export") / "folder"
    export(run, out)
    return out


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and a hub that does not answer."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


def point_at(url: str, monkeypatch) -> None:
    """What HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def put(cache: Path, file: Path, commit: str, *, name: str = hub.WEIGHTS, ref: str = "main"):
    """A file of org/net in the cache, as huggingface_hub lays it out."""
    home = cache / "models--org--net"
    blob, pointer = home / "blobs" / f"{commit[:6]}-{file.name}", home / "snapshots" / commit / name
    for path in (blob, pointer, home / "refs" / ref):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, blob)
    pointer.symlink_to(blob)
    (home / "refs" / ref).write_text(commit)


def images(folder: Path) -> list[bytes]:
    return [(folder / f"{i:06d}.png").read_bytes() for i in range(3)]


def test_names():
    for text, parts in {
        "hf:org/net": ("org/net", "model.safetensors", "main"),
        "hf://org/net": ("org/net", "model.safetensors", "main"),
        "hf:org/n.e-t_1@v1": ("org/n.e-t_1", "model.safetensors", "v1"),
        "hf:org/net/a/b.pt": ("org/net", "a/b.pt", "main"),
        "hf:org/net/b.pt@refs/pr/3": ("org/net", "b.pt", "refs/pr/3"),
    }.items():
        found = hub.parsed(Path(text))
        assert (found.repository, found.file, found.revision) == parts
        assert hub.parsed(str(found)) == found
    for text in ("hf:", "hf:net", "hf:org/net@", "hf:org net/x"):
        with pytest.raises(SetupError, match="a hub name is hf:ORG/NAME"):
            hub.parsed(text)
    assert split_step(Path("hf:org/net@5000")) == (Path("hf:org/net@5000"), None)  # a revision
    assert split_step(Path("runs/a@5000")) == (Path("runs/a"), 5000)


def test_a_hub_name_draws_as_its_run_and_is_recorded_with_its_commit(run_sra2, run, folder, cache):
    put(cache, folder / hub.WEIGHTS, FIRST)
    put(cache, folder / hub.WEIGHTS, SECOND, name="nets/b.safetensors", ref="v2")
    assert run_sra2("sample", run, *DRAW, "--out", "a").returncode == 0
    for name, out, commit in [
        ("hf:org/net", "b", FIRST),
        (f"hf:org/net@{FIRST}", "c", FIRST),
        ("hf:org/net/nets/b.safetensors@v2", "d", SECOND),
    ]:
        done = run_sra2("sample", name, *DRAW, "--out", out, "--offline")
        assert done.returncode == 0, done.stderr
        assert images(Path(out)) == images(Path("a"))
        record = json.loads(Path(out, "samples.json").read_text())
        assert record["source"].startswith("hf:org/net/") and record["source"].endswith(
            f"@{commit}"
        )
        assert (record["step"], record["method"], record["weights"]) == (4, "sra2", "ema")
    for draw in (["sample", *DRAW], ["eval", "--num", 3, "--steps", 2, "--labels", "balanced"]):
        done = run_sra2(draw[0], "hf:org/net", *draw[1:], "--offline", "--json")
        assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]  # judged by what fits: the file says the digits
    assert row["metric"] == "fd-digits" and row["samples"].endswith(f"{hub.WEIGHTS}@{FIRST}")
    assert Path(row["file"]).parent == Path("net-samples-evals")  # and nothing in the cache
    assert images(Path("net-samples") / "step0000004-em2-cfg1-balanced-n3-seed0")
    assert "--step chooses a checkpoint of a run" in one_line(
        run_sra2("sample", "hf:org/net", "--step", 4, "--offline"), 2
    )


def test_a_sweep_sees_one_commit(run, folder, cache):
    put(cache, folder / hub.WEIGHTS, FIRST)
    pinned = hub.pinned(Path("hf:org/net"), offline=True)
    put(cache, folder / hub.WEIGHTS, SECOND)
    assert str(pinned) == f"hf:org/net/model.safetensors@{FIRST}"
    assert hub.pinned(pinned) == pinned and FIRST in str(hub.local(pinned))
    assert str(hub.pinned(Path("hf:org/net"), offline=True)).endswith(SECOND)


def test_wherever_a_checkpoint_is_taken(run_sra2, run, folder, cache, digits_store):
    """--init, a frozen teacher, a picture of several, figures, Table 3, and from Python."""
    put(cache, folder / hub.WEIGHTS, FIRST)
    sets = [part for setting in ("train.steps=1", *SMALL) for part in ("--set", setting)]
    begin = ["train", "--data", digits_store, *sets, "--offline"]
    done = run_sra2(*begin, "--recipe", "digits-sit", "--init", "hf:org/net", "--out", "begun")
    assert done.returncode == 0, done.stderr
    pinned = f"hf:org/net/{hub.WEIGHTS}@{FIRST}"
    assert Run(Path("begun")).about["init"]["path"] == pinned
    method = "align.self-transcendence"
    taught = [f"{method}.teacher=hf:org/net", f"{method}.depth=1", f"{method}.teacher_depth=3"]
    taught = [part for setting in taught for part in ("--set", setting)]
    done = run_sra2(*begin, "--recipe", "digits-sit", *taught, "--out", "taught")
    assert done.returncode == 0, done.stderr
    assert Run(Path("taught")).about["teacher"]["path"] == pinned
    done = run_sra2("sample", run, "hf:org/net", "--grid", *DRAW, "--out", "both", "--offline")
    assert done.returncode == 0, done.stderr
    assert images(Path("both/0-digits")) == images(Path("both/1-net"))
    look = ["figures", "probe", "hf:org/net", "--data", digits_store, "--num", 12, "--times", "0.5"]
    assert run_sra2(*look, "--blocks", 1, "--offline").returncode == 0
    assert Path("net-probe.png").exists()
    table = ["ablate", "systems", run, "hf:org/net", "--num", 4, "--steps", 2, "--offline"]
    planned = json.loads(run_sra2(*table, "--dry-run", "--json").stdout)
    assert [cell["cell"] for cell in planned["cells"]] == ["digits", "net"]
    assert load_model("hf:org/net").shape.depth == 4


def test_what_the_hub_does_not_have_is_one_line_with_its_fix(run_sra2, folder, cache, monkeypatch):
    sample = ["sample", *DRAW]
    assert "a hub name is hf:ORG/NAME" in one_line(run_sra2(*sample, "hf:net"), 2)
    line = one_line(run_sra2(*sample, "hf:org/net", "--offline"), 2)
    assert "hf:org/net/model.safetensors@main is not in the hub's cache" in line
    assert "without --offline it is downloaded" in line
    line = one_line(run_sra2(*sample, "hf:org/net"), 2)
    assert "http://127.0.0.1:9 does not answer" in line and "check the connection" in line
    with serving() as there:
        point_at(there.url, monkeypatch)
        there.add("org/net", {"last.pt": b"x", "README.md": b"x"})
        for name, message in {
            "hf:org/net": "org/net has no model.safetensors at main (there are: last.pt): name a",
            "hf:org/net/last.pt@v2": "no revision 'v2' (there are: main)",
            "hf:org/other": "no repository 'org/other' that you may read: check the name",
            "hf:org/net/last.pt": "damaged or not a checkpoint",
        }.items():
            done = run_sra2(*sample, name)
            assert message in one_line(done, 1 if "damaged" in message else 2)


def test_a_missing_path_names_the_nearest(run_sra2, run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "digits-sra2")
    (tmp_path / "last.pt").touch()
    for name, nearest in {
        "runs/digit-sra2": "did you mean runs/digits-sra2?",
        "digits-sra2@4": "did you mean runs/digits-sra2?",
        "las.pt": "did you mean last.pt?",
        "org/net": "if it is a repository of the hub: hf:org/net",
    }.items():
        assert nearest in one_line(run_sra2("sample", name), 2)
    for name in ("runs/digit-sra2", "digits-sra2@4"):
        assert "did you mean runs/digits-sra2?" in one_line(run_sra2("eval", name), 2)
    for name in ("nothing", "runs/other"):
        assert one_line(run_sra2("sample", name), 2).endswith("no such folder")


def test_an_export_is_the_run_and_says_what_it_is(run_sra2, run, tmp_path):
    judge = ["eval", run, "--num", 4, "--steps", 2, "--cfg", 1.5, "--interval", "0:0.7"]
    assert run_sra2(*judge).returncode == 0
    assert run_sra2(*judge, "--step", 2).returncode == 0  # of another checkpoint
    result = next((run / "evals").glob("step0000004*.json"))
    planned = json.loads(run_sra2("export", run, "--to", "f", "--dry-run", "--json").stdout)
    assert planned["evaluations"] == 1 and not (tmp_path / "f").exists()
    done = run_sra2("export", run, "--to", "f", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == sorted(planned["files"])
    with (
        safe_open("f/model.safetensors", "pt") as stored,
        safe_open(run / "checkpoints/step-00000004/ema.safetensors", "pt") as own,
    ):
        assert sorted(stored.keys()) == sorted(own.keys())
        assert all(stored.get_tensor(k).equal(own.get_tensor(k)) for k in own.keys())  # noqa: SIM118
    for source, out in [(run, "a"), ("f", "b"), ("f/model.safetensors", "c")]:
        assert run_sra2("sample", source, *DRAW, "--out", out).returncode == 0
    assert images(Path("a")) == images(Path("b")) == images(Path("c"))
    config = json.loads(Path("f/config.json").read_text())
    assert config["kind"] == "sit" and config["run"]["step"] == 4
    card = Path("f/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sra2" and "license" not in front
    value = json.loads(result.read_text())["fd-digits"]
    for said in (
        "# digits-sra2, 4 steps",
        f"fd-digits ↓ {value:.4g}",
        "Euler-Maruyama, 2 steps, guidance 1.5, guided for t in 0, 0.7",
        "96 of 32 px, 10 classes",
        "4 of 4, batch 8",
        Run(run).store_info.vae_fingerprint,
    ):
        assert said in card, said
    assert card.count("fd-digits ↓") == 1 and str(run.parent) not in card
    assert "sra2 sample FOLDER" in card and "license: say it here" in card


def test_an_export_is_kept_and_another_refused(run_sra2, run, tmp_path):
    assert run_sra2("export", f"{run}@2", "--to", "f").returncode == 0
    assert json.loads(Path("f/config.json").read_text())["run"]["step"] == 2
    Path("f/README.md").write_text("license: mine")
    before = Path("f/model.safetensors").stat().st_mtime_ns
    again = json.loads(run_sra2("export", f"{run}@2", "--to", "f", "--json").stdout)
    assert again["there"] and Path("f/README.md").read_text() == "license: mine"
    assert Path("f/model.safetensors").stat().st_mtime_ns == before
    refused = "f holds other files, or another export"
    assert refused in one_line(run_sra2("export", run, "--to", "f"), 2)
    Path("f/config.json").unlink()  # as a kill leaves it
    assert run_sra2("export", run, "--to", "f").returncode == 0
    assert "f is no run: export takes RUN" in one_line(run_sra2("export", "f", "--to", "g"), 2)
    assert "no checkpoint of step 3" in one_line(run_sra2("export", f"{run}@3", "--to", "g"), 2)
    line = one_line(run_sra2("export", run, "--to", "g", "--push", "net"), 2)
    assert "'net' is no name of a repository: ORG/NAME" in line and not Path("g").exists()
    line = one_line(run_sra2("export", run, "--to", "g", "--private"), 2)
    assert "--private is of what --push makes" in line
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    assert "mine holds other files" in one_line(run_sra2("export", run, "--to", "mine"), 2)


def test_what_lies_on_this_machine_alone_is_said(run_sra2, run, tmp_path):
    about = json.loads((run / "run.json").read_text())
    about["store"]["info"]["vae"] = "vae"
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "run.json").write_text(json.dumps(about))
    (tmp_path / "vae").mkdir()
    done = run_sra2("export", copy, "--to", "f")
    assert done.returncode == 0 and "others give theirs with --vae" in done.stderr
    assert "--num 16 --vae FOLDER" in Path("f/README.md").read_text()


def test_there_and_back(run_sra2, run, cache, monkeypatch):
    """To a hub and, by its name, from it."""
    push = ["export", run, "--to", "f", "--push"]
    line = one_line(run_sra2(*push, "org/net"), 2)
    assert "cannot reach the hub at http://127.0.0.1:9" in line
    with serving() as there:
        point_at(there.url, monkeypatch)
        line = one_line(run_sra2(*push, "org/net"), 2)
        assert "the hub refuses org/net (401" in line and "hf auth login" in line
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "403: You don't have the rights" in one_line(run_sra2(*push, "others/net"), 2)
        done = run_sra2(*push, "org/net", "--head", "--json")
        assert done.returncode == 0, done.stderr
        (commit, files) = there.repositories["org/net"][-1]
        sent = {"url": f"{there.url}/org/net", "commit": commit}
        assert json.loads(done.stdout)["pushed"] == sent
        assert files == {p.name: p.read_bytes() for p in Path("f").iterdir()}
        done = run_sra2("sample", "hf:org/net", *DRAW, "--out", "b")
        assert done.returncode == 0, done.stderr
        own = [*DRAW, "--self-guidance", 1.4]
        assert "not in the hub's cache" in one_line(
            run_sra2("sample", "hf:org/net", *own, "--out", "d", "--offline"), 2
        )
        assert run_sra2("sample", "hf:org/net", *own, "--out", "d").returncode == 0
    assert run_sra2("sample", run, *DRAW, "--out", "a").returncode == 0
    assert run_sra2("sample", run, *own, "--out", "c").returncode == 0
    assert images(Path("a")) == images(Path("b")) != images(Path("c")) == images(Path("d"))
    assert json.loads(Path("b/samples.json").read_text())["source"].endswith(commit)


OPENED = """
import sys
from pathlib import Path
from sra2cli.core import hub, processes
with processes.group("cpu"):
    for name in map(Path, sys.argv[1:]):
        try:
            name = hub.pinned(name)
            print(name, hub.local(name).read_text())
        except hub.SetupError as error:
            print(error)
"""


def test_two_processes_download_once_and_see_one_commit(tmp_path, cache):
    """The repository moves on with each question: both have what the first saw, or its error."""
    with serving() as there:
        commit = there.add("org/net", {"a.pt": b"first", "b.pt": b"second"})
        there.moving = True
        told = {"HF_ENDPOINT": there.url, "HF_HUB_CACHE": str(cache), "WORLD_SIZE": "2"}
        told |= {"SRA2_MEETING": str(tmp_path / "meeting"), "GLOO_SOCKET_IFNAME": "lo"}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", OPENED, "hf:org/net/a.pt", "hf:org/net/c.pt"],
                env={**os.environ, **told, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for rank in "01"
        ]
        said = [process.communicate()[0] for process in started]
        assert there.asked["GET /org/net/resolve/main/a.pt"] == 1
    first, second = said[0].splitlines()
    assert said[0] == said[1] and first == f"hf:org/net/a.pt@{commit} first"
    assert "org/net has no c.pt at main (there are: a.pt, b.pt)" in second
