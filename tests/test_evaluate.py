"""sra2 eval: samples, references, what is refused and what is warned of.

A small random network stands in for Inception (test_inception.py runs the real one).
"""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data import npz
from sra2cli.data.images import center_crop
from sra2cli.evaluation import evaluate as room
from sra2cli.evaluation import networks, reference, scores
from sra2cli.evaluation.extractors import Collector, Extractor, Wanted, features_of
from sra2cli.evaluation.judging import Judging
from sra2cli.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    statistics,
)

WIDTHS = {"pool": 12, "spatial": 9, "logits": 7}


def small_extractor() -> Extractor:
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(48, w, generator=generator) / 5 for k, w in WIDTHS.items()}

    def run(images):
        x = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 127.5 - 1
        x = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return {name: (x @ weight).tanh() * 3 for name, weight in weights.items()}

    return Extractor("small", "f00d", WIDTHS, {"pool": "", "spatial": "_s"}, run)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        networks, "inception_extractor", lambda weights, *, device: small_extractor()
    )
    return small_extractor()


def pictures(count, side=16, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


def write_folder(folder, images, **record):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    if record:
        about = {"complete": True, "num": len(images), "labels": None, **record}
        (folder / "samples.json").write_text(json.dumps(about))


def judged(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def write_reference(path, images, extractor, **changed):
    """As ADM's: statistics of all, 10,000 or here all of the images."""
    kept = extractor.run(images)
    arrays = {"arr_0": images}
    for feature, suffix in extractor.saved.items():
        s = statistics(kept[feature].numpy())
        arrays |= {f"mu{suffix}": s.mean, f"sigma{suffix}": s.covariance}
    arrays |= changed
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_all_metrics_are_those_of_the_features(run_sra2, tmp_path, small):
    fake, real = pictures(60), pictures(80, seed=1)
    write_folder(tmp_path / "s", fake, labels=[i % 7 for i in range(60)], sampling={"cfg": 1.8})
    write_reference(tmp_path / "ref.npz", real, small)
    names = "fid,sfid,is,precision,recall,kid"
    result = judged(run_sra2("eval", "s", "--ref", "ref.npz", "--metrics", names, "--json"))
    a, b = (small.run(images) for images in (fake, real))
    stats = [{k: statistics(f[k].numpy()) for k in ("pool", "spatial")} for f in (a, b)]
    pair = precision_recall(a["pool"], b["pool"], dtype="float16")
    expected = {
        "fid": frechet_distance(stats[0]["pool"], stats[1]["pool"]),
        "sfid": frechet_distance(stats[0]["spatial"], stats[1]["spatial"]),
        "is": inception_score(a["logits"].numpy()),
        "precision": pair[0],
        "recall": pair[1],
        "kid": kernel_distance(a["pool"], b["pool"]),
    }
    assert {k: result[k] for k in expected} == pytest.approx(expected)
    assert result["how"]["sampling"] == {"cfg": 1.8}
    assert result["reference_about"]["sha256"] == npz.sha256(tmp_path / "ref.npz")
    assert result["extractor"] == {"name": "small", "fingerprint": "f00d"}
    assert result["settings"]["dtypes"]["distances"] == "float16" and result["count"] == 60
    assert result["environment"]["torch"] == torch.__version__
    assert result == json.loads(
        (tmp_path / "s" / f"eval-{names.replace(',', '-')}.json").read_text()
    )
    table = run_sra2("eval", "s", "--ref", "ref.npz", "--metrics", names).stdout
    assert "fid ↓" in table and "recall ↑" in table and "ref.npz" in table
    wide = ["--distances", "float32", "--json"]
    other = judged(run_sra2("eval", "s", "--ref", "ref.npz", "--metrics", "recall", *wide))
    assert other["recall"] == precision_recall(a["pool"], b["pool"])[1]


def test_folder_zip_and_npz_of_the_same_images_score_the_same(run_sra2, tmp_path, small):
    images = pictures(30)
    write_folder(tmp_path / "s", images)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
        for path in sorted((tmp_path / "s").iterdir()):
            file.write(path, f"s/{path.name}")
    np.savez(tmp_path / "plain.npz", arr_0=images, arr_1=np.arange(30) % 4)
    np.savez_compressed(tmp_path / "packed.npz", images)
    write_folder(tmp_path / "ref", pictures(40, seed=1))
    results = [
        judged(run_sra2("eval", s, "--ref", "ref", "--metrics", "fid,sfid,is,recall", "--json"))
        for s in ("s", "s.zip", "plain.npz", "packed.npz")
    ]
    for result in results:
        for key in ("fid", "sfid", "is", "recall", "count"):
            assert result[key] == results[0][key]
        assert (
            result["samples_about"]["pixels_sha256"] == results[0]["samples_about"]["pixels_sha256"]
        )
    assert len(list(tmp_path.glob("*-eval-fid-sfid-is-recall.json"))) == 3


def test_the_parts_of_a_reference_serve_their_metrics(run_sra2, tmp_path, small):
    """mu for FID, mu_s for sFID, images for the rest; images alone serve everything."""
    np.savez(tmp_path / "s.npz", arr_0=pictures(50))
    real = pictures(60, seed=1)
    s = statistics(small.run(pictures(90, seed=2))["pool"].numpy())
    write_reference(tmp_path / "full.npz", real, small, mu=s.mean, sigma=s.covariance)
    write_reference(tmp_path / "images.npz", real, small, **dict.fromkeys(KEYS))
    write_reference(tmp_path / "bare.npz", real, small, arr_0=None)

    def result(ref, *more):
        return judged(run_sra2("eval", "s.npz", "--ref", ref, "--json", *more))

    full, images, bare = (result(f"{name}.npz") for name in ("full", "images", "bare"))
    fake = statistics(small.run(pictures(50))["pool"].numpy())
    assert full["fid"] == pytest.approx(frechet_distance(fake, s))
    assert images["fid"] == pytest.approx(bare["fid"]) != full["fid"]
    assert full["sfid"] == pytest.approx(images["sfid"]) == bare["sfid"]
    assert full["precision"] == images["precision"] and "precision" not in bare
    assert "does not allow precision, recall" in bare["warnings"][-1]
    lacking = run_sra2("eval", "s.npz", "--ref", "bare.npz", "--metrics", "fid,recall")
    assert "has no images (arr_0): recall cannot" in one_line(lacking, 2)
    write_reference(tmp_path / "pool.npz", real, small, arr_0=None, mu_s=None, sigma_s=None)
    lacking = run_sra2("eval", "s.npz", "--ref", "pool.npz", "--metrics", "sfid")
    assert "has no mu_s and sigma_s, or images" in one_line(lacking, 2)


KEYS = ("mu", "sigma", "mu_s", "sigma_s")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.zeros(5)}, "mu must be float (12,), not float64 (5,)"),
        ({"sigma": np.zeros((12, 12), int)}, "sigma must be float (12, 12), not int64"),
        ({"mu": np.full(12, np.nan)}, "mu holds values that are not finite"),
        ({"sigma": np.triu(np.ones((12, 12)))}, "sigma is not a covariance"),
        ({"sigma": None}, "has no sigma beside mu"),
        ({"mu_s": None}, "has no mu_s beside sigma_s"),
        ({"arr_0": np.zeros((4, 8, 8, 3))}, "arr_0 must be uint8 (N, H, W, 3), not float64"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, "arr_0 must be uint8 (N, H, W, 3), not"),
        ({"arr_0": np.array([None])}, "arr_0 cannot be read: it holds Python objects"),
        ({"arr_0": np.asfortranarray(pictures(4))}, "stored in Fortran's order"),
    ],
)
def test_bad_references_are_named(run_sra2, tmp_path, small, changed, message):
    np.savez(tmp_path / "s.npz", arr_0=pictures(20))
    write_reference(tmp_path / "ref.npz", pictures(20), small, **changed)
    assert message in one_line(run_sra2("eval", "s.npz", "--ref", "ref.npz"), 1)


