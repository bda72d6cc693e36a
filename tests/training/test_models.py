import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.training.models import MODELS
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.plain import vgg
from amcsearch.training.models.residual import resnet18, resnet20
from amcsearch.training.models.transformer import language_model, vit

KWARGS = {
    "resnet20": {"width": 4},
    "resnet18": {"width": 4},
    "mobilenetv2": {"width_multiplier": 0.5},
    "vgg": {"width": 4, "hidden": 16},
    "vit": {"dim": 16, "depth": 2, "num_heads": 2, "mlp_width": 24},
    "language_model": {"vocabulary": 50, "context": 12, "dim": 16, "depth": 2, "num_heads": 2, "mlp_width": 24},
}


def small(name):
    torch.manual_seed(0)
    model = MODELS[name](**KWARGS[name]).eval()
    generator = torch.Generator().manual_seed(0)
    if name == "language_model":
        return model, torch.randint(0, 50, (3, 12), generator=generator), (3, 12, 50)
    return model, torch.randn(3, 1, 32, 32, generator=generator), (3, 10)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_logits_that_depend_on_the_input(name):
    model, x, shape = small(name)
    y = model(x)
    assert y.shape == shape
    assert (y[0] - y[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    model, x, _ = small(name)
    model.train()(x).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == [
        n
        for n, _ in model.named_parameters()
        if n.endswith("attention.k.bias")  # softmax cancels a key's bias
        and model.get_parameter(n).grad.abs().max() == 0
    ]


@pytest.mark.parametrize("name", MODELS)
def test_batch_rows_do_not_see_each_other(name):
    model, x, _ = small(name)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_resnet20_has_the_paper_s_parameters():
    # 269,722 for CIFAR with zero-padded shortcuts (He et al. 2016: 0.27 M); two 1x1 projections with their
    # normalisation add 16·32 + 64 + 32·64 + 128
    assert parameters(resnet20(in_channels=3)) == 269_722 + 576 + 2176


def test_resnet18_has_the_paper_s_parameters():
    # 11,689,512 for ImageNet (torchvision's count): less the 7x7 stem's 9,408 and the head's 513,000, with a 3x3 stem's
    # 1,728 and ten classes' 5,130
    assert parameters(resnet18(in_channels=3)) == 11_689_512 - 9_408 - 513_000 + 1_728 + 5_130


def test_vgg_at_width_64_has_vgg16_s_convolutions():
    convolutions = [m for m in vgg(in_channels=3, width=64).modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == 14_710_464
    assert len(convolutions) == 13


def test_mobilenetv2_is_inverted_and_depthwise():
    convolutions = [m for m in mobilenetv2().modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.groups > 1 and m.groups == m.in_channels == m.out_channels for m in convolutions) == 9
    assert {m.out_channels % 8 for m in mobilenetv2(width_multiplier=0.3).modules() if isinstance(m, nn.Conv2d)} == {0}


def test_language_model_is_causal():
    model, x, _ = small("language_model")
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amin(dim=(0, 2)).shape == (5,)
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=(0, 2)).min() > 0


def test_language_model_takes_shorter_sequences():
    model, x, _ = small("language_model")
    torch.testing.assert_close(model(x[:, :5]), model(x)[:, :5])


def test_tied_embeddings_are_one_tensor():
    tied, untied = language_model(tie_embeddings=True), language_model()
    assert tied.head.weight is tied.tokens.weight
    assert parameters(untied) - parameters(tied) == 256 * 96


def test_attention_follows_its_projections_when_heads_are_removed():
    model, x, _ = small("vit")
    attention = model.blocks[0].attention
    keep = slice(8, 16)  # the second head
    for layer in (attention.q, attention.k, attention.v):
        layer.weight, layer.bias = nn.Parameter(layer.weight[keep]), nn.Parameter(layer.bias[keep])
    attention.out.weight = nn.Parameter(attention.out.weight[:, keep])
    assert model(x).shape == (3, 10)


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        (resnet20, {"depth": 21}, "depth = 21"),
        (resnet20, {"width": 0}, "width = 0"),
        (mobilenetv2, {"width_multiplier": 0.0}, "width_multiplier = 0.0"),
        (vgg, {"input_size": 40}, "input_size = 40"),
        (vgg, {"width": 0}, "width = 0"),
        (vit, {"patch": 5}, "image_size = 32"),
        (vit, {"num_heads": 5}, "num_heads = 5"),
        (vit, {"depth": 0}, "depth = 0"),
        (language_model, {"vocabulary": 0}, "vocabulary = 0"),
    ],
)
def test_impossible_sizes_are_refused(factory, kwargs, message):
    with pytest.raises(BadInputError, match=message):
        factory(**kwargs)
