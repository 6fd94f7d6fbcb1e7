"""Others' code beside the engine: the same weights, and what it takes to run it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from loadtest.engine_cells import Bench
from loadtest.engine_loop import Frames
from loadtest.engine_models import SIZES
from loadtest.peers import (
    DIFFUSERS,
    STREAM_DIFFUSION,
    Peer,
    diffusers_loop,
    measure_peer,
    stock_networks,
    stock_of,
    to_bytes,
)
from loadtest.stream_diffusion import load_class, stream_diffusion

pytestmark = [pytest.mark.unit, pytest.mark.timeout(100)]

SMOKE = SIZES["smoke"]
FRAMES = Frames(SMOKE.pixels)

STAND_IN = '''
import torch


class StreamDiffusion:
    """As much of the class as is called, over the same networks: a queue of latents, one for each step."""

    def __init__(self, pipe, t_index_list, torch_dtype, width, height, cfg_type):
        self.pipe, self.device, self.dtype = pipe, pipe.device, torch_dtype
        self.width, self.height, self.image_processor = width, height, self
        self.queue = [None] * (len(t_index_list) - 1)
        self.init_noise = torch.zeros(len(t_index_list), 4, height // 8, width // 8)

    def prepare(self, prompt, num_inference_steps, generator, seed):
        self.generator = generator.manual_seed(seed)
        self.embeds, _ = self.pipe.encode_prompt(prompt=prompt)

    def preprocess(self, image, height, width):
        assert image.shape == (1, 3, height, width)
        return 2 * image - 1

    def encode_image(self, pixels):
        return self.pipe.vae.encode(pixels).latents

    def predict_x0_batch(self, latent):
        step = torch.tensor([1])
        self.pipe.unet(latent, step, encoder_hidden_states=self.embeds, return_dict=False)
        self.queue.append(latent)
        oldest = self.queue.pop(0)
        return latent if oldest is None else oldest

    def decode_image(self, latent):
        return self.pipe.vae.decode(latent, return_dict=False)[0]
'''


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(SMOKE, torch.device("cpu"), torch.float32, 1e9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "streamdiffusion"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "pipeline.py").write_text(STAND_IN, encoding="utf-8")
    return tmp_path


def test_stock_networks_share_our_weights_and_predict_what_ours_do(bench: Bench) -> None:
    model = bench.networks().model
    stock, ours = stock_networks(model), model.denoisers[""].unet
    assert stock.unet.conv_in.weight.data_ptr() == ours.conv_in.weight.data_ptr()
    width = ours.config.cross_attention_dim
    latent, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 77, width)
    with torch.inference_mode():
        theirs, own = (
            unet(latent, 500, encoder_hidden_states=embeds, return_dict=False)[0]
            for unet in (stock.unet, ours)
        )
    assert torch.allclose(theirs, own, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_diffusers_loop_translates_a_batch_from_bytes_to_bytes(bench: Bench, batch: int) -> None:
    peer = Peer(DIFFUSERS, 2, batch, "eager")
    found = measure_peer(bench, peer, diffusers_loop(bench, peer), partial(FRAMES.bytes_of, "s0"), 2)
    assert found["frames"] == 2 * batch
    assert found["fps"] > 0
    assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"]
    assert found["contrast_levels"] > 10.0
    seconds_of_work = bench.networks().work.of_frame(2, banked=False) / 1e9
    assert found["share_of_bound"] == pytest.approx(found["fps"] * seconds_of_work)


def test_peers_get_the_networks_whatever_ran_before(bench: Bench) -> None:
    bench.networks().accelerators.use("compiled")
    vae = stock_of(bench).vae
    ours = bench.networks().model.vae
    assert vae.decoder.layers[0].weight.data_ptr() == ours.decoder.layers[0].weight.data_ptr()


def test_a_peer_whose_pictures_are_flat_is_not_measured(bench: Bench) -> None:
    def flat(pictures: list[bytearray]) -> list[bytes]:
        return to_bytes(torch.full((len(pictures), 3, 8, 8), 0.5))

    with pytest.raises(ValueError, match="vary by 0 levels"):
        measure_peer(bench, Peer(DIFFUSERS, 1, 1, "eager"), flat, partial(FRAMES.bytes_of, "s0"), 1)


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no package streamdiffusion"):
        load_class(tmp_path)


def test_streams_in_turns_each_take_one_and_give_one(bench: Bench, folder: Path) -> None:
    peer = Peer(STREAM_DIFFUSION, 4, 2, "eager")
    run = stream_diffusion(bench, peer, folder)
    pictures = [FRAMES.bytes_of("s0", n) for n in range(2)]
    first = run(pictures)
    other = [FRAMES.bytes_of("s0", n) for n in (2, 3)]
    for _ in range(2):
        run(other)
    assert run(other) == first, "a picture comes out when it has moved through four places"
    found = measure_peer(bench, peer, run, partial(FRAMES.bytes_of, "s0"), 2)
    # Two pictures a call, and four calls until one is out.
    assert found["latency_p50_ms"] + found["latency_p95_ms"] == pytest.approx(2 * 4e3 * 2 / found["fps"])


def test_names_tell_peers_apart() -> None:
    peers = [
        Peer(who, 4, batch, how)
        for who in (DIFFUSERS, STREAM_DIFFUSION)
        for batch in (1, 8)
        for how in ("eager", "compiled")
    ]
    assert len({peer.name for peer in peers}) == len(peers)