def test_bad_samples_are_named(run_sra2, tmp_path, small):
    write_reference(tmp_path / "ref.npz", pictures(20), small)

    def refused(code, samples, *more):
        return one_line(run_sra2("eval", samples, "--ref", "ref.npz", *more), code)

    np.savez(tmp_path / "float.npz", arr_0=np.zeros((3, 8, 8, 3)))
    assert "arr_0 must be uint8" in refused(1, "float.npz")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(12))
    assert "holds no images" in refused(2, "stats.npz")
    (tmp_path / "text.npz").write_text("no zip")
    assert "cannot be read" in refused(1, "text.npz")
    np.savez(tmp_path / "cut.npz", arr_0=pictures(40))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:400] + bytes(100) + whole[500:])
    assert "Bad CRC" in refused(1, "cut.npz")
    np.savez(tmp_path / "one.npz", arr_0=pictures(1))
    assert "at least 2 images" in refused(1, "one.npz")
    np.savez(tmp_path / "few.npz", arr_0=pictures(3))
    assert "need more than 3 images" in refused(1, "few.npz")
    write_folder(tmp_path / "s", pictures(6), num=9)
    assert "3 of 9 samples are missing, first s/000006.png" in refused(1, "s")
    np.savez(tmp_path / "s" / "fewer.npz", arr_0=pictures(6))
    assert "holds 6 images" in refused(1, "s/fewer.npz")
    np.savez(tmp_path / "good.npz", arr_0=pictures(20))
    assert "did you mean 'precision'?" in refused(2, "good.npz", "--metrics", "fid,precison")
    assert "there are: fid, sfid" in refused(2, "good.npz", "--metrics", "xyzzy")
    assert "different networks" in refused(2, "good.npz", "--metrics", "fid,fd-digits")
    assert "--crop is a side above 0" in refused(2, "good.npz", "--crop", 0)
    assert "not 'square:8'" in refused(2, "good.npz", "--crop", "square:8")
    assert "--distances is one of" in refused(2, "good.npz", "--distances", "float8")
    assert "compared with what?" in one_line(run_sra2("eval", "good.npz", "--metrics", "fid"), 2)
    for ref in ("gone.npz", "gone"):
        assert "gone" in one_line(run_sra2("eval", "good.npz", "--metrics", "fid", "--ref", ref), 2)
    for out, message in (("x.pt", "writes an .npz"), ("gone/x.npz", "no folder gone")):
        line = one_line(run_sra2("eval", "good.npz", "--save-stats", out), 2)
        assert message in line


