import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sra2cli.core.errors import SetupError
from sra2cli.core.files import weights_fingerprint
from sra2cli.data.digits import load_digits
from sra2cli.encoders.first_stage import scaled_latents, to_uint8
from sra2cli.encoders.vae import ENCODES, load_vae


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A saved AutoencoderKL with random weights, a scale and a shift."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=3,
        scaling_factor=0.3,
        shift_factor=0.1,
    ).save_pretrained(folder)
    return folder


def test_any_diffusers_vae_from_a_folder(tiny):
    vae = load_vae(str(tiny))
    assert (vae.scale, vae.shift, vae.channels, vae.factor) == (0.3, 0.1, 3, 2)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    moments = vae.encode(images)
    model = AutoencoderKL.from_pretrained(tiny)
    with torch.no_grad():
        posterior = model.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
        torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], 1))
        z = scaled_latents(moments, None, scale=0.3, shift=0.1)
        torch.testing.assert_close(z, (posterior.mean - 0.1) * 0.3)
        expected = model.decode(z / 0.3 + 0.1).sample
    assert np.array_equal(vae.decode(z), to_uint8(expected))


def test_scaled_latents_draw_from_the_posterior():
    moments = torch.cat([torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 1, 1), 0.5)], dim=1)
    z = scaled_latents(moments, torch.full((1, 2, 1, 1), 2.0), scale=0.1, shift=1.0)
    torch.testing.assert_close(z, torch.full((1, 2, 1, 1), (3 + 0.5 * 2 - 1) * 0.1))


def test_fingerprint_is_of_the_encoder_alone(tiny):
    model = AutoencoderKL.from_pretrained(tiny)
    before = weights_fingerprint(model.state_dict(), ENCODES)
    model.decoder.conv_in.weight.data += 1
    assert weights_fingerprint(model.state_dict(), ENCODES) == before
    model.quant_conv.weight.data += 1
    assert weights_fingerprint(model.state_dict(), ENCODES) != before


def test_rounding_is_what_was_asked_for():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 127, 255, 255]  # 127.5 cut off
    assert to_uint8(x, "nearest")[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_the_packaged_digits_vae_reconstructs():
    vae = load_vae("digits")
    images = load_digits()[0][1500:1564]
    moments = vae.encode(torch.from_numpy(images))
    assert moments.shape == (64, 32, 8, 8)
    output = vae.decode(scaled_latents(moments, None, scale=vae.scale, shift=vae.shift))
    assert np.abs(output.astype(int) - images).mean() < 5
    z = scaled_latents(moments, torch.randn(64, 16, 8, 8), scale=vae.scale, shift=vae.shift)
    assert abs(z.std().item() - 1) < 0.1


def test_what_is_no_vae_says_so(tmp_path):
    with pytest.raises(SetupError, match=r"no config\.json in it"):
        load_vae(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SetupError, match="cannot load the VAE"):
        load_vae(str(tmp_path))
    with pytest.raises(SetupError, match=r"neither a folder here nor .* give --vae a folder"):
        load_vae("nobody/no-such-vae", offline=True)
