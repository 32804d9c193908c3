"""The networks: their shapes and sizes, the inputs that they accept, and bfloat16 compared with float32."""

import itertools
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from support.stub_games import described
from torch import Tensor, nn

from zmqrl.errors import UsageError
from zmqrl.learner import networks
from zmqrl.learner.activations import space_to_depth
from zmqrl.learner.games import BoxActions
from zmqrl.learner.networks import CPU, ConvPolicy, compute_of, fastest_compute, make_model
from zmqrl.learner.settings import NetworkConfig

ATARI = (4, 84, 84)
FLOAT32 = NetworkConfig(compute="float32")
IMAGE_MODELS: list[str] = ["small", "nature", "narrow", "dba3c"]


def frames(batch: int, *, seed: int = 0, shape: tuple[int, ...] = ATARI) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_image_model_gives_float32_logits_and_values(name: str, compute: networks.Compute) -> None:
    logits, values = make_model(name, described(ATARI, 6), NetworkConfig(compute=compute))(frames(3))
    assert (logits.shape, values.shape) == ((3, 6), (3,))
    assert logits.dtype == values.dtype == torch.float32


def test_the_vector_model_gives_float32_logits_and_values() -> None:
    logits, values = make_model("mlp", described((5,), 3))(torch.randn(7, 5))
    assert (logits.shape, values.shape) == ((7, 3), (7,))


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "mlp"])
def test_a_policy_over_box_actions_has_means_and_deviations_that_ignore_the_observation(name: str) -> None:
    shape = (5,) if name == "mlp" else ATARI
    model = make_model(name, described(shape, BoxActions((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (3,))))
    model.get_parameter("log_std").data.copy_(torch.tensor([0.0, -1.0, -2.0]))
    seen = torch.randn(4, 5) if name == "mlp" else frames(4)
    outputs, values = model(seen)
    assert (outputs.shape, outputs.dtype, values.shape) == ((4, 6), torch.float32, (4,))
    assert len({tuple(row) for row in outputs[:, :3].tolist()}) == 4
    assert outputs[:, 3:].tolist() == [[0.0, -1.0, -2.0]] * 4
    assert model.double()(seen.double() if name == "mlp" else seen)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        # (weights, biases) of each layer, the two heads last
        ("small", [(16 * 4 * 8 * 8, 16), (32 * 16 * 4 * 4, 32), (9 * 9 * 32 * 256, 256), (256 * 4, 4), (256, 1)]),
        (
            "nature",
            [
                (32 * 4 * 8 * 8, 32),
                (64 * 32 * 4 * 4, 64),
                (64 * 64 * 3 * 3, 64),
                (7 * 7 * 64 * 512, 512),
                (512 * 4, 4),
                (512, 1),
            ],
        ),
        # 84 -conv-> 80 -pool-> 40 -> 36 -> 18 -> 14 -> 7 -> 5: no biases before the heads
        (
            "dba3c",
            [
                (32 * 4 * 5 * 5, 0),
                (32 * 32 * 5 * 5, 0),
                (64 * 32 * 5 * 5, 0),
                (64 * 64 * 3 * 3, 0),
                (5 * 5 * 64 * 128, 0),
                (128 * 4, 4),
                (128, 1),
            ],
        ),
    ],
)
def test_a_model_has_the_number_of_parameters_in_its_paper(name: str, layers: list[tuple[int, int]]) -> None:
    parameters = list(make_model(name, described(ATARI, 4)).parameters())
    assert sum(parameter.numel() for parameter in parameters) == sum(map(sum, layers))
    assert all(parameter.dtype == torch.float32 for parameter in parameters)


def test_dba3c_on_twelve_channels_has_the_published_size_minus_the_padding() -> None:
    published, padding_to_16_channels = 331_909, 4 * 32 * 5 * 5
    counted = sum(parameter.numel() for parameter in make_model("dba3c", described((12, 84, 84), 4)).parameters())
    assert counted == published - padding_to_16_channels
    wide = make_model("dba3c", described((12, 84, 84), 4), NetworkConfig(hidden=512))
    assert sum(parameter.numel() for parameter in wide.parameters()) == 948_229 - padding_to_16_channels


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_byte_frames_give_the_same_result_as_frames_divided_by_255(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, described(ATARI, 4), FLOAT32)
    for of_bytes, of_floats in zip(model(frames(4)), model(frames(4) / 255), strict=True):
        torch.testing.assert_close(of_bytes, of_floats, rtol=1e-4, atol=1e-5)