def test_features_that_are_not_finite_are_refused(small):
    def broken(images):
        return {name: f * torch.nan for name, f in small.run(images).items()}

    bad = Extractor("small", "f00d", WIDTHS, {}, broken)
    with pytest.raises(DataError, match=r"not finite at images 0\.\.3"):
        features_of(bad, [pictures(4)], Wanted(score=True))


def test_warnings_where_a_number_would_mislead(run_sra2, tmp_path, small):
    write_reference(tmp_path / "ref.npz", pictures(60, side=32, seed=1), small)
    write_folder(tmp_path / "sorted", pictures(20), labels=[i // 5 for i in range(20)])
    (tmp_path / "classes").mkdir()
    for k in "ab":
        write_folder(tmp_path / "classes" / k, pictures(10))
    for samples in ("sorted", "classes"):
        process = run_sra2("eval", samples, "--ref", "ref.npz", "--json")
        warnings = judged(process)["warnings"]
        for part in ("50,000", "sorted by class", "are 16x16, the reference 32x32"):
            assert part in " ".join(warnings) and part in process.stderr
    write_folder(tmp_path / "mixed", pictures(8), labels=[i % 4 for i in range(8)])
    mixed = judged(run_sra2("eval", "mixed", "--ref", "ref.npz", "--crop", 32, "--json"))
    warnings = " ".join(mixed["warnings"])
    assert "8 samples were resized" in warnings and "of lower rank" in warnings
    assert "sorted" not in warnings and "16x16" not in warnings
    digits = judged(run_sra2("eval", "mixed", "--metrics", "fd-digits", "--json"))
    assert "means nothing but for digits of 32x32; these are 16x16" in " ".join(digits["warnings"])


def test_crop_is_adms_and_takes_images_of_several_sizes(run_sra2, tmp_path, small):
    rng = np.random.default_rng(0)
    large = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 60), (70, 50)] * 5]
    write_folder(tmp_path / "ref", large)
    np.savez(tmp_path / "s.npz", arr_0=pictures(20))
    command = ["eval", "s.npz", "--ref", "ref", "--metrics", "fid"]
    assert "reference images of one size are needed (--crop N" in one_line(run_sra2(*command), 1)
    result = judged(run_sra2(*command, "--crop", 16, "--json"))
    cropped = np.stack([center_crop(Image.fromarray(image), 16) for image in large])
    stats = [statistics(small.run(x)["pool"].numpy()) for x in (pictures(20), cropped)]
    assert result["fid"] == pytest.approx(frechet_distance(*stats))
    assert result["reference_about"]["resized"] == 10 and result["samples_about"]["resized"] == 0


def test_saved_statistics_serve_as_reference_and_are_the_same_bytes_again(
    run_sra2, tmp_path, small, monkeypatch
):
    monkeypatch.setattr(reference, "KEPT", 8)
    data, fake = pictures(20, seed=1), pictures(30)
    write_folder(tmp_path / "data", data)
    np.savez(tmp_path / "s.npz", arr_0=fake)
    save = ["eval", "data", "--batch", 7, "--save-stats", "ref.npz", "--json"]
    assert judged(run_sra2(*save))["metric"] == ""
    saved = (tmp_path / "ref.npz").read_bytes()
    arrays = np.load(tmp_path / "ref.npz")
    assert np.array_equal(arrays["arr_0"], data[[i * 20 // 8 for i in range(8)]])
    for feature, suffix in small.saved.items():
        s = statistics(small.run(data)[feature].numpy())
        assert np.allclose(arrays[f"mu{suffix}"], s.mean, atol=1e-6)
        assert np.allclose(arrays[f"sigma{suffix}"], s.covariance, atol=1e-6)
    against = [
        judged(run_sra2("eval", "s.npz", "--ref", ref, "--metrics", "fid,sfid", "--json"))
        for ref in ("data", "ref.npz")
    ]
    assert against[0]["fid"] == pytest.approx(against[1]["fid"], rel=1e-6)
    assert against[1]["reference_count"] == 20

    def interrupt(images):
        raise KeyboardInterrupt

    (tmp_path / "ref.npz").unlink()
    with monkeypatch.context() as patch:
        broken = Extractor("small", "f00d", WIDTHS, small.saved, interrupt)
        patch.setattr(networks, "inception_extractor", lambda weights, *, device: broken)
        assert run_sra2(*save).returncode == 130
    assert not list(tmp_path.glob("*ref.npz*"))
    assert judged(run_sra2(*save)) and (tmp_path / "ref.npz").read_bytes() == saved
    other = Extractor("large", "beef", WIDTHS, small.saved, small.run)
    monkeypatch.setattr(networks, "inception_extractor", lambda weights, *, device: other)
    line = one_line(run_sra2("eval", "s.npz", "--ref", "ref.npz", "--metrics", "fid"), 2)
    assert "was made with another network (small)" in line


def test_fd_digits_goes_the_same_way(run_sra2, tmp_path, digits_folder):
    """Statistics of digits saved, and used again as a reference; npz samples."""
    from sra2cli.data import digits

    images, labels = digits.load_digits()
    about = {"labels": labels[:50].tolist()}
    write_folder(tmp_path / "s", images[:50], **about)
    default = judged(run_sra2("eval", "s", "--metrics", "fd-digits", "--json"))
    assert default["reference"] == "scikit-learn digits" and default["reference_count"] == 1797
    assert default["accuracy"] > 0.9 and default["fd-digits"] > 0
    write_folder(tmp_path / "all", images)
    save = ["eval", "all", "--metric", "fd-digits", "--save-stats", "digits.npz", "--json"]
    assert judged(run_sra2(*save))["fd-digits"] == pytest.approx(0, abs=1e-6)
    against = ["--ref", "digits.npz", "--metric", "fd-digits", "--json"]
    again = judged(run_sra2("eval", "s", *against))
    assert again["fd-digits"] == pytest.approx(default["fd-digits"], rel=1e-6)
    assert (
        room.evaluate(tmp_path / "s", Judging(metric="fd-digits"))["fd-digits"]
        == default["fd-digits"]
    )


def test_batches_of_a_sampler_need_no_files(small):
    """The core alone: what training or sampling would call."""
    fake, real = pictures(40), pictures(50, seed=1)
    names = ("fid", "is", "precision")
    wanted = scores.wanted(names)
    collector = Collector(small, wanted)
    for k in range(0, 40, 9):
        collector.add(fake[k : k + 9])
    found = scores.values(names, collector.finish(), features_of(small, [real], wanted))
    a, b = (statistics(small.run(x)["pool"].numpy()) for x in (fake, real))
    assert found["fid"] == pytest.approx(frechet_distance(a, b)) and list(found) == list(names)


def test_an_npz_is_streamed(tmp_path):
    """200 MB of images, a few kB in memory."""
    with npz.Writer(tmp_path / "large.npz", 1000) as writer:
        image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        tracemalloc.start()
        for i in range(1000):
            writer.add_image(np.roll(image, i))
        writer.finish({})
    total = sum(int(image[0, 0, 0]) for image in npz.images(tmp_path / "large.npz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == sum(int(np.roll(image, i)[0, 0, 0]) for i in range(1000))
    assert peak < 5e6 and (tmp_path / "large.npz").stat().st_size > 190e6
    with np.load(tmp_path / "large.npz") as file:
        assert np.array_equal(file["arr_0"][3], np.roll(image, 3))


def test_npz_of_another_kind_is_a_setup_error(tmp_path):
    with pytest.raises(SetupError, match="no file"):
        npz.keys_of(tmp_path / "gone.npz")