def test_byte_frames_give_the_same_gradients_as_frames_divided_by_255() -> None:
    torch.manual_seed(0)
    model = make_model("small", described(ATARI, 4), FLOAT32)
    gradients = []
    for observations in (frames(4), frames(4) / 255):
        model.zero_grad()
        logits, values = model(observations)
        (logits.logsumexp(-1).sum() + values.sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for of_bytes, of_floats in zip(*gradients, strict=True):
        # Do not compare number by number: a rounding error can decide whether a single ReLU is active.
        assert (of_bytes - of_floats).norm() < 0.01 * of_floats.norm()


def test_the_small_model_has_two_convolutions_and_a_hidden_layer() -> None:
    model = make_model("small", described(ATARI, 4), FLOAT32)
    assert isinstance(model, ConvPolicy)
    first, second = model.convs
    x = F.relu(second(F.relu(first(frames(2) / 255))))
    x = F.relu(model.hidden(x.permute(0, 2, 3, 1).reshape(2, -1)))
    logits, values = model(frames(2))
    torch.testing.assert_close(logits, model.actor(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values, model.critic(x)[:, 0], rtol=1e-4, atol=1e-6)


def test_dba3c_pools_after_three_convolutions_and_its_hidden_layer_is_linear() -> None:
    model = make_model("dba3c", described(ATARI, 4), FLOAT32)
    assert isinstance(model, ConvPolicy)
    x = frames(2) / 255
    for conv in model.convs[:3]:
        x = F.max_pool2d(F.relu(conv(x)), 2)
    x = F.relu(model.convs[3](x))
    x = model.hidden(x.permute(0, 2, 3, 1).reshape(2, -1))
    assert (x < 0).any()
    logits, values = model(frames(2))
    torch.testing.assert_close(logits, model.actor(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values, model.critic(x)[:, 0], rtol=1e-4, atol=1e-6)


def test_the_memory_format_does_not_change_the_result() -> None:
    model = make_model("nature", described(ATARI, 4), FLOAT32)
    interleaved = frames(3).to(memory_format=torch.channels_last)
    for ours, theirs in zip(model(interleaved), model(frames(3)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "block"), [(4, 4), (3, 4), (16, 1), (5, 2)])
def test_space_to_depth_makes_one_pixel_of_each_block(channels: int, block: int, dtype: torch.dtype) -> None:
    images = torch.randint(256, (2, channels, 3 * block, 5 * block)).to(dtype)
    blocks = space_to_depth(images, block)
    assert block == 1 or blocks.is_contiguous(memory_format=torch.channels_last)
    found = blocks.reshape(2, block, block, channels, 3, 5)
    for row, column in itertools.product(range(block), repeat=2):
        assert torch.equal(found[:, row, column], images[:, :, row::block, column::block])


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Channels, height and width of the kernel of each convolution that is computed."""
    noted: list[tuple[int, ...]] = []
    conv2d = F.conv2d

    def noting(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        noted.append(tuple(weight.shape[1:]))
        return conv2d(x, weight, *rest)

    monkeypatch.setattr(F, "conv2d", noting)
    return noted


@pytest.mark.parametrize(
    ("name", "kernel"), [("small", (4, 8, 8)), ("nature", (4, 8, 8)), ("narrow", (4, 8, 8)), ("dba3c", (4, 5, 5))]
)
def test_blocks_of_pixels_change_only_the_rounding(
    name: str, kernel: tuple[int, ...], kernels: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model = make_model(name, described(ATARI, 4), NetworkConfig(compute="bfloat16"))
    results = []
    for amx in (False, True):
        monkeypatch.setattr(networks, "has_amx", lambda amx=amx: amx)
        kernels.clear()
        model.zero_grad()
        logits, values = model(frames(16))
        assert kernels[0] == ((64, 2, 2) if amx and name != "dba3c" else kernel)
        (logits.log_softmax(-1)[:, 0].sum() + values.square().sum()).backward()
        gradient = torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in model.parameters()])
        results.append((logits.detach(), values.detach(), gradient))
    for plain, blocks in zip(*results, strict=True):
        assert (blocks - plain).norm() < 2**-6 * plain.norm()


@pytest.mark.parametrize(
    ("shape", "compute", "as_bytes"),
    [
        (ATARI, "float32", True),
        ((12, 84, 84), "bfloat16", True),
        (ATARI, "bfloat16", False),
        ((4, 86, 84), "bfloat16", True),
    ],
)
def test_only_four_grey_frames_in_bfloat16_are_read_in_blocks(
    shape: tuple[int, ...],
    compute: networks.Compute,
    as_bytes: bool,
    kernels: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: True)
    model = make_model("nature", described(shape, 4), NetworkConfig(compute=compute))
    images = frames(3, shape=shape)
    model(images if as_bytes else images / 255)
    assert kernels[0] == (shape[0], 8, 8)


def test_a_forward_pass_alone_and_an_evaluation_read_frames(
    kernels: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: True)
    model = make_model("nature", described(ATARI, 4), NetworkConfig(compute="bfloat16"))
    with torch.inference_mode():
        model(frames(3))
    assert kernels[0] == (4, 8, 8)
    kernels.clear()
    model.double()(frames(3))
    assert kernels[0] == (4, 8, 8)


def test_a_changed_first_convolution_keeps_its_stride(
    kernels: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: True)
    model = make_model("small", described(ATARI, 4), NetworkConfig(compute="bfloat16"))
    assert isinstance(model, ConvPolicy)
    model.convs[0] = nn.Conv2d(4, 16, 8, (4, 2), bias=False)
    model.convs[1] = nn.Conv2d(16, 32, (4, 5), (2, 4), bias=False)
    assert model(frames(3))[0].shape == (3, 4)
    assert kernels[0] == (4, 8, 8)


@pytest.mark.processes
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    computes: list[networks.Compute] = ["float32", "bfloat16"]
    results = []
    for compute in computes:
        torch.manual_seed(1)
        model = make_model(name, described(ATARI, 4), NetworkConfig(compute=compute))
        logits, values = model(frames(16))
        (logits.log_softmax(-1)[:, 0].sum() + values.square().sum()).backward()
        gradient = torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in model.parameters()])
        assert gradient.dtype == torch.float32
        results.append((logits, values, gradient))
    (logits, values, gradient), (logits16, values16, gradient16) = results
    # bfloat16 keeps 8 bits: an error of 0.4 % per rounding, and a few roundings in a row
    assert (values16 - values).abs().max() < 0.03 * values.abs().max()
    assert (logits16 - logits).abs().max() < 0.03 * logits.abs().max()
    assert (gradient16 - gradient).norm() < 0.03 * gradient.norm()


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "mlp"])
def test_the_first_policy_is_nearly_uniform_and_one_seed_gives_one_network(name: str) -> None:
    shape = (5,) if name == "mlp" else ATARI
    observations = torch.randn(8, 5) if name == "mlp" else frames(8)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(make_model(name, described(shape, 4))(observations))
    assert outputs[0][0].softmax(-1).sub(0.25).abs().max() < 0.02
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_layers_begin_orthogonal_with_zero_biases() -> None:
    model = make_model("small", described(ATARI, 4))
    assert isinstance(model, ConvPolicy)
    for weight, gain in (
        (cast(Tensor, model.convs[1].weight).flatten(1), math.sqrt(2)),
        (model.hidden.weight, math.sqrt(2)),
        (model.actor.weight, 0.01),
        (model.critic.weight, 1.0),
    ):
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=1e-4, atol=1e-5)
    assert not model.hidden.bias.any()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("small", (4,), ["'small'", "(4,)", "mlp"]),
        ("mlp", ATARI, ["'mlp'", "(4, 84, 84)", "nature"]),
        ("dba3c", (4, 40, 40), ["'dba3c'", "(4, 40, 40)", "larger screen"]),
        ("nature", (84, 84), ["'nature'", "(84, 84)"]),
    ],
)
def test_an_error_about_an_unsuitable_model_names_the_model_and_the_shape(
    name: str, shape: tuple[int, ...], words: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        make_model(name, described(shape, 4))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_number_format_of_a_network_is_known_unless_a_user_made_it(
    compute: networks.Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "fastest_compute", lambda device: compute)
    assert compute_of(make_model("narrow", described(ATARI, 4))) == compute
    assert compute_of(make_model("mlp", described((4,), 2))) == "float32"
    assert compute_of(torch.nn.Linear(4, 2)) is None


def test_the_vector_model_refuses_bfloat16() -> None:
    with pytest.raises(UsageError, match=r"--network.compute bfloat16: .* float32 only"):
        make_model("mlp", described((4,), 2), NetworkConfig(compute="bfloat16"))


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "mlp"])
def test_the_width_of_the_hidden_layer_can_be_chosen_for_every_model(name: str) -> None:
    shape = (5,) if name == "mlp" else ATARI
    model = make_model(name, described(shape, 4), NetworkConfig(hidden=24))
    heads = [p for key, p in model.named_parameters() if key.endswith("weight") and len(p) in (1, 4)]
    assert [head.shape for head in heads] == [(4, 24), (1, 24)]


@pytest.mark.parametrize("hidden", [0, -3, 10**9])
def test_an_error_about_an_invalid_width_names_its_option(hidden: int) -> None:
    with pytest.raises(UsageError, match=rf"^--network.hidden {hidden}: must be from 1 to 8192\.$"):
        NetworkConfig(hidden=hidden)


@pytest.mark.parametrize(
    ("flags", "compute", "amx"),
    [
        ("fpu avx512f avx512_bf16", "bfloat16", False),
        ("amx_bf16 avx512f", "bfloat16", True),
        ("fpu avx512f", "float32", False),
    ],
)
def test_bfloat16_is_used_only_if_the_processor_can_multiply_it(
    flags: str, compute: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\nflags\t\t: {flags}\n")
    assert fastest_compute.__wrapped__(CPU) == compute
    assert networks.has_amx.__wrapped__() == amx
